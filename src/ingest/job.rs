//! The ingest, from the listing to the manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::layout::{Candidate, layout};
use super::report::{IngestReport, SplitReport};
use super::screen::{Reject, Screened, screen};
use super::source::Source;
use super::write::{Instance, deal, write_shards};
use super::{IngestError, IngestOptions};
use crate::dataset::{ContentDigest, DatasetError, IngestRecord, Manifest, Split};
use crate::ids::{ClassId, InstanceId};
use crate::picture::Limits;
use crate::progress::Progress;
use crate::storage::{PublishMode, StorageError};

/// How many reasons an error or a report shows.
const SHOWN_REJECTS: usize = 5;

/// Ingests a source into a dataset.
///
/// Another split can be added to a dataset of the same classes. The same command again finds its work done.
///
/// # Errors
/// See [`IngestError`]; then no manifest was published by this call.
pub fn ingest(options: &IngestOptions, progress: &dyn Progress) -> Result<IngestReport, IngestError> {
    let started = Instant::now();
    let source = Source::open(&options.source, options.format)?;
    let found = layout(&options.source.to_string(), &source.files, options.split.as_deref())?;
    let ignored_entries = source.ignored + found.other_files;
    let existing = match Manifest::read(&options.dest) {
        Ok(manifest) => Some(manifest),
        Err(DatasetError::NotThere { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let classes = classes(&found.splits);
    check_class_count(options, &classes)?;
    let todo = unfinished(options, &source, found.splits, &classes, existing.as_ref())?;
    let report = |manifest: &Manifest, splits: BTreeMap<String, SplitReport>| IngestReport {
        dest: options.dest.to_string(),
        already_done: splits.is_empty(),
        dataset_digest: manifest.dataset_digest,
        classes: manifest.classes.len(),
        splits,
        ignored_entries,
        seconds: started.elapsed().as_secs_f64(),
    };
    if let (true, Some(manifest)) = (todo.is_empty(), &existing) {
        return Ok(report(manifest, BTreeMap::new()));
    }
    let classes = existing.as_ref().map_or(classes, |manifest| manifest.classes.clone());
    let pool =
        rayon::ThreadPoolBuilder::new().num_threads(options.threads).build().map_err(IngestError::Threads)?;
    let mut splits = existing.as_ref().map(|manifest| manifest.splits.clone()).unwrap_or_default();
    let mut reports = BTreeMap::new();
    for (name, (candidates, record)) in todo {
        let job = SplitJob { source: &source, options, name: &name, classes: &classes };
        let (split, done) = pool.install(|| job.run(candidates, record, progress))?;
        splits.insert(name.clone(), split);
        reports.insert(name, done);
    }
    let manifest = Manifest::new(classes, splits);
    let mode = if existing.is_some() { PublishMode::Overwrite } else { PublishMode::Create };
    publish(options, &manifest, mode)?;
    Ok(report(&manifest, reports))
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

/// The class names of all splits together, sorted by their bytes.
fn classes(splits: &BTreeMap<String, Vec<Candidate>>) -> Vec<String> {
    let names: BTreeSet<&String> = splits.values().flatten().map(|candidate| &candidate.class).collect();
    names.into_iter().cloned().collect()
}

fn check_class_count(options: &IngestOptions, classes: &[String]) -> Result<(), IngestError> {
    if classes.len() <= usize::from(u16::MAX) {
        return Ok(());
    }
    let reason = format!("{} class folders are more than {}", classes.len(), u16::MAX);
    Err(IngestError::Layout { location: options.source.to_string(), reason })
}

type Todo = BTreeMap<String, (Vec<Candidate>, IngestRecord)>;

/// The splits that the destination does not hold yet.
fn unfinished(
    options: &IngestOptions,
    source: &Source,
    splits: BTreeMap<String, Vec<Candidate>>,
    classes: &[String],
    existing: Option<&Manifest>,
) -> Result<Todo, IngestError> {
    let other = |reason: String| IngestError::OtherDataset { dest: options.dest.to_string(), reason };
    let mut todo = Todo::new();
    for (name, candidates) in splits {
        let record = record(options, source, &candidates);
        match existing.and_then(|manifest| manifest.splits.get(&name)) {
            Some(split) if split.ingest.source_fingerprint != record.source_fingerprint => {
                return Err(other(format!("its split {name:?} was made from other pictures")));
            }
            Some(split) if split.ingest.options != record.options => {
                return Err(other(format!("its split {name:?} was made with other options")));
            }
            Some(_) => {}
            None => {
                todo.insert(name, (candidates, record));
            }
        }
    }
    if let (Some(manifest), false) = (existing, todo.is_empty())
        && let Some(class) = classes.iter().find(|class| !manifest.classes.contains(class))
    {
        return Err(other(format!("it has no class {class:?}")));
    }
    Ok(todo)
}

/// What decides a split's shards: the source's names and sizes, and the options.
fn record(options: &IngestOptions, source: &Source, candidates: &[Candidate]) -> IngestRecord {
    let mut hasher = blake3::Hasher::new();
    for candidate in candidates {
        hasher.update(&(candidate.path.len() as u64).to_le_bytes());
        hasher.update(candidate.path.as_bytes());
        hasher.update(&candidate.file.bytes.to_le_bytes());
    }
    let options = [
        ("shard_bytes", options.shard_bytes),
        ("row_group", options.row_group as u64),
        ("shuffle_seed", options.shuffle_seed),
        ("max_pixels", options.max_pixels),
    ];
    IngestRecord {
        program: concat!("instdisc ", env!("CARGO_PKG_VERSION")).into(),
        format: format!("{:?}", source.format).to_lowercase(),
        source_fingerprint: hasher.finalize().into(),
        options: options.map(|(name, value)| (name.to_owned(), value.into())).into(),
    }
}

/// The work on one split.
struct SplitJob<'a> {
    source: &'a Source,
    options: &'a IngestOptions,
    name: &'a str,
    classes: &'a [String],
}

impl SplitJob<'_> {
    fn run(
        &self,
        candidates: Vec<Candidate>,
        record: IngestRecord,
        progress: &dyn Progress,
    ) -> Result<(Split, SplitReport), IngestError> {
        let limits = Limits { max_pixels: self.options.max_pixels };
        progress.begin(&format!("check {}", self.name), candidates.len() as u64);
        let screened = screen(self.source, candidates, &limits, progress)?;
        progress.finish();
        self.check_rejects(&screened)?;

        let instances = self.number(&screened);
        let mut digest = ContentDigest::default();
        for instance in &instances {
            digest.add(instance.id, Some(instance.class), instance.facts.digest);
        }
        let count = instances.len() as u64;
        let image_bytes = instances.iter().map(|instance| instance.facts.bytes).sum();
        progress.begin(&format!("write {}", self.name), count);
        let dealt = deal(instances, self.options.shuffle_seed, self.options.shard_bytes);
        let shards = write_shards(self.source, self.options, self.name, self.classes, &dealt, progress)?;
        progress.finish();
        self.publish_rejects(&screened.rejects)?;

        let report = SplitReport {
            instances: count,
            rejected: screened.rejects.len() as u64,
            first_rejects: screened.rejects.iter().take(SHOWN_REJECTS).map(show).collect(),
            image_bytes,
            shards: shards.len(),
            kinds: screened.kinds(),
        };
        let split = Split {
            instances: count,
            labelled: count,
            image_bytes,
            rejected: report.rejected,
            digest: digest.finish(),
            shards,
            ingest: record,
        };
        Ok((split, report))
    }

    fn check_rejects(&self, screened: &Screened) -> Result<(), IngestError> {
        let (rejected, kept) = (screened.rejects.len(), screened.accepted.len());
        let total = rejected + kept;
        let allowed = self.options.max_reject_fraction.get() * total as f64;
        if kept > 0 && rejected as f64 <= allowed {
            return Ok(());
        }
        let first: Vec<String> = screened.rejects.iter().take(SHOWN_REJECTS).map(show).collect();
        Err(IngestError::TooManyRejects { split: self.name.into(), rejected, total, first: first.join("; ") })
    }

    /// Gives the accepted pictures their ids and classes.
    fn number<'a>(&self, screened: &'a Screened) -> Vec<Instance<'a>> {
        let class = |name: &String| {
            let index = self.classes.binary_search(name).expect("every class is in the list");
            ClassId(u16::try_from(index).expect("the number of classes was checked"))
        };
        (0..)
            .zip(&screened.accepted)
            .map(|(id, (candidate, facts))| Instance {
                id: InstanceId(id),
                class: class(&candidate.class),
                candidate,
                facts: *facts,
            })
            .collect()
    }

    fn publish_rejects(&self, rejects: &[Reject]) -> Result<(), StorageError> {
        let file = self.options.dest.join(&format!("rejects/{}.jsonl", self.name));
        let line = |reject: &Reject| serde_json::to_string(reject).expect("a reject is plain data") + "\n";
        file.publish(rejects.iter().map(line).collect::<String>(), PublishMode::Overwrite)
    }
}

fn show(reject: &Reject) -> String {
    format!("{}: {}", reject.path, reject.reason)
}
