//! Entry points: bits of a JPEG's entropy-coded data at which decoding can start.
//!
//! Huffman codes are read front to back, and a block's DC value is a difference from the one before. With the first bit
//! of an MCU and the previous DC values, decoding can start at this MCU. There is an entry point for every
//! [`STEP_PIXELS`] of each row of MCUs. They are trusted to belong to their image, as the dataset's digests ensure.
//! Wrong ones give wrong pixels or a full decode; nothing outside of the file is read.
//!
//! The bytes, little-endian: the version; for each row of MCUs a u32, the bit of the file at which the row begins, and
//! for each entry point a u16, the bits since the previous one (0 for the first), and an i16 for each component, the
//! previous DC value; last a u32, the bit at which the data end.

use std::ops::Range;

use super::header::{Frame, MOST_COMPONENTS};

/// Number of pixels of a row from one entry point to the next; half of it doubles the bytes and gains nothing.
const STEP_PIXELS: usize = 64;
const VERSION: u8 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EntryPoint {
    /// Bit, counted from the start of the file.
    pub(super) bit: usize,
    /// By component: the previous DC value.
    pub(super) dc: [i32; MOST_COMPONENTS],
}

/// Numbers of an image's entry points, and the layout of their bytes.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// Number of MCUs from one entry point to the next.
    step: usize,
    /// Number of entry points in a row.
    across: usize,
    rows: usize,
    components: usize,
}

impl Shape {
    fn of(frame: &Frame) -> Self {
        let (across, rows) = frame.mcus();
        let step = step(frame);
        Self { step, across: across.div_ceil(step), rows, components: frame.sampling.components() }
    }

    fn entry_bytes(self) -> usize {
        2 + 2 * self.components
    }

    fn row_bytes(self) -> usize {
        4 + self.across * self.entry_bytes()
    }

    fn bytes(self) -> usize {
        1 + self.rows * self.row_bytes() + 4
    }
}

/// Returns the number of MCUs from one entry point to the next, a power of two.
pub(super) fn step(frame: &Frame) -> usize {
    STEP_PIXELS / (8 * frame.sampling.luma_blocks().0)
}

/// Encodes the entry points of an image for storage; the image's data end at bit `end` of the file.
///
/// `None` if a number is too large, as in a file of 512 MiB or more.
pub(super) fn encode(
    frame: &Frame,
    points: impl ExactSizeIterator<Item = EntryPoint>,
    end: usize,
) -> Option<Vec<u8>> {
    let shape = Shape::of(frame);
    if points.len() != shape.across * shape.rows {
        return None;
    }
    let mut bytes = Vec::with_capacity(shape.bytes());
    bytes.push(VERSION);
    let mut before = 0;
    for (number, point) in points.enumerate() {
        if number % shape.across == 0 {
            bytes.extend_from_slice(&u32::try_from(point.bit).ok()?.to_le_bytes());
            before = point.bit;
        }
        bytes.extend_from_slice(&u16::try_from(point.bit.checked_sub(before)?).ok()?.to_le_bytes());
        before = point.bit;
        for &dc in &point.dc[..shape.components] {
            bytes.extend_from_slice(&i16::try_from(dc).ok()?.to_le_bytes());
        }
    }
    bytes.extend_from_slice(&u32::try_from(end).ok()?.to_le_bytes());
    Some(bytes)
}

#[derive(Clone, Copy, Debug)]
pub(super) struct EntryPoints<'a> {
    bytes: &'a [u8],
    shape: Shape,
}

impl<'a> EntryPoints<'a> {
    /// Parses entry points; `None` if they cannot belong to the image.
    pub(super) fn of(frame: &Frame, bytes: &'a [u8]) -> Option<Self> {
        let shape = Shape::of(frame);
        let (&version, rest) = bytes.split_first()?;
        let is_its_own = version == VERSION && bytes.len() == shape.bytes() && frame.restart_interval == 0;
        is_its_own.then_some(Self { bytes: rest, shape })
    }

    /// Returns the MCU of a row at which decoding starts for the MCU `column`.
    pub(super) fn first(self, column: usize) -> usize {
        column / self.shape.step * self.shape.step
    }

    /// Returns the entry point for some MCUs of a row, and a bit at or after their end.
    pub(super) fn span(self, row: usize, columns: &Range<usize>) -> Option<(EntryPoint, usize)> {
        let Self { bytes, shape } = self;
        let stored = bytes.get(row * shape.row_bytes()..)?;
        let size = shape.entry_bytes();
        let entry = |at: usize| stored.get(4 + at * size..4 + (at + 1) * size);
        let number = |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]);
        let start = |bytes: &[u8]| Some(u32::from_le_bytes(*bytes.first_chunk()?) as usize);
        let (first, last) = (columns.start / shape.step, columns.end.div_ceil(shape.step));
        let mut bit = start(stored)?;
        for at in 1..=first {
            bit += usize::from(number(entry(at)?));
        }
        let mut point = EntryPoint { bit, dc: [0; MOST_COMPONENTS] };
        for (dc, stored) in point.dc.iter_mut().zip(entry(first)?[2..].chunks_exact(2)) {
            *dc = i32::from(number(stored) as i16);
        }
        if last >= shape.across {
            return Some((point, start(stored.get(shape.row_bytes()..)?)?));
        }
        for at in first + 1..=last {
            bit += usize::from(number(entry(at)?));
        }
        Some((point, bit))
    }
}
