//! Unpacks strips and tiles to their samples.

use std::io::Read;

use super::corrupt;
use crate::image::{Colour, ImageError, jpeg};

pub(super) const NONE: u64 = 1;
const FAX_4: u64 = 4;
const LZW: u64 = 5;
const OLD_JPEG: u64 = 6;
pub(super) const JPEG: u64 = 7;
const DEFLATE: [u64; 2] = [8, 32_946];
const PACK_BITS: u64 = 32_773;
const ZSTD: u64 = 50_000;

/// Size of a strip or tile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    pub width: usize,
    pub height: usize,
    /// Number of samples of a pixel in this chunk.
    pub samples: usize,
    pub bits: usize,
}

impl Chunk {
    pub(super) fn row_bytes(&self) -> usize {
        (self.width * self.samples * self.bits).div_ceil(8)
    }
}

/// Settings that all chunks share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings<'a> {
    pub compression: u64,
    pub predictor: u64,
    /// Whether the lowest bit of a byte comes first.
    pub is_reversed: bool,
    pub is_big: bool,
    pub jpeg_tables: Option<&'a [u8]>,
    pub is_ycbcr: bool,
}

fn cut() -> ImageError {
    corrupt("its data end too early")
}

/// Unpacks the samples of a chunk: rows of whole bytes in the file's byte order; RGB for a JPEG in colours.
pub(super) fn unpack(bytes: &[u8], chunk: Chunk, settings: &Settings) -> Result<Vec<u8>, ImageError> {
    if settings.compression == JPEG {
        return unpack_jpeg(bytes, chunk, settings);
    }
    let reversed: Vec<u8>;
    let mut bytes = bytes;
    let len = chunk.row_bytes() * chunk.height;
    if settings.is_reversed {
        let needed = if settings.compression == NONE { bytes.len().min(len) } else { bytes.len() };
        reversed = bytes[..needed].iter().map(|byte| byte.reverse_bits()).collect();
        bytes = &reversed;
    }
    let read = |reader: &mut dyn Read| {
        let mut unpacked = vec![0; len];
        reader.read_exact(&mut unpacked).map_err(|error| corrupt(error.to_string()))?;
        Ok(unpacked)
    };
    let mut unpacked = match settings.compression {
        NONE => bytes.get(..len).ok_or_else(cut)?.to_vec(),
        LZW => unpack_lzw(bytes, len)?,
        compression if DEFLATE.contains(&compression) => read(&mut flate2::read::ZlibDecoder::new(bytes))?,
        PACK_BITS => unpack_bits(bytes, len)?,
        ZSTD => read(&mut zstd::Decoder::with_buffer(bytes).map_err(|error| corrupt(error.to_string()))?)?,
        FAX_4 => unpack_fax(bytes, chunk)?,
        other => return Err(corrupt(format!("{} is not supported", name(other)))),
    };
    match settings.predictor {
        1 => {}
        2 => {
            for row in unpacked.chunks_exact_mut(chunk.row_bytes()) {
                add_before(row, chunk, settings.is_big)?;
            }
        }
        3 if chunk.bits == 32 => {
            for row in unpacked.chunks_exact_mut(chunk.row_bytes()) {
                gather_floats(row, chunk, settings.is_big);
            }
        }
        other => return Err(corrupt(format!("predictor {other} is not supported"))),
    }
    Ok(unpacked)
}

fn name(compression: u64) -> String {
    let known = match compression {
        2 | 3 => "CCITT group 3",
        OLD_JPEG => "JPEG of the old style",
        34_712 => "JPEG 2000",
        34_887 => "LERC",
        34_925 => "LZMA",
        34_892 => "lossy JPEG of a sensor",
        50_001 => "WebP",
        50_002 => "JPEG XL",
        other => return format!("compression {other}"),
    };
    format!("compression by {known}")
}

fn unpack_lzw(bytes: &[u8], len: usize) -> Result<Vec<u8>, ImageError> {
    let mut decoder = weezl::decode::Configuration::with_tiff_size_switch(weezl::BitOrder::Msb, 8)
        .with_yield_on_full_buffer(true)
        .build();
    let mut unpacked = vec![0; len];
    let (mut from, mut to) = (0, 0);
    while to < len {
        let result = decoder.decode_bytes(&bytes[from..], &mut unpacked[to..]);
        from += result.consumed_in;
        to += result.consumed_out;
        match result.status.map_err(|error| corrupt(error.to_string()))? {
            weezl::LzwStatus::Ok if result.consumed_in > 0 || result.consumed_out > 0 => {}
            _ => break,
        }
    }
    if to < len { Err(cut()) } else { Ok(unpacked) }
}

