//! Images whose stored bytes are not the source's.

use turbojpeg::{Colorspace, PixelFormat, Subsamp};

use super::support::{compressed, detailed, verdicts};
use super::*;
use crate::image::decode;

fn pixels(bytes: &[u8]) -> DecodedImage {
    decode(bytes, &Default::default()).expect("decoded")
}

fn progressive() -> Vec<u8> {
    compressed(&detailed(16, 16).rgb, PixelFormat::RGB, |compressor| {
        compressor.set_progressive(true).expect("progressive");
    })
}

#[test]
fn images_are_made_smaller_and_baseline_where_that_is_asked_for() {
    let large = encode_jpeg(&detailed(120, 90), 90).expect("encoded");
    let progressive = compressed(&detailed(16, 16).rgb, PixelFormat::RGB, |compressor| {
        compressor.set_progressive(true).expect("progressive");
    });
    let images = [("large.jpg", large), ("progressive.jpg", progressive.clone())];
    let (accepted, _) = verdicts(&images, |options| {
        options.short_side = Some(45);
        options.baseline = true;
    });
    assert_eq!((accepted[1].width, accepted[1].height), (60, 45));
    let decoded = |bytes: &[u8]| crate::image::decode(bytes, &Default::default()).expect("decoded");
    assert_eq!(decoded(&accepted[1].bytes).width, 60);
    assert_ne!(accepted[2].bytes, progressive);
    assert_eq!(decoded(&accepted[2].bytes), decoded(&progressive), "not a pixel changes");
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

/// JPEGs of every kind and a PNG, by their names.
fn every_kind() -> Vec<(&'static str, Vec<u8>)> {
    let wide = detailed(203, 61);
    let mut images = vec![
        ("0-wide.jpg", encode_jpeg(&wide, 85).expect("encoded")),
        ("1-progressive.jpg", progressive()),
        ("2.png", encode_png(&detailed(50, 50)).expect("encoded")),
    ];
    let rgb = detailed(16, 16).rgb;
    for (name, subsampling) in
        [("3-full.jpg", Subsamp::None), ("4-half.jpg", Subsamp::Sub2x1), ("5-grey.jpg", Subsamp::Gray)]
    {
        let set = |compressor: &mut turbojpeg::Compressor| {
            compressor.set_subsamp(subsampling).expect("subsampling");
        };
        images.push((name, compressed(&rgb, PixelFormat::RGB, set)));
    }
    let inks = compressed(&[9, 8, 7, 6].repeat(256), PixelFormat::CMYK, |compressor| {
        compressor.set_colorspace(Colorspace::CMYK).expect("a colour space");
    });
    images.push(("6-inks.jpg", inks));
    images
}

#[test]
fn an_export_gives_the_files_back_that_were_ingested() {
    let at = fixture();
    folder(&at.source.join("train"));
    for (name, bytes) in every_kind() {
        fs::write(at.source.join("train/dog breed").join(name), bytes).expect("a file");
    }
    ingest(&options(&at.source, &at.dest), &Quiet).expect("ingested");
    let target = at.dest.with_file_name("exported");
    let job = ExportOptions { dataset: location(&at.dest), dest: location(&target), split: None };
    for _ in 0..2 {
        let split = export(&job, &Quiet).expect("exported").splits["train"];
        assert_eq!(split, ExportedSplit { images: 19, not_original: 0, renamed: 0 });
        assert_eq!(files(&target), files(&at.source));
    }
    fs::write(target.join("train/cat/0.jpg"), b"another").expect("a file");
    let error = export(&job, &Quiet).expect_err("a file is in the way");
    assert!(error.to_string().contains("train/cat/0.jpg: already exists"), "{error}");
    let missing = ExportOptions { split: Some("test".into()), ..job };
    assert_eq!(export(&missing, &Quiet).expect_err("no split").failure(), crate::failure::Failure::Data);
}

#[test]
fn an_export_writes_no_file_outside_of_its_folder() {
    use crate::dataset::{
        ContentDigest, IndexRow, IngestRecord, PartReport, ShardWriter, Split, WriterOptions, write_index,
    };
    use crate::ids::InstanceId;
    use crate::storage::{Digest, PublishMode};
    let at = fixture();
    let dataset = location(&at.dest);
    let layout = WriterOptions { row_group: 1, classes: vec!["a".into()] };
    let mut writer = ShardWriter::start(&dataset, "train/shard-00000.parquet", &layout).expect("started");
    let bytes = bytes::Bytes::from(jpeg(1));
    let (width, height) = (20, 16);
    let mut digest = ContentDigest::default();
    digest.add(InstanceId(0), None, Digest::of(&bytes));
    let path = String::from("../../outside.jpg");
    let mut row = IndexRow {
        id: InstanceId(0),
        label: None,
        path: path.clone(),
        place: crate::dataset::Place {
            shard: 0,
            row: 0,
            offset: 0,
            bytes: bytes.len() as u32,
            width,
            height,
            ..Default::default()
        },
        image: Digest::of(&bytes),
        view: None,
    };
    writer
        .push(Row { id: InstanceId(0), label: None, bytes, path, width, height, entry_points: None })
        .expect("pushed");
    let written = writer.finish().expect("published");
    row.place.offset = written.offsets[0];
    let shards = vec![written.entry];
    let index = write_index(&dataset, "index/train.parquet", &[row]).expect("written");
    let record = IngestRecord {
        program: "a test".into(),
        format: "imagefolder".into(),
        source_fingerprint: Digest::of(b""),
        options: std::collections::BTreeMap::new(),
        instances: 1,
        index,
        report: PartReport::default(),
    };
    let split = Split {
        instances: 1,
        labelled: 0,
        image_bytes: 1,
        rejected: 0,
        digest: digest.finish(),
        shards,
        ingest: vec![record],
    };
    let manifest = Manifest::new(layout.classes, [("train".to_owned(), split)].into());
    manifest.publish(&dataset, PublishMode::Create).expect("published");
    let job = ExportOptions { dataset, dest: location(&at.source.join("a/b")), split: None };
    let error = export(&job, &Quiet).expect_err("a path that leads outside");
    assert!(error.to_string().contains("leads outside of the split"), "{error}");
    assert_eq!(files(&at.source), []);
}
