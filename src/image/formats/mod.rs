//! The formats of images, a file for each: its header, and its pixels. Here is what several share.

pub(super) mod bmp;
pub(super) mod gif;
pub(super) mod jpeg;
pub(super) mod png;
pub(super) mod pnm;
pub(super) mod tiff;
pub(super) mod webp;

/// Up to 256 colours; those that a file does not name are black, as in Pillow.
#[derive(Clone, Debug)]
pub(super) struct Palette([[u8; 3]; 256]);

impl Palette {
    /// Takes the first three of every `stride` bytes as a colour.
    pub(super) fn new(entries: &[u8], stride: usize) -> Self {
        let mut colours = [[0; 3]; 256];
        for (colour, entry) in colours.iter_mut().zip(entries.chunks_exact(stride)) {
            colour.copy_from_slice(&entry[..3]);
        }
        Self(colours)
    }

    /// Each index its own grey.
    pub(super) fn grey() -> Self {
        Self(std::array::from_fn(|index| [index as u8; 3]))
    }

    /// The same with red and blue exchanged.
    #[must_use]
    pub(super) fn reversed(mut self) -> Self {
        self.0.iter_mut().for_each(|colour| colour.reverse());
        self
    }

    pub(super) fn colour(&self, index: u8) -> [u8; 3] {
        self.0[usize::from(index)]
    }
}

/// The first `count` values of `bits` bits (1, 2, 4 or 8) each, the highest bits of a byte first.
pub(super) fn packed(bytes: &[u8], count: usize, bits: usize) -> impl Iterator<Item = u8> {
    let in_byte = (8 / bits).max(1);
    let mask = if bits < 8 { (1 << bits) - 1 } else { 0xFF };
    let values = bytes
        .iter()
        .flat_map(move |&byte| (1..=in_byte).map(move |number| (byte >> (8 - number * bits.min(8))) & mask));
    values.take(count)
}
