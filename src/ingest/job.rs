//! The ingest job, from the listing to the manifest.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use rayon::ThreadPool;

use super::journal::{Journal, Unfinished, has_plan, has_work, recorded_files, unfinished};
use super::memory::MemoryBudget;
use super::near_duplicates::{Index, find_leaks, publish_duplicates};
use super::part::{PartJob, Reject};
use super::plan::{DestinationPlan, IngestPlan, PartPlan, Plan, new_classes_line, rejects_file};
use super::source::{Entry, Source, first_of, is_image};
use super::validate::{Checker, Validation};
use super::{
    HeldBy, IngestError, IngestOptions, IngestReport, SourcePlan, SplitReport, TRAINING_SPLIT, VerifiedSource,
};
use crate::dataset::{DUPLICATES_FILE, DatasetError, IndexRow, IngestRecord, Manifest, read_index};
use crate::progress::Progress;
use crate::storage::{Location, PublishMode, StorageError};

/// Number of splits that an error names.
const SHOWN_SPLITS: usize = 5;

/// Ingests a source into a dataset.
///
/// An ingest can add another split to a dataset of the same classes, or append images to a split. A repeated command
/// finds its work done, or continues an ingest that was killed.
///
/// # Errors
/// See [`IngestError`]; then no manifest was published by this call.
pub fn ingest(options: &IngestOptions, progress: &dyn Progress) -> Result<IngestReport, IngestError> {
    let started = Instant::now();
    check_overlap(options)?;
    let threads = pool(options.threads)?;
    let memory = MemoryBudget::new(options, threads.current_num_threads());
    let mut source = threads.install(|| Source::open(options))?;
    source.plan.lines().iter().for_each(|line| progress.note(line));
    check_leaks(options, &source)?;
    threads.install(|| source.fetch(progress))?;
    let checker = Checker { source: &source, options, memory: &memory, threads: &threads, progress };
    let report =
        |manifest: &Manifest, splits: BTreeMap<String, SplitReport>, held_by, verified_source| IngestReport {
            dest: options.dest.to_string(),
            already_done: splits.is_empty(),
            held_by,
            format: source.format,
            dataset_digest: manifest.dataset_digest,
            classes: manifest.classes.len(),
            splits,
            duplicates: manifest.duplicates,
            plan: source.plan.clone(),
            verified_source,
            seconds: started.elapsed().as_secs_f64(),
        };
    let existing = existing(options)?;
    let plan = prepare(options, &source, existing.as_ref())?;
    new_classes_line(&plan.new_classes).iter().for_each(|line| progress.note(line));
    let verified = match &existing {
        Some(manifest) if options.verify_source && !plan.held.is_empty() => {
            Some(verify_held(&checker, manifest, &plan.held)?)
        }
        _ => None,
    };
    // Makes the report if there is nothing to do.
    let held = |existing: Option<&Manifest>, plan: &Plan<'_>| {
        let manifest = existing.filter(|_| plan.parts.is_empty())?;
        let held_by = verified.map_or_else(|| plan.held_by(manifest, &source), |_| HeldBy::Contents);
        Some(report(manifest, BTreeMap::new(), Some(held_by), verified))
    };
    let journal = match held(existing.as_ref(), &plan) {
        Some(report) if !has_work(&options.dest)? => return Ok(report),
        Some(report) => match Journal::open(&options.dest) {
            // The holder of the lock removes its own leftovers.
            Err(StorageError::Locked { .. }) => return Ok(report),
            other => other?,
        },
        None => Journal::open(&options.dest)?,
    };
    // The previous holder of the lock may have published.
    let existing = self::existing(options)?;
    let plan = Plan::new(options, &source, existing.as_ref())?;
    let published = published(existing.as_ref());
    if let Some(report) = held(existing.as_ref(), &plan) {
        tidy(options, &journal, &published)?;
        return Ok(report);
    }
    if resumes(options, &plan, &source)? {
        journal.remove_unfinished()?;
    } else {
        journal.discard(&published)?;
    }
    refuse_foreign_files(options, &plan, &published, &recorded_files(&options.dest)?)?;
    journal.claim(plan.digest(), source.stamps.digest())?;
    let (manifest, reports) = write_parts(&checker, &plan, existing.as_ref(), &journal)?;
    journal.check()?;
    let mode = if existing.is_some() { PublishMode::Overwrite } else { PublishMode::Create };
    publish(options, &manifest, mode)?;
    journal.clear()?;
    Ok(report(&manifest, reports, None, verified))
}

