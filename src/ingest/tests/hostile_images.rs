//! Tests of damaged, odd or malicious images: a rejection with a reason, never a crash. Also of images whose stored
//! bytes differ from the source's.

use image::codecs::gif::GifEncoder;
use image::{Frame, Rgba, RgbaImage};
use turbojpeg::Colorspace;

use super::*;
use crate::image::tests::turned;
use crate::image::{ExifOrientation, Orientation, decode, luma};
use crate::ingest::near_duplicates::{MOST_DIFFERING_BITS, view_hash};

fn refused(name: &str, bytes: Vec<u8>) -> String {
    let (accepted, refused) = verdicts(&[(name, bytes)], |_| {});
    assert_eq!(accepted.len(), 1, "{name} is not accepted");
    assert_eq!(refused[0].0, format!("a/{name}"));
    refused[0].1.clone()
}

/// Decodes the image, which must be accepted.
fn accepted(name: &str, bytes: Vec<u8>) -> DecodedImage {
    let (accepted, refused) = verdicts(&[(name, bytes.clone())], |_| {});
    assert_eq!(refused, [], "{name}");
    assert_eq!(accepted[1].bytes, bytes, "{name} is stored as it is");
    pixels(&bytes)
}

fn pixels(bytes: &[u8]) -> DecodedImage {
    decode(bytes, &Default::default()).expect("decoded")
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ (0xEDB8_8320 & (sum & 1).wrapping_neg()))
    })
}

#[test]
fn empty_cut_and_corrupt_files_are_refused_with_their_reason() {
    let whole = encode_jpeg(&detailed(120, 90), 90).expect("encoded");
    assert_eq!(refused("zero.jpg", Vec::new()), "the file is empty");
    let page = b"<html>404</html>".to_vec();
    assert_eq!(refused("text.jpg", page), "the file is an HTML page, not an image");
    assert_eq!(refused("new.jpg", b"\xFF\x0A\x01\x02".to_vec()), "JPEG XL is not supported");
    let cut = refused("cut.jpg", whole[..whole.len() / 2].to_vec());
    assert!(cut.starts_with("JPEG: Premature end"), "{cut}");
    let mut corrupt = whole.clone();
    let middle = whole.len() / 2;
    corrupt[middle..middle + 40].fill(0xFF);
    let corrupt = refused("corrupt.jpg", corrupt);
    assert!(corrupt.starts_with("JPEG: "), "{corrupt}");
    let png = encode_png(&detailed(50, 50)).expect("encoded");
    let mut bad_sum = png.clone();
    bad_sum[png.len() / 2] ^= 1;
    assert!(refused("cut.png", png[..png.len() - 30].to_vec()).starts_with("PNG: "));
    assert!(refused("sum.png", bad_sum).starts_with("PNG: "));
}

#[test]
fn a_decompression_bomb_is_refused_by_its_header() {
    // A PNG header that claims 30,000 × 30,000 pixels, without data after it; its checksum is right.
    let mut png = encode_png(&detailed(1, 1)).expect("encoded");
    png[16..20].copy_from_slice(&30_000_u32.to_be_bytes());
    png[20..24].copy_from_slice(&30_000_u32.to_be_bytes());
    let sum = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(refused("bomb.png", png), "30000x30000 pixels are more than the limit of 100000000");
}

#[test]
fn jpegs_in_inks_and_with_adobes_marker_are_taken_as_rgb() {
    let inks: Vec<u8> = [255, 255, 255, 127].repeat(256);
    for space in [Colorspace::CMYK, Colorspace::YCCK] {
        let bytes = compressed(&inks, PixelFormat::CMYK, |compressor| {
            compressor.set_colorspace(space).expect("a colour space");
        });
        let image = accepted("inks.jpg", bytes);
        assert!(image.rgb.iter().all(|value| value.abs_diff(127) <= 3), "{space:?}");
    }
    // Adobe's marker with RGB stored unconverted.
    let pixels: Vec<u8> = [200, 100, 50].repeat(256);
    let bytes = compressed(&pixels, PixelFormat::RGB, |compressor| {
        compressor.set_colorspace(Colorspace::RGB).expect("a colour space");
    });
    assert!(bytes.windows(5).any(|text| text == b"Adobe"));
    let image = accepted("adobe.jpg", bytes);
    assert!(image.rgb.iter().zip(pixels).all(|(a, b)| a.abs_diff(b) <= 3));
}

