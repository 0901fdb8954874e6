//! Compares a source with the dataset that was made from it, image by image.
//!
//! An ingest recognises a source by the names, classes and sizes of its images. Here every image is read, validated and,
//! if the options say so, rewritten as in the ingest. The result must have the digest of the index.

use std::collections::VecDeque;

use rayon::ThreadPool;
use rayon::prelude::*;

use super::memory::MemoryBudget;
use super::part::Reject;
use super::plan::{HeldPart, rejects_file};
use super::report::VerifiedSource;
use super::source::{Entry, Source};
use super::validate::{IMAGES_AT_ONCE, Keep, Validation, validate_all};
use super::{IngestError, IngestOptions};
use crate::dataset::{IndexRow, IngestRecord, Manifest, read_index};
use crate::progress::Progress;

/// Images after which the first difference ends the work.
const IMAGES_OF_BLOCK: usize = 4096;

/// The comparison of a source with its dataset.
pub(super) struct VerifyJob<'a> {
    pub options: &'a IngestOptions,
    pub source: &'a Source,
    pub manifest: &'a Manifest,
    pub memory: &'a MemoryBudget,
    pub checkers: &'a ThreadPool,
    pub progress: &'a dyn Progress,
}

/// What the dataset says of the images of a part that were not compared yet.
struct Expected {
    rows: std::iter::Peekable<std::vec::IntoIter<IndexRow>>,
    rejects: VecDeque<Reject<'static>>,
}

impl VerifyJob<'_> {
    /// Reads and compares all images of these parts.
    ///
    /// # Errors
    /// [`IngestError::SourceChanged`] with the first image that differs; if source or dataset cannot be read.
    pub(super) fn run(&self, parts: &[HeldPart<'_>]) -> Result<VerifiedSource, IngestError> {
        let mut verified = VerifiedSource::default();
        for part in parts {
            let record = &self.manifest.splits[part.split].ingest[part.number];
            let mut expected = self.expected(record)?;
            self.progress.begin(&format!("verify {}", part.split), part.entries.len() as u64);
            for entries in part.entries.chunks(IMAGES_OF_BLOCK) {
                for (entry, validation) in entries.iter().zip(self.look(entries)?) {
                    expected.compare(entry, &validation, &mut verified).map_err(|reason| {
                        IngestError::SourceChanged {
                            source_location: self.options.sources[0].to_string(),
                            image: entry.path.to_string(),
                            dest: self.options.dest.to_string(),
                            reason,
                        }
                    })?;
                }
            }
            self.progress.finish();
        }
        Ok(verified)
    }

    fn expected(&self, record: &IngestRecord) -> Result<Expected, IngestError> {
        let file = self.options.dest.join(&rejects_file(&record.index.path));
        let text = file.read()?;
        let damaged = |error: serde_json::Error| IngestError::layout(&file, error.to_string());
        let lines = serde_json::Deserializer::from_slice(&text).into_iter::<Reject<'static>>();
        let rejects = lines.collect::<Result<Vec<_>, _>>().map_err(damaged)?;
        // Names that were not taken come first; they are not entries.
        let images = record.report.looked_at.saturating_sub(record.instances) as usize;
        let names = rejects.len().saturating_sub(images);
        let rows = read_index(&self.options.dest, &record.index)?.into_iter().peekable();
        let rejects = rejects.into_iter().skip(names).collect();
        Ok(Expected { rows, rejects })
    }

    fn look(&self, entries: &[Entry]) -> Result<Vec<Validation>, IngestError> {
        let look = |entries: &[Entry]| -> Result<Vec<Validation>, IngestError> {
            let wanted: Vec<&Entry> = entries.iter().collect();
            let found = validate_all(self.source, &wanted, self.options, self.memory, Keep::Validations)?;
            self.progress.advance(entries.len() as u64);
            Ok(found.into_iter().map(|(validation, _)| validation).collect())
        };
        let parts: Vec<Vec<Validation>> = self
            .checkers
            .install(|| entries.par_chunks(IMAGES_AT_ONCE).map(look).collect::<Result<_, IngestError>>())?;
        Ok(parts.into_iter().flatten().collect())
    }
}

impl Expected {
    /// Compares the next image; how it differs is the error.
    fn compare(
        &mut self,
        entry: &Entry,
        validation: &Validation,
        verified: &mut VerifiedSource,
    ) -> Result<(), String> {
        let row = self.rows.peek().filter(|row| *row.path == *entry.path).map(|row| row.image);
        let reject = self.rejects.front().filter(|reject| *reject.path == *entry.path);
        match (validation, row, reject) {
            (Ok(info), Some(digest), _) if info.digest == digest => {
                self.rows.next();
                verified.images += 1;
                verified.rewritten += u64::from(!info.changes.none());
            }
            (Err(_), _, Some(_)) => {
                self.rejects.pop_front();
                verified.rejected += 1;
            }
            (Ok(_), _, Some(reject)) if reject.is_leak() => {
                // It is in another split, and that one is compared there.
                self.rejects.pop_front();
                verified.images += 1;
            }
            (Ok(info), Some(digest), _) => {
                return Err(format!("its blake3 digest is {} and was {digest}", info.digest));
            }
            (Err(rejection), Some(_), _) => return Err(format!("it is rejected now: {}", rejection.reason)),
            (Ok(_), None, Some(reject)) => return Err(format!("it was rejected then: {}", reject.reason)),
            (_, None, None) => return Err("the dataset's index does not have it in this position".into()),
        }
        Ok(())
    }
}
