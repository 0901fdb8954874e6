mod ends;
mod orders;
mod streams;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::augment::{EvalTransform, Recipe, augment};
use crate::dataset::{
    ContentDigest, IndexRow, IngestRecord, Manifest, PartReport, Place, Row, ShardWriter, Split,
    WriterOptions, write_index,
};
use crate::ids::{BankRow, ClassId, InstanceId};
use crate::image::{DecodedImage, ExifOrientation, encode_png};
use crate::rng::{Purpose, Stream};
use crate::storage::{Digest, Location, PublishMode};

const WINDOWED: Shuffle = Shuffle::Windowed { rows: 24 };

/// Images of different sizes; no two are the same.
fn rows(len: u32) -> Vec<Row> {
    let row = |id: u32| {
        let (width, height) = (20 + id % 7, 16 + id % 5);
        let rgb = (0..width * height * 3).map(|at| (id * 31 + at * 7 + id * at) as u8).collect();
        let bytes = encode_png(&DecodedImage { width, height, rgb }).expect("encoded");
        Row {
            id: InstanceId(id),
            label: Some(ClassId((id % 3) as u16)),
            bytes: Bytes::from(bytes),
            path: format!("{id}.png"),
            width,
            height,
            entry_points: None,
        }
    };
    (0..len).map(row).collect()
}

fn source(len: u32) -> Arc<dyn Source> {
    Arc::new(MemorySource::new(rows(len)))
}

fn options() -> LoaderOptions {
    LoaderOptions { batch_size: 8, seed: 1, epoch: 2, threads: 2, ..LoaderOptions::default() }
}

fn batches(source: &Arc<dyn Source>, options: LoaderOptions) -> Vec<Batch> {
    let loader = Loader::start(Arc::clone(source), Recipe::imagenet(16), options).expect("started");
    loader.collect::<Result<_, _>>().expect("batches")
}

/// Publishes a dataset with one split, `train`: three shards, row groups of `row_group`; rows are assigned to the
/// shards in an order that is not that of the ids.
fn publish(dataset: &Location, rows: &[Row], row_group: usize) -> Manifest {
    let options = WriterOptions { row_group, classes: vec!["a".into(), "b".into(), "c".into()] };
    let mut assigned: Vec<&Row> = rows.iter().collect();
    Stream::new(5, Purpose::Test, 0, 0).shuffle(&mut assigned);
    let mut index = Vec::new();
    let mut shards = Vec::new();
    for (shard, rows) in (0..).zip(assigned.chunks(rows.len().div_ceil(3))) {
        let path = format!("train/shard-{shard:05}.parquet");
        let mut writer = ShardWriter::start(dataset, &path, &options).expect("started");
        for row in rows {
            writer.push((*row).clone()).expect("pushed");
        }
        let written = writer.finish().expect("published");
        let places = written.offsets.into_iter().zip(written.entry_points);
        index.extend((0..).zip(rows.iter().zip(places)).map(|(row, (of, place))| IndexRow {
            id: of.id,
            label: of.label,
            path: of.path.clone(),
            place: Place {
                shard,
                row,
                offset: place.0,
                bytes: of.bytes.len() as u32,
                width: of.width,
                height: of.height,
                entry_points_offset: place.1.0,
                entry_points_bytes: place.1.1,
            },
            image: Digest::of(&of.bytes),
            view: None,
        }));
        shards.push(written.entry);
    }
    index.sort_by_key(|row| row.id);
    let mut digest = ContentDigest::default();
    for row in rows {
        digest.add(row.id, row.label, Digest::of(&row.bytes));
    }
    let split = Split {
        instances: rows.len() as u64,
        labelled: rows.len() as u64,
        image_bytes: rows.iter().map(|row| row.bytes.len() as u64).sum(),
        rejected: 0,
        digest: digest.finish(),
        shards,
        ingest: vec![IngestRecord {
            program: "test".into(),
            format: "test".into(),
            source_fingerprint: Digest::of(b"source"),
            options: BTreeMap::new(),
            instances: rows.len() as u64,
            index: write_index(dataset, "index/train.parquet", &index).expect("written"),
            report: PartReport::default(),
        }],
    };
    let manifest = Manifest::new(options.classes, BTreeMap::from([("train".into(), split)]));
    manifest.publish(dataset, PublishMode::Create).expect("published");
    manifest
}

