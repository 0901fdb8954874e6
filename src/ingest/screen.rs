//! The check of every picture: it is decoded whole, once.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;

use super::layout::Candidate;
use super::source::Source;
use crate::picture::{Colour, Format, Limits, decode, probe};
use crate::progress::Progress;
use crate::storage::{Digest, StorageError};

/// What the check found out about a picture.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) bytes: u64,
    pub(super) digest: Digest,
    format: Format,
    colour: Colour,
}

/// A refused picture, a line of `rejects/<split>.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Reject {
    pub(super) path: String,
    pub(super) reason: String,
}

/// The pictures of a split after the check, in their order.
#[derive(Debug)]
pub(super) struct Screened {
    pub(super) accepted: Vec<(Candidate, Facts)>,
    pub(super) rejects: Vec<Reject>,
}

impl Screened {
    /// How many pictures have which format and colour space.
    pub(super) fn kinds(&self) -> BTreeMap<String, u64> {
        let mut kinds = BTreeMap::new();
        for (_, facts) in &self.accepted {
            let name = format!("{:?} {:?}", facts.format, facts.colour).to_lowercase();
            *kinds.entry(name).or_default() += 1;
        }
        kinds
    }
}

/// Checks all pictures of a split, on the threads of the pool that this runs in.
///
/// A source that cannot be read is an error; a picture that cannot be decoded is a reject.
pub(super) fn screen(
    source: &Source,
    candidates: Vec<Candidate>,
    limits: &Limits,
    progress: &dyn Progress,
) -> Result<Screened, StorageError> {
    let verdicts: Vec<Result<Facts, String>> = candidates
        .par_iter()
        .map(|candidate| {
            let bytes = source.read(&candidate.file)?;
            progress.advance(1);
            Ok(look_at(&bytes, limits))
        })
        .collect::<Result<_, StorageError>>()?;
    let mut screened = Screened { accepted: Vec::new(), rejects: Vec::new() };
    for (candidate, verdict) in candidates.into_iter().zip(verdicts) {
        match verdict {
            Ok(facts) => screened.accepted.push((candidate, facts)),
            Err(reason) => screened.rejects.push(Reject { path: candidate.file.path, reason }),
        }
    }
    Ok(screened)
}

fn look_at(bytes: &[u8], limits: &Limits) -> Result<Facts, String> {
    let header = probe(bytes).map_err(|error| error.to_string())?;
    let picture = decode(bytes, limits).map_err(|error| error.to_string())?;
    Ok(Facts {
        width: picture.width,
        height: picture.height,
        bytes: bytes.len() as u64,
        digest: Digest::of(bytes),
        format: header.format,
        colour: header.colour,
    })
}
