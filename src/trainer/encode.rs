//! The bank's first rows by one pass of the encoder.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tch::{Tensor, no_grad};

use super::step::Trainer;
use super::{StopFlag, TrainError};
use crate::loader::{EvalTransform, Source, evaluation_batches_with};

/// Writes what the encoder, in evaluation mode, makes of each picture's centre into the picture's row.
///
/// # Errors
/// If a picture cannot be loaded, or it is told to stop.
pub(super) fn encode_bank(
    trainer: &mut Trainer,
    source: &Arc<dyn Source>,
    stop: &StopFlag,
) -> Result<(), TrainError> {
    let encoder = trainer.encoder.config();
    let transform =
        EvalTransform::ResizeCenterCrop { resize: encoder.evaluation_resize, crop: encoder.image_size };
    let side = i64::from(transform.side());
    for batch in evaluation_batches_with(Arc::clone(source), transform, trainer.config.loader())? {
        if stop.load(Ordering::Relaxed) {
            return Err(TrainError::Stopped { step: 0 });
        }
        let batch = batch?;
        let pixels = Tensor::from_slice(&batch.pixels).view([-1, 3, side, side]);
        let features = no_grad(|| trainer.encoder.forward(&pixels, false));
        trainer.bank.set_initial(&batch.positions, &features);
    }
    Ok(())
}
