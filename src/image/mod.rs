//! Images: encoded bytes to RGB pixels and back.
//!
//! The content of a file decides its format, never its name. Pixels equal those of Pillow's `convert("RGB")`: grey is
//! repeated, CMYK is converted, alpha is dropped without blending. The size is read from the header and checked before
//! any pixel is allocated. [`ExifOrientation`] decides whether EXIF orientation is applied. A decoder that panics
//! rejects its image. docs/formats.md lists the differences from Pillow.

mod baseline;
mod formats;
mod luma;
mod orientation;
mod region;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use serde::{Deserialize, Serialize};

use self::formats::{bmp, gif, jpeg, png, pnm, tiff, webp};

pub use formats::jpeg::encode as encode_jpeg;
pub use formats::png::encode as encode_png;
#[cfg(feature = "fuzzing")]
pub(crate) use luma::check_is_libjpegs;
pub use luma::{Luma, check, entry_points, luma};
pub use orientation::{ExifOrientation, Orientation};
#[cfg(any(test, feature = "fuzzing"))]
pub use region::fuzzing;
pub use region::{Encoded, Planes, RegionDecoder};

/// Error from reading or writing an image; the text is the reason in reports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The file has no bytes.
    #[error("the file is empty")]
    Empty,
    /// The bytes are of no known kind.
    #[error("the file is not an image of a known kind")]
    UnknownFormat,
    /// The file is an image of a kind that is not decoded.
    #[error("{kind} is not supported")]
    Unsupported {
        /// Kind of the file.
        kind: &'static str,
    },
    /// The file is something else under the name of an image.
    #[error("the file is {kind}, not an image")]
    NotAnImage {
        /// Kind of the file, with its article.
        kind: &'static str,
    },
    /// The image has more pixels than allowed.
    #[error("{width}x{height} pixels are more than the limit of {limit}")]
    TooLarge {
        /// Number of columns.
        width: u32,
        /// Number of rows.
        height: u32,
        /// Maximum number of pixels.
        limit: u64,
    },
    /// The header or the pixels are broken or cut.
    #[error("{format}: {reason}")]
    Corrupt {
        /// Format of the file.
        format: &'static str,
        /// Text of the decoder.
        reason: String,
    },
    /// The image cannot be encoded.
    #[error("cannot be encoded: {reason}")]
    Encode {
        /// Text of the encoder.
        reason: String,
    },
}

impl ImageError {
    /// Returns the kind of reason, for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::UnknownFormat => "unknown format",
            Self::Unsupported { .. } => "unsupported format",
            Self::NotAnImage { .. } => "not an image",
            Self::TooLarge { .. } => "too large",
            Self::Corrupt { .. } => "corrupt",
            Self::Encode { .. } => "cannot be encoded",
        }
    }
}

/// Limits of the images that are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of pixels of an image: a guard against decompression bombs.
    pub max_pixels: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_pixels: 100_000_000 }
    }
}

impl Limits {
    fn check(&self, (width, height): (u32, u32)) -> Result<(), ImageError> {
        if u64::from(width) * u64::from(height) > self.max_pixels {
            return Err(ImageError::TooLarge { width, height, limit: self.max_pixels });
        }
        Ok(())
    }
}

/// File formats that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// JPEG, baseline or progressive.
    Jpeg,
    /// PNG of 1 to 16 bits, with or without palette and alpha.
    Png,
    /// GIF, of which the first frame is decoded.
    Gif,
    /// WebP, of which the first frame is decoded.
    Webp,
    /// Windows bitmap.
    Bmp,
    /// TIFF, of which the first page is decoded.
    Tiff,
    /// A portable bitmap, graymap or pixmap (P1 to P6).
    Pnm,
}

impl Format {
    /// Returns the usual extension of file names, with its dot.
    pub fn ending(self) -> &'static str {
        self.names().0
    }

    fn name(self) -> &'static str {
        self.names().1
    }

    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Jpeg => (".jpg", "JPEG"),
            Self::Png => (".png", "PNG"),
            Self::Gif => (".gif", "GIF"),
            Self::Webp => (".webp", "WebP"),
            Self::Bmp => (".bmp", "BMP"),
            Self::Tiff => (".tif", "TIFF"),
            Self::Pnm => (".pnm", "PNM"),
        }
    }
}

/// The header of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Format of the file.
    pub format: Format,
    /// Number of columns.
    pub width: u32,
    /// Number of rows.
    pub height: u32,
    /// Colour space as stored.
    pub colour: Colour,
}

impl Header {
    fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }
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

/// Recognises a file's format by its first bytes; `None` if it is of a kind that is not read.
pub fn format_of(bytes: &[u8]) -> Option<Format> {
    formats::recognise(bytes).ok()
}

/// A rectangle of an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First column.
    pub left: usize,
    /// First row.
    pub top: usize,
    /// Number of columns.
    pub width: usize,
    /// Number of rows.
    pub height: usize,
}

/// Channels to decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channels {
    /// Red, green and blue.
    Rgb,
    /// Luma alone, as the file stores it; a file that does not store it gives all three channels.
    Luma,
}

