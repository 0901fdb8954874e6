//! The passes of a resize, 16 lanes at a time, for processors with AVX2.
//!
//! The same sums of the same products as in the portable code, so the same bytes.
#![expect(unsafe_code, reason = "calling functions compiled for AVX2 after the processor was asked")]

use std::arch::asm;
use std::arch::x86_64::{
    __m256i, _mm256_add_epi16, _mm256_castsi128_si256, _mm256_inserti128_si256, _mm256_mulhi_epu16,
    _mm256_packus_epi16, _mm256_permute2x128_si256, _mm256_set1_epi16, _mm256_setzero_si256,
    _mm256_srli_epi16, _mm256_unpackhi_epi8, _mm256_unpacklo_epi8,
};

use super::{BAND, Filter, Target};
use crate::simd::{V3, transposed_two};

/// Columns of the first pass that are summed at a time; a narrower source is left to the portable code.
const CHUNK: usize = 32;

/// `None` where [`resize_plane`] cannot resize planes of this width.
pub(super) fn suits(width: usize, target: Target) -> Option<V3> {
    if width >= CHUNK && target.width >= 8 { V3::detect() } else { None }
}

/// What the portable `Plane` computes.
///
/// # Panics
/// If the width does not suit.
pub(super) fn resize_plane(
    _has: V3,
    (down, across): (&Filter, &Filter),
    rows: &mut [u16],
    columns: &mut [[u16; BAND]],
    (source, width): (&[u8], usize),
    target: Target,
    out: &mut [u8],
) {
    assert!(width >= CHUNK && target.width >= 8, "the caller has asked");
    // SAFETY: the value says that the processor has AVX2.
    unsafe { bands((down, across), rows, columns, (source, width), target, out) }
}

#[target_feature(enable = "avx2")]
fn bands(
    (down, across): (&Filter, &Filter),
    rows: &mut [u16],
    columns: &mut [[u16; BAND]],
    (source, width): (&[u8], usize),
    target: Target,
    out: &mut [u8],
) {
    let pitch = width.next_multiple_of(8);
    for (band, out) in out.chunks_mut(BAND * target.width).enumerate() {
        let lines = out.len() / target.width;
        for (line, row) in rows.chunks_exact_mut(pitch).take(lines).enumerate() {
            let (first, weights) = down.terms(band * BAND + line);
            sum_rows(&source[first * width..], width, weights, &mut row[..width]);
        }
        turn(rows, pitch, columns);
        sum_columns(columns, across, target, out);
    }
}

/// Sums up to four rows at a time, so that their weights stay in registers.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_rows(source: &[u8], width: usize, weights: &[u16], out: &mut [u16]) {
    let bias = (weights.len() / 2) as u16;
    for (index, weights) in weights.chunks(4).enumerate() {
        let source = &source[4 * index * width..];
        let bias = if index == 0 { Some(bias) } else { None };
        match *weights {
            [a, b, c, d] => add_rows(source, width, [a, b, c, d], bias, out),
            [a, b, c] => add_rows(source, width, [a, b, c], bias, out),
            [a, b] => add_rows(source, width, [a, b], bias, out),
            _ => add_rows(source, width, [weights[0]], bias, out),
        }
    }
}

/// Adds weighted rows to `bias`, or to what there is.
#[inline]
#[target_feature(enable = "avx2")]
fn add_rows<const N: usize>(
    source: &[u8],
    width: usize,
    weights: [u16; N],
    bias: Option<u16>,
    out: &mut [u16],
) {
    let rows: [&[u8]; N] = std::array::from_fn(|row| &source[row * width..][..width]);
    let weights = weights.map(|weight| _mm256_set1_epi16(weight as i16));
    let fresh = [_mm256_set1_epi16(bias.unwrap_or(0) as i16); 2];
    // Interleaving with zeros makes high bytes of the values, in another order of the columns than the row has.
    let halves = |low, high| {
        [_mm256_permute2x128_si256::<0x20>(low, high), _mm256_permute2x128_si256::<0x31>(low, high)]
    };
    let sum = |before: &[u16; CHUNK], values: [&[u8; CHUNK]; N]| -> [u16; CHUNK] {
        let mut sums = if bias.is_some() {
            fresh
        } else {
            let [low, high]: [__m256i; 2] = bytemuck::cast(*before);
            halves(low, high)
        };
        let zero = _mm256_setzero_si256();
        for (values, &weight) in values.iter().zip(&weights) {
            let values: __m256i = bytemuck::cast(**values);
            let wide = [_mm256_unpacklo_epi8(zero, values), _mm256_unpackhi_epi8(zero, values)];
            for (sum, wide) in sums.iter_mut().zip(wide) {
                *sum = _mm256_add_epi16(*sum, high_product(wide, weight));
            }
        }
        bytemuck::cast(halves(sums[0], sums[1]))
    };
    // The last chunk overlaps the one before it where the width is no multiple: so it comes first.
    let tail = rows.map(|row| row.last_chunk().expect("a row holds a chunk"));
    let before = out.last_chunk().expect("a row holds a chunk");
    let last = sum(before, tail);
    let count = width / CHUNK;
    let chunks = rows.map(|row| &row.as_chunks::<CHUNK>().0[..count]);
    for (index, out) in out.as_chunks_mut::<CHUNK>().0[..count].iter_mut().enumerate() {
        *out = sum(out, chunks.map(|chunks| &chunks[index]));
    }
    *out.last_chunk_mut().expect("a row holds a chunk") = last;
}

