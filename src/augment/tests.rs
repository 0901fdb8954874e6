use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::*;
use crate::image::tests::{detailed, turned};
use crate::image::{DecodedImage, ExifOrientation, Orientation, decode, encode_jpeg, encode_png};
use crate::rng::{Purpose, Stream};

#[test]
fn crops_lie_inside_the_image_and_keep_to_their_area() {
    let recipe = Recipe::imagenet(224);
    for (width, height) in [(500, 375), (1, 1), (3000, 2), (32, 32), (2, 900)] {
        for draw in 0..500 {
            let mut stream = Stream::new(9, Purpose::Augmentation, u64::from(width), draw);
            let crop = recipe.draw(&mut stream, width, height).crop;
            assert!(crop.width >= 1 && crop.height >= 1);
            assert!(crop.left + crop.width <= width && crop.top + crop.height <= height);
            if (width, height) == (500, 375) {
                let share = f64::from(crop.width * crop.height) / (500.0 * 375.0);
                assert!((0.195..=1.0).contains(&share), "{share}");
            }
        }
    }
}

/// Reads torchvision's pixels, written by the script beside the file.
fn golden() -> Value {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/augment.json"));
    serde_json::from_str(text).expect("the golden file")
}

fn bytes(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().expect("a text")).expect("base64")
}

/// Converts planar pixels to interleaved ones.
fn interleaved(planes: &[u8]) -> Vec<u8> {
    let plane = planes.len() / 3;
    (0..plane).flat_map(|at| [planes[at], planes[plane + at], planes[2 * plane + at]]).collect()
}

/// Encodes the source without loss.
fn image(golden: &Value) -> Vec<u8> {
    let side = |name: &str| golden[name].as_u64().expect("a number") as u32;
    let rgb = interleaved(&bytes(&golden["source"]));
    encode_png(&DecodedImage { width: side("width"), height: side("height"), rgb }).expect("encoded")
}

fn opened(file: &[u8]) -> Encoded<'_> {
    Encoded::ingested(file, ExifOrientation::Ignore).expect("a good image")
}

fn augmented(file: &[u8], drawn: Augmentation) -> Vec<u8> {
    let mut out = vec![0; 3 * 12 * 12];
    augment(&opened(file), |_, _| drawn, 12, &mut out).expect("a good image");
    out
}

fn operation(value: &Value) -> ColourOperation {
    let factor = value["factor"].as_f64().expect("a number");
    match value["name"].as_str().expect("a name") {
        "brightness" => ColourOperation::Brightness(factor),
        "contrast" => ColourOperation::Contrast(factor),
        "saturation" => ColourOperation::Saturation(factor),
        "hue" => ColourOperation::Hue(factor),
        other => panic!("unknown operation {other}"),
    }
}

fn assert_close(actual: &[u8], expected: &[u8], most: u8, mean: f64, what: &str) {
    assert_eq!(actual.len(), expected.len());
    let differences = actual.iter().zip(expected).map(|(a, b)| a.abs_diff(*b));
    let largest = differences.clone().max().unwrap_or(0);
    let average = differences.map(f64::from).sum::<f64>() / actual.len() as f64;
    assert!(largest <= most && average <= mean, "{what}: largest {largest}, mean {average}");
}

fn crop(values: [u32; 4]) -> CropBox {
    CropBox { left: values[0], top: values[1], width: values[2], height: values[3] }
}

fn plain(crop: CropBox) -> Augmentation {
    Augmentation { crop, grayscale: false, jitter: Vec::new(), flip: false, order: Order::GrayscaleFirst }
}

#[test]
fn every_colour_operation_is_torchvisions() {
    let golden = golden();
    let source = bytes(&golden["source"]);
    for case in golden["colour"].as_array().expect("cases") {
        let mut planes = source.clone();
        recolour(&mut planes, &[Step::Jitter(operation(case))]);
        assert_close(&planes, &bytes(&case["pixels"]), 1, 0.05, &case["name"].to_string());
    }
    let expected = bytes(&golden["grayscale"]);
    let mut planes = source.clone();
    recolour(&mut planes, &[Step::Grayscale]);
    assert_close(&planes, &expected, 1, 0.05, "grayscale");
    let mut planes = source;
    to_grey(&mut planes);
    let plane = planes.len() / 3;
    assert_close(&planes[..plane], &expected[..plane], 1, 0.05, "grey");
}