/// A decoded image.
///
/// Invariant: `rgb` holds `height * width * 3` bytes, row after row, red first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodedImage {
    /// Number of columns.
    pub width: u32,
    /// Number of rows.
    pub height: u32,
    /// Pixels.
    pub rgb: Vec<u8>,
}

/// Reads the header alone.
///
/// # Errors
/// If the file is of no known kind, or its header is broken.
pub fn probe(bytes: &[u8]) -> Result<Header, ImageError> {
    let format = formats::recognise(bytes)?;
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
    limits.check(header.size())?;
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

/// Checks the header, and the end of the file if its format marks one. No pixel is decoded.
///
/// # Errors
/// As [`decode`], but damage between header and end is not detected.
pub fn check_header(bytes: &[u8], limits: &Limits) -> Result<Header, ImageError> {
    let header = probe(bytes)?;
    limits.check(header.size())?;
    if header.format == Format::Jpeg && !jpeg::has_end(bytes) {
        return Err(ImageError::Corrupt { format: "JPEG", reason: "its end is missing".into() });
    }
    Ok(header)
}

/// Returns the maximum number of bytes that [`check`] and [`decode`] allocate for an image, beside its encoded bytes.
///
/// An upper estimate: pixels times channels times bytes of a channel, and the buffers that decoder and conversions hold
/// at the same time.
pub fn decoding_memory(bytes: &[u8], header: &Header) -> u64 {
    let pixels = u64::from(header.width) * u64::from(header.height);
    // RGB and its luma.
    let converted = 4 * pixels;
    match header.format {
        Format::Jpeg => {
            let channels = match header.colour {
                Colour::Grey => 1,
                Colour::Rgb => 3,
                Colour::Cmyk => 4,
            };
            // A progressive JPEG is held as coefficients of two bytes until its last scan is read.
            let coefficients = if jpeg::is_progressive(bytes) { 2 * channels * pixels } else { 0 };
            let inks = if header.colour == Colour::Cmyk { channels * pixels } else { 0 };
            converted.saturating_add(coefficients).saturating_add(inks)
        }
        // Four channels of 16 bits unless the header declares less; WebP and GIF also hold a canvas.
        Format::Png => converted.saturating_add(pixels.saturating_mul(png::bytes_per_pixel(bytes))),
        Format::Pnm => converted.saturating_add(6 * pixels),
        Format::Bmp => converted.saturating_add(4 * pixels),
        Format::Gif | Format::Webp => converted.saturating_add(8 * pixels),
        // A fault that the header hides becomes an error of decoding.
        Format::Tiff => converted.saturating_add(tiff::sample_memory(bytes).unwrap_or(0)),
    }
}

/// Rewrites a progressive JPEG as a baseline one with the same coefficients, which decodes faster. `None` for others.
///
/// The pixels are also the same, unless the scans omit bits of coefficients: decoders smooth over those.
///
/// # Errors
/// If the file is cut or corrupt.
pub fn progressive_to_baseline(bytes: &[u8]) -> Result<Option<Vec<u8>>, ImageError> {
    if formats::recognise(bytes)? != Format::Jpeg || !jpeg::is_progressive(bytes) {
        return Ok(None);
    }
    guard(Format::Jpeg.name(), || jpeg::to_baseline(bytes)).map(Some)
}

/// Returns the size of an image shrunk so that its longer side has at most `max_side` pixels and its shorter one at
/// most `short_side`; `None` if it is small enough. The ratio of the sides is kept, except for rounding.
pub fn shrunk_size(
    width: u32,
    height: u32,
    max_side: Option<u32>,
    short_side: Option<u32>,
) -> Option<(u32, u32)> {
    let limit = |side: u32, limit: Option<u32>| limit.map_or(1.0, |limit| f64::from(limit) / f64::from(side));
    let factor = limit(width.max(height), max_side).min(limit(width.min(height), short_side));
    let side = |side: u32| ((f64::from(side) * factor).round() as u32).max(1);
    (factor < 1.0).then(|| (side(width), side(height)))
}

/// Shrinks an image to [`shrunk_size`].
///
/// The filter is Pillow's antialiased Lanczos, which preserves the detail that later crops need.
pub fn shrink(image: &DecodedImage, max_side: Option<u32>, short_side: Option<u32>) -> Option<DecodedImage> {
    let (width, height) = shrunk_size(image.width, image.height, max_side, short_side)?;
    let source = ImageRef::new(image.width, image.height, &image.rgb, PixelType::U8x3)
        .expect("an image holds three bytes for each pixel");
    let mut resized = Image::new(width, height, PixelType::U8x3);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3));
    Resizer::new().resize(&source, &mut resized, &options).expect("both have the same kind of pixels");
    Some(DecodedImage { width, height, rgb: resized.into_vec() })
}

/// Runs a decoder; its panic becomes an error of the image.
fn guard<T>(format: &'static str, work: impl FnOnce() -> Result<T, ImageError>) -> Result<T, ImageError> {
    if cfg!(feature = "fuzzing") && format == "JPEG" {
        // The fuzzer must see panics of our own decoder.
        return work();
    }
    crate::guard::guard(work).unwrap_or_else(|message| {
        Err(ImageError::Corrupt { format, reason: format!("its decoder failed: {message}") })
    })
}

#[cfg(test)]
pub(crate) mod tests;
