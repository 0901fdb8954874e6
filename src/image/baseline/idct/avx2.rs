//! The inverse DCT of two blocks at once, one in each half of AVX2's registers.
#![expect(unsafe_code, reason = "calling a function compiled for AVX2 after the processor was asked")]

use std::arch::x86_64::{
    __m128i, __m256i, _mm256_add_epi8, _mm256_add_epi16, _mm256_add_epi32, _mm256_broadcastsi128_si256,
    _mm256_castsi128_si256, _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_inserti128_si256,
    _mm256_madd_epi16, _mm256_mullo_epi16, _mm256_packs_epi16, _mm256_packs_epi32, _mm256_set1_epi8,
    _mm256_set1_epi32, _mm256_setzero_si256, _mm256_srai_epi32, _mm256_sub_epi16, _mm256_sub_epi32,
    _mm256_unpackhi_epi8, _mm256_unpackhi_epi16, _mm256_unpackhi_epi32, _mm256_unpacklo_epi8,
    _mm256_unpacklo_epi16, _mm256_unpacklo_epi32,
};

use super::{
    CONST_BITS, EVEN_2, EVEN_3, FIRST_SHIFT, ODD_0, ODD_1, ODD_2, ODD_3, SECOND_SHIFT, Samples, Z3, Z4,
};
use crate::simd::{V3, transposed_two};

/// Eight values of 32 bits of each block.
type Wide = [__m256i; 2];

/// The samples of two blocks.
#[inline(always)]
pub(super) fn samples(_has: V3, coefficients: [&[[i16; 8]; 8]; 2], steps: &[[i16; 8]; 8]) -> [Samples; 2] {
    // SAFETY: the value says that the processor has AVX2.
    unsafe { blocks(coefficients, steps) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn blocks([one, two]: [&[[i16; 8]; 8]; 2], steps: &[[i16; 8]; 8]) -> [Samples; 2] {
    let rows = std::array::from_fn(|row| {
        let first = _mm256_castsi128_si256(bytemuck::cast(one[row]));
        let both = _mm256_inserti128_si256::<1>(first, bytemuck::cast(two[row]));
        _mm256_mullo_epi16(both, _mm256_broadcastsi128_si256(bytemuck::cast(steps[row])))
    });
    to_rows(pass::<SECOND_SHIFT>(transposed_two(pass::<FIRST_SHIFT>(rows))))
}

#[inline]
#[target_feature(enable = "avx2")]
fn pass<const SHIFT: i32>(input: [__m256i; 8]) -> [__m256i; 8] {
    let even = pairs(input[2], input[6]);
    let (even_3, even_2) = (rotate(even, EVEN_3), rotate(even, EVEN_2));
    let sum = scaled(_mm256_add_epi16(input[0], input[4]));
    let difference = scaled(_mm256_sub_epi16(input[0], input[4]));
    let starts = [add(sum, even_3), add(difference, even_2), sub(difference, even_2), sub(sum, even_3)];

    let z = pairs(_mm256_add_epi16(input[3], input[7]), _mm256_add_epi16(input[1], input[5]));
    let (z3, z4) = (rotate(z, Z3), rotate(z, Z4));
    let outer = pairs(input[7], input[1]);
    let inner = pairs(input[5], input[3]);
    let turns = [
        add(rotate(outer, ODD_3), z4),
        add(rotate(inner, ODD_2), z3),
        add(rotate(inner, ODD_1), z4),
        add(rotate(outer, ODD_0), z3),
    ];
    let mut output = [_mm256_setzero_si256(); 8];
    for at in 0..4 {
        output[at] = descaled::<SHIFT>(add(starts[at], turns[at]));
        output[7 - at] = descaled::<SHIFT>(sub(starts[at], turns[at]));
    }
    output
}

#[inline]
#[target_feature(enable = "avx2")]
fn pairs(first: __m256i, second: __m256i) -> Wide {
    [_mm256_unpacklo_epi16(first, second), _mm256_unpackhi_epi16(first, second)]
}

#[inline]
#[target_feature(enable = "avx2")]
fn rotate(pairs: Wide, factors: [i16; 2]) -> Wide {
    let factors = _mm256_set1_epi32(bytemuck::cast(factors));
    pairs.map(|pairs| _mm256_madd_epi16(pairs, factors))
}

#[inline]
#[target_feature(enable = "avx2")]
fn scaled(values: __m256i) -> Wide {
    let zero = _mm256_setzero_si256();
    pairs(zero, values).map(|wide| _mm256_srai_epi32::<{ 16 - CONST_BITS }>(wide))
}

#[inline]
#[target_feature(enable = "avx2")]
fn add(a: Wide, b: Wide) -> Wide {
    [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])]
}

#[inline]
#[target_feature(enable = "avx2")]
fn sub(a: Wide, b: Wide) -> Wide {
    [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])]
}

#[inline]
#[target_feature(enable = "avx2")]
fn descaled<const SHIFT: i32>(values: Wide) -> __m256i {
    let half = _mm256_set1_epi32(1 << (SHIFT - 1));
    let [low, high] = values.map(|wide| _mm256_srai_epi32::<SHIFT>(_mm256_add_epi32(wide, half)));
    _mm256_packs_epi32(low, high)
}

/// Columns of 16-bit values to rows of samples.
#[inline]
#[target_feature(enable = "avx2")]
fn to_rows(columns: [__m256i; 8]) -> [Samples; 2] {
    let centre = _mm256_set1_epi8(-128);
    let packed: [__m256i; 4] =
        std::array::from_fn(|at| _mm256_add_epi8(_mm256_packs_epi16(columns[at], columns[at + 4]), centre));
    let low_01 = _mm256_unpacklo_epi8(packed[0], packed[1]);
    let low_45 = _mm256_unpackhi_epi8(packed[0], packed[1]);
    let low_23 = _mm256_unpacklo_epi8(packed[2], packed[3]);
    let low_67 = _mm256_unpackhi_epi8(packed[2], packed[3]);
    let top_left = _mm256_unpacklo_epi16(low_01, low_23);
    let bottom_left = _mm256_unpackhi_epi16(low_01, low_23);
    let top_right = _mm256_unpacklo_epi16(low_45, low_67);
    let bottom_right = _mm256_unpackhi_epi16(low_45, low_67);
    let rows = [
        _mm256_unpacklo_epi32(top_left, top_right),
        _mm256_unpackhi_epi32(top_left, top_right),
        _mm256_unpacklo_epi32(bottom_left, bottom_right),
        _mm256_unpackhi_epi32(bottom_left, bottom_right),
    ];
    let one: [__m128i; 4] = std::array::from_fn(|at| _mm256_castsi256_si128(rows[at]));
    let two: [__m128i; 4] = std::array::from_fn(|at| _mm256_extracti128_si256::<1>(rows[at]));
    [bytemuck::cast(one), bytemuck::cast(two)]
}
