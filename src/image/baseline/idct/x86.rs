//! The inverse DCT in x86's registers: of one block where each row takes one, of two blocks in the halves of AVX2's.
#![expect(
    unsafe_code,
    reason = "calling functions compiled for SSE2 and AVX2, the latter after the processor was asked"
)]

use super::Samples;
use crate::simd::V3;

/// The samples of a block.
#[inline(always)]
pub(super) fn samples(coefficients: &[[i16; 8]; 8], steps: &[[i16; 8]; 8]) -> Samples {
    // SAFETY: SSE2 is part of x86-64.
    unsafe { sse2::block(coefficients, steps) }
}

/// The samples of two blocks.
#[inline(always)]
pub(super) fn samples_of_two(
    _has: V3,
    coefficients: [&[[i16; 8]; 8]; 2],
    steps: &[[i16; 8]; 8],
) -> [Samples; 2] {
    // SAFETY: the value says that the processor has AVX2.
    unsafe { avx2::blocks(coefficients, steps) }
}

/// The passes over registers of these instructions, whose names the module has without their prefix.
macro_rules! passes {
    ($feature:literal) => {
        use super::super::{
            CONST_BITS, EVEN_2, EVEN_3, FIRST_SHIFT, ODD_0, ODD_1, ODD_2, ODD_3, SECOND_SHIFT, Samples, Z3,
            Z4,
        };

        /// Eight values of 32 bits in each half.
        type Wide = [Register; 2];

        #[inline]
        #[target_feature(enable = $feature)]
        fn pass<const SHIFT: i32>(input: [Register; 8]) -> [Register; 8] {
            let even = pairs(input[2], input[6]);
            let (even_3, even_2) = (rotate(even, EVEN_3), rotate(even, EVEN_2));
            let sum = scaled(add_epi16(input[0], input[4]));
            let difference = scaled(sub_epi16(input[0], input[4]));
            let starts =
                [add(sum, even_3), add(difference, even_2), sub(difference, even_2), sub(sum, even_3)];

            let z = pairs(add_epi16(input[3], input[7]), add_epi16(input[1], input[5]));
            let (z3, z4) = (rotate(z, Z3), rotate(z, Z4));
            let outer = pairs(input[7], input[1]);
            let inner = pairs(input[5], input[3]);
            let turns = [
                add(rotate(outer, ODD_3), z4),
                add(rotate(inner, ODD_2), z3),
                add(rotate(inner, ODD_1), z4),
                add(rotate(outer, ODD_0), z3),
            ];
            let mut output = [setzero(); 8];
            for at in 0..4 {
                output[at] = descaled::<SHIFT>(add(starts[at], turns[at]));
                output[7 - at] = descaled::<SHIFT>(sub(starts[at], turns[at]));
            }
            output
        }

        #[inline]
        #[target_feature(enable = $feature)]
        fn pairs(first: Register, second: Register) -> Wide {
            [unpacklo_epi16(first, second), unpackhi_epi16(first, second)]
        }

        #[inline]
        #[target_feature(enable = $feature)]
        fn rotate(pairs: Wide, factors: [i16; 2]) -> Wide {
            let factors = set1_epi32(bytemuck::cast(factors));
            pairs.map(|pairs| madd_epi16(pairs, factors))
        }

        #[inline]
        #[target_feature(enable = $feature)]
        fn scaled(values: Register) -> Wide {
            let zero = setzero();
            pairs(zero, values).map(|wide| srai_epi32::<{ 16 - CONST_BITS }>(wide))
        }

        #[inline]
        #[target_feature(enable = $feature)]
        fn add(a: Wide, b: Wide) -> Wide {
            [add_epi32(a[0], b[0]), add_epi32(a[1], b[1])]
        }

        #[inline]
        #[target_feature(enable = $feature)]
        fn sub(a: Wide, b: Wide) -> Wide {
            [sub_epi32(a[0], b[0]), sub_epi32(a[1], b[1])]
        }

        #[inline]
        #[target_feature(enable = $feature)]
        fn descaled<const SHIFT: i32>(values: Wide) -> Register {
            let half = set1_epi32(1 << (SHIFT - 1));
            let [low, high] = values.map(|wide| srai_epi32::<SHIFT>(add_epi32(wide, half)));
            packs_epi32(low, high)
        }

        /// Columns of 16-bit values to rows of samples, two to a half.
        #[inline]
        #[target_feature(enable = $feature)]
        fn to_rows(columns: [Register; 8]) -> [Register; 4] {
            let centre = set1_epi8(-128);
            let packed: [Register; 4] =
                std::array::from_fn(|at| add_epi8(packs_epi16(columns[at], columns[at + 4]), centre));
            let low_01 = unpacklo_epi8(packed[0], packed[1]);
            let low_45 = unpackhi_epi8(packed[0], packed[1]);
            let low_23 = unpacklo_epi8(packed[2], packed[3]);
            let low_67 = unpackhi_epi8(packed[2], packed[3]);
            let top_left = unpacklo_epi16(low_01, low_23);
            let bottom_left = unpackhi_epi16(low_01, low_23);
            let top_right = unpacklo_epi16(low_45, low_67);
            let bottom_right = unpackhi_epi16(low_45, low_67);
            [
                unpacklo_epi32(top_left, top_right),
                unpackhi_epi32(top_left, top_right),
                unpacklo_epi32(bottom_left, bottom_right),
                unpackhi_epi32(bottom_left, bottom_right),
            ]
        }
    };
}

