//! Luma of an image: the cheapest check that reads every coefficient.

use std::cell::RefCell;

use super::baseline::{BaselineDecoder, Frame};
use super::formats::jpeg;
use super::guard;
use super::{Colour, DecodedImage, Format, Header, ImageError, Limits, decode, probe};

/// Maximum number of pixels; larger images are left to libjpeg, since each thread keeps the decoder's buffers.
const MOST_KEPT_PIXELS: usize = 1 << 24;

thread_local! {
    static DECODER: RefCell<Option<Box<BaselineDecoder>>> = RefCell::default();
}

/// Luma of an image.
///
/// Invariant: `values` holds `height * width` bytes, row after row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Luma {
    /// Number of columns.
    pub width: u32,
    /// Number of rows.
    pub height: u32,
    /// Values; 0 is black.
    pub values: Vec<u8>,
}

/// Checks an image as [`super::decode`] does, with the decoder and the pixel format that will decode it. Returns its
/// luma, and the entry points of a baseline JPEG, with which a region is decoded without the rest.
///
/// Reads every coefficient of a baseline JPEG, but computes no colours. Errors of any other JPEG have libjpeg's text.
///
/// # Errors
/// As [`super::decode`].
pub fn check(bytes: &[u8], limits: &Limits) -> Result<(Header, Luma, Option<Vec<u8>>), ImageError> {
    let header = probe(bytes)?;
    limits.check(header.size())?;
    if header.format != Format::Jpeg || header.colour == Colour::Cmyk {
        return Ok((header, luma(&decode(bytes, limits)?), None));
    }
    let checked = || match with_decoder(bytes, BaselineDecoder::check) {
        Some(checked) => Ok(checked),
        None if header.colour == Colour::Grey => Ok((jpeg::decode_grey(bytes, header)?, None)),
        None => Ok((luma(&jpeg::decode(bytes, header)?).values, None)),
    };
    let (values, entry_points) = guard(header.format.name(), checked)?;
    Ok((header, Luma { width: header.width, height: header.height, values }, entry_points))
}

/// Finds the entry points of an image that was checked, equal to those of [`check`], without computing pixels.
pub fn entry_points(bytes: &[u8]) -> Option<Vec<u8>> {
    let found = guard(Format::Jpeg.name(), || Ok(with_decoder(bytes, BaselineDecoder::entry_points)));
    found.ok().flatten()
}

/// Returns whether the result of [`check`] equals that of libjpeg alone, including the error's text.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn check_is_libjpegs(bytes: &[u8], limits: &Limits) -> bool {
    match (check(bytes, limits), probe(bytes)) {
        (found, Ok(header)) if header.format == Format::Jpeg && limits.check(header.size()).is_ok() => {
            found.map(drop) == jpeg::decode(bytes, header).map(drop)
        }
        (found, Ok(_)) => found.map(drop) == decode(bytes, limits).map(drop),
        (found, Err(_)) => found.is_err(),
    }
}

/// Calls `work` with this thread's decoder; `None` also for a file that is not a baseline JPEG, and for a huge one.
fn with_decoder<T>(
    bytes: &[u8],
    work: impl FnOnce(&mut BaselineDecoder, &[u8], &Frame) -> Option<T>,
) -> Option<T> {
    let frame = Frame::parse(bytes)?;
    if frame.width * frame.height > MOST_KEPT_PIXELS {
        return None;
    }
    DECODER.with_borrow_mut(|slot| {
        // Taken out, so that a decoder that panics is not used again.
        let mut decoder = slot.take().unwrap_or_default();
        let found = work(&mut decoder, bytes, &frame);
        *slot = Some(decoder);
        found
    })
}

/// # Source
/// ITU-R BT.601, as in JPEG, in 16-bit fixed point.
pub fn luma(image: &DecodedImage) -> Luma {
    let weigh = |pixel: &[u8; 3]| {
        let [red, green, blue] = pixel.map(u32::from);
        ((19_595 * red + 38_470 * green + 7_471 * blue + (1 << 15)) >> 16) as u8
    };
    let values = image.rgb.as_chunks::<3>().0.iter().map(weigh).collect();
    Luma { width: image.width, height: image.height, values }
}

#[cfg(test)]
mod tests {
    use turbojpeg::Subsamp;

