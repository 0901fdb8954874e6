//! How an image is turned before it is shown: EXIF's orientation.
//!
//! Cameras store the rows as the sensor gave them, and a tag that says how to hold the result. Where the tag is, in which
//! order of precedence, and what each value does is as in Pillow's `ImageOps.exif_transpose`.

use serde::{Deserialize, Serialize};
use strum::{EnumMessage, VariantArray};

use super::{DecodedImage, Format, Luma, Region, exif, sniff};

/// What is done about EXIF's orientation.
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
    /// Applied or not.
    pub fn applied(is_applied: bool) -> Self {
        if is_applied { Self::Apply } else { Self::Ignore }
    }

    /// Whether it is applied.
    pub fn is_applied(self) -> bool {
        self == Self::Apply
    }

    /// How a file is to be turned.
    pub fn of(self, bytes: &[u8]) -> Orientation {
        match self {
            Self::Ignore => Orientation::default(),
            Self::Apply => Orientation::of(bytes),
        }
    }
}

/// One of the eight ways to hold a rectangle.
///
/// The default leaves it as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orientation {
    /// Columns of the upright image are rows of the stored one.
    transposed: bool,
    /// The stored column runs from right to left.
    from_right: bool,
    /// The stored row runs from bottom to top.
    from_bottom: bool,
}

impl Orientation {
    /// What a file asks for; of one that asks for nothing, or of a TIFF, which is always decoded upright, the default.
    pub fn of(bytes: &[u8]) -> Self {
        let tag = match sniff::format(bytes) {
            Ok(Format::Jpeg) => exif::of_jpeg(bytes),
            Ok(Format::Png) => exif::of_png(bytes),
            Ok(Format::Webp) => exif::of_webp(bytes),
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

    /// Whether nothing is to be done.
    pub(super) fn is_upright(self) -> bool {
        self == Self::default()
    }

    /// Columns and rows of the upright image, of those of the stored one or the other way round.
    #[must_use]
    pub fn size(self, (width, height): (u32, u32)) -> (u32, u32) {
        if self.transposed { (height, width) } else { (width, height) }
    }

    /// Where a region of the upright image is in the stored one, whose columns and rows these are.
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

    /// Turns `width` columns and `height` rows of stored values, row after row.
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
    /// The image upright.
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
    /// The brightness of the image upright.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// 2 columns, 3 rows.
    const STORED: &[u8] = b"abcdef";

    #[test]
    fn each_value_of_the_tag_turns_as_exif_says() {
        // What Pillow's `ImageOps.exif_transpose` makes of the rows ab, cd, ef.
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
}
