//! How libtorch's OpenMP uses the processor. It reads the environment when it is loaded, which is before `main`:
//! settings that the user left open are made by starting the program once more in the same process.
//!
//! A waiting thread spins by default, which takes the time of whatever else runs on its core; and the number of
//! threads is that of the machine's cores, whatever quota a container has.

use std::os::unix::process::CommandExt;

/// The settings that the environment leaves open.
pub(in crate::cli) fn missing_settings() -> Vec<(&'static str, String)> {
    let cores = std::thread::available_parallelism().map(usize::from).ok();
    settings(|name| std::env::var_os(name).is_some(), cores)
}

/// Restarts the program with the settings that the environment leaves open; returns where there are none, as where
/// `instdisc` has run it.
pub(in crate::cli) fn apply_settings() {
    let settings = missing_settings();
    let (false, Ok(program)) = (settings.is_empty(), std::env::current_exe()) else { return };
    let mut words = std::env::args_os();
    let mut command = std::process::Command::new(program);
    if let Some(name) = words.next() {
        command.arg0(name);
    }
    // Where it cannot be started again, it works as it is, more slowly on a shared machine.
    let _ = command.args(words).envs(settings).exec();
}

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
