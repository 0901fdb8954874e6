//! Regions of baseline JPEGs, decoded without the rest.
//!
//! libjpeg decodes everything above a region and more beside it, and three quarters of its time go into Huffman
//! codes. Here blocks outside the region are passed over, several codes by one look at a table; restart segments
//! outside are skipped; chroma is decoded only where it is wanted. Pixels equal libjpeg-turbo's ("islow",
//! smooth upsampling) bit for bit, for 4:4:4, 4:2:2, 4:2:0 and grey. Whatever else comes, a broken file above
//! all, is left to libjpeg, which decides what is corrupt.

mod bits;
mod header;
mod huffman;
mod idct;
mod pixels;
mod scan;

pub(super) use header::Frame;

use super::{Channels, Region};
use crate::simd;

/// Tables and buffers, kept from image to image.
#[derive(Clone, Debug, Default)]
pub(super) struct BaselineDecoder {
    scan: scan::ScanDecoder,
    chroma: pixels::ChromaRows,
}

impl BaselineDecoder {
    /// Decodes a region, plane after plane; returns the number of planes.
    ///
    /// `None`: left to libjpeg.
    pub(super) fn decode(
        &mut self,
        file: &[u8],
        frame: &Frame,
        region: Region,
        channels: Channels,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        let wanted = if channels == Channels::Luma { 1 } else { frame.sampling.components() };
        self.scan.decode(file, frame, region, wanted)?;
        out.resize(wanted * region.width * region.height, 0);
        if wanted == 1 {
            pixels::copy_luma(&self.scan.planes, region, out);
        } else {
            let (planes, rows) = (&self.scan.planes, &mut self.chroma);
            simd::run(pixels::Convert { frame, planes, region, rows, out });
        }
        Some(wanted)
    }

    /// Decodes every coefficient and gives the brightness of all pixels.
    ///
    /// `None`: left to libjpeg, or would warn of. Header segments are not looked at closely;
    /// that is left to libjpeg's own look at them.
    pub(super) fn check(&mut self, file: &[u8], frame: &Frame) -> Option<Vec<u8>> {
        let region = Region { left: 0, top: 0, width: frame.width, height: frame.height };
        self.scan.decode(file, frame, region, 1)?;
        if !self.scan.used_all(file, frame) {
            return None;
        }
        let mut luma = vec![0; frame.width * frame.height];
        pixels::copy_luma(&self.scan.planes, region, &mut luma);
        Some(luma)
    }
}
