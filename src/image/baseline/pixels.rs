//! Converts samples to pixels: smooth upsampling of chroma and YCbCr to RGB, bit-identical to libjpeg.
//!
//! # Source
//! libjpeg-turbo, jdsample.c (`h2v1_fancy_upsample`, `h2v2_fancy_upsample`) and jdcolor.c
//! (`ycc_rgb_convert`).

use super::header::{Frame, Sampling};
use super::scan::{Plane, halved};
use crate::image::Region;
use crate::simd;

/// Buffers for a row of chroma, kept from image to image.
#[derive(Clone, Debug, Default)]
pub(super) struct ChromaRows {
    /// Sums of two rows, with a neighbour at each end.
    sums: Vec<u16>,
    upsampled: [Vec<u8>; 2],
}

/// Copies the luma of a region, row after row.
pub(super) fn copy_luma(planes: &[Plane; 3], region: Region, out: &mut [u8]) {
    for (row, out) in (region.top..).zip(out.chunks_exact_mut(region.width)) {
        out.copy_from_slice(planes[0].row(row, region.left..region.left + region.width));
    }
}

/// Conversion of a region to red, green and blue, plane after plane.
pub(super) struct Convert<'a> {
    pub(super) frame: &'a Frame<'a>,
    pub(super) planes: &'a [Plane; 3],
    pub(super) region: Region,
    pub(super) rows: &'a mut ChromaRows,
    pub(super) out: &'a mut [u8],
}

impl simd::Kernel for Convert<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { frame, planes, region, rows, out } = self;
        let plane = region.width * region.height;
        let (red, rest) = out.split_at_mut(plane);
        let (green, blue) = rest.split_at_mut(plane);
        let lines = red.chunks_exact_mut(region.width).zip(green.chunks_exact_mut(region.width));
        let lines = lines.zip(blue.chunks_exact_mut(region.width));
        let columns = region.left..region.left + region.width;
        for (row, ((red, green), blue)) in (region.top..).zip(lines) {
            let luma = planes[0].row(row, columns.clone());
            if frame.sampling == Sampling::Full {
                let [cb, cr] = [1, 2].map(|index: usize| planes[index].row(row, columns.clone()));
                to_rgb(luma, cb, cr, red, green, blue);
                continue;
            }
            for chroma in 0..2 {
                upsample_row(frame, &planes[1 + chroma], region, row, rows, chroma);
            }
            let shift = region.left % 2;
            let [cb, cr] = [0, 1].map(|index: usize| &rows.upsampled[index][shift..shift + region.width]);
            to_rgb(luma, cb, cr, red, green, blue);
        }
    }
}

/// Upsamples a row of chroma, from the even column at or before the region's first.
#[inline(always)]
fn upsample_row(
    frame: &Frame,
    plane: &Plane,
    region: Region,
    row: usize,
    rows: &mut ChromaRows,
    index: usize,
) {
    let first = region.left / 2;
    let count = (region.left + region.width).div_ceil(2) - first;
    let whole = frame.width.div_ceil(2);
    // One more sample at each end, repeated at the image's edges.
    let inner = halved(region.left, region.width, frame.width);
    let columns = first.saturating_sub(1).max(inner.start)..(first + count + 1).min(whole).min(inner.end);
    let sums = &mut rows.sums;
    sums.clear();
    sums.resize(count + 2, 0);
    let at = columns.start + 1 - first;
    let doubled = &mut rows.upsampled[index];
    doubled.resize(2 * count, 0);
    let (doubled, _) = doubled.as_chunks_mut::<2>();
    if frame.sampling == Sampling::HalfWidth {
        let samples = plane.row(row, columns);
        for (sum, &sample) in sums[at..].iter_mut().zip(samples) {
            *sum = u16::from(sample);
        }
        repeat_ends(sums, at, samples.len());
        blend::<1, 2, 2>(sums, doubled);
    } else {
        let near = row / 2;
        let far = if row.is_multiple_of(2) {
            near.saturating_sub(1)
        } else {
            (near + 1).min(frame.height.div_ceil(2) - 1)
        };
        let (near, far) = (plane.row(near, columns.clone()), plane.row(far, columns));
        for ((sum, &near), &far) in sums[at..].iter_mut().zip(near).zip(far) {
            *sum = 3 * u16::from(near) + u16::from(far);
        }
        repeat_ends(sums, at, near.len());
        blend::<8, 7, 4>(sums, doubled);
    }
}

/// Repeats the first and the last value to both ends of the buffer.
#[inline(always)]
fn repeat_ends(sums: &mut [u16], at: usize, len: usize) {
    let (first, last) = (sums[at], sums[at + len - 1]);
    sums[..at].fill(first);
    sums[at + len..].fill(last);
}

#[inline(always)]
fn blend<const EVEN: u16, const ODD: u16, const SHIFT: u16>(sums: &[u16], doubled: &mut [[u8; 2]]) {
    let own = &sums[1..doubled.len() + 1];
    let after = &sums[2..doubled.len() + 2];
    for (((doubled, &before), &own), &after) in doubled.iter_mut().zip(sums).zip(own).zip(after) {
        *doubled = [((3 * own + before + EVEN) >> SHIFT) as u8, ((3 * own + after + ODD) >> SHIFT) as u8];
    }
}

/// Factors times 65,536; red and blue have the remainders beside whole multiples.
const RED_FROM_CR: i32 = 91_881 - 65_536;
const BLUE_FROM_CB: i32 = 116_130 - 2 * 65_536;
const GREEN_FROM_CB: i32 = -22_554;
const GREEN_FROM_CR: i32 = -46_802;

#[inline(always)]
fn to_rgb(luma: &[u8], cb: &[u8], cr: &[u8], red: &mut [u8], green: &mut [u8], blue: &mut [u8]) {
    let len = luma.len();
    let (cb, cr) = (&cb[..len], &cr[..len]);
    let (red, green, blue) = (&mut red[..len], &mut green[..len], &mut blue[..len]);
    for at in 0..len {
        let y = i16::from(luma[at]);
        let cb = i16::from(cb[at]) - 128;
        let cr = i16::from(cr[at]) - 128;
        red[at] = byte(y + cr + rounded(cr, RED_FROM_CR));
        let both = i32::from(cb) * GREEN_FROM_CB + i32::from(cr) * GREEN_FROM_CR;
        green[at] = byte(y + ((both + (1 << 15)) >> 16) as i16);
        blue[at] = byte(y + 2 * cb + rounded(cb, BLUE_FROM_CB));
    }
}

/// Returns `value * factor / 65536`, rounded, by the high half of a 16-bit product.
#[inline(always)]
fn rounded(value: i16, factor: i32) -> i16 {
    let high = ((i32::from(2 * value) * factor) >> 16) as i16;
    (high + 1) >> 1
}

#[inline(always)]
fn byte(value: i16) -> u8 {
    value.clamp(0, 255) as u8
}
