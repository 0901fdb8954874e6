//! Byte encodings of rows and queries, and the bound by which they rule out pairs.
//!
//! A row `x` of a tile is encoded as `x = c + s·n + r`: the tile's centre `c`, its step `s`, whole numbers
//! `n` in −127…127, and a residual `r` of known length. The centre keeps the residual small where features
//! crowd in one direction, as those of an untrained encoder do. A query `q` is encoded as `q = t·m + p`, with
//! whole numbers `m` and a residual `p`. So
//!
//! ```text
//! q·x = q·c + t·s·(m·n) + t·(m·r) + p·(x − c)
//!     ≤ q·c + t·s·(m·n + ‖m‖·‖r‖/s) + ‖p‖·‖x − c‖        (Cauchy–Schwarz)
//! ```
//!
//! A row whose right side is below the similarity of the k-th best row so far is not a neighbour. The bound
//! and the rounding of the similarity are overestimated; candidates are compared exactly.

use super::similarity::{LANES, inner_product, length};
use crate::simd::{Kernel, Line, SimdLevel};

/// Rows that the filter processes together.
pub(super) const BLOCK_ROWS: usize = 32;
/// Adjacent components in a block: the byte products of a CPU add up four at a time.
pub(super) const QUAD: usize = 4;
/// Half of the codes' range.
const LIMIT: f32 = 127.0;
/// Offset of stored codes, as byte products need one unsigned side.
const CODE_ZERO: i64 = 128;
/// Magnitudes within which no square over- or underflows in f32.
const MAGNITUDES: (f32, f32) = (1e-15, 1e15);
/// Longest vector for which a sum of byte products fits 32 bits and the slacks below are small.
const LONGEST: usize = 1 << 15;
/// Adding 1.5 · 2²³ to a small f32 rounds it to a whole number in the low bits.
const ROUNDER: f32 = 12_582_912.0;

/// Encoded rows of the bank.
#[derive(Clone, Debug, Default)]
pub(super) struct Tile {
    /// Number of rows.
    pub rows: usize,
    /// Number of quads of a row; see [`quads`].
    pub quads: usize,
    /// `[blocks, quads, BLOCK_ROWS, QUAD]`, each a byte: `n + CODE_ZERO`.
    pub codes: Vec<Line>,
    /// `[blocks * BLOCK_ROWS]`: upper bounds of `‖r‖ / s`.
    pub residual_norms: Vec<f32>,
    /// Step `s`.
    step: f64,
    /// Centre `c`.
    centre: Vec<f32>,
    /// Length of the centre, `‖c‖`.
    centre_length: f64,
    /// Upper bound of `‖x − c‖` over all rows.
    radius: f64,
    /// Whether these bounds hold; if not, nothing is known of the rows.
    is_bounded: bool,
}

impl Tile {
    /// Encodes rows, `[rows, dim]`, into this tile, for the filter of this level.
    pub(super) fn encode(&mut self, simd_level: SimdLevel, rows: &[f32], dim: usize) {
        self.rows = rows.len() / dim;
        self.quads = quads(simd_level, dim);
        simd_level.run(EncodeTile { tile: self, rows, dim });
    }
}

/// Returns the quads of a vector. AMX registers take [`Line::BYTES`] components, so its vectors are padded with zeros.
fn quads(simd_level: SimdLevel, dim: usize) -> usize {
    match simd_level {
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Amx(_) => dim.div_ceil(Line::BYTES) * Line::BYTES / QUAD,
        _ => dim.div_ceil(QUAD),
    }
}

struct EncodeTile<'a> {
    tile: &'a mut Tile,
    rows: &'a [f32],
    dim: usize,
}

impl Kernel for EncodeTile<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { tile, rows, dim } = self;
        let blocks = tile.rows.div_ceil(BLOCK_ROWS);
        tile.codes.clear();
        tile.codes.resize(blocks * tile.quads * BLOCK_ROWS * QUAD / Line::BYTES, Line::ZERO);
        tile.residual_norms.clear();
        tile.residual_norms.resize(blocks * BLOCK_ROWS, 0.0);
        mean(&mut tile.centre, rows, dim);
        tile.centre_length = length(&tile.centre);
        let widest = widest(&tile.centre, rows, dim);
        // Also false for NaN.
        tile.is_bounded = widest <= MAGNITUDES.1 && dim <= LONGEST;
        if tile.is_bounded {
            write_codes(tile, rows, dim, widest.max(MAGNITUDES.0) / LIMIT);
        }
    }
}

#[inline(always)]
fn mean(centre: &mut Vec<f32>, rows: &[f32], dim: usize) {
    centre.clear();
    centre.resize(dim, 0.0);
    for row in rows.chunks_exact(dim) {
        for (sum, x) in centre.iter_mut().zip(row) {
            *sum += x;
        }
    }
    let share = dim as f32 / rows.len() as f32;
    for sum in centre.iter_mut() {
        *sum *= share;
    }
}

