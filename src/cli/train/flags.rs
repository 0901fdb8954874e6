//! The options of a run as flags.

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use crate::loader::OnCorrupt;
use crate::model::{Architecture, DeviceChoice};
use crate::objective::ObjectiveKind;
use crate::trainer::{Precision, RecipeKind, ShuffleKind, TrainConfig};
use crate::units::{BankMomentum, ByteSize, Temperature};

/// The keys of [`TrainConfig`] as flags.
#[derive(Debug, Default, Args, Serialize)]
pub(super) struct TrainFlags {
    /// The split to train on
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    split: Option<String>,
    /// Train on a uniform sample of N instances; 0 for all
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u64>,
    /// The backbone
    #[arg(long, value_enum, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    arch: Option<Architecture>,
    /// The length of the embedding
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    dim: Option<usize>,
    /// The side of the square that the encoder sees, in pixels
    #[arg(long, value_name = "PIXELS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    image_size: Option<u32>,
    /// The augmentations: those of the reference for ImageNet or for CIFAR
    #[arg(long, value_enum, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    recipe: Option<RecipeKind>,
    /// Pictures of one step
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    batch_size: Option<usize>,
    /// Passes over the split
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    epochs: Option<u64>,
    /// The objective
    #[arg(long, value_enum, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    objective: Option<ObjectiveKind>,
    /// K, noise samples of each picture (nce)
    #[arg(long, value_name = "K")]
    #[serde(skip_serializing_if = "Option::is_none")]
    negatives: Option<usize>,
    /// τ, by which similarities are divided
    #[arg(long, value_name = "TAU")]
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<Temperature>,
    /// The weight of the OLD row when the bank is updated, 0 to below 1
    #[arg(long, value_name = "M")]
    #[serde(skip_serializing_if = "Option::is_none")]
    bank_momentum: Option<BankMomentum>,
    /// Added to the noise's probability (nce); the reference has 1e-7
    #[arg(long, value_name = "EPS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    eps: Option<f64>,
    /// The learning rate of the first epoch
    #[arg(long, value_name = "RATE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    lr: Option<f64>,
    /// Epochs at which the learning rate is multiplied by --lr-decay, with commas between
    #[arg(long, value_name = "EPOCHS", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Option::is_none")]
    lr_milestones: Option<Vec<u64>>,
    /// The factor at each of --lr-milestones
    #[arg(long, value_name = "FACTOR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    lr_decay: Option<f64>,
    /// The momentum of SGD
    #[arg(long, value_name = "M")]
    #[serde(skip_serializing_if = "Option::is_none")]
    momentum: Option<f64>,
    /// Weight decay on every parameter
    #[arg(long, value_name = "W")]
    #[serde(skip_serializing_if = "Option::is_none")]
    weight_decay: Option<f64>,
    /// The seed of every random number of the run
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    /// Where to compute: auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<DeviceChoice>,
    /// In which precision the network computes
    #[arg(long, value_enum, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    precision: Option<Precision>,
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
    /// What happens to a missing or corrupt picture: fail, or skip, which leaves it out and counts it
    #[arg(long, value_enum, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    on_corrupt: Option<OnCorrupt>,
    /// So many instances may be left out (--on-corrupt skip)
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
    /// Threads that decode and augment; 0 for one on each core
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    loader_threads: Option<usize>,
    /// Batches that are made ahead of need
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    prefetch: Option<usize>,
    /// A checkpoint after every N epochs, and always after the last
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint_every_epochs: Option<u64>,
    /// A checkpoint after every N steps too; 0 for none
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint_every_steps: Option<u64>,
    /// How many of the newest checkpoints are kept, beside the initial one; 0 for all
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    keep: Option<usize>,
    /// Do not judge the bank on the val split after each epoch
    #[arg(long, num_args = 0, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    no_monitor: Option<bool>,
}

/// Writes the defaults into the help texts, from the one place that has them.
pub(in crate::cli) fn show_defaults(command: clap::Command) -> clap::Command {
    let defaults = serde_json::to_value(TrainConfig::default()).unwrap_or_default();
    command.mut_args(|arg| {
        let key = arg.get_id().as_str().to_owned();
        let default = match defaults.get(&key) {
            None | Some(Value::Bool(_)) => return arg,
            Some(Value::String(text)) if text.is_empty() => return arg,
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(items)) => items.iter().map(Value::to_string).collect::<Vec<_>>().join(","),
            Some(other) => other.to_string(),
        };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        arg.help(format!("{help} [default: {default}]"))
    })
}
