//! The look of an image in 256 bits, so that near-duplicates are found after re-encoding and resizing.
//!
//! The brightness is averaged over 64×64 cells; of its cosine transform the 16×16 lowest frequencies without the
//! constant are kept, and each gives a bit: above their median or not. All sums are integers, so the bits are
//! the same on every machine.
//!
//! # Source
//! The design follows Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, section
//! 3.2, with the grid of PDQ (Facebook, "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing
//! Algorithm", 2019): a larger grid tells more images apart.

use std::sync::OnceLock;

use crate::dataset::ViewHash;
use crate::image::Luma;

/// Cells on a side of the grid.
const GRID: usize = 64;
/// Frequencies kept in each direction.
const FREQUENCIES: usize = 16;
/// Two images with at most this many differing bits are near-duplicates: re-encoded and resized images differ in
/// at most 18, different photographs in 92 or more (measured on ImageNet, docs/performance.md).
pub(crate) const MOST_DIFFERING_BITS: u32 = 20;
/// The standard deviation of the cells, in grey levels, below which an image has no view to speak of: its
/// bits would be noise.
const LEAST_CONTRAST: f64 = 4.0;
/// One in the fixed-point numbers of the transform's table.
const ONE: f64 = 16384.0;

/// The view of an image; none where it has no contrast.
pub(crate) fn view_hash(luma: &Luma) -> Option<ViewHash> {
    let cells = cells(luma);
    if contrast(&cells) < LEAST_CONTRAST {
        return None;
    }
    let spectrum = spectrum(&cells);
    let mut sorted = spectrum;
    let (_, median, _) = sorted.select_nth_unstable(spectrum.len() / 2);
    let mut words = [0_u64; 4];
    for (bit, value) in spectrum.iter().enumerate() {
        words[bit / 64] |= u64::from(value > median) << (bit % 64);
    }
    Some(ViewHash(words))
}

/// The mean brightness of each cell, in 1/256 grey levels.
fn cells(luma: &Luma) -> Vec<i64> {
    let (width, height) = (luma.width as usize, luma.height as usize);
    // A side smaller than the grid gives its pixels to several cells.
    let bounds = |cell: usize, side: usize| {
        let start = cell * side / GRID;
        start..((cell + 1) * side / GRID).max(start + 1)
    };
    let mut cells = Vec::with_capacity(GRID * GRID);
    let mut columns = vec![0_u32; width];
    for band in 0..GRID {
        let rows = bounds(band, height);
        columns.fill(0);
        for row in rows.clone() {
            let line = &luma.values[row * width..(row + 1) * width];
            for (sum, &value) in columns.iter_mut().zip(line) {
                *sum += u32::from(value);
            }
        }
        for cell in 0..GRID {
            let range = bounds(cell, width);
            let pixels = (range.len() * rows.len()) as u64;
            let sum: u64 = columns[range].iter().map(|&sum| u64::from(sum)).sum();
            cells.push((sum * 256 / pixels) as i64);
        }
    }
    cells
}

fn contrast(cells: &[i64]) -> f64 {
    let count = cells.len() as f64;
    let (sum, squares) =
        cells.iter().fold((0, 0), |(sum, squares), &cell| (sum + cell, squares + cell * cell));
    let mean = sum as f64 / count;
    (squares as f64 / count - mean * mean).max(0.0).sqrt() / 256.0
}

/// The lowest frequencies but the constant, row after row.
fn spectrum(cells: &[i64]) -> [i64; FREQUENCIES * FREQUENCIES] {
    let table = cosines();
    // Columns first: [frequency, cell].
    let mut columns = [0_i64; FREQUENCIES * GRID];
    for (frequency, out) in columns.chunks_exact_mut(GRID).enumerate() {
        for (row, line) in cells.chunks_exact(GRID).enumerate() {
            let weight = table[frequency * GRID + row];
            for (sum, &cell) in out.iter_mut().zip(line) {
                *sum += weight * cell;
            }
        }
    }
    let mut spectrum = [0; FREQUENCIES * FREQUENCIES];
    for (out, line) in spectrum.chunks_exact_mut(FREQUENCIES).zip(columns.chunks_exact(GRID)) {
        for (frequency, value) in out.iter_mut().enumerate() {
            let weights = &table[frequency * GRID..(frequency + 1) * GRID];
            *value = weights.iter().zip(line).map(|(weight, sum)| weight * (sum >> 8)).sum();
        }
    }
    spectrum
}

