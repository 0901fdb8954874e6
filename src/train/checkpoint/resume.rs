//! What comes before the first step.

use crate::checkpoint::{Checkpoint, TrainedOn, checkpoint_name};
use crate::distributed::ProcessGroup;
use crate::failure::Failure;
use crate::model::{NamedTensors, allow_tf32};
use crate::storage::{Location, Lock};

use super::restore::newest;
use super::retention::remove_unpublished;
use crate::run_config::{ObjectiveKind, Precision, TrainConfig};
use crate::train::state::Trainer;
use crate::train::{PartError, TrainError, TrainJob};

/// The key under which rank 0 says from where the run goes on.
const FOUND: &str = "found";

/// What a call finds.
#[derive(Debug)]
pub(in crate::train) struct Start {
    /// Rank 0's.
    pub(in crate::train) lock: Option<Lock>,
    /// The checkpoint from which the run goes on.
    pub(in crate::train) found: Option<Checkpoint>,
}

impl Start {
    /// Rank 0 takes the run's lock, looks for the newest checkpoint that is whole and removes what is not; the
    /// others take its word.
    ///
    /// # Errors
    /// If another job has the lock, no checkpoint is whole, or the store fails.
    pub(in crate::train) fn of(group: &ProcessGroup, run: &Location) -> Result<Self, TrainError> {
        let here = group.is_first().then(|| Self::alone(run));
        if group.world() > 1 {
            let word = match &here {
                None => Ok(None),
                Some(Ok(start)) => Ok(start.found.as_ref().map(|found| found.manifest().step)),
                Some(Err(error)) => Err((error.to_string(), error.failure())),
            };
            // Rank 0 may read a large checkpoint: no collective, which would give up.
            if group.is_first() {
                group.store().set(FOUND, &serde_json::to_vec(&word).expect("a word is plain data"))?;
            } else {
                let said = group.store().wait_for(FOUND)?;
                let word = serde_json::from_slice::<Result<Option<u64>, (String, Failure)>>(&said);
                let other_rank = |(reason, failure)| TrainError::OtherRank { rank: 0, reason, failure };
                let word = word.map_err(|error| other_rank((error.to_string(), Failure::Other)))?;
                let step = word.map_err(other_rank)?;
                let open = |step| Checkpoint::open(&run.join("checkpoints").join(&checkpoint_name(step)));
                return Ok(Self { lock: None, found: step.map(open).transpose()? });
            }
        }
        here.expect("rank 0 has looked")
    }

    fn alone(run: &Location) -> Result<Self, TrainError> {
        let lock = Lock::take(&run.join("lock"))?;
        let found = newest(run)?;
        remove_unpublished(run)?;
        Ok(Self { lock: Some(lock), found })
    }
}

/// Whether all processes are of one run.
///
/// # Errors
/// What differs, and on which rank.
pub(in crate::train) fn agree(
    group: &ProcessGroup,
    config: &TrainConfig,
    trained_on: &TrainedOn,
    device: tch::Device,
) -> Result<(), TrainError> {
    if group.world() == 1 {
        return Ok(());
    }
    group.agree("the program", &program())?;
    group.agree("the dataset's digest", &trained_on.dataset_digest)?;
    group.agree("the kind of device", if device.is_cuda() { "cuda" } else { "cpu" })?;
    for (key, value) in config.of_all_ranks() {
        group.agree(&format!("the option {key}"), &value.to_string())?;
    }
    Ok(())
}

/// What program this is: its version, and the digest of its file where that can be read.
fn program() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let digest = std::env::current_exe().and_then(std::fs::File::open).and_then(|file| {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file).map(|hasher| hasher.finalize().to_hex())
    });
    digest.map_or_else(|_| version.to_owned(), |digest| format!("{version} ({})", &digest[..16]))
}

/// Puts the weights of a file in place of the initial ones.
pub(in crate::train) fn begin_with(trainer: &mut Trainer, file: &Location) -> Result<(), TrainError> {
    let wrong = |source| {
        let arch = <&str>::from(trainer.config.arch).to_owned();
        TrainError::Part(PartError::Init { file: file.to_string(), arch, source })
    };
    let weights = NamedTensors::from_bytes(&file.read()?).map_err(wrong)?;
    let whole = trainer.encoder.load_backbone(&weights).map_err(wrong)?;
    tracing::info!("weights of {file}{}", if whole { "" } else { ", without its last layer" });
    Ok(())
}

/// Sets libtorch's switches for f32 products.
pub(in crate::train) fn set_precision(config: &TrainConfig, device: tch::Device) {
    // In a 16-bit run the objective's products, which are f32, need be no more exact than the features.
    let tf32 = config.precision != Precision::F32;
    if let Err(reason) = allow_tf32(tf32) {
        tracing::warn!("{reason}");
    }
    if config.precision == Precision::Tf32 && !device.is_cuda() {
        tracing::warn!("precision tf32 is that of CUDA's tensor cores; here it is f32");
    }
}

/// Says what of the options does little good with so many instances.
pub(in crate::train) fn advise(job: &TrainJob, instances: usize) {
    let config = &job.config;
    if config.objective != ObjectiveKind::Softmax && config.negatives >= instances {
        tracing::warn!(
            "{} rows are sampled of {instances}: `--objective softmax` takes each once, for less",
            config.negatives
        );
    }
    if config.batch_size > instances {
        tracing::warn!(
            "a batch of {} holds all {instances} images: an epoch is one step; a smaller `--batch-size` makes more",
            config.batch_size
        );
    }
}

/// Whether there are enough images.
///
/// # Errors
/// If there are not.
pub(in crate::train) fn check_size(job: &TrainJob, instances: usize) -> Result<(), TrainError> {
    let ranks = job.rendezvous.world();
    let part = job.config.batch_size / job.config.accumulate;
    if ranks > 1 && (instances < ranks || part < 2 * ranks) {
        let reason = format!(
            "{ranks} ranks need {ranks} images at least and {} in each part of a batch; there are {instances} \
             and {part}",
            2 * ranks
        );
        return Err(TrainError::Config { reason });
    }
    if instances < 2 {
        let reason = format!("split {:?} has {instances} images; training needs two", job.config.split);
        return Err(TrainError::Config { reason });
    }
    if job.config.loader().steps(instances) == 0 {
        let reason = format!(
            "split {:?} has {instances} images, fewer than a batch of {}, and drop_last leaves short ones out",
            job.config.split, job.config.batch_size
        );
        return Err(TrainError::Config { reason });
    }
    Ok(())
}
