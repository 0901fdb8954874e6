//! The program beside this one, which is linked to libtorch, and how its OpenMP uses the processor.
//!
//! OpenMP reads the environment when it is loaded, which is before `main`: settings that the user left open
//! are made by starting the program once more in the same process. A waiting thread spins by default, which
//! takes the time of whatever else runs on its core; and the number of threads is that of the machine's
//! cores, whatever quota a container has.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use rustix::io::Errno;

use crate::cli::exit::WrongConfig;

/// The program that computes.
const PROGRAM: &str = "instdisc-torch";
/// What it needs of libtorch.
const LIBTORCH: &str = "libtorch_cpu.so";
/// The version that it was compiled for; libtorch keeps no binary interface from one to the next.
const VERSION: &str = match option_env!("INSTDISC_TORCH_VERSION") {
    Some(version) => version,
    None => "",
};

/// Runs the same command line by the program beside this one, in this process; returns only if that fails.
///
/// # Errors
/// If that program is missing, or does not find the libtorch that it needs.
pub(in crate::cli) fn run() -> anyhow::Result<()> {
    let own = std::env::current_exe()?;
    let program = own.canonicalize()?.with_file_name(PROGRAM);
    if !program.try_exists().with_context(|| program.display().to_string())? {
        let reason = format!(
            "this command computes with libtorch, by `{}`, which does not exist: install both programs (a \
             build without libtorch has one alone)",
            program.display()
        );
        return Err(WrongConfig(reason).into());
    }
    check_libtorch(&program)?;
    let mut words = std::env::args_os();
    let mut command = Command::new(&program);
    // So that errors name the program that was called.
    command.arg0(words.next().unwrap_or_else(|| own.into())).args(words);
    #[cfg(feature = "torch")]
    command.envs(missing_settings());
    let error = command.exec();
    let reason = format!("{}: {error}", program.display());
    // Anything else may pass: too little memory, a program that is being replaced.
    let stays = [Errno::NOENT, Errno::ACCESS, Errno::NOEXEC].map(|errno| Some(errno.raw_os_error()));
    if stays.contains(&error.raw_os_error()) {
        return Err(WrongConfig(reason).into());
    }
    Err(error).context(program.display().to_string())
}

/// Asks the loader, as `ldd` does, which libraries it finds: its own error does not say what to install.
fn check_libtorch(program: &Path) -> Result<(), WrongConfig> {
    let Ok(traced) = Command::new(program).env("LD_TRACE_LOADED_OBJECTS", "1").output() else {
        return Ok(());
    };
    let text = String::from_utf8_lossy(&traced.stdout);
    if !traced.status.success() {
        let reason = String::from_utf8_lossy(&traced.stderr).trim().replace('\n', "; ");
        return Err(WrongConfig(format!("the loader refuses `{}`: {reason}", program.display())));
    }
    match Found::of(&text) {
        Found::Missing(library) if library.starts_with("libtorch") || library.starts_with("libc10") => {
            Err(WrongConfig(format!(
                "this command computes with libtorch {VERSION}, and `{library}` is not found: install it in \
                 the environment of `{}` (pip install torch=={VERSION}), or name its folder in LD_LIBRARY_PATH",
                program.display()
            )))
        }
        Found::Missing(library) => {
            Err(WrongConfig(format!("`{library}`, which `{}` needs, is not found", program.display())))
        }
        Found::At(library) => match version_at(&library) {
            Some(version) if !VERSION.is_empty() && version != VERSION => Err(WrongConfig(format!(
                "libtorch {version} at `{}`, expected {VERSION}: pip install torch=={VERSION}{}",
                library.display(),
                if std::env::var_os("LD_LIBRARY_PATH").is_some() {
                    " (LD_LIBRARY_PATH comes first)"
                } else {
                    ""
                }
            ))),
            _ => Ok(()),
        },
        Found::Unknown => Ok(()),
    }
}

/// What the loader says.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// A library that it does not find.
    Missing(String),
    /// The file of libtorch.
    At(PathBuf),
    /// Nothing of libtorch.
    Unknown,
}

