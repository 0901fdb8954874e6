//! The ingest, from the listing to the manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use rayon::ThreadPool;

use super::duplicates::{Listed, Look, find, groups};
use super::part::PartJob;
use super::plan::Plan;
use super::report::{IngestReport, SplitReport};
use super::source::Source;
use super::work::{Workshop, tidy};
use super::{IngestError, IngestOptions, SourcePlan, TRAINING_SPLIT};
use crate::dataset::{
    DatasetError, DuplicateCounts, IndexRow, Manifest, Split, read_index, write_duplicates,
};
use crate::progress::Progress;
use crate::storage::{PublishMode, StorageError};

/// Ingests a source into a dataset.
///
/// Another split can be added to a dataset of the same classes, and pictures be appended to a split. The same
/// command again finds its work done, or goes on where it was killed.
///
/// # Errors
/// See [`IngestError`]; then no manifest was published by this call.
pub fn ingest(options: &IngestOptions, progress: &dyn Progress) -> Result<IngestReport, IngestError> {
    let started = Instant::now();
    let checkers = pool(options.threads)?;
    let mut source = checkers.install(|| Source::open(options))?;
    source.plan.lines().iter().for_each(|line| progress.note(line));
    checkers.install(|| source.fetch(progress))?;
    let report = |manifest: &Manifest, splits: BTreeMap<String, SplitReport>| IngestReport {
        dest: options.dest.to_string(),
        already_done: splits.is_empty(),
        format: source.format,
        dataset_digest: manifest.dataset_digest,
        classes: manifest.classes.len(),
        splits,
        duplicates: manifest.duplicates,
        plan: source.plan.clone(),
        seconds: started.elapsed().as_secs_f64(),
    };
    let existing = existing(options)?;
    let plan = Plan::new(options, &source, existing.as_ref())?;
    if let (Some(manifest), true) = (&existing, plan.parts.is_empty()) {
        tidy(&options.dest)?;
        return Ok(report(manifest, BTreeMap::new()));
    }
    refuse_foreign_files(options, &plan)?;
    let workshop = Workshop::open(&options.dest)?;
    // Whoever held the lock before may have published.
    let existing = self::existing(options)?;
    let plan = Plan::new(options, &source, existing.as_ref())?;
    let goes_on = workshop.claim(plan.digest())?;
    if goes_on {
        tracing::info!("{}: going on with an ingest that was interrupted", options.dest);
    }
    let ingest =
        Ingest { options, source: &source, plan: &plan, existing: existing.as_ref(), workshop: &workshop };
    ingest.remove_strays(goes_on)?;
    let (manifest, reports) = ingest.run(&checkers, progress)?;
    workshop.check()?;
    publish(
        options,
        &manifest,
        if existing.is_some() { PublishMode::Overwrite } else { PublishMode::Create },
    )?;
    workshop.clear()?;
    Ok(report(&manifest, reports))
}

/// What would become of a source; nothing is written.
///
/// # Errors
/// As [`ingest`], where the source cannot be understood.
pub fn plan(options: &IngestOptions) -> Result<SourcePlan, IngestError> {
    let threads = pool(options.threads)?;
    Ok(threads.install(|| Source::open(options))?.plan)
}

/// Files that no ingest wrote are not ours to remove.
fn refuse_foreign_files(options: &IngestOptions, plan: &Plan<'_>) -> Result<(), IngestError> {
    for part in &plan.parts {
        let files = options.dest.join(part.split).list()?;
        if let Some(foreign) = files.iter().find(|file| !is_shard(&file.name)) {
            let file = format!("{}/{}", part.split, foreign.name);
            return Err(IngestError::NotOurs { dest: options.dest.to_string(), file });
        }
    }
    Ok(())
}

