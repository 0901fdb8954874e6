//! Definition of similarity.
//!
//! The similarity of two vectors is their inner product, summed in f64 in a fixed order and rounded once to
//! f32. A product of two f32 is exact in f64, so a fused multiply-add gives the same bits as a product and a
//! sum: the result is the same on every CPU, for any vector width and compiler flags.

use crate::simd::{Kernel, SimdLevel};

/// Number of partial sums: component `i` goes to sum `i % LANES`; at the end the upper half is added to the
/// lower half until one sum is left.
pub(super) const LANES: usize = 16;

/// Returns the similarity of two vectors, as in results.
pub(super) fn similarity(simd_level: SimdLevel, a: &[f32], b: &[f32]) -> f32 {
    // Adding 0 turns −0 into 0, as the two must be equal similarities.
    inner_product(simd_level, a, b) as f32 + 0.0
}

/// Returns the inner product before rounding.
pub(super) fn inner_product(simd_level: SimdLevel, a: &[f32], b: &[f32]) -> f64 {
    simd_level.run(InnerProduct(a, b))
}

/// Number of partial sums in f32, in two of the widest registers: an addition does not wait for the one before.
const ROUGH_LANES: usize = 32;

struct InnerProduct<'a>(&'a [f32], &'a [f32]);

impl Kernel for InnerProduct<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let (a_chunks, a_rest) = self.0.as_chunks::<LANES>();
        let (b_chunks, b_rest) = self.1.as_chunks::<LANES>();
        let mut sums = [0.0; LANES];
        for (a, b) in a_chunks.iter().zip(b_chunks) {
            for lane in 0..LANES {
                sums[lane] += f64::from(a[lane]) * f64::from(b[lane]);
            }
        }
        for (sum, (a, b)) in sums.iter_mut().zip(a_rest.iter().zip(b_rest)) {
            *sum += f64::from(*a) * f64::from(*b);
        }
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                sums[lane] += sums[lane + width];
            }
            width /= 2;
        }
        sums[0]
    }
}

/// Returns the inner product in f32, in a fraction of the time;
/// [`Group::rough_slack`](super::bound::Group::rough_slack) bounds its error. May be infinite or NaN.
pub(super) fn rough_similarity(simd_level: SimdLevel, a: &[f32], b: &[f32]) -> f32 {
    simd_level.run(RoughSimilarity(a, b))
}

struct RoughSimilarity<'a>(&'a [f32], &'a [f32]);

impl Kernel for RoughSimilarity<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let (a_chunks, a_rest) = self.0.as_chunks::<ROUGH_LANES>();
        let (b_chunks, b_rest) = self.1.as_chunks::<ROUGH_LANES>();
        let mut sums = [0.0; ROUGH_LANES];
        for (a, b) in a_chunks.iter().zip(b_chunks) {
            for lane in 0..ROUGH_LANES {
                sums[lane] += a[lane] * b[lane];
            }
        }
        a_rest.iter().zip(b_rest).fold(sums.iter().sum(), |sum, (a, b)| sum + a * b)
    }
}

/// Returns the length of a vector.
pub(super) fn length(a: &[f32]) -> f64 {
    inner_product(SimdLevel::Portable, a, a).sqrt()
}
