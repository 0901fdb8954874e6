//! What the loader makes of an image, beside what torchvision makes of it with the same parameters.

use std::io::Write;
use std::path::{Path, PathBuf};

use instdisc::augment::{Augmentation, ColourOperation, CropBox, JitterStrength, Order, Recipe, augment};
use instdisc::ids::InstanceId;
use instdisc::image::{DecodedImage, Encoded, ExifOrientation, encode_jpeg, encode_png};
use instdisc::rng::{Purpose, Stream};
use serde_json::{Value, json};

use super::support::{python, scratch};

const SIDE: u32 = 224;

/// Smooth colours, stripes and noise: flat parts, edges, and colours at the ends of their range.
fn drawn_image(width: u32, height: u32, seed: u64) -> DecodedImage {
    let mut stream = Stream::new(seed, Purpose::Test, 7, 0);
    let mut rgb = Vec::with_capacity((width * height * 3) as usize);
    for y in 0..height {
        for x in 0..width {
            let wave = |k: f64| (127.5 + 127.5 * ((f64::from(x) * k + f64::from(y) * 0.7 * k).sin())) as u32;
            let noise = if (x / 40 + y / 30) % 3 == 0 { stream.below(60) as u32 } else { 0 };
            let stripe = if (x / 9 + y / 7) % 11 == 0 { 90 } else { 0 };
            rgb.extend(
                [wave(0.011) + noise, wave(0.017) + stripe, wave(0.023) + noise / 2]
                    .map(|v| v.min(255) as u8),
            );
        }
    }
    DecodedImage { width, height, rgb }
}

/// Cases for check_augment.py: files, what was done to them, and what came out.
struct Cases<'a> {
    folder: &'a Path,
    list: Vec<Value>,
}

impl Cases<'_> {
    fn add(&mut self, kind: &str, file: &[u8], drawn: impl Fn(u32, u32) -> Augmentation) {
        let mut pixels = vec![0; (3 * SIDE * SIDE) as usize];
        let encoded = Encoded::ingested(file, ExifOrientation::Ignore).expect("a good image");
        let drawn = augment(&encoded, drawn, SIDE, &mut pixels).expect("a good image");
        let name = format!("{:04}", self.list.len());
        std::fs::write(self.folder.join(format!("{name}.image")), file).expect("written");
        std::fs::write(self.folder.join(format!("{name}.pixels")), pixels).expect("written");
        self.list.push(json!({"name": name, "kind": kind, "augmentation": drawn}));
    }
}

fn plain(crop: CropBox) -> Augmentation {
    Augmentation { crop, grayscale: false, jitter: Vec::new(), flip: false, order: Order::GrayscaleFirst }
}

fn whole(width: u32, height: u32) -> CropBox {
    CropBox { left: 0, top: 0, width, height }
}

/// JPEGs of the test's own, or those in the folder that INSTDISC_IMAGES names.
fn jpegs() -> Vec<Vec<u8>> {
    if let Some(folder) = std::env::var_os("INSTDISC_IMAGES") {
        let files = walkdir::WalkDir::new(PathBuf::from(folder)).sort_by_file_name();
        let files = files.into_iter().filter_map(Result::ok).filter(|entry| entry.file_type().is_file());
        return files.map(|entry| std::fs::read(entry.path()).expect("readable")).collect();
    }
    [(500, 375), (333, 500), (1200, 800), (180, 140)]
        .into_iter()
        .zip(0..)
        .map(|((width, height), seed)| encode_jpeg(&drawn_image(width, height, seed), 92).expect("encoded"))
        .collect()
}