impl Found {
    fn of(traced: &str) -> Self {
        let pairs = || traced.lines().filter_map(|line| line.trim().split_once(" => "));
        if let Some((library, _)) = pairs().find(|(_, found)| found.starts_with("not found")) {
            return Self::Missing(library.to_owned());
        }
        let path = |found: &str| PathBuf::from(found.rsplit_once(" (").map_or(found, |(path, _)| path));
        let libtorch = pairs().find(|(library, _)| *library == LIBTORCH);
        libtorch.map_or(Self::Unknown, |(_, found)| Self::At(path(found)))
    }
}

/// The numbers of the version of the torch package that a library is of.
fn version_at(library: &Path) -> Option<String> {
    let text = std::fs::read_to_string(library.parent()?.parent()?.join("version.py")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
    let version = line.trim_matches(['\'', '"']);
    let end = version.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(version.len());
    Some(version[..end].to_owned())
}

/// The settings that the environment leaves open.
#[cfg(feature = "torch")]
fn missing_settings() -> Vec<(&'static str, String)> {
    let cores = std::thread::available_parallelism().map(usize::from).ok();
    settings(|name| std::env::var_os(name).is_some(), cores)
}

/// Restarts the program with the settings that the environment leaves open; returns where there are none, as where
/// `instdisc` has run it.
#[cfg(feature = "torch")]
pub(in crate::cli) fn apply_settings() {
    let settings = missing_settings();
    let (false, Ok(program)) = (settings.is_empty(), std::env::current_exe()) else { return };
    let mut words = std::env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = words.next() {
        command.arg0(name);
    }
    // Where it cannot be started again, it works as it is, more slowly on a shared machine.
    let _ = command.args(words).envs(settings).exec();
}

#[cfg(feature = "torch")]
fn settings(is_set: impl Fn(&str) -> bool, cores: Option<usize>) -> Vec<(&'static str, String)> {
    let mut settings = Vec::new();
    if !is_set("OMP_WAIT_POLICY") && !is_set("GOMP_SPINCOUNT") {
        settings.push(("OMP_WAIT_POLICY", "passive".to_owned()));
    }
    if let Some(cores) = cores.filter(|_| !is_set("OMP_NUM_THREADS")) {
        settings.push(("OMP_NUM_THREADS", cores.to_string()));
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_loader_says_is_understood() {
        let found = "\tlinux-vdso.so.1 (0x1)\n\tlibtorch_cpu.so => /opt/a b/lib/libtorch_cpu.so (0x7f)\n\
                     \tlibc.so.6 => /c (0x2)\n";
        assert_eq!(Found::of(found), Found::At("/opt/a b/lib/libtorch_cpu.so".into()));
        let missing = "\tlibtorch_cpu.so => not found\n\tlibc10.so => not found\n";
        assert_eq!(Found::of(missing), Found::Missing("libtorch_cpu.so".into()));
        assert_eq!(Found::of("\tstatically linked\n"), Found::Unknown);
    }

    #[test]
    fn a_package_says_its_version() {
        let folder = tempfile::tempdir().expect("a folder");
        let lib = folder.path().join("lib");
        std::fs::create_dir(&lib).expect("a folder");
        let library = lib.join(LIBTORCH);
        assert_eq!(version_at(&library), None);
        crate::storage::Location::from_path(&folder.path().join("version.py"))
            .and_then(|file| {
                file.publish(
                    "import x\n__version__ = '2.12.1a0+cu130'\n",
                    crate::storage::PublishMode::Create,
                )
            })
            .expect("written");
        assert_eq!(version_at(&library), Some("2.12.1".into()));
    }

    #[cfg(feature = "torch")]
    #[test]
    fn what_the_environment_says_is_left_as_it_is() {
        let all = settings(|_| false, Some(3));
        assert_eq!(all, [("OMP_WAIT_POLICY", "passive".into()), ("OMP_NUM_THREADS", "3".into())]);
        for spinning in ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"] {
            assert_eq!(settings(|name| name == spinning, Some(3)), [("OMP_NUM_THREADS", "3".into())]);
        }
        let chosen = settings(|name| name == "OMP_NUM_THREADS", Some(3));
        assert_eq!(chosen, [("OMP_WAIT_POLICY", "passive".into())]);
        assert!(settings(|_| true, Some(3)).is_empty(), "the program is not started for ever");
    }
}
