//! Encoder, bank, objective and loader of a run, from its configuration.

use std::sync::Arc;

use crate::bank::BankOptions;
use crate::dataset::Manifest;
use crate::loader::{LoaderError, LoaderOptions, Shuffle, Source, open_split, open_split_cached};
use crate::model::{EncoderConfig, Normalisation};
use crate::objective::ObjectiveOptions;
use crate::run_config::{RecipeKind, ShuffleKind, TrainConfig};
use crate::storage::{BlobCache, Location};

impl TrainConfig {
    /// The settings of the objective.
    pub fn objective(&self) -> ObjectiveOptions {
        ObjectiveOptions {
            kind: self.objective,
            temperature: self.temperature,
            negatives: self.negatives,
            sampling: self.negative_sampling,
            exclude_positive: self.exclude_positive,
            eps: self.eps,
            partition: self.partition,
            partition_decay: self.partition_decay,
            proximal_weight: self.proximal_weight,
        }
    }

    /// The settings of a bank of this many instances.
    pub fn bank(&self, instances: usize) -> BankOptions {
        BankOptions { instances, dim: self.dim, dtype: self.bank_dtype, init: self.bank_init }
    }

    /// The settings of the encoder.
    pub fn encoder(&self) -> EncoderConfig {
        // As the reference does: 256 for 224, and no margin for small images.
        let evaluation_resize = match self.recipe {
            RecipeKind::Imagenet => self.image_size * 256 / 224,
            RecipeKind::Cifar => self.image_size,
        };
        EncoderConfig {
            arch: self.arch,
            dim: self.dim,
            normalisation: Normalisation::of_recipe(self.recipe),
            image_size: self.image_size,
            evaluation_resize,
        }
    }

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
