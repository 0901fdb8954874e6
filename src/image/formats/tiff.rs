//! TIFF: the first page, as Pillow reads it.
//!
//! The libraries of their compressions unpack strips and tiles, which are assembled here. So the pixels of a JPEG
//! strip are libjpeg's, and one loop handles every layout of planes and tiles.
//!
//! # Source
//! TIFF 6.0; conversion of each kind of sample: Pillow, `TiffImagePlugin.py` (`OPEN_INFO`), Unpack.c and Convert.c. The
//! orientation tag is applied, as by Pillow.

mod unpack;

use self::unpack::{Chunk, unpack};
use super::Palette;
use crate::image::orientation::Orientation;
use crate::image::{Colour, DecodedImage, Format, Header, ImageError, jpeg};

/// Maximum number of samples of a pixel: four inks and two more.
const MOST_SAMPLES: usize = 6;
/// Maximum ratio of a tile's pixels to those of its image, if above [`LEAST_TILE_PIXELS`].
const MOST_TILE_SHARE: usize = 4;
const LEAST_TILE_PIXELS: usize = 1 << 20;

fn corrupt(reason: impl Into<String>) -> ImageError {
    ImageError::Corrupt { format: Format::Tiff.name(), reason: reason.into() }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tag(u16);

impl Tag {
    const WIDTH: Self = Self(256);
    const HEIGHT: Self = Self(257);
    const BITS: Self = Self(258);
    const COMPRESSION: Self = Self(259);
    const PHOTOMETRIC: Self = Self(262);
    const FILL_ORDER: Self = Self(266);
    const STRIP_OFFSETS: Self = Self(273);
    const ORIENTATION: Self = Self(274);
    const SAMPLES: Self = Self(277);
    const ROWS_PER_STRIP: Self = Self(278);
    const STRIP_LENGTHS: Self = Self(279);
    const PLANAR: Self = Self(284);
    const PREDICTOR: Self = Self(317);
    const COLOUR_MAP: Self = Self(320);
    const TILE_WIDTH: Self = Self(322);
    const TILE_HEIGHT: Self = Self(323);
    const TILE_OFFSETS: Self = Self(324);
    const TILE_LENGTHS: Self = Self(325);
    const EXTRA_SAMPLES: Self = Self(338);
    const SAMPLE_FORMAT: Self = Self(339);
    const JPEG_TABLES: Self = Self(347);
    const SUBSAMPLING: Self = Self(530);
}

/// Tags of a page, with their values.
#[derive(Clone, Debug)]
struct Directory<'a> {
    /// Whether numbers are big-endian.
    is_big: bool,
    /// Tag, type and bytes of the values.
    entries: Vec<(Tag, u16, &'a [u8])>,
}

fn cut_directory() -> ImageError {
    corrupt("its directory is cut")
}

fn number(bytes: &[u8], is_big: bool) -> u64 {
    let add = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
    if is_big { bytes.iter().fold(0, add) } else { bytes.iter().rev().fold(0, add) }
}

/// Returns the number of bytes of a value.
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
    fn read(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let is_big = bytes.starts_with(b"MM");
        let take = |at: usize, len: usize| bytes.get(at..at.checked_add(len)?);
        let read = |at: usize, len: usize| {
            take(at, len).map(|found| number(found, is_big)).ok_or_else(cut_directory)
        };
        let is_long = read(2, 2)? == 43;
        let word = if is_long { 8 } else { 4 };
        let start = if is_long { read(8, 8)? } else { read(4, 4)? } as usize;
        let count = read(start, if is_long { 8 } else { 2 })? as usize;
        let (first, step) = (start + if is_long { 8 } else { 2 }, 4 + 2 * word);
        let mut entries = Vec::new();
        for entry in 0..count {
            let at = entry
                .checked_mul(step)
                .and_then(|offset| first.checked_add(offset))
                .ok_or_else(cut_directory)?;
            let (tag, kind) = (read(at, 2)? as u16, read(at + 2, 2)? as u16);
            let values = read(at + 4, word)? as usize;
            let len = values.checked_mul(size_of(kind));
            let start = match len {
                Some(len) if len <= word => at + 4 + word,
                _ => read(at + 4 + word, word)? as usize,
            };
            if let Some(found) = len.and_then(|len| take(start, len)) {
                entries.push((Tag(tag), kind, found));
            }
        }
        Ok(Self { is_big, entries })
    }

    /// Returns the type and the bytes of a tag, if present.
    fn find(&self, tag: Tag) -> Option<(u16, &'a [u8])> {
        let found = self.entries.iter().find(|(found, ..)| *found == tag)?;
        Some((found.1, found.2))
    }

    /// Returns the values of a tag; `None` if the tag is absent.
    fn numbers(&self, tag: Tag) -> Result<Option<Vec<u64>>, ImageError> {
        let Some((kind, values)) = self.find(tag) else { return Ok(None) };
        if !matches!(kind, 1 | 3 | 4 | 13 | 16 | 18) {
            return Err(corrupt(format!("tag {} has values of type {kind}", tag.0)));
        }
        Ok(Some(values.chunks_exact(size_of(kind)).map(|value| number(value, self.is_big)).collect()))
    }

    /// Returns the first value of a tag.
    fn number(&self, tag: Tag) -> Result<Option<u64>, ImageError> {
        Ok(self.numbers(tag)?.and_then(|values| values.first().copied()))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Photometric {
    WhiteIsZero,
    BlackIsZero,
    Rgb,
    Palette,
    Inks,
    YCbCr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sample {
    Unsigned,
    Signed,
    Float,
}

/// Layout of the first page.
struct Layout<'a> {
    directory: Directory<'a>,
    width: usize,
    height: usize,
    orientation: Orientation,
    photometric: Photometric,
    sample: Sample,
    bits: usize,
    samples: usize,
    /// Kinds of the samples beyond the colours; 1 is alpha with which the colours are multiplied.
    extra: Vec<u64>,
    is_planar: bool,
    compression: u64,
    chunk: (usize, usize),
    is_tiled: bool,
}

impl<'a> Layout<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let directory = Directory::read(bytes)?;
        let number = |tag, default| directory.number(tag).map(|value| value.unwrap_or(default));
        let side = |tag| directory.number(tag).and_then(|side| side.ok_or_else(|| corrupt("it has no size")));
        let (width, height) = (side(Tag::WIDTH)?, side(Tag::HEIGHT)?);
        let fits = |side: u64| u32::try_from(side).map_err(|_| corrupt("it is too large"));
        let (width, height) = (fits(width)? as usize, fits(height)? as usize);
        let photometric = match number(Tag::PHOTOMETRIC, 0)? {
            0 => Photometric::WhiteIsZero,
            1 => Photometric::BlackIsZero,
            2 => Photometric::Rgb,
            3 => Photometric::Palette,
            5 => Photometric::Inks,
            6 => Photometric::YCbCr,
            8 | 9 => return Err(corrupt("the colours of CIE L*a*b* are not supported")),
            32_803 => return Err(corrupt("raw data of a sensor are not supported")),
            other => return Err(corrupt(format!("photometric interpretation {other} is not supported"))),
        };
        let samples = number(Tag::SAMPLES, 1)? as usize;
        let all_bits = directory.numbers(Tag::BITS)?.unwrap_or_else(|| vec![1]);
        let formats = directory.numbers(Tag::SAMPLE_FORMAT)?.unwrap_or_else(|| vec![1]);
        let is_uniform = |values: &[u64]| values.iter().all(|value| *value == values[0]);
        if all_bits.is_empty() || formats.is_empty() || !is_uniform(&all_bits) || !is_uniform(&formats) {
            return Err(corrupt("samples of different sizes are not supported"));
        }
        let sample = match formats[0] {
            1 => Sample::Unsigned,
            2 => Sample::Signed,
            3 => Sample::Float,
            other => return Err(corrupt(format!("sample format {other} is not supported"))),
        };
        let extra = directory.numbers(Tag::EXTRA_SAMPLES)?.unwrap_or_default();
        let is_tiled = directory.find(Tag::TILE_OFFSETS).is_some();
        let chunk = if is_tiled {
            (number(Tag::TILE_WIDTH, 0)? as usize, number(Tag::TILE_HEIGHT, 0)? as usize)
        } else {
            (width, (number(Tag::ROWS_PER_STRIP, height as u64)? as usize).min(height))
        };
        let area = chunk.0.checked_mul(chunk.1).filter(|&area| area > 0);
        let most = width.saturating_mul(height).saturating_mul(MOST_TILE_SHARE).max(LEAST_TILE_PIXELS);
        if area.is_none_or(|area| area > most) {
            return Err(corrupt(format!("parts of {}x{} pixels are not supported", chunk.0, chunk.1)));
        }
        let orientation = u16::try_from(number(Tag::ORIENTATION, 1)?).unwrap_or(1);
        let layout = Self {
            width,
            height,
            orientation: Orientation::from_tag(orientation),
            photometric,
            sample,
            bits: all_bits[0] as usize,
            samples,
            extra,
            is_planar: number(Tag::PLANAR, 1)? == 2,
            compression: number(Tag::COMPRESSION, 1)?,
            chunk,
            is_tiled,
            directory,
        };
        layout.check()?;
        Ok(layout)
    }

    /// Checks that samples of this kind are supported.
    fn check(&self) -> Result<(), ImageError> {
        let colours = match self.photometric {
            Photometric::WhiteIsZero | Photometric::BlackIsZero | Photometric::Palette => 1,
            Photometric::Rgb | Photometric::YCbCr => 3,
            Photometric::Inks => 4,
        };
        let is_grey = matches!(self.photometric, Photometric::WhiteIsZero | Photometric::BlackIsZero);
        let is_known = match (self.bits, self.sample) {
            (1 | 2 | 4, Sample::Unsigned) => {
                (is_grey || self.photometric == Photometric::Palette) && self.samples == 1
            }
            (8, Sample::Unsigned) => true,
            (8, Sample::Signed) | (32, _) => is_grey && self.samples == 1,
            (16, Sample::Unsigned) => !matches!(self.photometric, Photometric::Palette | Photometric::YCbCr),
            (16, Sample::Signed) => is_grey && self.samples == 1,
            _ => false,
        };
        if !is_known || !(colours..=MOST_SAMPLES).contains(&self.samples) {
            let (samples, bits, kind) = (self.samples, self.bits, self.photometric);
            return Err(corrupt(format!("{samples} samples of {bits} bits as {kind:?} are not supported")));
        }
        Ok(())
    }

    /// Returns the number of strips or tiles, across and down.
    fn chunks(&self) -> (usize, usize) {
        (self.width.div_ceil(self.chunk.0), self.height.div_ceil(self.chunk.1))
    }
}