/// `cos(π/64 · (cell + ½) · frequency)` for the frequencies 1 to 16, in fixed point.
fn cosines() -> &'static [i64; FREQUENCIES * GRID] {
    static TABLE: OnceLock<[i64; FREQUENCIES * GRID]> = OnceLock::new();
    TABLE.get_or_init(|| {
        std::array::from_fn(|at| {
            let (frequency, cell) = (at / GRID + 1, at % GRID);
            let angle = std::f64::consts::PI / GRID as f64 * (cell as f64 + 0.5) * frequency as f64;
            (angle.cos() * ONE).round() as i64
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{DecodedImage, Limits, check, encode_jpeg, luma, shrink};
    use crate::rng::{Purpose, Stream};

    /// An image of random waves, the longer the stronger, as in photographs.
    fn waves(seed: u64, width: u32, height: u32) -> DecodedImage {
        let mut stream = Stream::new(seed, Purpose::Test, 0, 0);
        let mut wave = |_| {
            let (a, b) = (stream.range(-60.0, 60.0), stream.range(-60.0, 60.0));
            (a, b, stream.range(0.0, 6.3), 60.0 / (3.0 + f64::hypot(a, b)))
        };
        let waves: Vec<(f64, f64, f64, f64)> = (0..150).map(&mut wave).collect();
        let value = |x: f64, y: f64| {
            let sum: f64 = waves.iter().map(|(a, b, phase, size)| size * (a * x + b * y + phase).sin()).sum();
            (128.0 + 3.0 * sum).clamp(0.0, 255.0) as u8
        };
        let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        let rgb = pixels.flat_map(|(x, y)| {
            let grey = value(f64::from(x) / f64::from(width), f64::from(y) / f64::from(height));
            [grey, grey.saturating_add(3), grey / 2]
        });
        DecodedImage { width, height, rgb: rgb.collect() }
    }

    fn hash(image: &DecodedImage) -> ViewHash {
        view_hash(&luma(image)).expect("a view")
    }

    #[test]
    fn a_image_keeps_its_view_when_it_is_re_encoded_and_resized() {
        for seed in 0..4 {
            let original = waves(seed, 300, 225);
            let view = hash(&original);
            for quality in [30, 75] {
                let bytes = encode_jpeg(&original, quality).expect("encoded");
                let (_, luma) = check(&bytes, &Limits::default()).expect("decoded");
                let distance = view_hash(&luma).expect("a view").distance(&view);
                assert!(distance <= MOST_DIFFERING_BITS, "{seed} quality {quality}: {distance}");
            }
            for side in [250, 150] {
                let smaller = shrink(&original, Some(side), None).expect("smaller");
                let distance = hash(&smaller).distance(&view);
                assert!(distance <= MOST_DIFFERING_BITS, "{seed} side {side}: {distance}");
            }
        }
    }

    #[test]
    fn different_images_have_different_views() {
        let views: Vec<ViewHash> = (0..40).map(|seed| hash(&waves(seed, 100, 80))).collect();
        for (place, view) in views.iter().enumerate() {
            assert!(views[..place].iter().all(|other| other.distance(view) > 2 * MOST_DIFFERING_BITS));
        }
    }

    #[test]
    fn a_image_without_contrast_has_no_view() {
        let plain = DecodedImage { width: 50, height: 40, rgb: vec![200; 6000] };
        assert_eq!(view_hash(&luma(&plain)), None);
    }

    #[test]
    fn sides_smaller_than_the_grid_have_a_view() {
        for (width, height) in [(1, 200), (200, 1), (32, 32), (63, 65)] {
            assert!(view_hash(&luma(&waves(3, width, height))).is_some(), "{width}x{height}");
        }
    }

    /// The bits of a view are stored: they must not change with a library or a machine.
    #[test]
    fn views_stay_what_they_are() {
        let image = DecodedImage {
            width: 70,
            height: 50,
            rgb: (0..70 * 50_u32).flat_map(|at| [(at * at / 7 % 251) as u8, (at % 256) as u8, 9]).collect(),
        };
        let expected = [4708841393625396969, 5105021546860658204, 8991270538749293908, 7679891659174624471];
        assert_eq!(hash(&image).0, expected);
    }
}