/// Whether a file in the folder of a split has the name of a shard.
fn is_shard(name: &str) -> bool {
    let number = name.strip_prefix("shard-").and_then(|rest| rest.strip_suffix(".parquet"));
    number.is_some_and(|number| number.len() >= 5 && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn pool(threads: usize) -> Result<ThreadPool, IngestError> {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(IngestError::Threads)
}

fn existing(options: &IngestOptions) -> Result<Option<Manifest>, IngestError> {
    match Manifest::read(&options.dest) {
        Ok(manifest) => Ok(Some(manifest)),
        Err(DatasetError::NotThere { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Publishes the manifest; where another ingest of the same content was faster, that is as good.
fn publish(options: &IngestOptions, manifest: &Manifest, mode: PublishMode) -> Result<(), IngestError> {
    match manifest.publish(&options.dest, mode) {
        Err(DatasetError::Storage(StorageError::AlreadyExists { .. })) => {
            if Manifest::read(&options.dest)? == *manifest {
                return Ok(());
            }
            let reason = "it appeared while this ingest ran".into();
            Err(IngestError::OtherDataset { dest: options.dest.to_string(), reason })
        }
        other => Ok(other?),
    }
}

/// An ingest that holds the lock.
struct Ingest<'a> {
    options: &'a IngestOptions,
    source: &'a Source,
    plan: &'a Plan<'a>,
    existing: Option<&'a Manifest>,
    workshop: &'a Workshop,
}

impl Ingest<'_> {
    /// Removes what no manifest names: half-written files, and the shards of an ingest that was given up.
    fn remove_strays(&self, goes_on: bool) -> Result<(), IngestError> {
        for part in &self.plan.parts {
            let folder = self.options.dest.join(part.split);
            folder.delete_unfinished_uploads()?;
            if goes_on {
                continue;
            }
            let named: BTreeSet<&str> = self
                .existing
                .and_then(|manifest| manifest.splits.get(part.split))
                .map(|split| split.shards.iter().map(|shard| shard.path.as_str()).collect())
                .unwrap_or_default();
            for entry in folder.list()? {
                let path = format!("{}/{}", part.split, entry.name);
                if !named.contains(path.as_str()) {
                    tracing::warn!("{}: {path} belongs to no dataset and is removed", self.options.dest);
                    self.options.dest.join(&path).delete()?;
                }
            }
        }
        for folder in ["rejects", "index"] {
            self.options.dest.join(folder).delete_unfinished_uploads()?;
        }
        Ok(self.options.dest.delete_unfinished_uploads()?)
    }

    fn run(
        &self,
        checkers: &ThreadPool,
        progress: &dyn Progress,
    ) -> Result<(Manifest, BTreeMap<String, SplitReport>), IngestError> {
        let writers = pool(self.options.uploads.clamp(1, checkers.current_num_threads()))?;
        let mut splits: BTreeMap<String, Split> =
            self.existing.map(|manifest| manifest.splits.clone()).unwrap_or_default();
        let mut index = self.read_indexes(&splits)?;
        let mut reports = BTreeMap::new();
        for part in &self.plan.parts {
            let job = PartJob {
                options: self.options,
                source: self.source,
                plan: self.plan,
                part,
                work: self.workshop.part(&part.name()),
                before: splits.get(part.split),
                rows: index.remove(part.split).unwrap_or_default(),
                checkers,
                writers: &writers,
            };
            let (split, rows, report) = job.run(|checked| drop_leaks(checked, &index), progress)?;
            index.insert(part.split.to_owned(), rows);
            splits.insert(part.split.to_owned(), split);
            reports.insert(part.split.to_owned(), report);
        }
        let mut manifest = Manifest::new(self.plan.classes.clone(), splits);
        manifest.duplicates = checkers.install(|| self.write_duplicates(&index))?;
        Ok((manifest, reports))
    }

    /// The rows of every split that is there, in the order of their ids.
    fn read_indexes(
        &self,
        splits: &BTreeMap<String, Split>,
    ) -> Result<BTreeMap<String, Vec<IndexRow>>, IngestError> {
        let mut index = BTreeMap::new();
        for (name, split) in splits {
            let rows: &mut Vec<IndexRow> = index.entry(name.clone()).or_default();
            for part in &split.ingest {
                rows.extend(read_index(&self.options.dest, &part.index)?);
            }
        }
        Ok(index)
    }

    fn write_duplicates(
        &self,
        index: &BTreeMap<String, Vec<IndexRow>>,
    ) -> Result<DuplicateCounts, IngestError> {
        let pictures: Vec<Listed<'_>> =
            index.iter().flat_map(|(split, rows)| rows.iter().map(|row| listed(split, row))).collect();
        let (rows, counts) = find(&pictures);
        write_duplicates(&self.options.dest, &rows)?;
        Ok(counts)
    }
}

fn listed<'a>(split: &'a str, row: &'a IndexRow) -> Listed<'a> {
    let look = Look { digest: row.picture, view: row.view };
    Listed { split, id: row.id, path: &row.path, look }
}

/// Marks training pictures that have a twin in another split.
fn drop_leaks(checked: &mut super::part::Checked, index: &BTreeMap<String, Vec<IndexRow>>) {
    let others: Vec<(&str, &IndexRow)> = index
        .iter()
        .filter(|(split, _)| *split != TRAINING_SPLIT)
        .flat_map(|(split, rows)| rows.iter().map(|row| (split.as_str(), row)))
        .collect();
    let mut looks: Vec<Look> =
        others.iter().map(|(_, row)| Look { digest: row.picture, view: row.view }).collect();
    let accepted = checked.accepted();
    looks.extend(accepted.iter().map(|(_, facts)| Look { digest: facts.digest, view: facts.view }));
    let roots = groups(&looks);
    // The root of a group is its first member, so a group with a picture of another split has one as root.
    let leaks: Vec<(usize, String)> = accepted
        .iter()
        .zip(&roots[others.len()..])
        .filter_map(|((place, _), &root)| {
            let (split, row) = others.get(root as usize)?;
            Some((*place, format!("{split} {}", row.path)))
        })
        .collect();
    for (place, twin) in leaks {
        checked.drop_leak(place, &twin);
    }
}
