//! The options that a training and a fine-tuning share, as flags.

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use crate::model::DeviceChoice;
use crate::train::{Precision, RecipeKind, TrainConfig};

/// The keys of [`TrainConfig`] that have a meaning with and without a bank.
#[derive(Debug, Default, Args, Serialize)]
pub(super) struct LearnFlags {
    /// The augmentations: those of the reference for ImageNet or for CIFAR
    #[arg(long, value_enum, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    recipe: Option<RecipeKind>,
    /// Images of one step
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    batch_size: Option<usize>,
    /// In how many parts a step's images go through the network, to save memory
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    accumulate: Option<usize>,
    /// Passes over the images
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    epochs: Option<u64>,
    /// The learning rate after the warm-up
    #[arg(long, value_name = "RATE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    lr: Option<f64>,
    /// Epochs at which the schedule step lowers the learning rate, with commas between
    #[arg(long, value_name = "EPOCHS", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Option::is_none")]
    lr_milestones: Option<Vec<u64>>,
    /// Weight decay
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
    /// In which precision the network computes (finetune: not f16)
    #[arg(long, value_enum, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    precision: Option<Precision>,
    /// Threads that decode and augment; 0 for one on each core
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    loader_threads: Option<usize>,
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
    /// A line of the metrics after every N steps, beside those of the epochs; 0 for none
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log_every_steps: Option<u64>,
    /// Do not evaluate on another split between epochs
    #[arg(long, num_args = 0, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    no_monitor: Option<bool>,
}

/// Writes the defaults of a configuration into the help texts, but for those keys that come from elsewhere.
pub(super) fn show_defaults(command: clap::Command, defaults: &TrainConfig, but: &[&str]) -> clap::Command {
    let defaults = serde_json::to_value(defaults).unwrap_or_default();
    command.mut_args(|arg| {
        let key = arg.get_id().as_str().to_owned();
        let default = match defaults.get(&key) {
            _ if but.contains(&key.as_str()) => return arg,
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
