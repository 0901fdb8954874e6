//! Queries as bytes, and what a row's bytes must reach to be a candidate.
//!
//! A query `q` is written as `q = t·m + p`, with whole numbers `m` and a residual `p`. For a row
//! `x = c + s·n + r` of a tile,
//!
//! ```text
//! q·x = q·c + t·s·(m·n) + t·(m·r) + p·(x − c)
//!     ≤ q·c + t·s·(m·n + ‖m‖·‖r‖/s) + ‖p‖·‖x − c‖        (Cauchy–Schwarz)
//! ```
//!
//! so that a row whose right side stays below the similarity of the k-th best so far is no neighbour. The
//! bound and the rounding of the similarity itself are taken generously; a candidate is looked at exactly.

use super::similarity::{inner_product, length};
use super::tile::{CODE_ZERO, QUAD, Tile, quads};
use crate::simd::{Line, SimdLevel};

/// Queries that the filter takes together; with two registers of rows for each they fill those of AVX-512.
pub(super) const GROUP: usize = 12;
/// The same for AMX: two of its registers.
pub(super) const AMX_GROUP: usize = 2 * AMX_ROWS;
/// The most of both.
pub(super) const LARGEST_GROUP: usize = AMX_GROUP;
/// Queries in a register of AMX; each has a line of codes there.
pub(super) const AMX_ROWS: usize = 16;

/// Queries of a group at this level.
pub(super) fn group_size(simd_level: SimdLevel) -> usize {
    match simd_level {
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Amx(_) => AMX_GROUP,
        _ => GROUP,
    }
}

/// The largest magnitude of a query's code. AVX2 adds pairs of products in 16 bits: 2 · 255 · 63 < 2¹⁵.
pub(super) fn code_limit(simd_level: SimdLevel) -> f64 {
    match simd_level {
        #[cfg(target_arch = "x86_64")]
        SimdLevel::V3(_) => 63.0,
        _ => 127.0,
    }
}

/// A few queries, encoded.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// The codes `m`, each an `i8`: `[quads, GROUP, QUAD]`; for AMX `[lines, AMX_GROUP, Line::BYTES]`.
    pub(super) codes: Vec<Line>,
    /// At least `‖m‖` of every query.
    pub(super) reach: f32,
    queries: Vec<Scale>,
}

/// What the bound needs of a query.
#[derive(Clone, Copy, Debug)]
struct Scale {
    /// The step `t`.
    step: f64,
    /// At least `‖p‖`.
    residual: f64,
    /// `‖q‖`.
    length: f64,
    /// What [`CODE_ZERO`] adds to `m·n`.
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

    /// The number of queries.
    pub(super) fn len(&self) -> usize {
        self.queries.len()
    }

    /// At least the error of [`rough_similarity`](super::similarity::rough_similarity) for a query and a row of a
    /// tile; infinite where nothing is known of the rows.
    ///
    /// Each product and each sum is wrong by at most 2⁻²⁴ of itself or, among the smallest numbers, by 2⁻¹⁵⁰; by
    /// Cauchy–Schwarz all of them together are at most `‖q‖·‖x‖`.
    pub(super) fn rough_slack(&self, at: usize, tile: &Tile, dim: usize) -> f32 {
        let length = self.queries[at].length * (tile.radius + tile.centre_length);
        // False for what is not a number, too.
        let fits = length < f64::from(f32::MAX) / 4.0;
        if !tile.is_bounded || !fits {
            return f32::INFINITY;
        }
        let steps = dim as f64 + 8.0;
        (1.1 * steps * (length * f64::from(f32::EPSILON) / 2.0 + f64::from(f32::MIN_POSITIVE))) as f32
    }

    /// What the filter's whole number of a query and a row must exceed, if the row is to reach the similarity
    /// `least`.
    ///
    /// The filter's number is `Σ m·(n + CODE_ZERO)` plus `reach · residual_norms[row]` cut to a whole number.
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
        // A similarity is rounded to f32; it reaches `least` only if it exceeds the f32 before it.
        let least = f64::from(least.next_down());
        let at_centre = inner_product(simd_level, query, &tile.centre);
        let terms = query.len() as f64 + 4.0;
        let rounding = terms * 4.0 * f64::EPSILON * own_length * (tile.radius + tile.centre_length);
        let missing = least - at_centre - rounding;
        if missing > own_length * tile.radius * 1.000_001 {
            return i32::MAX;
        }
        let whole = (missing - residual * tile.radius) / (step * tile.step) + shift;
        // One for the cut of the reach, the rest for the rounding of this line.
        let threshold = whole - 1.001 - 1e-9 * whole.abs();
        if threshold.is_nan() { i32::MIN } else { threshold.floor() as i32 }
    }
}
