//! Colour operations on planes of bytes, in place, in one or two passes.
//!
//! Each operation is torchvision's on uint8 tensors: the same formulas in f32, clamped and cut to integers after
//! each step. A few dozen pixels at a time pass through all steps up to contrast, which needs the mean of the whole
//! image, and then through the rest. f32 operations are not fused, so all machines give the same bytes.
//!
//! # Source
//! torchvision `transforms/v2/functional/_color.py`. Hue uses the distance of a colour to the three primaries on the
//! colour circle, which saves torchvision's detour over a saturation and two remainders.

use super::recipe::ColourOperation;
use crate::simd::{self, SimdLevel};

/// Weights of red, green and blue in grey (ITU-R 601, torchvision's digits).
const GREY: [f32; 3] = [0.2989, 0.587, 0.114];
/// torchvision converts a colour in 0..1 to a byte by multiplying with 255.999 and cutting.
const BYTE_TO_BYTE: f32 = 255.999 / 255.0;
/// Number of pixels that pass through all steps together.
const CHUNK: usize = 128;
/// Number that, added to a smaller integer, leaves the integer in the low bits of the f32 sum.
const MAGIC: f32 = 8_388_608.0;

/// A step of recolouring, with its parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Step {
    /// One of the four steps of colour jitter.
    Jitter(ColourOperation),
    /// Removal of the colours.
    Grayscale,
}

/// A few pixels: red, green, blue. Loops run over slices, whose length the compiler does not know, so it keeps the
/// loops instead of spreading them over more registers than exist.
type Pixels = [[f32; CHUNK]; 3];

/// Applies the steps to planes of red, green and blue.
///
/// # Shape
/// `planes: [3, pixels]`
///
/// # Panics
/// If the planes are of different lengths.
pub(crate) fn recolour(planes: &mut [u8], steps: &[Step]) {
    let is_contrast = |step: &Step| matches!(step, Step::Jitter(ColourOperation::Contrast(_)));
    let mut rest = steps;
    let mut mean = 0.0;
    while !rest.is_empty() {
        // The first step may be a contrast, whose mean is known by now; the mean of a later one is not.
        let len = rest.iter().skip(1).position(is_contrast).map_or(rest.len(), |at| at + 1);
        let (now, later) = rest.split_at(len);
        if is_contrast(&rest[0]) && rest.len() == steps.len() {
            mean = SimdLevel::long().run(Pass { planes: &mut *planes, steps: &[], mean, sums: true });
        }
        mean =
            SimdLevel::long().run(Pass { planes: &mut *planes, steps: now, mean, sums: !later.is_empty() });
        rest = later;
    }
}

/// Converts to grey, and leaves the result in the first plane.
///
/// # Shape
/// `planes: [3, pixels]`
pub(crate) fn to_grey(planes: &mut [u8]) {
    SimdLevel::long().run(ToGrey { planes });
}

/// Applies the steps to a plane that red, green and blue share.
pub(crate) fn recolour_grey(plane: &mut [u8], steps: &[Step]) {
    let mut table: [u8; 256] = std::array::from_fn(|value| value as u8);
    for &step in steps {
        let mean = match step {
            Step::Jitter(ColourOperation::Contrast(_)) => {
                let greys = table.map(|value| grey([f32::from(value); 3]) as u8);
                let sum: u64 = plane.iter().map(|&value| u64::from(greys[usize::from(value)])).sum();
                mean_of(sum, plane.len())
            }
            _ => 0.0,
        };
        let mut pixels = [[0.0; CHUNK]; 3];
        for values in table.chunks_mut(CHUNK) {
            pixels.iter_mut().for_each(|channel| load(values, channel));
            apply(step, mean, &mut pixels, values.len());
            store(&pixels[0], values);
        }
    }
    for value in plane {
        *value = table[usize::from(*value)];
    }
}

fn mean_of(sum: u64, len: usize) -> f32 {
    (sum as f64 / len.max(1) as f64) as f32
}

/// A pass of steps over all pixels; returns the mean grey of the result if `sums` is set.
struct Pass<'a> {
    planes: &'a mut [u8],
    steps: &'a [Step],
    mean: f32,
    sums: bool,
}

