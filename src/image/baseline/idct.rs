//! The inverse DCT of libjpeg's "islow" method, bit for bit as its SIMD code computes it.
//!
//! # Source
//! libjpeg-turbo, jidctint.c and simd/x86_64/jidctint-sse2.asm (Loeffler, Ligtenberg and Moschytz 1989).

#[cfg(target_arch = "x86_64")]
mod x86;

use crate::simd::SimdLevel;

/// Fraction bits of the constants.
const CONST_BITS: i32 = 13;
/// Fraction bits kept between the passes.
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

/// Pairs of factors of one rotation each, as multiply-add instructions want them.
const EVEN_3: [i16; 2] = [F_0_541 + F_0_765, F_0_541];
const EVEN_2: [i16; 2] = [F_0_541, F_0_541 - F_1_847];
const Z3: [i16; 2] = [F_1_175 - F_1_961, F_1_175];
const Z4: [i16; 2] = [F_1_175, F_1_175 - F_0_390];
const ODD_0: [i16; 2] = [F_0_298 - F_0_899, -F_0_899];
const ODD_3: [i16; 2] = [-F_0_899, F_1_501 - F_0_899];
const ODD_1: [i16; 2] = [F_2_053 - F_2_562, -F_2_562];
const ODD_2: [i16; 2] = [-F_2_562, F_3_072 - F_2_562];

/// The rows of a block of samples.
pub(super) type Samples = [[u8; 8]; 8];

/// The samples of a block from its coefficients and the quantisation steps, both in natural order.
#[inline(always)]
pub(super) fn samples(coefficients: &[[i16; 8]; 8], steps: &[[i16; 8]; 8]) -> Samples {
    #[cfg(target_arch = "x86_64")]
    return x86::samples(coefficients, steps);
    #[cfg(not(target_arch = "x86_64"))]
    return portable::samples(coefficients, steps);
}

/// The samples of two blocks of one component.
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

/// The most that DC value times step may be, either way, for [`flat_sample`] to be what [`samples`] gives.
pub(super) const MOST_FLAT: u16 = i16::MAX as u16 >> PASS_BITS;

/// The sample that fills a block without AC coefficients.
#[inline(always)]
pub(super) fn flat_sample(dc: i16, step: i16) -> u8 {
    let first = i32::from(dc.wrapping_mul(step).wrapping_shl(PASS_BITS as u32));
    let value = (first + (1 << (PASS_BITS + 2))) >> (PASS_BITS + 3);
    (value.clamp(-128, 127) + 128) as u8
}

/// The same for any processor, and the x86 code's oracle.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};

    /// Random blocks: `spread` bounds the coefficients, `density` is the share of them that is not 0.
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
