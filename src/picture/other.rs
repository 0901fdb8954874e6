//! Everything but JPEG, through the `image` crate.

use std::io::Cursor;

use image::codecs::png::PngEncoder;
use image::{ColorType, ExtendedColorType, ImageEncoder, ImageFormat, ImageReader};

use super::{Colour, Format, Header, Limits, Picture, PictureError};

/// The memory that a decoder may take: for each allowed pixel four channels of 16 bits, twice, and a floor.
const BYTES_PER_PIXEL: u64 = 16;
const LEAST_ALLOCATION: u64 = 1 << 24;

pub(super) fn format(bytes: &[u8]) -> Option<Format> {
    Some(match image::guess_format(bytes).ok()? {
        ImageFormat::Png => Format::Png,
        ImageFormat::Gif => Format::Gif,
        ImageFormat::WebP => Format::Webp,
        ImageFormat::Bmp => Format::Bmp,
        ImageFormat::Tiff => Format::Tiff,
        _ => return None,
    })
}

pub(super) fn names(format: Format) -> (ImageFormat, &'static str) {
    match format {
        Format::Png => (ImageFormat::Png, "PNG"),
        Format::Gif => (ImageFormat::Gif, "GIF"),
        Format::Webp => (ImageFormat::WebP, "WebP"),
        Format::Bmp => (ImageFormat::Bmp, "BMP"),
        Format::Tiff => (ImageFormat::Tiff, "TIFF"),
        Format::Jpeg => (ImageFormat::Jpeg, "JPEG"),
    }
}

fn corrupt(format: Format) -> impl Fn(image::ImageError) -> PictureError {
    move |error| PictureError::Corrupt { format: names(format).1, reason: error.to_string() }
}

pub(super) fn probe(bytes: &[u8], format: Format) -> Result<Header, PictureError> {
    let reader = ImageReader::with_format(Cursor::new(bytes), names(format).0);
    let decoder = reader.into_decoder().map_err(corrupt(format))?;
    let (width, height) = image::ImageDecoder::dimensions(&decoder);
    check_is_something((width, height), format)?;
    let colour = match image::ImageDecoder::color_type(&decoder) {
        ColorType::L8 | ColorType::La8 | ColorType::L16 | ColorType::La16 => Colour::Grey,
        _ => Colour::Rgb,
    };
    Ok(Header { format, width, height, colour })
}

/// A GIF may say that it is 0 pixels wide.
fn check_is_something((width, height): (u32, u32), format: Format) -> Result<(), PictureError> {
    if width > 0 && height > 0 {
        return Ok(());
    }
    Err(PictureError::Corrupt { format: names(format).1, reason: "it has no pixels".into() })
}

pub(super) fn decode(bytes: &[u8], format: Format, limits: &Limits) -> Result<Picture, PictureError> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), names(format).0);
    let mut memory = image::Limits::default();
    memory.max_alloc = Some(limits.max_pixels.saturating_mul(BYTES_PER_PIXEL).max(LEAST_ALLOCATION));
    reader.limits(memory);
    let rgb = reader.decode().map_err(corrupt(format))?.into_rgb8();
    check_is_something(rgb.dimensions(), format)?;
    Ok(Picture { width: rgb.width(), height: rgb.height(), rgb: rgb.into_raw() })
}

pub(super) fn encode_png(picture: &Picture) -> Result<Vec<u8>, PictureError> {
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(&picture.rgb, picture.width, picture.height, ExtendedColorType::Rgb8)
        .map_err(|error| PictureError::Encode { reason: error.to_string() })?;
    Ok(bytes)
}
