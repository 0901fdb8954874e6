//! Process-level concerns: signals that stop a job, memory, and the sibling program that is linked to libtorch.
//!
//! Jobs with checkpoints stop in a controlled way. All other jobs continue from their files when restarted,
//! so a signal may end the process at once, which is the system's default. The exception is the first process
//! of a container, which the system shields from signals that it does not handle.
//!
//! OpenMP reads the environment when it is loaded, before `main`. So settings that the user left open are set by
//! executing the program again in the same process. By default a waiting thread spins, which takes time from others on
//! its core, and the number of threads is that of the machine's cores, even if a container has a smaller quota.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
#[cfg(feature = "torch")]
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use rustix::io::Errno;
use tokio::signal::unix::{SignalKind, signal};

use super::exit::WrongConfig;
use crate::storage;

/// Sets the flag on SIGTERM, SIGUSR1 and SIGINT; a second SIGINT ends the process at once.
#[cfg(feature = "torch")]
pub(super) fn stop_on_signals(flag: &'static AtomicBool) -> anyhow::Result<()> {
    let _inside_the_runtime = storage::handle().enter();
    for kind in [SignalKind::terminate(), SignalKind::user_defined1(), SignalKind::interrupt()] {
        let mut signals = signal(kind)?;
        storage::handle().spawn(async move {
            while signals.recv().await.is_some() {
                let again = flag.swap(true, Ordering::Relaxed);
                if again && kind == SignalKind::interrupt() {
                    // A second Ctrl-C asks not to wait for a checkpoint. Exit handlers are skipped, as
                    // threads are at work.
                    crate::distributed::end_process(code_of(kind));
                }
                if kind == SignalKind::interrupt() {
                    tracing::info!("Ctrl-C: stopping after this step; once more ends without saving");
                } else {
                    tracing::info!("signal {}: stopping after this step", kind.as_raw_value());
                }
            }
        });
    }
    Ok(())
}

/// Ends the process by `end` at a SIGTERM or SIGINT if it is the first one of a container; these signals end
/// any other process by default.
pub(super) fn end_on_signals(end: fn(u8) -> !) -> anyhow::Result<()> {
    if std::process::id() != 1 {
        return Ok(());
    }
    let _inside_the_runtime = storage::handle().enter();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind)?;
        storage::handle().spawn(async move {
            if signals.recv().await.is_some() {
                end(code_of(kind));
            }
        });
    }
    Ok(())
}

/// Returns the exit code that a shell reports for a signal.
fn code_of(kind: SignalKind) -> u8 {
    (128 + kind.as_raw_value()) as u8
}

/// Ends the process from a signal's task, which cannot return an error.
#[expect(clippy::disallowed_methods, reason = "there is no error to return from a signal's task")]
pub(super) fn end(code: u8) -> ! {
    std::process::exit(code.into())
}

/// Number of allocation arenas of a process.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;
/// Size in bytes from which a buffer returns to the system as soon as it is dropped.
#[cfg(all(target_env = "gnu", feature = "torch"))]
const LARGE_BYTES: libc::c_int = 1 << 20;

/// Limits the memory retained from buffers of a table that is read in parts, unless the environment sets a
/// limit. By default glibc has up to eight arenas per core, one for each reading thread, and each retains the
/// largest buffers that it had.
pub(super) fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    set("MALLOC_ARENA_MAX", libc::M_ARENA_MAX, ARENAS);
}

/// Returns large buffers to the system when they are dropped, unless the environment sets a threshold. By
/// default glibc retains those of up to 32 MiB, and alternating sizes leave gaps that no other buffer fits.
/// New buffers then cost page faults.
#[cfg(feature = "torch")]
pub(super) fn return_large_buffers() {
    #[cfg(target_env = "gnu")]
    set("MALLOC_MMAP_THRESHOLD_", libc::M_MMAP_THRESHOLD, LARGE_BYTES);
}

/// Sets an option of glibc's allocator unless the environment sets it.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "nothing safe offers mallopt")]
fn set(variable: &str, option: libc::c_int, value: libc::c_int) {
    if std::env::var_os(variable).is_none() {
        // SAFETY: takes two numbers, and may be called at any time.
        unsafe { libc::mallopt(option, value) };
    }
}

/// Program with the commands that need libtorch.
const PROGRAM: &str = "instdisc-torch";
/// Library of libtorch that this program needs.
const LIBTORCH: &str = "libtorch_cpu.so";
/// Version that the program was compiled for; libtorch's binary interface changes with each version.
const VERSION: &str = match option_env!("INSTDISC_TORCH_VERSION") {
    Some(version) => version,
    None => "",
};

/// Executes the sibling program with the same command line, in this process; returns only if that fails.
///
/// # Errors
/// If that program is missing, or does not find its libtorch.
pub(super) fn run_beside() -> anyhow::Result<()> {
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
    // Makes errors name the program that the user called.
    command.arg0(words.next().unwrap_or_else(|| own.into())).args(words);
    #[cfg(feature = "torch")]
    command.envs(missing_settings());
    let error = command.exec();
    let reason = format!("{}: {error}", program.display());
    // Any other error may be temporary: too little memory, or a program that is being replaced.
    let stays = [Errno::NOENT, Errno::ACCESS, Errno::NOEXEC].map(|errno| Some(errno.raw_os_error()));
    if stays.contains(&error.raw_os_error()) {
        return Err(WrongConfig(reason).into());
    }
    Err(error).context(program.display().to_string())
}

/// Asks the loader, as `ldd` does, which libraries it finds; the loader's own error does not say what to install.
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

/// Result of the loader's search.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// Library that was not found.
    Missing(String),
    /// Location of libtorch.
    At(PathBuf),
    /// No mention of libtorch.
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

/// Returns the version number of the torch package that a library belongs to.
fn version_at(library: &Path) -> Option<String> {
    let text = std::fs::read_to_string(library.parent()?.parent()?.join("version.py")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
    let version = line.trim_matches(['\'', '"']);
    let end = version.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(version.len());
    Some(version[..end].to_owned())
}

/// Returns the settings that the environment leaves open.
#[cfg(feature = "torch")]
fn missing_settings() -> Vec<(&'static str, String)> {
    let cores = std::thread::available_parallelism().map(usize::from).ok();
    settings(|name| std::env::var_os(name).is_some(), cores)
}

/// Restarts the program with the settings that the environment leaves open. Returns if there are none, as
/// after a start by `instdisc`.
#[cfg(feature = "torch")]
pub(super) fn apply_settings() {
    let settings = missing_settings();
    let (false, Ok(program)) = (settings.is_empty(), std::env::current_exe()) else { return };
    let mut words = std::env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = words.next() {
        command.arg0(name);
    }
    // If the restart fails, continue without it, more slowly on a shared machine.
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
