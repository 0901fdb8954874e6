//! Checks every image once, and rewrites those that the options ask to change.
//!
//! An image is made smaller (`--max-side`, `--short-side`), which gives a baseline JPEG, or a progressive one is made
//! baseline (`--baseline`). The second keeps all pixels; an image whose pixels would change is not rewritten.

use bytes::Bytes;
use rayon::ThreadPool;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::journal::Work;
use super::memory::{MemoryBudget, OVER_MEMORY_LIMIT};
use super::near_duplicates::view_hash;
use super::source::{Entry, Source};
use super::{CheckDepth, IngestError, IngestOptions};
use crate::dataset::ViewHash;
use crate::image::{
    Colour, DecodedImage, Format, Header, ImageError, Limits, check, check_header, decode, encode_jpeg, luma,
    probe, progressive_to_baseline, shrink, shrunk_size,
};
use crate::progress::Progress;
use crate::storage::Digest;

/// Number of images whose validations are saved together; a kill loses those of unfinished chunks.
const IMAGES_OF_CHUNK: usize = 4096;
/// Number of images that a thread fetches together.
pub(super) const IMAGES_AT_ONCE: usize = 16;
/// Size in bytes above which a file is rejected unread.
const MOST_IMAGE_BYTES: u64 = 1 << 30;

/// Information from the check of an image, as it goes into a shard. Saved work with other fields is done again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImageInfo {
    pub width: u32,
    pub height: u32,
    pub bytes: u64,
    pub digest: Digest,
    pub view: Option<ViewHash>,
    pub format: Format,
    pub colour: Colour,
    /// Change of the source's bytes, if any.
    pub change: Option<Change>,
}

/// Difference of an image's stored bytes from those of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Change {
    Smaller,
    /// A progressive JPEG converted to a baseline one.
    Baseline,
}

/// Reason for which an image is rejected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rejection {
    /// Kind of the reason, for counting.
    pub kind: String,
    pub reason: String,
}

/// Outcome of validating an image.
pub(super) type Validation = Result<ImageInfo, Rejection>;

/// Data kept of an image that was checked.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    /// Bytes as in the source; empty if the image was not read.
    pub bytes: Bytes,
    /// Entry points, if known, at which decoding of these bytes can start.
    pub entry_points: Option<Bytes>,
}

/// Checker of a source's images.
#[derive(Clone, Copy)]
pub(super) struct Checker<'a> {
    pub source: &'a Source,
    pub options: &'a IngestOptions,
    pub memory: &'a MemoryBudget,
    /// Threads that check and rewrite images.
    pub threads: &'a ThreadPool,
    pub progress: &'a dyn Progress,
}

impl Checker<'_> {
    /// Checks the images of a part that are not `known`; returns the validations of all, in order. Chunks that an
    /// earlier call of the same work saved are not checked again.
    ///
    /// # Errors
    /// If the source or the destination fails. An image that cannot be decoded is rejected, which is not an error.
    pub(super) fn check_part(
        &self,
        entries: &[Entry],
        known: &[Option<Validation>],
        work: &Work,
    ) -> Result<Vec<Validation>, IngestError> {
        type Images<'a> = (&'a [Entry], &'a [Option<Validation>]);
        let chunk = |(number, (entries, known)): (usize, Images<'_>)| {
            let step = format!("checked-{number:05}");
            let saved: Option<Vec<Validation>> = work.load(&step)?;
            // The memory limit may have changed since.
            let holds = |validation: &Validation| {
                validation.as_ref().err().is_none_or(|why| why.kind != OVER_MEMORY_LIMIT)
            };
            if let Some(saved) = saved.filter(|saved| saved.len() == entries.len() && saved.iter().all(holds))
            {
                self.progress.advance(entries.len() as u64);
                return Ok(saved);
            }
            let open = entries.iter().zip(known).filter(|(_, known)| known.is_none());
            let open: Vec<&Entry> = open.map(|(entry, _)| entry).collect();
            self.progress.advance((entries.len() - open.len()) as u64);
            let mut found = self.check(&open, |validation, _| validation)?.into_iter();
            let mut next = || found.next().expect("one for each that is open");
            let validations: Vec<Validation> =
                known.iter().map(|known| known.clone().unwrap_or_else(&mut next)).collect();
            work.save(&step, &validations)?;
            Ok(validations)
        };
        let chunks = entries.par_chunks(IMAGES_OF_CHUNK).zip(known.par_chunks(IMAGES_OF_CHUNK)).enumerate();
        let chunks = self.threads.install(|| chunks.map(chunk).collect::<Result<Vec<_>, IngestError>>())?;
        Ok(chunks.into_iter().flatten().collect())
    }

    /// Reads and checks images; `keep` makes the result of each from its validation and the data read.
    ///
    /// # Errors
    /// If the source fails.
    pub(super) fn check<T: Send>(
        &self,
        entries: &[&Entry],
        keep: impl Fn(Validation, Kept) -> T + Sync,
    ) -> Result<Vec<T>, IngestError> {
        let group = |entries: &[&Entry]| {
            let checked = self.check_group(entries, &keep)?;
            self.progress.advance(entries.len() as u64);
            Ok(checked)
        };
        let groups = entries.par_chunks(IMAGES_AT_ONCE).map(group);
        let groups = self.threads.install(|| groups.collect::<Result<Vec<_>, IngestError>>())?;
        Ok(groups.into_iter().flatten().collect())
    }

    fn check_group<T>(
        &self,
        entries: &[&Entry],
        keep: impl Fn(Validation, Kept) -> T,
    ) -> Result<Vec<T>, IngestError> {
        let mut checked = Vec::with_capacity(entries.len());
        for run in self.memory.read_runs(entries, |entry| entry.bytes) {
            let readable: Vec<&Entry> =
                run.iter().copied().filter(|entry| unreadable(entry).is_none()).collect();
            let _alone = self.memory.large(readable.iter().map(|entry| entry.bytes).sum());
            let mut read = self.source.read_all(&readable)?.into_iter();
            for entry in run {
                checked.push(if let Some(rejection) = unreadable(entry) {
                    keep(Err(rejection), Kept::default())
                } else {
                    let bytes = read.next().expect("one for each that is readable");
                    let (validation, entry_points) = match self.validate(&bytes) {
                        Ok((info, entry_points)) => (Ok(info), entry_points.map(Bytes::from)),
                        Err(rejection) => (Err(rejection), None),
                    };
                    keep(validation, Kept { bytes, entry_points })
                });
            }
        }
        Ok(checked)
    }

    fn validate(&self, bytes: &[u8]) -> Result<(ImageInfo, Option<Vec<u8>>), Rejection> {
        let _reservation = self.memory.admit(bytes, self.options)?;
        prepare(bytes, self.options)
            .map_err(|error| Rejection { kind: error.kind().into(), reason: error.to_string() })
    }
}

