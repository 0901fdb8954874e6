//! A dataset's pictures as files again: `<dest>/<split>/<class>/<file>`.
//!
//! Tiles (`ingest --tile-index`) are taken out, so each file has the bytes that the ingest was given, bit for bit.
//! Pictures that the ingest made smaller or baseline come as they are stored. The same export again changes nothing.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;

use super::IngestError;
use crate::dataset::{Manifest, Row, ShardEntry, ShardReader, Split};
use crate::picture::restore;
use crate::progress::Progress;
use crate::storage::{Location, PublishMode, StorageError};

/// What to export, and where to.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// The dataset's folder.
    pub dataset: Location,
    /// The folder for the files.
    pub dest: Location,
    /// The split; all where none is given.
    pub split: Option<String>,
}

/// What an export did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExportReport {
    /// The splits.
    pub splits: BTreeMap<String, ExportedSplit>,
}

/// What was done with a split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExportedSplit {
    /// Files, those that were there already included.
    pub pictures: u64,
    /// Those whose tiles were taken out.
    pub restored: u64,
    /// Pictures whose bytes are not those that the ingest was given: it made them smaller or baseline.
    pub not_original: u64,
}

/// Writes the pictures of a dataset as files.
///
/// # Errors
/// If the dataset is damaged, a picture's path leads outside of its split's folder, another file is in the way, or
/// a store fails.
pub fn export(options: &ExportOptions, progress: &dyn Progress) -> Result<ExportReport, IngestError> {
    let manifest = Manifest::read(&options.dataset)?;
    let is_wanted = |name: &str| options.split.as_deref().is_none_or(|wanted| wanted == name);
    if let Some(split) = options.split.as_ref().filter(|&split| !manifest.splits.contains_key(split)) {
        return Err(wrong(&options.dataset, format!("it has no split {split:?}")));
    }
    let mut splits = BTreeMap::new();
    for (name, split) in manifest.splits.iter().filter(|(name, _)| is_wanted(name)) {
        progress.begin(&format!("export {name}"), split.instances);
        let job =
            SplitJob { options, split, folder: options.dest.join(name), classes: manifest.classes.len() };
        let restored =
            split.shards.par_iter().map(|shard| job.write(shard, progress)).sum::<Result<u64, _>>()?;
        progress.finish();
        let not_original = split.ingest.iter().map(|part| part.report.re_encoded).sum();
        splits.insert(name.clone(), ExportedSplit { pictures: split.instances, restored, not_original });
    }
    Ok(ExportReport { splits })
}

struct SplitJob<'a> {
    options: &'a ExportOptions,
    split: &'a Split,
    folder: Location,
    classes: usize,
}

impl SplitJob<'_> {
    /// Writes a shard's pictures and tells of how many the tiles were taken out.
    fn write(&self, shard: &ShardEntry, progress: &dyn Progress) -> Result<u64, IngestError> {
        let reader = ShardReader::open(&self.options.dataset, shard, self.classes, self.split.instances)?;
        let mut restored = 0;
        for row_group in 0..reader.row_groups() {
            for row in reader.read_row_group(row_group)? {
                let path = safe_path(&row.path).ok_or_else(|| {
                    wrong(reader.shown(), format!("the path {:?} leads outside of the split", row.path))
                })?;
                let original = if self.has_tiles(&row) { restore(&row.bytes) } else { None };
                restored += u64::from(original.is_some());
                let bytes = original.map_or(row.bytes, Into::into);
                let file = self.folder.join(&path);
                match file.publish(bytes.clone(), PublishMode::Create) {
                    Err(StorageError::AlreadyExists { .. }) if file.read()? == bytes => {}
                    other => other?,
                }
                progress.advance(1);
            }
        }
        Ok(restored)
    }

    /// Whether the part of the split that the picture came with was given tiles: what the source had stays.
    fn has_tiles(&self, row: &Row) -> bool {
        let mut end = 0;
        let part = self.split.ingest.iter().find(|part| {
            end += part.instances;
            (row.id.row() as u64) < end
        });
        part.is_some_and(|part| part.report.tiled > 0)
    }
}

/// The path below the split's folder; `None` where it leads out of it or nowhere.
fn safe_path(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    (!parts.is_empty() && !parts.contains(&"..")).then(|| parts.join("/"))
}

fn wrong(location: impl std::fmt::Display, reason: String) -> IngestError {
    IngestError::Layout { location: location.to_string(), reason }
}
