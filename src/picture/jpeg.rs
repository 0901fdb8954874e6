//! JPEG through libjpeg-turbo.

use std::cell::RefCell;

use turbojpeg::{Colorspace, Compressor, Decompressor, Image, PixelFormat, Subsamp, Transform, Transformer};

use super::{Colour, Format, Header, Picture, PictureError};

/// What libjpeg warns of and a picture survives whole, as in Pillow. Any other warning means lost pixels.
const HARMLESS_WARNINGS: [&str; 3] =
    ["extraneous bytes before marker", "JFIF revision", "Invalid SOS parameters"];

/// Scans of a progressive JPEG; each costs the time of a whole decode, and a file of 100 kB can name thousands.
const MOST_SCANS: u32 = 100;

thread_local! {
    /// A decompressor for each thread: making one costs more than decoding a thumbnail.
    static DECOMPRESSOR: RefCell<Option<Decompressor>> = const { RefCell::new(None) };
}

fn with_decompressor<T>(
    work: impl FnOnce(&mut Decompressor) -> Result<T, turbojpeg::Error>,
) -> Result<T, PictureError> {
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            None => slot.insert(decompressor().map_err(|error| corrupt(&error))?),
        };
        let result = work(decompressor).map_err(|error| corrupt(&error));
        if result.is_err() {
            // After an error in a header it would refuse every picture that comes: it goes on in the middle of one.
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

fn corrupt(error: &turbojpeg::Error) -> PictureError {
    let text = match error {
        turbojpeg::Error::TurboJpegError(text) => text.clone(),
        other => other.to_string(),
    };
    PictureError::Corrupt { format: "JPEG", reason: text }
}

pub(super) fn probe(bytes: &[u8]) -> Result<Header, PictureError> {
    let header = with_decompressor(|decompressor| decompressor.read_header(bytes))?;
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

pub(super) fn decode(bytes: &[u8], header: Header) -> Result<Picture, PictureError> {
    let format = if header.colour == Colour::Cmyk { PixelFormat::CMYK } else { PixelFormat::RGB };
    let mut pixels = decode_as(bytes, header, format)?;
    if header.colour == Colour::Cmyk {
        pixels = rgb_from_inverted_cmyk(&pixels);
    }
    Ok(Picture { width: header.width, height: header.height, rgb: pixels })
}

/// The brightness alone; not of a picture in inks.
pub(super) fn decode_grey(bytes: &[u8], header: Header) -> Result<Vec<u8>, PictureError> {
    decode_as(bytes, header, PixelFormat::GRAY)
}

fn decode_as(bytes: &[u8], header: Header, format: PixelFormat) -> Result<Vec<u8>, PictureError> {
    let (width, height) = (header.width as usize, header.height as usize);
    let pitch = width * format.size();
    let mut pixels = vec![0; pitch * height];
    let output = Image { pixels: pixels.as_mut_slice(), width, pitch, height, format };
    let decoded = with_decompressor(|decompressor| decompressor.decompress(bytes, output));
    if let Err(PictureError::Corrupt { reason, .. }) = &decoded
        && !HARMLESS_WARNINGS.iter().any(|warning| reason.contains(warning))
    {
        decoded?;
    }
    Ok(pixels)
}

/// JPEG files hold CMYK inverted, by Adobe's convention; so 255 is no ink.
///
/// # Source
/// Pillow, `Convert.c` (`cmyk2rgb`) after its JPEG plugin's `CMYK;I`.
fn rgb_from_inverted_cmyk(pixels: &[u8]) -> Vec<u8> {
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

pub(super) fn encode(picture: &Picture, quality: u8) -> Result<Vec<u8>, PictureError> {
    let failed = |error: turbojpeg::Error| PictureError::Encode { reason: error.to_string() };
    let mut compressor = Compressor::new().map_err(failed)?;
    compressor.set_quality(i32::from(quality)).map_err(failed)?;
    compressor.set_subsamp(Subsamp::Sub2x2).map_err(failed)?;
    let image = Image {
        pixels: picture.rgb.as_slice(),
        width: picture.width as usize,
        pitch: picture.width as usize * 3,
        height: picture.height as usize,
        format: PixelFormat::RGB,
    };
    compressor.compress_to_vec(image).map_err(failed)
}

/// Whether the picture's frame is a progressive one.
pub(super) fn is_progressive(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some([0xFF, marker, high, low]) = bytes.get(at..at + 4) {
        match marker {
            0xC2 | 0xCA => return true,
            0xC0..=0xC3 | 0xC9..=0xCB | 0xDA => return false,
            0xFF => at += 1,
            _ => at += 2 + usize::from(u16::from_be_bytes([*high, *low])),
        }
    }
    false
}

/// Whether the end marker is there.
pub(super) fn has_end(bytes: &[u8]) -> bool {
    bytes.windows(2).rev().any(|pair| pair == [0xFF, 0xD9])
}

/// The same coefficients as one scan.
pub(super) fn to_baseline(bytes: &[u8]) -> Result<Vec<u8>, PictureError> {
    // The transformer itself knows no limit.
    if memchr::memmem::find_iter(bytes, &[0xFF, 0xDA]).count() > MOST_SCANS as usize {
        let reason = format!("it has more than {MOST_SCANS} scans");
        return Err(PictureError::Corrupt { format: "JPEG", reason });
    }
    let mut transform = Transform::default();
    transform.optimize = true;
    let mut transformer = Transformer::new().map_err(|error| corrupt(&error))?;
    transformer.transform_to_vec(&transform, bytes).map_err(|error| corrupt(&error))
}
