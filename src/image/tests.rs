mod kinds;

use image::{DynamicImage, GenericImage, ImageFormat, Rgba};

use super::*;

/// A smooth image, so that lossy codecs stay close.
fn gradient(width: u32, height: u32) -> DecodedImage {
    let rgb = (0..height)
        .flat_map(|y| (0..width).flat_map(move |x| [x as u8 * 4, y as u8 * 4, (x + y) as u8 * 2]))
        .collect();
    DecodedImage { width, height, rgb }
}

fn saved(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).expect("encoded");
    bytes.into_inner()
}

fn close(a: &DecodedImage, b: &DecodedImage, tolerance: u8) -> bool {
    (a.width, a.height) == (b.width, b.height)
        && a.rgb.iter().zip(&b.rgb).all(|(a, b)| a.abs_diff(*b) <= tolerance)
}

#[test]
fn a_jpeg_comes_back_nearly_as_it_was() {
    let image = gradient(40, 30);
    let bytes = encode_jpeg(&image, 95).expect("encoded");
    let decoded = decode(&bytes, &Limits::default()).expect("decoded");
    assert!(close(&decoded, &image, 12));
    assert_eq!(probe(&bytes).expect("a header").format, Format::Jpeg);
}

#[test]
fn a_broken_header_does_not_spoil_the_images_after_it() {
    let good = encode_jpeg(&gradient(40, 30), 95).expect("encoded");
    let tables = good.windows(2).position(|pair| pair == [0xFF, 0xC4]).expect("a table");
    let mut broken = good.clone();
    broken[tables + 5..tables + 7].fill(0xFF);
    let first = check(&broken, &Limits::default()).expect_err("broken");
    assert_eq!(check(&broken, &Limits::default()), Err(first), "the reason stays the same");
    assert!(check(&good, &Limits::default()).is_ok());
    assert!(decode(&broken, &Limits::default()).is_err() && decode(&good, &Limits::default()).is_ok());
}

#[test]
fn a_png_comes_back_exactly() {
    let image = gradient(17, 5);
    let bytes = encode_png(&image).expect("encoded");
    assert_eq!(decode(&bytes, &Limits::default()), Ok(image));
}

/// Datasets of CIFAR hold what is encoded here, and are known by its digest.
#[test]
fn a_png_has_the_bytes_that_it_always_had() {
    let image = gradient(40, 30);
    let rgb = image::RgbImage::from_raw(40, 30, image.rgb.clone()).expect("of this size");
    let expected = saved(&DynamicImage::ImageRgb8(rgb), ImageFormat::Png);
    assert_eq!(encode_png(&image).expect("encoded"), expected);
}

#[test]
fn grey_is_repeated_and_alpha_is_dropped() {
    let grey = DynamicImage::ImageLuma8(image::GrayImage::from_pixel(3, 2, image::Luma([77])));
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Bmp] {
        let decoded = decode(&saved(&grey, format), &Limits::default()).expect("decoded");
        assert!(decoded.rgb.iter().all(|&value| value.abs_diff(77) <= 1), "{format:?}");
    }
    let mut transparent = DynamicImage::new_rgba8(2, 2);
    transparent.put_pixel(1, 1, Rgba([9, 8, 7, 0]));
    let decoded = decode(&saved(&transparent, ImageFormat::Png), &Limits::default()).expect("decoded");
    assert_eq!(decoded.rgb[9..], [9, 8, 7]);
}

#[test]
fn sixteen_bits_gif_webp_and_tiff_are_read() {
    let deep =
        DynamicImage::ImageRgb16(image::ImageBuffer::from_pixel(4, 4, image::Rgb([0xFFFF, 0x8000, 0])));
    let decoded = decode(&saved(&deep, ImageFormat::Png), &Limits::default()).expect("decoded");
    assert_eq!(decoded.rgb[..3], [255, 128, 0]);
    let flat = DynamicImage::ImageRgb8(image::RgbImage::from_pixel(8, 8, image::Rgb([200, 10, 10])));
    for format in [ImageFormat::Gif, ImageFormat::WebP, ImageFormat::Tiff] {
        let decoded = decode(&saved(&flat, format), &Limits::default()).expect("decoded");
        assert!(decoded.rgb[0].abs_diff(200) <= 4 && decoded.rgb[1].abs_diff(10) <= 4, "{format:?}");
    }
}

#[test]
fn inverted_cmyk_becomes_rgb_as_in_pillow() {
    // Cyan ink alone, and half black: (C, M, Y, K) = (255, 0, 0, 0) and (0, 0, 0, 128), stored inverted.
    let mut compressor = turbojpeg::Compressor::new().expect("a compressor");
    compressor.set_quality(100).expect("quality");
    compressor.set_subsamp(turbojpeg::Subsamp::None).expect("subsampling");
    compressor.set_colorspace(turbojpeg::Colorspace::CMYK).expect("colour space");
    for (stored, expected) in [([0, 255, 255, 255], [0, 255, 255]), ([255, 255, 255, 127], [127, 127, 127])] {
        let pixels = stored.repeat(64);
        let image = turbojpeg::Image {
            pixels: pixels.as_slice(),
            width: 8,
            pitch: 32,
            height: 8,
            format: turbojpeg::PixelFormat::CMYK,
        };
        let bytes = compressor.compress_to_vec(image).expect("encoded");
        assert_eq!(probe(&bytes).expect("a header").colour, Colour::Cmyk);
        let decoded = decode(&bytes, &Limits::default()).expect("decoded");
        let near = decoded.rgb[..3].iter().zip(expected).all(|(a, b): (&u8, u8)| a.abs_diff(b) <= 2);
        assert!(near, "{:?} {expected:?}", &decoded.rgb[..3]);
    }
}

