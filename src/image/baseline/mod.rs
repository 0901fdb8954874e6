//! Decodes regions of baseline JPEGs without the rest.
//!
//! libjpeg decodes everything above a region and more beside it, and spends three quarters of its time on Huffman
//! codes. Here, blocks outside the region are skipped, several codes by one look-up; restart segments outside are
//! skipped whole; chroma is decoded only if it is wanted. With entry points, which a check of the whole image finds,
//! no row outside of the region is read, and two rows are decoded in turn. Pixels equal libjpeg-turbo's ("islow",
//! smooth upsampling) bit for bit, for 4:4:4, 4:2:2, 4:2:0 and grey. All other files, above all broken ones, are left
//! to libjpeg, which decides what is corrupt.

mod entry_points;
mod header;
mod huffman;
mod idct;
mod pixels;
mod scan;

pub(super) use header::Frame;

use self::entry_points::EntryPoints;
use self::scan::Note;
use super::{Channels, Region};
use crate::simd::{self, SimdLevel};

/// Minimum ratio of an image's size to that of its entry points.
const SMALLEST_IMAGE: usize = 4;

/// Tables and buffers, kept from image to image.
#[derive(Clone, Debug, Default)]
pub(super) struct BaselineDecoder {
    scan: scan::ScanDecoder,
    chroma: pixels::ChromaRows,
}

impl BaselineDecoder {
    /// Decodes a region, plane after plane, from the image's entry points if it has any; returns the number of planes.
    ///
    /// `None` leaves the image to libjpeg.
    pub(super) fn decode(
        &mut self,
        file: &[u8],
        frame: &Frame,
        region: Region,
        channels: Channels,
        entry_points: Option<&[u8]>,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        let wanted = if channels == Channels::Luma { 1 } else { frame.sampling.components() };
        let points = entry_points.and_then(|bytes| EntryPoints::of(frame, bytes));
        let decoded = points.and_then(|points| {
            self.scan.decode_from(SimdLevel::short(), file, frame, region, wanted, points)
        });
        if decoded.is_none() {
            self.scan.decode(file, frame, region, wanted, Note::Nothing)?;
        }
        self.put(frame, region, wanted, out);
        Some(wanted)
    }

    /// Decodes a region from entry points only.
    #[cfg(test)]
    pub(super) fn decode_from_entry_points(
        &mut self,
        level: SimdLevel,
        file: &[u8],
        frame: &Frame,
        region: Region,
        entry_points: &[u8],
        out: &mut Vec<u8>,
    ) -> Option<()> {
        let wanted = frame.sampling.components();
        self.scan.decode_from(level, file, frame, region, wanted, EntryPoints::of(frame, entry_points)?)?;
        self.put(frame, region, wanted, out);
        Some(())
    }

    /// Converts the decoded samples to pixels.
    fn put(&mut self, frame: &Frame, region: Region, wanted: usize, out: &mut Vec<u8>) {
        out.resize(wanted * region.width * region.height, 0);
        if wanted == 1 {
            pixels::copy_luma(&self.scan.planes, region, out);
        } else {
            let (planes, rows) = (&self.scan.planes, &mut self.chroma);
            simd::run(pixels::Convert { frame, planes, region, rows, out });
        }
    }

    /// Decodes every coefficient; returns the brightness of all pixels, row by row, and the entry points, if the image
    /// has any.
    ///
    /// `None`: left to libjpeg, which may warn of it. libjpeg checks the header segments itself.
    pub(super) fn check(&mut self, file: &[u8], frame: &Frame) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
        let region = Region { left: 0, top: 0, width: frame.width, height: frame.height };
        self.scan.decode(file, frame, region, 1, Note::EntryPoints)?;
        if !self.scan.used_all(file, frame) {
            return None;
        }
        let mut luma = vec![0; frame.width * frame.height];
        pixels::copy_luma(&self.scan.planes, region, &mut luma);
        Some((luma, self.worthwhile_entry_points(file, frame)))
    }

    /// Finds the entry points of an image that was checked, without computing pixels.
    pub(super) fn entry_points(&mut self, file: &[u8], frame: &Frame) -> Option<Vec<u8>> {
        let region = Region { left: 0, top: 0, width: frame.width, height: frame.height };
        self.scan.decode(file, frame, region, 0, Note::EntryPoints)?;
        self.scan.used_all(file, frame).then(|| self.worthwhile_entry_points(file, frame))?
    }

    /// Returns the entry points, unless they are large beside the file, as for an image with few bits a pixel.
    fn worthwhile_entry_points(&self, file: &[u8], frame: &Frame) -> Option<Vec<u8>> {
        self.scan.entry_points(frame).filter(|points| points.len() <= file.len() / SMALLEST_IMAGE)
    }
}
