//! How a loader ends: dropped, failed or done, no stage waits for another.

use super::budget::Budget;
use super::source::ReadContext;

/// What has to be told that the loader ends.
#[derive(Clone, Debug)]
pub(super) struct Shutdown {
    pub(super) reading: ReadContext,
    pub(super) fetched: Budget,
    pub(super) memory: Budget,
}

impl Shutdown {
    pub(super) fn end_all(&self) {
        self.reading.cancel.cancel();
        self.fetched.close();
        self.memory.close();
    }
}

/// Ends all stages if the thread that holds it panics.
pub(super) struct OnPanic(pub(super) Shutdown);

impl Drop for OnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end_all();
        }
    }
}

/// An error with its causes, on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
