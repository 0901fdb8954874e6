//! Entropy-coded data: removal of the byte stuffing, a bit reader, and Huffman tables. One look-up decodes a whole
//! coefficient, both code and value bits.
//!
//! In whole blocks that are skipped, a look-up skips as many coefficients as its bits contain.

use std::ops::Range;

use super::header::{LONGEST_CODE, NATURAL_ORDER, TableSpec};

/// Number of bits of a look-up; a coefficient with more code and value bits takes a slower path.
const LOOK: u32 = 11;
/// Advance of an end-of-block: larger than any other sum within a block.
const END_OF_BLOCK: u32 = 128;
/// Flag of an entry for skipping: the block ends here.
const ENDS: u16 = 1 << 4;

/// Natural index of each coefficient in zigzag order; 64 for indices beyond a block.
static ORDER: [u8; 256] = {
    let mut order = [64; 256];
    let mut at = 0;
    while at < 64 {
        order[at] = NATURAL_ORDER[at];
        at += 1;
    }
    order
};

/// Result of a look-up.
///
/// Low byte: bits of code and value, or 0 if the look-up does not suffice. Then, for a whole coefficient, the advance
/// in the block and the value (16 bits); else the bits of the code (0: longer than a look-up) and its symbol.
#[derive(Clone, Copy, Debug, Default)]
struct Entry(u32);

impl Entry {
    fn whole(bits: u32, advance: u32, value: i32) -> Self {
        Self(bits | advance << 8 | (value as u32) << 16)
    }

    fn partial(code_bits: u32, symbol: u8) -> Self {
        Self(code_bits << 8 | u32::from(symbol) << 16)
    }

    #[inline(always)]
    fn bits(self) -> u32 {
        self.0 & 0xFF
    }

    #[inline(always)]
    fn advance(self) -> u32 {
        self.0 >> 8 & 0xFF
    }

    #[inline(always)]
    fn value(self) -> i16 {
        (self.0 >> 16) as i16
    }
}

/// Meaning of the table's symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A symbol is the number of value bits.
    Dc,
    /// A symbol is a run of zeros (high half) and the number of value bits.
    Ac,
}

#[derive(Clone, Debug)]
pub(super) struct Table {
    kind: Kind,
    lengths: [u8; LONGEST_CODE],
    symbols: Vec<u8>,
    entries: Box<[Entry; 1 << LOOK]>,
    /// Low 4 bits: number of bits to skip (0: none); then [`ENDS`]; then the advance before the end of the block.
    passing: Box<[u16; 1 << LOOK]>,
    /// By length: the first 16-bit code word beyond codes of this length.
    limits: [u32; LONGEST_CODE + 1],
    /// By length: the index of a symbol minus its code.
    offsets: [i32; LONGEST_CODE + 1],
}

/// Returns the value that the `size` low bits encode.
#[inline(always)]
pub(super) fn extend(bits: u32, size: u32) -> i32 {
    let half = (1_u32 << size) >> 1;
    if bits < half { bits as i32 - (1 << size) + 1 } else { bits as i32 }
}