mod sse2 {
    use std::arch::x86_64::{
        __m128i as Register, _mm_add_epi8 as add_epi8, _mm_add_epi16 as add_epi16,
        _mm_add_epi32 as add_epi32, _mm_madd_epi16 as madd_epi16, _mm_mullo_epi16 as mullo_epi16,
        _mm_packs_epi16 as packs_epi16, _mm_packs_epi32 as packs_epi32, _mm_set1_epi8 as set1_epi8,
        _mm_set1_epi32 as set1_epi32, _mm_setzero_si128 as setzero, _mm_srai_epi32 as srai_epi32,
        _mm_sub_epi16 as sub_epi16, _mm_sub_epi32 as sub_epi32, _mm_unpackhi_epi8 as unpackhi_epi8,
        _mm_unpackhi_epi16 as unpackhi_epi16, _mm_unpackhi_epi32 as unpackhi_epi32,
        _mm_unpacklo_epi8 as unpacklo_epi8, _mm_unpacklo_epi16 as unpacklo_epi16,
        _mm_unpacklo_epi32 as unpacklo_epi32,
    };

    use crate::simd::transposed;

    passes!("sse2");

    #[inline]
    #[target_feature(enable = "sse2")]
    pub(super) fn block(coefficients: &[[i16; 8]; 8], steps: &[[i16; 8]; 8]) -> Samples {
        let rows = std::array::from_fn(|row| {
            mullo_epi16(bytemuck::cast(coefficients[row]), bytemuck::cast(steps[row]))
        });
        let columns = transposed(bytemuck::cast(pass::<FIRST_SHIFT>(rows)));
        bytemuck::cast(to_rows(pass::<SECOND_SHIFT>(bytemuck::cast(columns))))
    }
}

mod avx2 {
    use std::arch::x86_64::__m128i;
    use std::arch::x86_64::{
        __m256i as Register, _mm256_add_epi8 as add_epi8, _mm256_add_epi16 as add_epi16,
        _mm256_add_epi32 as add_epi32, _mm256_broadcastsi128_si256, _mm256_castsi128_si256,
        _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_inserti128_si256,
        _mm256_madd_epi16 as madd_epi16, _mm256_mullo_epi16 as mullo_epi16,
        _mm256_packs_epi16 as packs_epi16, _mm256_packs_epi32 as packs_epi32, _mm256_set1_epi8 as set1_epi8,
        _mm256_set1_epi32 as set1_epi32, _mm256_setzero_si256 as setzero, _mm256_srai_epi32 as srai_epi32,
        _mm256_sub_epi16 as sub_epi16, _mm256_sub_epi32 as sub_epi32, _mm256_unpackhi_epi8 as unpackhi_epi8,
        _mm256_unpackhi_epi16 as unpackhi_epi16, _mm256_unpackhi_epi32 as unpackhi_epi32,
        _mm256_unpacklo_epi8 as unpacklo_epi8, _mm256_unpacklo_epi16 as unpacklo_epi16,
        _mm256_unpacklo_epi32 as unpacklo_epi32,
    };

    use crate::simd::transposed_two;

    passes!("avx2");

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn blocks([one, two]: [&[[i16; 8]; 8]; 2], steps: &[[i16; 8]; 8]) -> [Samples; 2] {
        let rows = std::array::from_fn(|row| {
            let first = _mm256_castsi128_si256(bytemuck::cast(one[row]));
            let both = _mm256_inserti128_si256::<1>(first, bytemuck::cast(two[row]));
            mullo_epi16(both, _mm256_broadcastsi128_si256(bytemuck::cast(steps[row])))
        });
        let rows = to_rows(pass::<SECOND_SHIFT>(transposed_two(pass::<FIRST_SHIFT>(rows))));
        let one: [__m128i; 4] = std::array::from_fn(|at| _mm256_castsi256_si128(rows[at]));
        let two: [__m128i; 4] = std::array::from_fn(|at| _mm256_extracti128_si256::<1>(rows[at]));
        [bytemuck::cast(one), bytemuck::cast(two)]
    }
}
