//! The brightness of a picture alone: the cheapest look at it that reads every coefficient.

use std::cell::RefCell;

use super::baseline::{BaselineDecoder, Frame};
use super::{Colour, Format, Header, Limits, Picture, PictureError, jpeg, other, probe};

/// Larger pictures are left to libjpeg: the decoder's buffers are kept, one for each thread.
const MOST_KEPT_PIXELS: usize = 1 << 24;

thread_local! {
    static DECODER: RefCell<BaselineDecoder> = RefCell::default();
}

/// The brightness of a picture.
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

/// Checks a picture as [`super::decode`] does, but makes no colours: of a JPEG every coefficient is read and
/// only its brightness computed. What libjpeg refuses is refused, with its words, but whole baseline JPEGs never get
/// to it beyond their header.
///
/// # Errors
/// As [`super::decode`].
pub fn check(bytes: &[u8], limits: &Limits) -> Result<(Header, Luma), PictureError> {
    let header = probe(bytes)?;
    limits.check(&header)?;
    match (header.format, header.colour) {
        (Format::Jpeg, Colour::Grey | Colour::Rgb) => {
            let values = match baseline_luma(bytes) {
                Some(values) => values,
                None => jpeg::decode_grey(bytes, header)?,
            };
            Ok((header, Luma { width: header.width, height: header.height, values }))
        }
        (Format::Jpeg, Colour::Cmyk) => Ok((header, luma(&jpeg::decode(bytes, header)?))),
        (format, _) => Ok((header, luma(&other::decode(bytes, format, limits)?))),
    }
}

/// Whether [`check`] says what libjpeg alone would say, word for word and pixel for pixel.
#[cfg(any(test, fuzzing))]
pub(crate) fn check_is_libjpegs(bytes: &[u8], limits: &Limits) -> bool {
    let alone = |header: Header| match (header.format, header.colour) {
        (Format::Jpeg, Colour::Grey | Colour::Rgb) => Some(jpeg::decode_grey(bytes, header)),
        _ => None,
    };
    match (check(bytes, limits), probe(bytes)) {
        (found, Ok(header)) if limits.check(&header).is_ok() => {
            alone(header).is_none_or(|alone| found.map(|(_, luma)| luma.values) == alone)
        }
        (found, _) => found.is_err(),
    }
}

/// `None`: not a baseline JPEG, a huge one, or one with something wrong.
fn baseline_luma(bytes: &[u8]) -> Option<Vec<u8>> {
    let frame = Frame::parse(bytes)?;
    if frame.width * frame.height > MOST_KEPT_PIXELS {
        return None;
    }
    DECODER.with_borrow_mut(|decoder| decoder.check(bytes, &frame))
}

/// # Source
/// ITU-R BT.601, as in JPEG, in 16-bit fixed point.
pub fn luma(picture: &Picture) -> Luma {
    let weigh = |pixel: &[u8; 3]| {
        let [red, green, blue] = pixel.map(u32::from);
        ((19_595 * red + 38_470 * green + 7_471 * blue + (1 << 15)) >> 16) as u8
    };
    let values = picture.rgb.as_chunks::<3>().0.iter().map(weigh).collect();
    Luma { width: picture.width, height: picture.height, values }
}

#[cfg(test)]
mod tests;
