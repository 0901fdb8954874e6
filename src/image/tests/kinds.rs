//! Files of every kind, whole and mutated.

use std::io::Read;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::support::with_restart_markers;
use crate::image::fuzzing::region_of;
use crate::image::{DecodedImage, ExifOrientation, ImageError, Limits, check, check_header, decode, probe};
use crate::rng::{Purpose, Stream};

struct Golden {
    name: String,
    is_upright: bool,
    file: Vec<u8>,
    expected: DecodedImage,
}

/// What `generate_images.py` wrote.
fn goldens() -> Vec<Golden> {
    let text = include_str!("../../../tests/golden/images.json");
    let cases: Vec<Value> = serde_json::from_str(text).expect("JSON");
    let bytes = |value: &Value| STANDARD.decode(value.as_str().expect("text")).expect("base64");
    let side = |value: &Value| value.as_u64().expect("a number") as u32;
    let golden = |case: Value| {
        let mut rgb = Vec::new();
        flate2::read::ZlibDecoder::new(bytes(&case["rgb"]).as_slice()).read_to_end(&mut rgb).expect("packed");
        Golden {
            name: case["name"].as_str().expect("a name").to_owned(),
            is_upright: case["upright"].as_bool().expect("a flag"),
            file: bytes(&case["file"]),
            expected: DecodedImage { width: side(&case["width"]), height: side(&case["height"]), rgb },
        }
    };
    cases.into_iter().map(golden).collect()
}

#[test]
fn every_kind_has_the_pixels_that_pillow_gives_it() {
    for Golden { name, is_upright, file, expected } in goldens() {
        let apply = if is_upright { ExifOrientation::Apply } else { ExifOrientation::Ignore };
        let found = decode(&file, &Limits::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let found = found.turned(apply.of(&file));
        assert_eq!((found.width, found.height), (expected.width, expected.height), "{name}");
        assert!(found.rgb == expected.rgb, "{name} has other pixels");
        let header =
            check_header(&file, &Limits::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(probe(&file), Ok(header), "{name}");
    }
}

#[test]
fn regions_of_every_kind_are_those_of_the_whole_image() {
    let mut stream = Stream::new(21, Purpose::Test, 0, 0);
    for Golden { name, file, .. } in goldens() {
        for _ in 0..4 {
            let choices = std::array::from_fn(|_| stream.below(256) as u8);
            region_of(&file, choices).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}

/// A harmless flaw must not hide a grave one: libjpeg tells the first alone.
#[test]
fn a_cut_jpeg_is_rejected_whatever_is_wrong_with_its_header() {
    let is_one = |name: &str| name.starts_with("jpeg") && !name.contains("behind its end");
    for Golden { name, file, .. } in goldens().into_iter().filter(|golden| is_one(&golden.name)) {
        let scan = memchr::memmem::find(&file, b"\xFF\xDA").expect("a scan");
        let mut cut = file[..scan + (file.len() - scan) / 3].to_vec();
        for end in [&b""[..], b"\xFF\xD9"] {
            cut.extend_from_slice(end);
            let error = check(&cut, &Limits::default()).map(|(header, _)| header).expect_err(&name);
            assert!(matches!(error, ImageError::Corrupt { format: "JPEG", .. }), "{name}: {error}");
        }
    }
}

#[test]
fn the_end_of_a_thumbnail_is_not_that_of_the_image() {
    let find = |name: &str| goldens().into_iter().find(|golden| golden.name == name).expect("there").file;
    let whole = find("jpeg 4:2:0");
    let thumbnail = find("jpeg 4:4:4");
    let mut nested = whole[..2].to_vec();
    nested.extend_from_slice(&[0xFF, 0xE1]);
    nested.extend_from_slice(&(thumbnail.len() as u16 + 2).to_be_bytes());
    nested.extend_from_slice(&thumbnail);
    nested.extend_from_slice(&whole[2..]);
    assert!(check_header(&nested, &Limits::default()).is_ok());
    let error = check_header(&nested[..nested.len() - 2], &Limits::default()).expect_err("no end");
    assert_eq!(error.to_string(), "JPEG: its end is missing");
}

/// Mutations of each file in a run of all tests, and in one by hand.
const FEW: usize = 12;
const MANY: usize = 1000;
/// No image of these sizes takes longer, in a build without optimisation.
const LONGEST: Duration = Duration::from_secs(10);

fn mutated(file: &[u8], stream: &mut Stream) -> Vec<u8> {
    let mut bytes = file.to_vec();
    for _ in 0..=stream.below(3) {
        let at = stream.below(bytes.len().max(1) as u64) as usize;
        match stream.below(7) {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 1 << stream.below(8),
            2 => bytes[at] = [0, 0xFF, 0x7F, 0x80][stream.below(4) as usize],
            3 => drop(bytes.remove(at)),
            4 => bytes.insert(at, stream.below(256) as u8),
            5 => {
                let end = (at + stream.below(9) as usize).min(bytes.len());
                bytes[at..end].fill(stream.below(256) as u8);
            }
            // What decides sizes is at the start.
            _ => {
                let at = stream.below(bytes.len().clamp(1, 64) as u64) as usize;
                bytes[at] = stream.below(256) as u8;
            }
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

/// Mutates files, and tells how many were accepted and rejected.
fn mutate(mutations: impl Fn(&Golden) -> usize) -> (usize, usize) {
    let (mut accepted, mut rejected) = (0, 0);
    for (number, golden) in goldens().into_iter().enumerate() {
        let mut stream = Stream::new(22, Purpose::Test, number as u64, 0);
        for _ in 0..mutations(&golden) {
            let bytes = mutated(&golden.file, &mut stream);
            let choices = std::array::from_fn(|_| stream.below(256) as u8);
            let start = Instant::now();
            match region_of(&bytes, choices) {
                Ok(()) => accepted += 1,
                Err(error) => {
                    assert!(!error.to_string().is_empty(), "{}", golden.name);
                    rejected += 1;
                }
            }
            assert!(start.elapsed() < LONGEST, "{} took {:?}", golden.name, start.elapsed());
        }
    }
    (accepted, rejected)
}

#[test]
fn mutated_files_are_decoded_or_rejected_with_a_reason() {
    let (accepted, rejected) = mutate(|_| FEW);
    assert!(accepted > 300 && rejected > 300, "{accepted} accepted, {rejected} rejected");
}

#[test]
#[ignore = "takes minutes: a thousand mutations of each kind"]
fn a_thousand_mutated_files_of_each_kind_are_decoded_or_rejected_with_a_reason() {
    let kind = |golden: &Golden| golden.name.split(' ').next().unwrap_or_default().to_owned();
    let all: Vec<String> = goldens().iter().map(kind).collect();
    let (accepted, rejected) =
        mutate(|golden| MANY.div_ceil(all.iter().filter(|other| **other == kind(golden)).count()));
    assert!(accepted + rejected >= 7 * MANY, "{accepted} accepted, {rejected} rejected");
}

#[test]
fn images_of_a_dataset_with_a_tile_index_have_the_pixels_of_their_originals() {
    let goldens = goldens();
    for (name, file) in with_restart_markers() {
        let golden = goldens.iter().find(|golden| golden.name == name).expect("a golden of this name");
        assert_ne!(golden.file, file, "{name}");
        assert!(decode(file, &Limits::default()).expect("decoded") == golden.expected, "{name}");
        for choices in [[0, 0, 255, 255, 0], [90, 120, 100, 80, 0], [200, 30, 90, 220, 0]] {
            assert_eq!(region_of(file, choices), Ok(()), "{name}");
        }
    }
}