#[inline(always)]
fn widest(centre: &[f32], rows: &[f32], dim: usize) -> f32 {
    let mut widest = vec![0.0_f32; dim];
    for row in rows.chunks_exact(dim) {
        for ((widest, x), c) in widest.iter_mut().zip(row).zip(centre) {
            let distance = (x - c).abs();
            // Unlike `max`, this keeps NaN.
            *widest = if distance <= *widest { *widest } else { distance };
        }
    }
    widest.into_iter().fold(0.0, |a, b| if b <= a { a } else { b })
}

/// Writes the codes of all rows. Rounding in f32 changes `x − c`, `s·n` and `r` by at most 2⁻²⁴ of 128 steps
/// each, and a sum of `dim` squares by `dim` · 2⁻²⁴ of itself; the slacks are larger.
#[inline(always)]
fn write_codes(tile: &mut Tile, rows: &[f32], dim: usize, step: f32) {
    let relative = 1.0 + 1e-5 + 1e-7 * dim as f32;
    let absolute = 3e-5 * (dim as f32).sqrt();
    let per_step = 1.0 / step;
    let mut bytes = vec![0_u8; dim.div_ceil(QUAD) * QUAD];
    let codes: &mut [u8] = bytemuck::cast_slice_mut(&mut tile.codes);
    let mut radius = 0.0_f32;
    for (row, x) in rows.chunks_exact(dim).enumerate() {
        let (residual, offset) = write_row(&mut bytes, x, &tile.centre, step, per_step);
        tile.residual_norms[row] = residual.sqrt() * per_step * relative + absolute;
        radius = radius.max(offset);
        let block = row / BLOCK_ROWS * tile.quads * BLOCK_ROWS * QUAD;
        let lane = row % BLOCK_ROWS * QUAD;
        let block = &mut codes[block..][..tile.quads * BLOCK_ROWS * QUAD];
        for (to, from) in block.chunks_exact_mut(BLOCK_ROWS * QUAD).zip(bytes.as_chunks::<QUAD>().0) {
            to[lane..lane + QUAD].copy_from_slice(from);
        }
    }
    tile.step = f64::from(step);
    tile.radius = f64::from(radius.sqrt() * relative + absolute * step);
}

/// Writes the codes of a row. Returns the squares of ‖r‖ and of ‖x − c‖.
#[inline(always)]
fn write_row(bytes: &mut [u8], x: &[f32], centre: &[f32], step: f32, per_step: f32) -> (f32, f32) {
    let (mut residuals, mut offsets) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    let (x_chunks, x_rest) = x.as_chunks::<LANES>();
    let (c_chunks, c_rest) = centre.as_chunks::<LANES>();
    let (whole, tail) = bytes.split_at_mut(x_chunks.len() * LANES);
    for ((x, c), bytes) in x_chunks.iter().zip(c_chunks).zip(whole.as_chunks_mut::<LANES>().0) {
        for lane in 0..LANES {
            let (code, residual, offset) = encode(x[lane], c[lane], step, per_step);
            bytes[lane] = code;
            residuals[lane] += residual * residual;
            offsets[lane] += offset * offset;
        }
    }
    for (lane, ((x, c), byte)) in x_rest.iter().zip(c_rest).zip(tail).enumerate() {
        let (code, residual, offset) = encode(*x, *c, step, per_step);
        *byte = code;
        residuals[lane] += residual * residual;
        offsets[lane] += offset * offset;
    }
    (residuals.iter().sum(), offsets.iter().sum())
}

/// Returns the code of a component, its residual, and its offset from the centre.
#[inline(always)]
fn encode(x: f32, centre: f32, step: f32, per_step: f32) -> (u8, f32, f32) {
    let offset = x - centre;
    let rounded = offset * per_step + ROUNDER;
    let code = rounded.to_bits().wrapping_sub(ROUNDER.to_bits()).wrapping_add(CODE_ZERO as u32);
    (code as u8, offset - (rounded - ROUNDER) * step, offset)
}

/// Queries that the filter processes together; with two registers of rows each they fill those of AVX-512.
pub(super) const GROUP: usize = 12;
/// Queries that the AMX filter processes together: two of its registers.
pub(super) const AMX_GROUP: usize = 2 * AMX_ROWS;
/// Larger of both group sizes.
pub(super) const LARGEST_GROUP: usize = AMX_GROUP;
/// Queries in an AMX register, each with a line of codes.
pub(super) const AMX_ROWS: usize = 16;

/// Returns the number of queries in a group at this level.
pub(super) fn group_size(simd_level: SimdLevel) -> usize {
    match simd_level {
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Amx(_) => AMX_GROUP,
        _ => GROUP,
    }
}

/// Returns the largest magnitude of a query's code. AVX2 adds pairs of products in 16 bits: 2 · 255 · 63 < 2¹⁵.
pub(super) fn code_limit(simd_level: SimdLevel) -> f64 {
    match simd_level {
        #[cfg(target_arch = "x86_64")]
        SimdLevel::V3(_) => 63.0,
        _ => 127.0,
    }
}