/// Interprets a source, whatever its destination; writes nothing.
///
/// # Errors
/// As [`ingest`], if the source cannot be interpreted.
pub fn source_plan(options: &IngestOptions) -> Result<SourcePlan, IngestError> {
    let threads = pool(options.threads)?;
    let source = threads.install(|| Source::open(options))?;
    check_leaks(options, &source)?;
    Ok(source.plan)
}

/// Plans an ingest. This writes nothing except temporary copies of Parquet's images, if the destination has their
/// split: only a copy shows whether it contains them.
///
/// # Errors
/// As [`ingest`] before its first write.
pub fn plan(options: &IngestOptions, progress: &dyn Progress) -> Result<IngestPlan, IngestError> {
    check_overlap(options)?;
    let threads = pool(options.threads)?;
    let mut source = threads.install(|| Source::open(options))?;
    check_leaks(options, &source)?;
    let existing = existing(options)?;
    let has_split =
        |manifest: &Manifest| source.splits.keys().any(|split| manifest.splits.contains_key(split));
    if existing.as_ref().is_some_and(has_split) {
        threads.install(|| source.fetch(progress))?;
    }
    let plan = prepare(options, &source, existing.as_ref())?;
    let published = published(existing.as_ref());
    refuse_foreign_files(options, &plan, &published, &recorded_files(&options.dest)?)?;
    // In the source's order, by name; parts have the order of the work.
    let of_parts = |is_wanted: fn(usize) -> bool| {
        let is_part =
            |split: &&String| plan.parts.iter().any(|part| part.split == **split && is_wanted(part.number));
        source.splits.keys().filter(is_part).cloned().collect()
    };
    let destination = DestinationPlan {
        dest: options.dest.to_string(),
        held: plan.held.iter().map(|part| part.split.to_owned()).collect(),
        held_by: existing
            .as_ref()
            .filter(|_| !plan.held.is_empty())
            .map(|manifest| plan.held_by(manifest, &source)),
        new: of_parts(|number| number == 0),
        appended: of_parts(|number| number > 0),
        new_classes: plan.new_classes.clone(),
    };
    Ok(IngestPlan { source: source.plan, destination })
}

/// Checks that no source overlaps the destination: an ingest would read its own output, or write among files of
/// others.
///
/// # Errors
/// [`IngestError::Overlap`].
fn check_overlap(options: &IngestOptions) -> Result<(), IngestError> {
    match options.sources.iter().find(|source| overlap(source, &options.dest)) {
        None => Ok(()),
        Some(source) => {
            Err(IngestError::Overlap { source_location: source.to_string(), dest: options.dest.to_string() })
        }
    }
}

/// Returns whether the locations are equal or one contains the other.
pub(super) fn overlap(one: &Location, other: &Location) -> bool {
    one.is_within(other) || other.is_within(one)
}

/// Makes the plan, and checks that the options fit it.
fn prepare<'a>(
    options: &IngestOptions,
    source: &'a Source,
    existing: Option<&Manifest>,
) -> Result<Plan<'a>, IngestError> {
    let plan = Plan::new(options, source, existing)?;
    if options.verify_source && plan.held.is_empty() {
        let unfinished = unfinished(&options.dest, plan.digest(), source.stamps.digest())?;
        if !matches!(unfinished, Unfinished::Same | Unfinished::ChangedSource) {
            let reason = format!(
                "`--verify-source`: there is nothing to verify, since {} holds no image of this source yet; \
                 ingest it first",
                options.dest
            );
            return Err(IngestError::Options { reason });
        }
    }
    Ok(plan)
}

