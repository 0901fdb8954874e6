use super::super::tests::support::{compressed, noisy, regions, with_restart_markers};
use super::*;
use crate::image::{DecodedImage, encode_png, entry_points};
use crate::rng::{Purpose, Stream};
use turbojpeg::Subsamp;

/// The pixels of a region of a whole image, by planes.
fn cut(image: &DecodedImage, region: Region) -> Vec<u8> {
    let mut planes = Vec::new();
    for channel in 0..3 {
        for row in region.top..region.top + region.height {
            for column in region.left..region.left + region.width {
                planes.push(image.rgb[(row * image.width as usize + column) * 3 + channel]);
            }
        }
    }
    planes
}

/// Decodes regions of a file and compares them with libjpeg's whole image.
fn check(decoder: &mut RegionDecoder, file: &[u8], stream: &mut Stream, count: usize, what: &str) {
    let whole = decode(file, &Limits::default()).expect("decoded");
    let encoded = Encoded::open(file, &Limits::default()).expect("opened");
    assert_eq!(encoded.size(), (whole.width, whole.height));
    let points = entry_points(file);
    for region in regions(stream, whole.width, whole.height, count) {
        let expected = cut(&whole, region);
        for points in [None, points.as_deref()] {
            let encoded = encoded.clone().with_entry_points(points);
            let planes = decoder.decode(&encoded, region, Channels::Rgb).expect("decoded");
            let same = if planes.count == 1 {
                expected.chunks(planes.samples.len()).all(|plane| plane == planes.samples)
            } else {
                planes.samples == expected
            };
            assert!(same, "{what} {}x{} {region:?} {}", whole.width, whole.height, points.is_some());
        }
    }
}

/// The samples of a region, decoded by the baseline decoder from entry points alone.
fn from_points(file: &[u8], region: Region, points: &[u8]) -> Option<Vec<u8>> {
    let frame = Frame::parse(file).expect("a baseline JPEG");
    let mut samples = Vec::new();
    let decoder = &mut BaselineDecoder::default();
    decoder.decode_from_entry_points(file, &frame, region, points, &mut samples).map(|()| samples)
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
    check(&mut decoder, &compressed(&image, Subsamp::Sub2x2, 90, true, true), &mut stream, 5, "progressive");
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
fn a_cut_or_damaged_image_is_refused_as_libjpeg_refuses_it() {
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
            // libjpeg also reads what is behind the last row.
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
