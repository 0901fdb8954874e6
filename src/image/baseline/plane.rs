//! Decoded samples of one component.

use std::ops::Range;

use super::idct;

/// Samples of one component: whole blocks that cover a region.
#[derive(Clone, Debug, Default)]
pub(super) struct Plane {
    /// Blocks across.
    pub(super) columns: Range<usize>,
    /// Blocks down.
    pub(super) rows: Range<usize>,
    /// Row after row.
    samples: Vec<u8>,
}

impl Plane {
    /// Makes room for blocks.
    pub(super) fn cover(&mut self, columns: Range<usize>, rows: Range<usize>) {
        self.samples.resize(64 * columns.len() * rows.len(), 0);
        (self.columns, self.rows) = (columns, rows);
    }

    /// Bytes from one row to the next.
    fn pitch(&self) -> usize {
        self.columns.len() * 8
    }

    /// Part of a row, in coordinates of the component.
    #[inline(always)]
    pub(super) fn row(&self, row: usize, columns: Range<usize>) -> &[u8] {
        let start = (row - self.rows.start * 8) * self.pitch();
        let first = self.columns.start * 8;
        &self.samples[start + columns.start - first..start + columns.end - first]
    }

    /// Puts the samples of a block into its place.
    #[inline(always)]
    pub(super) fn put(&mut self, column: usize, row: usize, block: &idct::Samples) {
        let pitch = self.pitch();
        let start = (row - self.rows.start) * 8 * pitch + (column - self.columns.start) * 8;
        for (line, samples) in self.samples[start..].chunks_mut(pitch).zip(block) {
            line[..8].copy_from_slice(samples);
        }
    }
}
