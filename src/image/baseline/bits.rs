//! The entropy-coded data: taken out of their byte stuffing, and read bit by bit.

use std::ops::Range;

/// Zero bytes behind the data, so that a refill needs no other care.
const PADDING: usize = 16;

/// Reads bits, most significant first. Behind the end come zeros; [`Bits::overran`] tells afterwards.
#[derive(Debug)]
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The next bits, from the top; below the `count` valid ones are bits that come again.
    window: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    /// Reads from a byte on.
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at, window: 0, count: 0 }
    }

    /// Reads from a bit on.
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
    pub(super) fn refill(&mut self) {
        let next = match self.bytes.get(self.at..self.at + 8) {
            Some(bytes) => u64::from_be_bytes(bytes.try_into().expect("eight bytes")),
            None => 0,
        };
        self.window |= next >> self.count;
        self.at += ((63 - self.count) >> 3) as usize;
        self.count |= 56;
    }

    /// The next `len` bits, which are valid, as a number.
    #[inline(always)]
    pub(super) fn peek(&self, len: u32) -> usize {
        (self.window >> (64 - len)) as usize
    }

    /// Skips `len` bits, which are valid.
    #[inline(always)]
    pub(super) fn skip(&mut self, len: u32) {
        self.window <<= len;
        self.count -= len;
    }

    /// Takes up to 32 bits, which are valid.
    #[inline(always)]
    pub(super) fn take(&mut self, len: u32) -> u32 {
        let taken = (self.window >> 32 >> (32 - len)) as u32;
        self.skip(len);
        taken
    }

    /// The bit that comes next, counted from the start of the bytes.
    pub(super) fn position(&self) -> usize {
        self.at * 8 - self.count as usize
    }

    /// Whether more bits were taken than come before a bit.
    pub(super) fn overran(&self, end: usize) -> bool {
        self.position() > end
    }
}

/// The entropy-coded data of a scan without byte stuffing: one segment for each restart interval, or spans of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Segments {
    bytes: Vec<u8>,
    /// Where each segment ends in `bytes`.
    ends: Vec<usize>,
    /// Where the data ended: at a marker, or at the end of the file.
    end: usize,
    /// Where in `bytes` one of the file's was left out, in a scan without restart markers.
    left_out: Vec<u32>,
    /// The first bit of each span, and where it ends.
    spans: Vec<Range<usize>>,
}

impl Segments {
    /// Removes the byte stuffing of a scan, up to the first marker other than a restart marker.
    ///
    /// `None` if restart markers are not numbered in order. `notes` asks for what [`to_file`](Self::to_file) needs: a note
    /// for each byte that is left out.
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

    /// The number of segments.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Where the scan ends in the file.
    pub(super) fn end(&self) -> usize {
        self.end
    }

    /// A reader of one segment and the bit at which it ends.
    pub(super) fn read(&self, segment: usize) -> (Bits<'_>, usize) {
        let start = if segment == 0 { 0 } else { self.ends[segment - 1] };
        (Bits::new(&self.bytes, start), 8 * self.ends[segment])
    }

    /// Gives for bits of the scan, which has no restart markers, those of the file; they must ascend.
    pub(super) fn to_file(&self, scan_start: usize) -> impl FnMut(usize) -> usize {
        let mut passed = 0;
        move |bit| {
            while self.left_out.get(passed).is_some_and(|&at| at as usize <= bit / 8) {
                passed += 1;
            }
            bit + 8 * (scan_start + passed)
        }
    }

    /// Removes the byte stuffing of spans alone, each given by its first bit in the file and the one behind it.
    ///
    /// `None` if a span is outside of the file, they do not ascend, or one contains a marker.
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

    /// A reader of one span and the bit at which it ends.
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