impl Table {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            lengths: [0; LONGEST_CODE],
            symbols: Vec::new(),
            entries: Box::new([Entry::default(); 1 << LOOK]),
            passing: Box::new([0; 1 << LOOK]),
            limits: [0; LONGEST_CODE + 1],
            offsets: [0; LONGEST_CODE + 1],
        }
    }

    /// Loads a table's definition; most images have that of the previous one.
    ///
    /// `None` if a symbol is impossible.
    pub(super) fn load(&mut self, spec: TableSpec) -> Option<()> {
        if self.lengths == *spec.lengths && self.symbols == spec.symbols {
            return Some(());
        }
        if self.kind == Kind::Dc && spec.symbols.iter().any(|&symbol| symbol > 15) {
            return None;
        }
        self.lengths = *spec.lengths;
        self.symbols.clear();
        self.symbols.extend_from_slice(spec.symbols);
        self.entries.fill(Entry::default());
        let (mut code, mut index) = (0_u32, 0_u32);
        for (bits, &count) in (1..=16).zip(spec.lengths) {
            self.offsets[bits] = index as i32 - code as i32;
            code += u32::from(count);
            index += u32::from(count);
            self.limits[bits] = code << (16 - bits);
            code <<= 1;
        }
        for (code, bits, symbol) in spec.codes().take_while(|&(_, bits, _)| bits <= LOOK) {
            self.enter(code, bits, symbol);
        }
        if self.kind == Kind::Ac {
            self.fill_passing();
        }
        Some(())
    }

    fn enter(&mut self, code: u32, bits: u32, symbol: u8) {
        let size = u32::from(symbol & 15);
        let spare = LOOK - bits;
        let first = (code << spare) as usize;
        if size > spare {
            self.entries[first..first + (1 << spare)].fill(Entry::partial(bits, symbol));
            return;
        }
        let advance = match (self.kind, symbol) {
            (Kind::Dc, _) => 0,
            (Kind::Ac, _) => advance_of(symbol),
        };
        let each = 1 << (spare - size);
        for value in 0..1 << size {
            let entry = Entry::whole(bits + size, advance, extend(value, size));
            let from = first + value as usize * each;
            self.entries[from..from + each].fill(entry);
        }
    }

    fn fill_passing(&mut self) {
        for look in 0..1_usize << LOOK {
            let (mut used, mut advance, mut ends) = (0, 0, 0);
            while ends == 0 {
                let entry = self.entries[(look << used) & ((1 << LOOK) - 1)];
                let bits = entry.bits();
                if bits == 0 || used + bits > LOOK || advance > 63 {
                    break;
                }
                used += bits;
                if entry.advance() == END_OF_BLOCK {
                    ends = ENDS;
                } else {
                    advance += entry.advance();
                }
            }
            self.passing[look] = used as u16 | ends | (advance as u16) << 5;
        }
    }

    #[inline(always)]
    pub(super) fn difference(&self, bits: &mut Bits) -> Option<i32> {
        bits.refill();
        let entry = self.entries[bits.peek(LOOK)];
        if entry.bits() != 0 {
            bits.skip(entry.bits());
            return Some(i32::from(entry.value()));
        }
        let size = u32::from(self.long_symbol(entry, bits)?);
        Some(extend(bits.take(size), size))
    }

    /// Decodes a block's AC coefficients from index `at` on into natural order; returns the index after the last one, 1
    /// if there are none.
    #[inline(always)]
    pub(super) fn coefficients(
        &self,
        mut at: u32,
        bits: &mut Bits,
        block: &mut [i16; 64 + 1],
    ) -> Option<u32> {
        while at < 64 {
            bits.refill();
            // A refill leaves 56 bits, enough for five look-ups.
            for _ in 0..5 {
                let entry = self.entries[bits.peek(LOOK)];
                if entry.bits() == 0 {
                    at += self.long_coefficient(entry, at, bits, block)?;
                    break;
                }
                bits.skip(entry.bits());
                at += entry.advance();
                block[usize::from(ORDER[(at - 1) as usize & 255])] = entry.value();
                if at >= 64 {
                    break;
                }
            }
        }
        end_of(at)
    }

    /// Does the same for the blocks of two streams in turn, so that look-ups of one do not wait for those of the other.
    #[inline(always)]
    pub(super) fn coefficients_of_two(
        &self,
        [bits, other_bits]: [&mut Bits; 2],
        [block, other_block]: [&mut [i16; 64 + 1]; 2],
    ) -> Option<[u32; 2]> {
        let (mut at, mut other_at) = (1_u32, 1_u32);
        while at < 64 && other_at < 64 {
            bits.refill();
            other_bits.refill();
            for _ in 0..5 {
                let entry = self.entries[bits.peek(LOOK)];
                let other = self.entries[other_bits.peek(LOOK)];
                if entry.bits() == 0 || other.bits() == 0 {
                    if entry.bits() == 0 {
                        at += self.long_coefficient(entry, at, bits, block)?;
                    }
                    if other.bits() == 0 {
                        other_at += self.long_coefficient(other, other_at, other_bits, other_block)?;
                    }
                    break;
                }
                bits.skip(entry.bits());
                other_bits.skip(other.bits());
                at += entry.advance();
                other_at += other.advance();
                block[usize::from(ORDER[(at - 1) as usize & 255])] = entry.value();
                other_block[usize::from(ORDER[(other_at - 1) as usize & 255])] = other.value();
                if at >= 64 || other_at >= 64 {
                    break;
                }
            }
        }
        Some([self.coefficients(at, bits, block)?, self.coefficients(other_at, other_bits, other_block)?])
    }

    /// Decodes a coefficient for which a look-up does not suffice; returns the advance.
    #[inline(always)]
    fn long_coefficient(
        &self,
        entry: Entry,
        at: u32,
        bits: &mut Bits,
        block: &mut [i16; 64 + 1],
    ) -> Option<u32> {
        let symbol = self.long_symbol(entry, bits)?;
        let size = u32::from(symbol & 15);
        let advance = advance_of(symbol);
        let value = extend(bits.take(size), size);
        block[usize::from(ORDER[(at + advance - 1) as usize & 255])] = value as i16;
        Some(advance)
    }

    /// Skips a block's AC coefficients.
    #[inline(always)]
    pub(super) fn pass(&self, bits: &mut Bits) -> Option<()> {
        let mut at = 1_u32;
        while at < 64 {
            bits.refill();
            for _ in 0..5 {
                let look = bits.peek(LOOK);
                let group = self.passing[look];
                let ends = u32::from(group >> 4 & 1);
                let reached = at + u32::from(group >> 5);
                if group & 15 != 0 && reached + ends <= 64 {
                    bits.skip(u32::from(group & 15));
                    at = reached + ends * END_OF_BLOCK;
                } else {
                    at += self.pass_one(bits)?;
                    break;
                }
                if at >= 64 {
                    break;
                }
            }
        }
        end_of(at).map(drop)
    }

    /// Skips one coefficient; returns the advance.
    fn pass_one(&self, bits: &mut Bits) -> Option<u32> {
        let entry = self.entries[bits.peek(LOOK)];
        if entry.bits() != 0 {
            bits.skip(entry.bits());
            return Some(entry.advance());
        }
        let symbol = self.long_symbol(entry, bits)?;
        bits.take(u32::from(symbol & 15));
        Some(advance_of(symbol))
    }

    /// Decodes the next symbol, for which a look-up gave `entry`; leaves enough bits for a value.
    #[inline(always)]
    fn long_symbol(&self, entry: Entry, bits: &mut Bits) -> Option<u8> {
        if entry.advance() == 0 {
            return self.symbol(bits);
        }
        bits.refill();
        bits.skip(entry.advance());
        Some(entry.value() as u8)
    }

    /// Decodes the next symbol of any length; leaves enough bits for a value.
    #[cold]
    #[inline(never)]
    fn symbol(&self, bits: &mut Bits) -> Option<u8> {
        bits.refill();
        let word = bits.peek(16) as u32;
        let len = (1..=LONGEST_CODE).find(|&len| word < self.limits[len])?;
        bits.skip(len as u32);
        let index = (word >> (LONGEST_CODE - len)) as i32 + self.offsets[len];
        self.symbols.get(index as usize).copied()
    }
}

