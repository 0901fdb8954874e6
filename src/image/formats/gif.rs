//! GIF: the first frame on the canvas, as in Pillow.

use std::io::Cursor;

use gif::{ColorOutput, DecodeOptions, Decoder, Frame, MemoryLimit};

use super::Palette;
use crate::image::{Colour, DecodedImage, Format, Header, ImageError};

fn corrupt(reason: impl ToString) -> ImageError {
    ImageError::Corrupt { format: Format::Gif.name(), reason: reason.to_string() }
}

fn open(bytes: &[u8]) -> Result<Decoder<Cursor<&[u8]>>, ImageError> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.check_frame_consistency(false);
    options.allow_unknown_blocks(true);
    // The sizes of the canvas and of the frame on it are checked before a frame is decoded.
    options.set_memory_limit(MemoryLimit::Unlimited);
    options.read_info(Cursor::new(bytes)).map_err(corrupt)
}

/// Offset of the screen's flags, and the flag of a palette for all frames.
const SCREEN_FLAGS: usize = 10;
const HAS_PALETTE: u8 = 0x80;

/// Adds a grey palette to a file that has no global one, since the decoder requires it; `None` if the file has one.
fn with_palette(bytes: &[u8]) -> Option<Vec<u8>> {
    let flags = *bytes.get(SCREEN_FLAGS)?;
    let (screen, rest) = bytes.split_at_checked(13)?;
    if flags & HAS_PALETTE != 0 {
        return None;
    }
    let mut file = screen.to_vec();
    file[SCREEN_FLAGS] |= HAS_PALETTE | 7;
    file.extend((0..=255).flat_map(|grey: u8| [grey; 3]));
    file.extend_from_slice(rest);
    Some(file)
}

fn no_frame() -> ImageError {
    corrupt("it has no frame")
}

/// Returns width and height: those of the screen, enlarged if the frame extends beyond it.
fn size(decoder: &Decoder<Cursor<&[u8]>>, frame: &Frame) -> (u32, u32) {
    let end = |start: u16, len: u16| u32::from(start) + u32::from(len);
    let width = u32::from(decoder.width()).max(end(frame.left, frame.width));
    let height = u32::from(decoder.height()).max(end(frame.top, frame.height));
    (width, height)
}

pub(crate) fn probe(bytes: &[u8]) -> Result<Header, ImageError> {
    let changed = with_palette(bytes);
    let mut decoder = open(changed.as_deref().unwrap_or(bytes))?;
    let frame = decoder.next_frame_info().map_err(corrupt)?.ok_or_else(no_frame)?.clone();
    if frame.width == 0 || frame.height == 0 {
        return Err(corrupt("it has no pixels"));
    }
    let (width, height) = size(&decoder, &frame);
    Ok(Header { format: Format::Gif, width, height, colour: Colour::Rgb })
}

/// # Source
/// Pillow, `GifImagePlugin.py`: the transparent colour surrounds the frame, or else the first of the palette; a
/// palette that is a ramp of greys counts as none.
pub(crate) fn decode(bytes: &[u8]) -> Result<DecodedImage, ImageError> {
    let changed = with_palette(bytes);
    let mut decoder = open(changed.as_deref().unwrap_or(bytes))?;
    let frame = decoder.read_next_frame().map_err(corrupt)?.ok_or_else(no_frame)?.clone();
    let (width, height) = size(&decoder, &frame);
    let colours = frame.palette.as_deref().or(decoder.global_palette()).unwrap_or_default();
    let is_ramp = |(index, colour): (usize, &[u8])| colour.iter().all(|&value| usize::from(value) == index);
    let palette = if colours.chunks_exact(3).enumerate().all(is_ramp) {
        Palette::grey()
    } else {
        Palette::new(colours, 3)
    };
    let ground = palette.colour(frame.transparent.unwrap_or(0));
    let mut pixels = vec![ground; width as usize * height as usize];
    let (left, columns) = (usize::from(frame.left), usize::from(frame.width));
    let rows = pixels.chunks_exact_mut(width as usize).skip(usize::from(frame.top));
    for (row, indices) in rows.zip(frame.buffer.chunks_exact(columns)) {
        for (pixel, &index) in row[left..left + columns].iter_mut().zip(indices) {
            *pixel = palette.colour(index);
        }
    }
    Ok(DecodedImage { width, height, rgb: pixels.into_flattened() })
}
