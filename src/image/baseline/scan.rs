//! Decodes the MCUs of a scan: those under a region to samples; the others are skipped.

use std::ops::Range;

use super::entry_points::{self, EntryPoint, EntryPoints};
use super::header::{Frame, MOST_COMPONENTS, Sampling};
use super::huffman::{Bits, Kind, Segments, Table};
use super::idct;
use crate::image::Region;
use crate::simd::{self, SimdLevel};

/// Samples of one component: whole blocks that cover a region.
#[derive(Clone, Debug, Default)]
pub(super) struct Plane {
    /// Range of blocks across.
    pub(super) columns: Range<usize>,
    /// Range of blocks down.
    pub(super) rows: Range<usize>,
    /// Samples, row after row.
    samples: Vec<u8>,
}

impl Plane {
    fn cover(&mut self, columns: Range<usize>, rows: Range<usize>) {
        self.samples.resize(64 * columns.len() * rows.len(), 0);
        (self.columns, self.rows) = (columns, rows);
    }

    /// Returns the number of bytes from one row to the next.
    fn pitch(&self) -> usize {
        self.columns.len() * 8
    }

    /// Returns part of a row, in coordinates of the component.
    #[inline(always)]
    pub(super) fn row(&self, row: usize, columns: Range<usize>) -> &[u8] {
        let start = (row - self.rows.start * 8) * self.pitch();
        let first = self.columns.start * 8;
        &self.samples[start + columns.start - first..start + columns.end - first]
    }

    /// Stores the samples of a block.
    #[inline(always)]
    pub(super) fn put(&mut self, column: usize, row: usize, block: &idct::Samples) {
        let pitch = self.pitch();
        let start = (row - self.rows.start) * 8 * pitch + (column - self.columns.start) * 8;
        for (line, samples) in self.samples[start..].chunks_mut(pitch).zip(block) {
            line[..8].copy_from_slice(samples);
        }
    }
}

/// Tables and buffers, kept from image to image.
#[derive(Clone, Debug)]
pub(super) struct ScanDecoder {
    dc_tables: [Table; 4],
    ac_tables: [Table; 4],
    segments: Segments,
    /// Maximum number of bits that a segment of the last image had left.
    unread: usize,
    /// Entry points of the last image decoded with [`Note::EntryPoints`], in bits of its data without stuffing.
    noted: Vec<EntryPoint>,
    pub(super) planes: [Plane; MOST_COMPONENTS],
}

impl Default for ScanDecoder {
    fn default() -> Self {
        let tables = |kind| std::array::from_fn(|_| Table::new(kind));
        Self {
            dc_tables: tables(Kind::Dc),
            ac_tables: tables(Kind::Ac),
            segments: Segments::default(),
            unread: 0,
            noted: Vec::new(),
            planes: Default::default(),
        }
    }
}

/// A component during the decoding of a scan.
struct Part<'a> {
    across: usize,
    down: usize,
    dc: &'a Table,
    ac: &'a Table,
    steps: [[i16; 8]; 8],
    plane: &'a mut Plane,
    last_dc: i32,
    /// Last DC value of the second stream, if two are decoded in turn.
    other_dc: i32,
}

/// Additional result of decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Note {
    Nothing,
    /// Entry points; every MCU is read.
    EntryPoints,
}

impl ScanDecoder {
    /// Decodes the samples of the first `wanted` components under a region.
    ///
    /// `None` leaves the image to libjpeg.
    pub(super) fn decode(
        &mut self,
        file: &[u8],
        frame: &Frame,
        region: Region,
        wanted: usize,
        note: Note,
    ) -> Option<()> {
        let Self { dc_tables, ac_tables, segments, unread, noted, planes } = self;
        *unread = 0;
        noted.clear();
        let mut parts = parts(frame, region, wanted, (dc_tables, ac_tables), planes)?;
        // If no samples are wanted, every MCU is skipped.
        let mcus = Mcus::under(frame, region, wanted.max(1));
        let step = entry_points::step(frame);
        let notes = note == Note::EntryPoints && frame.restart_interval == 0;
        segments.unstuff(file, frame.scan_start, notes)?;
        for (segment, range) in mcus.segments(frame.restart_interval) {
            if segment >= segments.len() {
                return None;
            }
            let (mut bits, end) = segments.read(segment);
            for part in &mut parts {
                part.last_dc = 0;
            }
            let noted = (note == Note::EntryPoints).then_some((&mut *noted, step));
            simd::run(Segment { parts: &mut parts, mcus: &mcus, bits: &mut bits, range, noted })?;
            if bits.overran(end) {
                return None;
            }
            *unread = (*unread).max(end - bits.position());
        }
        Some(())
    }

