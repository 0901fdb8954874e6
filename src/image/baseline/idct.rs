//! Inverse DCT of libjpeg's "islow" method, bit-identical to its SIMD code.
//!
//! # Source
//! libjpeg-turbo, jidctint.c and simd/x86_64/jidctint-sse2.asm (Loeffler, Ligtenberg and Moschytz 1989).

use crate::simd::SimdLevel;

/// Number of fraction bits of the constants.
const CONST_BITS: i32 = 13;
/// Number of fraction bits kept between the passes.
const PASS_BITS: i32 = 2;
const FIRST_SHIFT: i32 = CONST_BITS - PASS_BITS;
const SECOND_SHIFT: i32 = CONST_BITS + PASS_BITS + 3;

const F_0_298: i16 = 2446;
const F_0_390: i16 = 3196;
const F_0_541: i16 = 4433;
const F_0_765: i16 = 6270;
const F_0_899: i16 = 7373;
const F_1_175: i16 = 9633;
const F_1_501: i16 = 12299;
const F_1_847: i16 = 15137;
const F_1_961: i16 = 16069;
const F_2_053: i16 = 16819;
const F_2_562: i16 = 20995;
const F_3_072: i16 = 25172;

/// Pairs of factors of one rotation each, in the layout of multiply-add instructions.
const EVEN_3: [i16; 2] = [F_0_541 + F_0_765, F_0_541];
const EVEN_2: [i16; 2] = [F_0_541, F_0_541 - F_1_847];
const Z3: [i16; 2] = [F_1_175 - F_1_961, F_1_175];
const Z4: [i16; 2] = [F_1_175, F_1_175 - F_0_390];
const ODD_0: [i16; 2] = [F_0_298 - F_0_899, -F_0_899];
const ODD_3: [i16; 2] = [-F_0_899, F_1_501 - F_0_899];
const ODD_1: [i16; 2] = [F_2_053 - F_2_562, -F_2_562];
const ODD_2: [i16; 2] = [-F_2_562, F_3_072 - F_2_562];

/// Rows of a block of samples.
pub(super) type Samples = [[u8; 8]; 8];

/// Computes the samples of a block from its coefficients and the quantisation steps, both in natural order.
#[inline(always)]
pub(super) fn samples(coefficients: &[[i16; 8]; 8], steps: &[[i16; 8]; 8]) -> Samples {
    #[cfg(target_arch = "x86_64")]
    return x86::samples(coefficients, steps);
    #[cfg(not(target_arch = "x86_64"))]
    return portable::samples(coefficients, steps);
}

/// Computes the samples of two blocks of one component.
#[inline(always)]
pub(super) fn samples_of_two(
    level: SimdLevel,
    coefficients: [&[[i16; 8]; 8]; 2],
    steps: &[[i16; 8]; 8],
) -> [Samples; 2] {
    #[cfg(target_arch = "x86_64")]
    if let SimdLevel::V3(has) = level {
        return x86::samples_of_two(has, coefficients, steps);
    }
    let _ = level;
    coefficients.map(|block| samples(block, steps))
}

/// Largest magnitude of DC value times step for which [`flat_sample`] equals the result of [`samples`].
pub(super) const MOST_FLAT: u16 = i16::MAX as u16 >> PASS_BITS;

/// Returns the sample that fills a block without AC coefficients.
#[inline(always)]
pub(super) fn flat_sample(dc: i16, step: i16) -> u8 {
    let first = i32::from(dc.wrapping_mul(step).wrapping_shl(PASS_BITS as u32));
    let value = (first + (1 << (PASS_BITS + 2))) >> (PASS_BITS + 3);
    (value.clamp(-128, 127) + 128) as u8
}

/// Portable code, which is also the oracle of the x86 code.
#[cfg(any(test, not(target_arch = "x86_64")))]
mod portable {
    use super::*;

    pub(super) fn samples(coefficients: &[[i16; 8]; 8], steps: &[[i16; 8]; 8]) -> Samples {
        let mut rows = [[0_i16; 8]; 8];
        for column in 0..8 {
            let input = std::array::from_fn(|row| coefficients[row][column].wrapping_mul(steps[row][column]));
            let output = pass(input, FIRST_SHIFT);
            for row in 0..8 {
                rows[row][column] = output[row];
            }
        }
        rows.map(|row| {
            pass(row, SECOND_SHIFT)
                .map(|value| (value.clamp(i16::from(i8::MIN), i16::from(i8::MAX)) + 128) as u8)
        })
    }

