//! Images: encoded bytes to RGB pixels and back.
//!
//! What a file is, its content decides, never its name. Pixels come out as Pillow's `convert("RGB")` gives
//! them: grey is repeated, CMYK is converted, alpha is dropped without blending. The size is read from the header and
//! checked before any pixel is allocated. EXIF's orientation is applied where [`ExifOrientation`] says so. A decoder
//! that panics rejects its image. docs/formats.md has what differs from Pillow.

mod baseline;
mod error;
mod exif;
mod formats;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod luma;
mod memory;
mod orientation;
mod region;
mod resize;
mod sniff;

use self::formats::{bmp, gif, jpeg, png, pnm, tiff, webp};
use serde::{Deserialize, Serialize};

pub use error::ImageError;
#[cfg(feature = "fuzzing")]
pub(crate) use luma::check_is_libjpegs;
pub use luma::{Luma, check, check_and_index, entry_points, luma};
pub use memory::decoding_memory;
pub use orientation::{ExifOrientation, Orientation};
pub use region::{Channels, Encoded, Planes, Region, RegionDecoder};
pub use resize::{shrink, shrunk_size};

/// What is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// An image with more pixels is refused: a guard against decompression bombs.
    pub max_pixels: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_pixels: 100_000_000 }
    }
}

impl Limits {
    fn check(&self, header: &Header) -> Result<(), ImageError> {
        let (width, height) = (header.width, header.height);
        if u64::from(width) * u64::from(height) > self.max_pixels {
            return Err(ImageError::TooLarge { width, height, limit: self.max_pixels });
        }
        Ok(())
    }
}

/// The kinds of files that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Baseline or progressive.
    Jpeg,
    /// 1 to 16 bits, with or without palette and alpha.
    Png,
    /// The first frame.
    Gif,
    /// The first frame.
    Webp,
    /// Windows bitmap.
    Bmp,
    /// The first page.
    Tiff,
    /// A portable bitmap, graymap or pixmap (P1 to P6).
    Pnm,
}

impl Format {
    /// The usual ending of its file names.
    pub fn ending(self) -> &'static str {
        match self {
            Self::Jpeg => ".jpg",
            Self::Png => ".png",
            Self::Gif => ".gif",
            Self::Webp => ".webp",
            Self::Bmp => ".bmp",
            Self::Tiff => ".tif",
            Self::Pnm => ".pnm",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::Gif => "GIF",
            Self::Webp => "WebP",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
            Self::Pnm => "PNM",
        }
    }
}

/// What the header of a file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the file is.
    pub format: Format,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// The colour space as stored.
    pub colour: Colour,
}

/// A colour space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Colour {
    /// One channel.
    Grey,
    /// Three channels, also as YCbCr or with alpha or palette.
    Rgb,
    /// Four inks, also as YCCK.
    Cmyk,
}

/// What a file is by its first bytes; `None` where it is of no kind that is read.
pub fn format_of(bytes: &[u8]) -> Option<Format> {
    sniff::format(bytes).ok()
}

/// A decoded image.
///
/// Invariant: `rgb` holds `height * width * 3` bytes, row after row, red first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodedImage {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// The pixels.
    pub rgb: Vec<u8>,
}

/// Reads the header alone.
///
/// # Errors
/// If the file is of no known kind, or its header is broken.
pub fn probe(bytes: &[u8]) -> Result<Header, ImageError> {
    let format = sniff::format(bytes)?;
    let header = guard(format.name(), || match format {
        Format::Jpeg => jpeg::probe(bytes),
        Format::Png => png::probe(bytes),
        Format::Gif => gif::probe(bytes),
        Format::Webp => webp::probe(bytes),
        Format::Bmp => bmp::probe(bytes),
        Format::Tiff => tiff::probe(bytes),
        Format::Pnm => pnm::probe(bytes),
    })?;
    if header.width == 0 || header.height == 0 {
        return Err(ImageError::Corrupt { format: format.name(), reason: "it has no pixels".into() });
    }
    Ok(header)
}

/// Decodes an image whole.
///
/// # Errors
/// If the file is of no known kind, too large, cut or corrupt.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<DecodedImage, ImageError> {
    let header = probe(bytes)?;
    limits.check(&header)?;
    guard(header.format.name(), || match header.format {
        Format::Jpeg => jpeg::decode(bytes, header),
        Format::Png => png::decode(bytes),
        Format::Gif => gif::decode(bytes),
        Format::Webp => webp::decode(bytes),
        Format::Bmp => bmp::decode(bytes),
        Format::Tiff => tiff::decode(bytes),
        Format::Pnm => pnm::decode(bytes),
    })
}

/// Checks the header, and that the file's end is there where its format marks one. No pixel is decoded.
///
/// # Errors
/// As [`decode`], but damage between header and end is not seen.
pub fn check_header(bytes: &[u8], limits: &Limits) -> Result<Header, ImageError> {
    let header = probe(bytes)?;
    limits.check(&header)?;
    if header.format == Format::Jpeg && !jpeg::has_end(bytes) {
        return Err(ImageError::Corrupt { format: "JPEG", reason: "its end is missing".into() });
    }
    Ok(header)
}

/// A progressive JPEG as a baseline one with the same coefficients: it decodes faster. `None` for any other file.
///
/// The pixels are the same too, unless the scans leave out bits of coefficients: decoders smooth over those.
///
/// # Errors
/// If the file is cut or corrupt.
pub fn progressive_to_baseline(bytes: &[u8]) -> Result<Option<Vec<u8>>, ImageError> {
    if sniff::format(bytes)? != Format::Jpeg || !jpeg::is_progressive(bytes) {
        return Ok(None);
    }
    guard(Format::Jpeg.name(), || jpeg::to_baseline(bytes)).map(Some)
}

/// Encodes as baseline JPEG with 4:2:0 subsampling.
///
/// # Errors
/// If the image is larger than JPEG allows.
pub fn encode_jpeg(image: &DecodedImage, quality: u8) -> Result<Vec<u8>, ImageError> {
    jpeg::encode(image, quality)
}

/// Encodes as PNG.
///
/// # Errors
/// If the encoder fails.
pub fn encode_png(image: &DecodedImage) -> Result<Vec<u8>, ImageError> {
    png::encode(image)
}

/// Runs a decoder; its panic is an error of the image.
fn guard<T>(format: &'static str, work: impl FnOnce() -> Result<T, ImageError>) -> Result<T, ImageError> {
    if cfg!(feature = "fuzzing") && format == "JPEG" {
        // The decoder is ours: the fuzzer shall see its panics.
        return work();
    }
    crate::guard::guard(work).unwrap_or_else(|message| {
        Err(ImageError::Corrupt { format, reason: format!("its decoder failed: {message}") })
    })
}

#[cfg(test)]
mod tests;