    /// Decodes the same from entry points, two rows of MCUs at a time.
    ///
    /// `None` if the entry points do not fit the image, or the image is left to libjpeg.
    pub(super) fn decode_from(
        &mut self,
        level: SimdLevel,
        file: &[u8],
        frame: &Frame,
        region: Region,
        wanted: usize,
        points: EntryPoints<'_>,
    ) -> Option<()> {
        let Self { dc_tables, ac_tables, segments, planes, .. } = self;
        let mut parts = parts(frame, region, wanted, (dc_tables, ac_tables), planes)?;
        let mcus = Mcus::under(frame, region, wanted);
        let rows = mcus.rows.clone();
        let found: Vec<_> = rows.clone().map(|row| points.span(row, &mcus.columns)).collect::<Option<_>>()?;
        segments.unstuff_spans(file, found.iter().map(|(point, end)| point.bit..*end))?;
        let first = points.first(mcus.columns.start);
        for row in rows.clone().step_by(2) {
            let at = row - rows.start;
            let (mut bits, end) = segments.read_span(at);
            for (part, dc) in parts.iter_mut().zip(found[at].0.dc) {
                part.last_dc = dc;
            }
            if row + 1 == rows.end {
                let range = row * mcus.across + first..row * mcus.across + mcus.columns.end;
                let (parts, mcus, bits) = (parts.as_mut_slice(), &mcus, &mut bits);
                level.run(Segment { parts, mcus, bits, range, noted: None })?;
            } else {
                let (mut other, other_end) = segments.read_span(at + 1);
                for (part, dc) in parts.iter_mut().zip(found[at + 1].0.dc) {
                    part.other_dc = dc;
                }
                let (parts, mcus, bits) = (parts.as_mut_slice(), &mcus, [&mut bits, &mut other]);
                level.run(TwoRows { level, parts, mcus, bits, row, columns: first..mcus.columns.end })?;
                if other.overran(other_end) {
                    return None;
                }
            }
            if bits.overran(end) {
                return None;
            }
        }
        Some(())
    }

    /// Encodes the entry points of the last image, decoded with [`Note::EntryPoints`], for storage.
    ///
    /// `None` if it has none: an image with restart markers, or a huge one.
    pub(super) fn entry_points(&self, frame: &Frame) -> Option<Vec<u8>> {
        if frame.restart_interval != 0 {
            return None;
        }
        let mut to_file = self.segments.to_file(frame.scan_start);
        let points = self.noted.iter().map(|point| EntryPoint { bit: to_file(point.bit), dc: point.dc });
        entry_points::encode(frame, points, 8 * self.segments.end())
    }

    /// Returns whether the last image, decoded whole, used all its data, up to the marker that ends the file.
    pub(super) fn used_all(&self, file: &[u8], frame: &Frame) -> bool {
        let (across, down) = frame.mcus();
        let interval = if frame.restart_interval == 0 { usize::MAX } else { frame.restart_interval };
        self.segments.len() == (across * down).div_ceil(interval)
            && self.unread < 8
            && file.get(self.segments.end()..).is_some_and(|rest| rest.starts_with(&[0xFF, 0xD9]))
    }
}

/// Returns the components of an image, with planes for the blocks of the first `wanted` ones under a region.
fn parts<'a>(
    frame: &Frame,
    region: Region,
    wanted: usize,
    (dc_tables, ac_tables): (&'a mut [Table; 4], &'a mut [Table; 4]),
    planes: &'a mut [Plane; MOST_COMPONENTS],
) -> Option<Vec<Part<'a>>> {
    let components = &frame.components[..frame.sampling.components()];
    for component in components {
        dc_tables.get_mut(component.dc)?.load(frame.dc_tables[component.dc]?)?;
        ac_tables.get_mut(component.ac)?.load(frame.ac_tables[component.ac]?)?;
    }
    let (across, down) = frame.sampling.luma_blocks();
    let mut planes = planes.iter_mut();
    let mut parts = Vec::with_capacity(MOST_COMPONENTS);
    for (index, component) in components.iter().enumerate() {
        let plane = planes.next().expect("as many planes as components");
        let (columns, rows) = if index < wanted { cover(frame, region, index) } else { (0..0, 0..0) };
        plane.cover(columns, rows);
        let steps = frame.steps(index)?.as_chunks::<8>().0;
        parts.push(Part {
            across: if index == 0 { across } else { 1 },
            down: if index == 0 { down } else { 1 },
            dc: &dc_tables[component.dc],
            ac: &ac_tables[component.ac],
            steps: std::array::from_fn(|row| steps[row].map(|step| step as i16)),
            plane,
            last_dc: 0,
            other_dc: 0,
        });
    }
    Some(parts)
}

