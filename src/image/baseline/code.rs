//! Huffman codes as a file defines them.

/// The most bits of a code.
pub(super) const LONGEST_CODE: usize = 16;

/// A Huffman table as its segment defines it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TableSpec<'a> {
    /// Codes of 1 to 16 bits.
    pub(super) lengths: &'a [u8; LONGEST_CODE],
    /// What they stand for, in ascending order of codes.
    pub(super) symbols: &'a [u8],
}

impl<'a> TableSpec<'a> {
    /// `None` if the lengths make no prefix code.
    pub(super) fn new(lengths: &'a [u8; LONGEST_CODE], symbols: &'a [u8]) -> Option<Self> {
        let mut code = 0_u32;
        for (bits, &count) in (1..).zip(lengths) {
            code += u32::from(count);
            if code > 1 << bits {
                return None;
            }
            code <<= 1;
        }
        (symbols.len() <= 256).then_some(Self { lengths, symbols })
    }

    /// Whether all symbols are such.
    pub(super) fn has_only(&self, is_such: impl Fn(u8) -> bool) -> bool {
        self.symbols.iter().all(|&symbol| is_such(symbol))
    }

    /// Whether no code consists of ones alone, which libjpeg insists on.
    pub(super) fn spares_ones(&self) -> bool {
        let mut code = 0_u32;
        (1..).zip(self.lengths).all(|(bits, &count)| {
            code = (code << 1) + u32::from(count);
            count == 0 || code < 1 << bits
        })
    }

    /// Each code: its bits, their number, its symbol.
    pub(super) fn codes(&self) -> impl Iterator<Item = (u32, u32, u8)> {
        let mut code = 0_u32;
        let mut symbols = self.symbols.iter();
        (1..).zip(self.lengths).flat_map(move |(bits, &count)| {
            let first = code;
            code = (code + u32::from(count)) << 1;
            let taken: Vec<u8> = symbols.by_ref().take(usize::from(count)).copied().collect();
            taken.into_iter().zip(first..).map(move |(symbol, code)| (code, bits, symbol))
        })
    }
}
