use super::*;
use crate::rng::{Purpose, Stream};
use crate::simd::Kernel;

fn noise(stream: &mut Stream, len: usize) -> Vec<u8> {
    (0..len).map(|_| stream.bits() as u8).collect()
}

fn target(width: usize, height: usize) -> Target {
    Target { width, height, flip: false, rounding: Rounding::Nearest }
}

fn resized(source: &[u8], width: usize, height: usize, target: Target) -> Vec<u8> {
    let mut out = vec![0; target.width * target.height];
    Resizer::default().resize(source, width, height, target, &mut out);
    out
}

/// The same by the code that every processor can run.
fn portable(source: &[u8], width: usize, height: usize, target: Target) -> Vec<u8> {
    let mut resizer = Resizer::default();
    let mut out = vec![0; target.width * target.height];
    resizer.prepare(&Axis::whole(width, target.width), &Axis::whole(height, target.height), target.flip);
    Plane { resizer: &mut resizer, source, width, target, out: &mut out }.run();
    out
}

/// Sizes of sources and targets, below and above every width that some code handles at a time.
const SIZES: [(usize, usize, usize, usize); 9] = [
    (1, 1, 3, 5),
    (7, 40, 224, 224),
    (31, 33, 8, 8),
    (32, 32, 33, 31),
    (33, 100, 12, 70),
    (500, 375, 224, 224),
    (224, 224, 224, 224),
    (1500, 90, 64, 3),
    (97, 3000, 40, 9),
];

#[test]
fn all_processors_give_the_same_bytes() {
    let mut stream = Stream::new(1, Purpose::Test, 0, 0);
    for (width, height, columns, rows) in SIZES {
        let source = noise(&mut stream, width * height);
        for flip in [false, true] {
            for rounding in [Rounding::Nearest, Rounding::Down] {
                let target = Target { flip, rounding, ..target(columns, rows) };
                let expected = portable(&source, width, height, target);
                assert_eq!(resized(&source, width, height, target), expected, "{width}x{height} {target:?}");
            }
        }
    }
}

#[test]
fn a_part_has_the_bytes_that_it_has_in_the_whole() {
    let mut stream = Stream::new(3, Purpose::Test, 0, 0);
    for (width, height, columns, rows) in SIZES {
        let source = noise(&mut stream, width * height);
        let whole = resized(&source, width, height, target(columns, rows));
        let (left, top) = (columns / 3, rows / 4);
        for (wide, high) in [(1, 1), (columns / 2 + 1, rows / 2 + 1)] {
            let across = Axis::part(width, columns, left..left + wide);
            let down = Axis::part(height, rows, top..top + high);
            let inputs: Vec<u8> =
                down.inputs().flat_map(|row| &source[row * width..][across.inputs()]).copied().collect();
            let mut part = vec![0; wide * high];
            Resizer::default().resize_part(&inputs, (&across, &down), target(wide, high), &mut part);
            let expected: Vec<u8> =
                (top..top + high).flat_map(|row| &whole[row * columns + left..][..wide]).copied().collect();
            assert_eq!(part, expected, "{width}x{height} to {columns}x{rows}");
        }
    }
}

/// Pillow's filter in f64, without a rounding in between.
fn oracle(source: &[u8], width: usize, height: usize, target: Target) -> Vec<f64> {
    let weights = |from: usize, to: usize, at: usize| -> Vec<f64> {
        let scale = from as f64 / to as f64;
        let reach = scale.max(1.0);
        let centre = (at as f64 + 0.5) * scale;
        let weight = |input: usize| (1.0 - ((input as f64 + 0.5 - centre) / reach).abs()).max(0.0);
        let all: Vec<f64> = (0..from).map(weight).collect();
        let total: f64 = all.iter().sum();
        all.into_iter().map(|weight| weight / total).collect()
    };
    let mut out = Vec::new();
    for row in 0..target.height {
        let down = weights(height, target.height, row);
        for column in 0..target.width {
            let across = weights(width, target.width, column);
            let line = |row: usize| -> f64 {
                (0..width).map(|at| across[at] * f64::from(source[row * width + at])).sum()
            };
            out.push((0..height).filter(|&row| down[row] > 0.0).map(|row| down[row] * line(row)).sum());
        }
    }
    out
}

#[test]
fn pixels_are_those_of_the_exact_filter_rounded() {
    let mut stream = Stream::new(2, Purpose::Test, 0, 0);
    for (width, height, columns, rows) in [(61, 47, 24, 17), (40, 33, 64, 50), (200, 35, 9, 35), (8, 8, 8, 8)]
    {
        let source = noise(&mut stream, width * height);
        let exact = oracle(&source, width, height, target(columns, rows));
        let nearest = resized(&source, width, height, target(columns, rows));
        let down = Target { rounding: Rounding::Down, ..target(columns, rows) };
        let down = resized(&source, width, height, down);
        for ((exact, nearest), down) in exact.into_iter().zip(nearest).zip(down) {
            assert!((f64::from(nearest) - exact).abs() < 0.56, "{nearest} {exact}");
            assert!((-0.1..1.1).contains(&(exact - f64::from(down))), "{down} {exact}");
        }
    }
}

#[test]
fn a_flip_is_the_mirror_image() {
    let mut stream = Stream::new(3, Purpose::Test, 0, 0);
    let source = noise(&mut stream, 90 * 70);
    let plain = resized(&source, 90, 70, target(40, 30));
    let flipped = resized(&source, 90, 70, Target { flip: true, ..target(40, 30) });
    for (plain, flipped) in plain.chunks(40).zip(flipped.chunks(40)) {
        assert!(plain.iter().eq(flipped.iter().rev()));
    }
}

#[test]
fn white_stays_white_and_a_image_of_the_right_size_stays_as_it_is() {
    for (width, height, columns, rows) in SIZES {
        let out = resized(&vec![255; width * height], width, height, target(columns, rows));
        assert!(out.iter().all(|&value| value == 255), "{width}x{height}");
    }
    let mut stream = Stream::new(4, Purpose::Test, 0, 0);
    let source = noise(&mut stream, 100 * 60);
    assert_eq!(resized(&source, 100, 60, target(100, 60)), source);
}