/// Returns the ranges of a component's blocks that are needed for the pixels of a region.
fn cover(frame: &Frame, region: Region, component: usize) -> (Range<usize>, Range<usize>) {
    let (half_width, half_height) = match frame.sampling {
        _ if component == 0 => (false, false),
        Sampling::Grey | Sampling::Full => (false, false),
        Sampling::HalfWidth => (true, false),
        Sampling::HalfBoth => (true, true),
    };
    let blocks = |first: usize, len: usize, half: bool, whole: usize| {
        let samples = if half { halved(first, len, whole) } else { first..first + len };
        samples.start / 8..samples.end.div_ceil(8)
    };
    (
        blocks(region.left, region.width, half_width, frame.width),
        blocks(region.top, region.height, half_height, frame.height),
    )
}

/// Returns the range of samples at half resolution that smooth upsampling needs for a range of pixels.
pub(super) fn halved(first: usize, len: usize, whole: usize) -> Range<usize> {
    let last = first + len - 1;
    first.saturating_sub(1) / 2..(last.div_ceil(2) + 1).min(whole.div_ceil(2))
}

/// MCUs of an image, and the ranges of those under a region.
struct Mcus {
    across: usize,
    down: usize,
    columns: Range<usize>,
    rows: Range<usize>,
}

impl Mcus {
    fn under(frame: &Frame, region: Region, wanted: usize) -> Self {
        let (across, down) = frame.mcus();
        let nothing = Range { start: usize::MAX, end: 0 };
        let (mut columns, mut rows) = (nothing.clone(), nothing);
        for component in 0..wanted {
            let (blocks, lines) = cover(frame, region, component);
            let (wide, high) = if component == 0 { frame.sampling.luma_blocks() } else { (1, 1) };
            columns.start = columns.start.min(blocks.start / wide);
            columns.end = columns.end.max(blocks.end.div_ceil(wide));
            rows.start = rows.start.min(lines.start / high);
            rows.end = rows.end.max(lines.end.div_ceil(high));
        }
        Self { across, down, columns, rows }
    }

    /// Returns the segments with MCUs under the region: their numbers, and their MCUs up to the last one needed.
    fn segments(&self, interval: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
        let interval = if interval == 0 { usize::MAX } else { interval };
        let end = (self.rows.end - 1) * self.across + self.columns.end;
        (self.rows.start * self.across / interval..end.div_ceil(interval)).filter_map(move |segment| {
            let first = segment.saturating_mul(interval);
            let last = first.saturating_add(interval).min(self.across * self.down);
            self.last_under(first..last).map(|last| (segment, first..last))
        })
    }

    /// Returns the index after the last MCU of a range that is under the region; `None` if there is none.
    fn last_under(&self, range: Range<usize>) -> Option<usize> {
        let last = range.end.checked_sub(1)?;
        let (row, column) = (last / self.across, last % self.across);
        let (row, column) = if row >= self.rows.end {
            (self.rows.end - 1, self.columns.end - 1)
        } else if column >= self.columns.start {
            (row, column.min(self.columns.end - 1))
        } else {
            (row.checked_sub(1)?, self.columns.end - 1)
        };
        let found = row * self.across + column;
        (row >= self.rows.start && found >= range.start).then_some(found + 1)
    }
}

/// MCUs of a segment, up to the last one needed.
struct Segment<'a, 'p, 'b> {
    parts: &'a mut [Part<'p>],
    mcus: &'a Mcus,
    bits: &'a mut Bits<'b>,
    range: Range<usize>,
    /// List for entry points, and the number of MCUs between them, a power of two.
    noted: Option<(&'a mut Vec<EntryPoint>, usize)>,
}

