//! Ingestion: from the images that people hold to a dataset.
//!
//! [`ingest`] lists the source, checks every image once, gives the accepted ones their ids, writes shards and
//! last the manifest. The result depends on the source and the options alone, not on threads, time, location
//! or restarts; the report in the manifest also has a digest of the source's modification times. [`synth()`]
//! draws an image set for trying things out.
//!
//! Invariant: until the manifest is published there is no dataset, and nothing that a published manifest
//! names is ever overwritten.

mod bench;
mod export;
mod job;
mod journal;
mod memory;
mod near_duplicates;
mod part;
mod plan;
mod source;
mod synth;
mod validate;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Mutex;

use serde::Serialize;
use strum::{EnumMessage, IntoStaticStr, VariantArray};

pub use bench::{BenchOptions, BenchReport, bench, peak_memory};
pub use export::{ExportOptions, ExportReport, ExportedSplit, export};
pub use job::{ingest, plan, source_plan};
pub use memory::machine_memory;
pub use plan::{DestinationPlan, IngestPlan};
pub use source::{
    ClassFolder, ClassesPlan, Counted, HoldOut, LabelsAs, PathGlob, SourceFormat, SourcePlan, SplitPlan,
    is_image, one_name_twice, parse_class_names,
};
pub use synth::{SynthError, SynthOptions, SynthReport, synth};

use crate::dataset::{DatasetError, DuplicateCounts, PartReport};
use crate::failure::Failure;
use crate::image::ExifOrientation;
use crate::storage::{Digest, Location, StorageError};
use crate::units::{ByteSize, Fraction};

/// The split that is trained on; images that it shares with another are leaks.
const TRAINING_SPLIT: &str = "train";
/// The program as manifests name it.
const PROGRAM: &str = concat!("instdisc ", env!("CARGO_PKG_VERSION"));

/// How thoroughly to validate an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, EnumMessage, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum CheckDepth {
    /// Decode every coefficient.
    #[default]
    Full,
    /// Header and end alone: damage between them is met in training, near-duplicates and entry points are not found.
    Header,
}

/// What to ingest, and how.
#[derive(Clone, Debug)]
pub struct IngestOptions {
    /// The images: one folder or file, or several files.
    pub sources: Vec<Location>,
    /// The dataset's folder.
    pub dest: Location,
    /// What the source is.
    pub format: SourceFormat,
    /// The split's name; of a source with several splits, the one to take.
    pub split: Option<String>,
    /// The split of what each pattern matches; where there are any, nothing else decides it.
    pub splits: Vec<(String, PathGlob)>,
    /// The share of the images that becomes another split.
    pub hold_out: Option<HoldOut>,
    /// Patterns of paths to leave out.
    pub ignore: Vec<PathGlob>,
    /// The labels of images outside class folders: ILSVRC2012's development kit, or a csv of image and class.
    pub labels: Option<Location>,
    /// The names of classes that are numbers in the source, a line each.
    pub classes: Option<Location>,
    /// How the text of labels is read.
    pub labels_as: LabelsAs,
    /// Which folder is the class of an image below several; without it such images are an error.
    pub class_folder: Option<ClassFolder>,
    /// The column or field of labels; by default one with a known name.
    pub label_column: Option<String>,
    /// The column of images, or of their paths; by default one with a known name.
    pub image_column: Option<String>,
    /// Take no labels.
    pub unlabelled: bool,
    /// Splits of which no labels are taken.
    pub unlabelled_splits: Vec<String>,
    /// Add the images to a split that is there.
    pub append: bool,
    /// Leave out training images that have a near-duplicate in another split.
    pub drop_leaks: bool,
    /// Find near-duplicates; else only images equal byte for byte.
    pub near_duplicates: bool,
    /// Where the destination holds the source already, read every image and compare it with the dataset's.
    pub verify_source: bool,
    /// The share of rejected images above which the job fails.
    pub max_reject_fraction: Fraction,
    /// The size at which a shard is full, in bytes of encoded images.
    pub shard_bytes: u64,
    /// Rows of a row group.
    pub row_group: usize,
    /// The seed of the rows' order over the shards.
    pub shuffle_seed: u64,
    /// How thoroughly to validate an image.
    pub check: CheckDepth,
    /// Reject an image with more pixels.
    pub max_pixels: u64,
    /// What is done about EXIF's orientation; a split is one or the other.
    pub exif_orientation: ExifOrientation,
    /// Shrink images until their longer side has at most this many pixels.
    pub max_side: Option<u32>,
    /// The same for the shorter side.
    pub short_side: Option<u32>,
    /// The JPEG quality of images that were made smaller, 1 to 100.
    pub quality: u8,
    /// Turn progressive JPEGs into baseline ones with the same pixels.
    pub baseline: bool,
    /// Threads that check images; 0 for one on each core.
    pub threads: usize,
    /// Shards that are written at once.
    pub uploads: usize,
    /// The memory for images, encoded and decoded, in bytes; half of the machine's where none is given.
    pub memory_limit: Option<u64>,
}