/// Checks that the source has a training split, from which `--drop-leaks` leaves out images.
fn check_leaks(options: &IngestOptions, source: &Source) -> Result<(), IngestError> {
    if !options.drop_leaks || source.splits.contains_key(TRAINING_SPLIT) {
        return Ok(());
    }
    let names: Vec<String> = source.splits.keys().cloned().collect();
    let reason = format!(
        "`--drop-leaks` leaves images out of the split `{TRAINING_SPLIT}`, and the source has {} only: `--splits \
         NAME=GLOB`, once for each split, names the training split `{TRAINING_SPLIT}`",
        first_of(&names, SHOWN_SPLITS)
    );
    Err(IngestError::Options { reason })
}

/// Returns whether this ingest continues the work of an earlier one; logs the reason if not.
fn resumes(options: &IngestOptions, plan: &Plan<'_>, source: &Source) -> Result<bool, IngestError> {
    let dest = &options.dest;
    let unfinished = unfinished(dest, plan.digest(), source.stamps.digest())?;
    match (unfinished, source.stamps.without()) {
        (Unfinished::None, _) => {}
        (Unfinished::Same, 0) => tracing::info!("{dest}: going on with an ingest that was interrupted"),
        (Unfinished::Same, files) => tracing::info!(
            "{dest}: going on with an ingest that was interrupted; that its source is unchanged rests on \
             names and sizes alone, since {files} files have neither a modification time nor an ETag"
        ),
        (Unfinished::ChangedSource, _) => tracing::warn!(
            "{dest}: the source's files changed after an ingest was interrupted (modification times or ETags differ); \
             beginning anew"
        ),
        (Unfinished::Other, _) => {
            tracing::warn!("{dest}: unfinished work of another ingest is thrown away");
        }
    }
    Ok(unfinished == Unfinished::Same)
}

/// Removes the leftovers of an ingest that was killed after it had published, if there is nothing to do. Keeps
/// unfinished work of another ingest.
fn tidy(options: &IngestOptions, journal: &Journal, published: &BTreeSet<String>) -> Result<(), IngestError> {
    let recorded = recorded_files(&options.dest)?;
    // Each part has its own index; once that is published, the work is done. Without a plan no ingest continues it.
    let is_done = recorded.iter().any(|file| file != DUPLICATES_FILE && published.contains(file));
    if is_done || !has_plan(&options.dest)? {
        journal.discard(published)?;
    } else {
        tracing::info!("{}: another ingest is unfinished there; its command goes on with it", options.dest);
    }
    Ok(())
}

/// Returns the files of a dataset, if it exists, by their paths within its folder.
fn published(existing: Option<&Manifest>) -> BTreeSet<String> {
    let mut files = BTreeSet::from_iter(existing.map(|_| DUPLICATES_FILE.to_owned()));
    for split in existing.iter().flat_map(|manifest| manifest.splits.values()) {
        files.extend(split.shards.iter().map(|shard| shard.path.clone()));
        for part in &split.ingest {
            files.extend([part.index.path.clone(), rejects_file(&part.index.path)]);
        }
    }
    files
}

