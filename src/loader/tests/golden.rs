//! Pixels against torchvision's, from tests/golden/augment.json and the script beside it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::loader::colour::{adjust, grayscale};
use crate::loader::recipe::Order;
use crate::loader::{Augmentation, ColourOperation, CropBox, EvalTransform, augment, evaluate_pixels};
use crate::picture::Picture;

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

fn picture(golden: &Value) -> Picture {
    let side = |name: &str| golden[name].as_u64().expect("a number") as u32;
    Picture { width: side("width"), height: side("height"), rgb: interleaved(&bytes(&golden["source"])) }
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
    for case in golden["colour"].as_array().expect("cases") {
        let mut pixels = picture(&golden).rgb;
        adjust(&mut pixels, operation(case));
        assert_close(&pixels, &interleaved(&bytes(&case["pixels"])), 1, 0.05, &case["name"].to_string());
    }
    let mut pixels = picture(&golden).rgb;
    grayscale(&mut pixels);
    assert_close(&pixels, &interleaved(&bytes(&golden["grayscale"])), 1, 0.05, "grayscale");
}

#[test]
fn resizing_is_pillows() {
    let golden = golden();
    for (name, at) in [("resized", [3, 2, 17, 13]), ("enlarged", [4, 4, 7, 5])] {
        let mut out = vec![0; 3 * 12 * 12];
        augment(&picture(&golden), &plain(crop(at)), 12, &mut out);
        assert_close(&out, &bytes(&golden[name]), 1, 0.5, name);
    }
}

#[test]
fn the_composition_is_torchvisions() {
    let golden = golden();
    let jitter = golden["order"].as_array().expect("steps").iter().map(operation).collect();
    let drawn = Augmentation { jitter, flip: true, ..plain(crop([3, 2, 17, 13])) };
    let mut out = vec![0; 3 * 12 * 12];
    augment(&picture(&golden), &drawn, 12, &mut out);
    assert_close(&out, &bytes(&golden["composed"]), 4, 1.0, "composed");
}

#[test]
fn the_evaluation_transform_is_torchvisions() {
    let golden = golden();
    let mut out = vec![0; 3 * 12 * 12];
    evaluate_pixels(&picture(&golden), EvalTransform::ResizeCenterCrop { resize: 14, crop: 12 }, &mut out);
    assert_close(&out, &bytes(&golden["evaluated"]), 1, 0.5, "evaluated");
}