impl simd::Kernel for Segment<'_, '_, '_> {
    type Output = Option<()>;

    #[inline(always)]
    fn run(self) -> Option<()> {
        let Self { parts, mcus, bits, range, mut noted } = self;
        let (mut row, mut column) = (range.start / mcus.across, range.start % mcus.across);
        for _ in range {
            if let Some((noted, step)) = &mut noted
                && column & (*step - 1) == 0
            {
                let mut point = EntryPoint { bit: bits.position(), dc: [0; MOST_COMPONENTS] };
                point.dc.iter_mut().zip(parts.iter()).for_each(|(dc, part)| *dc = part.last_dc);
                noted.push(point);
            }
            let under = mcus.rows.contains(&row) && mcus.columns.contains(&column);
            for part in parts.iter_mut() {
                for line in row * part.down..(row + 1) * part.down {
                    for block in column * part.across..(column + 1) * part.across {
                        if under && part.plane.columns.contains(&block) && part.plane.rows.contains(&line) {
                            decode_block(part, bits, block, line)?;
                        } else {
                            part.last_dc = part.last_dc.checked_add(part.dc.difference(bits)?)?;
                            part.ac.pass(bits)?;
                        }
                    }
                }
            }
            column += 1;
            if column == mcus.across {
                (row, column) = (row + 1, 0);
            }
        }
        Some(())
    }
}

/// Two rows of MCUs, decoded in turn so that neither waits for the other's look-ups.
struct TwoRows<'a, 'p, 'b> {
    level: SimdLevel,
    parts: &'a mut [Part<'p>],
    mcus: &'a Mcus,
    bits: [&'a mut Bits<'b>; 2],
    /// First of the two rows.
    row: usize,
    columns: Range<usize>,
}

impl simd::Kernel for TwoRows<'_, '_, '_> {
    type Output = Option<()>;

    #[inline(always)]
    fn run(self) -> Option<()> {
        let Self { level, parts, mcus, bits: [bits, other], row, columns } = self;
        for column in columns {
            let under = mcus.columns.contains(&column);
            for part in parts.iter_mut() {
                for line in row * part.down..(row + 1) * part.down {
                    let lines = [line, line + part.down];
                    let are_under = under && lines.iter().any(|line| part.plane.rows.contains(line));
                    for block in column * part.across..(column + 1) * part.across {
                        if are_under && part.plane.columns.contains(&block) {
                            decode_two_blocks(level, part, [bits, other], block, lines)?;
                        } else {
                            part.last_dc = part.last_dc.checked_add(part.dc.difference(bits)?)?;
                            part.other_dc = part.other_dc.checked_add(part.dc.difference(other)?)?;
                            part.ac.pass(bits)?;
                            part.ac.pass(other)?;
                        }
                    }
                }
            }
        }
        Some(())
    }
}

/// Decodes blocks of two rows in the same column, at least one of which is under the region.
#[inline(always)]
fn decode_two_blocks(
    level: SimdLevel,
    part: &mut Part,
    [bits, other_bits]: [&mut Bits; 2],
    column: usize,
    rows: [usize; 2],
) -> Option<()> {
    let (mut block, mut other) = ([0_i16; 64 + 1], [0_i16; 64 + 1]);
    part.last_dc = part.last_dc.checked_add(part.dc.difference(bits)?)?;
    part.other_dc = part.other_dc.checked_add(part.dc.difference(other_bits)?)?;
    (block[0], other[0]) = (part.last_dc as i16, part.other_dc as i16);
    let ends = part.ac.coefficients_of_two([bits, other_bits], [&mut block, &mut other])?;
    let flat = |dc: i16| [[idct::flat_sample(dc, part.steps[0][0]); 8]; 8];
    let dcs = [block[0], other[0]];
    let samples = if ends == [1, 1] {
        dcs.map(flat)
    } else {
        let blocks = [&block, &other].map(|block| block.as_chunks::<8>().0.try_into().expect("eight rows"));
        let mut samples = idct::samples_of_two(level, blocks, &part.steps);
        for ((samples, end), dc) in samples.iter_mut().zip(ends).zip(dcs) {
            if end == 1 && dc.wrapping_mul(part.steps[0][0]).unsigned_abs() > idct::MOST_FLAT {
                *samples = flat(dc);
            }
        }
        samples
    };
    for (samples, row) in samples.iter().zip(rows) {
        if part.plane.rows.contains(&row) {
            part.plane.put(column, row, samples);
        }
    }
    Some(())
}

#[inline(always)]
fn decode_block(part: &mut Part, bits: &mut Bits, column: usize, row: usize) -> Option<()> {
    let mut block = [0_i16; 64 + 1];
    part.last_dc = part.last_dc.checked_add(part.dc.difference(bits)?)?;
    block[0] = part.last_dc as i16;
    let end = part.ac.coefficients(1, bits, &mut block)?;
    let samples = if end == 1 {
        [[idct::flat_sample(block[0], part.steps[0][0]); 8]; 8]
    } else {
        let rows = block.as_chunks::<8>().0.try_into().expect("eight rows");
        idct::samples(rows, &part.steps)
    };
    part.plane.put(column, row, &samples);
    Some(())
}