/// Checks that all existing files were recorded by an ingest, and that the destination is not a folder of images.
fn refuse_foreign_files(
    options: &IngestOptions,
    plan: &Plan<'_>,
    published: &BTreeSet<String>,
    recorded: &BTreeSet<String>,
) -> Result<(), IngestError> {
    let dest = &options.dest;
    let refused = |reason: String| IngestError::Destination { dest: dest.to_string(), reason };
    for part in &plan.parts {
        let split = part.split;
        if let Some(file) =
            [part.index_file(), part.rejects_file()].iter().find(|file| published.contains(*file))
        {
            let reason =
                format!("its file `{file}` is of another split than `{split}`; name the split otherwise");
            return Err(IngestError::other_dataset(dest, reason));
        }
        let shards = dest.join(split).list()?.into_iter().map(|entry| format!("{split}/{}", entry.name));
        let is_ours = |file: &String| published.contains(file) || recorded.contains(file);
        for file in shards.chain(part.files()).filter(|file| !is_ours(file)) {
            if dest.join(&file).exists()? {
                return Err(refused(format!(
                    "`{file}` is not a file that an ingest has recorded; move or delete it, or give another \
                     destination"
                )));
            }
        }
    }
    if published.is_empty()
        && recorded.is_empty()
        && let Some(image) = dest.list()?.into_iter().find(|file| is_image(&file.name))
    {
        let image = image.name;
        return Err(refused(format!(
            "it holds images, such as `{image}`; give --dest a folder that is new or empty"
        )));
    }
    Ok(())
}

pub(super) fn pool(threads: usize) -> Result<ThreadPool, IngestError> {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(IngestError::Threads)
}

