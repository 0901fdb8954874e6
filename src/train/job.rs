//! A training job, and what one process knows of it before it joins the others.

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

/// What to train on, where to, and how.
#[derive(Clone, Debug)]
pub struct TrainJob {
    /// The dataset's folder.
    pub dataset: Location,
    /// The run's folder.
    pub run: Location,
    /// The file of weights to begin with, where the configuration names one.
    pub init: Option<Location>,
    /// The configuration.
    pub config: TrainConfig,
    /// Which of the run's processes this is.
    pub rendezvous: Rendezvous,
    /// Another process counts as lost after this long without an answer.
    pub collective_timeout: Duration,
    /// Called on another thread where others were lost and this process is blocked where no error reaches it;
    /// all it can do is end the process.
    pub on_lost: fn(DistributedError),
}

impl TrainJob {
    /// Checks what [`train`](super::train()) refuses before its first step, as far as one process knows it
    /// and files show without being read whole. Nothing is written. Returns the steps that are done, of a run
    /// that has begun.
    ///
    /// # Errors
    /// As [`train`](super::train()).
    pub fn check(&self) -> Result<Option<u64>, TrainError> {
        // The cache's folder is made where it is used.
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

    /// Opens what is trained on, and checks that the configuration fits it.
    pub(super) fn open(&self) -> Result<(Arc<dyn Source>, DataIdentity), TrainError> {
        let config = &self.config;
        config.validate()?;
        let manifest = Manifest::read(&self.dataset)?;
        let source = config.training_source(&self.dataset, &manifest)?;
        config.check_size(source.len(), self.rendezvous.world())?;
        let data = DataIdentity::of(self, &manifest, source.as_ref())?;
        config.check_labels(data.labels.iter().flatten().count() as u64, &self.dataset)?;
        Ok((source, data))
    }

    /// The device of this process.
    pub(super) fn device(&self) -> Result<SelectedDevice, TrainError> {
        let Self { config, rendezvous, .. } = self;
        Ok(select_device_of(config.device, rendezvous.local_rank(), rendezvous.world())?)
    }

    /// Of an error before this process joins the others, they are told.
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

/// Checks that a run which has done some epochs is not asked to end before.
///
/// # Errors
/// If it is, and it is not finished; if the store fails.
pub(super) fn check_epochs(run: &Location, done: u64, asked: u64) -> Result<(), TrainError> {
    if done > asked && finished_step(run)?.is_none() {
        return Err(TrainError::FewerEpochs { run: run.to_string(), done, asked });
    }
    Ok(())
}
