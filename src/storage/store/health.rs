//! What a store has done for this process, and whether it still answers.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A store that was given up may be back after this time, for a job that continued without it.
const GONE: Duration = Duration::from_secs(60);

/// The record of one store, shared by its decorators.
#[derive(Debug, Default)]
pub(in crate::storage) struct Health {
    /// The operations that succeeded.
    worked: Mutex<BTreeSet<&'static str>>,
    /// When an operation was given up; `None` once the store has answered again.
    given_up: Mutex<Option<Instant>>,
}

impl Health {
    /// Records that an operation succeeded.
    pub(super) fn note_done(&self, operation: &'static str) {
        self.worked.lock().unwrap_or_else(PoisonError::into_inner).insert(operation);
    }

    /// Whether an operation, or any for `None`, has succeeded.
    pub(in crate::storage) fn has_worked(&self, operation: Option<&'static str>) -> bool {
        let worked = self.worked.lock().unwrap_or_else(PoisonError::into_inner);
        operation.map_or(!worked.is_empty(), |operation| worked.contains(operation))
    }

    /// Records that the store answers, or that it was given up.
    pub(super) fn note_answers(&self, answers: bool) {
        let given_up = (!answers).then(Instant::now);
        *self.given_up.lock().unwrap_or_else(PoisonError::into_inner) = given_up;
    }

    /// Whether the store was given up a short time ago.
    pub(in crate::storage) fn is_gone(&self) -> bool {
        let given_up = *self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        given_up.is_some_and(|at| at.elapsed() < GONE)
    }
}
