//! Resizes planes by an antialiased bilinear filter.
//!
//! The filter is Pillow's, in its support and weights. Between the two passes, sums keep 8 bits below the byte, where
//! Pillow rounds to bytes, so results differ from Pillow's by at most 1. All arithmetic is on integers, so every
//! machine gives the same bytes. Output columns may run backwards, which makes a flip free.

use std::ops::Range;

use crate::simd::{self, transposed};

/// Number of output rows computed at a time: two wide registers of 16-bit lanes.
const BAND: usize = 32;
/// Number of columns of the first pass that are summed at a time.
const CHUNK: usize = 64;

/// Rounding of sums to bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    Nearest,
    /// Down, as torchvision cuts grey.
    Down,
}

impl Rounding {
    /// Returns the number added to a sum of `terms` terms, each cut at its 8th bit below the byte.
    fn bias(self, terms: usize) -> u16 {
        let cut = (terms / 2) as u16;
        match self {
            Self::Nearest => 128 + cut,
            // torchvision's grey of a value without fraction is one less, since its factors sum to 0.9999.
            Self::Down => cut.saturating_sub(3),
        }
    }
}

/// One direction of a resize: its scale, and the ranges of inputs and outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Axis {
    /// Number of pixels of the whole image.
    from: usize,
    /// Number of pixels of the whole resized image.
    to: usize,
    outputs: Range<usize>,
    /// First pixel of the image in the input.
    inputs_from: usize,
}

impl Axis {
    fn whole(from: usize, to: usize) -> Self {
        Self { from, to, outputs: 0..to, inputs_from: 0 }
    }

    /// Makes an axis that computes some of the pixels, and reads only the inputs that they need.
    pub(crate) fn part(from: usize, to: usize, outputs: Range<usize>) -> Self {
        let axis = Self { inputs_from: 0, ..Self::whole(from, to) };
        Self { inputs_from: axis.first_input(outputs.start), outputs, ..axis }
    }

    /// Returns the range of pixels of the image that are needed, up to the last output's last input.
    pub(crate) fn inputs(&self) -> Range<usize> {
        self.inputs_from..self.first_input(self.outputs.end - 1) + self.terms()
    }

    fn scale(&self) -> f64 {
        self.from as f64 / self.to as f64
    }

    /// Returns the distance from an output's centre below which the centres of inputs count.
    fn reach(&self) -> f64 {
        self.scale().max(1.0)
    }

    fn terms(&self) -> usize {
        ((2.0 * self.reach()).ceil() as usize).min(self.from)
    }

    fn first_input(&self, at: usize) -> usize {
        let centre = (at as f64 + 0.5) * self.scale();
        let first = (centre - self.reach() + 0.5).max(0.0) as usize;
        first.min(self.from - self.terms())
    }
}

/// Weights of one direction.
#[derive(Clone, Debug, Default)]
struct Filter {
    /// By output: its first input.
    firsts: Vec<u32>,
    /// Number of terms in each output's sum: that of the longest sum, so that all loops have one length. Superfluous
    /// weights are 0.
    terms: usize,
    /// Weights in units of 1/65,536, `terms` for each output.
    weights: Vec<u16>,
    /// Weights of one output before they are rounded.
    exact: Vec<f64>,
}

impl Filter {
    /// # Source
    /// Pillow, `precompute_coeffs` of Resample.c.
    fn prepare(&mut self, axis: &Axis, backwards: bool) {
        let (scale, reach) = (axis.scale(), axis.reach());
        self.terms = axis.terms();
        self.firsts.clear();
        self.weights.clear();
        self.exact.resize(self.terms, 0.0);
        let slope = 1.0 / reach;
        let Range { start, end } = axis.outputs;
        for at in start..end {
            let at = if backwards { start + end - 1 - at } else { at };
            let centre = (at as f64 + 0.5) * scale;
            let first = axis.first_input(at);
            let mut total = 0.0;
            let mut distance = first as f64 + 0.5 - centre;
            for weight in &mut self.exact {
                *weight = (1.0 - distance.abs() * slope).max(0.0);
                total += *weight;
                distance += 1.0;
            }
            let factor = 65_536.0 / total;
            let mut left = 65_535;
            let start = self.weights.len();
            let mut heaviest = start;
            for &weight in &self.exact {
                let weight = ((weight * factor + 0.5) as i32).min(65_535);
                left -= weight;
                if weight > i32::from(self.weights.get(heaviest).copied().unwrap_or(0)) {
                    heaviest = self.weights.len();
                }
                self.weights.push(weight as u16);
            }
            self.weights[heaviest] = (i32::from(self.weights[heaviest]) + left) as u16;
            self.firsts.push((first - axis.inputs_from) as u32);
        }
    }

