//! The markers before the entropy-coded data: the frame, and the Huffman tables of the file.

/// Maximum number of components of a frame that is decoded here: one (grey) or three (YCbCr).
pub(super) const MOST_COMPONENTS: usize = 3;
pub(super) const LONGEST_CODE: usize = 16;

/// Chroma subsampling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sampling {
    /// Only luma.
    Grey,
    /// One chroma sample for each pixel (4:4:4).
    Full,
    /// One chroma sample for two pixels of a row (4:2:2).
    HalfWidth,
    /// One chroma sample for four pixels (4:2:0).
    HalfBoth,
}

impl Sampling {
    /// Returns the number of luma blocks of an MCU, across and down.
    pub(super) fn luma_blocks(self) -> (usize, usize) {
        match self {
            Self::Grey | Self::Full => (1, 1),
            Self::HalfWidth => (2, 1),
            Self::HalfBoth => (2, 2),
        }
    }

    pub(super) fn components(self) -> usize {
        if self == Self::Grey { 1 } else { 3 }
    }
}

/// A component of the frame, with the tables that the scan assigns to it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Component {
    id: u8,
    factors: (u8, u8),
    quantisation: usize,
    pub(super) dc: usize,
    pub(super) ac: usize,
}

/// The header of a baseline JPEG that this module decodes.
#[derive(Clone, Debug)]
pub(in crate::image) struct Frame<'a> {
    pub(in crate::image) width: usize,
    pub(in crate::image) height: usize,
    /// Chroma subsampling.
    pub(super) sampling: Sampling,
    /// Number of MCUs between restart markers; 0 if there are none.
    pub(super) restart_interval: usize,
    /// Offset of the entropy-coded data.
    pub(super) scan_start: usize,
    pub(super) components: [Component; MOST_COMPONENTS],
    pub(super) dc_tables: [Option<TableSpec<'a>>; 4],
    pub(super) ac_tables: [Option<TableSpec<'a>>; 4],
    quantisation: [Option<[u16; 64]>; 4],
}

/// A Huffman table as defined by its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TableSpec<'a> {
    /// Number of codes of each length, 1 to 16 bits.
    pub(super) lengths: &'a [u8; LONGEST_CODE],
    /// Symbols, in ascending order of codes.
    pub(super) symbols: &'a [u8],
}

impl<'a> TableSpec<'a> {
    /// Checks a table; `None` if the lengths make no prefix code.
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

    fn has_only(&self, is_such: impl Fn(u8) -> bool) -> bool {
        self.symbols.iter().all(|&symbol| is_such(symbol))
    }

    /// Returns whether no code consists only of ones, as libjpeg requires.
    fn spares_ones(&self) -> bool {
        let mut code = 0_u32;
        (1..).zip(self.lengths).all(|(bits, &count)| {
            code = (code << 1) + u32::from(count);
            count == 0 || code < 1 << bits
        })
    }

    /// Iterates over the codes, each as its bits, their number, and its symbol.
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

/// Natural index (row after row) of each coefficient of a block, in zigzag order.
///
/// # Source
/// ITU-T T.81, figure A.6.
#[rustfmt::skip]
pub(super) const NATURAL_ORDER: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
    28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63,
];

/// Reader of a segment's bytes, front to back; methods return `None` if the bytes end too early.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn word(&mut self) -> Option<usize> {
        self.take(2).map(|bytes| usize::from(u16::from_be_bytes([bytes[0], bytes[1]])))
    }
}

/// Hints in markers at the colour space, besides the components' ids.
#[derive(Default)]
struct ColourHints {
    jfif: bool,
    adobe_transform: Option<u8>,
}

/// Number of bits of the largest difference of DC values in 8-bit images (T.81, table F.1).
const MOST_DC_BITS: u8 = 11;

/// Returns whether an AC symbol is valid in 8-bit baseline: a run of up to 15 zeros and a value of 1 to 10 bits, 16
/// zeros, or the end of the block (T.81, F.1.2.2).
fn is_baseline_ac(symbol: u8) -> bool {
    matches!(symbol, 0 | 0xF0) || (1..=10).contains(&(symbol & 15))
}

impl<'a> Frame<'a> {
    /// Parses the header, up to the start of the first scan.
    ///
    /// `None` if the file is broken, or of a kind that libjpeg has to decode (progressive, CMYK, RGB, arithmetic
    /// coding, 12 bits, several scans, another sampling, tables that no encoder writes).
    pub(in crate::image) fn parse(bytes: &'a [u8]) -> Option<Self> {
        if !bytes.starts_with(&[0xFF, 0xD8]) {
            return None;
        }
        let mut frame = Self {
            width: 0,
            height: 0,
            sampling: Sampling::Grey,
            restart_interval: 0,
            scan_start: 0,
            components: Default::default(),
            dc_tables: [None; 4],
            ac_tables: [None; 4],
            quantisation: [None; 4],
        };
        let mut hints = ColourHints::default();
        let mut count = 0;
        let mut at = 2;
        loop {
            if *bytes.get(at)? != 0xFF {
                return None;
            }
            while *bytes.get(at)? == 0xFF {
                at += 1;
            }
            let marker = bytes[at];
            let len = Fields(bytes.get(at + 1..)?).word()?;
            let mut fields = Fields(bytes.get(at + 3..at + 1 + len)?);
            at += 1 + len;
            match marker {
                0xC0 | 0xC1 => count = frame.read_frame(&mut fields)?,
                0xC4 => frame.read_huffman(&mut fields)?,
                0xDB => frame.read_quantisation(&mut fields)?,
                0xDD => frame.restart_interval = fields.word()?,
                0xE0 => hints.jfif |= fields.0.len() >= 14 && fields.0.starts_with(b"JFIF\0"),
                0xEE if fields.0.len() >= 12 && fields.0.starts_with(b"Adobe") => {
                    hints.adobe_transform = Some(fields.0[11]);
                }
                0xDA => {
                    frame.read_scan(&mut fields, count)?;
                    frame.sampling = frame.sampling_of(count)?;
                    frame.scan_start = at;
                    let is_known = (count == 1 || frame.is_ycc(&hints)) && frame.tables_are_libjpegs();
                    return is_known.then_some(frame);
                }
                0xE1..=0xEF | 0xFE => {}
                _ => return None,
            }
        }
    }

