//! Progress reports of long jobs, independent of their display.

/// Listener to a job's progress; the shell displays it, tests and libraries pass [`Quiet`].
pub trait Progress: Sync {
    /// Begins a stage of `total` items.
    fn begin(&self, _stage: &str, _total: u64) {}
    /// Counts `items` more as done; may be called from any thread.
    fn advance(&self, _items: u64) {}
    /// Ends the stage.
    fn finish(&self) {}
    /// Returns whether the job should stop; a job that checks this ends early, with an error.
    fn is_stopped(&self) -> bool {
        false
    }
    /// Shows a note for the user before the work begins.
    fn note(&self, _line: &str) {}
}

/// Listener that shows nothing.
#[derive(Clone, Copy, Debug)]
pub struct Quiet;

impl Progress for Quiet {}
