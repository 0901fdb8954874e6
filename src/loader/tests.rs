use crate::augment::{EvalTransform, Recipe, augment};
use std::sync::Arc;

use bytes::Bytes;

use self::support::{batches, options, source};
use super::*;
use crate::dataset::Row;
use crate::ids::{BankRow, ClassId, InstanceId};
use crate::image::{DecodedImage, ExifOrientation, encode_png};
use crate::rng::{Purpose, Stream};

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

mod ends;
mod orders;
mod streams;
mod support;
