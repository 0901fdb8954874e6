//! EXIF orientation: the transform that makes an image upright.
//!
//! Cameras store the rows in the sensor's order, with a tag for the upright view. EXIF is a TIFF directory; XMP, a text
//! that some programs write instead, counts if EXIF has no tag. Position, precedence and meaning of the tag are as in
//! Pillow's `ImageOps.exif_transpose`.

use serde::{Deserialize, Serialize};
use strum::{EnumMessage, VariantArray};

use super::formats::{jpeg, png, recognise, webp};
use super::{DecodedImage, Format, Luma, Region};

const ORIENTATION: u16 = 0x112;
/// Text before the tag's value in XMP, as an attribute and as an element.
const XMP_FORMS: [&[u8]; 2] = [b"tiff:Orientation=\"", b"tiff:Orientation>"];

/// Treatment of EXIF orientation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, EnumMessage, VariantArray)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum ExifOrientation {
    /// Nothing, as by torchvision and Pillow: pixels are as they are stored.
    #[default]
    Ignore,
    /// Images are seen upright; their bytes stay as they are.
    Apply,
}

impl ExifOrientation {
    /// Returns `Apply` if `is_applied`, else `Ignore`.
    pub fn applied(is_applied: bool) -> Self {
        if is_applied { Self::Apply } else { Self::Ignore }
    }

    /// Returns whether the orientation is applied.
    pub fn is_applied(self) -> bool {
        self == Self::Apply
    }

    /// Returns the orientation to apply to a file.
    pub fn of(self, bytes: &[u8]) -> Orientation {
        match self {
            Self::Ignore => Orientation::default(),
            Self::Apply => Orientation::of(bytes),
        }
    }
}

/// One of the eight orientations of a rectangle.
///
/// The default changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orientation {
    /// Whether columns of the upright image are rows of the stored one.
    transposed: bool,
    /// Whether the stored columns run from right to left.
    from_right: bool,
    /// Whether the stored rows run from bottom to top.
    from_bottom: bool,
}

impl Orientation {
    /// Reads the tag of a file; the default if it has none, or for a TIFF, which is always decoded upright.
    pub fn of(bytes: &[u8]) -> Self {
        let tag = match recognise(bytes) {
            Ok(Format::Jpeg) => of_jpeg(bytes),
            Ok(Format::Png) => of_png(bytes),
            Ok(Format::Webp) => of_webp(bytes),
            _ => None,
        };
        tag.map_or_else(Self::default, Self::from_tag)
    }

    /// # Source
    /// TIFF 6.0, tag 274; EXIF 2.3, section 4.6.4.
    pub(super) fn from_tag(tag: u16) -> Self {
        Self {
            transposed: matches!(tag, 5..=8),
            from_right: matches!(tag, 2 | 3 | 7 | 8),
            from_bottom: matches!(tag, 3 | 4 | 6 | 7),
        }
    }

    /// Returns whether the orientation changes nothing.
    pub(super) fn is_upright(self) -> bool {
        self == Self::default()
    }

    /// Returns width and height of the upright image from those of the stored one; the inverse is the same.
    #[must_use]
    pub fn size(self, (width, height): (u32, u32)) -> (u32, u32) {
        if self.transposed { (height, width) } else { (width, height) }
    }

    /// Returns the region of the stored image, of this width and height, that a region of the upright image shows.
    pub(super) fn stored_region(self, region: Region, (width, height): (u32, u32)) -> Region {
        let Region { left, top, width: columns, height: rows } = region;
        let (left, top, columns, rows) =
            if self.transposed { (top, left, rows, columns) } else { (left, top, columns, rows) };
        Region {
            left: if self.from_right { width as usize - left - columns } else { left },
            top: if self.from_bottom { height as usize - top - rows } else { top },
            width: columns,
            height: rows,
        }
    }

    /// Turns stored values of `width` columns and `height` rows upright, row after row.
    pub(super) fn turn<T: Copy>(self, stored: &[T], width: usize, height: usize) -> Vec<T> {
        let (columns, rows) = if self.transposed { (height, width) } else { (width, height) };
        let mut upright = Vec::with_capacity(stored.len());
        for y in 0..rows {
            for x in 0..columns {
                let (column, row) = if self.transposed { (y, x) } else { (x, y) };
                let column = if self.from_right { width - 1 - column } else { column };
                let row = if self.from_bottom { height - 1 - row } else { row };
                upright.push(stored[row * width + column]);
            }
        }
        upright
    }
}

