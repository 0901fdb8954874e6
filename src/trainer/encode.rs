//! The bank's first rows by one pass of the encoder.

use std::sync::Arc;

use tch::{Tensor, no_grad};

use super::TrainError;
use super::step::Trainer;
use crate::loader::{EvalTransform, Source, evaluation_batches};

/// Writes what the encoder, in evaluation mode, makes of each picture's centre into the picture's row.
///
/// # Errors
/// If a picture cannot be loaded.
pub(super) fn encode_bank(trainer: &mut Trainer, source: &Arc<dyn Source>) -> Result<(), TrainError> {
    let encoder = trainer.encoder.config();
    let transform =
        EvalTransform::ResizeCenterCrop { resize: encoder.evaluation_resize, crop: encoder.image_size };
    let (batch_size, threads) = (trainer.config.batch_size, trainer.config.loader_threads);
    let side = i64::from(transform.side());
    for batch in evaluation_batches(Arc::clone(source), transform, batch_size, threads)? {
        let batch = batch?;
        let pixels = Tensor::from_slice(&batch.pixels).view([-1, 3, side, side]);
        let features = no_grad(|| trainer.encoder.forward(&pixels, false));
        trainer.bank.set_initial(&batch.positions, &features);
    }
    Ok(())
}
