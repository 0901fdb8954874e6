//! Decodes a rectangle of an image.

use super::baseline::{BaselineDecoder, Frame};
use super::guard;
use super::{
    Channels, ExifOrientation, Format, Header, ImageError, Limits, Orientation, Region, decode, probe,
};

/// Decoder of regions, with its pixels by planes and its buffers, which are kept from image to image.
#[derive(Clone, Debug, Default)]
pub struct RegionDecoder {
    baseline: BaselineDecoder,
    samples: Vec<u8>,
    /// Samples before they are turned upright.
    stored: Vec<u8>,
}

/// Pixels of a region.
///
/// Invariant: `samples` has `count * height * width` bytes; three planes are red, green and blue, and one plane is
/// the luma that all three share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planes<'a> {
    /// Number of columns.
    pub width: usize,
    /// Number of rows.
    pub height: usize,
    /// Number of planes, one or three.
    pub count: usize,
    /// Samples, plane after plane, row after row.
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
        limits.check(opened.size())?;
        Ok(opened)
    }

    /// Reads the header of an image of a dataset, of any size, and sets its orientation.
    ///
    /// # Errors
    /// As [`Encoded::open`].
    pub fn ingested(bytes: &'a [u8], orientation: ExifOrientation) -> Result<Self, ImageError> {
        // Ingest has checked the image.
        Ok(Self::open(bytes, &Limits { max_pixels: u64::MAX })?.turned(orientation.of(bytes)))
    }

    /// Sets the orientation; size, regions and pixels are then those of the upright image.
    #[must_use]
    pub fn turned(mut self, orientation: Orientation) -> Self {
        self.orientation = orientation;
        self
    }

    /// Sets the entry points that a check of the same bytes found, which make decoding faster, with the same pixels.
    ///
    /// Entry points of another image give wrong pixels, or are ignored.
    #[must_use]
    pub fn with_entry_points(mut self, entry_points: Option<&'a [u8]>) -> Self {
        self.entry_points = entry_points;
        self
    }

    /// Returns the number of columns and rows.
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
    /// Decodes a region; its pixels equal those of [`decode`] for the whole image.
    ///
    /// A file that is corrupt only after the region may be accepted.
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
            // A panic may have left the decoder in any state.
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

    /// Decodes a region of the stored image; returns the number of planes.
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