    #[inline(always)]
    fn terms(&self, at: usize) -> (usize, &[u16]) {
        (self.firsts[at] as usize, &self.weights[at * self.terms..][..self.terms])
    }
}

/// Filters and buffers, kept from image to image.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resizer {
    down: Filter,
    across: Filter,
    /// Band after the first pass, row after row.
    rows: Vec<u16>,
    /// The same band, column after column.
    columns: Vec<[u16; BAND]>,
}

/// Size and form of the resized planes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    /// Number of columns.
    pub width: usize,
    /// Number of rows.
    pub height: usize,
    /// Whether left and right are exchanged.
    pub flip: bool,
    /// Rounding of sums to bytes.
    pub rounding: Rounding,
}

impl Resizer {
    #[cfg(test)]
    pub(crate) fn held_bytes(&self) -> usize {
        let of =
            |filter: &Filter| 4 * filter.firsts.len() + 2 * filter.weights.len() + 8 * filter.exact.len();
        of(&self.down) + of(&self.across) + 2 * self.rows.len() + 2 * BAND * self.columns.len()
    }

    fn prepare(&mut self, across: &Axis, down: &Axis, flip: bool) {
        self.down.prepare(down, false);
        self.across.prepare(across, flip);
        let width = across.inputs().len();
        self.rows.resize(BAND * width.next_multiple_of(8), 0);
        self.columns.resize(width.next_multiple_of(8), [0; BAND]);
    }

    /// Resizes planes of `width` columns and `height` rows.
    ///
    /// # Shape
    /// `source: [planes, height, width]`, `out: [planes, target.height, target.width]`
    pub(crate) fn resize(
        &mut self,
        source: &[u8],
        width: usize,
        height: usize,
        target: Target,
        out: &mut [u8],
    ) {
        let (across, down) = (Axis::whole(width, target.width), Axis::whole(height, target.height));
        self.resize_part(source, (&across, &down), target, out);
    }

    /// Computes some columns and rows of the resized planes from the inputs that they need.
    ///
    /// # Shape
    /// `source: [planes, down.inputs(), across.inputs()]`, `out: [planes, target.height, target.width]`
    pub(crate) fn resize_part(
        &mut self,
        source: &[u8],
        (across, down): (&Axis, &Axis),
        target: Target,
        out: &mut [u8],
    ) {
        self.prepare(across, down, target.flip);
        let (width, height) = (across.inputs().len(), down.inputs().len());
        let planes = source.chunks_exact(width * height);
        for (source, out) in planes.zip(out.chunks_exact_mut(target.width * target.height)) {
            #[cfg(target_arch = "x86_64")]
            if let Some(v3) = x86::suits(width, target) {
                let Self { down, across, rows, columns } = self;
                x86::resize_plane(v3, (down, across), rows, columns, (source, width), target, out);
                continue;
            }
            simd::run(Plane { resizer: self, source, width, target, out });
        }
    }
}

struct Plane<'a> {
    resizer: &'a mut Resizer,
    source: &'a [u8],
    width: usize,
    target: Target,
    out: &'a mut [u8],
}

impl simd::Kernel for Plane<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { resizer, source, width, target, out } = self;
        let Resizer { down, across, rows, columns } = resizer;
        let pitch = width.next_multiple_of(8);
        for (band, out) in out.chunks_mut(BAND * target.width).enumerate() {
            let lines = out.len() / target.width;
            for (line, row) in rows.chunks_exact_mut(pitch).take(lines).enumerate() {
                let (first, weights) = down.terms(band * BAND + line);
                sum_rows(&source[first * width..], width, weights, &mut row[..width]);
            }
            turn(rows, pitch, columns);
            sum_columns(columns, across, target, out);
        }
    }
}

/// Sums weighted rows, with 8 bits below the byte.
#[inline(always)]
fn sum_rows(source: &[u8], width: usize, weights: &[u16], out: &mut [u16]) {
    let bias = (weights.len() / 2) as u16;
    let (chunks, rest) = out.as_chunks_mut::<CHUNK>();
    let whole = chunks.len() * CHUNK;
    for (index, chunk) in chunks.iter_mut().enumerate() {
        let mut sums = [bias; CHUNK];
        for (row, &weight) in source[index * CHUNK..].chunks(width).zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(&row[..CHUNK]) {
                *sum += product(u16::from(value) << 8, weight);
            }
        }
        *chunk = sums;
    }
    rest.fill(bias);
    if !rest.is_empty() {
        for (row, &weight) in source.chunks(width).zip(weights) {
            for (sum, &value) in rest.iter_mut().zip(&row[whole..]) {
                *sum += product(u16::from(value) << 8, weight);
            }
        }
    }
}

