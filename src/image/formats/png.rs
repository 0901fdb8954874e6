//! PNG: Pillow's pixels of header, palette and the first image's data. The decoder gets no other chunk.

use std::io::Cursor;

use flate2::Crc;
use png::{BitDepth, ColorType, DecodeOptions, Decoder, Reader};

use super::Palette;
use crate::image::{Colour, DecodedImage, Format, Header, ImageError};

const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1A\n";

/// A chunk, possibly cut by the end of the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk<'a> {
    pub kind: &'a [u8; 4],
    pub data: &'a [u8],
    /// All bytes, from the length to the checksum.
    whole: &'a [u8],
}

impl Chunk<'_> {
    fn has_its_checksum(&self) -> bool {
        let mut sum = Crc::new();
        sum.update(self.kind);
        sum.update(self.data);
        self.whole.ends_with(&sum.sum().to_be_bytes())
    }
}

/// Iterates over the chunks before the end.
pub(crate) fn chunks(bytes: &[u8]) -> impl Iterator<Item = Chunk<'_>> {
    let mut rest = bytes.get(SIGNATURE.len()..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (len, behind) = rest.split_first_chunk::<4>()?;
        let (kind, behind) = behind.split_first_chunk::<4>()?;
        let len = u32::from_be_bytes(*len) as usize;
        let data = &behind[..behind.len().min(len)];
        let whole = &rest[..rest.len().min(len.saturating_add(12))];
        rest = &rest[whole.len()..];
        (kind != b"IEND").then_some(Chunk { kind, data, whole })
    })
}

fn corrupt(reason: impl ToString) -> ImageError {
    ImageError::Corrupt { format: Format::Png.name(), reason: reason.to_string() }
}

/// Returns the same image with only its header, palette and data.
///
/// So damaged text, a damaged profile and the checksum of a data chunk do not matter; the data's own checksum does.
fn essential(bytes: &[u8]) -> Result<Vec<u8>, ImageError> {
    let mut essential = Vec::with_capacity(bytes.len());
    essential.extend_from_slice(SIGNATURE);
    let mut has_data = false;
    for chunk in chunks(bytes) {
        match chunk.kind {
            b"IHDR" | b"PLTE" if has_data => {}
            b"IHDR" | b"PLTE" => {
                if !chunk.has_its_checksum() {
                    let kind = String::from_utf8_lossy(chunk.kind);
                    return Err(corrupt(format_args!("the checksum of its {kind} is wrong")));
                }
                essential.extend_from_slice(chunk.whole);
            }
            b"IDAT" => {
                has_data = true;
                essential.extend_from_slice(&(chunk.data.len() as u32).to_be_bytes());
                essential.extend_from_slice(chunk.kind);
                essential.extend_from_slice(chunk.data);
                // The decoder ignores the checksum.
                essential.extend_from_slice(&[0; 4]);
            }
            _ => {}
        }
    }
    if !has_data {
        return Err(corrupt("it has no image data"));
    }
    essential.extend_from_slice(b"\0\0\0\0IEND\xAE\x42\x60\x82");
    Ok(essential)
}

fn open(essential: &[u8]) -> Result<Reader<Cursor<&[u8]>>, ImageError> {
    let mut options = DecodeOptions::default();
    options.set_ignore_crc(true);
    options.set_ignore_adler32(false);
    let mut decoder = Decoder::new_with_options(Cursor::new(essential), options);
    // The only other allocation is a row, whose length is checked with the size of the image.
    decoder.set_limits(png::Limits { bytes: usize::MAX });
    decoder.set_transformations(png::Transformations::IDENTITY);
    decoder.read_info().map_err(corrupt)
}