    fn pass(input: [i16; 8], shift: i32) -> [i16; 8] {
        let rotate =
            |x: i16, y: i16, [a, b]: [i16; 2]| i32::from(x) * i32::from(a) + i32::from(y) * i32::from(b);
        let even_3 = rotate(input[2], input[6], EVEN_3);
        let even_2 = rotate(input[2], input[6], EVEN_2);
        let sum = i32::from(input[0].wrapping_add(input[4])) << CONST_BITS;
        let difference = i32::from(input[0].wrapping_sub(input[4])) << CONST_BITS;
        let starts = [sum + even_3, difference + even_2, difference - even_2, sum - even_3];
        let (z_first, z_second) = (input[3].wrapping_add(input[7]), input[1].wrapping_add(input[5]));
        let (z3, z4) = (rotate(z_first, z_second, Z3), rotate(z_first, z_second, Z4));
        let turns = [
            rotate(input[7], input[1], ODD_3) + z4,
            rotate(input[5], input[3], ODD_2) + z3,
            rotate(input[5], input[3], ODD_1) + z4,
            rotate(input[7], input[1], ODD_0) + z3,
        ];
        let descaled = |value: i32| {
            (value.wrapping_add(1 << (shift - 1)) >> shift).clamp(i32::from(i16::MIN), i32::from(i16::MAX))
                as i16
        };
        let mut output = [0; 8];
        for at in 0..4 {
            output[at] = descaled(starts[at].wrapping_add(turns[at]));
            output[7 - at] = descaled(starts[at].wrapping_sub(turns[at]));
        }
        output
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! Inverse DCT in x86 registers: of one block with a register for each row, or of two in the halves of AVX2's.
    #![expect(
        unsafe_code,
        reason = "calling functions compiled for SSE2 and AVX2, the latter after the processor was asked"
    )]

    use super::Samples;
    use crate::simd::V3;

    #[inline(always)]
    pub(super) fn samples(coefficients: &[[i16; 8]; 8], steps: &[[i16; 8]; 8]) -> Samples {
        // SAFETY: SSE2 is part of x86-64.
        unsafe { sse2::block(coefficients, steps) }
    }

    #[inline(always)]
    pub(super) fn samples_of_two(
        _has: V3,
        coefficients: [&[[i16; 8]; 8]; 2],
        steps: &[[i16; 8]; 8],
    ) -> [Samples; 2] {
        // SAFETY: a `V3` value proves that the processor has AVX2.
        unsafe { avx2::blocks(coefficients, steps) }
    }

    /// Defines the passes over registers; the module imports the instructions under names without their prefix.
    macro_rules! passes {
        ($feature:literal) => {
            use super::super::{
                CONST_BITS, EVEN_2, EVEN_3, FIRST_SHIFT, ODD_0, ODD_1, ODD_2, ODD_3, SECOND_SHIFT, Samples,
                Z3, Z4,
            };

            /// Values of 32 bits, eight in each half.
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

            /// Converts columns of 16-bit values to rows of samples, two to a half.
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
            _mm256_packs_epi16 as packs_epi16, _mm256_packs_epi32 as packs_epi32,
            _mm256_set1_epi8 as set1_epi8, _mm256_set1_epi32 as set1_epi32, _mm256_setzero_si256 as setzero,
            _mm256_srai_epi32 as srai_epi32, _mm256_sub_epi16 as sub_epi16, _mm256_sub_epi32 as sub_epi32,
            _mm256_unpackhi_epi8 as unpackhi_epi8, _mm256_unpackhi_epi16 as unpackhi_epi16,
            _mm256_unpackhi_epi32 as unpackhi_epi32, _mm256_unpacklo_epi8 as unpacklo_epi8,
            _mm256_unpacklo_epi16 as unpacklo_epi16, _mm256_unpacklo_epi32 as unpacklo_epi32,
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};

    /// Draws a random block: `spread` bounds the coefficients, `density` is the share of nonzero ones.
    fn block(stream: &mut Stream, spread: u64, density: f64) -> [[i16; 8]; 8] {
        let mut value = || {
            if stream.chance(density) {
                (stream.below(2 * spread + 1) as i64 - spread as i64) as i16
            } else {
                0
            }
        };
        std::array::from_fn(|_| std::array::from_fn(|_| value()))
    }

    #[test]
    fn the_x86_code_agrees_with_the_portable_code_even_where_values_overflow() {
        let mut stream = Stream::new(1, Purpose::Test, 0, 0);
        for round in 0..20_000 {
            let (spread, density) = [(3, 0.1), (40, 0.3), (1000, 0.5), (32_767, 1.0)][round % 4];
            let coefficients = block(&mut stream, spread, density);
            let steps = block(&mut stream, 100, 1.0);
            let expected = portable::samples(&coefficients, &steps);
            assert_eq!(samples(&coefficients, &steps), expected);
            let other = block(&mut stream, spread, density);
            for level in SimdLevel::available() {
                let found = samples_of_two(level, [&coefficients, &other], &steps);
                assert_eq!(found, [expected, portable::samples(&other, &steps)], "{level:?}");
            }
        }
    }

    #[test]
    fn a_block_without_ac_is_flat() {
        let most = MOST_FLAT as i16;
        let larger = [(most, 1), (-most, 1), (1, most), (-1, most)];
        let usual = [(0, 1), (5, 16), (-300, 3), (1023, 8), (-1024, 8), (2047, 2), (-2048, 4)];
        for (dc, step) in usual.into_iter().chain(larger) {
            let mut coefficients = [[0; 8]; 8];
            coefficients[0][0] = dc;
            let expected = samples(&coefficients, &[[step; 8]; 8]);
            assert_eq!(expected, [[flat_sample(dc, step); 8]; 8], "{dc} {step}");
        }
    }
}
