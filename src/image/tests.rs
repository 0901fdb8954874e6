use std::io::Read;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, ImageFormat};
use serde_json::Value;
use turbojpeg::Subsamp;

use super::fuzzing::region_of;
use super::*;
use crate::rng::{Purpose, Stream};

/// Makes a smooth image with noise and hard edges, so that all kinds of coefficients occur.
pub(super) fn noisy(width: u32, height: u32, seed: u64) -> DecodedImage {
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

/// Compresses an image as JPEG; with `optimize`, the Huffman tables are optimal for it.
pub(super) fn compressed(
    image: &DecodedImage,
    subsamp: Subsamp,
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

/// Returns JPEGs with restart markers, as in datasets of `ingest --tile-index` of version 0.1.0, each with the name of
/// the golden with the same pixels.
pub(super) fn with_restart_markers() -> [(&'static str, &'static [u8]); 3] {
    [
        ("jpeg 4:4:4", include_bytes!("../../tests/golden/tiled-444.jpg")),
        ("jpeg 4:2:0", include_bytes!("../../tests/golden/tiled-420.jpg")),
        ("jpeg grey", include_bytes!("../../tests/golden/tiled-grey.jpg")),
    ]
}

/// Makes a smooth image, so that lossy codecs stay close.
fn gradient(width: u32, height: u32) -> DecodedImage {
    let rgb = (0..height)
        .flat_map(|y| (0..width).flat_map(move |x| [x as u8 * 4, y as u8 * 4, (x + y) as u8 * 2]))
        .collect();
    DecodedImage { width, height, rgb }
}

/// Makes an image without a pattern.
pub(crate) fn detailed(width: u32, height: u32) -> DecodedImage {
    let rgb = (0..width * height * 3).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    DecodedImage { width, height, rgb }
}

/// Adds this EXIF orientation to a JPEG.
pub(crate) fn turned(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let mut tiff = *b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\0\0\0\0\0\0\0\0";
    tiff[24] = orientation;
    [&jpeg[..2], &[0xFF, 0xE1, 0, tiff.len() as u8 + 2], &tiff, &jpeg[2..]].concat()
}

pub(crate) fn saved(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).expect("encoded");
    bytes.into_inner()
}

#[test]
fn a_jpeg_comes_back_nearly_as_it_was() {
    let image = gradient(40, 30);
    let bytes = encode_jpeg(&image, 95).expect("encoded");
    let decoded = decode(&bytes, &Limits::default()).expect("decoded");
    assert_eq!((decoded.width, decoded.height), (image.width, image.height));
    assert!(decoded.rgb.iter().zip(&image.rgb).all(|(a, b)| a.abs_diff(*b) <= 12));
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

/// Datasets of CIFAR contain the encoder's bytes, and are identified by their digest.
#[test]
fn a_png_has_the_bytes_that_it_always_had() {
    let image = gradient(40, 30);
    let rgb = image::RgbImage::from_raw(40, 30, image.rgb.clone()).expect("of this size");
    let expected = saved(&DynamicImage::ImageRgb8(rgb), ImageFormat::Png);
    assert_eq!(encode_png(&image).expect("encoded"), expected);
}

#[test]
fn content_decides_and_not_a_name() {
    let png = encode_png(&gradient(4, 4)).expect("encoded");
    assert_eq!(probe(&png).expect("a header").format, Format::Png);
    assert_eq!(decode(b"", &Limits::default()), Err(ImageError::Empty));
    assert_eq!(decode(b"no image at all", &Limits::default()), Err(ImageError::UnknownFormat));
}

#[test]
fn a_truncated_image_is_rejected_with_a_reason() {
    let image = gradient(64, 64);
    let jpeg = encode_jpeg(&image, 90).expect("encoded");
    let png = encode_png(&image).expect("encoded");
    for bytes in [&jpeg[..jpeg.len() / 2], &jpeg[..jpeg.len() - 20], &jpeg[..10], &png[..png.len() / 2]] {
        let error = decode(bytes, &Limits::default()).expect_err("cut");
        assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
    }
}

#[test]
fn a_bomb_is_rejected_by_its_header() {
    let bytes = encode_png(&gradient(60, 60)).expect("encoded");
    let error = decode(&bytes, &Limits { max_pixels: 3599 }).expect_err("too large");
    assert_eq!(error.to_string(), "60x60 pixels are more than the limit of 3599");
}

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

struct Golden {
    name: String,
    is_upright: bool,
    file: Vec<u8>,
    expected: DecodedImage,
}

/// Reads the output of `generate_images.py`.
fn goldens() -> Vec<Golden> {
    let text = include_str!("../../tests/golden/images.json");
    let cases: Vec<Value> = serde_json::from_str(text).expect("JSON");
    let bytes = |value: &Value| STANDARD.decode(value.as_str().expect("text")).expect("base64");
    let side = |value: &Value| value.as_u64().expect("a number") as u32;
    let golden = |case: Value| {
        let mut rgb = Vec::new();
        flate2::read::ZlibDecoder::new(bytes(&case["rgb"]).as_slice()).read_to_end(&mut rgb).expect("packed");
        Golden {
            name: case["name"].as_str().expect("a name").to_owned(),
            is_upright: case["upright"].as_bool().expect("a flag"),
            file: bytes(&case["file"]),
            expected: DecodedImage { width: side(&case["width"]), height: side(&case["height"]), rgb },
        }
    };
    cases.into_iter().map(golden).collect()
}

#[test]
fn every_kind_has_the_pixels_that_pillow_gives_it() {
    for Golden { name, is_upright, file, expected } in goldens() {
        let apply = if is_upright { ExifOrientation::Apply } else { ExifOrientation::Ignore };
        let found = decode(&file, &Limits::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let found = found.turned(apply.of(&file));
        assert_eq!((found.width, found.height), (expected.width, expected.height), "{name}");
        assert!(found.rgb == expected.rgb, "{name} has other pixels");
        let header =
            check_header(&file, &Limits::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(probe(&file), Ok(header), "{name}");
    }
}

#[test]
fn regions_of_every_kind_are_those_of_the_whole_image() {
    let mut stream = Stream::new(21, Purpose::Test, 0, 0);
    for Golden { name, file, .. } in goldens() {
        for _ in 0..4 {
            let choices = std::array::from_fn(|_| stream.below(256) as u8);
            region_of(&file, choices).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}

/// A harmless flaw must not hide a grave one, although libjpeg reports only the first.
#[test]
fn a_cut_jpeg_is_rejected_whatever_is_wrong_with_its_header() {
    let is_one = |name: &str| name.starts_with("jpeg") && !name.contains("behind its end");
    for Golden { name, file, .. } in goldens().into_iter().filter(|golden| is_one(&golden.name)) {
        let scan = memchr::memmem::find(&file, b"\xFF\xDA").expect("a scan");
        let mut cut = file[..scan + (file.len() - scan) / 3].to_vec();
        for end in [&b""[..], b"\xFF\xD9"] {
            cut.extend_from_slice(end);
            let error = check(&cut, &Limits::default()).map(|(header, ..)| header).expect_err(&name);
            assert!(matches!(error, ImageError::Corrupt { format: "JPEG", .. }), "{name}: {error}");
        }
    }
}

#[test]
fn the_end_of_a_thumbnail_is_not_that_of_the_image() {
    let find = |name: &str| goldens().into_iter().find(|golden| golden.name == name).expect("there").file;
    let whole = find("jpeg 4:2:0");
    let thumbnail = find("jpeg 4:4:4");
    let mut nested = whole[..2].to_vec();
    nested.extend_from_slice(&[0xFF, 0xE1]);
    nested.extend_from_slice(&(thumbnail.len() as u16 + 2).to_be_bytes());
    nested.extend_from_slice(&thumbnail);
    nested.extend_from_slice(&whole[2..]);
    assert!(check_header(&nested, &Limits::default()).is_ok());
    let error = check_header(&nested[..nested.len() - 2], &Limits::default()).expect_err("no end");
    assert_eq!(error.to_string(), "JPEG: its end is missing");
}

/// Number of mutations of each file.
const MUTATIONS: usize = 12;
/// Longest time for an image of these sizes, in a build without optimisation.
const LONGEST: Duration = Duration::from_secs(10);

fn mutated(file: &[u8], stream: &mut Stream) -> Vec<u8> {
    let mut bytes = file.to_vec();
    for _ in 0..=stream.below(3) {
        let at = stream.below(bytes.len().max(1) as u64) as usize;
        match stream.below(7) {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 1 << stream.below(8),
            2 => bytes[at] = [0, 0xFF, 0x7F, 0x80][stream.below(4) as usize],
            3 => drop(bytes.remove(at)),
            4 => bytes.insert(at, stream.below(256) as u8),
            5 => {
                let end = (at + stream.below(9) as usize).min(bytes.len());
                bytes[at..end].fill(stream.below(256) as u8);
            }
            // The bytes that decide sizes are at the start.
            _ => {
                let at = stream.below(bytes.len().clamp(1, 64) as u64) as usize;
                bytes[at] = stream.below(256) as u8;
            }
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

#[test]
fn mutated_files_are_decoded_or_rejected_with_a_reason() {
    let (mut accepted, mut rejected) = (0, 0);
    for (number, golden) in goldens().into_iter().enumerate() {
        let mut stream = Stream::new(22, Purpose::Test, number as u64, 0);
        for _ in 0..MUTATIONS {
            let bytes = mutated(&golden.file, &mut stream);
            let choices = std::array::from_fn(|_| stream.below(256) as u8);
            let start = Instant::now();
            match region_of(&bytes, choices) {
                Ok(()) => accepted += 1,
                Err(error) => {
                    assert!(!error.to_string().is_empty(), "{}", golden.name);
                    rejected += 1;
                }
            }
            assert!(start.elapsed() < LONGEST, "{} took {:?}", golden.name, start.elapsed());
        }
    }
    assert!(accepted > 300 && rejected > 300, "{accepted} accepted, {rejected} rejected");
}

#[test]
fn images_of_a_dataset_with_a_tile_index_have_the_pixels_of_their_originals() {
    let goldens = goldens();
    for (name, file) in with_restart_markers() {
        let golden = goldens.iter().find(|golden| golden.name == name).expect("a golden of this name");
        assert_ne!(golden.file, file, "{name}");
        assert!(decode(file, &Limits::default()).expect("decoded") == golden.expected, "{name}");
        for choices in [[0, 0, 255, 255, 0], [90, 120, 100, 80, 0], [200, 30, 90, 220, 0]] {
            assert_eq!(region_of(file, choices), Ok(()), "{name}");
        }
    }
}
