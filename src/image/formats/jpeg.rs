//! JPEG through libjpeg-turbo.

use std::cell::RefCell;

use memchr::memchr;
use turbojpeg::{Colorspace, Compressor, Decompressor, Image, PixelFormat, Subsamp, Transform, Transformer};

use crate::image::baseline::{BaselineDecoder, Frame};
use crate::image::{Channels, Colour, DecodedImage, Format, Header, ImageError, Region};

/// Warnings of libjpeg for images that are whole, as in Pillow. Any other warning means lost pixels.
const HARMLESS_WARNINGS: [&str; 5] = [
    EXTRANEOUS_BYTES,
    "JFIF revision",
    "Invalid SOS parameters",
    "bad ICC marker",
    "Unknown Adobe color transform",
];
const EXTRANEOUS_BYTES: &str = "extraneous bytes before marker";
/// Warning of bytes after the last scan, which are not decoded.
const EXTRANEOUS_AT_END: &str = "extraneous bytes before marker 0xd9";

/// Maximum number of scans of a progressive JPEG; each costs a full decode, and a file of 100 kB can have thousands.
const MOST_SCANS: u32 = 100;

thread_local! {
    /// Decompressor of each thread; making one costs more than decoding a thumbnail.
    static DECOMPRESSOR: RefCell<Option<Decompressor>> = const { RefCell::new(None) };
}

fn with_decompressor<T>(
    work: impl FnOnce(&mut Decompressor) -> Result<T, turbojpeg::Error>,
) -> Result<T, ImageError> {
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            None => slot.insert(decompressor().map_err(|error| corrupt(&error))?),
        };
        let result = work(decompressor).map_err(|error| corrupt(&error));
        if result.is_err() {
            // After an error in a header, a decompressor continues inside this image and would reject every later one.
            *slot = None;
        }
        result
    })
}

fn decompressor() -> Result<Decompressor, turbojpeg::Error> {
    let mut decompressor = Decompressor::new()?;
    decompressor.set_scan_limit(MOST_SCANS)?;
    Ok(decompressor)
}

fn corrupt(error: &turbojpeg::Error) -> ImageError {
    let text = match error {
        turbojpeg::Error::TurboJpegError(text) => text.clone(),
        other => other.to_string(),
    };
    ImageError::Corrupt { format: "JPEG", reason: text }
}

fn is_harmless(error: &ImageError) -> bool {
    let ImageError::Corrupt { reason, .. } = error else { return false };
    HARMLESS_WARNINGS.iter().any(|warning| reason.contains(warning))
}

pub(crate) fn probe(bytes: &[u8]) -> Result<Header, ImageError> {
    let read = |bytes: &[u8]| with_decompressor(|decompressor| decompressor.read_header(bytes));
    let header = match read(bytes) {
        Err(error) if is_harmless(&error) => read(&without_harmless_flaws(bytes))?,
        other => other?,
    };
    let side = |value: usize| u32::try_from(value).expect("JPEG sides have 16 bits");
    Ok(Header {
        format: Format::Jpeg,
        width: side(header.width),
        height: side(header.height),
        colour: match header.colorspace {
            Colorspace::Gray => Colour::Grey,
            Colorspace::CMYK | Colorspace::YCCK => Colour::Cmyk,
            _ => Colour::Rgb,
        },
    })
}

pub(crate) fn decode(bytes: &[u8], header: Header) -> Result<DecodedImage, ImageError> {
    let rgb = match header.colour {
        Colour::Grey => decode_grey(bytes, header)?.into_iter().flat_map(|value| [value; 3]).collect(),
        Colour::Rgb => decode_as(bytes, header, PixelFormat::RGB)?,
        Colour::Cmyk => rgb_from_inverted_cmyk(&decode_inks(bytes, header)?),
    };
    Ok(DecodedImage { width: header.width, height: header.height, rgb })
}

pub(crate) fn decode_grey(bytes: &[u8], header: Header) -> Result<Vec<u8>, ImageError> {
    decode_as(bytes, header, PixelFormat::GRAY)
}

/// Decodes the four inks of each pixel, as stored.
pub(crate) fn decode_inks(bytes: &[u8], header: Header) -> Result<Vec<u8>, ImageError> {
    decode_as(bytes, header, PixelFormat::CMYK)
}

