//! How much memory decoding an image takes, by its header.

use super::formats::{jpeg, tiff};
use super::{Colour, Format, Header};

/// The bytes that [`check`](super::check) and [`decode`](super::decode) allocate at most for an image, beside its encoded bytes. An
/// upper estimate: pixels times channels times bytes of a channel, and what decoder and conversions hold at the same time.
pub fn decoding_memory(bytes: &[u8], header: &Header) -> u64 {
    let pixels = u64::from(header.width) * u64::from(header.height);
    // RGB and the brightness made of it.
    let converted = 4 * pixels;
    match header.format {
        Format::Jpeg => {
            let channels = match header.colour {
                Colour::Grey => 1,
                Colour::Rgb => 3,
                Colour::Cmyk => 4,
            };
            // A progressive JPEG is held as coefficients of two bytes until its last scan is read.
            let coefficients = if jpeg::is_progressive(bytes) { 2 * channels * pixels } else { 0 };
            let inks = if header.colour == Colour::Cmyk { channels * pixels } else { 0 };
            converted.saturating_add(coefficients).saturating_add(inks)
        }
        // Four channels of 16 bits unless the header says less; WebP and GIF also hold a canvas.
        Format::Png => converted.saturating_add(pixels.saturating_mul(png_bytes_per_pixel(bytes))),
        Format::Pnm => converted.saturating_add(6 * pixels),
        Format::Bmp => converted.saturating_add(4 * pixels),
        Format::Gif | Format::Webp => converted.saturating_add(8 * pixels),
        // What the header cannot tell is an error of decoding.
        Format::Tiff => converted.saturating_add(tiff::sample_memory(bytes).unwrap_or(0)),
    }
}

/// The bytes that a decoded pixel of a PNG takes: its channels times the bytes of one.
fn png_bytes_per_pixel(bytes: &[u8]) -> u64 {
    // Bit depth and colour type follow the sizes in the first chunk.
    let (depth, channels) = match bytes.get(24..26) {
        Some([depth, 0]) => (*depth, 1),
        Some([depth, 2 | 3]) => (*depth, 3),
        Some([depth, 4]) => (*depth, 2),
        _ => (16, 4),
    };
    channels * if depth > 8 { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{DecodedImage, encode_jpeg, encode_png, probe};

    #[test]
    fn the_memory_of_an_image_follows_from_its_pixels_and_channels() {
        let image = DecodedImage { width: 30, height: 20, rgb: vec![7; 30 * 20 * 3] };
        let of = |bytes: &[u8]| decoding_memory(bytes, &probe(bytes).expect("a header"));
        let png = encode_png(&image).expect("encoded");
        assert_eq!(of(&png), 600 * (3 + 4));
        assert_eq!(of(&encode_jpeg(&image, 90).expect("encoded")), 600 * 4);
        let mut tiff = std::io::Cursor::new(Vec::new());
        let pixels = image::RgbImage::from_raw(30, 20, vec![7; 30 * 20 * 3]).expect("whole");
        pixels.write_to(&mut tiff, image::ImageFormat::Tiff).expect("encoded");
        let of_tiff = of(tiff.get_ref());
        assert!((600 * (4 + 3) + 1..=600 * (4 + 3 + 3)).contains(&of_tiff), "{of_tiff}: image and strip");
        let header = probe(&png).expect("a header");
        let mut deep = png;
        (deep[24], deep[25]) = (16, 6);
        assert_eq!(decoding_memory(&deep, &header), 600 * (8 + 4));
    }
}
