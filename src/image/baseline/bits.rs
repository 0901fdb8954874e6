//! The entropy-coded data: taken out of their byte stuffing, and read bit by bit.

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

    /// Whether more bits were taken than come before a byte.
    pub(super) fn overran(&self, end: usize) -> bool {
        self.position() > end * 8
    }
}

/// The entropy-coded data of a scan without byte stuffing, one segment for each restart interval.
#[derive(Clone, Debug, Default)]
pub(super) struct Segments {
    bytes: Vec<u8>,
    /// Where each segment ends in `bytes`.
    ends: Vec<usize>,
    /// Where the data ended: at a marker, or at the end of the file.
    end: usize,
}

impl Segments {
    /// Removes the byte stuffing of a scan, up to the first marker other than a restart marker.
    ///
    /// `None` if restart markers are not numbered in order.
    pub(super) fn unstuff(&mut self, file: &[u8], scan_start: usize) -> Option<()> {
        self.bytes.clear();
        self.bytes.reserve(file.len() - scan_start + PADDING);
        self.ends.clear();
        let mut from = scan_start;
        for found in memchr::memchr_iter(0xFF, &file[scan_start..]) {
            let at = scan_start + found;
            if at < from {
                continue;
            }
            match file.get(at + 1) {
                Some(0) => {
                    self.bytes.extend_from_slice(&file[from..=at]);
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

    /// A reader of one segment and the byte at which it ends.
    pub(super) fn read(&self, segment: usize) -> (Bits<'_>, usize) {
        let start = if segment == 0 { 0 } else { self.ends[segment - 1] };
        (Bits::new(&self.bytes, start), self.ends[segment])
    }
}
