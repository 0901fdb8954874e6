//! The orientation tag of a file.
//!
//! EXIF is a TIFF directory; XMP, a text that some programs write instead, counts where EXIF does not say anything.

use super::formats::{jpeg, png, webp};

const ORIENTATION: u16 = 0x112;
/// Bytes of text before the tag's value in XMP, as an attribute and as an element.
const XMP_FORMS: [&[u8]; 2] = [b"tiff:Orientation=\"", b"tiff:Orientation>"];

pub(super) fn of_jpeg(bytes: &[u8]) -> Option<u16> {
    let mut exif = Vec::new();
    let mut xmp = None;
    for segment in jpeg::header_segments(bytes).filter(|segment| segment.marker == 0xE1) {
        // Long EXIF is cut into segments.
        if let Some(part) = segment.payload.strip_prefix(b"Exif\0\0") {
            exif.extend_from_slice(part);
        } else if let Some(text) = segment.payload.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0") {
            xmp = Some(text);
        }
    }
    of_tiff(&exif).or_else(|| of_xmp(xmp?))
}

pub(super) fn of_png(bytes: &[u8]) -> Option<u16> {
    let chunks = || png::chunks(bytes);
    let exif = chunks().find(|chunk| chunk.kind == b"eXIf").and_then(|chunk| of_tiff(chunk.data));
    exif.or_else(|| {
        let xmp = |data: &[u8]| data.starts_with(b"XML:com.adobe.xmp\0");
        of_xmp(chunks().find(|chunk| chunk.kind == b"iTXt" && xmp(chunk.data))?.data)
    })
}

pub(super) fn of_webp(bytes: &[u8]) -> Option<u16> {
    let chunk = |kind: &[u8; 4]| webp::chunks(bytes).find(|chunk| chunk.kind == kind).map(|chunk| chunk.data);
    let exif = chunk(b"EXIF").and_then(of_tiff);
    exif.or_else(|| of_xmp(chunk(b"XMP ")?))
}

/// The tag in a TIFF directory, with or without the name before it.
fn of_tiff(bytes: &[u8]) -> Option<u16> {
    let bytes = bytes.strip_prefix(b"Exif\0\0").unwrap_or(bytes);
    let bytes = bytes.strip_prefix(b"Exif\0\0").unwrap_or(bytes);
    let is_big = match bytes.get(..2)? {
        b"MM" => true,
        b"II" => false,
        _ => return None,
    };
    let word = |at: usize| {
        let pair = bytes.get(at..)?.first_chunk::<2>()?;
        Some(if is_big { u16::from_be_bytes(*pair) } else { u16::from_le_bytes(*pair) })
    };
    let long = |at: usize| {
        let four = bytes.get(at..)?.first_chunk::<4>()?;
        Some(if is_big { u32::from_be_bytes(*four) } else { u32::from_le_bytes(*four) })
    };
    let directory = long(4)? as usize;
    let entries = usize::from(word(directory)?);
    for entry in 0..entries {
        let at = directory.checked_add(2 + 12 * entry)?;
        if word(at)? != ORIENTATION || long(at + 4)? != 1 {
            continue;
        }
        return match word(at + 2)? {
            3 | 8 => word(at + 8),
            4 | 9 => u16::try_from(long(at + 8)?).ok(),
            _ => None,
        };
    }
    None
}

fn of_xmp(text: &[u8]) -> Option<u16> {
    let places = XMP_FORMS.iter().filter_map(|form| Some(memchr::memmem::find(text, form)? + form.len()));
    let digit = text.get(places.min()?).filter(|digit| digit.is_ascii_digit())?;
    Some(u16::from(digit - b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_is_read_in_either_byte_order_and_from_xmp() {
        let little = b"II*\0\x08\0\0\0\x02\0\x00\x01\x03\0\x01\0\0\0\x09\0\0\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        let big = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0\0\0\0\0";
        assert_eq!((of_tiff(little), of_tiff(big)), (Some(6), Some(8)));
        assert_eq!(of_xmp(b"<x tiff:Orientation=\"3\"/>"), Some(3));
        assert_eq!(of_xmp(b"<tiff:Orientation>5</tiff:Orientation>"), Some(5));
    }

    #[test]
    fn a_cut_or_looping_directory_says_nothing() {
        let whole = b"II*\0\x08\0\0\0\xFF\xFF\x12\x01\x03\0\x01\0\0\0";
        for end in 0..whole.len() {
            assert_eq!(of_tiff(&whole[..end]), None);
        }
        assert_eq!(of_tiff(b"II*\0\xFF\xFF\xFF\xFF"), None);
    }
}