/// `_mm256_mulhi_epu16`, which LLVM takes apart where a factor stays the same in a loop: it widens that factor before
/// the loop, and then all others in it.
#[inline]
#[target_feature(enable = "avx2")]
fn high_product(values: __m256i, factor: __m256i) -> __m256i {
    let product;
    // SAFETY: the instruction is AVX2's and reads and writes registers alone.
    unsafe {
        asm!("vpmulhuw {}, {}, {}", out(ymm_reg) product, in(ymm_reg) values, in(ymm_reg) factor,
            options(pure, nomem, nostack, preserves_flags));
    }
    product
}

/// Turns the rows of a band into columns.
#[inline]
#[target_feature(enable = "avx2")]
fn turn(rows: &[u16], pitch: usize, columns: &mut [[u16; BAND]]) {
    for half in 0..BAND / 16 {
        let lines: [&[[u16; 8]]; 16] = std::array::from_fn(|line| {
            &rows[(half * 16 + line) * pitch..][..pitch].as_chunks::<8>().0[..pitch / 8]
        });
        let columns = columns.as_chunks_mut::<8>().0[..pitch / 8].iter_mut();
        for (block, columns) in columns.enumerate() {
            let tiles = std::array::from_fn(|line| {
                let upper = _mm256_castsi128_si256(bytemuck::cast(lines[line][block]));
                _mm256_inserti128_si256::<1>(upper, bytemuck::cast(lines[line + 8][block]))
            });
            for (column, tile) in columns.iter_mut().zip(transposed_two(tiles)) {
                let values: [u16; 16] = bytemuck::cast(tile);
                column.as_chunks_mut::<16>().0[half] = values;
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn sum_columns(columns: &[[u16; BAND]], across: &Filter, target: Target, out: &mut [u8]) {
    match across.terms {
        2 => sum_columns_of::<2>(columns, across, target, out),
        3 => sum_columns_of::<3>(columns, across, target, out),
        4 => sum_columns_of::<4>(columns, across, target, out),
        5 => sum_columns_of::<5>(columns, across, target, out),
        6 => sum_columns_of::<6>(columns, across, target, out),
        _ => sum_columns_of::<0>(columns, across, target, out),
    }
}

/// The weighted sums of columns, as bytes in rows; `N` terms each, or any number if it is 0.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_columns_of<const N: usize>(columns: &[[u16; BAND]], across: &Filter, target: Target, out: &mut [u8]) {
    let bias = _mm256_set1_epi16(target.rounding.bias(across.terms) as i16);
    let mut start = 0;
    loop {
        let firsts = across.firsts[start..].first_chunk::<8>().expect("eight outputs");
        let weights = &across.weights[start * across.terms..][..8 * across.terms];
        let mut sums = [[bias; BAND / 16]; 8];
        for (offset, (sums, &first)) in sums.iter_mut().zip(firsts).enumerate() {
            if N == 0 {
                let weights = &weights[offset * across.terms..][..across.terms];
                for (column, &weight) in columns[first as usize..].iter().zip(weights) {
                    add_column(sums, column, weight);
                }
            } else {
                let weights = weights.as_chunks::<N>().0[offset];
                let columns =
                    columns[first as usize..].first_chunk::<N>().expect("a filter stays in the row");
                for (column, weight) in columns.iter().zip(weights) {
                    add_column(sums, column, weight);
                }
            }
        }
        for (half, out) in out.chunks_mut(16 * target.width).enumerate() {
            put_rows(sums.map(|sums| sums[half]), target.width, start, out);
        }
        if start + 8 == target.width {
            return;
        }
        start = (start + 8).min(target.width - 8);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn add_column(sums: &mut [__m256i; BAND / 16], column: &[u16; BAND], weight: u16) {
    let weight = _mm256_set1_epi16(weight as i16);
    for (sum, values) in sums.iter_mut().zip(column.as_chunks::<16>().0) {
        *sum = _mm256_add_epi16(*sum, _mm256_mulhi_epu16(bytemuck::cast(*values), weight));
    }
}

/// Writes eight columns of sums as bytes into up to 16 rows.
#[inline]
#[target_feature(enable = "avx2")]
fn put_rows(sums: [__m256i; 8], width: usize, start: usize, out: &mut [u8]) {
    let tiles = transposed_two(sums.map(|sum| _mm256_srli_epi16::<8>(sum)));
    // Of each half: eight bytes of one row, then eight of the row four below.
    let packed: [[[u8; 8]; 4]; 4] =
        std::array::from_fn(|row| bytemuck::cast(_mm256_packus_epi16(tiles[row], tiles[row + 4])));
    for (line, row) in out.chunks_exact_mut(width).enumerate() {
        row[start..start + 8].copy_from_slice(&packed[line % 4][line / 4]);
    }
}
