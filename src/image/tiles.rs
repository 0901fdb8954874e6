//! Tile-indexed JPEGs: the same image with restart markers every few MCUs.
//!
//! Huffman codes can be read from the start only, so a crop at the bottom costs as much as the whole image. A
//! restart marker is a place where reading can start. [`transcode`] sets one about every eight MCUs; the
//! coefficients, and so all pixels, stay what they are, and any decoder reads the result. Between the markers lie
//! tiles; decoding a crop touches those under it. [`restore`] gives the original file back, byte for byte.
//!
//! What was put in stands just before the scan, behind a comment that names it: a DC table where the original
//! one has no code for a difference at a seam, and the restart interval.

use std::ops::Range;

use super::Format;
use super::baseline::{Frame, RecodeError, TableSpec, needed_segments, recode};
use super::guard;
use super::region::Region;

/// MCUs of a tile, as near as its number divides the MCUs of a row.
const TILE: usize = 8;
/// The comment before what was put in.
const MARK: &[u8] = b"\xFF\xFE\x00\x10instdisc tiles";

/// An image with restart markers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiled {
    /// The file.
    pub bytes: Vec<u8>,
    /// Where each tile begins in the file; the last entry is where the last tile ends.
    pub offsets: Vec<u32>,
}

/// The DC table of ITU-T T.81, K.3.1: it has a code for every difference.
const EVERY_DC: ([u8; 16], [u8; 12]) =
    ([0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);

/// Sets restart markers, without a change to any pixel; [`restore`] gives these bytes back.
///
/// `None`: not a JPEG that has tiles here (progressive, CMYK, RGB, arithmetic coding, unusual sampling), one that
/// has tiles already, a broken one, or one that could not be restored to the last bit.
pub fn transcode(bytes: &[u8]) -> Option<Tiled> {
    guarded(|| transcode_unguarded(bytes))
}

/// A panic is as good as a file that has no tiles here.
fn guarded<T>(work: impl FnOnce() -> Option<T>) -> Option<T> {
    guard(Format::Jpeg.name(), || Ok(work())).ok().flatten()
}

pub(super) fn transcode_unguarded(bytes: &[u8]) -> Option<Tiled> {
    let tiled = set_tiles(bytes)?;
    (restore(&tiled.bytes).as_deref() == Some(bytes)).then_some(tiled)
}

/// The same for a file of which [`transcode`] gave tiles before, without the check that it can be restored.
pub fn set_tiles(bytes: &[u8]) -> Option<Tiled> {
    guarded(|| tile(bytes, &Frame::parse(bytes)?))
}

fn tile(bytes: &[u8], frame: &Frame) -> Option<Tiled> {
    if find_mark(bytes, frame).is_some() {
        return None;
    }
    let interval = tile_width(frame.mcus().0);
    let own = frame.dc_tables;
    let every = TableSpec::new(&EVERY_DC.0, &EVERY_DC.1);
    let (recoded, tables) = match recode(bytes, frame, interval, own) {
        Ok(recoded) => (recoded, Vec::new()),
        Err(RecodeError::NoCode) => {
            let new = own.map(|table| table.and(every));
            let used = (0..4_u8).filter(|&index| own[usize::from(index)].is_some());
            (recode(bytes, frame, interval, new).ok()?, used.collect())
        }
        Err(RecodeError::Corrupt) => return None,
    };
    let mut out = bytes[..frame.scan_marker].to_vec();
    out.extend_from_slice(MARK);
    for index in tables {
        out.extend_from_slice(&[0xFF, 0xC4, 0, 2 + 1 + 16 + 12, index]);
        out.extend_from_slice(&EVERY_DC.0);
        out.extend_from_slice(&EVERY_DC.1);
    }
    out.extend_from_slice(&[0xFF, 0xDD, 0, 4]);
    out.extend_from_slice(&(interval as u16).to_be_bytes());
    out.extend_from_slice(&bytes[frame.scan_marker..frame.scan_start]);
    let scan = out.len();
    let mut offsets: Vec<u32> = recoded.starts.iter().map(|&start| (scan + start) as u32).collect();
    out.extend_from_slice(&recoded.bytes);
    offsets.push(out.len() as u32);
    out.extend_from_slice(&bytes[recoded.end..]);
    Some(Tiled { bytes: out, offsets })
}

/// The original of a file that [`transcode`] made; `None` if it made none like it.
pub fn restore(bytes: &[u8]) -> Option<Vec<u8>> {
    let frame = Frame::parse(bytes)?;
    let mark = find_mark(bytes, &frame)?;
    let mut original = bytes[..mark].to_vec();
    let scan_header = &bytes[frame.scan_marker..frame.scan_start];
    original.extend_from_slice(scan_header);
    let before = Frame::parse(&original)?;
    let recoded = recode(bytes, &frame, before.restart_interval, before.dc_tables).ok()?;
    original.extend_from_slice(&recoded.bytes);
    original.extend_from_slice(&bytes[recoded.end..]);
    Some(original)
}

/// Where the comment before what was put in lies.
fn find_mark(bytes: &[u8], frame: &Frame) -> Option<usize> {
    memchr::memmem::rfind(&bytes[..frame.scan_marker], MARK)
}

/// MCUs of a tile in rows of so many: a divisor near [`TILE`] if there is one.
fn tile_width(across: usize) -> usize {
    let divisors = (TILE / 2..=TILE * 2).filter(|width| across.is_multiple_of(*width));
    divisors.min_by_key(|&width| width.abs_diff(TILE)).unwrap_or(TILE.min(across))
}

/// The parts of a tiled file that are needed for a region: its header, and runs of tiles.
///
/// `None` if the file has no tiles or the offsets are not its own.
pub fn needed_bytes(bytes: &[u8], offsets: &[u32], region: Region) -> Option<Vec<Range<usize>>> {
    let frame = Frame::parse(bytes)?;
    let header = 0..frame.scan_start;
    let mut ranges = Vec::from([header]);
    for segment in needed_segments(&frame, region) {
        let (start, end) = (*offsets.get(segment)? as usize, *offsets.get(segment + 1)? as usize);
        // The marker before a tile belongs to it, as a check.
        let start = if segment == 0 { start } else { start - 2 };
        match ranges.last_mut() {
            Some(last) if last.end >= start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    Some(ranges)
}

#[cfg(test)]
mod tests;
