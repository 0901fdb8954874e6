//! Tests of the loader on images in memory, and of its end: it never hangs, whatever goes wrong and wherever.

mod orders;
mod streams;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::*;
use crate::augment::{Recipe, augment};
use crate::dataset::{DatasetError, Manifest, Row};
use crate::ids::{BankRow, ClassId, InstanceId};
use crate::image::{self, DecodedImage, ExifOrientation, encode_png};
use crate::rng::{Purpose, Stream};
use crate::run_config::OnCorrupt;
use crate::storage::{Cancel, Location, PublishMode};

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

fn ids(batches: &[Batch]) -> Vec<u32> {
    batches.iter().flat_map(|batch| batch.ids.iter().map(|id| id.0)).collect()
}

/// Publishes a dataset of three shards, to which rows are assigned in an order other than that of the ids.
fn publish(dataset: &Location, rows: &[Row], row_group: usize) -> Manifest {
    let mut assigned = rows.to_vec();
    Stream::new(5, Purpose::Test, 0, 0).shuffle(&mut assigned);
    let shards: Vec<_> = assigned.chunks(rows.len().div_ceil(3)).map(<[Row]>::to_vec).collect();
    crate::dataset::tests::publish(dataset, &shards, row_group, &["a", "b", "c"])
}

/// Returns a location on this machine for a dataset.
fn on_disk(folder: &Path) -> Location {
    Location::from_path(&folder.join("dataset")).expect("a location")
}

/// Opens the split of a dataset made by [`publish`].
fn open(dataset: &Location) -> Arc<dyn Source> {
    let manifest = Manifest::read(dataset).expect("a manifest");
    open_split(dataset, &manifest, "train", None).expect("opened")
}

/// Changes the byte in the middle of a shard, which belongs to an image.
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
    let mut ids = ids(&all);
    ids.sort_unstable();
    assert_eq!(ids, (0..30).collect::<Vec<_>>());
    assert_eq!(all[3].ids.len(), 6);
    assert_eq!(batches(&source(30), LoaderOptions { drop_last: true, ..options() }).len(), 3);
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
            let image = image::Encoded::ingested(&row.bytes, ExifOrientation::Ignore).expect("a good image");
            augment(&image, draw, 16, &mut expected).expect("a good image");
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

/// Time after which a test counts as hanging; a busy machine is slow.
const AT_ONCE: Duration = Duration::from_secs(30);

/// Behaviour of a source once the reads reach a row.
#[derive(Clone, Copy)]
enum Trouble {
    Fail,
    Panic,
    /// Waits until it is cancelled, like a store that never answers.
    Hang,
}

/// A source in memory that records which row groups were read.
struct Watched {
    inner: MemorySource,
    /// Whether reads are of whole row groups, as from an object store.
    in_groups: bool,
    groups: Mutex<BTreeSet<usize>>,
    /// Trouble to cause, and the number of good reads before it.
    trouble: Option<(Trouble, usize)>,
    reads: AtomicUsize,
}

impl Watched {
    fn new(inner: MemorySource, in_groups: bool, trouble: Option<(Trouble, usize)>) -> Arc<Self> {
        Arc::new(Self { inner, in_groups, groups: Mutex::default(), trouble, reads: AtomicUsize::new(0) })
    }
}

fn troubled(trouble: Trouble, good_reads: usize) -> Arc<dyn Source> {
    Watched::new(MemorySource::new(rows(100)), false, Some((trouble, good_reads)))
}

impl Source for Watched {
    fn instances(&self) -> &Instances {
        self.inner.instances()
    }

    fn record(&self, bank_row: BankRow) -> String {
        self.inner.record(bank_row)
    }

    fn read(&self, bank_rows: &[BankRow]) -> Result<Vec<Row>, LoaderError> {
        self.inner.read(bank_rows)
    }

    fn fetch_rows(&self, bank_rows: &[BankRow], context: &ReadContext) -> Vec<Fetched> {
        let read = self.reads.fetch_add(1, Ordering::Relaxed);
        match self.trouble.filter(|(_, good_reads)| read >= *good_reads) {
            None => return self.inner.fetch_rows(bank_rows, context),
            Some((Trouble::Panic, _)) => panic!("a bug in a source"),
            Some((Trouble::Hang, _)) => wait_for(&context.cancel),
            Some((Trouble::Fail, _)) => {}
        }
        let fail = || Arc::new(DatasetError::NotThere { dataset: "x".into() }.into());
        bank_rows.iter().map(|_| Err(fail())).collect()
    }

    fn fetch_group(&self, group: usize, context: &ReadContext) -> Vec<Fetched> {
        self.groups.lock().expect("a lock").insert(group);
        self.inner.fetch_group(group, context)
    }

    fn reads_rows(&self) -> bool {
        !self.in_groups
    }
}