    fn read_frame(&mut self, fields: &mut Fields) -> Option<usize> {
        let precision = fields.byte()?;
        (self.height, self.width) = (fields.word()?, fields.word()?);
        let count = usize::from(fields.byte()?);
        if precision != 8 || self.height == 0 || self.width == 0 || !matches!(count, 1 | 3) {
            return None;
        }
        for component in &mut self.components[..count] {
            component.id = fields.byte()?;
            let factors = fields.byte()?;
            component.factors = (factors >> 4, factors & 15);
            component.quantisation = usize::from(fields.byte()?);
        }
        Some(count)
    }

    fn read_huffman(&mut self, fields: &mut Fields<'a>) -> Option<()> {
        while !fields.0.is_empty() {
            let kind = fields.byte()?;
            let lengths = fields.take(16)?;
            let symbols = fields.take(lengths.iter().map(|&count| usize::from(count)).sum())?;
            let spec = TableSpec::new(lengths.try_into().expect("16 were taken"), symbols)?;
            let tables = if kind >> 4 == 0 { &mut self.dc_tables } else { &mut self.ac_tables };
            *tables.get_mut(usize::from(kind & 15))? = Some(spec);
        }
        Some(())
    }

    fn read_quantisation(&mut self, fields: &mut Fields) -> Option<()> {
        while !fields.0.is_empty() {
            let kind = fields.byte()?;
            let table = self.quantisation.get_mut(usize::from(kind & 15))?.insert([0; 64]);
            for place in NATURAL_ORDER {
                let step = if kind >> 4 == 0 { usize::from(fields.byte()?) } else { fields.word()? };
                table[usize::from(place)] = step as u16;
            }
        }
        Some(())
    }

    fn read_scan(&mut self, fields: &mut Fields, count: usize) -> Option<()> {
        if count == 0 || usize::from(fields.byte()?) != count {
            return None;
        }
        for component in &mut self.components[..count] {
            if fields.byte()? != component.id {
                return None;
            }
            let tables = fields.byte()?;
            (component.dc, component.ac) = (usize::from(tables >> 4), usize::from(tables & 15));
        }
        (fields.take(3)? == [0, 63, 0]).then_some(())
    }

    fn sampling_of(&self, count: usize) -> Option<Sampling> {
        if count == 1 {
            return Some(Sampling::Grey);
        }
        let [luma, blue, red] = self.components.map(|component| component.factors);
        if (blue, red) != ((1, 1), (1, 1)) {
            return None;
        }
        match luma {
            (1, 1) => Some(Sampling::Full),
            // libjpeg does not smooth the chroma of such narrow images.
            _ if self.width <= 4 => None,
            (2, 1) => Some(Sampling::HalfWidth),
            (2, 2) => Some(Sampling::HalfBoth),
            _ => None,
        }
    }

    /// # Source
    /// libjpeg-turbo, `default_decompress_parms` of jdapimin.c.
    fn is_ycc(&self, hints: &ColourHints) -> bool {
        match (hints.jfif, hints.adobe_transform) {
            (true, _) => true,
            (false, Some(transform)) => transform == 1,
            (false, None) => self.components.map(|component| component.id) != [b'R', b'G', b'B'],
        }
    }

    /// Returns whether the scan's Huffman tables are as encoders write them: accepted by libjpeg, with valid symbols.
    fn tables_are_libjpegs(&self) -> bool {
        self.components[..self.sampling.components()].iter().all(|component| {
            let tables = [self.dc_tables.get(component.dc), self.ac_tables.get(component.ac)];
            let [dc, ac] = tables.map(|table| table.copied().flatten().filter(|table| table.spares_ones()));
            dc.is_some_and(|table| table.has_only(|symbol| symbol <= MOST_DC_BITS))
                && ac.is_some_and(|table| table.has_only(is_baseline_ac))
        })
    }

    /// Returns the quantisation steps of a component, in natural order.
    pub(super) fn steps(&self, component: usize) -> Option<&[u16; 64]> {
        self.quantisation.get(self.components[component].quantisation)?.as_ref()
    }

    /// Returns the number of MCUs across and down.
    pub(super) fn mcus(&self) -> (usize, usize) {
        let (across, down) = self.sampling.luma_blocks();
        (self.width.div_ceil(8 * across), self.height.div_ceil(8 * down))
    }
}
