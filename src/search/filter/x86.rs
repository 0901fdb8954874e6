//! Filters with AVX2 and with AVX-512 VNNI.
#![expect(unsafe_code, reason = "CPU instructions beyond the target's, behind run-time detection")]

use std::arch::x86_64::*;

use super::{BLOCK_ROWS, Filter, GROUP, QUAD, push};
use crate::simd::{Line, V3, Vnni};

/// Bytes of a quad in one block.
const STRIDE: usize = BLOCK_ROWS * QUAD;

/// Runs [`Filter`] with AVX2.
pub(super) fn filter_v3(_has: V3, filter: Filter<'_>) {
    check(&filter);
    // SAFETY: the value proves that the CPU has the instructions; the shapes were checked.
    unsafe { filter_avx2(filter) }
}

/// Runs [`Filter`] with AVX-512.
pub(super) fn filter_vnni(_has: Vnni, filter: Filter<'_>) {
    check(&filter);
    // SAFETY: the value proves that the CPU has the instructions; the shapes were checked.
    unsafe { filter_avx512(filter) }
}

/// Checks the shapes that the loads below rely on.
fn check(Filter { tile, group, .. }: &Filter<'_>) {
    let blocks = tile.rows.div_ceil(BLOCK_ROWS);
    assert_eq!(tile.codes.len() * Line::BYTES, blocks * tile.quads * STRIDE);
    assert_eq!(tile.residual_norms.len(), blocks * BLOCK_ROWS);
    assert!(group.codes.len() * Line::BYTES >= tile.quads * GROUP * QUAD && group.len() <= GROUP);
}

/// # Safety
/// The shapes must be those of [`check`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn filter_avx512(filter: Filter<'_>) {
    let Filter { tile, group, thresholds, found } = filter;
    let reach = _mm512_set1_ps(group.reach);
    for block in 0..tile.rows.div_ceil(BLOCK_ROWS) {
        // SAFETY: `check`: a block has BLOCK_ROWS residual norms and `quads` strides of codes, and the group has
        // GROUP quads for each of these.
        let (codes, queries, start) = unsafe {
            let norms = tile.residual_norms.as_ptr().add(block * BLOCK_ROWS);
            let start = [norms, norms.add(16)]
                .map(|norms| _mm512_cvttps_epi32(_mm512_mul_ps(reach, _mm512_loadu_ps(norms))));
            let codes = tile.codes.as_ptr().cast::<u8>().add(block * tile.quads * STRIDE);
            (codes, group.codes.as_ptr().cast::<i8>(), start)
        };
        let mut sums = [start; GROUP];
        for quad in 0..tile.quads {
            // SAFETY: as above.
            unsafe {
                let rows = codes.add(quad * STRIDE);
                let low = _mm512_loadu_si512(rows.cast());
                let high = _mm512_loadu_si512(rows.add(64).cast());
                let own = queries.add(quad * GROUP * QUAD).cast::<i32>();
                for (query, [first, second]) in sums.iter_mut().enumerate() {
                    let own = _mm512_set1_epi32(own.add(query).read_unaligned());
                    *first = _mm512_dpbusd_epi32(*first, low, own);
                    *second = _mm512_dpbusd_epi32(*second, high, own);
                }
            }
        }
        let mut passed = [0; GROUP];
        for query in 0..GROUP {
            let least = _mm512_set1_epi32(thresholds[query]);
            let [low, high] = sums[query].map(|sums| u32::from(_mm512_cmpgt_epi32_mask(sums, least)));
            passed[query] = low | high << 16;
        }
        if passed != [0; GROUP] {
            for (query, passed) in passed.into_iter().enumerate() {
                push(found, block, query, passed);
            }
        }
    }
}

/// Queries that the AVX2 filter processes at a time: with four registers of rows each they fill its sixteen.
const PAIR: usize = 2;

/// # Safety
/// The shapes must be those of [`check`].
#[target_feature(enable = "avx2,fma")]
unsafe fn filter_avx2(filter: Filter<'_>) {
    let Filter { tile, group, thresholds, found } = filter;
    let reach = _mm256_set1_ps(group.reach);
    let ones = _mm256_set1_epi16(1);
    for block in 0..tile.rows.div_ceil(BLOCK_ROWS) {
        for pair in (0..group.len()).step_by(PAIR) {
            // SAFETY: `check`: a block has BLOCK_ROWS residual norms and `quads` strides of codes, and the group has
            // GROUP quads for each of these; GROUP is even.
            let sums = unsafe {
                let norms = tile.residual_norms.as_ptr().add(block * BLOCK_ROWS);
                let start = [0, 8, 16, 24]
                    .map(|at| _mm256_cvttps_epi32(_mm256_mul_ps(reach, _mm256_loadu_ps(norms.add(at)))));
                let mut sums = [start; PAIR];
                for quad in 0..tile.quads {
                    let rows = tile.codes.as_ptr().cast::<u8>().add((block * tile.quads + quad) * STRIDE);
                    let rows = [0, 32, 64, 96].map(|at| _mm256_loadu_si256(rows.add(at).cast()));
                    let own =
                        group.codes.as_ptr().cast::<i8>().add((quad * GROUP + pair) * QUAD).cast::<i32>();
                    for (query, sums) in sums.iter_mut().enumerate() {
                        let own = _mm256_set1_epi32(own.add(query).read_unaligned());
                        for (sum, rows) in sums.iter_mut().zip(rows) {
                            let pairs = _mm256_maddubs_epi16(rows, own);
                            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
                        }
                    }
                }
                sums
            };
            for (query, sums) in sums.into_iter().enumerate().take(group.len() - pair) {
                let least = _mm256_set1_epi32(thresholds[pair + query]);
                let mut passed = 0;
                for (at, sum) in sums.into_iter().enumerate() {
                    let above = _mm256_castsi256_ps(_mm256_cmpgt_epi32(sum, least));
                    passed |= (_mm256_movemask_ps(above) as u32) << (8 * at);
                }
                push(found, block, pair + query, passed);
            }
        }
    }
}