fn wait_for(cancel: &Cancel) {
    while !cancel.is_cancelled() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn started(source: &Arc<dyn Source>, epochs: u64) -> Loader {
    let options = LoaderOptions { epochs, ..options() };
    Loader::start(Arc::clone(source), Recipe::cifar(16), options).expect("started")
}

/// Returns whether all threads that held the source are gone.
fn threads_are_gone(source: &Arc<dyn Source>) -> bool {
    Arc::strong_count(source) == 1
}

#[test]
fn a_dropped_loader_ends_its_threads_whatever_they_are_doing() {
    for (source, batches) in
        [(source(400), 0), (source(400), 1), (troubled(Trouble::Hang, 0), 0), (troubled(Trouble::Hang, 4), 1)]
    {
        let mut loader = started(&source, 3);
        for _ in 0..batches {
            loader.next().expect("a batch").expect("a good one");
        }
        let dropped = Instant::now();
        drop(loader);
        assert!(dropped.elapsed() < AT_ONCE);
        assert!(threads_are_gone(&source));
    }
}

#[test]
fn an_error_of_the_source_reaches_the_consumer_once() {
    let source = troubled(Trouble::Fail, 0);
    let mut loader = started(&source, 2);
    assert!(loader.next().expect("an answer").is_err());
    assert!(loader.next().is_none());
    drop(loader);
    assert!(threads_are_gone(&source));
}

#[test]
fn a_panic_of_a_stage_reaches_the_consumer() {
    let source = troubled(Trouble::Panic, 3);
    let loader = started(&source, 2);
    let asked = Instant::now();
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        loader.for_each(|batch| drop(batch.expect("no error")));
    }));
    assert!(panic.is_err());
    assert!(asked.elapsed() < AT_ONCE);
    assert!(threads_are_gone(&source));
}

#[test]
fn a_consumer_that_waits_for_a_store_that_hangs_can_be_stopped() {
    let source = troubled(Trouble::Hang, 0);
    let mut loader = started(&source, 2);
    let stop = Arc::new(AtomicBool::new(false));
    let stopper = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            std::thread::sleep(Duration::from_millis(50));
            stop.store(true, Ordering::Relaxed);
        }
    });
    let asked = Instant::now();
    assert!(loader.next_of(2, &stop).is_none());
    drop(loader);
    assert!(asked.elapsed() < AT_ONCE);
    stopper.join().expect("no panic");
}

#[test]
fn an_image_that_cannot_be_decoded_is_named_and_ends_the_epoch() {
    let mut rows = rows(10);
    rows[4].bytes = Bytes::from_static(b"no image");
    let source: Arc<dyn Source> = Arc::new(MemorySource::new(rows));
    let mut loader = started(&source, 1);
    let error = loader.find_map(Result::err).expect("an error");
    assert_eq!(error.to_string(), "instance 4 (4.png): the image cannot be decoded");
    assert!(loader.next().is_none());
}

/// Loads thirty images, of which some are corrupt, for two epochs.
fn skipping(corrupt: &[usize], max_corrupt: u64) -> Result<Vec<Batch>, LoaderError> {
    let mut rows = rows(30);
    for &row in corrupt {
        rows[row].bytes = Bytes::from_static(b"no image");
    }
    let source: Arc<dyn Source> = Arc::new(MemorySource::new(rows));
    let options = LoaderOptions { on_corrupt: OnCorrupt::Skip, max_corrupt, epochs: 2, ..options() };
    Loader::start(source, Recipe::cifar(16), options)?.collect()
}

#[test]
fn a_corrupt_image_is_left_out_and_all_others_stay_what_they_are() {
    let whole = skipping(&[], 0).expect("batches");
    let left = skipping(&[4, 17], 2).expect("batches");
    assert_eq!(whole.len(), left.len());
    for (whole, left) in whole.iter().zip(&left) {
        let kept = (0..whole.ids.len()).filter(|&row| ![4, 17].contains(&whole.ids[row].0));
        let image = 3 * 16 * 16;
        let mut expected =
            Batch { ids: vec![], bank_rows: vec![], labels: vec![], pixels: vec![], ..(*whole).clone() };
        for row in kept {
            expected.ids.push(whole.ids[row]);
            expected.bank_rows.push(whole.bank_rows[row]);
            expected.labels.push(whole.labels[row]);
            expected.pixels.extend(&whole.pixels[row * image..(row + 1) * image]);
        }
        assert_eq!(*left, expected);
    }
}

#[test]
fn a_batch_of_which_every_image_is_corrupt_is_empty() {
    let all: Vec<usize> = (0..30).collect();
    let batches = skipping(&all, 30).expect("no more than may be left out");
    assert_eq!(batches.len(), skipping(&[], 0).expect("batches").len());
    assert!(batches.iter().all(|batch| batch.ids.is_empty() && batch.pixels.is_empty()));
}

#[test]
fn every_image_of_a_batch_has_its_own_label() {
    let batches = skipping(&[4, 17], 2).expect("batches");
    let images = batches.iter().flat_map(|batch| batch.ids.iter().zip(&batch.labels));
    let wrong = images.clone().find(|(id, label)| **label != Some(ClassId((id.0 % 3) as u16)));
    assert_eq!((wrong, images.count()), (None, 2 * 28));
}

#[test]
fn more_corrupt_images_than_allowed_are_an_error_that_names_the_last() {
    let error = skipping(&[4, 17, 20], 2).expect_err("three are corrupt");
    assert!(error.to_string().starts_with("3 images are corrupt, at most 2"), "{error}");
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(cause.starts_with("instance "), "{cause}");
}

#[test]
fn memory_that_is_given_back_is_used_again_without_a_trace() {
    let source = source(60);
    let expected = batches(&source, options());
    let mut loader = Loader::start(source, Recipe::imagenet(16), options()).expect("started");
    for expected in expected {
        let batch = loader.next().expect("a batch").expect("a good one");
        assert_eq!(batch, expected);
        loader.give_back(Batch { pixels: vec![0xAA; batch.pixels.len() + 5], ..batch });
    }
}
