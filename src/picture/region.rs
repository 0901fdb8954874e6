//! Decoding a rectangle of a picture.

use super::baseline::{BaselineDecoder, Frame};
use super::{Header, Limits, PictureError, decode, probe};

/// A rectangle of a picture, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The first column.
    pub left: usize,
    /// The first row.
    pub top: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// What is wanted of the pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channels {
    /// Red, green and blue.
    Rgb,
    /// Brightness alone, as the file stores it; a file that does not store it gives all three.
    Luma,
}

/// Decoded pixels by planes, and the buffers that decoding needs; both are kept from picture to picture.
#[derive(Clone, Debug, Default)]
pub struct RegionDecoder {
    baseline: BaselineDecoder,
    samples: Vec<u8>,
}

/// The pixels of a region.
///
/// Invariant: `samples` holds `planes * height * width` bytes; three planes are red, green and blue, one plane is
/// the brightness that all three share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planes<'a> {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// One or three.
    pub count: usize,
    /// Plane after plane, row after row.
    pub samples: &'a [u8],
}

/// An encoded picture whose header has been read.
#[derive(Clone, Debug)]
pub struct Encoded<'a> {
    bytes: &'a [u8],
    offsets: Option<&'a [u32]>,
    limits: Limits,
    kind: Kind<'a>,
}

#[derive(Clone, Debug)]
enum Kind<'a> {
    Baseline(Box<Frame<'a>>),
    Other(Header),
}

impl<'a> Encoded<'a> {
    /// Reads the header.
    ///
    /// # Errors
    /// If the file is of no known kind, its header is broken, or it is too large.
    pub fn open(bytes: &'a [u8], limits: &Limits) -> Result<Self, PictureError> {
        let kind = match Frame::parse(bytes) {
            Some(frame) => Kind::Baseline(Box::new(frame)),
            None => Kind::Other(probe(bytes)?),
        };
        let opened = Self { bytes, offsets: None, limits: *limits, kind };
        let (width, height) = opened.size();
        if u64::from(width) * u64::from(height) > limits.max_pixels {
            return Err(PictureError::TooLarge { width, height, limit: limits.max_pixels });
        }
        Ok(opened)
    }

    /// Says where the tiles of a file from [`transcode`](super::transcode) lie: then nothing but its header and
    /// the tiles under a region is looked at.
    #[must_use]
    pub fn with_tiles(mut self, offsets: &'a [u32]) -> Self {
        self.offsets = Some(offsets);
        self
    }

    /// Columns and rows.
    pub fn size(&self) -> (u32, u32) {
        match &self.kind {
            Kind::Baseline(frame) => (frame.width as u32, frame.height as u32),
            Kind::Other(header) => (header.width, header.height),
        }
    }
}

impl RegionDecoder {
    /// Decodes a region; its pixels are those that [`decode`] gives for the whole picture.
    ///
    /// A file that is corrupt only behind the region may pass for a good one.
    ///
    /// # Errors
    /// If the picture is cut or corrupt.
    ///
    /// # Panics
    /// If the region is empty or not inside the picture.
    pub fn decode(
        &mut self,
        encoded: &Encoded,
        region: Region,
        channels: Channels,
    ) -> Result<Planes<'_>, PictureError> {
        let (width, height) = encoded.size();
        let Region { left, top, width: columns, height: rows } = region;
        assert!(columns > 0 && rows > 0, "a region has pixels");
        assert!(left + columns <= width as usize && top + rows <= height as usize, "a region is inside");
        let fast = match &encoded.kind {
            Kind::Baseline(frame) => {
                let (bytes, offsets) = (encoded.bytes, encoded.offsets);
                self.baseline.decode(bytes, frame, offsets, region, channels, &mut self.samples)
            }
            Kind::Other(_) => None,
        };
        let count = match fast {
            Some(count) => count,
            None => {
                self.decode_whole(encoded, region)?;
                3
            }
        };
        Ok(Planes { width: columns, height: rows, count, samples: &self.samples })
    }

    fn decode_whole(&mut self, encoded: &Encoded, region: Region) -> Result<(), PictureError> {
        let picture = decode(encoded.bytes, &encoded.limits)?;
        let plane = region.width * region.height;
        self.samples.resize(3 * plane, 0);
        let (pixels, _) = picture.rgb.as_chunks::<3>();
        for row in 0..region.height {
            let from = (region.top + row) * picture.width as usize + region.left;
            for (column, pixel) in pixels[from..from + region.width].iter().enumerate() {
                for (channel, &value) in pixel.iter().enumerate() {
                    self.samples[channel * plane + row * region.width + column] = value;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