    use super::*;
    use crate::image::tests::{compressed, noisy, with_restart_markers};
    use crate::rng::{Purpose, Stream};

    fn files() -> Vec<Vec<u8>> {
        let mut files = with_restart_markers().map(|(_, file)| file.to_vec()).to_vec();
        for (number, subsamp) in
            [Subsamp::None, Subsamp::Sub2x1, Subsamp::Sub2x2, Subsamp::Gray].into_iter().enumerate()
        {
            for optimize in [false, true] {
                let image = noisy(50, 37, number as u64);
                let file = compressed(&image, subsamp, 60, optimize, false);
                files.push(file);
            }
        }
        files
    }

    fn baseline_luma(file: &[u8]) -> Option<Vec<u8>> {
        with_decoder(file, BaselineDecoder::check).map(|(luma, _)| luma)
    }

    #[test]
    fn whole_baseline_images_do_not_need_libjpeg() {
        for file in files() {
            assert!(baseline_luma(&file).is_some());
            assert!(check_is_libjpegs(&file, &Limits::default()));
        }
    }

    #[test]
    fn entry_points_are_found_with_pixels_or_without() {
        for file in files() {
            let (_, _, with_pixels) = check(&file, &Limits::default()).expect("accepted");
            assert_eq!(entry_points(&file), with_pixels);
        }
    }

    #[test]
    fn a_damaged_image_gets_the_verdict_that_libjpeg_gives() {
        let mut stream = Stream::new(11, Purpose::Test, 0, 0);
        let (mut rejected, mut taken) = (0, 0);
        for file in files() {
            for _ in 0..400 {
                let mut damaged = file.clone();
                let at = stream.below(damaged.len() as u64) as usize;
                match stream.below(5) {
                    0 => damaged.truncate(at),
                    1 => damaged[at] ^= 1 << stream.below(8),
                    2 => damaged[at] = 0xFF,
                    3 => drop(damaged.remove(at)),
                    _ => damaged.insert(at, stream.below(256) as u8),
                }
                assert!(check_is_libjpegs(&damaged, &Limits::default()), "byte {at} of {}", file.len());
                let counter =
                    if check(&damaged, &Limits::default()).is_ok() { &mut taken } else { &mut rejected };
                *counter += 1;
            }
        }
        assert!(rejected > 500 && taken > 500, "{rejected} rejected, {taken} taken");
    }

    #[test]
    fn what_libjpeg_only_warns_of_is_left_to_it() {
        let file = compressed(&noisy(40, 40, 5), Subsamp::None, 80, false, false);
        let end = file.len() - 2;
        let without_end = file[..end].to_vec();
        let mut more_data = file.clone();
        more_data.splice(end..end, [1, 2, 3]);
        let mut other_marker = file.clone();
        other_marker.splice(end..end, [0xFF, 0xFE, 0, 4, b'h', b'i']);
        for (changed, accepted) in [(without_end, false), (more_data, true), (other_marker, true)] {
            assert!(baseline_luma(&changed).is_none());
            assert_eq!(check(&changed, &Limits::default()).is_ok(), accepted);
        }
        // Any bytes may follow the end.
        let mut behind = file.clone();
        behind.extend_from_slice(b"more");
        assert_eq!(baseline_luma(&behind), baseline_luma(&file));
    }

    #[test]
    fn the_brightness_is_that_of_the_decoded_image() {
        let file = compressed(&noisy(33, 20, 9), Subsamp::None, 100, false, false);
        let (_, found, _) = check(&file, &Limits::default()).expect("accepted");
        let expected = luma(&decode(&file, &Limits::default()).expect("decoded"));
        assert!(found.values.iter().zip(&expected.values).all(|(a, b)| a.abs_diff(*b) <= 2));
    }

    /// Found by the fuzzer: tables with the symbols 0x30 and 0x40, which mean nothing in a baseline file.
    #[test]
    fn tables_with_symbols_that_no_encoder_writes_are_left_to_libjpeg() {
        let first = include_bytes!("../../tests/golden/run_without_value.jpg");
        // The fuzzer's input has a byte before the file, which chooses the options of the check.
        let second = &include_bytes!("../../fuzz/findings/image-subsampled")[1..];
        for file in [&first[..], second] {
            assert!(baseline_luma(file).is_none());
            assert!(check_is_libjpegs(file, &Limits::default()));
        }
    }
}
