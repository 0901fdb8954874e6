//! Ingestion of images from common layouts into a dataset.
//!
//! [`ingest`] lists the source, checks every image once, assigns ids to the accepted ones, writes shards and finally
//! the manifest. The result depends only on the source and the options, not on threads, time, location or restarts.
//! Only the report in the manifest also has a digest of the source's modification times. [`synth()`] draws an image
//! set for trials.
//!
//! Invariant: without a published manifest there is no dataset, and files that a published manifest names are never
//! overwritten.

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

/// Name of the training split; images that it shares with another split are leaks.
const TRAINING_SPLIT: &str = "train";
/// Program name and version, as written to manifests.
const PROGRAM: &str = concat!("instdisc ", env!("CARGO_PKG_VERSION"));

/// Depth of the check of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, EnumMessage, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum CheckDepth {
    /// Decode every coefficient.
    #[default]
    Full,
    /// Check header and end only: training meets damage between them, near-duplicates and entry points are not found.
    Header,
}

/// Options of an ingest.
#[derive(Clone, Debug)]
pub struct IngestOptions {
    /// Images: one folder or file, or several files.
    pub sources: Vec<Location>,
    /// Folder of the dataset.
    pub dest: Location,
    /// Format of the source.
    pub format: SourceFormat,
    /// Name of the split; if the source has several splits, the one to take.
    pub split: Option<String>,
    /// Splits with the patterns of their paths; if there are any, nothing else decides the split of an image.
    pub splits: Vec<(String, PathGlob)>,
    /// Share of the images that becomes another split.
    pub hold_out: Option<HoldOut>,
    /// Patterns of paths to leave out.
    pub ignore: Vec<PathGlob>,
    /// Labels of images outside class folders: ILSVRC2012's development kit, or a csv of image and class.
    pub labels: Option<Location>,
    /// File with the names of classes that are numbers in the source, one in each line.
    pub classes: Option<Location>,
    /// Interpretation of the text of labels.
    pub labels_as: LabelsAs,
    /// Folder that is the class of an image below several; without it such images are an error.
    pub class_folder: Option<ClassFolder>,
    /// Column or field of labels; by default one with a known name.
    pub label_column: Option<String>,
    /// Column of images, or of their paths; by default one with a known name.
    pub image_column: Option<String>,
    /// Ignore all labels.
    pub unlabelled: bool,
    /// Splits whose labels are ignored.
    pub unlabelled_splits: Vec<String>,
    /// Append the images to an existing split.
    pub append: bool,
    /// Leave out training images that have a near-duplicate in another split.
    pub drop_leaks: bool,
    /// Find near-duplicates; else only images equal byte for byte.
    pub near_duplicates: bool,
    /// If the destination contains the source already, read every image and compare it with the dataset's.
    pub verify_source: bool,
    /// Share of rejected images above which the job fails.
    pub max_reject_fraction: Fraction,
    /// Size in bytes of encoded images at which a shard is full.
    pub shard_bytes: u64,
    /// Number of rows in a row group.
    pub row_group: usize,
    /// Seed of the rows' order over the shards.
    pub shuffle_seed: u64,
    /// Depth of the check of an image.
    pub check: CheckDepth,
    /// Reject images with more pixels.
    pub max_pixels: u64,
    /// Treatment of EXIF orientation, the same for a whole split.
    pub exif_orientation: ExifOrientation,
    /// Shrink images until their longer side has at most this many pixels.
    pub max_side: Option<u32>,
    /// Shrink images until their shorter side has at most this many pixels.
    pub short_side: Option<u32>,
    /// JPEG quality of images that were made smaller, 1 to 100.
    pub quality: u8,
    /// Rewrite progressive JPEGs as baseline ones with the same pixels.
    pub baseline: bool,
    /// Number of threads that check images; 0 for one on each core.
    pub threads: usize,
    /// Number of shards that are written at once.
    pub uploads: usize,
    /// Memory for images, encoded and decoded, in bytes; half of the machine's by default.
    pub memory_limit: Option<u64>,
}

impl IngestOptions {
    /// Returns the default options for this source and destination.
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

    /// Returns whether the dataset may have other bytes of an image than the source.
    fn changes_images(&self) -> bool {
        self.max_side.is_some() || self.short_side.is_some() || self.baseline
    }

    /// Default size of a shard.
    pub const SHARD_SIZE: ByteSize = ByteSize(128 << 20);
}

/// Calls `work` with each number below `count` on up to `threads` threads, which take the numbers in turn; the results
/// are ordered by number. Unlike in a pool, a thread that waits within `work` never starts another number.
///
/// # Errors
/// The error of the lowest number that failed; afterwards no further number is taken.
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

