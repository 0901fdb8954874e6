//! Partial sums with AVX2 and with AVX-512.
#![expect(unsafe_code, reason = "CPU instructions beyond the target's, behind run-time detection")]

use std::arch::x86_64::*;

use super::LANES;
use crate::simd::{V3, Vnni};

/// Computes the partial sums of [`inner_product`](super::inner_product) over whole chunks with AVX2.
pub(super) fn partial_sums_v3(_has: V3, a: &[[f32; LANES]], b: &[[f32; LANES]]) -> [f64; LANES] {
    // SAFETY: the value proves that the CPU has the instructions.
    unsafe { partial_sums_avx2(a, b) }
}

/// Computes [`partial_sums_v3`] with AVX-512.
pub(super) fn partial_sums_vnni(_has: Vnni, a: &[[f32; LANES]], b: &[[f32; LANES]]) -> [f64; LANES] {
    // SAFETY: the value proves that the CPU has the instructions.
    unsafe { partial_sums_avx512(a, b) }
}

/// Computes the sum of [`rough_similarity`](super::rough_similarity) over whole chunks with AVX2.
pub(super) fn rough_sum_v3(_has: V3, a: &[[f32; LANES]], b: &[[f32; LANES]]) -> f32 {
    // SAFETY: the value proves that the CPU has the instructions.
    unsafe { rough_sum_avx2(a, b) }
}

/// Computes [`rough_sum_v3`] with AVX-512.
pub(super) fn rough_sum_vnni(_has: Vnni, a: &[[f32; LANES]], b: &[[f32; LANES]]) -> f32 {
    // SAFETY: the value proves that the CPU has the instructions.
    unsafe { rough_sum_avx512(a, b) }
}

#[target_feature(enable = "avx2,fma")]
fn rough_sum_avx2(a: &[[f32; LANES]], b: &[[f32; LANES]]) -> f32 {
    const WIDTH: usize = 8;
    let mut sums = [_mm256_setzero_ps(); LANES / WIDTH];
    for (a, b) in a.iter().zip(b) {
        for (at, sum) in sums.iter_mut().enumerate() {
            // SAFETY: `at * WIDTH + WIDTH <= LANES`.
            let [a, b] = [a, b].map(|x| unsafe { _mm256_loadu_ps(x.as_ptr().add(at * WIDTH)) });
            *sum = _mm256_fmadd_ps(a, b, *sum);
        }
    }
    let mut lanes = [0.0; WIDTH];
    // SAFETY: there are WIDTH numbers.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_add_ps(sums[0], sums[1])) };
    lanes.iter().sum()
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn rough_sum_avx512(a: &[[f32; LANES]], b: &[[f32; LANES]]) -> f32 {
    // Two independent sums, which do not wait for each other.
    let mut sums = [_mm512_setzero_ps(); 2];
    for (at, (a, b)) in a.iter().zip(b).enumerate() {
        // SAFETY: a chunk fills a register.
        let [a, b] = [a, b].map(|x| unsafe { _mm512_loadu_ps(x.as_ptr()) });
        sums[at % 2] = _mm512_fmadd_ps(a, b, sums[at % 2]);
    }
    _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]))
}

/// Computes partial sums. Products of two f32 are exact in f64, so fused multiply-adds give the same bits.
#[target_feature(enable = "avx2,fma")]
fn partial_sums_avx2(a: &[[f32; LANES]], b: &[[f32; LANES]]) -> [f64; LANES] {
    const WIDTH: usize = 4;
    let mut sums = [_mm256_setzero_pd(); LANES / WIDTH];
    for (a, b) in a.iter().zip(b) {
        for (at, sum) in sums.iter_mut().enumerate() {
            // SAFETY: `at * WIDTH + WIDTH <= LANES`.
            let [a, b] = [a, b].map(|x| unsafe { _mm256_cvtps_pd(_mm_loadu_ps(x.as_ptr().add(at * WIDTH))) });
            *sum = _mm256_fmadd_pd(a, b, *sum);
        }
    }
    let mut lanes = [0.0; LANES];
    for (lanes, sum) in lanes.as_chunks_mut::<WIDTH>().0.iter_mut().zip(sums) {
        // SAFETY: the chunk has WIDTH numbers.
        unsafe { _mm256_storeu_pd(lanes.as_mut_ptr(), sum) };
    }
    lanes
}

/// See [`partial_sums_avx2`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn partial_sums_avx512(a: &[[f32; LANES]], b: &[[f32; LANES]]) -> [f64; LANES] {
    const WIDTH: usize = 8;
    let mut sums = [_mm512_setzero_pd(); LANES / WIDTH];
    for (a, b) in a.iter().zip(b) {
        for (at, sum) in sums.iter_mut().enumerate() {
            // SAFETY: `at * WIDTH + WIDTH <= LANES`.
            let [a, b] =
                [a, b].map(|x| unsafe { _mm512_cvtps_pd(_mm256_loadu_ps(x.as_ptr().add(at * WIDTH))) });
            *sum = _mm512_fmadd_pd(a, b, *sum);
        }
    }
    let mut lanes = [0.0; LANES];
    for (lanes, sum) in lanes.as_chunks_mut::<WIDTH>().0.iter_mut().zip(sums) {
        // SAFETY: the chunk has WIDTH numbers.
        unsafe { _mm512_storeu_pd(lanes.as_mut_ptr(), sum) };
    }
    lanes
}
