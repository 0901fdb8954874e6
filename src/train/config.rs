//! The configuration of a training run.

mod checks;
mod choices;
mod compatibility;
mod for_images;
mod recipe;

use serde::{Deserialize, Serialize};

pub use checks::InvalidConfig;
pub use choices::{LrSchedule, OnNonFinite, OptimizerKind, Precision};
pub use compatibility::Difference;
pub use for_images::{FEWEST_MONITORED, Images};
pub use recipe::RecipeKind;

use super::data::ShuffleKind;
use crate::bank::{BankDtype, BankInit, BankOptions};
use crate::loader::OnCorrupt;
use crate::model::{Architecture, DeviceChoice, EncoderConfig};
use crate::objective::{ObjectiveKind, ObjectiveOptions, PartitionChoice, Sampling};
use crate::units::{BankMomentum, ByteSize, Temperature};

/// Everything that a run is made from, apart from where it reads and writes.
///
/// The defaults are those of the reference's `main.py` for ImageNet, but for Z and the bank's first rows;
/// [`TrainConfig::for_images`] has those of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// The split to train on.
    pub split: String,
    /// Train on so many instances only, a uniform sample; 0 for all.
    pub limit: u64,
    /// The backbone.
    pub arch: Architecture,
    /// Begin with the weights of this file (safetensors, torchvision's names): a path or URL; empty for random
    /// ones. A projection of another shape than the run's is passed over.
    pub init: String,
    /// The length of the embedding.
    pub dim: usize,
    /// The side of the square that the encoder sees, in pixels.
    pub image_size: u32,
    /// The augmentation recipe.
    pub recipe: RecipeKind,
    /// Images of one step.
    pub batch_size: usize,
    /// In how many parts a step's images go through the network, to save memory. Loss, gradient and bank
    /// are those of the whole step; only batch norm sees each part by itself.
    pub accumulate: usize,
    /// Passes over the split.
    pub epochs: u64,
    /// The objective.
    pub objective: ObjectiveKind,
    /// K, sampled rows of each image, for `nce` and `infonce`.
    pub negatives: usize,
    /// Whether each image has sampled rows of its own.
    pub negative_sampling: Sampling,
    /// Leave out a sampled row that is the image's own.
    pub exclude_positive: bool,
    /// τ.
    pub temperature: Temperature,
    /// The weight of the old row when the bank is updated.
    pub bank_momentum: BankMomentum,
    /// The type in which the bank keeps its numbers.
    pub bank_dtype: BankDtype,
    /// The bank's rows before the first step.
    pub bank_init: BankInit,
    /// Added to the noise's probability by `nce`; the reference has 1e-7, see docs/numerics.md.
    pub eps: f64,
    /// Where Z of `nce` comes from: `ema`, `fixed`, `delayed` or a number.
    pub partition: PartitionChoice,
    /// The weight of the old Z where it is a moving average.
    pub partition_decay: f64,
    /// λ of the proximal term `λ ‖f - v‖²` (paper, equation 9); the reference has none.
    pub proximal_weight: f64,
    /// The optimiser.
    pub optimizer: OptimizerKind,
    /// The learning rate after the warm-up.
    pub lr: f64,
    /// How the learning rate falls.
    pub lr_schedule: LrSchedule,
    /// Epochs at which `step` multiplies the learning rate by `lr_decay`.
    pub lr_milestones: Vec<u64>,
    /// See `lr_milestones`.
    pub lr_decay: f64,
    /// Where `cosine` ends.
    pub lr_final: f64,
    /// Epochs in which the learning rate rises from 0, step by step.
    pub warmup_epochs: u64,
    /// The momentum of `sgd` and `lars`.
    pub momentum: f64,
    /// Nesterov's form of the momentum (`sgd`).
    pub nesterov: bool,
    /// The decay of `adamw`'s mean of gradients.
    pub adam_beta1: f64,
    /// The decay of `adamw`'s mean of squared gradients.
    pub adam_beta2: f64,
    /// The ratio of a layer's step to its weights that `lars` aims at.
    pub lars_trust: f64,
    /// Weight decay; on every parameter as in the reference, unless `decay_matrices_only`.
    pub weight_decay: f64,
    /// No weight decay on biases and on batch norm's parameters (and none of `lars`'s scaling).
    pub decay_matrices_only: bool,
    /// Gradients are scaled down to this norm where theirs is larger; 0 for never.
    pub clip_norm: f64,
    /// The seed of every random number of the run.
    pub seed: u64,
    /// `auto`, `cpu` or `cuda:N`.
    pub device: DeviceChoice,
    /// In which precision the network computes.
    pub precision: Precision,
    /// Batch norm takes mean and variance over the images of all processes, not over those of each.
    pub sync_batch_norm: bool,
    /// Keep activations and kernels with the channels last in memory, as tensor cores like them.
    pub channels_last: bool,
    /// What a step does whose loss, features or gradient are no finite numbers.
    pub on_nonfinite: OnNonFinite,
    /// How the instances of an epoch are mixed.
    pub shuffle: ShuffleKind,
    /// Rows of a window of the windowed shuffle.
    pub window: usize,
    /// Leave out the last batch of an epoch if it is short.
    pub drop_last: bool,
    /// What happens to an image that is missing or corrupt.
    pub on_corrupt: OnCorrupt,
    /// So many instances may be left out as corrupt.
    pub max_corrupt: u64,
    /// The memory of the loader; 0 for a default of 4 GiB.
    pub memory_limit: ByteSize,
    /// A folder of this machine that keeps row groups of an object store; empty for none.
    pub cache: String,
    /// The bytes that are kept there.
    pub cache_size: ByteSize,
    /// Threads that read.
    pub read_threads: usize,
    /// Print after each epoch what each stage of the loader did and waited for.
    pub stats: bool,
    /// Threads that decode and augment; 0 for one on each core.
    pub loader_threads: usize,
    /// Batches that are made ahead of need.
    pub prefetch: usize,
    /// A checkpoint after every so many epochs, and always after the last.
    pub checkpoint_every_epochs: u64,
    /// A checkpoint after every so many steps too; 0 for none.
    pub checkpoint_every_steps: u64,
    /// A checkpoint where so many minutes have passed since the last one; 0 for none.
    pub checkpoint_every_minutes: f64,
    /// How many of the newest checkpoints are kept, beside the initial one; 0 for all.
    pub keep: usize,
    /// The checkpoint of every so many epochs is kept for ever; 0 for none.
    pub keep_every_epochs: u64,
    /// A line of the metrics after every so many steps, beside those of the epochs; 0 for none.
    pub log_every_steps: u64,
    /// Do not evaluate the bank on another split between epochs.
    pub no_monitor: bool,
    /// Evaluate it after every so many epochs, and after the last.
    pub monitor_every: u64,
    /// The split whose images are the queries; empty for the first of
    /// [`EVALUATION_SPLITS`](crate::dataset::EVALUATION_SPLITS) that exists.
    pub monitor_split: String,
    /// How many of its images are queries; 0 for a fifth of the training images, 200 at least and 10,000 at most.
    pub monitor_images: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            split: "train".into(),
            limit: 0,
            arch: Architecture::ResNet18,
            init: String::new(),
            dim: 128,
            image_size: 224,
            recipe: RecipeKind::Imagenet,
            batch_size: 256,
            accumulate: 1,
            epochs: 200,
            objective: ObjectiveKind::Nce,
            negatives: 4096,
            negative_sampling: Sampling::PerSample,
            exclude_positive: false,
            temperature: Temperature::new(0.07).expect("in range"),
            bank_momentum: BankMomentum::new(0.5).expect("in range"),
            bank_dtype: BankDtype::F32,
            bank_init: BankInit::Encode,
            eps: 0.0,
            partition: PartitionChoice::Ema,
            partition_decay: 0.99,
            proximal_weight: 0.0,
            optimizer: OptimizerKind::Sgd,
            lr: 0.03,
            lr_schedule: LrSchedule::Step,
            lr_milestones: vec![120, 160],
            lr_decay: 0.1,
            lr_final: 0.0,
            warmup_epochs: 0,
            momentum: 0.9,
            nesterov: false,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            lars_trust: 0.001,
            weight_decay: 1e-4,
            decay_matrices_only: false,
            clip_norm: 0.0,
            seed: 0,
            device: DeviceChoice::Auto,
            precision: Precision::F32,
            sync_batch_norm: false,
            channels_last: false,
            on_nonfinite: OnNonFinite::Fail,
            shuffle: ShuffleKind::Exact,
            window: 16_384,
            drop_last: false,
            on_corrupt: OnCorrupt::Fail,
            max_corrupt: 100,
            memory_limit: ByteSize(0),
            cache: String::new(),
            cache_size: ByteSize(0),
            read_threads: 8,
            stats: false,
            loader_threads: 0,
            prefetch: 2,
            checkpoint_every_epochs: 1,
            checkpoint_every_steps: 0,
            checkpoint_every_minutes: 0.0,
            keep: 3,
            keep_every_epochs: 0,
            log_every_steps: 50,
            no_monitor: false,
            monitor_every: 1,
            monitor_split: String::new(),
            monitor_images: 0,
        }
    }
}

impl TrainConfig {
    /// What the objective is.
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

    /// What the bank of so many instances is.
    pub fn bank(&self, instances: usize) -> BankOptions {
        BankOptions { instances, dim: self.dim, dtype: self.bank_dtype, init: self.bank_init }
    }

    /// What the encoder is built from.
    pub fn encoder(&self) -> EncoderConfig {
        EncoderConfig {
            arch: self.arch,
            dim: self.dim,
            normalisation: self.recipe.normalisation(),
            image_size: self.image_size,
            evaluation_resize: self.recipe.evaluation_resize(self.image_size),
        }
    }
}
