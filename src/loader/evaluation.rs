//! The images of a source for evaluation: each once.

use std::sync::Arc;

use super::error::LoaderError;
use super::options::LoaderOptions;
use super::pipeline::Loader;
use super::plan::Passes;
use super::source::Source;
use crate::augment::EvalTransform;
use crate::augment::view::EvaluationView;

/// Every image of a source exactly once, in the stored order, under the evaluation transform.
///
/// # Errors
/// If threads cannot be started.
///
/// # Panics
/// If the batch size is 0.
pub fn evaluation_batches(
    source: Arc<dyn Source>,
    transform: EvalTransform,
    batch_size: usize,
    threads: usize,
) -> Result<Loader, LoaderError> {
    let options = LoaderOptions { batch_size, threads, ..LoaderOptions::default() };
    Loader::spawn(source, Box::new(EvaluationView(transform)), Passes::Stored, options)
}

/// Every image of a source exactly once under the evaluation transform, read as the first epoch of these options reads them:
/// in its order, and by each rank from its own region. The last batch may be short.
///
/// # Errors
/// If threads cannot be started, or the memory does not suffice.
///
/// # Panics
/// If the batch size is 0.
pub fn evaluation_epoch(
    source: Arc<dyn Source>,
    transform: EvalTransform,
    options: LoaderOptions,
) -> Result<Loader, LoaderError> {
    let options = LoaderOptions { drop_last: false, epoch: 0, epochs: 1, first_step: 0, ..options };
    let passes = Passes::Shuffled { shuffle: options.shuffle, seed: options.seed };
    Loader::spawn(source, Box::new(EvaluationView(transform)), passes, options)
}