/// Returns the advance of an AC symbol in its block.
///
/// # Source
/// libjpeg-turbo, jdhuff.c: every symbol without value bits ends the block, except the longest run (0xF0).
#[inline(always)]
fn advance_of(symbol: u8) -> u32 {
    if symbol & 15 == 0 && symbol != 0xF0 { END_OF_BLOCK } else { u32::from(symbol >> 4) + 1 }
}

/// Returns the index at which a block ends, from that where decoding stopped; `None` if a run left the block.
#[inline(always)]
fn end_of(at: u32) -> Option<u32> {
    match at {
        64 => Some(64),
        _ if at > END_OF_BLOCK => Some(at - END_OF_BLOCK),
        _ => None,
    }
}

/// Number of zero bytes after the data, so that a refill needs no bounds checks.
const PADDING: usize = 16;

/// Reader of bits, most significant first. Zeros follow the end; [`Bits::overran`] reports that afterwards.
#[derive(Debug)]
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Next bits, from the top; below the `count` valid ones are bits that are loaded again later.
    window: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at, window: 0, count: 0 }
    }

    fn from_bit(bytes: &'a [u8], bit: usize) -> Self {
        let mut bits = Self::new(bytes, bit / 8);
        bits.refill();
        bits.skip((bit % 8) as u32);
        bits
    }

    /// Makes at least 56 bits valid.
    ///
    /// # Source
    /// Giesen, "Reading bits in far too many ways", variant 4.
    #[inline(always)]
    fn refill(&mut self) {
        let next = match self.bytes.get(self.at..self.at + 8) {
            Some(bytes) => u64::from_be_bytes(bytes.try_into().expect("eight bytes")),
            None => 0,
        };
        self.window |= next >> self.count;
        self.at += ((63 - self.count) >> 3) as usize;
        self.count |= 56;
    }

    /// Returns the next `len` bits, which must be valid, as a number.
    #[inline(always)]
    pub(super) fn peek(&self, len: u32) -> usize {
        (self.window >> (64 - len)) as usize
    }

    /// Skips `len` bits, which must be valid.
    #[inline(always)]
    pub(super) fn skip(&mut self, len: u32) {
        self.window <<= len;
        self.count -= len;
    }

    /// Takes up to 32 bits, which must be valid.
    #[inline(always)]
    pub(super) fn take(&mut self, len: u32) -> u32 {
        let taken = (self.window >> 32 >> (32 - len)) as u32;
        self.skip(len);
        taken
    }

    /// Returns the index of the next bit, counted from the start of the bytes.
    pub(super) fn position(&self) -> usize {
        self.at * 8 - self.count as usize
    }

    /// Returns whether bits at or after `end` were taken.
    pub(super) fn overran(&self, end: usize) -> bool {
        self.position() > end
    }
}

