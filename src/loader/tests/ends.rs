//! How a loader ends: nothing hangs, whatever goes wrong and wherever.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::dataset::DatasetError;
use crate::run_config::OnCorrupt;
use crate::storage::Cancel;

/// What hangs does so for ever; a busy machine takes its time.
const AT_ONCE: Duration = Duration::from_secs(30);

/// What a source does when the reads come to a row.
#[derive(Clone, Copy)]
enum Trouble {
    Fail,
    Panic,
    /// Waits until it is cancelled, as a store does that never answers.
    Hang,
}

/// A source in memory with trouble after some reads.
struct Troubled {
    inner: MemorySource,
    trouble: Trouble,
    good_reads: usize,
    reads: AtomicUsize,
}

impl Troubled {
    fn source(trouble: Trouble, good_reads: usize) -> Arc<dyn Source> {
        let inner = MemorySource::new(rows(100));
        Arc::new(Self { inner, trouble, good_reads, reads: AtomicUsize::new(0) })
    }
}

impl Source for Troubled {
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
        if self.reads.fetch_add(1, Ordering::Relaxed) < self.good_reads {
            return self.inner.fetch_rows(bank_rows, context);
        }
        match self.trouble {
            Trouble::Panic => panic!("a bug in a source"),
            Trouble::Hang => wait_for(&context.cancel),
            Trouble::Fail => {}
        }
        let fail = || Arc::new(DatasetError::NotThere { dataset: "x".into() }.into());
        bank_rows.iter().map(|_| Err(fail())).collect()
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

/// Whether all threads that held the source are gone.
fn threads_are_gone(source: &Arc<dyn Source>) -> bool {
    Arc::strong_count(source) == 1
}

#[test]
fn a_dropped_loader_ends_its_threads_whatever_they_are_doing() {
    for (source, batches) in [
        (source(400), 0),
        (source(400), 1),
        (Troubled::source(Trouble::Hang, 0), 0),
        (Troubled::source(Trouble::Hang, 4), 1),
    ] {
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
    let source = Troubled::source(Trouble::Fail, 0);
    let mut loader = started(&source, 2);
    assert!(loader.next().expect("an answer").is_err());
    assert!(loader.next().is_none());
    drop(loader);
    assert!(threads_are_gone(&source));
}

#[test]
fn a_panic_of_a_stage_reaches_the_consumer() {
    let source = Troubled::source(Trouble::Panic, 3);
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
    let source = Troubled::source(Trouble::Hang, 0);
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
    assert_eq!(loader.epoch(), 2);
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

/// Thirty images of which some are corrupt, loaded for two epochs.
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
    let loader = Loader::start(source, Recipe::imagenet(16), options()).expect("started");
    let mut loader = loader;
    for expected in expected {
        let batch = loader.next().expect("a batch").expect("a good one");
        assert_eq!(batch, expected);
        loader.give_back(Batch { pixels: vec![0xAA; batch.pixels.len() + 5], ..batch });
    }
}