#[test]
fn resizing_is_pillows() {
    let golden = golden();
    for (name, at) in [("resized", [3, 2, 17, 13]), ("enlarged", [4, 4, 7, 5])] {
        let out = augmented(&image(&golden), plain(crop(at)));
        assert_close(&out, &bytes(&golden[name]), 1, 0.5, name);
    }
}

#[test]
fn the_composition_is_torchvisions() {
    let golden = golden();
    let jitter = golden["order"].as_array().expect("steps").iter().map(operation).collect();
    let drawn = Augmentation { jitter, flip: true, ..plain(crop([3, 2, 17, 13])) };
    let out = augmented(&image(&golden), drawn);
    assert_close(&out, &bytes(&golden["composed"]), 4, 1.0, "composed");
}

#[test]
fn a_jpeg_goes_the_whole_way_as_with_torchvision() {
    let golden = golden();
    let jitter: Vec<_> = golden["order"].as_array().expect("steps").iter().map(operation).collect();
    let cropped = plain(crop([3, 2, 17, 13]));
    let grey = Augmentation { grayscale: true, jitter, ..cropped.clone() };
    let last = Augmentation { order: Order::JitterFirst, ..grey.clone() };
    let file = bytes(&golden["jpeg"]);
    for (name, drawn, most) in
        [("jpeg_resized", cropped, 1), ("jpeg_grey_first", grey, 4), ("jpeg_jitter_first", last, 4)]
    {
        assert_close(&augmented(&file, drawn), &bytes(&golden[name]), most, 1.0, name);
    }
}

#[test]
fn the_evaluation_transform_is_torchvisions() {
    let golden = golden();
    let mut out = vec![0; 3 * 12 * 12];
    let transform = EvalTransform::ResizeCenterCrop { resize: 14, crop: 12 };
    evaluate(&opened(&image(&golden)), transform, &mut out).expect("a good image");
    assert_close(&out, &bytes(&golden["evaluated"]), 1, 0.5, "evaluated");
}

#[test]
fn crops_and_evaluation_see_the_upright_image() {
    let transform = EvalTransform::ResizeCenterCrop { resize: 20, crop: 16 };
    let as_stored = encode_jpeg(&detailed(61, 37), 90).expect("encoded");
    for tag in 1..=8 {
        let file = turned(&as_stored, tag);
        let upright = decode(&file, &Default::default()).expect("decoded").turned(Orientation::of(&file));
        let expected_file = encode_png(&upright).expect("encoded");
        let mut pixels = [vec![0; 3 * 16 * 16], vec![0; 3 * 16 * 16]];
        let [seen, expected] = &mut pixels;
        let file = Encoded::ingested(&file, ExifOrientation::Apply).expect("a good image");
        let expected_file = opened(&expected_file);
        evaluate(&file, transform, seen).expect("a good image");
        evaluate(&expected_file, transform, expected).expect("a good image");
        assert!(seen == expected, "evaluated, {tag}");
        let crop = CropBox { left: 5, top: 11, width: 30, height: 20 };
        let drawn = Augmentation { flip: true, ..plain(crop) };
        let draw = |width, height| {
            assert_eq!((width, height), (upright.width, upright.height), "{tag}");
            drawn.clone()
        };
        augment(&file, draw, 16, seen).expect("a good image");
        augment(&expected_file, draw, 16, expected).expect("a good image");
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
            renderer.evaluate(&opened(&file), transform, &mut pixels).expect("a good image");
            assert!(renderer.held_bytes() < 1 << 20, "{}", renderer.held_bytes());
        }
        // 12,000 pixels become 3,072,000, so the 224 in the centre are interpolated between two.
        let lossless = encode_png(&image).expect("encoded");
        evaluate(&opened(&lossless), transform, &mut pixels).expect("a good image");
        let between = |channel: usize| [5999, 6000].map(|at| image.rgb[3 * at + channel]);
        for (channel, plane) in pixels.chunks_exact(224 * 224).enumerate() {
            let [first, second] = between(channel);
            let range = first.min(second).saturating_sub(1)..=first.max(second).saturating_add(1);
            assert!(plane.iter().all(|value| range.contains(value)), "{width}x{height} {channel}");
        }
    }
}