/// Entropy-coded data of a scan without byte stuffing: one segment for each restart interval, or spans of the scan.
#[derive(Clone, Debug, Default)]
pub(super) struct Segments {
    bytes: Vec<u8>,
    /// End of each segment in `bytes`.
    ends: Vec<usize>,
    /// Offset in the file at which the data ended: at a marker, or at the end of the file.
    end: usize,
    /// Positions in `bytes` at which a byte of the file was left out, in a scan without restart markers.
    left_out: Vec<u32>,
    /// Bits of each span: the first, and the end.
    spans: Vec<Range<usize>>,
}

impl Segments {
    /// Removes the byte stuffing of a scan, up to the first marker other than a restart marker.
    ///
    /// `None` if restart markers are not numbered in order. With `notes`, records the position of each byte left out,
    /// for [`to_file`](Self::to_file).
    pub(super) fn unstuff(&mut self, file: &[u8], scan_start: usize, notes: bool) -> Option<()> {
        self.bytes.clear();
        self.bytes.reserve(file.len() - scan_start + PADDING);
        self.ends.clear();
        self.left_out.clear();
        let mut from = scan_start;
        for found in memchr::memchr_iter(0xFF, &file[scan_start..]) {
            let at = scan_start + found;
            if at < from {
                continue;
            }
            match file.get(at + 1) {
                Some(0) => {
                    self.bytes.extend_from_slice(&file[from..=at]);
                    self.note_left_out(notes);
                    from = at + 2;
                }
                Some(&marker @ 0xD0..=0xD7) => {
                    if usize::from(marker & 7) != self.ends.len() % 8 {
                        return None;
                    }
                    self.bytes.extend_from_slice(&file[from..at]);
                    self.ends.push(self.bytes.len());
                    from = at + 2;
                }
                // A fill byte before a marker.
                Some(0xFF) => {
                    self.bytes.extend_from_slice(&file[from..at]);
                    self.note_left_out(notes);
                    from = at + 1;
                }
                _ => {
                    self.finish(file, from, at);
                    return Some(());
                }
            }
        }
        self.finish(file, from, file.len());
        Some(())
    }

