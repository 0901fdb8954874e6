//! Pixels against torchvision's, from tests/golden/augment.json and the script beside it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::augment::colour::{Step, recolour, to_grey};
use crate::augment::recipe::Order;
use crate::augment::{Augmentation, ColourOperation, CropBox, EvalTransform, augment, evaluate_pixels};
use crate::image::{DecodedImage, ExifOrientation, encode_png};

fn golden() -> Value {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/augment.json"));
    serde_json::from_str(text).expect("the golden file")
}

fn bytes(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().expect("a text")).expect("base64")
}

/// Planar to interleaved.
fn interleaved(planes: &[u8]) -> Vec<u8> {
    let plane = planes.len() / 3;
    (0..plane).flat_map(|at| [planes[at], planes[plane + at], planes[2 * plane + at]]).collect()
}

/// The source as a file without loss.
fn image(golden: &Value) -> Vec<u8> {
    let side = |name: &str| golden[name].as_u64().expect("a number") as u32;
    let rgb = interleaved(&bytes(&golden["source"]));
    encode_png(&DecodedImage { width: side("width"), height: side("height"), rgb }).expect("encoded")
}

fn augmented(golden: &Value, drawn: Augmentation) -> Vec<u8> {
    let mut out = vec![0; 3 * 12 * 12];
    augment(&image(golden), ExifOrientation::Ignore, |_, _| drawn, 12, &mut out).expect("a good image");
    out
}

fn operation(value: &Value) -> ColourOperation {
    let factor = value["factor"].as_f64().expect("a number");
    match value["name"].as_str().expect("a name") {
        "brightness" => ColourOperation::Brightness(factor),
        "contrast" => ColourOperation::Contrast(factor),
        "saturation" => ColourOperation::Saturation(factor),
        "hue" => ColourOperation::Hue(factor),
        other => panic!("{other} is no operation"),
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
        let out = augmented(&golden, plain(crop(at)));
        assert_close(&out, &bytes(&golden[name]), 1, 0.5, name);
    }
}

#[test]
fn the_composition_is_torchvisions() {
    let golden = golden();
    let jitter = golden["order"].as_array().expect("steps").iter().map(operation).collect();
    let drawn = Augmentation { jitter, flip: true, ..plain(crop([3, 2, 17, 13])) };
    let out = augmented(&golden, drawn);
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
        let mut out = vec![0; 3 * 12 * 12];
        augment(&file, ExifOrientation::Ignore, |_, _| drawn, 12, &mut out).expect("a good image");
        assert_close(&out, &bytes(&golden[name]), most, 1.0, name);
    }
}

#[test]
fn the_evaluation_transform_is_torchvisions() {
    let golden = golden();
    let mut out = vec![0; 3 * 12 * 12];
    let transform = EvalTransform::ResizeCenterCrop { resize: 14, crop: 12 };
    evaluate_pixels(&image(&golden), ExifOrientation::Ignore, transform, &mut out).expect("a good image");
    assert_close(&out, &bytes(&golden["evaluated"]), 1, 0.5, "evaluated");
}
