//! Pictures: encoded bytes to RGB pixels and back.
//!
//! What a file is, its content decides, never its name. Pixels come out as Pillow's `convert("RGB")` gives
//! them: grey is repeated, CMYK is converted, alpha is dropped without blending, and EXIF rotation is not
//! applied (torchvision's loader does not apply it either). The size is read from the header and checked
//! before any pixel is allocated.

mod error;
mod jpeg;
mod other;

use serde::{Deserialize, Serialize};

pub use error::PictureError;

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
    let pixels = u64::from(header.width) * u64::from(header.height);
    if pixels > limits.max_pixels {
        return Err(PictureError::TooLarge {
            width: header.width,
            height: header.height,
            limit: limits.max_pixels,
        });
    }
    match header.format {
        Format::Jpeg => jpeg::decode(bytes, header),
        format => other::decode(bytes, format),
    }
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