fn unpack_bits(bytes: &[u8], len: usize) -> Result<Vec<u8>, ImageError> {
    let mut unpacked = Vec::with_capacity(len);
    let mut rest = bytes;
    while unpacked.len() < len {
        let (&count, behind) = rest.split_first().ok_or_else(cut)?;
        rest = behind;
        let room = len - unpacked.len();
        match count as i8 {
            -128 => {}
            count if count >= 0 => {
                let literal = rest.split_at_checked(count as usize + 1).ok_or_else(cut)?;
                unpacked.extend_from_slice(&literal.0[..literal.0.len().min(room)]);
                rest = literal.1;
            }
            count => {
                let (&value, behind) = rest.split_first().ok_or_else(cut)?;
                let times = 1 + usize::from(count.unsigned_abs());
                unpacked.resize(unpacked.len() + times.min(room), value);
                rest = behind;
            }
        }
    }
    Ok(unpacked)
}

/// Unpacks a fax, of which 1 is black, as in libtiff.
fn unpack_fax(bytes: &[u8], chunk: Chunk) -> Result<Vec<u8>, ImageError> {
    let too_large = |_| corrupt("a fax of more than 65,535 columns or rows is not supported");
    let width = u16::try_from(chunk.width).map_err(too_large)?;
    let height = u16::try_from(chunk.height).map_err(too_large)?;
    if (chunk.samples, chunk.bits) != (1, 1) {
        return Err(corrupt("a fax has one bit for each pixel"));
    }
    let pitch = chunk.row_bytes();
    let mut unpacked = Vec::with_capacity(pitch * chunk.height);
    let decoded = fax::decoder::decode_g4(bytes.iter().copied(), width, Some(height), |line| {
        let start = unpacked.len();
        unpacked.resize(start + pitch, 0);
        for (column, colour) in fax::decoder::pels(line, width).enumerate() {
            if colour == fax::Color::Black {
                unpacked[start + column / 8] |= 0x80 >> (column % 8);
            }
        }
    });
    decoded.filter(|()| unpacked.len() == pitch * chunk.height).ok_or_else(cut)?;
    Ok(unpacked)
}

/// Decodes a JPEG chunk, after a marker that names its colour space and the tables that all chunks share.
fn unpack_jpeg(bytes: &[u8], chunk: Chunk, settings: &Settings) -> Result<Vec<u8>, ImageError> {
    let transform = u8::from(settings.is_ycbcr && chunk.samples == 3);
    let mut file = b"\xFF\xD8\xFF\xEE\0\x0EAdobe\0\x64\0\0\0\0".to_vec();
    file.push(transform);
    let tables = settings.jpeg_tables.and_then(|tables| tables.strip_prefix(b"\xFF\xD8")).unwrap_or_default();
    file.extend_from_slice(tables.strip_suffix(b"\xFF\xD9").unwrap_or(tables));
    file.extend_from_slice(bytes.strip_prefix(b"\xFF\xD8").ok_or_else(cut)?);
    let header = jpeg::probe(&file)?;
    let (width, height) = (header.width as usize, header.height as usize);
    let fits = width == chunk.width && height >= chunk.height && height <= chunk.height.next_multiple_of(16);
    let samples = match header.colour {
        Colour::Grey => 1,
        Colour::Rgb => 3,
        Colour::Cmyk => 4,
    };
    if !fits || chunk.bits != 8 || chunk.samples != samples {
        return Err(corrupt("a part compressed by JPEG is not of the size that it should have"));
    }
    let mut samples = match header.colour {
        Colour::Grey => jpeg::decode_grey(&file, header)?,
        Colour::Rgb => jpeg::decode(&file, header)?.rgb,
        Colour::Cmyk => jpeg::decode_inks(&file, header)?,
    };
    samples.truncate(chunk.row_bytes() * chunk.height);
    Ok(samples)
}

/// Undoes the differences of samples to those of the pixel before.
fn add_before(row: &mut [u8], chunk: Chunk, is_big: bool) -> Result<(), ImageError> {
    let size = chunk.bits / 8;
    if !matches!(chunk.bits, 8 | 16 | 32) {
        return Err(corrupt(format!("differences of {} bits are not supported", chunk.bits)));
    }
    let read = |bytes: &[u8]| {
        let add = |number: u32, byte: &u8| number << 8 | u32::from(*byte);
        if is_big { bytes.iter().fold(0, add) } else { bytes.iter().rev().fold(0, add) }
    };
    let step = chunk.samples * size;
    for at in (step..row.len()).step_by(size) {
        let sum = read(&row[at..at + size]).wrapping_add(read(&row[at - step..at - step + size]));
        for (index, byte) in row[at..at + size].iter_mut().enumerate() {
            let place = if is_big { size - 1 - index } else { index };
            *byte = (sum >> (8 * place)) as u8;
        }
    }
    Ok(())
}

/// Undoes differences of bytes, then assembles each float from its bytes, which are stored by significance.
fn gather_floats(row: &mut [u8], chunk: Chunk, is_big: bool) {
    for at in chunk.samples..row.len() {
        row[at] = row[at].wrapping_add(row[at - chunk.samples]);
    }
    let count = row.len() / 4;
    let stored = row.to_vec();
    for (index, float) in row.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *float = std::array::from_fn(|place| {
            let significance = if is_big { place } else { 3 - place };
            stored[significance * count + index]
        });
    }
}
