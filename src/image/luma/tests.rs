use super::super::tests::support::{compressed, noisy, with_restart_markers};
use super::*;
use crate::image::decode;
use crate::rng::{Purpose, Stream};
use turbojpeg::Subsamp;

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

fn fast(file: &[u8]) -> Option<Vec<u8>> {
    checked_baseline(file).map(|checked| checked.luma)
}

#[test]
fn whole_baseline_images_do_not_need_libjpeg() {
    for file in files() {
        assert!(fast(&file).is_some());
        assert!(check_is_libjpegs(&file, &Limits::default()));
    }
}

#[test]
fn entry_points_are_found_with_pixels_or_without() {
    for file in files() {
        let (_, _, with_pixels) = check_and_index(&file, &Limits::default()).expect("accepted");
        assert_eq!(entry_points(&file), with_pixels);
    }
}

#[test]
fn a_damaged_image_gets_the_verdict_that_libjpeg_gives() {
    let mut stream = Stream::new(11, Purpose::Test, 0, 0);
    let (mut refused, mut taken) = (0, 0);
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
            let counter = if check(&damaged, &Limits::default()).is_ok() { &mut taken } else { &mut refused };
            *counter += 1;
        }
    }
    assert!(refused > 500 && taken > 500, "{refused} refused, {taken} taken");
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
        assert!(fast(&changed).is_none());
        assert_eq!(check(&changed, &Limits::default()).is_ok(), accepted);
    }
    // Behind the end anything may come.
    let mut behind = file.clone();
    behind.extend_from_slice(b"more");
    assert_eq!(fast(&behind), fast(&file));
}

#[test]
fn the_brightness_is_that_of_the_decoded_image() {
    let file = compressed(&noisy(33, 20, 9), Subsamp::None, 100, false, false);
    let (_, found) = check(&file, &Limits::default()).expect("accepted");
    let expected = luma(&decode(&file, &Limits::default()).expect("decoded"));
    assert!(found.values.iter().zip(&expected.values).all(|(a, b)| a.abs_diff(*b) <= 2));
}

/// Found by the fuzzer: tables with the symbols 0x30 and 0x40, which mean nothing in a baseline file.
#[test]
fn tables_with_symbols_that_no_encoder_writes_are_left_to_libjpeg() {
    let first = include_bytes!("../../../tests/golden/run_without_value.jpg");
    // Before the file the fuzzer's input has a byte that chooses how it is looked at.
    let second = &include_bytes!("../../../fuzz/findings/image-subsampled")[1..];
    for file in [&first[..], second] {
        assert!(fast(file).is_none());
        assert!(check_is_libjpegs(file, &Limits::default()));
    }
}
