//! What comes before the first step.

use crate::model::{NamedTensors, allow_tf32};
use crate::storage::Location;

use super::step::Trainer;
use super::{Precision, TrainConfig, TrainError, TrainJob};

/// Puts the weights of a file in place of the initial ones.
pub(super) fn begin_with(trainer: &mut Trainer, file: &Location) -> Result<(), TrainError> {
    let weights = NamedTensors::from_bytes(&file.read()?)?;
    let whole = trainer.encoder.load_backbone(&weights)?;
    tracing::info!("weights of {file}{}", if whole { "" } else { ", without its last layer" });
    Ok(())
}

/// Sets libtorch's switches for f32 products.
pub(super) fn set_precision(config: &TrainConfig, device: tch::Device) {
    // In a 16-bit run the objective's products, which are f32, need be no more exact than the features.
    let tf32 = config.precision != Precision::F32;
    if let Err(reason) = allow_tf32(tf32) {
        tracing::warn!("{reason}");
    }
    if config.precision == Precision::Tf32 && !device.is_cuda() {
        tracing::warn!("precision tf32 is that of CUDA's tensor cores; here it is f32");
    }
}

/// Whether there are enough pictures.
///
/// # Errors
/// If there are not.
pub(super) fn check_size(job: &TrainJob, instances: usize) -> Result<(), TrainError> {
    if instances < 2 {
        let reason = format!("split {:?} has {instances} pictures; training needs two", job.config.split);
        return Err(TrainError::Config { reason });
    }
    if job.config.loader().steps(instances) == 0 {
        let reason = format!(
            "split {:?} has {instances} pictures, fewer than a batch of {}, and drop_last leaves short ones out",
            job.config.split, job.config.batch_size
        );
        return Err(TrainError::Config { reason });
    }
    Ok(())
}
