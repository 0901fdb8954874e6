//! Errors of training runs.

use crate::checkpoint::CheckpointError;
use crate::dataset::DatasetError;
use crate::distributed::DistributedError;
use crate::failure::Failure;
use crate::feature_table::TableError;
use crate::loader::LoaderError;
use crate::model::{DeviceError, WeightsError};
use crate::run_config::{Architecture, Difference, InvalidConfig};
use crate::storage::{Location, StorageError};

/// Error that keeps a training run from starting or continuing.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The configuration contradicts itself or does not fit the dataset.
    #[error("{reason}")]
    Config {
        /// Description of the problem.
        reason: String,
    },
    /// The run was started with another configuration.
    #[error("the run of {checkpoint} was begun with another configuration and cannot go on: {}; give it \
             those values, or another --run", shown(.differences))]
    OtherConfig {
        /// Checkpoint to resume from.
        checkpoint: String,
        /// All keys that differ.
        differences: Vec<Difference>,
    },
    /// The run was started on another dataset.
    #[error(
        "the checkpoint {checkpoint} is of the dataset {before:.12}…, not of --dataset {dataset} \
         ({now:.12}…); give that one, or another --run"
    )]
    OtherDataset {
        /// Folder of the checkpoint.
        checkpoint: String,
        /// Dataset digest in the checkpoint.
        before: String,
        /// Location of the given dataset.
        dataset: String,
        /// Digest of that dataset.
        now: String,
    },
    /// A quantity is no longer finite.
    #[error("step {step}: the {quantity} is {value}; the last checkpoint remains (ids: {ids:?})")]
    NotFinite {
        /// Step, counted from 0.
        step: u64,
        /// Name of the quantity.
        quantity: &'static str,
        /// Value of the quantity.
        value: f64,
        /// Instances whose features are not finite, or else all of this process's batch.
        ids: Vec<u32>,
    },
    /// The weights are not finite, so no checkpoint is written.
    #[error("step {step}: {name} is not finite; the checkpoint before it remains")]
    Poisoned {
        /// Steps done.
        step: u64,
        /// Name of the weight or buffer.
        name: String,
    },
    /// The initial encoder's features are not finite.
    #[error("the features of {whose} are not finite in {precision}; {advice}")]
    NotEncoded {
        /// Description of the encoder.
        whose: String,
        /// Advice for the user.
        advice: &'static str,
        /// Precision in which the network computes.
        precision: &'static str,
    },
    /// Fewer epochs are requested than an unfinished run has done.
    #[error(
        "{run}: {done} epochs are done and the run is not finished; `--epochs {asked}` is fewer, and more go on"
    )]
    FewerEpochs {
        /// Folder of the run.
        run: String,
        /// Epochs done.
        done: u64,
        /// Epochs requested.
        asked: u64,
    },
    /// A signal stopped the run; everything is saved.
    #[error("{}", stopped(*step))]
    Stopped {
        /// Steps done.
        step: u64,
    },
    /// Another rank failed and ends with its own error.
    #[error("rank {rank}: {reason}")]
    OtherRank {
        /// Number of the rank.
        rank: usize,
        /// Error text of that rank.
        reason: String,
        /// Kind of its failure.
        failure: Failure,
    },
    /// The operating system could not start the thread that writes checkpoints.
    #[error("no thread can be started")]
    Threads(#[source] std::io::Error),
    /// The file of initial weights is not usable.
    #[error("--init {file}: {reason}")]
    Init {
        /// Name of the file.
        file: String,
        /// Reason, for people.
        reason: String,
        /// Underlying error.
        #[source]
        source: WeightsError,
    },
    /// The dataset is invalid or unreadable.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The loader failed.
    #[error(transparent)]
    Loader(#[from] LoaderError),
    /// A checkpoint is invalid or unreadable.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The bank's file is invalid.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The weights' file is invalid.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The device is not available.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Another process failed or is lost.
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

/// Returns the message of a run that was stopped by a signal.
fn stopped(step: u64) -> String {
    match step {
        0 => "stopped by a signal before the first step; the same command begins again".into(),
        step => format!("stopped after step {step} by a signal; the same command goes on"),
    }
}

impl TrainError {
    /// Returns the error of an untrained encoder, or of one with the weights of `init`.
    pub(super) fn not_encoded(init: &str, precision: &'static str) -> Self {
        let (whose, advice) = match init {
            "" => ("the untrained encoder".to_owned(), "give --bank-init uniform, or another --precision"),
            file => (format!("the encoder of --init {file}"), "give other weights, or another --precision"),
        };
        Self::NotEncoded { whose, precision, advice }
    }

    /// Returns the error of initial weights that do not fit the network `arch`.
    pub(super) fn of_init(file: &Location, arch: Architecture, source: WeightsError) -> Self {
        let reason = if source.is_of_another_model() {
            format!("not weights of {} (`--arch`), with torchvision's names", <&str>::from(arch))
        } else {
            "its weights cannot be used".to_owned()
        };
        Self::Init { file: file.to_string(), reason, source }
    }

    /// Returns the kind of failure, which selects the exit code.
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
