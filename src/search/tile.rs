//! Rows of the bank as bytes, with a bound on what the bytes leave out.
//!
//! A row `x` of a tile is written as `x = c + s·n + r`: the tile's centre `c`, its step `s`, whole numbers
//! `n` in −127…127, and a residual `r` of known length. The centre makes the residual small where features crowd in
//! one direction, as those of an untrained encoder do.

use super::similarity::{LANES, length};
use crate::simd::{Kernel, Line, SimdLevel};

/// Rows that the filter looks at together.
pub(super) const BLOCK_ROWS: usize = 32;
/// Components that lie side by side in a block: the byte products of a CPU add up four at a time.
pub(super) const QUAD: usize = 4;
/// Half of the codes' range.
const LIMIT: f32 = 127.0;
/// Codes are stored with this added, as the byte products want one side without a sign.
pub(super) const CODE_ZERO: i64 = 128;
/// Within these magnitudes no square over- or underflows in f32.
const MAGNITUDES: (f32, f32) = (1e-15, 1e15);
/// Up to this length a sum of products of bytes fits 32 bits, and the slacks below are small.
const LONGEST: usize = 1 << 15;
/// Adding 1.5 · 2²³ to a small f32 leaves it rounded to a whole number in its low bits.
const ROUNDER: f32 = 12_582_912.0;

/// Rows of the bank, encoded.
#[derive(Clone, Debug, Default)]
pub(super) struct Tile {
    /// The number of rows.
    pub(super) rows: usize,
    /// Quads of a row; see [`quads`].
    pub(super) quads: usize,
    /// `[blocks, quads, BLOCK_ROWS, QUAD]`, each a byte: `n + CODE_ZERO`.
    pub(super) codes: Vec<Line>,
    /// `[blocks * BLOCK_ROWS]`: at least `‖r‖ / s`.
    pub(super) residual_norms: Vec<f32>,
    /// The step `s`.
    pub(super) step: f64,
    /// The centre `c`.
    pub(super) centre: Vec<f32>,
    /// `‖c‖`.
    pub(super) centre_length: f64,
    /// At least `‖x − c‖` of every row.
    pub(super) radius: f64,
    /// Whether the above holds; else nothing is known of the rows.
    pub(super) is_bounded: bool,
}

impl Tile {
    /// Encodes rows, `[rows, dim]`, into this tile, for the filter of this level.
    pub(super) fn encode(&mut self, simd_level: SimdLevel, rows: &[f32], dim: usize) {
        self.rows = rows.len() / dim;
        self.quads = quads(simd_level, dim);
        simd_level.run(EncodeTile { tile: self, rows, dim });
    }
}

/// Quads of a vector; for AMX, whose registers take [`Line::BYTES`] components, with some of zeros at the end.
pub(super) fn quads(simd_level: SimdLevel, dim: usize) -> usize {
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
        // False for what is not a number, too.
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
            // Keeps what is not a number, unlike `max`.
            *widest = if distance <= *widest { *widest } else { distance };
        }
    }
    widest.into_iter().fold(0.0, |a, b| if b <= a { a } else { b })
}

/// Rounding in f32 makes `x − c`, `s·n` and `r` wrong by 2⁻²⁴ of at most 128 steps each, and a sum of `dim`
/// squares by `dim` · 2⁻²⁴ of itself; the slacks are above that.
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

/// Writes the codes of a row; gives the squares of ‖r‖ and of ‖x − c‖.
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

/// The code of a component, what the code leaves out, and the component from the centre.
#[inline(always)]
fn encode(x: f32, centre: f32, step: f32, per_step: f32) -> (u8, f32, f32) {
    let offset = x - centre;
    let rounded = offset * per_step + ROUNDER;
    let code = rounded.to_bits().wrapping_sub(ROUNDER.to_bits()).wrapping_add(CODE_ZERO as u32);
    (code as u8, offset - (rounded - ROUNDER) * step, offset)
}