#[test]
fn operations_and_compositions_are_torchvisions() {
    let folder = scratch();
    let mut cases = Cases { folder: folder.path(), list: Vec::new() };
    let lossless = encode_png(&drawn_image(SIDE, SIDE, 9)).expect("encoded");
    let mut operations = vec![];
    for factor in [0.6, 0.87, 1.0, 1.13, 1.4] {
        operations.push(ColourOperation::Brightness(factor));
        operations.push(ColourOperation::Contrast(factor));
        operations.push(ColourOperation::Saturation(factor));
    }
    operations.extend([-0.4, -0.21, -0.05, 0.0, 0.12, 0.33, 0.4].map(ColourOperation::Hue));
    for operation in operations {
        cases.add("operation", &lossless, |w, h| Augmentation {
            jitter: vec![operation],
            ..plain(whole(w, h))
        });
    }
    cases.add("operation", &lossless, |w, h| Augmentation { grayscale: true, ..plain(whole(w, h)) });
    cases.add("operation", &lossless, |w, h| Augmentation { flip: true, ..plain(whole(w, h)) });
    let no_colour = JitterStrength { brightness: 0.0, contrast: 0.0, saturation: 0.0, hue: 0.0 };
    let crops = Recipe { jitter: no_colour, grayscale: 0.0, ..Recipe::imagenet(SIDE) };
    for (index, file) in (0..).zip(jpegs()) {
        let id = InstanceId(index);
        for epoch in 0..3 {
            cases.add("resize", &file, |w, h| crops.draw_for(1, epoch, id, w, h));
        }
        for epoch in 0..8 {
            cases.add("composition", &file, |w, h| Recipe::imagenet(SIDE).draw_for(1, epoch, id, w, h));
            cases.add("composition", &file, |w, h| Recipe::cifar(SIDE).draw_for(1, epoch, id, w, h));
        }
    }
    let list = serde_json::to_string(&cases.list).expect("JSON");
    std::fs::write(folder.path().join("cases.json"), list).expect("written");
    let test = "operations_and_compositions_are_torchvisions";
    let Some(output) = python(test, "tests/python/check_augment.py", &[folder.path()]) else { return };
    let seen: Value = serde_json::from_str(&output).expect("JSON");
    let number = |path: &str| seen.pointer(path).and_then(Value::as_f64).expect(path);
    assert!(number("/operation/largest") <= 2.0, "{seen}");
    assert!(number("/resize/largest") <= 2.0, "{seen}");
    // Pillow rounds hue and saturation to bytes, so single pixels differ more there.
    assert!(number("/operation_pil/mean") < 1.0, "{seen}");
    // The mean over the pixels of the worst image.
    assert!(number("/composition/worst_mean") < 1.0, "{seen}");
    // Shown with --nocapture, for docs/performance.md.
    let _ = writeln!(std::io::stderr(), "{seen}");
}

#[test]
fn draws_are_distributed_as_torchvisions() {
    const DRAWS: u64 = 100_000;
    let folder = scratch();
    let recipe = Recipe::imagenet(SIDE);
    let mut numbers: Vec<f64> = Vec::new();
    for (width, height) in [(500, 375), (300, 1000)] {
        for draw in 0..DRAWS {
            let drawn = recipe.draw_for(5, draw, InstanceId(width), width, height);
            let CropBox { left, top, width, height } = drawn.crop;
            numbers.extend([top, left, height, width].map(f64::from));
            let mut factors = [0.0; 4];
            let mut places = [0.0; 4];
            for (place, operation) in (0..).zip(&drawn.jitter) {
                let (at, factor) = match *operation {
                    ColourOperation::Brightness(factor) => (0, factor),
                    ColourOperation::Contrast(factor) => (1, factor),
                    ColourOperation::Saturation(factor) => (2, factor),
                    ColourOperation::Hue(shift) => (3, shift),
                };
                (factors[at], places[at]) = (factor, f64::from(place));
            }
            numbers.extend(factors.into_iter().chain(places));
            numbers.extend([drawn.grayscale, drawn.flip].map(f64::from));
        }
    }
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    std::fs::write(folder.path().join("draws.f64"), bytes).expect("written");
    let test = "draws_are_distributed_as_torchvisions";
    let Some(output) = python(test, "tests/python/check_draws.py", &[folder.path()]) else { return };
    let seen: Value = serde_json::from_str(&output).expect("JSON");
    // Two samples of 100,000: the Kolmogorov-Smirnov distance is below this with probability 0.9999.
    let bound = (2.0 / DRAWS as f64).sqrt() * (0.5 * (2.0_f64 / 1e-4).ln()).sqrt();
    for (name, distance) in seen.as_object().expect("an object") {
        assert!(distance.as_f64().expect("a number") < bound, "{name}: {distance} {bound}");
    }
    assert!(seen.as_object().expect("an object").len() >= 20);
}
