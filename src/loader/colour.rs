//! Colour operations on interleaved u8 pixels.
//!
//! # Source
//! torchvision `transforms/v2/functional/_color.py` on uint8 tensors: the same formulas in f32, clamped
//! and cut to integers after each step.

use super::recipe::ColourOperation;

/// The weights of red, green and blue in grey (ITU-R 601, torchvision's digits).
const GREY: [f32; 3] = [0.2989, 0.587, 0.114];
/// torchvision turns a colour in 0..1 into a byte by this factor and cutting.
const UNIT_TO_BYTE: f32 = 255.999;

/// Does one step of colour jitter.
pub(super) fn adjust(pixels: &mut [u8], operation: ColourOperation) {
    match operation {
        ColourOperation::Brightness(factor) => {
            let table = byte_table(|value| value * factor as f32);
            pixels.iter_mut().for_each(|value| *value = table[usize::from(*value)]);
        }
        ColourOperation::Contrast(factor) => {
            let mean = mean_grey(pixels);
            let (own, other) = (factor as f32, (1.0 - factor) as f32 * mean);
            let table = byte_table(|value| value * own + other);
            pixels.iter_mut().for_each(|value| *value = table[usize::from(*value)]);
        }
        ColourOperation::Saturation(factor) => saturate(pixels, factor as f32, (1.0 - factor) as f32),
        ColourOperation::Hue(shift) => turn_hue(pixels, shift as f32),
    }
}

/// Takes the colours away.
pub(super) fn grayscale(pixels: &mut [u8]) {
    for pixel in pixels.as_chunks_mut::<3>().0 {
        *pixel = [grey(pixel) as u8; 3];
    }
}

fn grey(pixel: &[u8; 3]) -> f32 {
    f32::from(pixel[0]) * GREY[0] + f32::from(pixel[1]) * GREY[1] + f32::from(pixel[2]) * GREY[2]
}

/// The mean of the grey values, each cut to an integer.
fn mean_grey(pixels: &[u8]) -> f32 {
    let (pixels, _) = pixels.as_chunks::<3>();
    let sum: u64 = pixels.iter().map(|pixel| grey(pixel) as u64).sum();
    (sum as f64 / pixels.len().max(1) as f64) as f32
}

fn byte_table(value: impl Fn(f32) -> f32) -> [u8; 256] {
    std::array::from_fn(|byte| value(byte as f32).clamp(0.0, 255.0) as u8)
}

fn saturate(pixels: &mut [u8], own: f32, other: f32) {
    for pixel in pixels.as_chunks_mut::<3>().0 {
        let grey = grey(pixel).floor() * other;
        *pixel = pixel.map(|value| (f32::from(value) * own + grey).clamp(0.0, 255.0) as u8);
    }
}

fn turn_hue(pixels: &mut [u8], shift: f32) {
    for pixel in pixels.as_chunks_mut::<3>().0 {
        let (hue, saturation, value) = hsv_of(pixel.map(|byte| f32::from(byte) / 255.0));
        let turned = (hue + shift).rem_euclid(1.0);
        *pixel = rgb_of(turned, saturation, value).map(|unit| (unit * UNIT_TO_BYTE) as u8);
    }
}

/// # Source
/// torchvision `_rgb_to_hsv`; a grey pixel has hue 0.
fn hsv_of([red, green, blue]: [f32; 3]) -> (f32, f32, f32) {
    let most = red.max(green).max(blue);
    let least = red.min(green).min(blue);
    let chroma = most - least;
    if chroma == 0.0 {
        return (0.0, 0.0, most);
    }
    let [r, g, b] = [red, green, blue].map(|channel| (most - channel) / chroma);
    let sector = if most == red {
        b - g
    } else if most == green {
        2.0 + r - b
    } else {
        4.0 + g - r
    };
    ((sector / 6.0 + 1.0).fract(), chroma / most, most)
}

/// # Source
/// torchvision `_hsv_to_rgb`.
fn rgb_of(hue: f32, saturation: f32, value: f32) -> [f32; 3] {
    let scaled = hue * 6.0;
    let sector = scaled.floor();
    let within = scaled - sector;
    let p = (value * (1.0 - saturation)).clamp(0.0, 1.0);
    let q = (value * (1.0 - saturation * within)).clamp(0.0, 1.0);
    let t = (value * (1.0 - saturation * (1.0 - within))).clamp(0.0, 1.0);
    match sector as i32 % 6 {
        0 => [value, t, p],
        1 => [q, value, p],
        2 => [p, value, t],
        3 => [p, q, value],
        4 => [t, p, value],
        _ => [value, p, q],
    }
}
