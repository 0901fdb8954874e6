//! The same coefficients under another restart interval: bits are copied, only DC differences at the seams change.

use super::bits::{Bits, Segments};
use super::code::TableSpec;
use super::header::Frame;
use super::huffman::{Kind, Table};
use crate::simd;

/// Writes bits, most significant first, with byte stuffing.
///
/// Invariant: fewer than 32 bits are pending.
#[derive(Debug, Default)]
struct BitWriter {
    bytes: Vec<u8>,
    pending: u64,
    count: u32,
}

impl BitWriter {
    /// Appends up to 32 bits.
    #[inline(always)]
    fn put(&mut self, bits: u32, len: u32) {
        self.pending = self.pending << len | u64::from(bits);
        self.count += len;
        if self.count >= 32 {
            self.count -= 32;
            let word = (self.pending >> self.count) as u32;
            if has_full_byte(word) {
                word.to_be_bytes().into_iter().for_each(|byte| self.push(byte));
            } else {
                self.bytes.extend_from_slice(&word.to_be_bytes());
            }
        }
    }

    fn push(&mut self, byte: u8) {
        self.bytes.push(byte);
        if byte == 0xFF {
            self.bytes.push(0);
        }
    }

    /// Fills the last byte with ones, as libjpeg does, and writes what is pending.
    fn align(&mut self) {
        let open = (8 - self.count % 8) % 8;
        self.put((1 << open) - 1, open);
        while self.count > 0 {
            self.count -= 8;
            self.push((self.pending >> self.count) as u8);
        }
    }
}

/// Whether a byte of the word has all its bits set.
#[inline(always)]
fn has_full_byte(word: u32) -> bool {
    let zeros = !word;
    zeros.wrapping_sub(0x0101_0101) & !zeros & 0x8080_8080 != 0
}

/// For each number of value bits the code that says it, if the table has one.
type DcCodes = [Option<(u32, u32)>; 16];

fn dc_codes(spec: &TableSpec) -> DcCodes {
    let mut codes = [None; 16];
    for (code, bits, symbol) in spec.codes() {
        if let Some(slot) = codes.get_mut(usize::from(symbol)) {
            *slot = Some((code, bits));
        }
    }
    codes
}

/// Entropy-coded data under a restart interval.
#[derive(Debug)]
pub(in crate::image) struct Recoded {
    /// The data, with byte stuffing and restart markers.
    pub(in crate::image) bytes: Vec<u8>,
    /// Where each segment begins in them.
    pub(in crate::image) starts: Vec<usize>,
    /// Where the scan ended in the file it was taken from.
    pub(in crate::image) end: usize,
}

/// Why data could not be coded again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::image) enum RecodeError {
    /// The file is not what its header says.
    Corrupt,
    /// A DC difference has no code in the tables that were given.
    NoCode,
}

/// Codes a scan again with another restart interval (0: none) and with these DC tables.
pub(in crate::image) fn recode(
    file: &[u8],
    frame: &Frame,
    interval: usize,
    new_tables: [Option<TableSpec>; 4],
) -> Result<Recoded, RecodeError> {
    let components = &frame.components[..frame.sampling.components()];
    let mut tables = Vec::new();
    for component in components {
        tables.push(
            component_tables(frame, component.dc, component.ac, &new_tables).ok_or(RecodeError::Corrupt)?,
        );
    }
    let mut segments = Segments::default();
    segments.unstuff(file, frame.scan_start).ok_or(RecodeError::Corrupt)?;
    let (across, down) = frame.mcus();
    let old_interval = if frame.restart_interval == 0 { usize::MAX } else { frame.restart_interval };
    let new_interval = if interval == 0 { usize::MAX } else { interval };
    if segments.len() != (across * down).div_ceil(old_interval) {
        return Err(RecodeError::Corrupt);
    }
    let (luma_across, luma_down) = frame.sampling.luma_blocks();
    simd::run(Recode {
        segments: &segments,
        tables: &tables,
        luma_blocks: luma_across * luma_down,
        mcus: across * down,
        old_interval,
        new_interval,
    })
}

/// The work on the entropy-coded data alone.
struct Recode<'a> {
    segments: &'a Segments,
    tables: &'a [ComponentTables],
    luma_blocks: usize,
    mcus: usize,
    old_interval: usize,
    new_interval: usize,
}

