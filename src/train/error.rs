//! Why a training run ends early.

use crate::checkpoint::CheckpointError;
use crate::dataset::DatasetError;
use crate::distributed::DistributedError;
use crate::failure::Failure;
use crate::feature_table::TableError;
use crate::loader::LoaderError;
use crate::model::{DeviceError, WeightsError};
use crate::run_config::{Architecture, Difference, InvalidConfig};
use crate::storage::{Location, StorageError};

/// A training run cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The configuration makes no sense, for itself or for the dataset.
    #[error("{reason}")]
    Config {
        /// What is wrong.
        reason: String,
    },
    /// The run was begun with another configuration.
    #[error("the run of {checkpoint} was begun with another configuration and cannot go on: {}; give it \
             those values, or another --run", shown(.differences))]
    OtherConfig {
        /// The checkpoint from which it would go on.
        checkpoint: String,
        /// Every key that differs.
        differences: Vec<Difference>,
    },
    /// The run was begun on another dataset.
    #[error(
        "the checkpoint {checkpoint} is of the dataset {before:.12}…, not of --dataset {dataset} \
         ({now:.12}…); give that one, or another --run"
    )]
    OtherDataset {
        /// The checkpoint's folder.
        checkpoint: String,
        /// The digest it names.
        before: String,
        /// The dataset given.
        dataset: String,
        /// Its digest.
        now: String,
    },
    /// A quantity is not a finite number any more.
    #[error("step {step}: the {quantity} is {value}; the last checkpoint remains (ids: {ids:?})")]
    NotFinite {
        /// The step, counted from 0.
        step: u64,
        /// What it is that is not finite.
        quantity: &'static str,
        /// Its value.
        value: f64,
        /// The instances whose features are not finite, else those of the batch.
        ids: Vec<u32>,
    },
    /// The weights are not finite: no checkpoint is made of them.
    #[error("step {step}: {name} is not finite; the checkpoint before it remains")]
    Poisoned {
        /// Steps done.
        step: u64,
        /// The weight or buffer.
        name: String,
    },
    /// The features of the encoder with which a run begins are not finite.
    #[error("the features of {whose} are not finite in {precision}; {advice}")]
    NotEncoded {
        /// Which encoder.
        whose: String,
        /// What helps.
        advice: &'static str,
        /// In which the network computes.
        precision: &'static str,
    },
    /// A run that goes on is to end before the place where it is.
    #[error(
        "{run}: {done} epochs are done and the run is not finished; `--epochs {asked}` is fewer, and more go on"
    )]
    FewerEpochs {
        /// The run's folder.
        run: String,
        /// Epochs that are done.
        done: u64,
        /// Epochs asked for.
        asked: u64,
    },
    /// Stopped by a signal, with everything saved.
    #[error("{}", stopped(*step))]
    Stopped {
        /// Steps done.
        step: u64,
    },
    /// Another rank could not do its part; it ends with its own error.
    #[error("rank {rank}: {reason}")]
    OtherRank {
        /// The rank.
        rank: usize,
        /// What it said.
        reason: String,
        /// The kind of its failure.
        failure: Failure,
    },
    /// The operating system gives no thread to write checkpoints with.
    #[error("no thread can be started")]
    Threads(#[source] std::io::Error),
    /// The file of weights to begin with cannot be used.
    #[error("--init {file}: {reason}")]
    Init {
        /// The file.
        file: String,
        /// Why.
        reason: String,
        /// The cause.
        #[source]
        source: WeightsError,
    },
    /// The dataset.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The loader.
    #[error(transparent)]
    Loader(#[from] LoaderError),
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The bank's file.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The weights' file.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The store.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The other processes of the run.
    #[error(transparent)]
    Distributed(#[from] DistributedError),
}

fn shown(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl From<InvalidConfig> for TrainError {
    fn from(error: InvalidConfig) -> Self {
        Self::Config { reason: error.to_string() }
    }
}

/// What a run that is stopped says.
fn stopped(step: u64) -> String {
    match step {
        0 => "stopped by a signal before the first step; the same command begins again".into(),
        step => format!("stopped after step {step} by a signal; the same command goes on"),
    }
}

impl TrainError {
    /// The error of an encoder that begins with the weights of `init`, or untrained.
    pub(super) fn not_encoded(init: &str, precision: &'static str) -> Self {
        let (whose, advice) = match init {
            "" => ("the untrained encoder".to_owned(), "give --bank-init uniform, or another --precision"),
            file => (format!("the encoder of --init {file}"), "give other weights, or another --precision"),
        };
        Self::NotEncoded { whose, precision, advice }
    }

    /// The error of weights to begin with, which the network of this name cannot use.
    pub(super) fn of_init(file: &Location, arch: Architecture, source: WeightsError) -> Self {
        let reason = if source.is_of_another_model() {
            format!("not weights of {} (`--arch`), with torchvision's names", <&str>::from(arch))
        } else {
            "its weights cannot be used".to_owned()
        };
        Self::Init { file: file.to_string(), reason, source }
    }

    /// The kind of failure, for the exit code.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Config { .. } | Self::OtherConfig { .. } | Self::FewerEpochs { .. } => Failure::Config,
            Self::NotEncoded { .. } | Self::Device(_) => Failure::Config,
            Self::OtherDataset { .. } | Self::Weights(_) | Self::Init { .. } => Failure::Data,
            Self::NotFinite { .. } | Self::Poisoned { .. } | Self::Threads(_) => Failure::Other,
            Self::OtherRank { failure, .. } => *failure,
            Self::Stopped { .. } => Failure::Stopped,
            Self::Dataset(error) => error.failure(),
            Self::Loader(error) => error.failure(),
            Self::Checkpoint(error) => error.failure(),
            Self::Table(error) => error.failure(),
            Self::Storage(error) => error.failure(),
            Self::Distributed(error) => error.failure(),
        }
    }
}
