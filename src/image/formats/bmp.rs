//! Windows bitmaps, as Pillow reads them.
//!
//! # Source
//! Pillow, `BmpImagePlugin.py` and Unpack.c.

use super::{Palette, packed};
use crate::image::{Colour, DecodedImage, Format, Header, ImageError};

/// Number of bytes before the information header.
const FILE_HEADER: usize = 14;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    /// Indices of 1, 4 or 8 bits.
    Indexed,
    /// Runs of indices.
    RunLength,
    /// 16 bits, with the number of bits of green.
    Sixteen { green_bits: u32 },
    /// Whole bytes: their number, and the positions of red, green and blue.
    Bytes { count: usize, places: [usize; 3] },
}

#[derive(Clone, Copy, Debug)]
struct Layout {
    width: usize,
    height: usize,
    is_top_down: bool,
    bits: usize,
    coding: Coding,
    /// Palette: offset, number of colours, and bytes of each colour.
    palette: (usize, usize, usize),
    data: usize,
}

fn corrupt(reason: impl Into<String>) -> ImageError {
    ImageError::Corrupt { format: Format::Bmp.name(), reason: reason.into() }
}

fn cut() -> ImageError {
    corrupt("its end is missing")
}

fn long(bytes: &[u8], at: usize) -> Result<u32, ImageError> {
    let four = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>()).ok_or_else(cut)?;
    Ok(u32::from_le_bytes(*four))
}

fn word(bytes: &[u8], at: usize) -> Result<u16, ImageError> {
    let two = bytes.get(at..).and_then(|rest| rest.first_chunk::<2>()).ok_or_else(cut)?;
    Ok(u16::from_le_bytes(*two))
}

impl Layout {
    fn read(bytes: &[u8]) -> Result<Self, ImageError> {
        let offset = long(bytes, 10)? as usize;
        let header = long(bytes, FILE_HEADER)? as usize;
        let field = |at: usize| long(bytes, FILE_HEADER + at);
        let half = |at: usize| word(bytes, FILE_HEADER + at);
        let (width, height, is_top_down, bits, compression, colours, entry) = match header {
            12 => (u32::from(half(4)?), u32::from(half(6)?), false, half(10)?, 0, 0, 3),
            40 | 52 | 56 | 64 | 108 | 124 => {
                // Negative means that the first row comes first.
                let height = field(8)? as i32;
                let is_top_down = height >> 24 == -1;
                let rows = if is_top_down { height.unsigned_abs() } else { height as u32 };
                (field(4)?, rows, is_top_down, half(14)?, field(16)?, field(32)?, 4)
            }
            other => return Err(corrupt(format!("a header of {other} bytes is not supported"))),
        };
        let bits = usize::from(bits);
        let has_masks = compression == 3 && header == 40;
        let coding = match (compression, bits) {
            (0, 1 | 4 | 8) => Coding::Indexed,
            (1, 8) | (2, 4) => Coding::RunLength,
            (0, 16) => Coding::Sixteen { green_bits: 5 },
            (0, 24) => Coding::Bytes { count: 3, places: [2, 1, 0] },
            (0, 32) => Coding::Bytes { count: 4, places: [2, 1, 0] },
            (3, _) => {
                let mask = |index: usize| field(40 + 4 * index);
                Self::masked(bits, [mask(0)?, mask(1)?, mask(2)?])?
            }
            _ => {
                return Err(corrupt(format!("{bits} bits with compression {compression} are not supported")));
            }
        };
        let colours = if colours == 0 && bits <= 8 { 1 << bits } else { colours as usize };
        let palette = FILE_HEADER + header + if has_masks { 12 } else { 0 };
        // Some writers give an offset inside the palette.
        let is_wrong = offset == FILE_HEADER + header && bits <= 8;
        let data = if is_wrong { offset.saturating_add(entry * colours) } else { offset };
        Ok(Self {
            width: width as usize,
            height: height as usize,
            is_top_down,
            bits,
            coding,
            palette: (palette, colours.min(256), entry),
            data,
        })
    }

    /// Returns the encoding that the masks of the colours describe.
    fn masked(bits: usize, masks: [u32; 3]) -> Result<Coding, ImageError> {
        Ok(match (bits, masks) {
            (16, [0xF800, 0x7E0, 0x1F]) => Coding::Sixteen { green_bits: 6 },
            (16, [0x7C00, 0x3E0, 0x1F]) => Coding::Sixteen { green_bits: 5 },
            (24, [0xFF_0000, 0xFF00, 0xFF]) => Coding::Bytes { count: 3, places: [2, 1, 0] },
            (32, [0xFF_0000, 0xFF00, 0xFF] | [0, 0, 0]) => Coding::Bytes { count: 4, places: [2, 1, 0] },
            (32, [0xFF00_0000, 0xFF_0000, 0xFF00]) => Coding::Bytes { count: 4, places: [3, 2, 1] },
            (32, [0xFF00_0000, 0xFF00, 0xFF]) => Coding::Bytes { count: 4, places: [3, 1, 0] },
            (32, [0xFF, 0xFF00, 0xFF_0000]) => Coding::Bytes { count: 4, places: [0, 1, 2] },
            _ => return Err(corrupt(format!("{bits} bits with the masks {masks:x?} are not supported"))),
        })
    }