impl simd::Kernel for Pass<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let Self { planes, steps, mean, sums } = self;
        let len = planes.len() / 3;
        let (red, rest) = planes.split_at_mut(len);
        let (green, blue) = rest.split_at_mut(len);
        let mut sum = 0;
        let mut pixels = [[0.0; CHUNK]; 3];
        let chunks = red.chunks_mut(CHUNK).zip(green.chunks_mut(CHUNK)).zip(blue.chunks_mut(CHUNK));
        for ((red, green), blue) in chunks {
            load(red, &mut pixels[0]);
            load(green, &mut pixels[1]);
            load(blue, &mut pixels[2]);
            for &step in steps {
                apply(step, mean, &mut pixels, red.len());
            }
            if !steps.is_empty() {
                store(&pixels[0], red);
                store(&pixels[1], green);
                store(&pixels[2], blue);
            }
            if sums {
                sum += u64::from(sum_of_greys(&pixels, red.len()));
            }
        }
        mean_of(sum, len)
    }
}

#[inline(always)]
fn load(bytes: &[u8], values: &mut [f32; CHUNK]) {
    for (value, &byte) in values.iter_mut().zip(bytes) {
        *value = f32::from(byte);
    }
}

#[inline(always)]
fn store(values: &[f32; CHUNK], bytes: &mut [u8]) {
    for (byte, &value) in bytes.iter_mut().zip(values) {
        *byte = to_byte(value);
    }
}

/// Converts a whole number from 0 to 255 to a byte.
#[inline(always)]
fn to_byte(value: f32) -> u8 {
    (value + MAGIC).to_bits() as u8
}

#[inline(always)]
fn sum_of_greys(pixels: &Pixels, len: usize) -> u32 {
    let [red, green, blue] = pixels.each_ref().map(|channel| &channel[..len]);
    let greys =
        red.iter().zip(green).zip(blue).map(|((&red, &green), &blue)| grey([red, green, blue]).floor());
    greys.map(|grey| (grey + MAGIC).to_bits() - MAGIC.to_bits()).sum()
}

#[inline(always)]
fn grey([red, green, blue]: [f32; 3]) -> f32 {
    red * GREY[0] + green * GREY[1] + blue * GREY[2]
}

struct ToGrey<'a> {
    planes: &'a mut [u8],
}

impl simd::Kernel for ToGrey<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let len = self.planes.len() / 3;
        let (red, rest) = self.planes.split_at_mut(len);
        let (green, blue) = rest.split_at(len);
        for ((red, &green), &blue) in red.iter_mut().zip(green).zip(blue) {
            *red = to_byte(grey([f32::from(*red), f32::from(green), f32::from(blue)]).floor());
        }
    }
}

/// Applies a step to the first `len` pixels; contrast blends with `mean`.
#[inline(always)]
fn apply(step: Step, mean: f32, pixels: &mut Pixels, len: usize) {
    let [red, green, blue] = pixels.each_mut().map(|channel| &mut channel[..len]);
    match step {
        Step::Jitter(ColourOperation::Brightness(factor)) => {
            [red, green, blue].into_iter().for_each(|channel| blend(channel, factor as f32, 0.0));
        }
        Step::Jitter(ColourOperation::Contrast(factor)) => {
            let (own, other) = (factor as f32, (1.0 - factor) as f32 * mean);
            [red, green, blue].into_iter().for_each(|channel| blend(channel, own, other));
        }
        Step::Jitter(ColourOperation::Saturation(factor)) => {
            saturate(red, green, blue, factor as f32, (1.0 - factor) as f32);
        }
        Step::Jitter(ColourOperation::Hue(shift)) => turn_hue(red, green, blue, shift as f32 * 6.0),
        Step::Grayscale => saturate(red, green, blue, 0.0, 1.0),
    }
}

#[inline(always)]
fn blend(channel: &mut [f32], own: f32, other: f32) {
    for value in channel {
        *value = cut(*value * own + other);
    }
}

/// Clamps to 0..=255 and cuts to a whole number.
#[inline(always)]
fn cut(value: f32) -> f32 {
    value.clamp(0.0, 255.0).floor()
}

#[inline(always)]
fn saturate(red: &mut [f32], green: &mut [f32], blue: &mut [f32], own: f32, other: f32) {
    for ((red, green), blue) in red.iter_mut().zip(green).zip(blue) {
        let grey = grey([*red, *green, *blue]).floor() * other;
        *red = cut(*red * own + grey);
        *green = cut(*green * own + grey);
        *blue = cut(*blue * own + grey);
    }
}

