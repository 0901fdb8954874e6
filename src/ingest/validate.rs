//! The check of every image, once, and what is stored instead of its own bytes where that is asked for.
//!
//! Two changes, in this order: made smaller (`--max-side`, `--short-side`), progressive made baseline (`--baseline`).
//! The second changes no pixel; an image whose pixels it would change stays as it is.

use bytes::Bytes;
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

/// Images whose validations are saved together: what a kill can cost.
const IMAGES_OF_CHUNK: usize = 4096;
/// Images that a thread fetches together.
pub(super) const IMAGES_AT_ONCE: usize = 16;
/// The size above which a file is rejected unread, in bytes.
pub(super) const MOST_IMAGE_BYTES: u64 = 1 << 30;

/// What the check found out about an image, as it goes into a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ImageInfo {
    pub width: u32,
    pub height: u32,
    pub bytes: u64,
    pub digest: Digest,
    pub view: Option<ViewHash>,
    pub format: Format,
    pub colour: Colour,
    /// What is not as in the source.
    pub changes: Changes,
}

/// What was changed of an image's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Changes {
    pub smaller: bool,
    pub baseline: bool,
}

impl Changes {
    /// Whether the bytes are those of the source.
    pub(super) fn none(self) -> bool {
        self == Self::default()
    }
}

/// Why an image is rejected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rejection {
    /// The kind of reason, for counting.
    pub kind: String,
    pub reason: String,
}

/// The outcome of validating an image.
pub(super) type Validation = Result<ImageInfo, Rejection>;

/// Checks the images of a split of which nothing is `known` yet, on the threads of the pool that this runs in; the
/// validations keep the order.
///
/// What an earlier call of the same work has saved is not done again.
///
/// # Errors
/// If the source or the destination fails. An image that cannot be decoded is rejected, which is not an error.
pub(super) fn validate(
    source: &Source,
    entries: &[Entry],
    known: &[Option<Validation>],
    options: &IngestOptions,
    memory: &MemoryBudget,
    work: &Work,
    progress: &dyn Progress,
) -> Result<Vec<Validation>, IngestError> {
    type Images<'a> = (&'a [Entry], &'a [Option<Validation>]);
    let group = |(entries, known): Images<'_>| -> Result<Vec<Validation>, IngestError> {
        let open = entries.iter().zip(known).filter(|(_, known)| known.is_none());
        let open: Vec<&Entry> = open.map(|(entry, _)| entry).collect();
        let mut found = validate_all(source, &open, options, memory, Keep::Validations)?
            .into_iter()
            .map(|(validation, _)| validation);
        progress.advance(entries.len() as u64);
        let mut next = || found.next().expect("one for each that is open");
        Ok(known.iter().map(|known| known.clone().unwrap_or_else(&mut next)).collect())
    };
    let chunk = |(number, (entries, known)): (usize, Images<'_>)| -> Result<Vec<Validation>, IngestError> {
        let saved: Option<Vec<Validation>> = work.load(&format!("checked-{number:05}"))?;
        // The memory limit may be another one now.
        let holds = |validation: &Validation| {
            validation.as_ref().err().is_none_or(|why| why.kind != OVER_MEMORY_LIMIT)
        };
        let saved =
            saved.filter(|validations| validations.len() == entries.len() && validations.iter().all(holds));
        if let Some(validations) = saved {
            progress.advance(entries.len() as u64);
            return Ok(validations);
        }
        let groups: Vec<Vec<Validation>> = entries
            .par_chunks(IMAGES_AT_ONCE)
            .zip(known.par_chunks(IMAGES_AT_ONCE))
            .map(group)
            .collect::<Result<_, IngestError>>()?;
        let validations: Vec<Validation> = groups.into_iter().flatten().collect();
        work.save(&format!("checked-{number:05}"), &validations)?;
        Ok(validations)
    };
    let chunks: Vec<Vec<Validation>> = entries
        .par_chunks(IMAGES_OF_CHUNK)
        .zip(known.par_chunks(IMAGES_OF_CHUNK))
        .enumerate()
        .map(chunk)
        .collect::<Result<_, IngestError>>()?;
    Ok(chunks.into_iter().flatten().collect())
}

/// What is wanted of images that are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// Validations alone.
    Validations,
    /// Their bytes too.
    Bytes,
}

/// What is kept of an image that was checked.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    /// Its bytes as they are in the source; none of an image that is not read.
    pub bytes: Bytes,
    /// Where decoding can start within them, if that is known.
    pub entry_points: Option<Bytes>,
}