/// Returns the reason to reject an image before it is read, if there is one.
pub(super) fn unreadable(entry: &Entry) -> Option<Rejection> {
    if let Some(fault) = entry.fault {
        Some(Rejection { kind: "name or kind of entry".into(), reason: fault.to_string() })
    } else if entry.bytes > MOST_IMAGE_BYTES {
        let reason = format!("{} bytes are more than {MOST_IMAGE_BYTES}", entry.bytes);
        Some(Rejection { kind: "too large".into(), reason })
    } else {
        None
    }
}

/// Checks an image, and describes the bytes for the shard: its own, or rewritten ones. Entry points are returned only
/// if the source's bytes are decoded and kept.
///
/// # Errors
/// If the source is not an image, or a bad or too large one.
pub(super) fn prepare(
    source: &[u8],
    options: &IngestOptions,
) -> Result<(ImageInfo, Option<Vec<u8>>), ImageError> {
    if let Some(image) = smaller(source, options)? {
        let encoded = encode_jpeg(&image, options.quality)?;
        let header =
            Header { format: Format::Jpeg, width: image.width, height: image.height, colour: Colour::Rgb };
        return Ok((info(&encoded, header, view_hash(&luma(&image)), Some(Change::Smaller)), None));
    }
    let orientation = options.exif_orientation.of(source);
    // The source is checked, not the rewritten image, so that `rewrite` may trust it.
    let limits = limits(options);
    let (header, view, entry_points) = match options.check {
        CheckDepth::Full => {
            let (header, luma, entry_points) = check(source, &limits)?;
            (header, view_hash(&luma.turned(orientation)), entry_points)
        }
        CheckDepth::Header => (check_header(source, &limits)?, None, None),
    };
    let (width, height) = orientation.size((header.width, header.height));
    let header = Header { width, height, ..header };
    let baseline = baseline(source, options);
    let change = baseline.as_ref().map(|_| Change::Baseline);
    let entry_points = entry_points.filter(|_| change.is_none());
    Ok((info(baseline.as_deref().unwrap_or(source), header, view, change), entry_points))
}

fn info(bytes: &[u8], header: Header, view: Option<ViewHash>, change: Option<Change>) -> ImageInfo {
    ImageInfo {
        width: header.width,
        height: header.height,
        bytes: bytes.len() as u64,
        digest: Digest::of(bytes),
        view,
        format: header.format,
        colour: header.colour,
        change,
    }
}

/// Shrinks an image; `None` if it is small enough, or no limit is given.
///
/// # Errors
/// If the source is not an image, or a bad or too large one.
fn smaller(source: &[u8], options: &IngestOptions) -> Result<Option<DecodedImage>, ImageError> {
    let (max_side, short_side) = (options.max_side, options.short_side);
    if max_side.is_none() && short_side.is_none() {
        return Ok(None);
    }
    let header = probe(source)?;
    if shrunk_size(header.width, header.height, max_side, short_side).is_none() {
        return Ok(None);
    }
    // A re-encoded image has no EXIF: its pixels are upright.
    let image = decode(source, &limits(options))?.turned(options.exif_orientation.of(source));
    Ok(shrink(&image, max_side, short_side))
}

/// Converts a checked progressive JPEG to baseline, if requested and if all pixels stay the same: libjpeg smooths a
/// progressive image whose scans lack some bits, but never a baseline one.
fn baseline(source: &[u8], options: &IngestOptions) -> Option<Vec<u8>> {
    if !options.baseline {
        return None;
    }
    let baseline = progressive_to_baseline(source).ok()??;
    let pixels = |bytes| decode(bytes, &limits(options)).ok();
    (pixels(source)? == pixels(&baseline)?).then_some(baseline)
}

/// Repeats the rewrite of validation, without its checks; `None` if the source differs.
pub(super) fn rewrite(source: &[u8], change: Change, options: &IngestOptions) -> Option<Vec<u8>> {
    match change {
        Change::Smaller => encode_jpeg(&smaller(source, options).ok()??, options.quality).ok(),
        Change::Baseline => progressive_to_baseline(source).ok()?,
    }
}

/// Returns the limits of accepted images under these options.
fn limits(options: &IngestOptions) -> Limits {
    Limits { max_pixels: options.max_pixels }
}
