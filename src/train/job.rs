//! Training jobs, and the checks that one process makes before it joins the others.

use std::sync::Arc;
use std::time::Duration;

use super::checkpoint::DataIdentity;
use super::checkpoint::resume::compatible_state;
use super::{StopFlag, TrainError};
use crate::checkpoint::{Checkpoint, finished_step, newest_that};
use crate::dataset::Manifest;
use crate::distributed::{DistributedError, ProcessGroup, Rendezvous};
use crate::failure::chain;
use crate::loader::Source;
use crate::model::{SelectedDevice, select_device_of};
use crate::run_config::TrainConfig;
use crate::storage::Location;

/// Training job: data, run, configuration and process.
#[derive(Clone, Debug)]
pub struct TrainJob {
    /// Folder of the dataset.
    pub dataset: Location,
    /// Folder of the run.
    pub run: Location,
    /// File of initial weights, if the configuration names one.
    pub init: Option<Location>,
    /// Configuration of the run.
    pub config: TrainConfig,
    /// Rank of this process, and the meeting point.
    pub rendezvous: Rendezvous,
    /// Time without an answer after which another process counts as lost.
    pub collective_timeout: Duration,
    /// Called on another thread if others are lost while this process is blocked where no error reaches it.
    /// The callback can only end the process.
    pub on_lost: fn(DistributedError),
}

impl TrainJob {
    /// Checks as much as one process can before [`train`](super::train()), without reading whole files.
    /// Writes nothing. Returns the number of steps done if the run has started.
    ///
    /// # Errors
    /// As [`train`](super::train()).
    pub fn check(&self) -> Result<Option<u64>, TrainError> {
        // The run creates the cache's folder, not the check.
        let uncached = TrainConfig { cache: String::new(), ..self.config.clone() };
        let (_, data) = Self { config: uncached, ..self.clone() }.open()?;
        if self.config.cuda_graphs {
            self.config.check_graphs(self.rendezvous.is_alone(), self.device()?.device)?;
        }
        let with_state = |checkpoint: Checkpoint| checkpoint.state().map(|_| checkpoint);
        let (Some(newest), _) = newest_that(&self.run, with_state)? else { return Ok(None) };
        let state = compatible_state(&newest, &self.config, &data, |_| None)?;
        check_epochs(&self.run, state.cursor.epoch, self.config.epochs)?;
        Ok(Some(state.cursor.step))
    }

    /// Reads the manifest of the dataset, into which the run may not write.
    pub(super) fn manifest(&self) -> Result<Manifest, TrainError> {
        let manifest = Manifest::read(&self.dataset)?;
        if self.run.is_within(&self.dataset) {
            let reason =
                format!("--run {} is within --dataset {}; give a folder beside it", self.run, self.dataset);
            return Err(TrainError::Config { reason });
        }
        Ok(manifest)
    }

    /// Opens the training data, and checks that the configuration fits it.
    pub(super) fn open(&self) -> Result<(Arc<dyn Source>, DataIdentity), TrainError> {
        let config = &self.config;
        config.validate()?;
        let manifest = self.manifest()?;
        let source = config.training_source(&self.dataset, &manifest)?;
        config.check_size(source.len(), self.rendezvous.world())?;
        let data = DataIdentity::of(self, &manifest, source.as_ref())?;
        config.check_labels(data.labels.iter().flatten().count() as u64, &self.dataset)?;
        Ok((source, data))
    }

    /// Selects the device of this process.
    pub(super) fn device(&self) -> Result<SelectedDevice, TrainError> {
        let Self { config, rendezvous, .. } = self;
        Ok(select_device_of(config.device, rendezvous.local_rank(), rendezvous.world())?)
    }

    /// Reports an error of this process to the others before it joins them.
    pub(super) fn told<T>(&self, done: Result<T, TrainError>, stop: &StopFlag) -> Result<T, TrainError> {
        done.inspect_err(|error| {
            let failure = error.failure();
            ProcessGroup::fail_before_joining(
                &self.rendezvous,
                self.collective_timeout,
                stop,
                failure,
                &chain(error),
            );
        })
    }
}

/// Checks that a run is not asked for fewer epochs than it has done.
///
/// # Errors
/// If fewer are asked for and the run has not finished, or the store fails.
pub(super) fn check_epochs(run: &Location, done: u64, asked: u64) -> Result<(), TrainError> {
    if done > asked && finished_step(run)?.is_none() {
        return Err(TrainError::FewerEpochs { run: run.to_string(), done, asked });
    }
    Ok(())
}