impl IngestOptions {
    /// The default options for this source and destination.
    pub fn new(source: Location, dest: Location) -> Self {
        Self {
            sources: vec![source],
            dest,
            format: SourceFormat::Auto,
            split: None,
            splits: Vec::new(),
            hold_out: None,
            ignore: Vec::new(),
            labels: None,
            classes: None,
            labels_as: LabelsAs::Auto,
            class_folder: None,
            label_column: None,
            image_column: None,
            unlabelled: false,
            unlabelled_splits: Vec::new(),
            append: false,
            drop_leaks: false,
            near_duplicates: true,
            verify_source: false,
            max_reject_fraction: Fraction::new(0.01).expect("in range"),
            shard_bytes: Self::SHARD_SIZE.0,
            row_group: 256,
            shuffle_seed: 0,
            check: CheckDepth::Full,
            max_pixels: 100_000_000,
            exif_orientation: ExifOrientation::Ignore,
            max_side: None,
            short_side: None,
            quality: 90,
            baseline: false,
            threads: 0,
            uploads: 4,
            memory_limit: None,
        }
    }

    /// Whether the dataset may hold other bytes of an image than the source.
    fn changes_images(&self) -> bool {
        self.max_side.is_some() || self.short_side.is_some() || self.baseline
    }

    /// The size of a shard where none is given.
    pub const SHARD_SIZE: ByteSize = ByteSize(128 << 20);
}

/// Calls `work` with each number below `count` on up to `threads` threads, which take the numbers in turn;
/// the results are in their order. Unlike in a pool, work on one never begins within work that waits.
///
/// # Errors
/// The error that a loop would end with; after it no further number is taken.
fn work_through<T: Send, E: Send>(
    count: usize,
    threads: usize,
    work: impl Fn(usize) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let numbers = Mutex::new(0..count);
    let numbers = || numbers.lock().expect("nothing panics under the lock");
    let of_thread = || {
        let mut done = Vec::new();
        loop {
            let Some(number) = numbers().next() else { return done };
            let result = work(number);
            if result.is_err() {
                *numbers() = 0..0;
            }
            done.push((number, result));
        }
    };
    let mut all = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.clamp(1, count.max(1))).map(|_| scope.spawn(of_thread)).collect();
        let joined = threads.into_iter().map(|thread| match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.flatten().collect::<Vec<_>>()
    });
    all.sort_by_key(|(number, _)| *number);
    all.into_iter().map(|(_, result)| result).collect()
}

/// An ingest cannot be done; no dataset is published.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The source has no images in a layout that is understood, or can be understood in two ways.
    #[error("{location}: {reason}")]
    Layout {
        /// The source.
        location: String,
        /// What is missing.
        reason: String,
    },
    /// The tar is cut or no tar.
    #[error("{tar}: byte {offset}: {reason}")]
    Tar {
        /// The tar.
        tar: String,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// Too many images were rejected.
    #[error(
        "split `{split}`: {rejected} of {total} images were rejected, {}; the first: {first}",
        if rejected == total { "so none is left".to_owned() } else { accepting(*rejected, *total, *allowed) }
    )]
    TooManyRejects {
        /// The split.
        split: String,
        /// Images rejected.
        rejected: usize,
        /// Images validated.
        total: usize,
        /// The share that may be rejected.
        allowed: f64,
        /// The first reasons.
        first: String,
    },
    /// The destination holds something that this ingest neither continues nor replaces.
    #[error("{dest}: {reason}")]
    Destination {
        /// The destination.
        dest: String,
        /// What it holds.
        reason: String,
    },
    /// Source and destination are the same or one holds the other.
    #[error(
        "the source {source_location} and the destination {dest} overlap; give a destination outside of the source"
    )]
    Overlap {
        /// The source.
        source_location: String,
        /// The destination.
        dest: String,
    },
    /// An image is not the one that the dataset was made of.
    #[error("{source_location}: `{image}` is not as it was when {dest} was made: {reason}")]
    SourceChanged {
        /// The source.
        source_location: String,
        /// The first image that differs.
        image: String,
        /// The dataset.
        dest: String,
        /// How it differs.
        reason: String,
    },
    /// Options that do not fit the source or the destination.
    #[error("{reason}")]
    Options {
        /// Which one, and what to do.
        reason: String,
    },
    /// A dataset cannot be read or written.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The source or the destination failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The threads cannot be started.
    #[error("the threads that check images cannot be started")]
    Threads(#[source] rayon::ThreadPoolBuildError),
}

