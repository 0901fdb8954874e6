use super::super::tests::support::{compressed, noisy, regions};
use super::*;
use crate::image::{Channels, Encoded, Limits, RegionDecoder, decode};
use crate::rng::{Purpose, Stream};
use turbojpeg::Subsamp;

/// Images of every sampling, of sizes that no block divides, with standard and with their own Huffman tables.
fn files() -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    for (index, (width, height)) in [(203, 61), (128, 128), (9, 40), (377, 29)].into_iter().enumerate() {
        let image = noisy(width, height, index as u64);
        for subsamp in [Subsamp::None, Subsamp::Sub2x1, Subsamp::Sub2x2, Subsamp::Gray] {
            files.push(compressed(&image, subsamp, 92, index % 2 == 0, false));
        }
    }
    files
}

#[test]
fn a_tiled_image_has_the_same_pixels_and_gives_the_original_back() {
    for file in files() {
        let tiled = transcode(&file).expect("a baseline image");
        let limits = Limits::default();
        assert_eq!(decode(&tiled.bytes, &limits), decode(&file, &limits));
        assert_eq!(restore(&tiled.bytes), Some(file));
    }
}

#[test]
fn regions_come_from_the_tiles_under_them_alone() {
    let mut decoder = RegionDecoder::default();
    let mut stream = Stream::new(3, Purpose::Report, 0, 0);
    for file in files() {
        let tiled = transcode(&file).expect("a baseline image");
        let whole = decode(&file, &Limits::default()).expect("decoded");
        for region in regions(&mut stream, whole.width, whole.height, 40) {
            let mut sparse = vec![0; tiled.bytes.len()];
            for range in needed_bytes(&tiled.bytes, &tiled.offsets, region).expect("its own offsets") {
                sparse[range.clone()].copy_from_slice(&tiled.bytes[range]);
            }
            let expected: Vec<u8> = {
                let encoded = Encoded::open(&file, &Limits::default()).expect("opened");
                decoder.decode(&encoded, region, Channels::Rgb).expect("decoded").samples.to_vec()
            };
            let encoded =
                Encoded::open(&sparse, &Limits::default()).expect("opened").with_tiles(&tiled.offsets);
            let planes = decoder.decode(&encoded, region, Channels::Rgb).expect("decoded");
            assert_eq!(planes.samples, expected, "{region:?}");
        }
    }
}

#[test]
fn a_image_with_restart_markers_of_its_own_is_tiled_and_restored() {
    for file in files() {
        let tiled = transcode(&file).expect("a baseline image");
        // Without the mark the tiled file is an original that has an interval of its own.
        let at = memchr::memmem::find(&tiled.bytes, MARK).expect("the mark");
        let mut own = tiled.bytes.clone();
        own[at + 4] = b'x';
        let again = transcode(&own).expect("a baseline image");
        assert_eq!(restore(&again.bytes), Some(own));
        assert_eq!(decode(&again.bytes, &Limits::default()), decode(&file, &Limits::default()));
    }
}

#[test]
fn what_is_progressive_broken_or_tiled_already_is_not_tiled() {
    let file = files().swap_remove(0);
    let tiled = transcode(&file).expect("a baseline image");
    assert_eq!(transcode(&tiled.bytes), None);
    assert_eq!(transcode(&file[..file.len() / 2]), None);
    assert_eq!(transcode(b"no image"), None);
    assert_eq!(transcode(&compressed(&noisy(150, 91, 5), Subsamp::Sub2x2, 90, true, true)), None);
    assert_eq!(restore(&file), None);
}

#[test]
fn wrong_offsets_never_give_wrong_pixels() {
    let file = files().swap_remove(0);
    let tiled = transcode(&file).expect("a baseline image");
    let whole = decode(&file, &Limits::default()).expect("decoded");
    let region = Region { left: 60, top: 20, width: 100, height: 30 };
    let mut decoder = RegionDecoder::default();
    let open = |offsets| Encoded::open(&tiled.bytes, &Limits::default()).expect("opened").with_tiles(offsets);
    let expected =
        decoder.decode(&open(&tiled.offsets), region, Channels::Rgb).expect("decoded").samples.to_vec();
    assert_eq!(expected[0], whole.rgb[(20 * whole.width as usize + 60) * 3]);
    let shifted: Vec<u32> = tiled.offsets.iter().map(|offset| offset + 3).collect();
    for offsets in [&shifted[..], &tiled.offsets[1..], &[]] {
        let planes = decoder.decode(&open(offsets), region, Channels::Rgb).expect("libjpeg decodes it");
        assert_eq!(planes.samples, expected);
    }
}
