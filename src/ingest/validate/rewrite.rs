//! What is stored instead of an image's own bytes, where that is asked for.
//!
//! Two changes, in this order: made smaller (`--max-side`, `--short-side`), progressive made baseline (`--baseline`).
//! The second changes no pixel; an image whose pixels it would change stays as it is.

use serde::{Deserialize, Serialize};

use crate::image::{
    DecodedImage, ImageError, Limits, decode, encode_jpeg, probe, progressive_to_baseline, shrink,
    shrunk_size,
};
use crate::ingest::IngestOptions;

/// What was changed of an image's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::ingest) struct Changes {
    pub(in crate::ingest) smaller: bool,
    pub(in crate::ingest) baseline: bool,
}

impl Changes {
    /// Whether the bytes are those of the source.
    pub(in crate::ingest) fn none(self) -> bool {
        self == Self::default()
    }
}

/// The image made smaller; `None` where it is small enough, or that is not asked for.
///
/// # Errors
/// If it is no image, or a bad or too large one.
pub(in crate::ingest) fn smaller(
    source: &[u8],
    options: &IngestOptions,
) -> Result<Option<DecodedImage>, ImageError> {
    let (max_side, short_side) = (options.max_side, options.short_side);
    if max_side.is_none() && short_side.is_none() {
        return Ok(None);
    }
    let header = probe(source)?;
    if shrunk_size(header.width, header.height, max_side, short_side).is_none() {
        return Ok(None);
    }
    // What is encoded anew has no EXIF: it is upright itself.
    let image = decode(source, &limits(options))?.turned(options.exif_orientation.of(source));
    Ok(shrink(&image, max_side, short_side))
}

/// The bytes without loss as later decoding likes them best, of an image that was checked.
pub(in crate::ingest) fn repair(source: &[u8], options: &IngestOptions) -> (Option<Vec<u8>>, Changes) {
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

/// Makes the bytes again that a check of the same source has made, without its checks; `None` if the source is
/// another one.
pub(in crate::ingest) fn again(source: &[u8], changes: Changes, options: &IngestOptions) -> Option<Vec<u8>> {
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
pub(in crate::ingest) fn limits(options: &IngestOptions) -> Limits {
    Limits { max_pixels: options.max_pixels }
}
