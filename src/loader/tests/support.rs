//! Sources that the tests of the loader share.

use std::collections::BTreeMap;
use std::path::Path;

use super::*;
use crate::dataset::{
    ContentDigest, IndexRow, IngestRecord, Manifest, PartReport, Place, ShardWriter, Split, WriterOptions,
    write_index,
};
use crate::storage::{Digest, Location, PublishMode};

/// Images of different sizes; no two are the same.
pub(super) fn rows(len: u32) -> Vec<Row> {
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

pub(super) fn source(len: u32) -> Arc<dyn Source> {
    Arc::new(MemorySource::new(rows(len)))
}

pub(super) fn options() -> LoaderOptions {
    LoaderOptions { batch_size: 8, seed: 1, epoch: 2, threads: 2, ..LoaderOptions::default() }
}

pub(super) fn batches(source: &Arc<dyn Source>, options: LoaderOptions) -> Vec<Batch> {
    let loader = Loader::start(Arc::clone(source), Recipe::imagenet(16), options).expect("started");
    loader.collect::<Result<_, _>>().expect("batches")
}

/// Publishes a dataset with one split, `train`: three shards, row groups of `row_group`; rows are assigned to the
/// shards in an order that is not that of the ids.
pub(super) fn publish(dataset: &Location, rows: &[Row], row_group: usize) -> Manifest {
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

/// A place on this machine for a dataset.
pub(super) fn on_disk(folder: &Path) -> Location {
    Location::from_path(&folder.join("dataset")).expect("a location")
}

/// The split of a dataset made by [`publish`].
pub(super) fn open(dataset: &Location) -> Arc<dyn Source> {
    let manifest = Manifest::read(dataset).expect("a manifest");
    open_split(dataset, &manifest, "train", None).expect("opened")
}

/// Changes the byte in the middle of a shard, which is one of an image.
pub(super) fn damage(dataset: &Location, shard: usize) {
    let shard = dataset.join(&format!("train/shard-{shard:05}.parquet"));
    let mut bytes = shard.read().expect("read").to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    shard.publish(bytes, PublishMode::Overwrite).expect("written");
}
