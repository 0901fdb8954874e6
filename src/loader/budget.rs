//! A budget of bytes, shared by threads.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A limit on the bytes that are held at once; a request for more waits until others give back.
///
/// A request above the whole budget is granted when nothing else is held: it cannot be split, and it must not wait for
/// ever. Nor does a request wait while the consumer starves for its bytes: so wrong estimates cannot make the two wait
/// for each other.
#[derive(Clone, Debug)]
pub(super) struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    held: u64,
    peak: u64,
    /// Reads under way whose bytes have not reached the consumer.
    in_flight: u64,
    starving: bool,
    closed: bool,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub(super) fn new(limit: u64) -> Self {
        Self(Arc::new(Shared { limit, state: Mutex::default(), changed: Condvar::new() }))
    }

    /// Waits for `bytes`; `None` once the budget is closed.
    pub(super) fn acquire(&self, bytes: u64) -> Option<Permit> {
        let mut state = self.0.lock();
        loop {
            if state.closed {
                return None;
            }
            let starves = state.starving && state.in_flight == 0;
            if state.held == 0 || starves || state.held.saturating_add(bytes) <= self.0.limit {
                state.held += bytes;
                state.peak = state.peak.max(state.held);
                return Some(Permit { budget: self.clone(), bytes });
            }
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Counts a read that was started.
    pub(super) fn started(&self) {
        self.0.lock().in_flight += 1;
    }

    /// Waits for the bytes of a read.
    pub(super) fn starve_for<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.0.lock().starving = true;
        self.0.changed.notify_all();
        let brought = wait();
        let mut state = self.0.lock();
        state.starving = false;
        state.in_flight = state.in_flight.saturating_sub(1);
        brought
    }

    /// Ends all waiting; every later request fails.
    pub(super) fn close(&self) {
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }

    /// The most bytes that were held at once.
    pub(super) fn peak(&self) -> u64 {
        self.0.lock().peak
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of a budget that are held; dropping it gives them back.
pub(super) struct Permit {
    budget: Budget,
    bytes: u64,
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Permit({} bytes)", self.bytes)
    }
}

impl Permit {
    /// Splits the permit into one for each of `sizes`. What they leave is given back. What they need beyond was
    /// underestimated, and is taken without waiting: the bytes are there already.
    pub(super) fn split(mut self, sizes: &[u64]) -> Vec<Permit> {
        let needed: u64 = sizes.iter().sum();
        let mut state = self.budget.0.lock();
        state.held = state.held - self.bytes + needed;
        state.peak = state.peak.max(state.held);
        drop(state);
        self.bytes = 0;
        self.budget.0.changed.notify_all();
        sizes.iter().map(|&bytes| Permit { budget: self.budget.clone(), bytes }).collect()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.0.lock().held -= self.bytes;
            self.budget.0.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_request_for_more_than_is_left_waits_until_it_is_given_back() {
        let budget = Budget::new(10);
        let first = budget.acquire(7).expect("free");
        let waiting = thread::spawn({
            let budget = budget.clone();
            move || budget.acquire(4).map(|_| budget.peak())
        });
        thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        drop(first);
        assert_eq!(waiting.join().expect("no panic"), Some(7));
    }

    #[test]
    fn a_request_above_the_whole_is_granted_alone() {
        let budget = Budget::new(10);
        let large = budget.acquire(100).expect("nothing else is held");
        drop(large);
        assert_eq!(budget.peak(), 100);
    }

    #[test]
    fn a_starving_consumer_gets_bytes_beyond_the_limit() {
        let budget = Budget::new(10);
        let _held = budget.acquire(9).expect("free");
        let reader = thread::spawn({
            let budget = budget.clone();
            move || budget.acquire(5).is_some()
        });
        assert!(budget.starve_for(|| reader.join().expect("no panic")));
        assert_eq!(budget.peak(), 14);
    }

    #[test]
    fn closing_ends_all_waiting() {
        let budget = Budget::new(1);
        let held = budget.acquire(1).expect("free");
        let waiting = thread::spawn({
            let budget = budget.clone();
            move || budget.acquire(1).is_none()
        });
        budget.close();
        assert!(waiting.join().expect("no panic"));
        drop(held);
        assert!(budget.acquire(1).is_none());
    }

    #[test]
    fn parts_of_a_permit_hold_what_they_are() {
        let budget = Budget::new(10);
        let parts = budget.acquire(8).expect("free").split(&[2, 3]);
        let more = budget.acquire(5).expect("three were given back");
        drop((parts, more));
        assert_eq!(budget.0.lock().held, 0);
    }
}