#[test]
fn an_arithmetic_coded_jpeg_is_read() {
    let pixels: Vec<u8> = [10, 200, 100].repeat(256);
    let bytes = compressed(&pixels, PixelFormat::RGB, |compressor| {
        compressor.set_arithmetic(true).expect("arithmetic coding");
    });
    assert!(bytes.windows(2).any(|marker| marker == [0xFF, 0xC9]));
    assert!(accepted("arithmetic.jpg", bytes).rgb.iter().zip(pixels).all(|(a, b)| a.abs_diff(b) <= 4));
}

#[test]
fn rotation_by_exif_is_not_applied() {
    let plain = jpeg(7);
    let image = accepted("turned.jpg", turned(&plain, 6));
    assert_eq!(image, pixels(&plain));
}

/// The image has an EXIF tag that turns it by a right angle.
#[test]
fn with_apply_images_are_upright_and_their_bytes_stay() {
    let plain = encode_jpeg(&detailed(40, 24), 90).expect("encoded");
    let at = fixture();
    write(at.source.join("a/0.jpg"), turned(&plain, 6));
    let mut options = at.options();
    options.exif_orientation = ExifOrientation::Apply;
    ingest(&options, &Quiet).expect("ingested");
    let (dataset, manifest) = (location(&at.dest), at.manifest());
    assert!(manifest.splits["train"].applies_exif_orientation());
    let row = &at.rows()[0];
    assert_eq!((row.width, row.height, row.bytes.to_vec()), (24, 40, turned(&plain, 6)));
    // The same image, turned before the ingest, looks the same.
    let upright = pixels(&plain).turned(Orientation::of(&turned(&plain, 6)));
    assert_eq!((upright.width, upright.height), (24, 40));
    let expected = view_hash(&luma(&upright)).expect("a view");
    let index = &manifest.splits["train"].ingest[0].index;
    let view = crate::dataset::read_index(&dataset, index).expect("an index")[0].view;
    assert!(view.expect("a view").distance(&expected) <= MOST_DIFFERING_BITS);
    at.verify();

    // Other pixels make another dataset, although the bytes are the same.
    let ignoring = fixture();
    let ignored = IngestOptions { exif_orientation: ExifOrientation::Ignore, ..options.clone() };
    ingest(&IngestOptions { dest: location(&ignoring.dest), ..ignored.clone() }, &Quiet).expect("ingested");
    assert_ne!(ignoring.manifest().dataset_digest, manifest.dataset_digest);

    fs::write(at.source.join("a/0.jpg"), jpeg(3)).expect("a file");
    let error =
        ingest(&IngestOptions { append: true, ..ignored }, &Quiet).expect_err("a split is one or the other");
    assert!(error.to_string().contains("was made with `--exif-orientation apply`"), "{error}");
}

#[test]
fn an_image_made_smaller_is_turned_first() {
    let plain = encode_jpeg(&detailed(40, 24), 90).expect("encoded");
    let (accepted, _) = verdicts(&[("turned.jpg", turned(&plain, 6))], |options| {
        options.exif_orientation = ExifOrientation::Apply;
        options.max_side = Some(30);
    });
    let row = accepted.iter().find(|row| row.path == "a/turned.jpg").expect("accepted");
    assert_eq!((row.width, row.height), (18, 30));
    let stored = pixels(&row.bytes);
    assert_eq!((stored.width, stored.height), (18, 30));
}

#[test]
fn of_moving_images_the_first_frame_counts() {
    let frame = |colour: [u8; 4]| Frame::new(RgbaImage::from_pixel(12, 10, Rgba(colour)));
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new(&mut bytes);
    encoder.encode_frames([frame([255, 0, 0, 255]), frame([0, 0, 255, 255])]).expect("encoded");
    drop(encoder);
    assert_eq!(accepted("moving.gif", bytes).rgb[..3], [255, 0, 0]);
    let webp = include_bytes!("../../../tests/golden/animated.webp");
    assert_eq!(accepted("moving.webp", webp.to_vec()).rgb[..3], [255, 0, 0]);
}

#[test]
fn a_shallow_check_sees_headers_and_ends() {
    let whole = encode_jpeg(&detailed(120, 90), 90).expect("encoded");
    let mut corrupt = whole.clone();
    corrupt[whole.len() / 2..whole.len() / 2 + 40].fill(0xFF);
    let images =
        [("corrupt.jpg", corrupt), ("cut.jpg", whole[..whole.len() / 2].to_vec()), ("zero.jpg", Vec::new())];
    let (accepted, refused) = verdicts(&images, |options| options.check = CheckDepth::Header);
    let paths: Vec<&str> = accepted.iter().map(|row| row.path.as_str()).collect();
    assert_eq!(paths, ["a/0-good.jpg", "a/corrupt.jpg"]);
    assert_eq!(refused[0], ("a/cut.jpg".into(), "JPEG: its end is missing".into()));
}