impl IngestError {
    /// A source at this location that cannot be read as asked for.
    fn layout(location: impl Display, reason: impl Into<String>) -> Self {
        Self::Layout { location: location.to_string(), reason: reason.into() }
    }

    /// A destination whose dataset is another one.
    fn other_dataset(dest: &Location, reason: impl Display) -> Self {
        let reason = format!("it already holds another dataset: {reason}");
        Self::Destination { dest: dest.to_string(), reason }
    }

    /// The kind of failure, for the exit code.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Layout { .. }
            | Self::Tar { .. }
            | Self::TooManyRejects { .. }
            | Self::Destination { .. }
            | Self::Overlap { .. }
            | Self::SourceChanged { .. } => Failure::Data,
            Self::Options { .. } => Failure::Config,
            Self::Dataset(error) => error.failure(),
            Self::Storage(error) => error.failure(),
            Self::Threads(_) => Failure::Other,
        }
    }
}

/// How many rejects are allowed, and the option that accepts these.
fn accepting(rejected: usize, total: usize, allowed: f64) -> String {
    let share = (100.0 * rejected as f64 / total as f64).ceil() / 100.0;
    format!(
        "more than the share of {allowed} that is allowed; `--max-reject-fraction {share}` leaves them out and ingests \
         the others"
    )
}

/// What an ingest did, as the command prints it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IngestReport {
    /// The destination.
    pub dest: String,
    /// Whether the dataset was there before; then nothing was written.
    pub already_done: bool,
    /// The evidence for that; none where something was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_by: Option<HeldBy>,
    /// What the source is.
    pub format: SourceFormat,
    /// The dataset's identity.
    pub dataset_digest: Digest,
    /// The number of classes.
    pub classes: usize,
    /// The splits that this call wrote, or appended to.
    pub splits: BTreeMap<String, SplitReport>,
    /// Images that occur more than once, in all splits together.
    pub duplicates: DuplicateCounts,
    /// How the source was understood.
    pub plan: SourcePlan,
    /// What `--verify-source` has read; none where the option or the images were not there before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified_source: Option<VerifiedSource>,
    /// How long it took.
    pub seconds: f64,
}

/// The evidence that a dataset holds a source already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldBy {
    /// Every image was read and compared.
    Contents,
    /// Names, classes and sizes of the images; times or ETags of the source's files are those of the ingest.
    Times,
    /// The same, but times or ETags are others.
    OtherTimes,
    /// Names, classes and sizes alone: times or ETags are not known.
    NamesAndSizes,
}

impl HeldBy {
    /// The sentence's end, for people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Contents => "by the contents of its images",
            Self::Times => {
                "by the names, classes and sizes of its images, and the modification times or ETags of the source; \
                 --verify-source reads and compares each"
            }
            Self::OtherTimes => {
                "by the names, classes and sizes of its images, but modification times or ETags of the \
                 source are not those of the ingest; --verify-source reads and compares each"
            }
            Self::NamesAndSizes => {
                "by the names, classes and sizes of its images alone; --verify-source reads and compares each"
            }
        }
    }
}

/// Appended images that the split holds already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AlreadyThere {
    /// How many.
    pub images: u64,
    /// The first of them, and which one it is.
    pub example: String,
}

/// What was read of a source that the dataset holds already (`--verify-source`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifiedSource {
    /// Images that were read and compared with the dataset's.
    pub images: u64,
    /// Those of which the dataset holds other bytes, which were made again and compared.
    pub rewritten: u64,
    /// Those that were rejected then and now.
    pub rejected: u64,
}

