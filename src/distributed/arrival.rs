//! How a rank finds the others: each leaves its place in the store, and rank 0 the way to its watcher.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::address::Place;
use super::error::first_line;
use super::rendezvous::Meeting;
use super::watch::Watch;
use super::{DistributedError, ffi};

/// Between two looks for what is missing.
const PAUSE: Duration = Duration::from_millis(20);
/// How long rank 0 stays for the others to read why it gives up.
const FAREWELL: Duration = Duration::from_secs(1);

/// A rank that looks for the others in the store.
#[derive(Debug)]
pub(super) struct Arrival<'a> {
    pub(super) store: &'a ffi::Store,
    pub(super) meeting: &'a Meeting,
    pub(super) rank: usize,
    pub(super) world: usize,
    pub(super) deadline: Instant,
    pub(super) timeout: Duration,
    pub(super) stop: &'a AtomicBool,
}

impl Arrival<'_> {
    /// Tells where this rank is, waits for the others, and starts the watcher.
    pub(super) fn meet(&self) -> Result<(Arc<Watch>, Vec<Place>), DistributedError> {
        let place = serde_json::to_vec(&Place::here()).expect("a place is two texts");
        if self.store.add(&self.key(&format!("count/{}", self.rank)), 1).map_err(|text| self.broken(&text))?
            > 1
        {
            let what = format!("two processes say that they are rank {}", self.rank);
            return Err(DistributedError::Contradiction { what });
        }
        let token = token();
        let no_watch = |error: std::io::Error| DistributedError::Rendezvous {
            reason: format!("rank {}'s watcher cannot be started: {error}", self.rank),
        };
        let lead = if self.rank == 0 {
            let (watch, port) =
                Watch::lead(self.world, self.meeting.interface(), token.clone(), self.timeout)
                    .map_err(no_watch)?;
            let published = format!("{port} {token}");
            self.set("watch", published.as_bytes())?;
            Some(watch)
        } else {
            None
        };
        self.set(&format!("place/{}", self.rank), &place)?;
        let places = self.all_places()?;
        let watch = match lead {
            Some(watch) => watch,
            None => {
                let text = self.try_get("watch")?.unwrap_or_default();
                let text = String::from_utf8_lossy(&text).into_owned();
                let (port, token) = text.split_once(' ').unwrap_or_default();
                let at = (self.meeting.host.as_str(), port.parse().unwrap_or_default());
                Watch::follow((self.rank, self.world), at, token.to_owned(), self.timeout)
                    .map_err(no_watch)?
            }
        };
        while !watch.absent().is_empty() {
            self.or_too_late(&watch.absent())?;
            std::thread::sleep(PAUSE);
        }
        Ok((Arc::new(watch), places))
    }

    fn all_places(&self) -> Result<Vec<Place>, DistributedError> {
        let mut places: Vec<Option<Place>> = vec![None; self.world];
        loop {
            for (rank, place) in places.iter_mut().enumerate().filter(|(_, place)| place.is_none()) {
                let found = self.try_get(&format!("place/{rank}"))?;
                *place = found.and_then(|bytes| serde_json::from_slice(&bytes).ok());
                if place.is_none() && Instant::now() < self.deadline {
                    // Until the time is over one question at once is enough.
                    break;
                }
            }
            let missing: Vec<_> = (0..self.world).filter(|rank| places[*rank].is_none()).collect();
            if missing.is_empty() {
                return Ok(places.into_iter().flatten().collect());
            }
            self.or_too_late(&missing)?;
            std::thread::sleep(PAUSE);
        }
    }

    /// An error that names the missing ranks, once the time is over here or at rank 0, or somebody was stopped.
    fn or_too_late(&self, missing: &[usize]) -> Result<(), DistributedError> {
        if self.stop.load(Ordering::Relaxed) {
            // Whoever can hear it: others may be gone already, stopped like this one.
            let _ = self.give_up(&format!("rank {} was stopped before all had come", self.rank));
            return Err(DistributedError::Stopped);
        }
        if let Some(reason) = self.try_get("gave_up")? {
            let reason = String::from_utf8_lossy(&reason).into_owned();
            return Err(DistributedError::Rendezvous { reason });
        }
        if Instant::now() < self.deadline {
            return Ok(());
        }
        let came = self.world - missing.len();
        let seconds = self.timeout.as_secs();
        let reason = format!(
            "{} did not come within {seconds} s; {came} of {} ranks came",
            ranks(missing),
            self.world
        );
        if self.rank == 0 {
            self.give_up(&reason)?;
        }
        Err(DistributedError::Rendezvous { reason })
    }

    /// Tells whoever came why nobody need wait.
    fn give_up(&self, reason: &str) -> Result<(), DistributedError> {
        self.set("gave_up", reason.as_bytes())?;
        if self.rank == 0 {
            // The store goes with this rank.
            std::thread::sleep(FAREWELL);
        }
        Ok(())
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.meeting.prefix)
    }

    fn set(&self, name: &str, value: &[u8]) -> Result<(), DistributedError> {
        self.store.set(&self.key(name), value).map_err(|message| self.broken(&message))
    }

    fn try_get(&self, name: &str) -> Result<Option<Vec<u8>>, DistributedError> {
        self.store.try_get(&self.key(name)).map_err(|message| self.broken(&message))
    }

    fn broken(&self, message: &str) -> DistributedError {
        let reason = format!("rank 0 was lost before all had come: {}", first_line(message));
        DistributedError::Rendezvous { reason }
    }
}

/// Ranks in words, at most eight by number.
fn ranks(numbers: &[usize]) -> String {
    const NAMED: usize = 8;
    let named: Vec<_> = numbers.iter().take(NAMED).map(ToString::to_string).collect();
    let more = numbers.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{} {}{more}", if numbers.len() == 1 { "rank" } else { "ranks" }, named.join(", "))
}

/// A number that nobody outside can guess, since the standard library seeds it from the operating system.
fn token() -> String {
    format!("{:016x}", RandomState::new().build_hasher().finish())
}
