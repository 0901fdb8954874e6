//! How much memory decoding an image takes, by its header.

use std::io::Cursor;

use image::{ColorType, ImageDecoder, ImageReader};

use super::{Colour, Format, Header, jpeg, other};

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
        format => {
            let reader = ImageReader::with_format(Cursor::new(bytes), other::names(format).0);
            let Ok(decoder) = reader.into_decoder() else { return 0 };
            // These decode into a buffer of their own first.
            let buffers = match format {
                Format::Gif | Format::Webp | Format::Tiff => 2,
                Format::Jpeg | Format::Png | Format::Bmp => 1,
            };
            let decoded = decoder.total_bytes().saturating_mul(buffers);
            // RGB of eight bits is not converted.
            let converted = if decoder.color_type() == ColorType::Rgb8 { pixels } else { converted };
            decoded.saturating_add(converted)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::{Picture, encode_jpeg, encode_png, probe};

    #[test]
    fn the_memory_of_an_image_follows_from_its_pixels_and_channels() {
        let image = Picture { width: 30, height: 20, rgb: vec![7; 30 * 20 * 3] };
        let of = |bytes: &[u8]| decoding_memory(bytes, &probe(bytes).expect("a header"));
        assert_eq!(of(&encode_png(&image).expect("encoded")), 600 * 4);
        assert_eq!(of(&encode_jpeg(&image, 90).expect("encoded")), 600 * 4);
        let mut deep = Vec::new();
        let colour = image::ExtendedColorType::Rgba16;
        let encoder = image::codecs::png::PngEncoder::new(&mut deep);
        image::ImageEncoder::write_image(encoder, &[0; 600 * 8], 30, 20, colour).expect("encoded");
        assert_eq!(of(&deep), 600 * (8 + 4));
    }
}
