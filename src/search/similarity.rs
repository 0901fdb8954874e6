//! Definition of similarity.
//!
//! The similarity of two vectors is their inner product, summed in f64 in a fixed order and rounded once to
//! f32. A product of two f32 is exact in f64, so a fused multiply-add gives the same bits as a product and a
//! sum: the result is the same on every CPU, for any vector width and compiler flags.

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
use crate::simd::Amx;
use crate::simd::SimdLevel;

/// Number of partial sums: component `i` goes to sum `i % LANES`; at the end the upper half is added to the
/// lower half until one sum is left.
pub(super) const LANES: usize = 16;

/// Returns the similarity of two vectors, as in results.
pub(super) fn similarity(simd_level: SimdLevel, a: &[f32], b: &[f32]) -> f32 {
    // Adding 0 turns −0 into 0, as the two must be equal similarities.
    inner_product(simd_level, a, b) as f32 + 0.0
}

/// Returns the inner product before rounding.
#[inline]
pub(super) fn inner_product(simd_level: SimdLevel, a: &[f32], b: &[f32]) -> f64 {
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    let mut sums = match simd_level {
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Vnni(has) | SimdLevel::Amx(Amx { vnni: has }) => {
            x86::partial_sums_vnni(has, a_chunks, b_chunks)
        }
        #[cfg(target_arch = "x86_64")]
        SimdLevel::V3(has) => x86::partial_sums_v3(has, a_chunks, b_chunks),
        SimdLevel::Portable => partial_sums(a_chunks, b_chunks),
    };
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

/// Returns the inner product in f32, in a fraction of the time;
/// [`Group::rough_slack`](super::bound::Group::rough_slack) bounds its error. May be infinite or NaN.
pub(super) fn rough_similarity(simd_level: SimdLevel, a: &[f32], b: &[f32]) -> f32 {
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    let whole = match simd_level {
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Vnni(has) | SimdLevel::Amx(Amx { vnni: has }) => {
            x86::rough_sum_vnni(has, a_chunks, b_chunks)
        }
        #[cfg(target_arch = "x86_64")]
        SimdLevel::V3(has) => x86::rough_sum_v3(has, a_chunks, b_chunks),
        SimdLevel::Portable => rough_sum(a_chunks, b_chunks),
    };
    a_rest.iter().zip(b_rest).fold(whole, |sum, (a, b)| sum + a * b)
}

/// Sums over whole chunks in f32.
fn rough_sum(a: &[[f32; LANES]], b: &[[f32; LANES]]) -> f32 {
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum()
}

/// Computes the partial sums over whole chunks.
fn partial_sums(a: &[[f32; LANES]], b: &[[f32; LANES]]) -> [f64; LANES] {
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += f64::from(a[lane]) * f64::from(b[lane]);
        }
    }
    sums
}

/// Returns the length of a vector.
pub(super) fn length(a: &[f32]) -> f64 {
    inner_product(SimdLevel::Portable, a, a).sqrt()
}