#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing {
    //! Entry points for the fuzzer, and for tests of mutated files.

    use super::*;
    use crate::image::{DecodedImage, check};

    /// Limit of the decoded images.
    const LIMITS: Limits = Limits { max_pixels: 1 << 20 };
    /// Number of bytes before the file that choose the region and the orientation.
    const CHOICES: usize = 5;

    /// Decodes a region of a file both with the whole image and alone; the first bytes choose it.
    ///
    /// # Panics
    /// If the check accepts a file that does not decode, or the region's pixels differ from those of the whole image.
    pub fn region(bytes: &[u8]) -> bool {
        let Some((choices, file)) = bytes.split_first_chunk::<CHOICES>() else { return false };
        region_of(file, *choices).is_ok()
    }

    /// Returns the pixels of a region of a whole image, plane after plane.
    pub(in crate::image) fn cut(image: &DecodedImage, region: Region) -> Vec<u8> {
        let mut planes = Vec::with_capacity(3 * region.width * region.height);
        for channel in 0..3 {
            for row in region.top..region.top + region.height {
                let start = row * image.width as usize + region.left;
                let line = image.rgb.as_chunks::<3>().0[start..start + region.width].iter();
                planes.extend(line.map(|pixel| pixel[channel]));
            }
        }
        planes
    }

    /// Asserts that the region decodes to the whole image's pixels there.
    pub(in crate::image) fn assert_region(
        decoder: &mut RegionDecoder,
        encoded: &Encoded,
        region: Region,
        whole: &DecodedImage,
        what: &str,
    ) {
        let planes = decoder.decode(encoded, region, Channels::Rgb).expect("decoded, as the whole image is");
        let is_same = cut(whole, region).chunks(planes.samples.len()).all(|plane| plane == planes.samples);
        assert!(is_same, "{what} {}x{} {region:?} {encoded:?}", whole.width, whole.height);
    }

    /// # Errors
    /// If the file is rejected.
    pub(in crate::image) fn region_of(file: &[u8], choices: [u8; CHOICES]) -> Result<(), ImageError> {
        let apply = if choices[4] & 1 == 1 { ExifOrientation::Apply } else { ExifOrientation::Ignore };
        let orientation = apply.of(file);
        let (header, luma, entry_points) = check(file, &LIMITS)?;
        assert_eq!(
            luma.values.len(),
            header.width as usize * header.height as usize,
            "the brightness of each pixel"
        );
        let whole = decode(file, &LIMITS).expect("what the check accepts is decoded").turned(orientation);
        let encoded = Encoded::open(file, &LIMITS).expect("it is opened").turned(orientation);
        assert_eq!(encoded.size(), (whole.width, whole.height), "one size");
        let (width, height) = (whole.width as usize, whole.height as usize);
        let part = |choice: u8, of: usize| of * usize::from(choice) / 256;
        let (left, top) = (part(choices[0], width), part(choices[1], height));
        let region = Region {
            left,
            top,
            width: 1 + part(choices[2], width - left),
            height: 1 + part(choices[3], height - top),
        };
        let region = Region {
            width: region.width.min(width - left),
            height: region.height.min(height - top),
            ..region
        };
        let mut decoder = RegionDecoder::default();
        for points in [None, entry_points.as_deref()] {
            let encoded = encoded.clone().with_entry_points(points);
            assert_region(&mut decoder, &encoded, region, &whole, "mutated");
        }
        if let Some(mut damaged) = entry_points {
            // The pixels are wrong or those of a full decode, but there is no read outside of the file and no panic.
            let at = usize::from(u16::from_le_bytes([choices[0], choices[2]])) % damaged.len();
            damaged[at] ^= choices[4] | 1;
            let encoded = encoded.with_entry_points(Some(&damaged));
            decoder
                .decode(&encoded, region, Channels::Rgb)
                .expect("damaged entry points are no damaged image");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use turbojpeg::Subsamp;

    use super::fuzzing::{assert_region, cut};
    use super::*;
    use crate::image::tests::{compressed, noisy, with_restart_markers};
    use crate::image::{encode_png, entry_points};
    use crate::rng::{Purpose, Stream};
    use crate::simd::SimdLevel;

    /// Draws random regions of an image; the first one is the whole image.
    fn regions(stream: &mut Stream, width: u32, height: u32, count: usize) -> Vec<Region> {
        let whole = Region { left: 0, top: 0, width: width as usize, height: height as usize };
        let mut draw = || {
            let columns = 1 + stream.below(u64::from(width)) as usize;
            let rows = 1 + stream.below(u64::from(height)) as usize;
            Region {
                left: stream.below((width as usize - columns + 1) as u64) as usize,
                top: stream.below((height as usize - rows + 1) as u64) as usize,
                width: columns,
                height: rows,
            }
        };
        std::iter::once(whole).chain(std::iter::repeat_with(&mut draw).take(count)).collect()
    }

    /// Decodes regions of a file and compares them with libjpeg's whole image.
    fn check(decoder: &mut RegionDecoder, file: &[u8], stream: &mut Stream, count: usize, what: &str) {
        let whole = decode(file, &Limits::default()).expect("decoded");
        let encoded = Encoded::open(file, &Limits::default()).expect("opened");
        assert_eq!(encoded.size(), (whole.width, whole.height));
        let points = entry_points(file);
        for region in regions(stream, whole.width, whole.height, count) {
            for points in [None, points.as_deref()] {
                let encoded = encoded.clone().with_entry_points(points);
                assert_region(decoder, &encoded, region, &whole, what);
            }
        }
    }

    /// Decodes the samples of a region by the baseline decoder from entry points alone; they are equal at every level.
    fn from_points(file: &[u8], region: Region, points: &[u8]) -> Option<Vec<u8>> {
        let frame = Frame::parse(file).expect("a baseline JPEG");
        let at = |level| {
            let (decoder, mut samples) = (&mut BaselineDecoder::default(), Vec::new());
            let decoded = decoder.decode_from_entry_points(level, file, &frame, region, points, &mut samples);
            decoded.map(|()| samples)
        };
        let portable = at(SimdLevel::Portable);
        SimdLevel::available().into_iter().for_each(|level| assert_eq!(at(level), portable, "{level:?}"));
        portable
    }

    #[test]
    fn a_region_has_the_pixels_of_the_whole_image() {
        let mut decoder = RegionDecoder::default();
        let mut stream = Stream::new(2, Purpose::Test, 0, 0);
        let sizes = [(1, 1), (2, 3), (5, 4), (6, 2), (7, 9), (16, 16), (17, 33), (203, 61), (130, 300)];
        for (index, (width, height)) in sizes.into_iter().enumerate() {
            let image = noisy(width, height, index as u64);
            for subsamp in [Subsamp::None, Subsamp::Sub2x1, Subsamp::Sub2x2, Subsamp::Gray] {
                for (quality, optimize) in [(10, true), (75, false), (98, true), (100, false)] {
                    let file = compressed(&image, subsamp, quality, optimize, false);
                    check(&mut decoder, &file, &mut stream, 12, &format!("{subsamp:?} {quality}"));
                }
            }
        }
    }

    #[test]
    fn what_libjpeg_has_to_decode_gives_the_same_pixels_too() {
        let mut decoder = RegionDecoder::default();
        let mut stream = Stream::new(4, Purpose::Test, 0, 0);
        let image = noisy(90, 70, 3);
        for subsamp in [Subsamp::Sub1x2, Subsamp::Sub4x1] {
            check(&mut decoder, &compressed(&image, subsamp, 90, false, false), &mut stream, 5, "unusual");
        }
        check(
            &mut decoder,
            &compressed(&image, Subsamp::Sub2x2, 90, true, true),
            &mut stream,
            5,
            "progressive",
        );
        check(&mut decoder, &encode_png(&image).expect("encoded"), &mut stream, 5, "PNG");
    }

    #[test]
    fn luma_is_that_of_the_file() {
        let image = noisy(120, 80, 6);
        let colour = compressed(&image, Subsamp::Sub2x2, 90, false, false);
        let mut transform = turbojpeg::Transform::default();
        transform.gray = true;
        let grey = turbojpeg::transform(&transform, &colour).expect("chroma is left out");
        let region = Region { left: 13, top: 7, width: 71, height: 50 };
        let mut decoder = RegionDecoder::default();
        let encoded = Encoded::open(&colour, &Limits::default()).expect("opened");
        let planes = decoder.decode(&encoded, region, Channels::Luma).expect("decoded");
        assert_eq!(planes.count, 1);
        let expected = cut(&decode(&grey, &Limits::default()).expect("decoded"), region);
        assert_eq!(planes.samples, &expected[..71 * 50]);
    }

    #[test]
    fn a_cut_or_damaged_image_is_rejected_as_libjpeg_rejects_it() {
        let file = compressed(&noisy(160, 120, 7), Subsamp::None, 90, false, false);
        let mut decoder = RegionDecoder::default();
        let whole = Region { left: 0, top: 0, width: 160, height: 120 };
        let mut stream = Stream::new(5, Purpose::Test, 0, 0);
        for round in 0..400 {
            let mut broken = file.clone();
            if round % 2 == 0 {
                broken.truncate(700 + stream.below(broken.len() as u64 - 700) as usize);
            } else {
                let at = 640 + stream.below(broken.len() as u64 - 640) as usize;
                broken[at] ^= 1 << stream.below(8);
            }
            let Ok(encoded) = Encoded::open(&broken, &Limits::default()) else { continue };
            let expected = decode(&broken, &Limits::default());
            let planes = decoder.decode(&encoded, whole, Channels::Rgb);
            match (planes, expected) {
                (Ok(planes), Ok(image)) => assert_eq!(planes.samples, cut(&image, whole)),
                // libjpeg also reads the data after the last row.
                (Ok(_), Err(_)) => assert!(round % 2 == 1 || broken.len() + 2 >= file.len()),
                (Err(error), expected) => assert_eq!(expected, Err(error)),
            }
        }
    }

    #[test]
    fn entry_points_are_used_wherever_there_are_any() {
        let mut stream = Stream::new(8, Purpose::Test, 0, 0);
        for subsamp in [Subsamp::None, Subsamp::Sub2x1, Subsamp::Sub2x2, Subsamp::Gray] {
            let file = compressed(&noisy(300, 170, 9), subsamp, 90, true, false);
            let points = entry_points(&file).expect("a baseline JPEG has entry points");
            let whole = decode(&file, &Limits::default()).expect("decoded");
            for region in regions(&mut stream, 300, 170, 30) {
                let samples = from_points(&file, region, &points).expect("decoded from them");
                assert_eq!(samples, cut(&whole, region)[..samples.len()], "{subsamp:?} {region:?}");
            }
        }
        for (name, file) in with_restart_markers() {
            assert_eq!(entry_points(file), None, "{name}");
        }
    }

    #[test]
    fn damaged_entry_points_never_fail_an_image() {
        let mut stream = Stream::new(9, Purpose::Test, 0, 0);
        let mut decoder = RegionDecoder::default();
        let file = compressed(&noisy(200, 90, 4), Subsamp::Sub2x2, 85, true, false);
        let points = entry_points(&file).expect("entry points");
        let encoded = Encoded::open(&file, &Limits::default()).expect("opened");
        for region in regions(&mut stream, 200, 90, 2000) {
            let mut damaged = points.clone();
            let at = stream.below(damaged.len() as u64) as usize;
            match stream.below(4) {
                0 => damaged.truncate(at),
                1 => damaged[at..].fill(0xFF),
                2 => damaged.extend_from_slice(&points[..at]),
                _ => damaged[at] ^= 1 << stream.below(8),
            }
            let encoded = encoded.clone().with_entry_points(Some(&damaged));
            let planes = decoder.decode(&encoded, region, Channels::Rgb).expect("decoded");
            assert_eq!(planes.samples.len(), 3 * region.width * region.height);
        }
    }
}
