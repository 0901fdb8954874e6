//! Filter with AMX: products of 16 queries and 16 rows at a time.
//!
//! Stable Rust has no intrinsics for AMX, so this uses inline assembly. The registers' shape is state of the
//! thread. It is restored afterwards, since oneDNN shares threads with this code and relies on its own.
#![expect(unsafe_code, reason = "CPU instructions beyond the target's, behind run-time detection")]

use std::arch::asm;
use std::arch::x86_64::*;

use super::{BLOCK_ROWS, Filter, Group, Passed, QUAD};
use crate::search::bound::{AMX_GROUP, AMX_ROWS};
use crate::simd::{Amx, Line};

/// Quads in a register.
const REGISTER_QUADS: usize = Line::BYTES / QUAD;
/// Rows of a block in one register.
const REGISTER_ROWS: usize = BLOCK_ROWS / 2;

/// Runs [`Filter`] with AMX.
pub(super) fn filter_amx(_has: Amx, whole: Filter<'_>) {
    let Filter { tile, group, .. } = whole;
    let blocks = tile.rows.div_ceil(BLOCK_ROWS);
    assert!(tile.quads > 0 && tile.quads.is_multiple_of(REGISTER_QUADS));
    assert_eq!(tile.codes.len() * Line::BYTES, blocks * tile.quads * BLOCK_ROWS * QUAD);
    assert_eq!(tile.residual_norms.len(), blocks * BLOCK_ROWS);
    assert_eq!(group.codes.len() * Line::BYTES, tile.quads * QUAD * AMX_GROUP);
    // SAFETY: the value proves that the CPU has the instructions and the kernel allows them; the shapes were checked.
    unsafe {
        let before = exchange_shape(&Line::registers());
        filter(whole);
        exchange_shape(&before);
    }
}

impl Line {
    /// Returns the input of `ldtilecfg` for eight registers of 16 rows of 64 bytes (Intel's manual, `LDTILECFG`).
    const fn registers() -> Self {
        const FIRST_WIDTH: usize = 16;
        const FIRST_HEIGHT: usize = 48;
        let mut shape = [0; Self::BYTES];
        shape[0] = 1;
        let mut register = 0;
        while register < 8 {
            shape[FIRST_WIDTH + 2 * register] = Self::BYTES as u8;
            shape[FIRST_HEIGHT + register] = AMX_ROWS as u8;
            register += 1;
        }
        Self(shape)
    }
}

/// Sets the registers' shape. Returns the previous one.
///
/// # Safety
/// The processor must have AMX, and the kernel must allow it.
unsafe fn exchange_shape(shape: &Line) -> Line {
    let mut before = Line::ZERO;
    // SAFETY: both are lines of 64 bytes. No other code in this thread has values in the named registers.
    unsafe {
        asm!(
            "sttilecfg [{before}]",
            "ldtilecfg [{shape}]",
            before = in(reg) before.0.as_mut_ptr(),
            shape = in(reg) shape.0.as_ptr(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, preserves_flags),
        );
    }
    before
}

/// `[AMX_GROUP, BLOCK_ROWS]`: the filter's results without the part of the rows.
#[repr(C, align(64))]
struct Sums([[i32; BLOCK_ROWS]; AMX_GROUP]);

/// # Safety
/// The shapes must be those that [`filter_amx`] checks, and the registers' that of [`Line::registers`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn filter(Filter { tile, group, thresholds, found }: Filter<'_>) {
    let reach = _mm512_set1_ps(group.reach);
    let mut sums = Sums([[0; BLOCK_ROWS]; AMX_GROUP]);
    for block in 0..tile.rows.div_ceil(BLOCK_ROWS) {
        // SAFETY: a block has BLOCK_ROWS residual norms, and `quads` times BLOCK_ROWS quads of codes.
        let start = unsafe {
            let codes = tile.codes.as_ptr().cast::<u8>().add(block * tile.quads * BLOCK_ROWS * QUAD);
            multiply(group, codes, tile.quads, &mut sums);
            let norms = tile.residual_norms.as_ptr().add(block * BLOCK_ROWS);
            [norms, norms.add(REGISTER_ROWS)]
                .map(|norms| _mm512_cvttps_epi32(_mm512_mul_ps(reach, _mm512_loadu_ps(norms))))
        };
        // No branch for each query: the processor would mispredict which queries pass, and discard products in flight.
        let mut passed = [Passed::default(); AMX_GROUP];
        let mut count = 0;
        for (query, (sums, least)) in sums.0.iter().zip(thresholds).enumerate() {
            let least = _mm512_set1_epi32(*least);
            // SAFETY: there are two registers of sums for each query.
            let [low, high] = [0, 1].map(|half| unsafe {
                let sums = _mm512_load_si512(sums.as_ptr().add(half * REGISTER_ROWS).cast());
                u32::from(_mm512_cmpgt_epi32_mask(_mm512_add_epi32(sums, start[half]), least))
            });
            let rows = low | high << REGISTER_ROWS;
            passed[count] = Passed { block: block as u32, query: query as u32, rows };
            count += usize::from(rows != 0);
        }
        found.extend_from_slice(&passed[..count]);
    }
}

/// Multiplies all queries of a group with the rows of a block: registers 0 to 3 accumulate, 4 and 5 hold
/// queries, 6 and 7 hold rows.
///
/// # Safety
/// As for [`filter`]; `codes` must be those of a block.
#[inline(always)]
unsafe fn multiply(group: &Group, codes: *const u8, quads: usize, sums: &mut Sums) {
    const {
        assert!(
            BLOCK_ROWS * QUAD == 128 && AMX_ROWS * Line::BYTES == 1024,
            "the distances in the code below"
        );
    }
    // SAFETY: each turn reads a register for each half of the queries, `[AMX_ROWS, Line::BYTES]`, and for
    // each half of the rows, `[REGISTER_QUADS, REGISTER_ROWS, QUAD]`. There are `quads / REGISTER_QUADS` of
    // these. The whole of `sums` is written.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{queries} + {line}]",
            "tileloadd tmm6, [{rows} + {two_lines}]",
            "tdpbsud tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{rows} + {two_lines} + 64]",
            "tdpbsud tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{queries} + {line} + 1024]",
            "tdpbsud tmm2, tmm5, tmm6",
            "tdpbsud tmm3, tmm5, tmm7",
            "add {queries}, 2048",
            "add {rows}, 2048",
            "dec {turns}",
            "jnz 2b",
            "tilestored [{sums} + {two_lines}], tmm0",
            "tilestored [{sums} + {two_lines} + 64], tmm1",
            "tilestored [{sums} + {two_lines} + 2048], tmm2",
            "tilestored [{sums} + {two_lines} + 2112], tmm3",
            queries = inout(reg) group.codes.as_ptr() => _,
            rows = inout(reg) codes => _,
            turns = inout(reg) quads / REGISTER_QUADS => _,
            sums = in(reg) sums.0.as_mut_ptr(),
            line = in(reg) 64_usize,
            two_lines = in(reg) 128_usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
