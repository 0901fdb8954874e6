//! Huffman codes as tables that give a coefficient, code and value bits at once, by one look.
//!
//! Where whole blocks are passed over, a look passes as many coefficients as it has bits for.

use super::bits::Bits;
use super::header::{LONGEST_CODE, TableSpec};

/// Bits of a look; a coefficient whose code and value bits are more takes a slower way.
const LOOK: u32 = 11;
/// Advance of an end-of-block: larger than any other sum within a block.
pub(super) const END_OF_BLOCK: u32 = 128;
/// In an entry for passing over: the block ends here.
const ENDS: u16 = 1 << 4;

/// One look at a table.
///
/// Low byte: bits of code and value, or 0 where a look does not suffice. Then: for a whole coefficient the
/// advance in the block and the value (16 bits); else the bits of the code (0: longer than a look) and its symbol.
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

/// What the table's symbols mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A symbol is the number of value bits.
    Dc,
    /// A symbol is a run of zeros (high half) and the number of value bits.
    Ac,
}

/// A table ready for decoding.
#[derive(Clone, Debug)]
pub(super) struct Table {
    kind: Kind,
    lengths: [u8; LONGEST_CODE],
    symbols: Vec<u8>,
    entries: Box<[Entry; 1 << LOOK]>,
    /// Low 4 bits: how many are passed (0: none); then [`ENDS`]; then the advance before the block's end.
    passing: Box<[u16; 1 << LOOK]>,
    /// By length: the first 16-bit code word beyond codes of this length.
    limits: [u32; LONGEST_CODE + 1],
    /// By length: the index of a symbol less its code.
    offsets: [i32; LONGEST_CODE + 1],
}

/// The value whose `size` low bits are these.
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

    /// Makes the table that of a definition; most images have the one before's.
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

    /// The next DC difference.
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

    /// Decodes a block's AC coefficients into natural order; returns where they end: 1 if there are none.
    #[inline(always)]
    pub(super) fn coefficients(
        &self,
        bits: &mut Bits,
        order: &[u8; 256],
        block: &mut [i16; 64 + 1],
    ) -> Option<u32> {
        self.coefficients_from(1, bits, order, block)
    }

    /// Does the same for the blocks of two streams in turn: a look waits for the one before it in its own stream alone.
    #[inline(always)]
    pub(super) fn coefficients_of_two(
        &self,
        [bits, other_bits]: [&mut Bits; 2],
        order: &[u8; 256],
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
                        at += self.long_coefficient(entry, at, bits, order, block)?;
                    }
                    if other.bits() == 0 {
                        other_at += self.long_coefficient(other, other_at, other_bits, order, other_block)?;
                    }
                    break;
                }
                bits.skip(entry.bits());
                other_bits.skip(other.bits());
                at += entry.advance();
                other_at += other.advance();
                block[usize::from(order[(at - 1) as usize & 255])] = entry.value();
                other_block[usize::from(order[(other_at - 1) as usize & 255])] = other.value();
                if at >= 64 || other_at >= 64 {
                    break;
                }
            }
        }
        Some([
            self.coefficients_from(at, bits, order, block)?,
            self.coefficients_from(other_at, other_bits, order, other_block)?,
        ])
    }

    /// Decodes the coefficients of a block from a place on.
    #[inline(always)]
    fn coefficients_from(
        &self,
        mut at: u32,
        bits: &mut Bits,
        order: &[u8; 256],
        block: &mut [i16; 64 + 1],
    ) -> Option<u32> {
        while at < 64 {
            bits.refill();
            // A refill leaves 56 bits: enough for five looks.
            for _ in 0..5 {
                let entry = self.entries[bits.peek(LOOK)];
                if entry.bits() == 0 {
                    at += self.long_coefficient(entry, at, bits, order, block)?;
                    break;
                }
                bits.skip(entry.bits());
                at += entry.advance();
                block[usize::from(order[(at - 1) as usize & 255])] = entry.value();
                if at >= 64 {
                    break;
                }
            }
        }
        end_of(at)
    }

    /// Decodes a coefficient for which a look does not suffice; returns the advance.
    #[inline(always)]
    fn long_coefficient(
        &self,
        entry: Entry,
        at: u32,
        bits: &mut Bits,
        order: &[u8; 256],
        block: &mut [i16; 64 + 1],
    ) -> Option<u32> {
        let symbol = self.long_symbol(entry, bits)?;
        let size = u32::from(symbol & 15);
        let advance = advance_of(symbol);
        let value = extend(bits.take(size), size);
        block[usize::from(order[(at + advance - 1) as usize & 255])] = value as i16;
        Some(advance)
    }

    /// Passes over a block's AC coefficients.
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

    /// Passes over one coefficient; returns the advance.
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

    /// The next symbol, of which a look gave this entry; afterwards there are bits for a value.
    #[inline(always)]
    fn long_symbol(&self, entry: Entry, bits: &mut Bits) -> Option<u8> {
        if entry.advance() == 0 {
            return self.symbol(bits);
        }
        bits.refill();
        bits.skip(entry.advance());
        Some(entry.value() as u8)
    }

    /// The next symbol, whatever its length; afterwards there are bits for a value.
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

/// How far an AC symbol leads in its block.
///
/// # Source
/// libjpeg-turbo, jdhuff.c: every run without a value but the longest ends the block, not 0 alone.
#[inline(always)]
fn advance_of(symbol: u8) -> u32 {
    if symbol & 15 == 0 && symbol != 0xF0 { END_OF_BLOCK } else { u32::from(symbol >> 4) + 1 }
}

/// Where a block ends whose decoding went on to here; `None` if a run went beyond the block.
#[inline(always)]
fn end_of(at: u32) -> Option<u32> {
    match at {
        64 => Some(64),
        _ if at > END_OF_BLOCK => Some(at - END_OF_BLOCK),
        _ => None,
    }
}
