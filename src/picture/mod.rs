//! Pictures: encoded bytes to RGB pixels and back.
//!
//! What a file is, its content decides, never its name. Pixels come out as Pillow's `convert("RGB")` gives
//! them: grey is repeated, CMYK is converted, alpha is dropped without blending, and EXIF rotation is not
//! applied (torchvision's loader does not apply it either). The size is read from the header and checked
//! before any pixel is allocated.

mod baseline;
mod error;
mod jpeg;
mod luma;
mod memory;
mod other;
mod region;
mod resize;
mod tiles;

use serde::{Deserialize, Serialize};

pub use error::PictureError;
#[cfg(fuzzing)]
pub(crate) use luma::check_is_libjpegs;
pub use luma::{Luma, check, luma};
pub use memory::decoding_memory;
pub use region::{Channels, Encoded, Planes, Region, RegionDecoder};
pub use resize::{shrink, shrunk_size};
pub use tiles::{Tiled, needed_bytes, restore, set_tiles, transcode};

/// What is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A picture with more pixels is refused: a guard against decompression bombs.
    pub max_pixels: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_pixels: 100_000_000 }
    }
}

impl Limits {
    fn check(&self, header: &Header) -> Result<(), PictureError> {
        let (width, height) = (header.width, header.height);
        if u64::from(width) * u64::from(height) > self.max_pixels {
            return Err(PictureError::TooLarge { width, height, limit: self.max_pixels });
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

/// A decoded picture.
///
/// Invariant: `rgb` holds `height * width * 3` bytes, row after row, red first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
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
pub fn probe(bytes: &[u8]) -> Result<Header, PictureError> {
    match format(bytes)? {
        Format::Jpeg => jpeg::probe(bytes),
        format => other::probe(bytes, format),
    }
}

/// Decodes a picture whole.
///
/// # Errors
/// If the file is of no known kind, too large, cut or corrupt.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Picture, PictureError> {
    let header = probe(bytes)?;
    limits.check(&header)?;
    match header.format {
        Format::Jpeg => jpeg::decode(bytes, header),
        format => other::decode(bytes, format, limits),
    }
}

/// Checks the header, and that the file's end is there where its format marks one. No pixel is decoded.
///
/// # Errors
/// As [`decode`], but damage between header and end is not seen.
pub fn check_header(bytes: &[u8], limits: &Limits) -> Result<Header, PictureError> {
    let header = probe(bytes)?;
    limits.check(&header)?;
    if header.format == Format::Jpeg && !jpeg::has_end(bytes) {
        return Err(PictureError::Corrupt { format: "JPEG", reason: "its end is missing".into() });
    }
    Ok(header)
}

/// A progressive JPEG as a baseline one with the same coefficients: it decodes faster. `None` for any other file.
///
/// The pixels are the same too, unless the scans leave out bits of coefficients: decoders smooth over those.
///
/// # Errors
/// If the file is cut or corrupt.
pub fn progressive_to_baseline(bytes: &[u8]) -> Result<Option<Vec<u8>>, PictureError> {
    if format(bytes)? != Format::Jpeg || !jpeg::is_progressive(bytes) {
        return Ok(None);
    }
    jpeg::to_baseline(bytes).map(Some)
}

/// Encodes as baseline JPEG with 4:2:0 subsampling.
///
/// # Errors
/// If the picture is larger than JPEG allows.
pub fn encode_jpeg(picture: &Picture, quality: u8) -> Result<Vec<u8>, PictureError> {
    jpeg::encode(picture, quality)
}

/// Encodes as PNG.
///
/// # Errors
/// If the encoder fails.
pub fn encode_png(picture: &Picture) -> Result<Vec<u8>, PictureError> {
    other::encode_png(picture)
}

/// What the file is, by its first bytes.
fn format(bytes: &[u8]) -> Result<Format, PictureError> {
    if bytes.is_empty() {
        return Err(PictureError::Empty);
    }
    if bytes.starts_with(&[0xFF, 0xD8]) {
        return Ok(Format::Jpeg);
    }
    other::format(bytes).ok_or(PictureError::UnknownFormat)
}

#[cfg(test)]
mod tests;