pub(crate) fn probe(bytes: &[u8]) -> Result<Header, ImageError> {
    let layout = Layout::read(bytes)?;
    let (width, height) = layout.orientation.size((layout.width as u32, layout.height as u32));
    let colour = match layout.photometric {
        Photometric::WhiteIsZero | Photometric::BlackIsZero => Colour::Grey,
        Photometric::Inks => Colour::Cmyk,
        _ => Colour::Rgb,
    };
    Ok(Header { format: Format::Tiff, width, height, colour })
}

/// Returns the number of bytes of all unpacked samples, and of one strip or tile.
pub(crate) fn sample_memory(bytes: &[u8]) -> Result<u64, ImageError> {
    let layout = Layout::read(bytes)?;
    let of_chunk = layout.chunk.0.saturating_mul(layout.chunk.1);
    let pixels = layout.width.saturating_mul(layout.height).saturating_add(of_chunk);
    Ok((pixels as u64).saturating_mul((layout.samples * layout.bits.div_ceil(8)) as u64))
}

pub(crate) fn decode(bytes: &[u8]) -> Result<DecodedImage, ImageError> {
    let layout = Layout::read(bytes)?;
    let (samples, is_rgb) = layout.samples(bytes)?;
    let rgb = if is_rgb { samples } else { layout.rgb(&samples)? };
    let stored = DecodedImage { width: layout.width as u32, height: layout.height as u32, rgb };
    Ok(stored.turned(layout.orientation))
}