fn decode_as(bytes: &[u8], header: Header, format: PixelFormat) -> Result<Vec<u8>, ImageError> {
    let (width, height) = (header.width as usize, header.height as usize);
    let pitch = width * format.size();
    let mut pixels = vec![0; pitch * height];
    let mut decode = |bytes: &[u8]| {
        let output = Image { pixels: pixels.as_mut_slice(), width, pitch, height, format };
        with_decompressor(|decompressor| decompressor.decompress(bytes, output))
    };
    let mut decoded = decode(bytes);
    if decoded.as_ref().is_err_and(is_harmless) {
        // libjpeg reports only the first warning; without its cause it reports the next.
        decoded = decode(&without_harmless_flaws(bytes));
    }
    match decoded {
        Err(ImageError::Corrupt { reason, .. })
            if reason.contains(EXTRANEOUS_AT_END)
                || (reason.contains(EXTRANEOUS_BYTES) && is_whole(bytes)) => {}
        other => other?,
    }
    Ok(pixels)
}

/// Returns whether each part between restart markers has the data of all its blocks, and maybe more.
///
/// False for a kind that only libjpeg decodes, for which this is unknown.
fn is_whole(bytes: &[u8]) -> bool {
    let bytes = without_harmless_flaws(bytes);
    let Some(frame) = Frame::parse(&bytes) else { return false };
    let region = Region { left: 0, top: 0, width: frame.width, height: frame.height };
    let decoded =
        BaselineDecoder::default().decode(&bytes, &frame, region, Channels::Luma, None, &mut Vec::new());
    decoded.is_some() && has_end(&bytes)
}

/// Converts CMYK to RGB. JPEG files store CMYK inverted, by Adobe's convention, so 255 is without ink.
///
/// # Source
/// Pillow, `Convert.c` (`cmyk2rgb`) after its JPEG plugin's `CMYK;I`.
pub(crate) fn rgb_from_inverted_cmyk(pixels: &[u8]) -> Vec<u8> {
    let scaled = |ink: u8, paper: u8| {
        let product = u32::from(ink) * u32::from(paper) + 128;
        (((product >> 8) + product) >> 8) as u8
    };
    pixels
        .chunks_exact(4)
        .flat_map(|pixel| {
            let paper = pixel[3];
            [0, 1, 2].map(|channel| paper.saturating_sub(scaled(255 - pixel[channel], paper)))
        })
        .collect()
}

/// Encodes as baseline JPEG with 4:2:0 subsampling.
///
/// # Errors
/// If the image is larger than JPEG allows.
pub fn encode(image: &DecodedImage, quality: u8) -> Result<Vec<u8>, ImageError> {
    let failed = |error: turbojpeg::Error| ImageError::Encode { reason: error.to_string() };
    let mut compressor = Compressor::new().map_err(failed)?;
    compressor.set_quality(i32::from(quality)).map_err(failed)?;
    compressor.set_subsamp(Subsamp::Sub2x2).map_err(failed)?;
    let image = Image {
        pixels: image.rgb.as_slice(),
        width: image.width as usize,
        pitch: image.width as usize * 3,
        height: image.height as usize,
        format: PixelFormat::RGB,
    };
    compressor.compress_to_vec(image).map_err(failed)
}

/// Rewrites a JPEG as one scan with the same coefficients.
pub(crate) fn to_baseline(bytes: &[u8]) -> Result<Vec<u8>, ImageError> {
    // The transformer has no limit.
    if memchr::memmem::find_iter(bytes, &[0xFF, 0xDA]).count() > MOST_SCANS as usize {
        let reason = format!("it has more than {MOST_SCANS} scans");
        return Err(ImageError::Corrupt { format: "JPEG", reason });
    }
    let mut transform = Transform::default();
    transform.optimize = true;
    let mut transformer = Transformer::new().map_err(|error| corrupt(&error))?;
    transformer.transform_to_vec(&transform, bytes).map_err(|error| corrupt(&error))
}

const START: u8 = 0xD8;
const END: u8 = 0xD9;
const SCAN: u8 = 0xDA;
/// Last parameters of a scan's header that select all coefficients with all their bits.
const WHOLE_SPECTRUM: [u8; 3] = [0, 63, 0];

/// A marker followed by a length, with its payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment<'a> {
    /// Second byte of the marker.
    pub marker: u8,
    /// Payload without the length.
    pub payload: &'a [u8],
    /// Offset after the segment.
    end: usize,
}

/// Iterates over the segments up to the header of the first scan, which is the last one.
pub(crate) fn header_segments(bytes: &[u8]) -> impl Iterator<Item = Segment<'_>> {
    let mut at = Some(2);
    std::iter::from_fn(move || {
        loop {
            let (marker, behind) = next_marker(bytes, at?)?;
            at = Some(behind);
            if stands_alone(marker) {
                continue;
            }
            let payload = payload(bytes, behind)?;
            let end = behind + 2 + payload.len();
            at = (marker != SCAN).then_some(end);
            return Some(Segment { marker, payload, end });
        }
    })
}

