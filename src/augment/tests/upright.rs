//! Images that are held as EXIF says, and long thin ones.

use crate::augment::{Augmentation, Renderer};
use crate::augment::{CropBox, EvalTransform, Order, augment, evaluate_pixels};
use crate::image::{DecodedImage, ExifOrientation, Orientation, decode, encode_jpeg, encode_png};

fn detailed(width: u32, height: u32) -> DecodedImage {
    let rgb = (0..width * height * 3).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    DecodedImage { width, height, rgb }
}

/// A JPEG that says how it is held.
fn turned(orientation: u8) -> Vec<u8> {
    let plain = encode_jpeg(&detailed(61, 37), 90).expect("encoded");
    let mut tiff = *b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\0\0\0\0\0\0\0\0";
    tiff[24] = orientation;
    let mut turned = plain[..2].to_vec();
    turned.extend_from_slice(&[0xFF, 0xE1, 0, tiff.len() as u8 + 2]);
    turned.extend_from_slice(&tiff);
    turned.extend_from_slice(&plain[2..]);
    turned
}

#[test]
fn crops_and_evaluation_see_the_upright_image() {
    let transform = EvalTransform::ResizeCenterCrop { resize: 20, crop: 16 };
    for tag in 1..=8 {
        let file = turned(tag);
        let upright = decode(&file, &Default::default()).expect("decoded").turned(Orientation::of(&file));
        let expected_file = encode_png(&upright).expect("encoded");
        let mut pixels = [vec![0; 3 * 16 * 16], vec![0; 3 * 16 * 16]];
        let [seen, expected] = &mut pixels;
        evaluate_pixels(&file, ExifOrientation::Apply, transform, seen).expect("a good image");
        evaluate_pixels(&expected_file, ExifOrientation::Ignore, transform, expected).expect("a good image");
        assert!(seen == expected, "evaluated, {tag}");
        let crop = CropBox { left: 5, top: 11, width: 30, height: 20 };
        let drawn = Augmentation {
            crop,
            grayscale: false,
            jitter: Vec::new(),
            flip: true,
            order: Order::GrayscaleFirst,
        };
        let draw = |width, height| {
            assert_eq!((width, height), (upright.width, upright.height), "{tag}");
            drawn.clone()
        };
        augment(&file, ExifOrientation::Apply, draw, 16, seen).expect("a good image");
        augment(&expected_file, ExifOrientation::Ignore, draw, 16, expected).expect("a good image");
        assert!(seen == expected, "cropped, {tag}");
    }
}

#[test]
fn of_a_long_thin_image_only_the_centre_is_made() {
    let transform = EvalTransform::ResizeCenterCrop { resize: 256, crop: 224 };
    for (width, height) in [(1, 12_000), (12_000, 1)] {
        let image = detailed(width, height);
        let mut pixels = vec![0; 3 * 224 * 224];
        for file in [encode_png(&image).expect("encoded"), encode_jpeg(&image, 90).expect("encoded")] {
            let mut renderer = Renderer::default();
            renderer.evaluate(&file, ExifOrientation::Ignore, transform, &mut pixels).expect("a good image");
            assert!(renderer.held_bytes() < 1 << 20, "{}", renderer.held_bytes());
        }
        // Of 12,000 pixels that become 3,072,000 the centre's 224 lie between two.
        let lossless = encode_png(&image).expect("encoded");
        evaluate_pixels(&lossless, ExifOrientation::Ignore, transform, &mut pixels).expect("a good image");
        let between = |channel: usize| [5999, 6000].map(|at| image.rgb[3 * at + channel]);
        for (channel, plane) in pixels.chunks_exact(224 * 224).enumerate() {
            let [first, second] = between(channel);
            let range = first.min(second).saturating_sub(1)..=first.max(second).saturating_add(1);
            assert!(plane.iter().all(|value| range.contains(value)), "{width}x{height} {channel}");
        }
    }
}
