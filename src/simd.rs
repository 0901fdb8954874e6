//! Kernels compiled for the processor that they run on.
//!
//! A [`Kernel`] is plain code; [`run`] has the compiler make one version of it with the instructions that every
//! processor of the architecture has, and one with those of x86-64-v3 (AVX2, BMI), and calls the better one that
//! this machine can execute. Kernels use integers or unfused f32 operations, so both versions give equal results.
#![expect(unsafe_code, reason = "calling a function compiled for detected instructions")]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m128i, _mm_unpackhi_epi16, _mm_unpackhi_epi32, _mm_unpackhi_epi64, _mm_unpacklo_epi16,
    _mm_unpacklo_epi32, _mm_unpacklo_epi64,
};

/// A computation whose `run` is marked `#[inline(always)]`, with all that it calls.
pub trait Kernel {
    /// What it computes.
    type Output;

    /// Computes it.
    fn run(self) -> Self::Output;
}

/// Runs a kernel with the best instructions that there are.
#[inline]
pub fn run<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    if has_v3() {
        // SAFETY: the processor has every feature that the function is compiled for.
        return unsafe { run_v3(kernel) };
    }
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn has_v3() -> bool {
    std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("bmi1")
        && std::arch::is_x86_feature_detected!("bmi2")
        && std::arch::is_x86_feature_detected!("lzcnt")
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
fn run_v3<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

/// Exchanges the rows and columns of a tile.
#[inline(always)]
pub fn transposed(rows: [[u16; 8]; 8]) -> [[u16; 8]; 8] {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE2 is part of x86-64.
    return bytemuck::cast(unsafe { transposed_x86(bytemuck::cast(rows)) });
    #[cfg(not(target_arch = "x86_64"))]
    return std::array::from_fn(|row| std::array::from_fn(|column| rows[column][row]));
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "sse2")]
fn transposed_x86(rows: [__m128i; 8]) -> [__m128i; 8] {
    let pairs = |x, y| [_mm_unpacklo_epi16(x, y), _mm_unpackhi_epi16(x, y)];
    let quads = |x, y| [_mm_unpacklo_epi32(x, y), _mm_unpackhi_epi32(x, y)];
    let halves = |x, y| [_mm_unpacklo_epi64(x, y), _mm_unpackhi_epi64(x, y)];
    let [ab, ab_high] = pairs(rows[0], rows[1]);
    let [cd, cd_high] = pairs(rows[2], rows[3]);
    let [ef, ef_high] = pairs(rows[4], rows[5]);
    let [gh, gh_high] = pairs(rows[6], rows[7]);
    let [top_01, top_23] = quads(ab, cd);
    let [top_45, top_67] = quads(ab_high, cd_high);
    let [low_01, low_23] = quads(ef, gh);
    let [low_45, low_67] = quads(ef_high, gh_high);
    let [first, second] = halves(top_01, low_01);
    let [third, fourth] = halves(top_23, low_23);
    let [fifth, sixth] = halves(top_45, low_45);
    let [seventh, eighth] = halves(top_67, low_67);
    [first, second, third, fourth, fifth, sixth, seventh, eighth]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns() {
        let rows = std::array::from_fn(|row| std::array::from_fn(|column| (row * 8 + column) as u16));
        let turned = transposed(rows);
        for row in 0..8 {
            for column in 0..8 {
                assert_eq!(turned[row][column], rows[column][row]);
            }
        }
    }
}