impl simd::Kernel for Recode<'_> {
    type Output = Result<Recoded, RecodeError>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let Self { segments, tables, luma_blocks, mcus, old_interval, new_interval } = self;
        let mut starts = vec![0];
        let mut last = [(0_i32, 0_i32); 3];
        let (mut bits, mut end) = segments.read(0);
        let mut copier = Copier { segments, from: 0, writer: BitWriter::default() };
        copier.writer.bytes.reserve(segments.end());
        for mcu in 0..mcus {
            if mcu > 0 && mcu % old_interval == 0 {
                check_end(&bits, end)?;
                copier.copy_up_to(bits.position());
                (bits, end) = segments.read(mcu / old_interval);
                copier.from = bits.position();
                last.iter_mut().for_each(|(old, _)| *old = 0);
            }
            if mcu > 0 && mcu % new_interval == 0 {
                copier.copy_up_to(bits.position());
                copier.writer.align();
                copier.writer.bytes.extend_from_slice(&[0xFF, 0xD0 | (starts.len() - 1) as u8 & 7]);
                starts.push(copier.writer.bytes.len());
                last.iter_mut().for_each(|(_, new)| *new = 0);
            }
            for (index, (tables, last)) in tables.iter().zip(&mut last).enumerate() {
                let blocks = if index == 0 { luma_blocks } else { 1 };
                for _ in 0..blocks {
                    tables.copy_block(&mut bits, last, &mut copier)?;
                }
            }
        }
        check_end(&bits, end)?;
        copier.copy_up_to(bits.position());
        copier.writer.align();
        Ok(Recoded { bytes: copier.writer.bytes, starts, end: segments.end() })
    }
}

/// Copies bits in runs that are as long as nothing changes.
struct Copier<'a> {
    segments: &'a Segments,
    /// The first bit that was not copied yet.
    from: usize,
    writer: BitWriter,
}

impl Copier<'_> {
    #[inline(always)]
    fn copy_up_to(&mut self, to: usize) {
        let mut bits = self.segments.read_at(self.from);
        let mut left = to - self.from;
        while left > 0 {
            bits.refill();
            let len = left.min(32) as u32;
            self.writer.put(bits.take(len), len);
            left -= len as usize;
        }
        self.from = to;
    }
}

fn check_end(bits: &Bits, end: usize) -> Result<(), RecodeError> {
    // Whole bytes left over would be lost.
    if bits.overran(end) || bits.position() + 8 <= end * 8 { Err(RecodeError::Corrupt) } else { Ok(()) }
}

/// What is needed to copy a component's blocks.
struct ComponentTables {
    dc: Table,
    ac: Table,
    codes: DcCodes,
    is_same: bool,
}

fn component_tables(
    frame: &Frame,
    dc: usize,
    ac: usize,
    new_tables: &[Option<TableSpec>; 4],
) -> Option<ComponentTables> {
    let old = (*frame.dc_tables.get(dc)?)?;
    let new = (*new_tables.get(dc)?)?;
    let mut tables = ComponentTables {
        dc: Table::new(Kind::Dc),
        ac: Table::new(Kind::Ac),
        codes: dc_codes(&new),
        is_same: old == new,
    };
    tables.dc.load(old)?;
    tables.ac.load((*frame.ac_tables.get(ac)?)?)?;
    Some(tables)
}

impl ComponentTables {
    #[inline(always)]
    fn copy_block(
        &self,
        bits: &mut Bits,
        last: &mut (i32, i32),
        copier: &mut Copier,
    ) -> Result<(), RecodeError> {
        let start = bits.position();
        let difference = self.dc.difference(bits).ok_or(RecodeError::Corrupt)?;
        // A file can drive the sum anywhere; real ones keep to 16 bits.
        let value = last.0.checked_add(difference).ok_or(RecodeError::Corrupt)?;
        let new_difference = value.checked_sub(last.1).ok_or(RecodeError::Corrupt)?;
        *last = (value, value);
        if new_difference != difference || !self.is_same {
            copier.copy_up_to(start);
            let size = 32 - new_difference.unsigned_abs().leading_zeros();
            let known = self.codes.get(size as usize).copied().flatten();
            let (code, code_bits) = known.ok_or(RecodeError::NoCode)?;
            copier.writer.put(code, code_bits);
            let value_bits =
                if new_difference < 0 { new_difference + (1 << size) - 1 } else { new_difference };
            copier.writer.put(value_bits as u32, size);
            copier.from = bits.position();
        }
        self.ac.pass(bits).ok_or(RecodeError::Corrupt)
    }
}
