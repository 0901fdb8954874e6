//! JPEG through libjpeg-turbo.

use std::cell::RefCell;

use turbojpeg::{Colorspace, Compressor, Decompressor, Image, PixelFormat, Subsamp, Transform, Transformer};

use self::markers::without_harmless_flaws;
use crate::image::baseline::{BaselineDecoder, Frame};
use crate::image::{Channels, Colour, DecodedImage, Format, Header, ImageError, Region};

mod markers;

pub(crate) use self::markers::{has_end, header_segments, is_progressive};

/// What libjpeg warns of although the image is whole, as in Pillow. Any other warning means lost pixels.
const HARMLESS_WARNINGS: [&str; 5] = [
    EXTRANEOUS_BYTES,
    "JFIF revision",
    "Invalid SOS parameters",
    "bad ICC marker",
    "Unknown Adobe color transform",
];
const EXTRANEOUS_BYTES: &str = "extraneous bytes before marker";
/// Behind the last scan nothing is decoded.
const EXTRANEOUS_AT_END: &str = "extraneous bytes before marker 0xd9";

/// Scans of a progressive JPEG; each costs the time of a whole decode, and a file of 100 kB can name thousands.
const MOST_SCANS: u32 = 100;

thread_local! {
    /// A decompressor for each thread: making one costs more than decoding a thumbnail.
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
            // After an error in a header it would reject every later image: it goes on in the middle of this one.
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

/// The brightness of a grey image.
pub(crate) fn decode_grey(bytes: &[u8], header: Header) -> Result<Vec<u8>, ImageError> {
    decode_as(bytes, header, PixelFormat::GRAY)
}

/// The four inks of a pixel as they are stored.
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
        // libjpeg reports the first warning alone: without the cause of that one, it reports the next.
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

/// Whether each part between restart markers has the data of all its blocks, and maybe more.
///
/// False for a kind that only libjpeg decodes: nothing is known of it.
fn is_whole(bytes: &[u8]) -> bool {
    let bytes = without_harmless_flaws(bytes);
    let Some(frame) = Frame::parse(&bytes) else { return false };
    let region = Region { left: 0, top: 0, width: frame.width, height: frame.height };
    let decoded =
        BaselineDecoder::default().decode(&bytes, &frame, region, Channels::Luma, None, &mut Vec::new());
    decoded.is_some() && has_end(&bytes)
}

/// JPEG files hold CMYK inverted, by Adobe's convention; so 255 is without ink.
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

pub(crate) fn encode(image: &DecodedImage, quality: u8) -> Result<Vec<u8>, ImageError> {
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

/// The same coefficients as one scan.
pub(crate) fn to_baseline(bytes: &[u8]) -> Result<Vec<u8>, ImageError> {
    // The transformer itself knows no limit.
    if memchr::memmem::find_iter(bytes, &[0xFF, 0xDA]).count() > MOST_SCANS as usize {
        let reason = format!("it has more than {MOST_SCANS} scans");
        return Err(ImageError::Corrupt { format: "JPEG", reason });
    }
    let mut transform = Transform::default();
    transform.optimize = true;
    let mut transformer = Transformer::new().map_err(|error| corrupt(&error))?;
    transformer.transform_to_vec(&transform, bytes).map_err(|error| corrupt(&error))
}
