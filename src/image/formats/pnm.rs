//! Portable bitmaps, graymaps and pixmaps (P1 to P6), as Pillow reads them.
//!
//! # Source
//! Pillow, `PpmImagePlugin.py`: values are scaled to 255 and rounded half to even; grey with more than 8 bits
//! is clamped to 255.

use crate::image::{Colour, DecodedImage, Format, Header, ImageError};

/// Maximum number of digits of a number.
const MOST_DIGITS: usize = 10;

#[derive(Clone, Copy, Debug)]
struct Layout {
    width: usize,
    height: usize,
    /// Number of values of a pixel: one or three.
    samples: usize,
    /// Largest value; `None` for a bitmap.
    largest: Option<u32>,
    is_text: bool,
    data: usize,
}

fn corrupt(reason: impl Into<String>) -> ImageError {
    ImageError::Corrupt { format: Format::Pnm.name(), reason: reason.into() }
}

fn cut() -> ImageError {
    corrupt("its end is missing")
}

/// Behaves like Python's `bytes.isspace`.
fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0B
}

/// Skips spaces and comments; returns the offset after them.
fn skip(bytes: &[u8], mut at: usize) -> usize {
    let mut is_comment = false;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\r' | b'\n' => is_comment = false,
            b'#' => is_comment = true,
            byte if !is_comment && !is_space(byte) => break,
            _ => {}
        }
        at += 1;
    }
    at
}

/// Parses a number; returns it and the offset after it.
fn number(bytes: &[u8], at: usize) -> Result<(u32, usize), ImageError> {
    let start = skip(bytes, at);
    let digits = bytes[start..].iter().take_while(|&&byte| !is_space(byte) && byte != b'#').count();
    if digits == 0 {
        return Err(cut());
    }
    let text = &bytes[start..start + digits.min(MOST_DIGITS + 1)];
    let number = text.iter().all(u8::is_ascii_digit).then(|| std::str::from_utf8(text).ok()?.parse().ok());
    let number = number.flatten().filter(|_| digits <= MOST_DIGITS);
    let shown = || String::from_utf8_lossy(text).into_owned();
    Ok((
        number.ok_or_else(|| corrupt(format!("{:?} is not a number that fits here", shown())))?,
        start + digits,
    ))
}

impl Layout {
    fn read(bytes: &[u8]) -> Result<Self, ImageError> {
        let kind = bytes.get(1).copied().unwrap_or_default();
        let (width, at) = number(bytes, 2)?;
        let (height, at) = number(bytes, at)?;
        let (largest, at) = if matches!(kind, b'1' | b'4') {
            (None, at)
        } else {
            let (largest, at) = number(bytes, at)?;
            (Some(largest), at)
        };
        if largest.is_some_and(|largest| largest == 0 || largest > 65_535) {
            return Err(corrupt("its largest value is not in 1..=65535"));
        }
        Ok(Self {
            width: width as usize,
            height: height as usize,
            samples: if matches!(kind, b'3' | b'6') { 3 } else { 1 },
            largest,
            is_text: matches!(kind, b'1'..=b'3'),
            // A single space precedes the data.
            data: at + 1,
        })
    }
}

pub(crate) fn probe(bytes: &[u8]) -> Result<Header, ImageError> {
    let Layout { width, height, samples, .. } = Layout::read(bytes)?;
    let colour = if samples == 1 { Colour::Grey } else { Colour::Rgb };
    Ok(Header { format: Format::Pnm, width: width as u32, height: height as u32, colour })
}

pub(crate) fn decode(bytes: &[u8]) -> Result<DecodedImage, ImageError> {
    let layout = Layout::read(bytes)?;
    let data = bytes.get(layout.data..).unwrap_or_default();
    let count = layout.width * layout.height * layout.samples;
    let values = match (layout.largest, layout.is_text) {
        (None, true) => text_bits(data, count)?,
        (None, false) => binary_bits(data, layout.width, layout.height)?,
        (Some(largest), true) => text_values(data, count, largest, layout.samples)?,
        (Some(largest), false) => binary_values(data, count, largest, layout.samples)?,
    };
    let rgb =
        if layout.samples == 3 { values } else { values.into_iter().flat_map(|value| [value; 3]).collect() };
    Ok(DecodedImage { width: layout.width as u32, height: layout.height as u32, rgb })
}

/// Scales a value to a byte.
fn scaled(value: u32, largest: u32, samples: usize) -> u8 {
    let most = if largest > 255 && samples == 1 { 65_535.0 } else { 255.0 };
    let value = (f64::from(value) / f64::from(largest) * most).round_ties_even();
    // Pillow clamps its 32-bit numbers to bytes.
    value.min(255.0) as u8
}

fn binary_values(data: &[u8], count: usize, largest: u32, samples: usize) -> Result<Vec<u8>, ImageError> {
    if largest > 255 {
        let words = data.as_chunks::<2>().0.get(..count).ok_or_else(cut)?;
        return Ok(words
            .iter()
            .map(|&word| scaled(u16::from_be_bytes(word).into(), largest, samples))
            .collect());
    }
    let table: [u8; 256] = std::array::from_fn(|value| scaled(value as u32, largest, samples));
    let bytes = data.get(..count).ok_or_else(cut)?;
    Ok(bytes.iter().map(|&value| table[usize::from(value)]).collect())
}

/// Decodes bits, of which 1 is black.
fn binary_bits(data: &[u8], width: usize, height: usize) -> Result<Vec<u8>, ImageError> {
    let pitch = width.div_ceil(8);
    let rows = data.get(..pitch * height).ok_or_else(cut)?.chunks_exact(pitch);
    Ok(rows.flat_map(|row| super::packed(row, width, 1)).map(|bit| 255 * (1 - bit)).collect())
}

fn text_values(data: &[u8], count: usize, largest: u32, samples: usize) -> Result<Vec<u8>, ImageError> {
    // A value takes at least a digit and a space.
    let mut values = Vec::with_capacity(count.min(data.len() / 2 + 1));
    let mut at = 0;
    while values.len() < count {
        let (value, behind) = number(data, at)?;
        if value > largest {
            return Err(corrupt(format!("{value} is more than its largest value, {largest}")));
        }
        values.push(scaled(value, largest, samples));
        at = behind;
    }
    Ok(values)
}

fn text_bits(data: &[u8], count: usize) -> Result<Vec<u8>, ImageError> {
    let mut values = Vec::with_capacity(count.min(data.len()));
    let mut at = 0;
    while values.len() < count {
        at = skip(data, at);
        match data.get(at) {
            Some(b'0') => values.push(255),
            Some(b'1') => values.push(0),
            Some(other) => return Err(corrupt(format!("{:?} is not 0 or 1", char::from(*other)))),
            None => return Err(cut()),
        }
        at += 1;
    }
    Ok(values)
}
