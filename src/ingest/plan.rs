//! Plan of an ingest: the parts of a source that the destination does not contain yet.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::source::{Entry, Source, first_of, split_meaning};
use super::{HeldBy, IngestError, IngestOptions, SourcePlan};
use crate::dataset::{DUPLICATES_FILE, EXIF_ORIENTATION, Manifest};
use crate::ids::ClassId;
use crate::storage::Digest;

/// A part of a split, either planned or already at the destination.
#[derive(Debug)]
pub(super) struct PartPlan<'a> {
    pub split: &'a str,
    /// Position in the split's list of parts: 0, or for appended images the number of earlier parts.
    pub number: usize,
    pub entries: &'a [Entry],
    pub fingerprint: Digest,
}

/// Option in a record that is present only if the limit rejected an image.
pub(super) const MEMORY_LIMIT: &str = "memory_limit";

/// Returns the file of a part's rejected images, given the file of its index, the only one that the manifest names.
pub(super) fn rejects_file(index_file: &str) -> String {
    let name = index_file.strip_prefix("index/").unwrap_or(index_file);
    format!("rejects/{}.jsonl", name.strip_suffix(".parquet").unwrap_or(name))
}

impl PartPlan<'_> {
    /// Returns the path of the index. That of an appended part is in a folder: split names contain no `/`, so no other
    /// split has this path.
    pub(super) fn index_file(&self) -> String {
        match self.number {
            0 => format!("index/{}.parquet", self.split),
            number => format!("index/{number:04}/{}.parquet", self.split),
        }
    }

    /// Returns the path of the list of rejected images.
    pub(super) fn rejects_file(&self) -> String {
        rejects_file(&self.index_file())
    }

    /// Returns the folder of the part's work. The number comes first, so that no split has the name of lock or plan.
    pub(super) fn work_folder(&self) -> String {
        format!("{:04}-{}", self.number, self.split)
    }

    /// Returns the paths of the files that are written beside the shards.
    pub(super) fn files(&self) -> [String; 3] {
        [self.index_file(), self.rejects_file(), DUPLICATES_FILE.to_owned()]
    }
}

/// Work of an ingest.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub parts: Vec<PartPlan<'a>>,
    /// Parts of the source that the dataset already contains, by names, classes and sizes.
    pub held: Vec<PartPlan<'a>>,
    /// Classes of the dataset after the ingest.
    pub classes: Vec<String>,
    /// Classes that an append adds.
    pub new_classes: Vec<String>,
    /// By class of the source: its number in the dataset.
    class_numbers: Vec<ClassId>,
    pub options: BTreeMap<String, serde_json::Value>,
}

impl<'a> Plan<'a> {
    /// Compares the source with the contents of the destination.
    ///
    /// # Errors
    /// If the destination contains other images or other classes under these names.
    pub(super) fn new(
        options: &IngestOptions,
        source: &'a Source,
        existing: Option<&Manifest>,
    ) -> Result<Self, IngestError> {
        let other = |reason: String| IngestError::other_dataset(&options.dest, reason);
        let recorded = recorded_options(options);
        let (mut parts, mut held) = (Vec::new(), Vec::new());
        for (split, entries) in &source.splits {
            let fingerprint = fingerprint(source, entries);
            let state = find_part(split, fingerprint, existing, options, &recorded).map_err(other)?;
            let (list, number) = match state {
                PartState::Held(number) => (&mut held, number),
                PartState::New(number) => (&mut parts, number),
            };
            list.push(PartPlan { split, number, entries, fingerprint });
        }
        let may_add = options.append || parts.is_empty();
        let mut classes =
            existing.map_or_else(|| source.classes.clone(), |manifest| manifest.classes.clone());
        let held_classes = classes.len();
        let class_numbers = number_classes(&source.classes, &mut classes, may_add).map_err(other)?;
        let new_classes = classes[held_classes..].to_vec();
        if !new_classes.is_empty()
            && let Some(reason) = other_kind_of_classes(&classes[..held_classes], &source.classes)
        {
            return Err(other(reason));
        }
        // Training images come last, once the images of the other splits are known.
        parts.sort_by_key(|part| part.split == super::TRAINING_SPLIT);
        Ok(Self { parts, held, classes, new_classes, class_numbers, options: recorded })
    }

    /// Returns the evidence that the dataset contains these parts.
    pub(super) fn held_by(&self, manifest: &Manifest, source: &Source) -> HeldBy {
        let now = (source.stamps.without() == 0).then(|| source.stamps.digest());
        let mut held_by = HeldBy::Times;
        for part in &self.held {
            let record = manifest.splits.get(part.split).and_then(|split| split.ingest.get(part.number));
            match (record.and_then(|record| record.report.source_stamp), now) {
                (Some(then), Some(now)) if then != now => return HeldBy::OtherTimes,
                (Some(_), Some(_)) => {}
                _ => held_by = HeldBy::NamesAndSizes,
            }
        }
        held_by
    }

