//! Images whose stored bytes are not the source's.

use super::*;
use crate::image::decode;

fn pixels(bytes: &[u8]) -> DecodedImage {
    decode(bytes, &Default::default()).expect("decoded")
}

#[test]
fn images_are_made_smaller_and_baseline_where_that_is_asked_for() {
    let large = encode_jpeg(&detailed(120, 90), 90).expect("encoded");
    let progressive = progressive();
    let images = [("large.jpg", large), ("progressive.jpg", progressive.clone())];
    let (accepted, _) = verdicts(&images, |options| {
        options.short_side = Some(45);
        options.baseline = true;
    });
    assert_eq!((accepted[1].width, accepted[1].height), (60, 45));
    assert_eq!(pixels(&accepted[1].bytes).width, 60);
    assert_ne!(accepted[2].bytes, progressive);
    assert_eq!(pixels(&accepted[2].bytes), pixels(&progressive), "not a pixel changes");
}

#[test]
fn a_image_that_is_small_enough_stays_as_it_is() {
    let images = [("fits.jpg", encode_jpeg(&detailed(60, 45), 90).expect("encoded"))];
    let (accepted, _) = verdicts(&images, |options| options.max_side = Some(60));
    assert_eq!(accepted[1].bytes, images[0].1);
}

#[test]
fn a_progressive_jpeg_that_smoothing_would_change_stays_as_it_is() {
    // Without its last scans it decodes without a warning, but libjpeg smooths over what is missing.
    let smooth = |at: u32| (at % 48 / 3 * 4 + at / 48 * 9) as u8;
    let rgb: Vec<u8> = (0..16 * 16 * 3).map(smooth).collect();
    let mut bytes = compressed(&rgb, PixelFormat::RGB, |compressor| {
        compressor.set_progressive(true).expect("progressive");
        compressor.set_quality(30).expect("quality");
    });
    let scans: Vec<usize> = (0..bytes.len() - 1).filter(|&at| bytes[at..at + 2] == [0xFF, 0xDA]).collect();
    bytes.truncate(scans[1]);
    bytes.extend_from_slice(&[0xFF, 0xD9]);
    let (accepted, refused) =
        verdicts(&[("first-scan.jpg", bytes.clone())], |options| options.baseline = true);
    assert_eq!(refused, []);
    let changed = crate::image::progressive_to_baseline(&bytes).expect("transcoded").expect("progressive");
    assert_ne!(pixels(&changed), pixels(&bytes), "the case is one");
    assert_eq!(accepted[1].bytes, bytes);
}

#[test]
fn a_bomb_or_thousands_of_scans_are_refused_before_anything_is_made_of_them() {
    let whole = progressive();
    let last = whole.windows(2).rposition(|pair| pair == [0xFF, 0xDA]).expect("a scan");
    let mut scans = whole[..last].to_vec();
    (0..5000).for_each(|_| scans.extend_from_slice(&whole[last..whole.len() - 2]));
    scans.extend_from_slice(&[0xFF, 0xD9]);
    let mut bomb = whole.clone();
    let frame = bomb.windows(2).position(|pair| pair == [0xFF, 0xC2]).expect("a frame");
    bomb[frame + 5..frame + 9].copy_from_slice(&[0xFF, 0xDC, 0xFF, 0xDC]);
    let images = [("bomb.jpg", bomb), ("scans.jpg", scans.clone())];
    for check in [CheckDepth::Full, CheckDepth::Header] {
        let (accepted, refused) = verdicts(&images, |options| {
            (options.check, options.baseline) = (check, true);
        });
        assert!(refused[0].1.contains("65500x65500 pixels are more than"), "{refused:?}");
        // The header is that of a good image; then it is left alone.
        match check {
            CheckDepth::Full => assert!(refused[1].1.contains("scans"), "{refused:?}"),
            CheckDepth::Header => assert_eq!(accepted[1].bytes, scans),
        }
    }
}