/// Reads and checks images; with each validation comes what is to be kept.
pub(super) fn validate_all(
    source: &Source,
    entries: &[&Entry],
    options: &IngestOptions,
    memory: &MemoryBudget,
    keep: Keep,
) -> Result<Vec<(Validation, Kept)>, IngestError> {
    let is_readable = |entry: &&&Entry| entry.fault.is_none() && entry.bytes <= MOST_IMAGE_BYTES;
    let mut validations = Vec::with_capacity(entries.len());
    for run in memory.read_runs(entries, |entry| entry.bytes) {
        let readable: Vec<&Entry> = run.iter().filter(is_readable).copied().collect();
        let _alone = memory.large(readable.iter().map(|entry| entry.bytes).sum());
        let mut read = source.read_all(&readable)?.into_iter();
        for entry in run {
            let validation = if let Some(fault) = entry.fault {
                let reason = fault.to_string();
                (Err(Rejection { kind: "name or kind of entry".into(), reason }), Kept::default())
            } else if entry.bytes > MOST_IMAGE_BYTES {
                let reason = format!("{} bytes are more than {MOST_IMAGE_BYTES}", entry.bytes);
                (Err(Rejection { kind: "too large".into(), reason }), Kept::default())
            } else {
                let bytes = read.next().expect("one for each that is readable");
                let validation = memory.admit(&bytes, options).and_then(|_reservation| {
                    prepare(&bytes, options)
                        .map_err(|error| Rejection { kind: error.kind().into(), reason: error.to_string() })
                });
                let (validation, entry_points) = match validation {
                    Ok((info, entry_points)) => (Ok(info), entry_points.map(Bytes::from)),
                    Err(rejection) => (Err(rejection), None),
                };
                let kept = Kept { bytes, entry_points };
                (validation, if keep == Keep::Bytes { kept } else { Kept::default() })
            };
            validations.push(validation);
        }
    }
    Ok(validations)
}

/// Checks an image, and says what goes into a shard: its bytes, or others where that is asked for. Entry
/// points are those of the source's bytes, where they are decoded and stay as they are.
///
/// # Errors
/// If it is not an image, or a bad or too large one.
pub(super) fn prepare(
    source: &[u8],
    options: &IngestOptions,
) -> Result<(ImageInfo, Option<Vec<u8>>), ImageError> {
    if let Some(image) = smaller(source, options)? {
        return Ok((shrunk(&image, options)?, None));
    }
    let orientation = options.exif_orientation.of(source);
    // The source is checked, not what is made of it: repairs may then trust it.
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
    let (bytes, changes) = repair(source, options);
    let entry_points = entry_points.filter(|_| changes.none());
    Ok((info(bytes.as_deref().unwrap_or(source), header, view, changes), entry_points))
}

fn shrunk(image: &DecodedImage, options: &IngestOptions) -> Result<ImageInfo, ImageError> {
    let encoded = encode_jpeg(image, options.quality)?;
    let header =
        Header { format: Format::Jpeg, width: image.width, height: image.height, colour: Colour::Rgb };
    let (repaired, changes) = repair(&encoded, options);
    let changes = Changes { smaller: true, ..changes };
    Ok(info(repaired.as_deref().unwrap_or(&encoded), header, view_hash(&luma(image)), changes))
}

fn info(bytes: &[u8], header: Header, view: Option<ViewHash>, changes: Changes) -> ImageInfo {
    ImageInfo {
        width: header.width,
        height: header.height,
        bytes: bytes.len() as u64,
        digest: Digest::of(bytes),
        view,
        format: header.format,
        colour: header.colour,
        changes,
    }
}

/// The image made smaller; `None` where it is small enough, or that is not asked for.
///
/// # Errors
/// If it is not an image, or a bad or too large one.
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

/// The bytes without loss as later decoding likes them best, of an image that was checked.
fn repair(source: &[u8], options: &IngestOptions) -> (Option<Vec<u8>>, Changes) {
    let (mut bytes, mut changes) = (None, Changes::default());
    if options.baseline
        && let Ok(Some(baseline)) = progressive_to_baseline(source)
        && has_same_pixels(source, &baseline, options)
    {
        (bytes, changes.baseline) = (Some(baseline), true);
    }
    (bytes, changes)
}

/// libjpeg smooths a progressive image whose scans do not bring every bit, but no baseline one.
fn has_same_pixels(source: &[u8], baseline: &[u8], options: &IngestOptions) -> bool {
    let pixels = |bytes| decode(bytes, &limits(options));
    pixels(source).is_ok_and(|expected| pixels(baseline).is_ok_and(|actual| actual == expected))
}

/// The bytes that validating the same source gave, without its checks; `None` if the source is another one.
pub(super) fn rewrite(source: &[u8], changes: Changes, options: &IngestOptions) -> Option<Vec<u8>> {
    let mut bytes = None;
    if changes.smaller {
        bytes = Some(encode_jpeg(&smaller(source, options).ok()??, options.quality).ok()?);
    }
    if changes.baseline {
        bytes = progressive_to_baseline(source).ok()?;
    }
    bytes
}

/// What is accepted under these options.
fn limits(options: &IngestOptions) -> Limits {
    Limits { max_pixels: options.max_pixels }
}
