//! The bank's first rows by one pass of the encoder.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tch::{Kind, Tensor, no_grad};

use super::gather::{MicroBatch, any, present};
use super::state::Trainer;
use super::{StopFlag, TrainError};
use crate::ids::RankShare;
use crate::loader::{LoaderOptions, Source, evaluation_epoch};
use crate::model::libtorch::upload_indices;
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
    let transform = trainer.encoder.config().evaluation_transform();
    let group = Rc::clone(&trainer.group);
    let part = RankShare { rank: group.rank(), ranks: group.world() };
    // As many images at once as in a training step.
    let batch_size = trainer.config.batch_size.div_ceil(trainer.config.accumulate);
    let options = LoaderOptions { part, batch_size, micro_batches: 1, ..trainer.config.loader() };
    progress.begin("bank", source.len() as u64);
    let mut batches = evaluation_epoch(Arc::clone(source), transform, options)?;
    loop {
        let batch = batches.next_of(0, stop);
        // Each process has as many batches as the others, unless one is told to stop.
        if any(&group, [stop.load(Ordering::Relaxed)])? == [true] {
            return Err(TrainError::Stopped { step: 0 });
        }
        let Some(batch) = batch.transpose()? else { break };
        let global = present(&group, &batch, trainer.config.on_corrupt)?;
        if global.bank_rows.is_empty() {
            continue;
        }
        // Of a short batch a process may have nothing.
        let features = if batch.ids.is_empty() {
            Tensor::zeros([0, trainer.bank.dim() as i64], (Kind::Float, trainer.encoder.device()))
        } else {
            let images = trainer.encoder.images(&batch.pixels);
            no_grad(|| trainer.encoder.forward(&images, false))
        };
        let whole = MicroBatch::of(&group, &global, 0);
        let order = upload_indices(whole.words(), trainer.encoder.device());
        let features = whole.gather(&group, &features, &order)?;
        if features.isfinite().all().int64_value(&[]) == 0 {
            return Err(TrainError::NotEncoded { precision: trainer.encoder.precision() });
        }
        trainer.bank.set_initial(&whole.positions, &features);
        progress.advance(whole.positions.len() as u64);
    }
    progress.finish();
    Ok(())
}