fn existing(options: &IngestOptions) -> Result<Option<Manifest>, IngestError> {
    match Manifest::read(&options.dest) {
        Ok(manifest) => Ok(Some(manifest)),
        Err(DatasetError::NotThere { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Publishes the manifest; succeeds also if another ingest published the same content first.
fn publish(options: &IngestOptions, manifest: &Manifest, mode: PublishMode) -> Result<(), IngestError> {
    match manifest.publish(&options.dest, mode) {
        Err(DatasetError::Storage(StorageError::AlreadyExists { .. })) => {
            if Manifest::read(&options.dest)? == *manifest {
                return Ok(());
            }
            Err(IngestError::other_dataset(&options.dest, "it appeared while this ingest ran"))
        }
        other => Ok(other?),
    }
}

/// Writes the parts that the destination lacks, under its lock.
fn write_parts(
    checker: &Checker<'_>,
    plan: &Plan<'_>,
    existing: Option<&Manifest>,
    journal: &Journal,
) -> Result<(Manifest, BTreeMap<String, SplitReport>), IngestError> {
    let Checker { options, memory, threads, .. } = *checker;
    let wanted = options.uploads.clamp(1, threads.current_num_threads());
    let entries = plan.parts.iter().flat_map(|part| part.entries);
    let writers = memory.writers(wanted, options.row_group, entries);
    let mut splits = existing.map(|manifest| manifest.splits.clone()).unwrap_or_default();
    // Index rows of every existing split, in the order of their ids.
    let mut index = Index::new();
    for (name, split) in &splits {
        let rows = index.entry(name.clone()).or_default();
        for part in &split.ingest {
            rows.extend(read_index(&options.dest, &part.index)?);
        }
    }
    let near = options.near_duplicates;
    let mut reports = BTreeMap::new();
    for part in &plan.parts {
        let job = PartJob {
            checker: *checker,
            plan,
            part,
            work: journal.part(&part.work_folder()),
            before: splits.get(part.split),
            rows: index.remove(part.split).unwrap_or_default(),
            writers,
        };
        let (split, rows, report) = job.run(|accepted| find_leaks(&index, accepted, near))?;
        index.insert(part.split.to_owned(), rows);
        splits.insert(part.split.to_owned(), split);
        reports.insert(part.split.to_owned(), report);
    }
    let mut manifest = Manifest::new(plan.classes.clone(), splits);
    manifest.duplicates = threads.install(|| publish_duplicates(&options.dest, &index, existing, near))?;
    Ok((manifest, reports))
}

/// Number of images that are compared at a time; the first difference ends the work.
const IMAGES_OF_BLOCK: usize = 4096;

/// Index rows and rejects of a part's images that are not compared yet.
struct Expected {
    rows: std::iter::Peekable<std::vec::IntoIter<IndexRow>>,
    rejects: VecDeque<Reject<'static>>,
}

/// Compares these parts of a source with their dataset, image by image.
///
/// An ingest recognises a source by the names, classes and sizes of its images. This comparison reads every image,
/// validates it and, if the options say so, rewrites it as in the ingest. The digest must equal that of the index.
///
/// # Errors
/// [`IngestError::SourceChanged`] with the first image that differs; else if source or dataset cannot be read.
fn verify_held(
    checker: &Checker<'_>,
    manifest: &Manifest,
    parts: &[PartPlan<'_>],
) -> Result<VerifiedSource, IngestError> {
    let (options, mut verified) = (checker.options, VerifiedSource::default());
    for part in parts {
        let record = &manifest.splits[part.split].ingest[part.number];
        let mut expected = Expected::of(record, &options.dest)?;
        checker.progress.begin(&format!("verify {}", part.split), part.entries.len() as u64);
        for entries in part.entries.chunks(IMAGES_OF_BLOCK) {
            let entries: Vec<&Entry> = entries.iter().collect();
            let validations = checker.check(&entries, |validation, _| validation)?;
            for (entry, validation) in entries.into_iter().zip(&validations) {
                expected.compare(entry, validation, &mut verified).map_err(|reason| {
                    IngestError::SourceChanged {
                        source_location: options.sources[0].to_string(),
                        image: entry.path.to_string(),
                        dest: options.dest.to_string(),
                        reason,
                    }
                })?;
            }
        }
        checker.progress.finish();
    }
    Ok(verified)
}

impl Expected {
    fn of(record: &IngestRecord, dest: &Location) -> Result<Self, IngestError> {
        let file = dest.join(&rejects_file(&record.index.path));
        let text = file.read()?;
        let lines = serde_json::Deserializer::from_slice(&text).into_iter();
        let mut rejects: VecDeque<Reject<'static>> =
            lines.collect::<Result<_, _>>().map_err(|error| IngestError::layout(&file, error.to_string()))?;
        // Rejected names come first; they are not entries.
        let images = record.report.looked_at.saturating_sub(record.instances) as usize;
        rejects.drain(..rejects.len().saturating_sub(images));
        Ok(Self { rows: read_index(dest, &record.index)?.into_iter().peekable(), rejects })
    }

    /// Compares the next image; the error describes the difference.
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
                verified.rewritten += u64::from(info.change.is_some());
            }
            (Err(_), _, Some(_)) => {
                self.rejects.pop_front();
                verified.rejected += 1;
            }
            (Ok(_), _, Some(reject)) if reject.is_leak() => {
                // The image is in another split and is compared there.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::StorageOptions;

    #[test]
    fn locations_overlap_where_one_is_within_the_other() {
        let overlap = |one: &str, other: &str| {
            let location = |text| Location::parse(text, &StorageOptions::default()).expect("a location");
            assert_eq!(overlap(&location(one), &location(other)), overlap(&location(other), &location(one)));
            overlap(&location(one), &location(other))
        };
        assert!(overlap("/nowhere/a", "/nowhere/a"));
        assert!(overlap("/nowhere/a", "file:///nowhere/a/b/c"));
        assert!(overlap("/nowhere/a/../b", "/nowhere/b/"));
        assert!(!overlap("/nowhere/a", "/nowhere/ab"));
        assert!(overlap("s3://bucket/a", "s3://bucket/a/"));
        assert!(overlap("s3://bucket", "s3://bucket/a/b"));
        assert!(!overlap("s3://bucket/a", "s3://bucket/ab"));
        assert!(!overlap("s3://bucket/a", "s3://other/a"));
        assert!(!overlap("s3://bucket/a", "gs://bucket/a"));
        assert!(!overlap("s3://bucket/a", "/bucket/a"));
    }
}
