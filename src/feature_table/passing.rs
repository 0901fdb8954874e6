//! The digest of a file, taken as its parts are read in order for another purpose.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::error::TableError;
use crate::storage::{Digest, Location};

/// Bytes that are read at a time where nobody else read them.
const CHUNK_BYTES: u64 = 8 << 20;
/// Bytes between two parts that are read in between; where more are missing, the parts came out of order, and
/// the rest is read at the end.
const GAP_BYTES: u64 = 64 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct Passing {
    location: Location,
    bytes: u64,
    expected: Digest,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    hasher: blake3::Hasher,
    /// Bytes that the hasher has seen.
    at: u64,
}

impl Passing {
    pub(super) fn new(location: &Location, bytes: u64, expected: Digest) -> Self {
        Self { location: location.clone(), bytes, expected, state: Mutex::default() }
    }

    /// Takes bytes that were read at this offset.
    pub(super) fn pass(&self, offset: u64, bytes: &Bytes) -> Result<(), TableError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if offset.saturating_sub(state.at) > GAP_BYTES {
            return Ok(());
        }
        self.read_to(&mut state, offset)?;
        // Where a part is read again, it has been seen.
        if let Some(rest) = usize::try_from(state.at - offset).ok().and_then(|seen| bytes.get(seen..)) {
            state.hasher.update(rest);
            state.at += rest.len() as u64;
        }
        Ok(())
    }

    /// Reads what has not been seen, and compares.
    pub(super) fn verify(&self) -> Result<(), TableError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.read_to(&mut state, self.bytes)?;
        if Digest::from(state.hasher.finalize()) == self.expected {
            return Ok(());
        }
        Err(TableError::Damaged { table: self.location.to_string() })
    }

    fn read_to(&self, state: &mut State, end: u64) -> Result<(), TableError> {
        while state.at < end {
            let bytes = self.location.start_read_range(state.at..end.min(state.at + CHUNK_BYTES)).finish()?;
            state.hasher.update(&bytes);
            state.at += bytes.len() as u64;
        }
        Ok(())
    }
}
