//! A way in for the fuzzer, and for tests of mutated files.

use super::{
    Channels, Encoded, ExifOrientation, ImageError, Limits, Region, RegionDecoder, check_and_index, decode,
};

/// Pixels of the largest image that is decoded here.
const LIMITS: Limits = Limits { max_pixels: 1 << 20 };
/// Bytes before the file that choose the region, and whether upright.
const CHOICES: usize = 5;

/// Decodes a region of a file whole and by itself; the first bytes choose it.
///
/// # Panics
/// If the check accepts what cannot be decoded, or a region has other pixels than the whole image.
pub fn region(bytes: &[u8]) -> bool {
    let Some((choices, file)) = bytes.split_first_chunk::<CHOICES>() else { return false };
    region_of(file, *choices).is_ok()
}

/// # Errors
/// If the file is rejected.
pub(super) fn region_of(file: &[u8], choices: [u8; CHOICES]) -> Result<(), ImageError> {
    let apply = if choices[4] & 1 == 1 { ExifOrientation::Apply } else { ExifOrientation::Ignore };
    let orientation = apply.of(file);
    let (header, luma, entry_points) = check_and_index(file, &LIMITS)?;
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
    let region =
        Region { width: region.width.min(width - left), height: region.height.min(height - top), ..region };
    let mut decoder = RegionDecoder::default();
    for points in [None, entry_points.as_deref()] {
        let encoded = encoded.clone().with_entry_points(points);
        let planes = decoder
            .decode(&encoded, region, Channels::Rgb)
            .expect("the region of an accepted image is decoded");
        for row in 0..region.height {
            for column in 0..region.width {
                let at = ((top + row) * width + left + column) * 3;
                let found = |channel: usize| {
                    let plane = channel.min(planes.count - 1) * region.width * region.height;
                    planes.samples[plane + row * region.width + column]
                };
                assert_eq!([0, 1, 2].map(found), whole.rgb[at..at + 3], "{region:?} at {column}, {row}");
            }
        }
    }
    if let Some(mut damaged) = entry_points {
        // Wrong pixels, or those of the usual way; never a read outside of the file, or a panic.
        let at = usize::from(u16::from_le_bytes([choices[0], choices[2]])) % damaged.len();
        damaged[at] ^= choices[4] | 1;
        let encoded = encoded.with_entry_points(Some(&damaged));
        decoder.decode(&encoded, region, Channels::Rgb).expect("damaged entry points are no damaged image");
    }
    Ok(())
}
