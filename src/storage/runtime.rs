//! The one tokio runtime, for I/O only: CPU work belongs on rayon or on threads of its own.

use std::sync::OnceLock;

use tokio::runtime::{Builder, Handle, Runtime};

/// Threads that drive sockets and blocking file calls; the futures themselves wait, they do not compute.
const IO_THREADS: usize = 4;

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        Builder::new_multi_thread()
            .worker_threads(IO_THREADS)
            .thread_name("instdisc-io")
            .enable_all()
            .build()
            .expect("the operating system gives a process its first threads")
    })
}

/// Runs an I/O future to its end on the calling thread.
///
/// # Panics
/// If called from inside another future.
pub fn block_on<F: Future>(future: F) -> F::Output {
    runtime().block_on(future)
}

/// A handle on which I/O can be started that goes on in the background.
pub fn handle() -> &'static Handle {
    runtime().handle()
}