    /// Returns the class of an image in the dataset.
    pub(super) fn class(&self, entry: &Entry) -> Option<ClassId> {
        entry.class.map(|class| self.class_numbers[class.index()])
    }

    /// Returns a digest that identifies this plan.
    pub(super) fn digest(&self) -> Digest {
        let parts: Vec<_> = self.parts.iter().map(|part| (part.work_folder(), part.fingerprint)).collect();
        let program = super::PROGRAM;
        let text = serde_json::to_vec(&(program, parts, &self.classes, &self.options));
        Digest::of(&text.expect("a plan is plain data"))
    }
}

/// State of a source's split in the destination.
enum PartState {
    /// The part exists, at this index in the split's list of parts.
    Held(usize),
    /// The part will be written, at this index.
    New(usize),
}

/// Compares a split of the source with the contents of the destination.
///
/// # Errors
/// The reason, if the destination contains other images under this name, or these by other options.
fn find_part(
    split: &str,
    fingerprint: Digest,
    existing: Option<&Manifest>,
    options: &IngestOptions,
    recorded: &BTreeMap<String, serde_json::Value>,
) -> Result<PartState, String> {
    let Some(held) = existing.and_then(|manifest| manifest.splits.get(split)) else {
        let names_splits = !options.splits.is_empty();
        let same = |name: &&String| split_meaning(name) == split_meaning(split);
        let splits = existing.iter().flat_map(|manifest| manifest.splits.keys());
        if let Some(name) = splits.filter(|_| !names_splits).find(same) {
            return Err(format!(
                "its split `{name}` and the source's `{split}` mean the same, but are two names: `--splits \
                 NAME=GLOB`, once for each split, names those of the source"
            ));
        }
        if options.append {
            return Err(format!("it has no split `{split}` to append to"));
        }
        return Ok(PartState::New(0));
    };
    let mut differences = None;
    for (number, record) in held.ingest.iter().enumerate() {
        if record.source_fingerprint == fingerprint {
            let found = differing(&record.options, recorded, options);
            if found.is_empty() {
                return Ok(PartState::Held(number));
            }
            differences.get_or_insert(found);
        }
    }
    if let Some(differences) = differences {
        return Err(format!(
            "its split `{split}` was made from these images with other options: {}; give the same ones or \
             another destination",
            differences.join(", ")
        ));
    }
    if !options.append {
        return Err(format!(
            "its split `{split}` was made from other images, or with other splits or classes (`--hold-out`, \
             `--splits`, `--unlabelled`, …); another --dest keeps both, --append adds these"
        ));
    }
    let applies = held.applies_exif_orientation();
    if applies != options.exif_orientation.is_applied() {
        let own = orientation_name(applies);
        return Err(format!(
            "its split `{split}` was made with `--exif-orientation {own}`; append with the same"
        ));
    }
    Ok(PartState::New(held.ingest.len()))
}

/// Returns the number in the dataset of each of the source's classes; adds new ones to `classes`.
///
/// # Errors
/// The reason, if there is no room for a class, or no class may be added.
fn number_classes(
    of_source: &[String],
    classes: &mut Vec<String>,
    may_add: bool,
) -> Result<Vec<ClassId>, String> {
    let number = |class: &String| {
        let number = match classes.iter().position(|name| name == class) {
            Some(number) => number,
            None if may_add => {
                classes.push(class.clone());
                classes.len() - 1
            }
            None => return Err(format!("it has no class {class:?}")),
        };
        let number = u16::try_from(number).ok().filter(|&number| number < u16::MAX);
        number.map(ClassId).ok_or_else(|| format!("it has no room for class {class:?}"))
    };
    of_source.iter().map(number).collect()
}

/// Computes a fingerprint of names, classes and sizes.
fn fingerprint(source: &Source, entries: &[Entry]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    let mut add = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    for entry in entries {
        add(&entry.path);
        add(entry.class.map_or("", |class| &source.classes[class.index()]));
        add(&entry.bytes.to_string());
    }
    hasher.finalize().into()
}

/// Number of classes that a line shows.
const SHOWN_CLASSES: usize = 20;

/// Returns the line about the classes that an append adds, if there are any.
pub(super) fn new_classes_line(classes: &[String]) -> Option<String> {
    let count = classes.len();
    (count > 0).then(|| format!("new classes: {count} ({})", first_of(classes, SHOWN_CLASSES)))
}