/// Turns the hue by `shift` on a circle of six units.
#[inline(always)]
fn turn_hue(red: &mut [f32], green: &mut [f32], blue: &mut [f32], shift: f32) {
    for ((red, green), blue) in red.iter_mut().zip(green).zip(blue) {
        let (r, g, b) = (*red, *green, *blue);
        let most = larger(larger(r, g), b);
        let least = smaller(smaller(r, g), b);
        let chroma = most - least;
        // Among equal channels red comes before green, and green before blue; grey has no hue.
        let (difference, start) = if most == g { (b - r, 2.0) } else { (r - g, 4.0) };
        let (difference, start) = if most == r { (g - b, 0.0) } else { (difference, start) };
        let hue = difference / larger(chroma, 1.0) + start + shift;
        let hue = if hue < 0.0 { hue + 6.0 } else { hue };
        let hue = if hue >= 6.0 { hue - 6.0 } else { hue };
        let channel = |share: f32| {
            let share = smaller(larger(share, 0.0), 1.0);
            ((least + chroma * share) * BYTE_TO_BYTE).floor()
        };
        *red = channel((hue - 3.0).abs() - 1.0);
        *green = channel(2.0 - (hue - 2.0).abs());
        *blue = channel(2.0 - (hue - 4.0).abs());
    }
}

/// Returns the larger of two numbers by one instruction; neither is NaN.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};
    use crate::simd::Kernel;

    /// Makes planes of noise, with some grey and some fully saturated pixels.
    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut stream = Stream::new(seed, Purpose::Test, 0, 0);
        let mut planes: Vec<u8> = (0..3 * len).map(|_| stream.bits() as u8).collect();
        for at in (0..len).step_by(5) {
            let value = planes[at];
            (planes[len + at], planes[2 * len + at]) = (value, value);
        }
        for at in (1..len).step_by(7) {
            (planes[at], planes[len + at]) = (255, 0);
        }
        planes
    }

    fn steps(stream: &mut Stream) -> Vec<Step> {
        let mut steps = vec![
            Step::Jitter(ColourOperation::Brightness(stream.range(0.6, 1.4))),
            Step::Jitter(ColourOperation::Contrast(stream.range(0.6, 1.4))),
            Step::Jitter(ColourOperation::Saturation(stream.range(0.6, 1.4))),
            Step::Jitter(ColourOperation::Hue(stream.range(-0.4, 0.4))),
            Step::Grayscale,
        ];
        stream.shuffle(&mut steps);
        steps.truncate(4);
        steps
    }

    #[test]
    fn all_processors_give_the_same_bytes() {
        let mut stream = Stream::new(9, Purpose::Test, 1, 0);
        for len in [1, 63, 128, 1000, 4096] {
            for round in 0..10 {
                let steps = steps(&mut stream);
                let mut plain = noise(round, len);
                let expected = Pass { planes: &mut plain, steps: &steps, mean: 77.5, sums: true }.run();
                for level in SimdLevel::available() {
                    let mut planes = noise(round, len);
                    let mean = level.run(Pass { planes: &mut planes, steps: &steps, mean: 77.5, sums: true });
                    assert_eq!((mean, &planes), (expected, &plain), "{level:?} {steps:?}");
                }
            }
        }
    }

    #[test]
    fn steps_together_are_steps_one_by_one() {
        let mut stream = Stream::new(9, Purpose::Test, 2, 0);
        for round in 0..50 {
            let steps = steps(&mut stream);
            let mut together = noise(round, 777);
            let mut one_by_one = together.clone();
            recolour(&mut together, &steps);
            steps.iter().for_each(|&step| recolour(&mut one_by_one, &[step]));
            assert_eq!(together, one_by_one, "{steps:?}");
        }
    }

    #[test]
    fn a_grey_image_needs_one_plane_only() {
        let mut stream = Stream::new(9, Purpose::Test, 3, 0);
        for round in 0..50 {
            let steps = steps(&mut stream);
            let mut plane = noise(round, 999)[..999].to_vec();
            let mut planes = plane.repeat(3);
            recolour(&mut planes, &steps);
            recolour_grey(&mut plane, &steps);
            assert_eq!(planes, plane.repeat(3), "{steps:?}");
        }
    }

    #[test]
    fn a_hue_turned_by_a_third_exchanges_the_channels() {
        // (200, 255, 30), (10, 50, 0), (0, 20, 0): red becomes green, green blue, blue red.
        let mut planes = vec![200, 10, 0, 255, 50, 20, 30, 0, 0];
        recolour(&mut planes, &[Step::Jitter(ColourOperation::Hue(1.0 / 3.0))]);
        let expected = [30, 0, 0, 200, 10, 0, 255, 50, 20];
        assert!(planes.iter().zip(expected).all(|(a, b): (&u8, u8)| a.abs_diff(b) <= 1), "{planes:?}");
    }
}
