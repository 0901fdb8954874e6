//! Encoder and loader of a run from its configuration, and checks that the configuration fits the data.

use std::sync::Arc;

use super::TrainError;
use super::graphs::Graphs;
use crate::augment::Recipe;
use crate::checkpoint::Cursor;
use crate::dataset::Manifest;
use crate::ids::RankShare;
use crate::loader::{Loader, LoaderError, LoaderOptions, Shuffle, Source, open_split, open_split_cached};
use crate::model::{EncoderConfig, Normalisation, allow_tf32};
use crate::run_config::{ObjectiveKind, Precision, RecipeKind, ShuffleKind, TrainConfig};
use crate::storage::{BlobCache, Location};

impl TrainConfig {
    /// Returns the encoder's configuration.
    pub fn encoder(&self) -> EncoderConfig {
        // As in the reference: 256 for 224, and no margin for small images.
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

    /// Opens a split of the dataset, or a uniform sample of `limit` of its rows, through the run's cache if set.
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

    /// Returns the loader's options for a whole epoch.
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

    /// Opens the split that a run trains on.
    pub(super) fn training_source(
        &self,
        dataset: &Location,
        manifest: &Manifest,
    ) -> Result<Arc<dyn Source>, LoaderError> {
        let limit = if self.limit == 0 { None } else { Some(self.limit as usize) };
        self.source(dataset, manifest, &self.split, limit)
    }

    /// Starts a loader of this rank's share of all remaining batches.
    pub(super) fn start_loader(
        &self,
        source: &Arc<dyn Source>,
        cursor: Cursor,
        share: RankShare,
    ) -> Result<Loader, LoaderError> {
        let recipe = Recipe::new(self.recipe, self.image_size);
        let options = LoaderOptions {
            epoch: cursor.epoch,
            epochs: self.epochs.saturating_sub(cursor.epoch),
            first_step: cursor.step_in_epoch,
            share,
            ..self.loader()
        };
        Loader::start(Arc::clone(source), recipe, options)
    }

    /// Configures libtorch's rounding of f32 products.
    pub(super) fn set_precision(&self, device: tch::Device) {
        // In a 16-bit run the objective's f32 products need not be more exact than the features.
        let tf32 = self.precision != Precision::F32;
        if let Err(reason) = allow_tf32(tf32) {
            tracing::warn!("{reason}");
        }
        if self.precision == Precision::Tf32 && !device.is_cuda() {
            tracing::warn!("precision tf32 is that of CUDA's tensor cores; here it is f32");
        }
    }

    /// Warns of options that have little effect with this many instances.
    pub(super) fn advise(&self, instances: usize) {
        if self.objective != ObjectiveKind::Softmax && self.negatives >= instances {
            tracing::warn!(
                "{} rows are sampled of {instances}: `--objective softmax` takes each once, for less",
                self.negatives
            );
        }
        if !self.probe && self.probe_lr != Self::default().probe_lr {
            tracing::warn!("--probe-lr {} has no effect without --probe", self.probe_lr);
        }
        if self.batch_size > instances {
            tracing::warn!(
                "a batch of {} holds all {instances} images: an epoch is one step; a smaller `--batch-size` makes more",
                self.batch_size
            );
        }
    }

    /// Checks that a probe, if enabled, has labels.
    ///
    /// # Errors
    /// If no image has a label.
    pub fn check_labels(&self, labelled: u64, dataset: &Location) -> Result<(), TrainError> {
        if !self.probe || labelled > 0 {
            return Ok(());
        }
        let reason = format!(
            "--probe learns from labels, and none of the images trained on (split `{}` of {dataset}) has \
             one: ingest it with its classes, or score the encoder on a labelled dataset by --monitor. A \
             resumed run keeps its probe unless --config has `probe = false`",
            self.split
        );
        Err(TrainError::Config { reason })
    }

    /// Checks that `cuda_graphs` fits the other options.
    pub(super) fn check_graphs(&self, is_alone: bool, device: tch::Device) -> Result<(), TrainError> {
        let others = [
            (!is_alone, "ranks (--rank, torchrun, srun)"),
            (self.accumulate > 1, "--accumulate"),
            (self.sync_batch_norm, "--sync-batch-norm"),
        ];
        if !self.cuda_graphs {
            return Ok(());
        }
        let Some((_, other)) = others.into_iter().find(|(is_there, _)| *is_there) else {
            return Graphs::device_number(device).map(drop);
        };
        Err(TrainError::Config { reason: format!("--cuda-graphs does not work with {other}; leave one out") })
    }

    /// Checks that there are enough images for this many ranks.
    pub(super) fn check_size(&self, instances: usize, ranks: usize) -> Result<(), TrainError> {
        let part = self.batch_size / self.accumulate;
        if ranks > 1 && (instances < ranks || part < 2 * ranks) {
            let reason = format!(
                "{ranks} ranks need {ranks} images at least and {} in each part of a batch; there are {instances} \
                 and {part}",
                2 * ranks
            );
            return Err(TrainError::Config { reason });
        }
        if instances < 2 {
            let reason = format!("split {:?} has {instances} images; training needs two", self.split);
            return Err(TrainError::Config { reason });
        }
        if self.loader().steps(instances) == 0 {
            let reason = format!(
                "split {:?} has {instances} images, fewer than a batch of {}, and drop_last leaves short ones out",
                self.split, self.batch_size
            );
            return Err(TrainError::Config { reason });
        }
        Ok(())
    }
}