    fn pitch(&self) -> usize {
        (self.width * self.bits).div_ceil(32) * 4
    }
}

pub(crate) fn probe(bytes: &[u8]) -> Result<Header, ImageError> {
    let Layout { width, height, .. } = Layout::read(bytes)?;
    Ok(Header { format: Format::Bmp, width: width as u32, height: height as u32, colour: Colour::Rgb })
}

pub(crate) fn decode(bytes: &[u8]) -> Result<DecodedImage, ImageError> {
    let layout = Layout::read(bytes)?;
    let Layout { width, height, bits, .. } = layout;
    let data = bytes.get(layout.data..).ok_or_else(cut)?;
    let (start, colours, entry) = layout.palette;
    let palette = Palette::new(
        bytes.get(start..).unwrap_or_default().get(..colours * entry).unwrap_or_default(),
        entry,
    );
    let palette = palette.reversed();
    let mut rgb = Vec::with_capacity(width * height * 3);
    let mut append = |row: &[u8]| match layout.coding {
        Coding::Indexed => rgb.extend(packed(row, width, bits).flat_map(|index| palette.colour(index))),
        Coding::RunLength => rgb.extend(row.iter().flat_map(|&index| palette.colour(index))),
        Coding::Sixteen { green_bits } => {
            let pixels = row.as_chunks::<2>().0[..width].iter();
            rgb.extend(pixels.flat_map(|&pixel| sixteen(u16::from_le_bytes(pixel).into(), green_bits)));
        }
        Coding::Bytes { count, places } => {
            let pixels = row.chunks_exact(count).take(width);
            rgb.extend(pixels.flat_map(|pixel| places.map(|place| pixel[place])));
        }
    };
    let indices;
    let (rows, pitch) = if layout.coding == Coding::RunLength {
        indices = runs(data, width, height, bits)?;
        (indices.as_slice(), width)
    } else {
        (data, layout.pitch())
    };
    // The last row may lack its padding.
    let row = |index: usize| {
        let start = index * pitch;
        let end = (start + pitch).min(rows.len()).max(start);
        let needed = if layout.coding == Coding::RunLength { width } else { (width * bits).div_ceil(8) };
        rows.get(start..end).filter(|row| row.len() >= needed).ok_or_else(cut)
    };
    for index in 0..height {
        append(row(if layout.is_top_down { index } else { height - 1 - index })?);
    }
    Ok(DecodedImage { width: width as u32, height: height as u32, rgb })
}

/// Converts a pixel of 16 bits to red, green and blue.
fn sixteen(pixel: u32, green_bits: u32) -> [u8; 3] {
    let channel = |shift: u32, bits: u32| {
        let most = (1 << bits) - 1;
        ((pixel >> shift & most) * 255 / most) as u8
    };
    [channel(5 + green_bits, 5), channel(5, green_bits), channel(0, 5)]
}

/// Decodes runs to indices, row after row as stored.
///
/// # Errors
/// If the runs end before all pixels, as in Pillow: skipped pixels have index 0, but missing ones at the end are an
/// error.
fn runs(data: &[u8], width: usize, height: usize, bits: usize) -> Result<Vec<u8>, ImageError> {
    let total = width * height;
    let mut indices: Vec<u8> = Vec::with_capacity(total);
    let mut at = 0;
    let mut column = 0;
    let half = |byte: u8, index: usize| if index.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
    while indices.len() < total {
        let Some(&[count, byte]) = data.get(at..).and_then(|rest| rest.first_chunk()) else { break };
        at += 2;
        match (count, byte) {
            (0, 0) => {
                indices.resize(indices.len().next_multiple_of(width), 0);
                column = 0;
            }
            (0, 1) => break,
            (0, 2) => {
                let Some(&[right, up]) = data.get(at..).and_then(|rest| rest.first_chunk()) else { break };
                at += 2;
                let skipped = usize::from(right) + usize::from(up) * width;
                indices.resize((indices.len() + skipped).min(total), 0);
                column = indices.len() % width;
            }
            (0, count) => {
                let wanted = usize::from(count).min(total - indices.len());
                let stored = if bits == 4 { wanted.div_ceil(2) } else { wanted };
                let Some(literal) = data.get(at..at + stored) else { break };
                if bits == 4 {
                    indices.extend((0..wanted).map(|index| half(literal[index / 2], index)));
                } else {
                    indices.extend_from_slice(literal);
                }
                column += usize::from(count);
                at += stored.next_multiple_of(2);
            }
            (count, byte) => {
                let count = usize::from(count).min(width.saturating_sub(column)).min(total - indices.len());
                indices.extend((0..count).map(|index| if bits == 4 { half(byte, index) } else { byte }));
                column += count;
            }
        }
    }
    if indices.len() < total { Err(cut()) } else { Ok(indices) }
}