/// What was done with a split.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SplitReport {
    /// Images that this call put into the dataset.
    pub instances: u64,
    /// Images that were rejected.
    pub rejected: u64,
    /// The first reasons.
    pub first_rejects: Vec<String>,
    /// How ids relate to the order of the source.
    pub ids: String,
    /// The encoded images' sizes together, in bytes.
    pub image_bytes: u64,
    /// Shards written.
    pub shards: usize,
    /// Appended images that are byte for byte in the split already; each got a new id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub already_there: Option<AlreadyThere>,
    /// What was found in the source.
    #[serde(flatten)]
    pub found: PartReport,
}

impl IngestReport {
    /// The report as lines for people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, split) in &self.splits {
            let found = &split.found;
            let megabytes = split.image_bytes as f64 / 1e6;
            let mut line = |label: &str, text: String| lines.push(format!("{name:>8}  {label:<16} {text}"));
            let shards =
                if split.shards == 1 { "1 shard".to_owned() } else { format!("{} shards", split.shards) };
            line("images", format!("{} in {shards}, {megabytes:.1} MB", split.instances));
            line("ids", split.ids.clone());
            line("kinds", counts(&found.kinds));
            let range = |[least, mean, most]: [u64; 3]| format!("{least} to {most}, mean {mean}");
            line("bytes", range(found.encoded_bytes));
            line("shorter side", range(found.short_side));
            line("longer side", range(found.long_side));
            if found.re_encoded > 0 {
                line("re-encoded", found.re_encoded.to_string());
            }
            if let Some(AlreadyThere { images, example }) = &split.already_there {
                line("already there", format!("{images} of the appended images, byte for byte; {example}"));
            }
            if split.rejected > 0 {
                let (rejected, all) = (split.rejected, found.looked_at);
                line("rejected", format!("{rejected} of {all} images: {}", counts(&found.refused)));
            }
            for reject in &split.first_rejects {
                line("", reject.clone());
            }
        }
        let DuplicateCounts { identical_groups, visual_groups, images, leaks } = self.duplicates;
        if images > 0 {
            lines.push(format!(
                "near-duplicates: {images} images in {identical_groups} identical and {visual_groups} \
                 similar groups (duplicates.parquet)"
            ));
        }
        if leaks > 0 {
            lines.push(format!(
                "leaks: {leaks} training images have a near-duplicate in another split, which raises a kNN \
                 score (--drop-leaks leaves them out)"
            ));
        }
        if let Some(VerifiedSource { images, rewritten, rejected }) = self.verified_source {
            lines.push(format!(
                "verified: {images} images of the source are those of the dataset ({rewritten} rewritten, \
                 {rejected} rejected again)"
            ));
        }
        lines
    }
}

fn counts(of: &BTreeMap<String, u64>) -> String {
    of.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
}

#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    //! Entry points for the fuzzer: everything that reads foreign bytes.

    use super::source::{Source, read_synsets};
    use super::{IngestOptions, validate};
    use crate::image::{Limits, check_is_libjpegs};
    use crate::progress::Quiet;
    use crate::storage::Location;

    /// Lists a source that is one file of this name, whose ending may be that of a tar, a Parquet file, whose images
    /// are read too, or a list; decides what it means.
    #[expect(clippy::disallowed_methods, reason = "the source is a foreign file")]
    pub fn source(name: &str, bytes: &[u8]) -> bool {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join(name);
        std::fs::write(&file, bytes).expect("written");
        let here = Location::from_path(&file).expect("a location");
        let options = IngestOptions::new(here.clone(), here);
        let opened = Source::open(&options);
        opened.is_ok_and(|mut source| source.fetch(&Quiet).is_ok())
    }

    /// Reads `meta.mat`.
    pub fn synsets(bytes: &[u8]) -> bool {
        read_synsets(bytes).is_ok()
    }

    /// Checks an image; the first byte chooses what is asked for.
    pub fn image(bytes: &[u8]) -> bool {
        let Some((&choice, bytes)) = bytes.split_first() else { return false };
        let here = Location::from_path(std::path::Path::new("/nowhere")).expect("a location");
        let mut options = IngestOptions::new(here.clone(), here);
        options.max_pixels = 1 << 22;
        options.baseline = choice & 1 == 1;
        options.short_side = (choice & 2 == 2).then_some(32);
        let limits = Limits { max_pixels: options.max_pixels };
        assert!(check_is_libjpegs(bytes, &limits), "the quick check and libjpeg differ");
        validate::prepare(bytes, &options).is_ok()
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests make foreign files by hand")]
mod tests;