/// Finds the next marker; returns it and the offset after it. As in libjpeg, other bytes may come before a marker.
fn next_marker(bytes: &[u8], mut at: usize) -> Option<(u8, usize)> {
    loop {
        at += memchr(0xFF, bytes.get(at..)?)?;
        while *bytes.get(at)? == 0xFF {
            at += 1;
        }
        if bytes[at] != 0 {
            return Some((bytes[at], at + 1));
        }
    }
}

fn stands_alone(marker: u8) -> bool {
    is_restart(marker) || matches!(marker, START | END | 0x01)
}

fn is_restart(marker: u8) -> bool {
    matches!(marker, 0xD0..=0xD7)
}

fn is_frame(marker: u8) -> bool {
    matches!(marker, 0xC0..=0xCF) && !matches!(marker, 0xC4 | 0xC8 | 0xCC)
}

/// Returns the payload after a marker, by its length.
fn payload(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let len = usize::from(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
    bytes.get(at + 2..at + len)
}

pub(crate) fn is_progressive(bytes: &[u8]) -> bool {
    let frame = header_segments(bytes).find(|segment| is_frame(segment.marker));
    frame.is_some_and(|frame| matches!(frame.marker, 0xC2 | 0xC6 | 0xCA | 0xCE))
}

/// Returns whether there is an end marker after the start of a scan; a thumbnail in the header has one too.
pub(crate) fn has_end(bytes: &[u8]) -> bool {
    let scan = header_segments(bytes).find(|segment| segment.marker == SCAN);
    scan.is_some_and(|scan| memchr::memmem::find(&bytes[scan.end..], &[0xFF, END]).is_some())
}

/// Returns the same image without the header flaws of which libjpeg would warn, although no pixel depends on them.
///
/// This removes bytes between segments, comments, application segments except for hints at the colour space, and bytes
/// after the end. An unknown JFIF revision or transform becomes the one that libjpeg assumes, as do the parameters of
/// scans that allow only one value. The data of the scans are kept.
fn without_harmless_flaws(bytes: &[u8]) -> Vec<u8> {
    let frame = header_segments(bytes).find(|segment| is_frame(segment.marker));
    let components = frame.and_then(|frame| frame.payload.get(5).copied());
    let is_sequential = frame.is_some_and(|frame| matches!(frame.marker, 0xC0 | 0xC1 | 0xC9));
    let mut clean = Vec::with_capacity(bytes.len());
    clean.extend_from_slice(&[0xFF, START]);
    let mut at = 2;
    // Offset of a scan's data that are not copied yet.
    let mut data = None;
    while let Some((marker, behind)) = next_marker(bytes, at) {
        at = behind;
        if data.is_some() && is_restart(marker) {
            continue;
        }
        if let Some(start) = data.take() {
            clean.extend_from_slice(&bytes[start..behind - 2]);
        }
        if marker == END {
            clean.extend_from_slice(&[0xFF, END]);
            return clean;
        }
        if stands_alone(marker) {
            continue;
        }
        let Some(payload) = payload(bytes, behind) else {
            // libjpeg reports the fault here.
            clean.extend_from_slice(&bytes[behind - 2..]);
            return clean;
        };
        at = behind + 2 + payload.len();
        let start = clean.len() + 4;
        let keep = match marker {
            0xE0 => payload.starts_with(b"JFIF\0") && payload.len() >= 14,
            0xEE => payload.starts_with(b"Adobe") && payload.len() >= 12,
            0xE1..=0xEF | 0xFE => false,
            _ => true,
        };
        if keep {
            clean.extend_from_slice(&[0xFF, marker]);
            clean.extend_from_slice(&bytes[behind..at]);
        }
        match marker {
            0xE0 if keep => clean[start + 5] = 1,
            0xEE if keep => {
                let transform = &mut clean[start + 11];
                *transform = match (components, *transform) {
                    (Some(3), known @ (0 | 1)) | (Some(4), known @ (0 | 2)) => known,
                    (Some(4), _) => 2,
                    _ => 1,
                };
            }
            SCAN => {
                if is_sequential && let Some(parameters) = clean[start..].last_chunk_mut::<3>() {
                    *parameters = WHOLE_SPECTRUM;
                }
                data = Some(at);
            }
            _ => {}
        }
    }
    if let Some(start) = data {
        clean.extend_from_slice(&bytes[start..]);
    }
    clean
}