/// Small group of encoded queries.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// Codes `m`, each an `i8`: `[quads, GROUP, QUAD]`; for AMX `[lines, AMX_GROUP, Line::BYTES]`.
    pub codes: Vec<Line>,
    /// Upper bound of `‖m‖` over all queries.
    pub reach: f32,
    queries: Vec<Scale>,
}

/// Inputs of the bound from one query.
#[derive(Clone, Copy, Debug)]
struct Scale {
    /// Step `t`.
    step: f64,
    /// Upper bound of `‖p‖`.
    residual: f64,
    /// Length of the query, `‖q‖`.
    length: f64,
    /// Contribution of [`CODE_ZERO`] to `m·n`.
    shift: f64,
}

impl Group {
    /// Encodes up to [`group_size`] queries, with codes of at most `limit`; see [`code_limit`].
    pub(super) fn new<'a>(
        simd_level: SimdLevel,
        queries: impl Iterator<Item = &'a [f32]>,
        dim: usize,
        limit: f64,
    ) -> Self {
        let size = group_size(simd_level);
        let unit = if size == AMX_GROUP { Line::BYTES } else { QUAD };
        let lines = (quads(simd_level, dim) * QUAD * size).div_ceil(Line::BYTES);
        let mut group = Self { codes: vec![Line::ZERO; lines], reach: 1.0, queries: Vec::new() };
        for (at, query) in queries.enumerate() {
            let codes: &mut [i8] = bytemuck::cast_slice_mut(&mut group.codes);
            let widest = query.iter().fold(0.0_f64, |a, x| a.max(f64::from(x.abs())));
            let step = if widest > 0.0 { widest / limit } else { 1.0 };
            let (mut residual, mut reach, mut sum) = (0.0_f64, 0.0_f64, 0.0_f64);
            for (i, x) in query.iter().enumerate() {
                let code = (f64::from(*x) / step).round();
                codes[(i / unit * size + at) * unit + i % unit] = code as i8;
                residual += (f64::from(*x) - code * step).powi(2);
                reach += code * code;
                sum += code;
            }
            group.reach = group.reach.max(reach.sqrt().next_up() as f32 * 1.000_001);
            let length = length(query);
            let residual = residual.sqrt() * 1.000_001 + 1e-12 * length;
            group.queries.push(Scale { step, residual, length, shift: sum * CODE_ZERO as f64 });
        }
        group
    }

    /// Returns the number of queries.
    pub(super) fn len(&self) -> usize {
        self.queries.len()
    }

    /// Returns an upper bound of the error of [`rough_similarity`](super::similarity::rough_similarity) for a
    /// query and any row of a tile; infinite if nothing is known of the rows.
    ///
    /// Each product and each sum is wrong by at most 2⁻²⁴ of itself or, among the smallest numbers, by 2⁻¹⁵⁰.
    /// By Cauchy–Schwarz all of them together are at most `‖q‖·‖x‖`.
    pub(super) fn rough_slack(&self, at: usize, tile: &Tile, dim: usize) -> f32 {
        let length = self.queries[at].length * (tile.radius + tile.centre_length);
        // Also false for NaN.
        let fits = length < f64::from(f32::MAX) / 4.0;
        if !tile.is_bounded || !fits {
            return f32::INFINITY;
        }
        let steps = dim as f64 + 8.0;
        (1.1 * steps * (length * f64::from(f32::EPSILON) / 2.0 + f64::from(f32::MIN_POSITIVE))) as f32
    }

    /// Returns the number that the filter's result for a query and a row must exceed for the row to reach the
    /// similarity `least`.
    ///
    /// The filter's result is `Σ m·(n + CODE_ZERO)` plus `reach · residual_norms[row]`, truncated to a whole number.
    pub(super) fn threshold(
        &self,
        simd_level: SimdLevel,
        at: usize,
        query: &[f32],
        tile: &Tile,
        least: f32,
    ) -> i32 {
        if !tile.is_bounded || least == f32::NEG_INFINITY {
            return i32::MIN;
        }
        let Scale { step, residual, length: own_length, shift } = self.queries[at];
        // Similarities are rounded to f32, so one that reaches `least` exceeds the f32 before it.
        let least = f64::from(least.next_down());
        let at_centre = inner_product(simd_level, query, &tile.centre);
        let terms = query.len() as f64 + 4.0;
        let rounding = terms * 4.0 * f64::EPSILON * own_length * (tile.radius + tile.centre_length);
        let missing = least - at_centre - rounding;
        if missing > own_length * tile.radius * 1.000_001 {
            return i32::MAX;
        }
        let whole = (missing - residual * tile.radius) / (step * tile.step) + shift;
        // 1 for the truncation of the reach, the rest for the rounding of this line.
        let threshold = whole - 1.001 - 1e-9 * whole.abs();
        if threshold.is_nan() { i32::MIN } else { threshold.floor() as i32 }
    }
}
