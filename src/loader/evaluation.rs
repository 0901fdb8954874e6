//! The pictures of a source for evaluation: each once, in the order in which they lie.

use std::sync::Arc;

use super::plan::Passes;
use super::view::EvaluationView;
use super::{EvalTransform, Loader, LoaderError, LoaderOptions, Source};

/// Every picture of a source exactly once, in the order in which they lie, under the evaluation transform.
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
    evaluation_batches_with(source, transform, options)
}

/// The same under a trainer's options, such as what is done about a corrupt picture; those of the order are
/// of no account.
///
/// # Errors
/// If threads cannot be started, or the memory does not suffice.
///
/// # Panics
/// If the batch size is 0.
pub fn evaluation_batches_with(
    source: Arc<dyn Source>,
    transform: EvalTransform,
    options: LoaderOptions,
) -> Result<Loader, LoaderError> {
    let options = LoaderOptions { drop_last: false, epoch: 0, first_step: 0, parts: 1, ..options };
    Loader::spawn(source, Box::new(EvaluationView(transform)), Passes::Stored, options)
}