impl Layout<'_> {
    /// Returns all samples as bytes, pixel after pixel, and whether they are red, green and blue already.
    fn samples(&self, bytes: &[u8]) -> Result<(Vec<u8>, bool), ImageError> {
        let offset_tag = if self.is_tiled { Tag::TILE_OFFSETS } else { Tag::STRIP_OFFSETS };
        let length_tag = if self.is_tiled { Tag::TILE_LENGTHS } else { Tag::STRIP_LENGTHS };
        let offsets = self.directory.numbers(offset_tag)?.ok_or_else(|| corrupt("it has no data"))?;
        let lengths = self.directory.numbers(length_tag)?.unwrap_or_default();
        let (across, down) = self.chunks();
        let (planes, in_chunk) = if self.is_planar { (self.samples, 1) } else { (1, self.samples) };
        if offsets.len() < across * down * planes {
            return Err(corrupt("parts of its data are missing"));
        }
        let settings = unpack::Settings {
            compression: self.compression,
            predictor: self.directory.number(Tag::PREDICTOR)?.unwrap_or(1),
            is_reversed: self.directory.number(Tag::FILL_ORDER)?.unwrap_or(1) == 2,
            is_big: self.directory.is_big,
            jpeg_tables: self.directory.find(Tag::JPEG_TABLES).map(|(_, tables)| tables),
            is_ycbcr: self.photometric == Photometric::YCbCr,
        };
        if self.photometric == Photometric::YCbCr && self.compression != unpack::JPEG {
            let subsampling = self.directory.numbers(Tag::SUBSAMPLING)?.unwrap_or_else(|| vec![2, 2]);
            if subsampling != [1, 1] {
                return Err(corrupt("subsampled colours outside of JPEG are not supported"));
            }
        }
        let mut samples = vec![0; self.width * self.height * self.samples];
        for (index, &offset) in offsets[..across * down * planes].iter().enumerate() {
            let (plane, place) = (index / (across * down), index % (across * down));
            let (left, top) = (place % across * self.chunk.0, place / across * self.chunk.1);
            let rows = self.chunk.1.min(self.height - top);
            let stored_rows = if self.is_tiled { self.chunk.1 } else { rows };
            let chunk =
                Chunk { width: self.chunk.0, height: stored_rows, samples: in_chunk, bits: self.bits };
            let start = usize::try_from(offset).ok().filter(|&start| start <= bytes.len());
            let rest = &bytes[start.ok_or_else(|| corrupt("its end is missing"))?..];
            // The length of uncompressed data is known without the tag.
            let length = match lengths.get(index) {
                Some(&length) if self.compression != unpack::NONE => rest.len().min(length as usize),
                _ => rest.len(),
            };
            let unpacked = unpack(&rest[..length], chunk, &settings)?;
            let columns = self.chunk.0.min(self.width - left);
            let row_bytes = chunk.row_bytes();
            for (row, line) in unpacked.chunks_exact(row_bytes).take(rows).enumerate() {
                let at = ((top + row) * self.width + left) * self.samples + plane;
                let reduced = self.reduced(line, columns * in_chunk);
                if self.is_planar {
                    for (column, value) in reduced.enumerate() {
                        samples[at + column * self.samples] = value;
                    }
                } else {
                    let out = &mut samples[at..at + columns * in_chunk];
                    out.iter_mut().zip(reduced).for_each(|(out, value)| *out = value);
                }
            }
        }
        let is_rgb =
            self.compression == unpack::JPEG && self.photometric == Photometric::YCbCr && self.samples == 3;
        Ok((samples, is_rgb))
    }

    /// Reduces the first samples of a row to bytes: the higher byte of 16-bit colours; grey is clamped to 255.
    fn reduced<'b>(&self, row: &'b [u8], count: usize) -> Box<dyn Iterator<Item = u8> + 'b> {
        let is_grey = matches!(self.photometric, Photometric::WhiteIsZero | Photometric::BlackIsZero);
        let is_big = self.directory.is_big;
        let word =
            move |pair: &[u8; 2]| if is_big { u16::from_be_bytes(*pair) } else { u16::from_le_bytes(*pair) };
        let long =
            move |four: &[u8; 4]| if is_big { u32::from_be_bytes(*four) } else { u32::from_le_bytes(*four) };
        let (pairs, fours) =
            (row.as_chunks::<2>().0.iter().take(count), row.as_chunks::<4>().0.iter().take(count));
        match (self.bits, self.sample) {
            (16, Sample::Signed) => Box::new(pairs.map(move |pair| (word(pair) as i16).clamp(0, 255) as u8)),
            (16, _) if is_grey => Box::new(pairs.map(move |pair| word(pair).min(255) as u8)),
            (16, _) => Box::new(pairs.map(move |pair| (word(pair) >> 8) as u8)),
            // A saturating cast cuts toward zero.
            (32, Sample::Float) => Box::new(fours.map(move |four| f32::from_bits(long(four)) as u8)),
            (32, _) => Box::new(fours.map(move |four| (long(four) as i32).clamp(0, 255) as u8)),
            (bits, _) => Box::new(super::packed(row, count, bits)),
        }
    }

    fn rgb(&self, samples: &[u8]) -> Result<Vec<u8>, ImageError> {
        let pixels = samples.chunks_exact(self.samples);
        let is_multiplied = self.extra.first() == Some(&1);
        let divided = |value: u8, alpha: u8| match alpha {
            0 => 0,
            alpha => (u32::from(value) * 255 / u32::from(alpha)).min(255) as u8,
        };
        Ok(match self.photometric {
            Photometric::WhiteIsZero | Photometric::BlackIsZero => {
                let factor = if self.bits < 8 { 255 / ((1_u16 << self.bits) - 1) as u8 } else { 1 };
                // Pillow does not invert deeper samples.
                let is_inverted = self.photometric == Photometric::WhiteIsZero && self.bits <= 8;
                let invert = if is_inverted { 0xFF } else { 0 };
                let is_multiplied = is_multiplied && self.samples > 1;
                let value = |pixel: &[u8]| {
                    if is_multiplied { divided(pixel[0], pixel[1]) } else { (pixel[0] * factor) ^ invert }
                };
                pixels.flat_map(|pixel| [value(pixel); 3]).collect()
            }
            Photometric::Rgb if is_multiplied && self.samples > 3 => {
                pixels.flat_map(|pixel| [0, 1, 2].map(|channel| divided(pixel[channel], pixel[3]))).collect()
            }
            Photometric::Rgb => pixels.flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect(),
            Photometric::Palette => {
                let palette = self.palette()?;
                pixels.flat_map(|pixel| palette.colour(pixel[0])).collect()
            }
            Photometric::Inks => {
                let inverted: Vec<u8> =
                    pixels.flat_map(|pixel| [0, 1, 2, 3].map(|ink| 255 - pixel[ink])).collect();
                jpeg::rgb_from_inverted_cmyk(&inverted)
            }
            Photometric::YCbCr => {
                pixels.flat_map(|pixel| rgb_from_ycbcr([pixel[0], pixel[1], pixel[2]])).collect()
            }
        })
    }

    /// Reads the palette: all reds, then all greens, then all blues, of 16 bits each.
    fn palette(&self) -> Result<Palette, ImageError> {
        let map = self.directory.numbers(Tag::COLOUR_MAP)?.ok_or_else(|| corrupt("it has no palette"))?;
        let colours = map.len() / 3;
        let entries = (0..colours)
            .flat_map(|colour| [0, 1, 2].map(|channel| (map[channel * colours + colour] >> 8) as u8));
        Ok(Palette::new(&entries.collect::<Vec<u8>>(), 3))
    }
}

/// # Source
/// Pillow, ConvertYCbCr.c.
fn rgb_from_ycbcr([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    let scaled = |factor: f64, value: u8| (factor * 64.0 * (f64::from(value) - 128.0) + 0.5) as i32;
    let byte = |sum: i32| (i32::from(y) + (sum >> 6)).clamp(0, 255) as u8;
    [byte(scaled(1.402, cr)), byte(scaled(-0.34414, cb) + scaled(-0.71414, cr)), byte(scaled(1.772, cb))]
}
