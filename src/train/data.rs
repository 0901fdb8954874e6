//! How a run reads its data.

use std::sync::Arc;

use super::TrainJob;
use crate::augment::Recipe;
use crate::checkpoint::Cursor;
use crate::dataset::Manifest;
use crate::ids::RankShare;
use crate::loader::{Loader, LoaderError, LoaderOptions, Source};
use crate::run_config::TrainConfig;

/// The split that a run trains on.
pub(super) fn open(job: &TrainJob, manifest: &Manifest) -> Result<Arc<dyn Source>, LoaderError> {
    let config = &job.config;
    let limit = if config.limit == 0 { None } else { Some(config.limit as usize) };
    config.source(&job.dataset, manifest, &config.split, limit)
}

/// A loader of all that a run still needs; of each global batch a part.
pub(super) fn load(
    config: &TrainConfig,
    source: &Arc<dyn Source>,
    cursor: Cursor,
    part: RankShare,
) -> Result<Loader, LoaderError> {
    let recipe = Recipe::new(config.recipe, config.image_size);
    let options = LoaderOptions {
        epoch: cursor.epoch,
        epochs: config.epochs.saturating_sub(cursor.epoch),
        first_step: cursor.step_in_epoch,
        part,
        ..config.loader()
    };
    Loader::start(Arc::clone(source), recipe, options)
}
