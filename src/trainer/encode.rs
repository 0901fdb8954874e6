//! The bank's first rows by one pass of the encoder.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tch::{Tensor, no_grad};

use super::gathered::{Gathered, any, present};
use super::state::Trainer;
use super::{StopFlag, TrainError};
use crate::loader::{EvalTransform, LoaderOptions, Part, Source, evaluation_batches_with};
use crate::progress::Progress;

/// Writes what the encoder, in evaluation mode, makes of each image's centre into the image's row.
///
/// # Errors
/// If an image cannot be loaded, or it is told to stop.
pub(super) fn encode_bank(
    trainer: &mut Trainer,
    source: &Arc<dyn Source>,
    progress: &dyn Progress,
    stop: &StopFlag,
) -> Result<(), TrainError> {
    let encoder = trainer.encoder.config();
    let transform =
        EvalTransform::ResizeCenterCrop { resize: encoder.evaluation_resize, crop: encoder.image_size };
    let side = i64::from(transform.side());
    let group = Rc::clone(&trainer.group);
    let part = Part { rank: group.rank(), ranks: group.world() };
    let options = LoaderOptions { part, ..trainer.config.loader() };
    progress.begin("bank", source.len() as u64);
    for batch in evaluation_batches_with(Arc::clone(source), transform, options)? {
        let batch = batch?;
        if any(&group, [stop.load(Ordering::Relaxed)])? == [true] {
            return Err(TrainError::Stopped { step: 0 });
        }
        let pixels = Tensor::from_slice(&batch.pixels).view([-1, 3, side, side]);
        let features = no_grad(|| trainer.encoder.forward(&pixels, false));
        let global = present(&group, &batch, trainer.config.on_corrupt)?;
        let gathered = Gathered::gather(&group, &global, 0, &features)?;
        trainer.bank.set_initial(&gathered.positions, &gathered.features);
        progress.advance(gathered.positions.len() as u64);
    }
    progress.finish();
    Ok(())
}
