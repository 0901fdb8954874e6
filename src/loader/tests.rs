use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::*;
use crate::dataset::{DatasetError, Row};
use crate::ids::{ClassId, InstanceId, Position};
use crate::picture::{Picture, encode_png};
use crate::rng::{Purpose, Stream};

/// Pictures of different sizes; picture `i` has the colour of its number at its first pixel.
fn source(len: u32) -> Arc<dyn Source> {
    let row = |id: u32| {
        let (width, height) = (20 + id % 7, 16 + id % 5);
        let rgb = (0..width * height * 3).map(|at| (id * 31 + at * 7) as u8).collect();
        let bytes = encode_png(&Picture { width, height, rgb }).expect("encoded");
        Row {
            id: InstanceId(id),
            label: Some(ClassId((id % 3) as u16)),
            bytes: Bytes::from(bytes),
            path: format!("{id}.png"),
            width,
            height,
        }
    };
    Arc::new(MemorySource::new((0..len).map(row).collect()))
}

fn options() -> LoaderOptions {
    LoaderOptions {
        batch_size: 8,
        seed: 1,
        epoch: 2,
        first_step: 0,
        drop_last: false,
        threads: 2,
        prefetch: 2,
    }
}

fn batches(source: &Arc<dyn Source>, options: LoaderOptions) -> Vec<Batch> {
    let loader = Loader::start(Arc::clone(source), Recipe::imagenet(16), options).expect("started");
    loader.collect::<Result<_, _>>().expect("batches")
}

#[test]
fn batches_do_not_depend_on_threads_or_prefetch() {
    let source = source(30);
    let expected = batches(&source, options());
    assert_eq!(expected.len(), 4);
    for (threads, prefetch) in [(1, 1), (3, 7), (8, 2)] {
        assert_eq!(batches(&source, LoaderOptions { threads, prefetch, ..options() }), expected);
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
            let row = &source.read(&[Position(id.0)]).expect("a row")[0];
            let draw = |width, height| {
                let mut stream = Stream::new(1, Purpose::Augmentation, 2, u64::from(id.0));
                Recipe::imagenet(16).draw(&mut stream, width, height)
            };
            let mut expected = vec![0; 3 * 16 * 16];
            augment(&row.bytes, draw, 16, &mut expected).expect("a good picture");
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
fn evaluation_sees_each_picture_once_in_the_order_of_ids() {
    let transform = EvalTransform::ResizeCenterCrop { resize: 18, crop: 16 };
    let all: Vec<Batch> = evaluation_batches(source(30), transform, 7, 2)
        .expect("started")
        .collect::<Result<_, _>>()
        .expect("batches");
    let ids: Vec<u32> = all.iter().flat_map(|batch| batch.ids.iter().map(|id| id.0)).collect();
    assert_eq!(ids, (0..30).collect::<Vec<_>>());
}

#[test]
fn dropping_a_loader_in_mid_epoch_returns_at_once() {
    let mut loader = Loader::start(source(400), Recipe::imagenet(64), options()).expect("started");
    loader.next().expect("a batch").expect("a good one");
    let dropped = Instant::now();
    drop(loader);
    assert!(dropped.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_picture_that_cannot_be_decoded_is_named_and_ends_the_epoch() {
    let mut rows = source(10).read(&(0..10).map(Position).collect::<Vec<_>>()).expect("rows");
    rows[4].bytes = Bytes::from_static(b"no picture");
    let source: Arc<dyn Source> = Arc::new(MemorySource::new(rows));
    let mut loader = Loader::start(source, Recipe::cifar(16), options()).expect("started");
    let error = loader.find_map(Result::err).expect("an error");
    assert_eq!(error.to_string(), "instance 4 (4.png): the picture cannot be decoded");
    assert!(loader.next().is_none());
}

/// A source whose reading fails.
struct Broken;

impl Source for Broken {
    fn len(&self) -> usize {
        100
    }

    fn ids(&self) -> &[InstanceId] {
        &[InstanceId(0); 100]
    }

    fn labels(&self) -> &[Option<ClassId>] {
        &[None; 100]
    }

    fn read(&self, _positions: &[Position]) -> Result<Vec<Row>, LoaderError> {
        Err(DatasetError::NotThere { dataset: "x".into() }.into())
    }
}

#[test]
fn an_error_of_the_source_reaches_the_consumer_once() {
    let loader = Loader::start(Arc::new(Broken), Recipe::cifar(16), options()).expect("started");
    let all: Vec<_> = loader.collect();
    assert!(all.len() == 1 && all[0].is_err());
}

#[test]
fn crops_lie_inside_the_picture_and_keep_to_their_area() {
    let recipe = Recipe::imagenet(224);
    for (width, height) in [(500, 375), (1, 1), (3000, 2), (32, 32), (2, 900)] {
        for draw in 0..500 {
            let mut stream = Stream::new(9, Purpose::Augmentation, u64::from(width), draw);
            let crop = recipe.draw(&mut stream, width, height).crop;
            assert!(crop.width >= 1 && crop.height >= 1);
            assert!(crop.left + crop.width <= width && crop.top + crop.height <= height);
            if (width, height) == (500, 375) {
                let share = f64::from(crop.width * crop.height) / (500.0 * 375.0);
                assert!((0.195..=1.0).contains(&share), "{share}");
            }
        }
    }
}

mod golden;
