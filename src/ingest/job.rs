//! The ingest, from the listing to the manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use rayon::ThreadPool;

use super::journal::{Journal, Unfinished, has_plan, has_work, recorded_files, unfinished};
use super::near_duplicates::{Listed, Look, count, extend_groups, groups, rows};
use super::part::PartJob;
use super::plan::{DestinationPlan, IngestPlan, Plan, rejects_file};
use super::report::{HeldBy, IngestReport, SplitReport};
use super::source::{Source, first_of, is_image};
use super::verify_source::VerifyJob;
use super::{IngestError, IngestOptions, PROGRAM, SourcePlan, TRAINING_SPLIT};
use crate::dataset::{
    DUPLICATES_FILE, DatasetError, DuplicateCounts, DuplicateRow, IndexRow, IngestRecord, Manifest, Split,
    ViewHash, read_duplicates, read_index, write_duplicates,
};
use crate::ingest::part::overlap::check_overlap;
use crate::ingest::validate::memory::MemoryBudget;
use crate::progress::Progress;
use crate::storage::{Digest, PublishMode, StorageError};

/// Splits that an error names.
const SHOWN_SPLITS: usize = 5;

/// Ingests a source into a dataset.
///
/// Another split can be added to a dataset of the same classes, and images be appended to a split. The same
/// command again finds its work done, or goes on where it was killed.
///
/// # Errors
/// See [`IngestError`]; then no manifest was published by this call.
pub fn ingest(options: &IngestOptions, progress: &dyn Progress) -> Result<IngestReport, IngestError> {
    let started = Instant::now();
    check_overlap(options)?;
    let checkers = pool(options.threads)?;
    let memory = MemoryBudget::new(options, checkers.current_num_threads());
    let mut source = checkers.install(|| Source::open(options))?;
    source.plan.lines().iter().for_each(|line| progress.note(line));
    check_leaks(options, &source)?;
    checkers.install(|| source.fetch(progress))?;
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
    plan.notes().iter().for_each(|line| progress.note(line));
    let verified = match &existing {
        Some(manifest) if options.verify_source && !plan.held.is_empty() => {
            let job = VerifyJob {
                options,
                source: &source,
                manifest,
                memory: &memory,
                checkers: &checkers,
                progress,
            };
            Some(job.run(&plan.held)?)
        }
        _ => None,
    };
    let held_by = |manifest: &Manifest, plan: &Plan<'_>| match verified {
        Some(_) => HeldBy::Contents,
        None => plan.held_by(manifest, &source),
    };
    if let (Some(manifest), true) = (&existing, plan.parts.is_empty()) {
        tidy_unlocked(options)?;
        return Ok(report(manifest, BTreeMap::new(), Some(held_by(manifest, &plan)), verified));
    }
    let journal = Journal::open(&options.dest)?;
    // Whoever held the lock before may have published.
    let existing = self::existing(options)?;
    let plan = Plan::new(options, &source, existing.as_ref())?;
    let published = existing.as_ref().map(published).unwrap_or_default();
    if let (Some(manifest), true) = (&existing, plan.parts.is_empty()) {
        tidy(options, &journal, &published)?;
        return Ok(report(manifest, BTreeMap::new(), Some(held_by(manifest, &plan)), verified));
    }
    if resumes(options, &plan, &source)? {
        journal.remove_unfinished()?;
    } else {
        journal.discard(&published)?;
    }
    refuse_foreign_files(options, &plan, &published, &recorded_files(&options.dest)?)?;
    journal.claim(plan.digest(), source.stamps.digest())?;
    let ingest = Ingest {
        options,
        source: &source,
        plan: &plan,
        existing: existing.as_ref(),
        journal: &journal,
        memory: &memory,
    };
    let (manifest, reports) = ingest.run(&checkers, progress)?;
    journal.check()?;
    publish(
        options,
        &manifest,
        if existing.is_some() { PublishMode::Overwrite } else { PublishMode::Create },
    )?;
    journal.clear()?;
    Ok(report(&manifest, reports, None, verified))
}

/// How a source is understood, whatever its destination; nothing is written.
///
/// # Errors
/// As [`ingest`], where the source cannot be understood.
pub fn source_plan(options: &IngestOptions) -> Result<SourcePlan, IngestError> {
    let threads = pool(options.threads)?;
    let source = threads.install(|| Source::open(options))?;
    check_leaks(options, &source)?;
    Ok(source.plan)
}

/// What an ingest would do; nothing is written but temporary copies of Parquet's images, where the destination has their
/// split: only a copy shows whether it holds them.
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
    let published = existing.as_ref().map(published).unwrap_or_default();
    refuse_foreign_files(options, &plan, &published, &recorded_files(&options.dest)?)?;
    // Of the source's splits, so that they come by name; parts have the order of the work.
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