/// Returns the high half of a product: one instruction for many lanes.
#[inline(always)]
fn product(value: u16, weight: u16) -> u16 {
    ((u32::from(value) * u32::from(weight)) >> 16) as u16
}

/// Transposes the rows of a band to columns.
#[inline(always)]
fn turn(rows: &[u16], pitch: usize, columns: &mut [[u16; BAND]]) {
    for (block, columns) in columns.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        for half in 0..BAND / 8 {
            let tile = transposed(std::array::from_fn(|line| {
                let start = (half * 8 + line) * pitch + block * 8;
                *rows[start..].first_chunk().expect("rows are whole blocks")
            }));
            for (column, values) in columns.iter_mut().zip(tile) {
                column[half * 8..half * 8 + 8].copy_from_slice(&values);
            }
        }
    }
}

/// Sums weighted columns, and writes the sums as bytes in rows.
#[inline(always)]
fn sum_columns(columns: &[[u16; BAND]], across: &Filter, target: Target, out: &mut [u8]) {
    let lines = out.len() / target.width;
    let mut sums = [[0_u16; BAND]; 8];
    for start in (0..target.width).step_by(8) {
        let count = (target.width - start).min(8);
        for (offset, sums) in sums[..count].iter_mut().enumerate() {
            let (first, weights) = across.terms(start + offset);
            let mut sum = [target.rounding.bias(weights.len()); BAND];
            for (column, &weight) in columns[first..].iter().zip(weights) {
                for (sum, &value) in sum.iter_mut().zip(column) {
                    *sum += product(value, weight);
                }
            }
            *sums = sum;
        }
        for half in 0..lines.div_ceil(8) {
            let tile = transposed(std::array::from_fn(|offset| {
                *sums[offset][half * 8..].first_chunk().expect("a half band")
            }));
            for (line, values) in tile.iter().enumerate().take(lines - half * 8) {
                let at = (half * 8 + line) * target.width + start;
                let bytes = values.map(|value| (value >> 8) as u8);
                match out[at..].first_chunk_mut::<8>() {
                    Some(out) if count == 8 => *out = bytes,
                    _ => out[at..at + count].copy_from_slice(&bytes[..count]),
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! The passes of a resize, 16 lanes at a time, for processors with AVX2.
    //!
    //! The sums of products equal those of the portable code, so the bytes do, too.
    #![expect(unsafe_code, reason = "calling functions compiled for AVX2 after the processor was asked")]

    use std::arch::asm;
    use std::arch::x86_64::{
        __m256i, _mm256_add_epi16, _mm256_castsi128_si256, _mm256_inserti128_si256, _mm256_mulhi_epu16,
        _mm256_packus_epi16, _mm256_permute2x128_si256, _mm256_set1_epi16, _mm256_setzero_si256,
        _mm256_srli_epi16, _mm256_unpackhi_epi8, _mm256_unpacklo_epi8,
    };

    use super::{BAND, Filter, Target};
    use crate::simd::{V3, transposed_two};

    /// Number of columns of the first pass that are summed at a time; the portable code handles a narrower source.
    const CHUNK: usize = 32;

    /// Returns the processor's level; `None` if [`resize_plane`] cannot resize planes of this width.
    pub(super) fn suits(width: usize, target: Target) -> Option<V3> {
        if width >= CHUNK && target.width >= 8 { V3::detect() } else { None }
    }

    /// Computes the same as the portable `Plane`.
    ///
    /// # Panics
    /// If the width does not suit.
    pub(super) fn resize_plane(
        _has: V3,
        (down, across): (&Filter, &Filter),
        rows: &mut [u16],
        columns: &mut [[u16; BAND]],
        (source, width): (&[u8], usize),
        target: Target,
        out: &mut [u8],
    ) {
        assert!(width >= CHUNK && target.width >= 8, "the caller has asked");
        // SAFETY: a `V3` value proves that the processor has AVX2.
        unsafe { bands((down, across), rows, columns, (source, width), target, out) }
    }

    #[target_feature(enable = "avx2")]
    fn bands(
        (down, across): (&Filter, &Filter),
        rows: &mut [u16],
        columns: &mut [[u16; BAND]],
        (source, width): (&[u8], usize),
        target: Target,
        out: &mut [u8],
    ) {
        let pitch = width.next_multiple_of(8);
        for (band, out) in out.chunks_mut(BAND * target.width).enumerate() {
            let lines = out.len() / target.width;
            for (line, row) in rows.chunks_exact_mut(pitch).take(lines).enumerate() {
                let (first, weights) = down.terms(band * BAND + line);
                sum_rows(&source[first * width..], width, weights, &mut row[..width]);
            }
            turn(rows, pitch, columns);
            sum_columns(columns, across, target, out);
        }
    }

    /// Sums up to four rows at a time, so that their weights stay in registers.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn sum_rows(source: &[u8], width: usize, weights: &[u16], out: &mut [u16]) {
        let bias = (weights.len() / 2) as u16;
        for (index, weights) in weights.chunks(4).enumerate() {
            let source = &source[4 * index * width..];
            let bias = if index == 0 { Some(bias) } else { None };
            match *weights {
                [a, b, c, d] => add_rows(source, width, [a, b, c, d], bias, out),
                [a, b, c] => add_rows(source, width, [a, b, c], bias, out),
                [a, b] => add_rows(source, width, [a, b], bias, out),
                _ => add_rows(source, width, [weights[0]], bias, out),
            }
        }
    }

    /// Adds weighted rows to `bias`, or to the sums in `out`.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn add_rows<const N: usize>(
        source: &[u8],
        width: usize,
        weights: [u16; N],
        bias: Option<u16>,
        out: &mut [u16],
    ) {
        let rows: [&[u8]; N] = std::array::from_fn(|row| &source[row * width..][..width]);
        let weights = weights.map(|weight| _mm256_set1_epi16(weight as i16));
        let fresh = [_mm256_set1_epi16(bias.unwrap_or(0) as i16); 2];
        // Interleaving with zeros makes the values high bytes, in another order of columns than the row's.
        let halves = |low, high| {
            [_mm256_permute2x128_si256::<0x20>(low, high), _mm256_permute2x128_si256::<0x31>(low, high)]
        };
        let sum = |before: &[u16; CHUNK], values: [&[u8; CHUNK]; N]| -> [u16; CHUNK] {
            let mut sums = if bias.is_some() {
                fresh
            } else {
                let [low, high]: [__m256i; 2] = bytemuck::cast(*before);
                halves(low, high)
            };
            let zero = _mm256_setzero_si256();
            for (values, &weight) in values.iter().zip(&weights) {
                let values: __m256i = bytemuck::cast(**values);
                let wide = [_mm256_unpacklo_epi8(zero, values), _mm256_unpackhi_epi8(zero, values)];
                for (sum, wide) in sums.iter_mut().zip(wide) {
                    *sum = _mm256_add_epi16(*sum, high_product(wide, weight));
                }
            }
            bytemuck::cast(halves(sums[0], sums[1]))
        };
        // The last chunk overlaps the one before it if the width is not a multiple, so it is computed first.
        let tail = rows.map(|row| row.last_chunk().expect("a row holds a chunk"));
        let before = out.last_chunk().expect("a row holds a chunk");
        let last = sum(before, tail);
        let count = width / CHUNK;
        let chunks = rows.map(|row| &row.as_chunks::<CHUNK>().0[..count]);
        for (index, out) in out.as_chunks_mut::<CHUNK>().0[..count].iter_mut().enumerate() {
            *out = sum(out, chunks.map(|chunks| &chunks[index]));
        }
        *out.last_chunk_mut().expect("a row holds a chunk") = last;
    }

    /// Computes `_mm256_mulhi_epu16`. Where a factor is constant in a loop, LLVM splits that intrinsic: it widens this
    /// factor before the loop, and then all others in it.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn high_product(values: __m256i, factor: __m256i) -> __m256i {
        let product;
        // SAFETY: the instruction belongs to AVX2, and reads and writes only registers.
        unsafe {
            asm!("vpmulhuw {}, {}, {}", out(ymm_reg) product, in(ymm_reg) values, in(ymm_reg) factor,
                options(pure, nomem, nostack, preserves_flags));
        }
        product
    }

    /// Transposes the rows of a band to columns.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn turn(rows: &[u16], pitch: usize, columns: &mut [[u16; BAND]]) {
        for half in 0..BAND / 16 {
            let lines: [&[[u16; 8]]; 16] = std::array::from_fn(|line| {
                &rows[(half * 16 + line) * pitch..][..pitch].as_chunks::<8>().0[..pitch / 8]
            });
            let columns = columns.as_chunks_mut::<8>().0[..pitch / 8].iter_mut();
            for (block, columns) in columns.enumerate() {
                let tiles = std::array::from_fn(|line| {
                    let upper = _mm256_castsi128_si256(bytemuck::cast(lines[line][block]));
                    _mm256_inserti128_si256::<1>(upper, bytemuck::cast(lines[line + 8][block]))
                });
                for (column, tile) in columns.iter_mut().zip(transposed_two(tiles)) {
                    let values: [u16; 16] = bytemuck::cast(tile);
                    column.as_chunks_mut::<16>().0[half] = values;
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn sum_columns(columns: &[[u16; BAND]], across: &Filter, target: Target, out: &mut [u8]) {
        match across.terms {
            2 => sum_columns_of::<2>(columns, across, target, out),
            3 => sum_columns_of::<3>(columns, across, target, out),
            4 => sum_columns_of::<4>(columns, across, target, out),
            5 => sum_columns_of::<5>(columns, across, target, out),
            6 => sum_columns_of::<6>(columns, across, target, out),
            _ => sum_columns_of::<0>(columns, across, target, out),
        }
    }

    /// Sums weighted columns to bytes in rows; a sum has `N` terms, or any number if `N` is 0.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn sum_columns_of<const N: usize>(
        columns: &[[u16; BAND]],
        across: &Filter,
        target: Target,
        out: &mut [u8],
    ) {
        let bias = _mm256_set1_epi16(target.rounding.bias(across.terms) as i16);
        let mut start = 0;
        loop {
            let firsts = across.firsts[start..].first_chunk::<8>().expect("eight outputs");
            let weights = &across.weights[start * across.terms..][..8 * across.terms];
            let mut sums = [[bias; BAND / 16]; 8];
            for (offset, (sums, &first)) in sums.iter_mut().zip(firsts).enumerate() {
                if N == 0 {
                    let weights = &weights[offset * across.terms..][..across.terms];
                    for (column, &weight) in columns[first as usize..].iter().zip(weights) {
                        add_column(sums, column, weight);
                    }
                } else {
                    let weights = weights.as_chunks::<N>().0[offset];
                    let columns =
                        columns[first as usize..].first_chunk::<N>().expect("a filter stays in the row");
                    for (column, weight) in columns.iter().zip(weights) {
                        add_column(sums, column, weight);
                    }
                }
            }
            for (half, out) in out.chunks_mut(16 * target.width).enumerate() {
                put_rows(sums.map(|sums| sums[half]), target.width, start, out);
            }
            if start + 8 == target.width {
                return;
            }
            start = (start + 8).min(target.width - 8);
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn add_column(sums: &mut [__m256i; BAND / 16], column: &[u16; BAND], weight: u16) {
        let weight = _mm256_set1_epi16(weight as i16);
        for (sum, values) in sums.iter_mut().zip(column.as_chunks::<16>().0) {
            *sum = _mm256_add_epi16(*sum, _mm256_mulhi_epu16(bytemuck::cast(*values), weight));
        }
    }

    /// Writes eight columns of sums as bytes into up to 16 rows.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn put_rows(sums: [__m256i; 8], width: usize, start: usize, out: &mut [u8]) {
        let tiles = transposed_two(sums.map(|sum| _mm256_srli_epi16::<8>(sum)));
        // Each half has eight bytes of one row, then eight of the row four below.
        let packed: [[[u8; 8]; 4]; 4] =
            std::array::from_fn(|row| bytemuck::cast(_mm256_packus_epi16(tiles[row], tiles[row + 4])));
        for (line, row) in out.chunks_exact_mut(width).enumerate() {
            row[start..start + 8].copy_from_slice(&packed[line % 4][line / 4]);
        }
    }
}

#[cfg(test)]
mod tests {
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

    /// Resizes by the code that every processor can run.
    fn portable(source: &[u8], width: usize, height: usize, target: Target) -> Vec<u8> {
        let mut resizer = Resizer::default();
        let mut out = vec![0; target.width * target.height];
        resizer.prepare(&Axis::whole(width, target.width), &Axis::whole(height, target.height), target.flip);
        Plane { resizer: &mut resizer, source, width, target, out: &mut out }.run();
        out
    }

    /// Sizes of sources and targets (width, height, width, height), below and above every block size of the code.
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
                    assert_eq!(
                        resized(&source, width, height, target),
                        expected,
                        "{width}x{height} {target:?}"
                    );
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
                let expected: Vec<u8> = (top..top + high)
                    .flat_map(|row| &whole[row * columns + left..][..wide])
                    .copied()
                    .collect();
                assert_eq!(part, expected, "{width}x{height} to {columns}x{rows}");
            }
        }
    }

    /// Computes Pillow's filter in f64, without intermediate rounding.
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
        for (width, height, columns, rows) in
            [(61, 47, 24, 17), (40, 33, 64, 50), (200, 35, 9, 35), (8, 8, 8, 8)]
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
}
