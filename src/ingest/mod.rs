//! Ingestion: from the images that people hold to a dataset.
//!
//! [`ingest`] lists the source, checks every image once, gives the accepted ones their ids, writes shards and
//! last the manifest. The result depends on the source and the options alone, not on threads, time, location
//! or restarts; the report in the manifest also has a digest of the source's modification times. [`synth()`] draws an image set for trying things out.
//!
//! Invariant: until the manifest is published there is no dataset, and nothing that a published manifest
//! names is ever overwritten.

mod bench;
mod error;
mod export;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod job;
mod journal;
mod memory;
mod near_duplicates;
mod part;
mod plan;
mod report;
mod source;
mod synth;
mod validate;
mod verify_source;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use strum::{EnumMessage, VariantArray};

pub use bench::{BenchOptions, BenchReport, bench};
pub use error::IngestError;
pub use export::{ExportOptions, ExportReport, ExportedSplit, export};
pub use job::{ingest, plan, source_plan};
pub use memory::machine_memory;
pub use plan::{DestinationPlan, IngestPlan};
pub use report::{AlreadyThere, HeldBy, IngestReport, SplitReport, VerifiedSource};
pub use source::{
    ClassFolder, ClassesPlan, Counted, HoldOut, LabelsAs, PathGlob, SourceFormat, SourcePlan, SplitPlan,
    is_image,
};
pub use synth::{SynthError, SynthOptions, SynthReport, synth};

use crate::image::ExifOrientation;
use crate::storage::Location;
use crate::units::{ByteSize, Fraction};

/// The split that is trained on; images that it shares with another are leaks.
const TRAINING_SPLIT: &str = "train";
/// The program as manifests name it.
const PROGRAM: &str = concat!("instdisc ", env!("CARGO_PKG_VERSION"));

/// How thoroughly to validate an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, EnumMessage, VariantArray)]
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

/// Calls `work` with each number below `count` on up to `threads` threads, which take the numbers in turn; the results are
/// in their order. Unlike a task of a pool, the work on one number never begins while its thread waits within another.
///
/// # Errors
/// The error that a loop would end with; after it no further number is taken.
fn work_through<T: Send, E: Send>(
    count: usize,
    threads: usize,
    work: impl Fn(usize) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let of_thread = || {
        let mut done = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                break;
            }
            let result = work(number);
            if result.is_err() {
                failed.store(true, Ordering::Relaxed);
            }
            done.push((number, result));
        }
        done
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

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests make foreign files by hand")]
mod tests;
