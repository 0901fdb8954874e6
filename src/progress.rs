//! How a long job reports its progress, whatever shows it.

/// Listens to a job; the shell shows it, tests and libraries pass [`Quiet`].
pub trait Progress: Sync {
    /// A stage of `total` items begins.
    fn begin(&self, _stage: &str, _total: u64) {}
    /// `items` more are done; may be called from any thread.
    fn advance(&self, _items: u64) {}
    /// The stage is over.
    fn finish(&self) {}
    /// Whether the job should stop; a job that checks ends early, with an error.
    fn is_stopped(&self) -> bool {
        false
    }
    /// Something that the user should know before the work begins.
    fn note(&self, _line: &str) {}
}

/// Shows nothing.
#[derive(Clone, Copy, Debug)]
pub struct Quiet;

impl Progress for Quiet {}
