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
use super::tile::{CODE_ZERO, QUAD, Tile};
use crate::simd::SimdLevel;

/// Queries that the filter takes together; with two registers of rows for each they fill those of AVX-512.
pub(super) const GROUP: usize = 12;

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
    /// `[quads, GROUP, QUAD]`: the codes `m`.
    pub(super) codes: Vec<i8>,
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
    /// Encodes up to [`GROUP`] queries, with codes of at most `limit`; see [`code_limit`].
    pub(super) fn new<'a>(queries: impl Iterator<Item = &'a [f32]>, dim: usize, limit: f64) -> Self {
        let quads = dim.div_ceil(QUAD);
        let mut group = Self { codes: vec![0; quads * GROUP * QUAD], reach: 1.0, queries: Vec::new() };
        for (at, query) in queries.enumerate() {
            let widest = query.iter().fold(0.0_f64, |a, x| a.max(f64::from(x.abs())));
            let step = if widest > 0.0 { widest / limit } else { 1.0 };
            let (mut residual, mut reach, mut sum) = (0.0_f64, 0.0_f64, 0.0_f64);
            for (i, x) in query.iter().enumerate() {
                let code = (f64::from(*x) / step).round();
                group.codes[(i / QUAD * GROUP + at) * QUAD + i % QUAD] = code as i8;
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
