//! How a run begins, or goes on.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bank::BankInit;
use crate::dataset::Manifest;
use crate::distributed::ProcessGroup;
use crate::loader::{Part, Source};
use crate::model::select_device_of;

use super::background::Writer;
use super::data;
use super::encode::encode_bank;
use super::metrics::Metrics;
use super::parts_of_ranks::PartsOfRanks;
use super::retention::Retention;
use super::saving::{DataIdentity, publish_config};
use super::session::Session;
use super::start::{Start, agree, begin_with, check_size, set_precision};
use super::state::Trainer;
use super::{Hooks, RunSummary, StopFlag, TrainError, TrainJob};

/// So long a process whose peers were lost may take to find out by itself: it may wait for data, or for a device.
const LOST_GRACE: Duration = Duration::from_secs(3);

impl<'a> Session<'a> {
    /// Brings the processes together, and each to where the newest checkpoint is; a new run's first one is begun.
    ///
    /// # Errors
    /// See [`TrainError`].
    pub(super) fn open(
        job: &'a TrainJob,
        hooks: &mut dyn Hooks,
        stop: &StopFlag,
    ) -> Result<Self, TrainError> {
        let config = &job.config;
        config.validate()?;
        let manifest = Manifest::read(&job.dataset)?;
        let source = data::open(job, &manifest)?;
        let instances = source.len();
        check_size(job, instances)?;
        let identity = DataIdentity::of(job, &manifest, &source)?;
        let selected = select_device_of(config.device, job.rendezvous.local_rank(), job.rendezvous.world())?;
        set_precision(config, selected.device);
        let group = ProcessGroup::join(&job.rendezvous, selected.device, job.collective_timeout)?;
        group.when_lost(LOST_GRACE, job.on_lost);
        agree(&group, config, &identity.trained_on, selected.device)?;
        let Start { lock, found } = Start::of(&group, &job.run)?;
        let group = Rc::new(group);
        let mut trainer = Trainer::over(Rc::clone(&group), config.clone(), instances, selected.device)?;
        let source: Arc<dyn Source> = Arc::new(source);
        match &found {
            Some(checkpoint) => trainer.restore(checkpoint, &identity)?,
            None => {
                if let Some(file) = &job.init {
                    begin_with(&mut trainer, file)?;
                }
                if config.bank_init == BankInit::Encode {
                    encode_bank(&mut trainer, &source, stop)?;
                }
            }
        }
        if group.is_first() {
            publish_config(&trainer, &job.run)?;
        }
        let parameters = trainer.encoder.parameters().iter().map(|(_, tensor)| tensor.numel()).sum();
        let steps = trainer.steps_per_epoch();
        hooks.started(&RunSummary {
            device: format!("{:?} ({})", selected.device, selected.reason),
            ranks: group.world(),
            instances,
            parameters,
            resumed_step: trainer.cursor.step,
            total_steps: steps * config.epochs,
        });
        let step = trainer.cursor.step;
        let metrics = group.is_first().then(|| Metrics::resume(&job.run, step)).transpose()?;
        let part = Part { rank: group.rank(), ranks: group.world() };
        let loader = data::load(config, &source, trainer.cursor, part)?;
        let retention = Retention { newest: config.keep, every_steps: config.keep_every_epochs * steps };
        let last = found.as_ref().map(|checkpoint| checkpoint.folder().clone());
        let writer = Writer::new(job.run.clone(), group.is_first().then_some(retention), last);
        let ranks = PartsOfRanks::new(&group);
        let (data, saved) = (Arc::new(identity), Instant::now());
        let (saved_step, shown) = (found.as_ref().map(|_| trainer.cursor.step), saved);
        let mut session =
            Self { job, data, trainer, loader, metrics, writer, ranks, saved, saved_step, shown, lock };
        if found.is_none() {
            session.save()?;
        }
        Ok(session)
    }
}