/// A location on this machine for a dataset.
fn on_disk(folder: &Path) -> Location {
    Location::from_path(&folder.join("dataset")).expect("a location")
}

/// The split of a dataset made by [`publish`].
fn open(dataset: &Location) -> Arc<dyn Source> {
    let manifest = Manifest::read(dataset).expect("a manifest");
    open_split(dataset, &manifest, "train", None).expect("opened")
}

/// Changes the byte in the middle of a shard, which is one of an image.
fn damage(dataset: &Location, shard: usize) {
    let shard = dataset.join(&format!("train/shard-{shard:05}.parquet"));
    let mut bytes = shard.read().expect("read").to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    shard.publish(bytes, PublishMode::Overwrite).expect("written");
}

#[test]
fn batches_do_not_depend_on_threads_or_prefetch() {
    let source = source(30);
    let expected = batches(&source, options());
    assert_eq!(expected.len(), 4);
    for (threads, prefetch, read_threads) in [(1, 0, 1), (1, 1, 8), (3, 7, 2), (8, 2, 3)] {
        let changed = LoaderOptions { threads, prefetch, read_threads, ..options() };
        assert_eq!(batches(&source, changed), expected);
    }
}

#[test]
fn every_instance_comes_exactly_once_and_the_last_batch_is_short() {
    let all = batches(&source(30), options());
    let mut ids: Vec<u32> = all.iter().flat_map(|batch| batch.ids.iter().map(|id| id.0)).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..30).collect::<Vec<_>>());
    assert_eq!(all[3].ids.len(), 6);
    assert_eq!(batches(&source(30), LoaderOptions { drop_last: true, ..options() }).len(), 3);
}

#[test]
fn resuming_at_any_step_gives_the_rest_of_the_epoch() {
    let source = source(30);
    let whole = batches(&source, options());
    for first_step in 0..=4 {
        let rest = batches(&source, LoaderOptions { first_step, ..options() });
        assert_eq!(rest, whole[first_step as usize..]);
    }
}

#[test]
fn pixels_belong_to_the_id_that_the_batch_names() {
    let source = source(30);
    for batch in batches(&source, options()) {
        for (id, pixels) in batch.ids.iter().zip(batch.pixels.chunks(3 * 16 * 16)) {
            let row = &source.read(&[BankRow(id.0)]).expect("a row")[0];
            let draw = |width, height| {
                let mut stream = Stream::new(1, Purpose::Augmentation, 2, u64::from(id.0));
                Recipe::imagenet(16).draw(&mut stream, width, height)
            };
            let mut expected = vec![0; 3 * 16 * 16];
            augment(&row.bytes, ExifOrientation::Ignore, draw, 16, &mut expected).expect("a good image");
            assert_eq!(pixels, expected);
        }
    }
}

#[test]
fn epochs_differ_in_order_and_pixels() {
    let source = source(8);
    let first = batches(&source, options());
    let second = batches(&source, LoaderOptions { epoch: 3, ..options() });
    assert_ne!(first[0].ids, second[0].ids);
    assert_ne!(first[0].pixels, second[0].pixels);
}

#[test]
fn evaluation_sees_each_image_once() {
    let transform = EvalTransform::ResizeCenterCrop { resize: 18, crop: 16 };
    let all: Vec<Batch> = evaluation_batches(source(30), transform, 7, 2)
        .expect("started")
        .collect::<Result<_, _>>()
        .expect("batches");
    let ids: Vec<u32> = all.iter().flat_map(|batch| batch.ids.iter().map(|id| id.0)).collect();
    assert_eq!(ids, (0..30).collect::<Vec<_>>());
}