#[test]
fn content_decides_and_not_a_name() {
    let png = encode_png(&gradient(4, 4)).expect("encoded");
    assert_eq!(probe(&png).expect("a header").format, Format::Png);
    assert_eq!(decode(b"", &Limits::default()), Err(ImageError::Empty));
    assert_eq!(decode(b"no image at all", &Limits::default()), Err(ImageError::UnknownFormat));
}

#[test]
fn a_truncated_image_is_refused_with_a_reason() {
    let image = gradient(64, 64);
    let jpeg = encode_jpeg(&image, 90).expect("encoded");
    let png = encode_png(&image).expect("encoded");
    for bytes in [&jpeg[..jpeg.len() / 2], &jpeg[..jpeg.len() - 20], &jpeg[..10], &png[..png.len() / 2]] {
        let error = decode(bytes, &Limits::default()).expect_err("cut");
        assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
    }
}

#[test]
fn a_bomb_is_refused_by_its_header() {
    let bytes = encode_png(&gradient(60, 60)).expect("encoded");
    let error = decode(&bytes, &Limits { max_pixels: 3599 }).expect_err("too large");
    assert_eq!(error.to_string(), "60x60 pixels are more than the limit of 3599");
}

/// Files and regions for the tests of decoders.
pub(super) mod support {
    use crate::image::{DecodedImage, Region};
    use crate::rng::{Purpose, Stream};

    /// A smooth image with noise and hard edges, so that all kinds of coefficients occur.
    pub(in crate::image) fn noisy(width: u32, height: u32, seed: u64) -> DecodedImage {
        let mut stream = Stream::new(seed, Purpose::Test, 1, 0);
        let rgb = (0..height)
            .flat_map(|y| (0..width).map(move |x| (x, y)))
            .flat_map(|(x, y)| {
                let noise = if (x / 32 + y / 16) % 3 == 0 { stream.below(120) as u32 } else { 0 };
                let edge = if (x / 11) % 4 == 1 { 200 } else { 0 };
                [x * 3 + noise, y * 2 + edge, x + y + noise / 2].map(|value| value.min(255) as u8)
            })
            .collect();
        DecodedImage { width, height, rgb }
    }

    /// A JPEG with Huffman tables of its own if `optimize` is set.
    pub(in crate::image) fn compressed(
        image: &DecodedImage,
        subsamp: turbojpeg::Subsamp,
        quality: i32,
        optimize: bool,
        progressive: bool,
    ) -> Vec<u8> {
        let mut compressor = turbojpeg::Compressor::new().expect("a compressor");
        compressor.set_quality(quality).expect("quality");
        compressor.set_subsamp(subsamp).expect("subsampling");
        compressor.set_optimize(optimize).expect("optimize");
        compressor.set_progressive(progressive).expect("progressive");
        let image = turbojpeg::Image {
            pixels: image.rgb.as_slice(),
            width: image.width as usize,
            pitch: image.width as usize * 3,
            height: image.height as usize,
            format: turbojpeg::PixelFormat::RGB,
        };
        compressor.compress_to_vec(image).expect("encoded")
    }

    /// JPEGs with restart markers, as datasets of `ingest --tile-index` of version 0.1.0 hold them, by the golden with
    /// the same pixels.
    pub(in crate::image) fn with_restart_markers() -> [(&'static str, &'static [u8]); 3] {
        [
            ("jpeg 4:4:4", include_bytes!("../../tests/golden/tiled-444.jpg")),
            ("jpeg 4:2:0", include_bytes!("../../tests/golden/tiled-420.jpg")),
            ("jpeg grey", include_bytes!("../../tests/golden/tiled-grey.jpg")),
        ]
    }

    /// Random regions of an image, the whole first.
    pub(in crate::image) fn regions(
        stream: &mut Stream,
        width: u32,
        height: u32,
        count: usize,
    ) -> Vec<Region> {
        let whole = Region { left: 0, top: 0, width: width as usize, height: height as usize };
        let mut draw = || {
            let columns = 1 + stream.below(u64::from(width)) as usize;
            let rows = 1 + stream.below(u64::from(height)) as usize;
            Region {
                left: stream.below((width as usize - columns + 1) as u64) as usize,
                top: stream.below((height as usize - rows + 1) as u64) as usize,
                width: columns,
                height: rows,
            }
        };
        std::iter::once(whole).chain(std::iter::repeat_with(&mut draw).take(count)).collect()
    }
}