/// What is to be done, where the options fit it.
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
                "`--verify-source`: there is nothing to verify, since {} holds no image of this source yet; ingest it first",
                options.dest
            );
            return Err(IngestError::Options { reason });
        }
    }
    Ok(plan)
}

/// `--drop-leaks` leaves out images of the training split, so the source has to have one.
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

/// Whether work that an ingest before has left goes on; says why not.
fn resumes(options: &IngestOptions, plan: &Plan<'_>, source: &Source) -> Result<bool, IngestError> {
    let dest = &options.dest;
    let unfinished = unfinished(dest, plan.digest(), source.stamps.digest())?;
    match (unfinished, source.stamps.without()) {
        (Unfinished::None, _) => {}
        (Unfinished::Same, 0) => tracing::info!("{dest}: going on with an ingest that was interrupted"),
        (Unfinished::Same, files) => tracing::info!(
            "{dest}: going on with an ingest that was interrupted; that its source is unchanged rests on names and sizes \
             alone, since {files} files have neither a modification time nor an ETag"
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

/// Removes what an ingest that was killed after it had published has left, where there is nothing to do. That another
/// process works there is no error: it removes its own.
fn tidy_unlocked(options: &IngestOptions) -> Result<(), IngestError> {
    if !has_work(&options.dest)? {
        return Ok(());
    }
    let journal = match Journal::open(&options.dest) {
        Err(StorageError::Locked { .. }) => return Ok(()),
        other => other?,
    };
    // Whoever held the lock before may have published.
    let published = existing(options)?.as_ref().map(published).unwrap_or_default();
    tidy(options, &journal, &published)
}

/// The same under the lock. Unfinished work of another ingest stays for it.
fn tidy(options: &IngestOptions, journal: &Journal, published: &BTreeSet<String>) -> Result<(), IngestError> {
    let recorded = recorded_files(&options.dest)?;
    // The index of a part is its own: where that is published, the work was done. Without a plan nothing goes on.
    let is_done = recorded.iter().any(|file| file != DUPLICATES_FILE && published.contains(file));
    if is_done || !has_plan(&options.dest)? {
        journal.discard(published)?;
    } else {
        tracing::info!("{}: another ingest is unfinished there; its command goes on with it", options.dest);
    }
    Ok(())
}

/// The files of a dataset, by their paths within its folder.
fn published(manifest: &Manifest) -> BTreeSet<String> {
    let mut files = BTreeSet::from([DUPLICATES_FILE.to_owned()]);
    for split in manifest.splits.values() {
        files.extend(split.shards.iter().map(|shard| shard.path.clone()));
        for part in &split.ingest {
            files.extend([part.index.path.clone(), rejects_file(&part.index.path)]);
        }
    }
    files
}

/// Files that no ingest has recorded are not ours to remove or to replace, and a folder of images is not a dataset's.
fn refuse_foreign_files(
    options: &IngestOptions,
    plan: &Plan<'_>,
    published: &BTreeSet<String>,
    recorded: &BTreeSet<String>,
) -> Result<(), IngestError> {
    if published.is_empty() && recorded.is_empty() {
        let files = options.dest.list()?;
        if let Some(image) = files.into_iter().find(|file| is_image(&file.name)) {
            return Err(IngestError::ImagesAtDestination {
                dest: options.dest.to_string(),
                image: image.name,
            });
        }
    }
    for part in &plan.parts {
        let shards = options.dest.join(part.split).list()?;
        let shards = shards.into_iter().map(|entry| format!("{}/{}", part.split, entry.name));
        for file in [part.index_file(), part.rejects_file()] {
            if published.contains(&file) {
                let reason = format!(
                    "its file `{file}` is of another split than `{}`; name the split otherwise",
                    part.split
                );
                return Err(IngestError::OtherDataset { dest: options.dest.to_string(), reason });
            }
        }
        let is_ours = |file: &String| published.contains(file) || recorded.contains(file);
        for file in shards.chain(part.files()).filter(|file| !is_ours(file)) {
            if options.dest.join(&file).exists()? {
                return Err(IngestError::NotOurs { dest: options.dest.to_string(), file });
            }
        }
    }
    Ok(())
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
    journal: &'a Journal,
    memory: &'a MemoryBudget,
}

impl Ingest<'_> {
    fn run(
        &self,
        checkers: &ThreadPool,
        progress: &dyn Progress,
    ) -> Result<(Manifest, BTreeMap<String, SplitReport>), IngestError> {
        let wanted = self.options.uploads.clamp(1, checkers.current_num_threads());
        let entries = self.plan.parts.iter().flat_map(|part| part.entries);
        let writers = pool(self.memory.writers(wanted, self.options.row_group, entries))?;
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
                work: self.journal.part(&part.work_folder()),
                before: splits.get(part.split),
                rows: index.remove(part.split).unwrap_or_default(),
                memory: self.memory,
                checkers,
                writers: &writers,
            };
            let near = self.options.near_duplicates;
            let (split, rows, report) = job.run(|checked| drop_leaks(checked, &index, near), progress)?;
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
        let images: Vec<Listed<'_>> =
            index.iter().flat_map(|(split, rows)| rows.iter().map(|row| listed(split, row))).collect();
        let near = self.options.near_duplicates;
        let looks: Vec<Look> =
            images.iter().map(|image| look(image.look.digest, image.look.view, near)).collect();
        // The instances of a split that were there before come first in it.
        let before = |split: &str| {
            self.existing.and_then(|manifest| manifest.splits.get(split)).map_or(0, |split| split.instances)
        };
        let is_new = |image: &Listed<'_>| image.id.row() as u64 >= before(image.split);
        let groups = match self.known_links(&images, is_new)? {
            Some(known) => extend_groups(&looks, known, |image| is_new(&images[image as usize])),
            None => groups(&looks),
        };
        let (rows, counts) = rows(&images, &groups);
        write_duplicates(&self.options.dest, &rows)?;
        Ok(counts)
    }

    /// Pairs of images of one group, which join the groups of the images that are not new; `None` where that is not known for sure.
    fn known_links(
        &self,
        images: &[Listed<'_>],
        is_new: impl Fn(&Listed<'_>) -> bool,
    ) -> Result<Option<Vec<(u32, u32)>>, IngestError> {
        let Some(manifest) = self.existing else { return Ok(None) };
        // Another program may have another limit; a record without near-duplicates misses pairs.
        let is_like_ours = |record: &IngestRecord| {
            record.program == PROGRAM && !record.options.contains_key("near_duplicates")
        };
        let mut records = manifest.splits.values().flat_map(|split| &split.ingest);
        if !self.options.near_duplicates || !records.all(is_like_ours) {
            return Ok(None);
        }
        let rows = match read_duplicates(&self.options.dest) {
            Ok(rows) => rows,
            Err(DatasetError::Damaged { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // A killed ingest may have replaced the file: then it has rows or counts that the manifest has not.
        if count(&rows) != manifest.duplicates {
            return Ok(None);
        }
        let mut starts: BTreeMap<&str, usize> = BTreeMap::new();
        for (position, image) in images.iter().enumerate() {
            starts.entry(image.split).or_insert(position);
        }
        let position = |row: &DuplicateRow| {
            let position = starts.get(row.split.as_str())? + row.id.row();
            let image = images.get(position)?;
            let is_it = image.split == row.split && image.id == row.id && image.path == row.path;
            (is_it && !is_new(image)).then_some(position as u32)
        };
        let Some(positions) = rows.iter().map(position).collect::<Option<Vec<u32>>>() else {
            return Ok(None);
        };
        let pairs = rows.windows(2).zip(positions.windows(2));
        let pairs = pairs.filter(|(rows, _)| rows[0].group == rows[1].group);
        Ok(Some(pairs.map(|(_, positions)| (positions[0], positions[1])).collect()))
    }
}

fn listed<'a>(split: &'a str, row: &'a IndexRow) -> Listed<'a> {
    let look = Look { digest: row.image, view: row.view };
    Listed { split, id: row.id, path: &row.path, look }
}

/// What an image is compared by: its view too where near-duplicates are asked for.
fn look(digest: Digest, view: Option<ViewHash>, near: bool) -> Look {
    Look { digest, view: view.filter(|_| near) }
}

/// Marks training images that have a near-duplicate in another split.
fn drop_leaks(checked: &mut super::part::Checked, index: &BTreeMap<String, Vec<IndexRow>>, near: bool) {
    let others: Vec<(&str, &IndexRow)> = index
        .iter()
        .filter(|(split, _)| *split != TRAINING_SPLIT)
        .flat_map(|(split, rows)| rows.iter().map(|row| (split.as_str(), row)))
        .collect();
    let mut looks: Vec<Look> = others.iter().map(|(_, row)| look(row.image, row.view, near)).collect();
    let accepted = checked.accepted();
    looks.extend(accepted.iter().map(|(_, info)| look(info.digest, info.view, near)));
    let roots = groups(&looks);
    // The root of a group is its first member, so a group with an image of another split has one as root.
    let leaks: Vec<(usize, String)> = accepted
        .iter()
        .zip(&roots[others.len()..])
        .filter_map(|((place, _), &root)| {
            let (split, row) = others.get(root as usize)?;
            Some((*place, format!("{split} {}", row.path)))
        })
        .collect();
    for (place, other) in leaks {
        checked.drop_leak(place, &other);
    }
}
