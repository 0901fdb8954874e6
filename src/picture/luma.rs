//! The brightness of a picture alone: the cheapest look at it that reads every coefficient.

use super::{Colour, Format, Header, Limits, Picture, PictureError, jpeg, other, probe};

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
/// only its brightness computed, which costs a fifth less.
///
/// # Errors
/// As [`super::decode`].
pub fn check(bytes: &[u8], limits: &Limits) -> Result<(Header, Luma), PictureError> {
    let header = probe(bytes)?;
    limits.check(&header)?;
    match (header.format, header.colour) {
        (Format::Jpeg, Colour::Grey | Colour::Rgb) => {
            let values = jpeg::decode_grey(bytes, header)?;
            Ok((header, Luma { width: header.width, height: header.height, values }))
        }
        (Format::Jpeg, Colour::Cmyk) => Ok((header, luma(&jpeg::decode(bytes, header)?))),
        (format, _) => Ok((header, luma(&other::decode(bytes, format, limits)?))),
    }
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