/// Returns an error text if one side's classes are numbers without names and the other's are names.
fn other_kind_of_classes(of_dataset: &[String], of_source: &[String]) -> Option<String> {
    let is_number = |name: &String| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    let are_numbers = |names: &[String]| names.iter().all(is_number);
    let are_names = |names: &[String]| !names.iter().any(is_number);
    let (dataset, source) = (first_of(of_dataset, 3), first_of(of_source, 3));
    if of_dataset.is_empty() {
        None
    } else if are_names(of_dataset) && are_numbers(of_source) {
        Some(format!(
            "its classes are names ({dataset}), and the labels of these images are numbers ({source}): \
             `--classes FILE` names the numbers, a line for each"
        ))
    } else if are_numbers(of_dataset) && are_names(of_source) {
        Some(format!(
            "its classes are numbers ({dataset}), and the labels of these images are names ({source}): \
             ingest the dataset's images into another destination with `--classes FILE`, which names the \
             numbers, then append"
        ))
    } else {
        None
    }
}

fn orientation_name(is_applied: bool) -> &'static str {
    if is_applied { "apply" } else { "ignore" }
}

/// Returns the options that decide the contents of the shards.
fn recorded_options(options: &IngestOptions) -> BTreeMap<String, serde_json::Value> {
    let check: &str = options.check.into();
    let mut recorded: BTreeMap<String, serde_json::Value> = BTreeMap::from([
        ("shard_bytes".into(), options.shard_bytes.into()),
        ("row_group".into(), options.row_group.into()),
        ("shuffle_seed".into(), options.shuffle_seed.into()),
        ("max_pixels".into(), options.max_pixels.into()),
        ("check".into(), check.into()),
        ("baseline".into(), options.baseline.into()),
        ("drop_leaks".into(), options.drop_leaks.into()),
    ]);
    // Absent for the default, so that manifests of versions before the option stay equal.
    if options.exif_orientation.is_applied() {
        recorded.insert(EXIF_ORIENTATION.into(), orientation_name(true).into());
    }
    if !options.near_duplicates {
        recorded.insert("near_duplicates".into(), "off".into());
    }
    for (name, side) in [("max_side", options.max_side), ("short_side", options.short_side)] {
        if let Some(side) = side {
            recorded.insert(name.into(), side.into());
            recorded.insert("quality".into(), options.quality.into());
        }
    }
    recorded
}

/// Describes the options that differ, with their values then and now.
fn differing(
    before: &BTreeMap<String, serde_json::Value>,
    now: &BTreeMap<String, serde_json::Value>,
    options: &IngestOptions,
) -> Vec<String> {
    let mut now = now.clone();
    if let (true, Some(limit)) = (before.contains_key(MEMORY_LIMIT), options.memory_limit) {
        now.insert(MEMORY_LIMIT.into(), limit.into());
    }
    let shown = |value: Option<&serde_json::Value>| value.map_or("not given".into(), ToString::to_string);
    let names: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    names
        .into_iter()
        .filter(|name| before.get(*name) != now.get(*name))
        .map(|name| format!("`{name}` was {} and is {} now", shown(before.get(name)), shown(now.get(name))))
        .collect()
}

/// Plan of an ingest, as `--plan` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IngestPlan {
    /// Interpretation of the source.
    #[serde(flatten)]
    pub source: SourcePlan,
    /// Effect on the destination.
    pub destination: DestinationPlan,
}

/// Effect of an ingest on its destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DestinationPlan {
    /// The destination.
    pub dest: String,
    /// Splits whose images the destination already contains.
    pub held: Vec<String>,
    /// Evidence for `held`; `None` if there are no such splits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_by: Option<HeldBy>,
    /// Splits that the ingest would create.
    pub new: Vec<String>,
    /// Splits to which images would be appended.
    pub appended: Vec<String>,
    /// Classes that an append would add.
    pub new_classes: Vec<String>,
}

impl IngestPlan {
    /// Formats the plan as lines of text.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = self.source.lines();
        let DestinationPlan { dest, held, held_by, new, appended, new_classes } = &self.destination;
        lines.push(format!("destination: {dest}"));
        let mut line = |what: &str, splits: &[String]| {
            if !splits.is_empty() {
                lines.push(format!("  {what} {}", first_of(splits, splits.len())));
            }
        };
        let basis = held_by.map_or("", HeldBy::describe);
        line(&format!("holds already, {basis}:"), held);
        line("new splits:", new);
        line("appended to:", appended);
        lines.extend(new_classes_line(new_classes).map(|line| format!("  {line}")));
        lines
    }
}