    fn note_left_out(&mut self, notes: bool) {
        if notes {
            self.left_out.push(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX));
        }
    }

    fn finish(&mut self, file: &[u8], from: usize, at: usize) {
        self.bytes.extend_from_slice(&file[from.min(at)..at]);
        self.ends.push(self.bytes.len());
        self.bytes.extend_from_slice(&[0; PADDING]);
        self.end = at;
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Returns the offset of the scan's end in the file.
    pub(super) fn end(&self) -> usize {
        self.end
    }

    /// Returns a reader of one segment, and the bit at which the segment ends.
    pub(super) fn read(&self, segment: usize) -> (Bits<'_>, usize) {
        let start = if segment == 0 { 0 } else { self.ends[segment - 1] };
        (Bits::new(&self.bytes, start), 8 * self.ends[segment])
    }

    /// Returns a function from bits of a scan without restart markers to bits of the file; its inputs must ascend.
    pub(super) fn to_file(&self, scan_start: usize) -> impl FnMut(usize) -> usize {
        let mut passed = 0;
        move |bit| {
            while self.left_out.get(passed).is_some_and(|&at| at as usize <= bit / 8) {
                passed += 1;
            }
            bit + 8 * (scan_start + passed)
        }
    }

    /// Removes only the byte stuffing of spans, each given by its first bit in the file and the bit after its last.
    ///
    /// `None` if a span is outside of the file or contains a marker, or if the spans do not ascend.
    pub(super) fn unstuff_spans(
        &mut self,
        file: &[u8],
        spans: impl Iterator<Item = Range<usize>>,
    ) -> Option<()> {
        self.bytes.clear();
        self.spans.clear();
        let mut before = 0;
        for span in spans {
            if span.start < before || span.end < span.start {
                return None;
            }
            before = span.end;
            let start = 8 * self.bytes.len() + span.start % 8;
            let part = file.get(span.start / 8..span.end.div_ceil(8))?;
            let mut from = 0;
            for at in memchr::memchr_iter(0xFF, part) {
                self.bytes.extend_from_slice(&part[from..=at]);
                from = at + 2;
                if part.get(at + 1).is_some_and(|&stuffing| stuffing != 0) {
                    return None;
                }
            }
            self.bytes.extend_from_slice(part.get(from..).unwrap_or_default());
            let behind = span.end.next_multiple_of(8) - span.end;
            self.spans.push(start..8 * self.bytes.len() - behind);
        }
        self.bytes.extend_from_slice(&[0; PADDING]);
        Some(())
    }

    /// Returns a reader of one span, and the bit at which the span ends.
    pub(super) fn read_span(&self, span: usize) -> (Bits<'_>, usize) {
        let Range { start, end } = self.spans[span];
        (Bits::from_bit(&self.bytes, start), end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_cut_out_of_the_stuffing_or_refused() {
        let file = [0x12, 0xFF, 0x00, 0x34, 0xFF, 0xD9, 0x56];
        let spans = |spans: &[(usize, usize)]| {
            let mut segments = Segments::default();
            segments.unstuff_spans(&file, spans.iter().map(|&(start, end)| start..end))?;
            let read = |span: usize| {
                let (mut bits, end) = segments.read_span(span);
                bits.refill();
                bits.take((end - bits.position()) as u32)
            };
            Some((0..spans.len()).map(read).collect::<Vec<u32>>())
        };
        assert_eq!(spans(&[(4, 28)]), Some(vec![0x2FF3]));
        assert_eq!(spans(&[(0, 8), (8, 13), (13, 32)]), Some(vec![0x12, 0x1F, 0x734]));
        assert_eq!(spans(&[(24, 24), (30, 30)]), Some(vec![0, 0]));
        let wrong: [&[(usize, usize)]; 6] =
            [&[(8, 16), (15, 24)], &[(16, 15)], &[(17, 9)], &[(24, 48)], &[(24, 80)], &[(80, 90)]];
        for refused in wrong {
            assert_eq!(spans(refused), None, "{refused:?}");
        }
    }
}
