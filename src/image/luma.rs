//! The brightness of an image alone: the cheapest look at it that reads every coefficient.

use std::cell::RefCell;

use super::baseline::{BaselineDecoder, Checked, Frame};
use super::formats::jpeg;
use super::guard;
use super::{Colour, DecodedImage, Format, Header, ImageError, Limits, decode, probe};

/// Larger images are left to libjpeg: the decoder's buffers are kept, one for each thread.
const MOST_KEPT_PIXELS: usize = 1 << 24;

thread_local! {
    static DECODER: RefCell<Option<Box<BaselineDecoder>>> = RefCell::default();
}

/// The brightness of an image.
///
/// Invariant: `values` holds `height * width` bytes, row after row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Luma {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// 0 is black.
    pub values: Vec<u8>,
}

/// Checks an image as [`super::decode`] does, with the decoder and the pixel format that will decode it, and gives its
/// brightness.
///
/// Of a whole baseline JPEG every coefficient is read, but no colours are made; what is wrong with any other JPEG, its
/// words are libjpeg's.
///
/// # Errors
/// As [`super::decode`].
pub fn check(bytes: &[u8], limits: &Limits) -> Result<(Header, Luma), ImageError> {
    check_and_index(bytes, limits).map(|(header, luma, _)| (header, luma))
}

/// Does [`check`], and gives the entry points of a baseline JPEG, by which a region of it is decoded without the rest.
///
/// # Errors
/// As [`super::decode`].
pub fn check_and_index(bytes: &[u8], limits: &Limits) -> Result<(Header, Luma, Option<Vec<u8>>), ImageError> {
    let header = probe(bytes)?;
    limits.check(&header)?;
    if (header.format, header.colour) == (Format::Jpeg, Colour::Cmyk) || header.format != Format::Jpeg {
        return Ok((header, luma(&decode(bytes, limits)?), None));
    }
    let checked = guard(header.format.name(), || match checked_baseline(bytes) {
        Some(checked) => Ok(checked),
        None if header.colour == Colour::Grey => {
            Ok(Checked { luma: jpeg::decode_grey(bytes, header)?, entry_points: None })
        }
        None => Ok(Checked { luma: luma(&jpeg::decode(bytes, header)?).values, entry_points: None }),
    })?;
    let luma = Luma { width: header.width, height: header.height, values: checked.luma };
    Ok((header, luma, checked.entry_points))
}

/// The entry points of an image that was checked, as [`check_and_index`] gives them; no pixel is made.
pub fn entry_points(bytes: &[u8]) -> Option<Vec<u8>> {
    let found = guard(Format::Jpeg.name(), || Ok(with_decoder(bytes, BaselineDecoder::entry_points)));
    found.ok().flatten()
}

/// Whether [`check`] says what libjpeg alone would say, word for word.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn check_is_libjpegs(bytes: &[u8], limits: &Limits) -> bool {
    match (check(bytes, limits), probe(bytes)) {
        (found, Ok(header)) if header.format == Format::Jpeg && limits.check(&header).is_ok() => {
            found.map(drop) == jpeg::decode(bytes, header).map(drop)
        }
        (found, Ok(_)) => found.map(drop) == decode(bytes, limits).map(drop),
        (found, Err(_)) => found.is_err(),
    }
}

/// `None`: not a baseline JPEG, a huge one, or one with something wrong.
fn checked_baseline(bytes: &[u8]) -> Option<Checked> {
    with_decoder(bytes, BaselineDecoder::check)
}

/// `None` also for what is no baseline JPEG, or a huge one.
fn with_decoder<T>(
    bytes: &[u8],
    work: impl FnOnce(&mut BaselineDecoder, &[u8], &Frame) -> Option<T>,
) -> Option<T> {
    let frame = Frame::parse(bytes)?;
    if frame.width * frame.height > MOST_KEPT_PIXELS {
        return None;
    }
    DECODER.with_borrow_mut(|slot| {
        // Taken out, so that a decoder that panics is not used again.
        let mut decoder = slot.take().unwrap_or_default();
        let found = work(&mut decoder, bytes, &frame);
        *slot = Some(decoder);
        found
    })
}

/// # Source
/// ITU-R BT.601, as in JPEG, in 16-bit fixed point.
pub fn luma(image: &DecodedImage) -> Luma {
    let weigh = |pixel: &[u8; 3]| {
        let [red, green, blue] = pixel.map(u32::from);
        ((19_595 * red + 38_470 * green + 7_471 * blue + (1 << 15)) >> 16) as u8
    };
    let values = image.rgb.as_chunks::<3>().0.iter().map(weigh).collect();
    Luma { width: image.width, height: image.height, values }
}

#[cfg(test)]
mod tests;