/// Found by the fuzzer: decoding gave no pixels, and the search for near-duplicates read the first row.
#[test]
fn a_gif_of_no_width_is_refused() {
    let bytes = include_bytes!("../../../fuzz/findings/image-gif-of-no-width");
    assert_eq!(refused("no-width.gif", bytes[1..].to_vec()), "GIF: it has no pixels");
}

#[test]
fn images_are_made_smaller_and_baseline_where_that_is_asked_for() {
    let large = encode_jpeg(&detailed(120, 90), 90).expect("encoded");
    let progressive = progressive();
    let images = [("large.jpg", large), ("progressive.jpg", progressive.clone())];
    let (accepted, _) = verdicts(&images, |options| {
        options.short_side = Some(45);
        options.baseline = true;
    });
    assert_eq!((accepted[1].width, accepted[1].height), (60, 45));
    assert_eq!(pixels(&accepted[1].bytes).width, 60);
    assert_ne!(accepted[2].bytes, progressive);
    assert_eq!(pixels(&accepted[2].bytes), pixels(&progressive), "not a pixel changes");
}

#[test]
fn a_image_that_is_small_enough_stays_as_it_is() {
    let images = [("fits.jpg", encode_jpeg(&detailed(60, 45), 90).expect("encoded"))];
    let (accepted, _) = verdicts(&images, |options| options.max_side = Some(60));
    assert_eq!(accepted[1].bytes, images[0].1);
}

#[test]
fn a_progressive_jpeg_that_smoothing_would_change_stays_as_it_is() {
    // Without its last scans the image decodes without a warning, but libjpeg smooths over the missing bits.
    let smooth = |at: u32| (at % 48 / 3 * 4 + at / 48 * 9) as u8;
    let rgb: Vec<u8> = (0..16 * 16 * 3).map(smooth).collect();
    let mut bytes = compressed(&rgb, PixelFormat::RGB, |compressor| {
        compressor.set_progressive(true).expect("progressive");
        compressor.set_quality(30).expect("quality");
    });
    let scans: Vec<usize> = (0..bytes.len() - 1).filter(|&at| bytes[at..at + 2] == [0xFF, 0xDA]).collect();
    bytes.truncate(scans[1]);
    bytes.extend_from_slice(&[0xFF, 0xD9]);
    let (accepted, refused) =
        verdicts(&[("first-scan.jpg", bytes.clone())], |options| options.baseline = true);
    assert_eq!(refused, []);
    let changed = crate::image::progressive_to_baseline(&bytes).expect("transcoded").expect("progressive");
    assert_ne!(pixels(&changed), pixels(&bytes), "the case is one");
    assert_eq!(accepted[1].bytes, bytes);
}

#[test]
fn a_bomb_or_thousands_of_scans_are_refused_before_anything_is_made_of_them() {
    let whole = progressive();
    assert_eq!(accepted("few-scans.jpg", whole.clone()), pixels(&whole), "few scans are welcome");
    let last = whole.windows(2).rposition(|pair| pair == [0xFF, 0xDA]).expect("a scan");
    let mut scans = whole[..last].to_vec();
    (0..5000).for_each(|_| scans.extend_from_slice(&whole[last..whole.len() - 2]));
    scans.extend_from_slice(&[0xFF, 0xD9]);
    let mut bomb = whole.clone();
    let frame = bomb.windows(2).position(|pair| pair == [0xFF, 0xC2]).expect("a frame");
    bomb[frame + 5..frame + 9].copy_from_slice(&[0xFF, 0xDC, 0xFF, 0xDC]);
    let images = [("bomb.jpg", bomb), ("scans.jpg", scans.clone())];
    for (check, baseline) in [(CheckDepth::Full, false), (CheckDepth::Full, true), (CheckDepth::Header, true)]
    {
        let (accepted, refused) = verdicts(&images, |options| {
            (options.check, options.baseline) = (check, baseline);
        });
        assert!(refused[0].1.contains("65500x65500 pixels are more than"), "{refused:?}");
        // The header is that of a good image, so a check of the header accepts it.
        match check {
            CheckDepth::Full => assert!(refused[1].1.contains("scans"), "{refused:?}"),
            CheckDepth::Header => assert_eq!(accepted[1].bytes, scans),
        }
    }
}
