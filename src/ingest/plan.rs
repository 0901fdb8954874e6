//! What of a source the destination does not hold yet.

use std::collections::BTreeMap;

use super::source::{Entry, Source};
use super::{CheckDepth, IngestError, IngestOptions};
use crate::dataset::{EXIF_ORIENTATION, IngestRecord, Manifest};
use crate::ids::ClassId;
use crate::storage::Digest;

/// A part of a split that is to be made.
#[derive(Debug)]
pub(super) struct PartPlan<'a> {
    pub(super) split: &'a str,
    /// 0, or for pictures that are appended the number of parts before.
    pub(super) number: usize,
    pub(super) entries: &'a [Entry],
    pub(super) fingerprint: Digest,
}

impl PartPlan<'_> {
    /// A name for files of the part: the split's, and a number if it was appended.
    pub(super) fn name(&self) -> String {
        if self.number == 0 { self.split.to_owned() } else { format!("{}-{:04}", self.split, self.number) }
    }
}

/// What is to be done.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) parts: Vec<PartPlan<'a>>,
    /// The dataset's classes afterwards.
    pub(super) classes: Vec<String>,
    /// For each of the source's classes its number in the dataset.
    class_numbers: Vec<ClassId>,
    pub(super) options: BTreeMap<String, serde_json::Value>,
}

impl<'a> Plan<'a> {
    /// Compares the source with what the destination holds.
    ///
    /// # Errors
    /// If the destination holds other pictures or other classes under these names.
    pub(super) fn new(
        options: &IngestOptions,
        source: &'a Source,
        existing: Option<&Manifest>,
    ) -> Result<Self, IngestError> {
        let other = |reason: String| IngestError::OtherDataset { dest: options.dest.to_string(), reason };
        let recorded = recorded_options(options);
        let mut parts = Vec::new();
        for (split, entries) in &source.splits {
            let fingerprint = fingerprint(source, entries);
            let same = |record: &IngestRecord| record.source_fingerprint == fingerprint;
            let held = existing.and_then(|manifest| manifest.splits.get(split));
            let number = match held {
                None if options.append => {
                    return Err(other(format!("it has no split {split:?} to append to")));
                }
                None => 0,
                Some(held) => match held.ingest.iter().find(|record| same(record)) {
                    Some(record) if record.options == recorded => continue,
                    _ if options.append
                        && held.applies_exif_orientation() != options.exif_orientation.is_applied() =>
                    {
                        let own = orientation_name(held.applies_exif_orientation());
                        return Err(other(format!(
                            "its split {split:?} was made with --exif-orientation {own}; append with the same"
                        )));
                    }
                    _ if options.append => held.ingest.len(),
                    Some(_) => return Err(other(format!("its split {split:?} was made with other options"))),
                    None => return Err(other(format!("its split {split:?} was made from other pictures"))),
                },
            };
            parts.push(PartPlan { split, number, entries, fingerprint });
        }
        let mut classes =
            existing.map_or_else(|| source.classes.clone(), |manifest| manifest.classes.clone());
        let mut class_numbers = Vec::with_capacity(source.classes.len());
        for class in &source.classes {
            let known = classes.iter().position(|name| name == class);
            let number = match known {
                Some(number) => number,
                None if options.append || parts.is_empty() => {
                    classes.push(class.clone());
                    classes.len() - 1
                }
                None => return Err(other(format!("it has no class {class:?}"))),
            };
            let number = u16::try_from(number).ok().filter(|&number| number < u16::MAX);
            let number = number.ok_or_else(|| other(format!("it has no room for class {class:?}")))?;
            class_numbers.push(ClassId(number));
        }
        // Training pictures come last: by then it is known what the other splits hold.
        parts.sort_by_key(|part| part.split == super::TRAINING_SPLIT);
        Ok(Self { parts, classes, class_numbers, options: recorded })
    }

    /// The class of a picture in the dataset.
    pub(super) fn class(&self, entry: &Entry) -> Option<ClassId> {
        entry.class.map(|class| self.class_numbers[class.index()])
    }

    /// What tells this plan from any other.
    pub(super) fn digest(&self) -> Digest {
        let parts: Vec<_> = self.parts.iter().map(|part| (part.name(), part.fingerprint)).collect();
        let program = super::PROGRAM;
        let text = serde_json::to_vec(&(program, parts, &self.classes, &self.options));
        Digest::of(&text.expect("a plan is plain data"))
    }
}

/// A fingerprint of names, classes and sizes.
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

fn orientation_name(is_applied: bool) -> &'static str {
    if is_applied { "apply" } else { "ignore" }
}

/// The options that decide what the shards hold.
fn recorded_options(options: &IngestOptions) -> BTreeMap<String, serde_json::Value> {
    let check = match options.check {
        CheckDepth::Full => "full",
        CheckDepth::Header => "header",
    };
    let mut recorded: BTreeMap<String, serde_json::Value> = [
        ("shard_bytes", options.shard_bytes.into()),
        ("row_group", (options.row_group as u64).into()),
        ("shuffle_seed", options.shuffle_seed.into()),
        ("max_pixels", options.max_pixels.into()),
        ("check", check.into()),
        ("baseline", options.baseline.into()),
        ("drop_leaks", options.drop_leaks.into()),
    ]
    .map(|(name, value): (&str, serde_json::Value)| (name.to_owned(), value))
    .into();
    // Absent where it is the default: manifests from before the option stay what they are.
    if options.exif_orientation.is_applied() {
        recorded.insert(EXIF_ORIENTATION.into(), orientation_name(true).into());
    }
    if options.tile_index {
        recorded.insert("tile_index".into(), true.into());
    }
    for (name, side) in [("max_side", options.max_side), ("short_side", options.short_side)] {
        if let Some(side) = side {
            recorded.insert(name.into(), side.into());
            recorded.insert("quality".into(), options.quality.into());
        }
    }
    recorded
}
