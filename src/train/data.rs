//! How a run reads its data: the loader's options from the configuration.

use std::sync::Arc;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{TrainConfig, TrainJob};
use crate::checkpoint::Cursor;
use crate::dataset::Manifest;
use crate::ids::RankShare;
use crate::loader::{Loader, LoaderError, LoaderOptions, Shuffle, Source, open_split, open_split_cached};
use crate::storage::{BlobCache, Location};

/// How the instances of an epoch are mixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ShuffleKind {
    /// Uniformly over the whole split; for data on this machine, in memory or in a cache.
    Exact,
    /// Row groups in random order, and rows mixed over a window of them; for streaming.
    Windowed,
}

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
    let recipe = config.recipe.recipe(config.image_size);
    let options = LoaderOptions {
        epoch: cursor.epoch,
        epochs: config.epochs.saturating_sub(cursor.epoch),
        first_step: cursor.step_in_epoch,
        part,
        ..config.loader()
    };
    Loader::start(Arc::clone(source), recipe, options)
}

impl TrainConfig {
    /// A split of the dataset, or a uniform sample of so many of its rows, read through the run's cache if it has one.
    ///
    /// # Errors
    /// If there is no such split, or the split or the cache cannot be read.
    pub fn source(
        &self,
        dataset: &Location,
        manifest: &Manifest,
        split: &str,
        limit: Option<usize>,
    ) -> Result<Arc<dyn Source>, LoaderError> {
        if self.cache.is_empty() {
            return open_split(dataset, manifest, split, limit);
        }
        let folder = Location::parse_local(&self.cache).map_err(LoaderError::Cache)?;
        let cache = BlobCache::open(&folder, self.cache_size.0).map_err(LoaderError::Cache)?;
        open_split_cached(dataset, manifest, split, limit, Some(cache))
    }

    /// The loader's options, for an epoch from its start.
    pub fn loader(&self) -> LoaderOptions {
        let shuffle = match self.shuffle {
            ShuffleKind::Exact => Shuffle::Exact,
            ShuffleKind::Windowed => Shuffle::Windowed { rows: self.window },
        };
        LoaderOptions {
            batch_size: self.batch_size,
            seed: self.seed,
            shuffle,
            drop_last: self.drop_last,
            micro_batches: self.accumulate,
            threads: self.loader_threads,
            read_threads: self.read_threads,
            prefetch: self.prefetch,
            memory_limit: self.memory_limit.0,
            on_corrupt: self.on_corrupt,
            max_corrupt: self.max_corrupt,
            ..LoaderOptions::default()
        }
    }
}
