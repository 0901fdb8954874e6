//! Decoding a rectangle of an image.

use super::baseline::{BaselineDecoder, Frame};
use super::guard;
use super::{Format, Header, ImageError, Limits, Orientation, decode, probe};

/// A rectangle of an image, in pixels.
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

/// Decoded pixels by planes, and the buffers that decoding needs; both are kept from image to image.
#[derive(Clone, Debug, Default)]
pub struct RegionDecoder {
    baseline: BaselineDecoder,
    samples: Vec<u8>,
    /// Samples before they are turned.
    stored: Vec<u8>,
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

/// An encoded image whose header has been read.
#[derive(Clone, Debug)]
pub struct Encoded<'a> {
    bytes: &'a [u8],
    limits: Limits,
    kind: Kind<'a>,
    orientation: Orientation,
    entry_points: Option<&'a [u8]>,
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
    pub fn open(bytes: &'a [u8], limits: &Limits) -> Result<Self, ImageError> {
        let kind = match guard(Format::Jpeg.name(), || Ok(Frame::parse(bytes)))? {
            Some(frame) => Kind::Baseline(Box::new(frame)),
            None => Kind::Other(probe(bytes)?),
        };
        let orientation = Orientation::default();
        let opened = Self { bytes, limits: *limits, kind, orientation, entry_points: None };
        let (width, height) = opened.size();
        if u64::from(width) * u64::from(height) > limits.max_pixels {
            return Err(ImageError::TooLarge { width, height, limit: limits.max_pixels });
        }
        Ok(opened)
    }

    /// Has the image turned: its size, regions and pixels are then those of the upright one.
    #[must_use]
    pub fn turned(mut self, orientation: Orientation) -> Self {
        self.orientation = orientation;
        self
    }

    /// Has it decoded from its entry points, as a check of the same bytes gave them: faster, with the same pixels.
    ///
    /// Those of another image give wrong pixels, or none of the gain.
    #[must_use]
    pub fn with_entry_points(mut self, entry_points: Option<&'a [u8]>) -> Self {
        self.entry_points = entry_points;
        self
    }

    /// Columns and rows.
    pub fn size(&self) -> (u32, u32) {
        self.orientation.size(self.stored_size())
    }

    fn format(&self) -> Format {
        match &self.kind {
            Kind::Baseline(_) => Format::Jpeg,
            Kind::Other(header) => header.format,
        }
    }

    fn stored_size(&self) -> (u32, u32) {
        match &self.kind {
            Kind::Baseline(frame) => (frame.width as u32, frame.height as u32),
            Kind::Other(header) => (header.width, header.height),
        }
    }
}

impl RegionDecoder {
    /// Decodes a region; its pixels are those that [`decode`] gives for the whole image.
    ///
    /// A file that is corrupt only behind the region may pass for a good one.
    ///
    /// # Errors
    /// If the image is cut or corrupt.
    ///
    /// # Panics
    /// If the region is empty or not inside the image.
    pub fn decode(
        &mut self,
        encoded: &Encoded,
        region: Region,
        channels: Channels,
    ) -> Result<Planes<'_>, ImageError> {
        let (width, height) = encoded.size();
        let Region { left, top, width: columns, height: rows } = region;
        assert!(columns > 0 && rows > 0, "a region has pixels");
        assert!(left + columns <= width as usize && top + rows <= height as usize, "a region is inside");
        let stored = encoded.orientation.stored_region(region, encoded.stored_size());
        let decoded = guard(encoded.format().name(), || self.decode_stored(encoded, stored, channels));
        if decoded.is_err() {
            // A panic may have left anything in it.
            self.baseline = BaselineDecoder::default();
        }
        let count = decoded?;
        if !encoded.orientation.is_upright() {
            std::mem::swap(&mut self.samples, &mut self.stored);
            self.samples.clear();
            for plane in self.stored.chunks_exact(stored.width * stored.height) {
                self.samples.extend(encoded.orientation.turn(plane, stored.width, stored.height));
            }
        }
        Ok(Planes { width: columns, height: rows, count, samples: &self.samples })
    }

    /// Decodes a region of the image as it is stored; returns the number of planes.
    fn decode_stored(
        &mut self,
        encoded: &Encoded,
        region: Region,
        channels: Channels,
    ) -> Result<usize, ImageError> {
        if let Kind::Baseline(frame) = &encoded.kind {
            let (bytes, points, samples) = (encoded.bytes, encoded.entry_points, &mut self.samples);
            if let Some(count) = self.baseline.decode(bytes, frame, region, channels, points, samples) {
                return Ok(count);
            }
        }
        let image = decode(encoded.bytes, &encoded.limits)?;
        let plane = region.width * region.height;
        self.samples.resize(3 * plane, 0);
        let (pixels, _) = image.rgb.as_chunks::<3>();
        for row in 0..region.height {
            let from = (region.top + row) * image.width as usize + region.left;
            for (column, pixel) in pixels[from..from + region.width].iter().enumerate() {
                for (channel, &value) in pixel.iter().enumerate() {
                    self.samples[channel * plane + row * region.width + column] = value;
                }
            }
        }
        Ok(3)
    }
}

#[cfg(test)]
mod tests;