/// Error from an ingest; no dataset is published.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The source has no images in a known layout, or its layout is ambiguous.
    #[error("{location}: {reason}")]
    Layout {
        /// The source.
        location: String,
        /// Reason for the error.
        reason: String,
    },
    /// The tar is cut, or the file is not a tar.
    #[error("{tar}: byte {offset}: {reason}")]
    Tar {
        /// The tar.
        tar: String,
        /// Offset of the error in the tar, in bytes.
        offset: u64,
        /// Reason for the error.
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
        /// Number of rejected images.
        rejected: usize,
        /// Number of validated images.
        total: usize,
        /// Share that may be rejected.
        allowed: f64,
        /// First rejected images, with their reasons.
        first: String,
    },
    /// The destination contains data that this ingest neither continues nor replaces.
    #[error("{dest}: {reason}")]
    Destination {
        /// The destination.
        dest: String,
        /// Contents of the destination that prevent the ingest.
        reason: String,
    },
    /// Source and destination are the same, or one contains the other.
    #[error(
        "the source {source_location} and the destination {dest} overlap; give a destination outside of the source"
    )]
    Overlap {
        /// The source.
        source_location: String,
        /// The destination.
        dest: String,
    },
    /// An image differs from the one in the dataset.
    #[error("{source_location}: `{image}` is not as it was when {dest} was made: {reason}")]
    SourceChanged {
        /// The source.
        source_location: String,
        /// The first image that differs.
        image: String,
        /// The dataset.
        dest: String,
        /// Difference from the dataset's image.
        reason: String,
    },
    /// An option does not fit the source or the destination.
    #[error("{reason}")]
    Options {
        /// Name of the option, with the action to take.
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
    /// Makes the error of a source that cannot be read as the options ask.
    fn layout(location: impl Display, reason: impl Into<String>) -> Self {
        Self::Layout { location: location.to_string(), reason: reason.into() }
    }

    /// Makes the error of a destination that contains another dataset.
    fn other_dataset(dest: &Location, reason: impl Display) -> Self {
        let reason = format!("it already holds another dataset: {reason}");
        Self::Destination { dest: dest.to_string(), reason }
    }

    /// Returns the kind of failure, for the exit code.
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

/// Describes the allowed share of rejects, and the option that accepts these.
fn accepting(rejected: usize, total: usize, allowed: f64) -> String {
    let share = (100.0 * rejected as f64 / total as f64).ceil() / 100.0;
    format!(
        "more than the share of {allowed} that is allowed; `--max-reject-fraction {share}` leaves them out and ingests \
         the others"
    )
}

/// Result of an ingest, as the command prints it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IngestReport {
    /// The destination.
    pub dest: String,
    /// Whether the dataset existed before, so that nothing was written.
    pub already_done: bool,
    /// Evidence for `already_done`; `None` if something was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_by: Option<HeldBy>,
    /// Format of the source.
    pub format: SourceFormat,
    /// Identity of the dataset.
    pub dataset_digest: Digest,
    /// Number of classes.
    pub classes: usize,
    /// Reports of the splits that this call wrote or appended to.
    pub splits: BTreeMap<String, SplitReport>,
    /// Counts of duplicate images, over all splits together.
    pub duplicates: DuplicateCounts,
    /// Plan of the source.
    pub plan: SourcePlan,
    /// Result of `--verify-source`; `None` without the option, or if the images were not in the dataset before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified_source: Option<VerifiedSource>,
    /// Duration in seconds.
    pub seconds: f64,
}

/// Evidence that a dataset contains a source already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldBy {
    /// Every image was read and compared.
    Contents,
    /// Names, classes and sizes of the images agree, and times or ETags of the source's files are those of the ingest.
    Times,
    /// Names, classes and sizes agree, but times or ETags differ.
    OtherTimes,
    /// Names, classes and sizes agree; times or ETags are unknown.
    NamesAndSizes,
}

impl HeldBy {
    /// Returns the end of a sentence that states the evidence.
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

/// Appended images that the split already contains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AlreadyThere {
    /// Number of these images.
    pub images: u64,
    /// The first of these images, and the one that it equals.
    pub example: String,
}

/// Counts of a source that the dataset contains already, from `--verify-source`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifiedSource {
    /// Number of images that were read and compared with the dataset's.
    pub images: u64,
    /// Number of these that the ingest had rewritten, and that were rewritten again for the comparison.
    pub rewritten: u64,
    /// Number of images that were rejected both by the ingest and now.
    pub rejected: u64,
}

/// Report of a split.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SplitReport {
    /// Number of images that this call added to the dataset.
    pub instances: u64,
    /// Number of rejected images.
    pub rejected: u64,
    /// First rejected images, with their reasons.
    pub first_rejects: Vec<String>,
    /// Relation of the ids to the order of the source.
    pub ids: String,
    /// Total size of the encoded images in bytes.
    pub image_bytes: u64,
    /// Number of shards written.
    pub shards: usize,
    /// Appended images that equal one of the split byte for byte; each got a new id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub already_there: Option<AlreadyThere>,
    /// Statistics of the source's images.
    #[serde(flatten)]
    pub found: PartReport,
}

impl IngestReport {
    /// Formats the report as lines of text.
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
    //! Entry points for the fuzzer: all code that reads foreign bytes.

    use super::source::{Source, read_synsets};
    use super::{IngestOptions, validate};
    use crate::image::{Limits, check_is_libjpegs};
    use crate::progress::Quiet;
    use crate::storage::Location;

    /// Lists a source that is one file of this name, and decides what it means. The extension may be that of a tar, of
    /// a Parquet file, whose images are also read, or of a list.
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

    /// Checks an image; the first byte chooses the options.
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
