//! Images: encoded bytes to RGB pixels and back.
//!
//! What a file is, its content decides, never its name. Pixels come out as Pillow's `convert("RGB")` gives
//! them: grey is repeated, CMYK is converted, alpha is dropped without blending. The size is read from the header and
//! checked before any pixel is allocated. [`ExifOrientation`] decides whether EXIF's orientation is applied. A decoder
//! that panics rejects its image. docs/formats.md has what differs from Pillow.

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

/// An image cannot be read or written; the text is the reason that a report shows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// No bytes.
    #[error("the file is empty")]
    Empty,
    /// Bytes of no known kind.
    #[error("the file is not an image of a known kind")]
    UnknownFormat,
    /// An image, but of a kind that is not decoded.
    #[error("{kind} is not supported")]
    Unsupported {
        /// What the file is.
        kind: &'static str,
    },
    /// Something else under the name of an image.
    #[error("the file is {kind}, not an image")]
    NotAnImage {
        /// What the file is, with its article.
        kind: &'static str,
    },
    /// More pixels than allowed.
    #[error("{width}x{height} pixels are more than the limit of {limit}")]
    TooLarge {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
        /// The most pixels allowed.
        limit: u64,
    },
    /// The header or the pixels are broken or cut.
    #[error("{format}: {reason}")]
    Corrupt {
        /// What the file is.
        format: &'static str,
        /// The decoder's words.
        reason: String,
    },
    /// The image cannot be encoded.
    #[error("cannot be encoded: {reason}")]
    Encode {
        /// The encoder's words.
        reason: String,
    },
}

impl ImageError {
    /// The kind of reason, for counting.
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

/// What is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// An image with more pixels is rejected: a guard against decompression bombs.
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
    /// What the file is.
    pub format: Format,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// The colour space as stored.
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

/// What a file is by its first bytes; `None` where it is of no kind that is read.
pub fn format_of(bytes: &[u8]) -> Option<Format> {
    formats::recognise(bytes).ok()
}

/// A rectangle of an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The first column.
    pub left: usize,
    /// The first row.
    pub top: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// What is wanted of the pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channels {
    /// Red, green and blue.
    Rgb,
    /// Brightness alone, as the file stores it; a file that does not store it gives all three.
    Luma,
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

/// Checks the header, and that the file's end is there where its format marks one. No pixel is decoded.
///
/// # Errors
/// As [`decode`], but damage between header and end is not seen.
pub fn check_header(bytes: &[u8], limits: &Limits) -> Result<Header, ImageError> {
    let header = probe(bytes)?;
    limits.check(header.size())?;
    if header.format == Format::Jpeg && !jpeg::has_end(bytes) {
        return Err(ImageError::Corrupt { format: "JPEG", reason: "its end is missing".into() });
    }
    Ok(header)
}

/// The bytes that [`check`] and [`decode`] allocate at most for an image, beside its encoded bytes.
///
/// An upper estimate: pixels times channels times bytes of a channel, and what decoder and conversions hold at the same
/// time.
pub fn decoding_memory(bytes: &[u8], header: &Header) -> u64 {
    let pixels = u64::from(header.width) * u64::from(header.height);
    // RGB and the brightness made of it.
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
        // Four channels of 16 bits unless the header says less; WebP and GIF also hold a canvas.
        Format::Png => converted.saturating_add(pixels.saturating_mul(png::bytes_per_pixel(bytes))),
        Format::Pnm => converted.saturating_add(6 * pixels),
        Format::Bmp => converted.saturating_add(4 * pixels),
        Format::Gif | Format::Webp => converted.saturating_add(8 * pixels),
        // What the header cannot tell is an error of decoding.
        Format::Tiff => converted.saturating_add(tiff::sample_memory(bytes).unwrap_or(0)),
    }
}

/// A progressive JPEG as a baseline one with the same coefficients: it decodes faster. `None` for any other file.
///
/// The pixels are the same too, unless the scans leave out bits of coefficients: decoders smooth over those.
///
/// # Errors
/// If the file is cut or corrupt.
pub fn progressive_to_baseline(bytes: &[u8]) -> Result<Option<Vec<u8>>, ImageError> {
    if formats::recognise(bytes)? != Format::Jpeg || !jpeg::is_progressive(bytes) {
        return Ok(None);
    }
    guard(Format::Jpeg.name(), || jpeg::to_baseline(bytes)).map(Some)
}

/// The sides of an image made smaller so that its longer one has at most `max_side` pixels and its shorter one at
/// most `short_side`; `None` where it is small enough. The ratio of the sides is kept, but for rounding.
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

/// An image made as small as [`shrunk_size`] has it.
///
/// The filter is Pillow's antialiased Lanczos, which keeps what later crops need.
pub fn shrink(image: &DecodedImage, max_side: Option<u32>, short_side: Option<u32>) -> Option<DecodedImage> {
    let (width, height) = shrunk_size(image.width, image.height, max_side, short_side)?;
    let source = ImageRef::new(image.width, image.height, &image.rgb, PixelType::U8x3)
        .expect("an image holds three bytes for each pixel");
    let mut resized = Image::new(width, height, PixelType::U8x3);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3));
    Resizer::new().resize(&source, &mut resized, &options).expect("both have the same kind of pixels");
    Some(DecodedImage { width, height, rgb: resized.into_vec() })
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
pub(crate) mod tests;
