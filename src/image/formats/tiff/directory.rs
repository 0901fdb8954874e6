//! The first directory of a TIFF or BigTIFF.

use super::corrupt;
use crate::image::ImageError;

/// A tag's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag(u16);

impl Tag {
    pub(super) const WIDTH: Self = Self(256);
    pub(super) const HEIGHT: Self = Self(257);
    pub(super) const BITS: Self = Self(258);
    pub(super) const COMPRESSION: Self = Self(259);
    pub(super) const PHOTOMETRIC: Self = Self(262);
    pub(super) const FILL_ORDER: Self = Self(266);
    pub(super) const STRIP_OFFSETS: Self = Self(273);
    pub(super) const ORIENTATION: Self = Self(274);
    pub(super) const SAMPLES: Self = Self(277);
    pub(super) const ROWS_PER_STRIP: Self = Self(278);
    pub(super) const STRIP_LENGTHS: Self = Self(279);
    pub(super) const PLANAR: Self = Self(284);
    pub(super) const PREDICTOR: Self = Self(317);
    pub(super) const COLOUR_MAP: Self = Self(320);
    pub(super) const TILE_WIDTH: Self = Self(322);
    pub(super) const TILE_HEIGHT: Self = Self(323);
    pub(super) const TILE_OFFSETS: Self = Self(324);
    pub(super) const TILE_LENGTHS: Self = Self(325);
    pub(super) const EXTRA_SAMPLES: Self = Self(338);
    pub(super) const SAMPLE_FORMAT: Self = Self(339);
    pub(super) const JPEG_TABLES: Self = Self(347);
    pub(super) const SUBSAMPLING: Self = Self(530);
}

/// Tags and where their values are.
#[derive(Clone, Debug)]
pub(super) struct Directory<'a> {
    /// Whether the first byte of a number is the highest.
    pub(super) is_big: bool,
    /// Tag, type and value.
    entries: Vec<(Tag, u16, &'a [u8])>,
}

fn cut() -> ImageError {
    corrupt("its directory is cut")
}

fn number(bytes: &[u8], is_big: bool) -> u64 {
    let add = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
    if is_big { bytes.iter().fold(0, add) } else { bytes.iter().rev().fold(0, add) }
}

/// Bytes of a value.
fn size_of(kind: u16) -> usize {
    match kind {
        1 | 2 | 6 | 7 => 1,
        3 | 8 => 2,
        5 | 10 | 12 | 16 | 17 | 18 => 8,
        _ => 4,
    }
}

impl<'a> Directory<'a> {
    /// # Errors
    /// If the header or the directory is cut; a tag whose values are outside the file counts as absent.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let is_big = bytes.starts_with(b"MM");
        let take = |at: usize, len: usize| bytes.get(at..at.checked_add(len)?);
        let read = |at: usize, len: usize| take(at, len).map(|found| number(found, is_big)).ok_or_else(cut);
        let is_long = read(2, 2)? == 43;
        let word = if is_long { 8 } else { 4 };
        let start = if is_long { read(8, 8)? } else { read(4, 4)? } as usize;
        let count = read(start, if is_long { 8 } else { 2 })? as usize;
        let (first, step) = (start + if is_long { 8 } else { 2 }, 4 + 2 * word);
        let mut entries = Vec::new();
        for entry in 0..count {
            let at = entry.checked_mul(step).and_then(|offset| first.checked_add(offset)).ok_or_else(cut)?;
            let (tag, kind) = (read(at, 2)? as u16, read(at + 2, 2)? as u16);
            let values = read(at + 4, word)? as usize;
            let len = values.checked_mul(size_of(kind));
            let place = match len {
                Some(len) if len <= word => at + 4 + word,
                _ => read(at + 4 + word, word)? as usize,
            };
            if let Some(found) = len.and_then(|len| take(place, len)) {
                entries.push((Tag(tag), kind, found));
            }
        }
        Ok(Self { is_big, entries })
    }

    pub(super) fn has(&self, tag: Tag) -> bool {
        self.entries.iter().any(|(found, ..)| *found == tag)
    }

    /// The values of a tag, if it is there.
    pub(super) fn numbers(&self, tag: Tag) -> Result<Option<Vec<u64>>, ImageError> {
        let Some((_, kind, values)) = self.entries.iter().find(|(found, ..)| *found == tag) else {
            return Ok(None);
        };
        if !matches!(kind, 1 | 3 | 4 | 13 | 16 | 18) {
            return Err(corrupt(format!("tag {} has values of type {kind}", tag.0)));
        }
        Ok(Some(values.chunks_exact(size_of(*kind)).map(|value| number(value, self.is_big)).collect()))
    }

    /// The first value of a tag.
    pub(super) fn number(&self, tag: Tag) -> Result<Option<u64>, ImageError> {
        Ok(self.numbers(tag)?.and_then(|values| values.first().copied()))
    }

    /// The bytes of a tag.
    pub(super) fn bytes(&self, tag: Tag) -> Result<Option<&'a [u8]>, ImageError> {
        Ok(self.entries.iter().find(|(found, ..)| *found == tag).map(|(_, _, values)| *values))
    }
}
