//! What the process itself needs: signals that ask a job to stop, memory, and the program beside it that is
//! linked to libtorch.
//!
//! What saves checkpoints stops on purpose. Everything else continues from its files when it is started again: there a
//! signal may end the process where it is, as the system's default does, except for the first process of a container,
//! which the system shields from signals that it does not handle.

pub(super) mod beside;

#[cfg(feature = "torch")]
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

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
                    // Who presses Ctrl-C twice does not want to wait for a checkpoint.
                    // Without exit handlers: threads are at work.
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

/// Ends the process by `end` at a SIGTERM or SIGINT if it is the first one of a container, as these would end
/// any other.
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

/// The code that a shell gives for a signal.
fn code_of(kind: SignalKind) -> u8 {
    (128 + kind.as_raw_value()) as u8
}

/// Ends the process from a signal's task, which has no error to return.
#[expect(clippy::disallowed_methods, reason = "there is no error to return from a signal's task")]
pub(super) fn end(code: u8) -> ! {
    std::process::exit(code.into())
}

/// Arenas from which the threads of a process take their memory.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;
/// Bytes from which a buffer returns to the system as soon as it is dropped.
#[cfg(all(target_env = "gnu", feature = "torch"))]
const LARGE_BYTES: libc::c_int = 1 << 20;

/// Bounds what is kept of the buffers of a table that is read in parts, unless the environment says how. By
/// default glibc has up to eight arenas a core, one for each thread that reads, and each keeps the largest
/// buffers that it had.
pub(super) fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    set("MALLOC_ARENA_MAX", libc::M_ARENA_MAX, ARENAS);
}

/// Returns large buffers to the system when they are dropped, unless the environment says how. By default
/// glibc keeps those of up to 32 MiB, and buffers of several sizes in turns leave gaps that no other fits.
/// New ones then cost page faults.
#[cfg(feature = "torch")]
pub(super) fn return_large_buffers() {
    #[cfg(target_env = "gnu")]
    set("MALLOC_MMAP_THRESHOLD_", libc::M_MMAP_THRESHOLD, LARGE_BYTES);
}

/// Sets an option of glibc's allocator that the environment leaves open.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "nothing safe offers mallopt")]
fn set(variable: &str, option: libc::c_int, value: libc::c_int) {
    if std::env::var_os(variable).is_none() {
        // SAFETY: it takes two numbers, and may be called at any time.
        unsafe { libc::mallopt(option, value) };
    }
}