impl DecodedImage {
    /// Turns the image upright.
    #[must_use]
    pub fn turned(self, orientation: Orientation) -> Self {
        if orientation.is_upright() {
            return self;
        }
        let (width, height) = orientation.size((self.width, self.height));
        let pixels = self.rgb.as_chunks::<3>().0;
        let rgb = orientation.turn(pixels, self.width as usize, self.height as usize).into_flattened();
        Self { width, height, rgb }
    }
}

impl Luma {
    /// Turns the luma upright.
    #[must_use]
    pub fn turned(self, orientation: Orientation) -> Self {
        if orientation.is_upright() {
            return self;
        }
        let (width, height) = orientation.size((self.width, self.height));
        let values = orientation.turn(&self.values, self.width as usize, self.height as usize);
        Self { width, height, values }
    }
}

fn of_jpeg(bytes: &[u8]) -> Option<u16> {
    let mut exif = Vec::new();
    let mut xmp = None;
    for segment in jpeg::header_segments(bytes).filter(|segment| segment.marker == 0xE1) {
        // EXIF that exceeds a segment continues in the next.
        if let Some(part) = segment.payload.strip_prefix(b"Exif\0\0") {
            exif.extend_from_slice(part);
        } else if let Some(text) = segment.payload.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0") {
            xmp = Some(text);
        }
    }
    of_tiff(&exif).or_else(|| of_xmp(xmp?))
}

fn of_png(bytes: &[u8]) -> Option<u16> {
    let chunks = || png::chunks(bytes);
    let exif = chunks().find(|chunk| chunk.kind == b"eXIf").and_then(|chunk| of_tiff(chunk.data));
    exif.or_else(|| {
        let xmp = |data: &[u8]| data.starts_with(b"XML:com.adobe.xmp\0");
        of_xmp(chunks().find(|chunk| chunk.kind == b"iTXt" && xmp(chunk.data))?.data)
    })
}

fn of_webp(bytes: &[u8]) -> Option<u16> {
    let chunk = |kind: &[u8; 4]| webp::chunks(bytes).find(|chunk| chunk.kind == kind).map(|chunk| chunk.data);
    let exif = chunk(b"EXIF").and_then(of_tiff);
    exif.or_else(|| of_xmp(chunk(b"XMP ")?))
}

/// Reads the tag from a TIFF directory, with or without the name before it.
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

    /// Three rows of two values.
    const STORED: &[u8] = b"abcdef";

    #[test]
    fn each_value_of_the_tag_turns_as_exif_says() {
        // Results of Pillow's `ImageOps.exif_transpose` for the rows ab, cd, ef.
        let expected = ["abcdef", "badcfe", "fedcba", "efcdab", "acebdf", "ecafdb", "fdbeca", "bdface"];
        for (tag, expected) in (1..).zip(expected) {
            let upright = Orientation::from_tag(tag).turn(STORED, 2, 3);
            assert_eq!(upright, expected.as_bytes(), "{tag}");
        }
        assert!(Orientation::from_tag(0).is_upright() && Orientation::from_tag(9).is_upright());
    }

    #[test]
    fn a_region_of_the_upright_image_is_one_of_the_stored_image() {
        let (width, height) = (5_usize, 4_usize);
        let stored: Vec<u8> = (0..20).collect();
        for tag in 1..=8 {
            let orientation = Orientation::from_tag(tag);
            let upright = orientation.turn(&stored, width, height);
            let (columns, rows) = orientation.size((5, 4));
            for left in 0..columns as usize {
                for top in 0..rows as usize {
                    let region = Region {
                        left,
                        top,
                        width: columns as usize - left,
                        height: 1.max((rows as usize - top) / 2),
                    };
                    let cut = |values: &[u8], pitch: usize, region: Region| -> Vec<u8> {
                        let lines = region.top..region.top + region.height;
                        lines
                            .flat_map(|row| values[row * pitch + region.left..][..region.width].to_vec())
                            .collect()
                    };
                    let from = orientation.stored_region(region, (5, 4));
                    let found = orientation.turn(&cut(&stored, width, from), from.width, from.height);
                    assert_eq!(found, cut(&upright, columns as usize, region), "{tag} {region:?}");
                }
            }
        }
    }

    #[test]
    fn the_tag_is_read_in_either_byte_order_and_from_xmp() {
        let little = b"II*\0\x08\0\0\0\x02\0\x00\x01\x03\0\x01\0\0\0\x09\0\0\0\
                       \x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
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
