//! The options of a run as flags.

use clap::Args;
use serde::Serialize;

use crate::bank::{BankDtype, BankInit};
use crate::cli::learn_flags::LearnFlags;
use crate::loader::OnCorrupt;
use crate::model::Architecture;
use crate::objective::{ObjectiveKind, PartitionChoice, Sampling};
use crate::train::{LrSchedule, OnNonFinite, OptimizerKind, ShuffleKind};
use crate::units::{BankMomentum, ByteSize, Temperature};

/// The keys of [`TrainConfig`](crate::train::TrainConfig) as flags.
#[derive(Debug, Default, Args, Serialize)]
pub(in crate::cli) struct TrainFlags {
    #[command(flatten)]
    #[serde(flatten)]
    learn: LearnFlags,
    /// The split to train on
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    split: Option<String>,
    /// Train on a uniform sample of N images; 0 for all
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u64>,
    /// The backbone
    #[arg(long, value_enum, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    arch: Option<Architecture>,
    /// Begin with the weights of this safetensors file with torchvision's names (URL)
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    init: Option<String>,
    /// The length of the embedding
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    dim: Option<usize>,
    /// The side of the square that the encoder sees, in pixels
    #[arg(long, value_name = "PIXELS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    image_size: Option<u32>,
    /// The objective
    #[arg(long, value_enum, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    objective: Option<ObjectiveKind>,
    /// K, sampled rows of each image (nce, infonce)
    #[arg(long, value_name = "K")]
    #[serde(skip_serializing_if = "Option::is_none")]
    negatives: Option<usize>,
    /// Whether each image has sampled rows of its own
    #[arg(long, value_enum, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    negative_sampling: Option<Sampling>,
    /// Leave out a sampled row that is the image's own
    #[arg(long, num_args = 0, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    exclude_positive: Option<bool>,
    /// τ, by which similarities are divided
    #[arg(long, value_name = "TAU")]
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<Temperature>,
    /// The weight of the OLD row when the bank is updated, 0 to below 1
    #[arg(long, value_name = "M")]
    #[serde(skip_serializing_if = "Option::is_none")]
    bank_momentum: Option<BankMomentum>,
    /// The type in which the bank keeps its numbers
    #[arg(long, value_enum, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    bank_dtype: Option<BankDtype>,
    /// The bank's rows before the first step
    #[arg(long, value_enum, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    bank_init: Option<BankInit>,
    /// The constant Z of nce: `ema` follows the bank by a moving average, `fixed` is estimated from the first batch as in
    /// the reference (it fails on small or young banks), `delayed` is the mean over the first epoch and constant after it,
    /// a number is that number
    #[arg(long, value_name = "CHOICE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<PartitionChoice>,
    /// The weight of the old Z in the moving average
    #[arg(long, value_name = "D")]
    #[serde(skip_serializing_if = "Option::is_none")]
    partition_decay: Option<f64>,
    /// λ of the proximal term (paper, equation 9); the reference has none
    #[arg(long, value_name = "LAMBDA")]
    #[serde(skip_serializing_if = "Option::is_none")]
    proximal_weight: Option<f64>,
    /// Added to the noise's probability (nce); the reference has 1e-7
    #[arg(long, value_name = "EPS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    eps: Option<f64>,
    /// The optimiser
    #[arg(long, value_enum, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    optimizer: Option<OptimizerKind>,
    /// How the learning rate falls
    #[arg(long, value_enum, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    lr_schedule: Option<LrSchedule>,
    /// The factor at each of --lr-milestones
    #[arg(long, value_name = "FACTOR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    lr_decay: Option<f64>,
    /// Where the schedule cosine ends
    #[arg(long, value_name = "RATE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    lr_final: Option<f64>,
    /// Epochs in which the learning rate rises from 0, step by step
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    warmup_epochs: Option<u64>,
    /// The momentum of sgd and lars
    #[arg(long, value_name = "M")]
    #[serde(skip_serializing_if = "Option::is_none")]
    momentum: Option<f64>,
    /// Nesterov's form of the momentum (sgd)
    #[arg(long, num_args = 0, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    nesterov: Option<bool>,
    /// The decay of the mean of gradients (adamw)
    #[arg(long, value_name = "B")]
    #[serde(skip_serializing_if = "Option::is_none")]
    adam_beta1: Option<f64>,
    /// The decay of the mean of squared gradients (adamw)
    #[arg(long, value_name = "B")]
    #[serde(skip_serializing_if = "Option::is_none")]
    adam_beta2: Option<f64>,
    /// The ratio of a layer's step to its weights (lars)
    #[arg(long, value_name = "RATIO")]
    #[serde(skip_serializing_if = "Option::is_none")]
    lars_trust: Option<f64>,
    /// No weight decay on biases and on batch norm's parameters
    #[arg(long, num_args = 0, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    decay_matrices_only: Option<bool>,
    /// Scale gradients down to this norm where theirs is larger; 0 for never
    #[arg(long, value_name = "NORM")]
    #[serde(skip_serializing_if = "Option::is_none")]
    clip_norm: Option<f64>,
    /// Batch norm takes mean and variance over the images of all processes
    #[arg(long, num_args = 0, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    sync_batch_norm: Option<bool>,
    /// Keep activations and kernels with the channels last in memory
    #[arg(long, num_args = 0, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    channels_last: Option<bool>,
    /// What to do at a step whose loss, features or gradient are not finite
    #[arg(long, value_enum, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    on_nonfinite: Option<OnNonFinite>,
    /// How the instances of an epoch are mixed: exact, or windowed, which streams whole row groups
    #[arg(long, value_enum, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    shuffle: Option<ShuffleKind>,
    /// Rows of a window (--shuffle windowed); more mix better and take more memory
    #[arg(long, value_name = "ROWS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<usize>,
    /// Leave out the last batch of an epoch if it is short
    #[arg(long, num_args = 0, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    drop_last: Option<bool>,
    /// What happens to a missing or corrupt image: fail, or skip, which leaves it out and counts it
    #[arg(long, value_enum, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    on_corrupt: Option<OnCorrupt>,
    /// With --on-corrupt skip: end the run once more than this many images were left out
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_corrupt: Option<u64>,
    /// The memory of the loader, such as 4GiB; 0 for 4 GiB
    #[arg(long, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_limit: Option<ByteSize>,
    /// A folder on a local disk that keeps data of an object store; several jobs may share it
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<String>,
    /// The bytes that --cache keeps, such as 200GiB
    #[arg(long, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_size: Option<ByteSize>,
    /// Threads that read
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    read_threads: Option<usize>,
    /// Print after each epoch what each stage of the loader did and waited for
    #[arg(long, num_args = 0, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    stats: Option<bool>,
    /// Batches that are made ahead of need
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    prefetch: Option<usize>,
    /// A checkpoint where N minutes have passed since the last one; 0 for none
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint_every_minutes: Option<f64>,
    /// Evaluate the bank after every N epochs, and after the last
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    monitor_every: Option<u64>,
    /// The split whose images are the queries; by default the first of val, valid, validation, dev, test and testing
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    monitor_split: Option<String>,
    /// How many of its images are queries; 0 for a fifth of the training images, 200 at least, 10,000 at most
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    monitor_images: Option<u64>,
    /// The checkpoint of every N-th epoch is kept for ever; 0 for none
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_every_epochs: Option<u64>,
}
