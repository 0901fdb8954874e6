use super::*;
use crate::rng::{Purpose, Stream};
use crate::simd::Kernel;

/// Planes of noise, with some grey and some fully saturated pixels.
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
