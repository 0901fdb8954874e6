//! Fine-tuning: an encoder goes on to learn from few labels, with a classifier in place of its projection.
//!
//! The run is one like that of [`train`](super::train): the same loader, optimisers, schedules, checkpoints and
//! metrics, and the same command goes on where it was. Only the loss differs, which is the cross entropy of the
//! labels, and there is no bank.
//!
//! # Source
//! Paper, section 4.3 (semi-supervised learning): 70 epochs, learning rate 0.01, a tenth of it after every 30.

mod opening;
mod saving;
mod tuner;

use serde::{Deserialize, Serialize};

pub use opening::finetune;

use super::TrainJob;
use crate::loader::SubsetRecord;
use crate::run_config::{BankInit, LrSchedule, PartitionChoice, TrainConfig};
use crate::storage::{Digest, Location};
use crate::units::Fraction;

/// What to fine-tune, on what, and how.
#[derive(Clone, Debug)]
pub struct FinetuneJob {
    /// The dataset, the run and the configuration. Of the latter, what concerns objective and bank has no meaning;
    /// the embedding's length becomes the number of classes.
    pub train: TrainJob,
    /// The checkpoint with whose weights it begins.
    pub from: Location,
    /// Which labels, and whether the weights count.
    pub labels: LabelOptions,
}

/// Which labels are seen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelOptions {
    /// Their share, the same number for each class.
    pub fraction: Fraction,
    /// The seed by which they are chosen.
    pub seed: u64,
    /// Begin with random weights instead: what the labels teach by themselves.
    pub from_scratch: bool,
}

/// What a checkpoint of a fine-tuning says of its labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct LabelRecord {
    options: LabelOptions,
    /// Which these are.
    subset: SubsetRecord,
    /// The weights with which it began; none for random ones.
    weights: Option<Digest>,
}

/// The paper's schedule; the rest is that of the run whose encoder is fine-tuned.
pub fn finetune_protocol(of_run: &TrainConfig) -> TrainConfig {
    TrainConfig {
        split: of_run.split.clone(),
        arch: of_run.arch,
        image_size: of_run.image_size,
        recipe: of_run.recipe,
        epochs: 70,
        lr: 0.01,
        lr_schedule: LrSchedule::Step,
        lr_milestones: vec![30, 60],
        lr_decay: 0.1,
        // Of no account, and as they were when the first fine-tunings were begun.
        partition: PartitionChoice::Fixed,
        bank_init: BankInit::Uniform,
        ..TrainConfig::default()
    }
}
