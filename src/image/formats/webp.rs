//! WebP: the first frame on a transparent canvas, as in libwebp's decoder of animations.

use std::io::Cursor;

use image_webp::WebPDecoder;

use crate::image::{Colour, DecodedImage, Format, Header, ImageError};

/// A chunk of the RIFF container.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk<'a> {
    pub kind: &'a [u8; 4],
    pub data: &'a [u8],
}

/// Iterates over the chunks of a file, of which the last may be cut.
pub(crate) fn chunks(bytes: &[u8]) -> impl Iterator<Item = Chunk<'_>> {
    riff_chunks(bytes.get(12..).unwrap_or_default())
}

fn riff_chunks(mut rest: &[u8]) -> impl Iterator<Item = Chunk<'_>> {
    std::iter::from_fn(move || {
        let (kind, behind) = rest.split_first_chunk::<4>()?;
        let (len, behind) = behind.split_first_chunk::<4>()?;
        let len = u32::from_le_bytes(*len) as usize;
        let data = &behind[..behind.len().min(len)];
        rest = behind.get(len.saturating_add(len % 2)..).unwrap_or_default();
        Some(Chunk { kind, data })
    })
}

fn corrupt(reason: impl ToString) -> ImageError {
    ImageError::Corrupt { format: Format::Webp.name(), reason: reason.to_string() }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u32::from(byte))
}

pub(crate) fn probe(bytes: &[u8]) -> Result<Header, ImageError> {
    let decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(corrupt)?;
    let (width, height) = decoder.dimensions();
    Ok(Header { format: Format::Webp, width, height, colour: Colour::Rgb })
}

pub(crate) fn decode(bytes: &[u8]) -> Result<DecodedImage, ImageError> {
    let decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(corrupt)?;
    if !decoder.is_animated() {
        return decode_still(decoder);
    }
    let (width, height) = decoder.dimensions();
    let frame = chunks(bytes).find(|chunk| chunk.kind == b"ANMF" && chunk.data.len() >= 16);
    let frame = frame.ok_or_else(|| corrupt("it has no frame"))?.data;
    let (left, top) = (2 * number(&frame[..3]) as usize, 2 * number(&frame[3..6]) as usize);
    let still = as_file(frame);
    let decoder = WebPDecoder::new(Cursor::new(still.as_slice())).map_err(corrupt)?;
    let (columns, rows) = decoder.dimensions();
    let (columns, rows) = (columns as usize, rows as usize);
    if left + columns > width as usize || top + rows > height as usize {
        return Err(corrupt("its first frame is outside the canvas"));
    }
    let image = decode_still(decoder)?;
    if (columns, rows) == (width as usize, height as usize) {
        return Ok(image);
    }
    let mut rgb = vec![0; width as usize * height as usize * 3];
    let lines = rgb.chunks_exact_mut(width as usize * 3).skip(top);
    for (line, row) in lines.zip(image.rgb.chunks_exact(columns * 3)) {
        line[left * 3..][..row.len()].copy_from_slice(row);
    }
    Ok(DecodedImage { width, height, rgb })
}

/// Wraps a frame of an animation as a file.
fn as_file(frame: &[u8]) -> Vec<u8> {
    let has_alpha = riff_chunks(&frame[16..]).any(|chunk| chunk.kind == b"ALPH");
    let mut body = b"WEBP".to_vec();
    if has_alpha {
        body.extend_from_slice(b"VP8X\x0A\0\0\0\x10\0\0\0");
        body.extend_from_slice(&frame[6..12]);
    }
    body.extend_from_slice(&frame[16..]);
    let mut file = b"RIFF".to_vec();
    file.extend_from_slice(&(body.len() as u32).to_le_bytes());
    file.extend_from_slice(&body);
    file
}

fn decode_still(mut decoder: WebPDecoder<Cursor<&[u8]>>) -> Result<DecodedImage, ImageError> {
    let (width, height) = decoder.dimensions();
    let too_large = || corrupt("it does not fit in memory");
    let mut samples = vec![0; decoder.output_buffer_size().ok_or_else(too_large)?];
    decoder.read_image(&mut samples).map_err(corrupt)?;
    let rgb = if decoder.has_alpha() {
        samples.as_chunks::<4>().0.iter().flat_map(|&[red, green, blue, _]| [red, green, blue]).collect()
    } else {
        samples
    };
    Ok(DecodedImage { width, height, rgb })
}
