//! Signals that ask a job to stop.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

use crate::storage;

/// Sets the flag on SIGTERM, SIGUSR1 and SIGINT; a second SIGINT ends the process at once.
pub(super) fn stop_on_signals(flag: &'static AtomicBool) -> anyhow::Result<()> {
    let _inside_the_runtime = storage::handle().enter();
    for kind in [SignalKind::terminate(), SignalKind::user_defined1(), SignalKind::interrupt()] {
        let mut signals = signal(kind)?;
        storage::handle().spawn(async move {
            while signals.recv().await.is_some() {
                let again = flag.swap(true, Ordering::Relaxed);
                if again && kind == SignalKind::interrupt() {
                    end_at_once();
                }
                tracing::info!("signal {}: stopping after this step", kind.as_raw_value());
            }
        });
    }
    Ok(())
}

/// Who presses Ctrl-C twice does not want to wait for a checkpoint; 130 is the shell's code for that.
#[expect(clippy::disallowed_methods, reason = "there is no error to return from a signal's task")]
fn end_at_once() -> ! {
    std::process::exit(130)
}