pub(crate) fn probe(bytes: &[u8]) -> Result<Header, ImageError> {
    let header = chunks(bytes).next().filter(|chunk| chunk.kind == b"IHDR" && chunk.data.len() >= 13);
    let chunk = header.ok_or_else(|| corrupt("its header is missing"))?;
    if !chunk.has_its_checksum() {
        return Err(corrupt("the checksum of its IHDR is wrong"));
    }
    let side = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|byte| chunk.data[at + byte]));
    let colour = if matches!(chunk.data[9], 0 | 4) { Colour::Grey } else { Colour::Rgb };
    Ok(Header { format: Format::Png, width: side(0), height: side(4), colour })
}

/// Returns the number of bytes of a decoded pixel: its channels times the bytes of a channel.
pub(crate) fn bytes_per_pixel(bytes: &[u8]) -> u64 {
    // Bit depth and colour type follow the sizes in the first chunk.
    let (depth, channels) = match bytes.get(24..26) {
        Some([depth, 0]) => (*depth, 1),
        Some([depth, 2 | 3]) => (*depth, 3),
        Some([depth, 4]) => (*depth, 2),
        _ => (16, 4),
    };
    channels * if depth > 8 { 2 } else { 1 }
}

pub(crate) fn decode(bytes: &[u8]) -> Result<DecodedImage, ImageError> {
    let essential = essential(bytes)?;
    let mut reader = open(&essential)?;
    let too_large = || corrupt("it does not fit in memory");
    let mut data = vec![0; reader.output_buffer_size().ok_or_else(too_large)?];
    let frame = reader.next_frame(&mut data).map_err(corrupt)?;
    reader.finish().map_err(corrupt)?;
    let palette = Palette::new(reader.info().palette.as_deref().unwrap_or_default(), 3);
    let mut rgb = Vec::with_capacity(frame.width as usize * frame.height as usize * 3);
    for row in data.chunks_exact(frame.line_size) {
        append_row(row, frame.width as usize, frame.color_type, frame.bit_depth, &palette, &mut rgb);
    }
    Ok(DecodedImage { width: frame.width, height: frame.height, rgb })
}

/// # Source
/// Pillow, `PngImagePlugin.py` (`_MODES`), Unpack.c and Convert.c: colours of 16 bits lose their lower byte,
/// but grey of 16 bits is clamped to 255.
fn append_row(
    row: &[u8],
    width: usize,
    colour: ColorType,
    depth: BitDepth,
    palette: &Palette,
    rgb: &mut Vec<u8>,
) {
    let bytes = if depth == BitDepth::Sixteen { 2 } else { 1 };
    let packed = super::packed(row, width, depth as usize);
    match colour {
        ColorType::Indexed => rgb.extend(packed.flat_map(|index| palette.colour(index))),
        ColorType::Grayscale if bytes == 2 => {
            rgb.extend(
                row.as_chunks::<2>().0.iter().flat_map(|&[high, low]| [if high > 0 { 255 } else { low }; 3]),
            );
        }
        ColorType::Grayscale => {
            let factor = 255 / ((1_u16 << depth as u16) - 1) as u8;
            rgb.extend(packed.flat_map(|value| [value * factor; 3]));
        }
        ColorType::GrayscaleAlpha => {
            rgb.extend(row.chunks_exact(2 * bytes).flat_map(|pixel| [pixel[0]; 3]));
        }
        ColorType::Rgb | ColorType::Rgba => {
            let samples = if colour == ColorType::Rgb { 3 } else { 4 };
            let pixels = row.chunks_exact(samples * bytes);
            rgb.extend(pixels.flat_map(|pixel| [pixel[0], pixel[bytes], pixel[2 * bytes]]));
        }
    }
}

/// Encodes as PNG, to bytes that are the same in every version, since datasets contain them.
///
/// # Errors
/// If the encoder fails.
pub fn encode(image: &DecodedImage) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, image.width, image.height);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    encoder.set_filter(png::Filter::Adaptive);
    let written = encoder.write_header().and_then(|mut writer| {
        writer.write_image_data(&image.rgb)?;
        writer.finish()
    });
    written.map_err(|error| ImageError::Encode { reason: error.to_string() })?;
    Ok(bytes)
}
