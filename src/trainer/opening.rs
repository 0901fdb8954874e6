//! How a run begins, or goes on.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bank::BankInit;
use crate::dataset::Manifest;
use crate::distributed::ProcessGroup;
use crate::loader::{RankShare, Source};
use crate::model::{SelectedDevice, select_device_of};
use crate::progress::Progress;
use crate::storage::Location;

use super::data;
use super::divergence::Divergence;
use super::encode::encode_bank;
use super::learner::{Learned, Learner};
use super::session::{Outcome, Session};
use super::state::Trainer;
use super::{Hooks, PartError, RunSummary, StopFlag, TrainError, TrainJob};
use crate::trainer::checkpoint::resume::{Start, advise, agree, begin_with, check_size, set_precision};
use crate::trainer::checkpoint::retention::Retention;
use crate::trainer::checkpoint::sharded::PartsOfRanks;
use crate::trainer::checkpoint::snapshot::{DataIdentity, publish_config};
use crate::trainer::checkpoint::writer::Writer;
use crate::trainer::metrics::log::Metrics;

/// So long a process whose peers were lost may take to find out by itself: it may wait for data, or for a device.
const LOST_GRACE: Duration = Duration::from_secs(3);

/// Trains to the end of the last epoch, going on from the newest checkpoint if there is one.
///
/// # Errors
/// See [`TrainError`]; the checkpoints published so far stand.
pub fn train(job: &TrainJob, hooks: &mut dyn Hooks, stop: &StopFlag) -> Result<Outcome, TrainError> {
    Opened::of(job, hooks.progress(), stop)?.begin(hooks)?.run(hooks, stop)
}

/// A run before its next step.
pub(super) struct Opened<L> {
    pub(super) run: Location,
    /// The processes of the run.
    pub(super) group: Rc<ProcessGroup>,
    /// Where the newest checkpoint is, or at its start.
    pub(super) learner: L,
    pub(super) source: Arc<dyn Source>,
    pub(super) data: DataIdentity,
    pub(super) device: SelectedDevice,
    pub(super) start: Start,
}

impl Opened<Trainer> {
    /// Brings the processes together, and each to where the newest checkpoint is.
    fn of(job: &TrainJob, progress: &dyn Progress, stop: &StopFlag) -> Result<Self, TrainError> {
        let config = &job.config;
        config.validate()?;
        let manifest = Manifest::read(&job.dataset)?;
        let source = data::open(job, &manifest)?;
        let instances = source.len();
        check_size(job, instances)?;
        let data = DataIdentity::of(job, &manifest, &source)?;
        let device = select_device_of(config.device, job.rendezvous.local_rank(), job.rendezvous.world())?;
        set_precision(config, device.device);
        tracing::info!("device {device}");
        let group =
            ProcessGroup::join_unless_stopped(&job.rendezvous, device.device, job.collective_timeout, stop)?;
        group.when_lost(LOST_GRACE, job.on_lost);
        if group.is_first() {
            advise(job, instances);
        }
        agree(&group, config, &data.trained_on, device.device)?;
        let start = Start::of(&group, &job.run)?;
        let group = Rc::new(group);
        let mut trainer = Trainer::over(Rc::clone(&group), config.clone(), instances, device.device)?;
        let source: Arc<dyn Source> = Arc::new(source);
        let begun = match &start.found {
            Some(checkpoint) => trainer.restore(checkpoint, &data),
            None => begin(job, &mut trainer, &source, progress, stop),
        };
        if let Err(error) = &begun {
            tell(&group, error);
        }
        begun?;
        if group.is_first() {
            publish_config(config, &job.run)?;
        }
        Ok(Self { run: job.run.clone(), group, learner: trainer, source, data, device, start })
    }
}

/// Brings a new run to where its first step begins.
fn begin(
    job: &TrainJob,
    trainer: &mut Trainer,
    source: &Arc<dyn Source>,
    progress: &dyn Progress,
    stop: &StopFlag,
) -> Result<(), TrainError> {
    if let Some(file) = &job.init {
        begin_with(trainer, file)?;
    }
    if job.config.bank_init == BankInit::Encode {
        if trainer.group.is_first() {
            // So that others find the run while it is prepared.
            publish_config(&job.config, &job.run)?;
        }
        encode_bank(trainer, source, progress, stop)?;
    }
    Ok(())
}

/// Tells the other processes how this one ends; of another's error that one tells itself.
pub(super) fn tell(group: &ProcessGroup, error: &TrainError) {
    match error {
        TrainError::Stopped { .. } => group.leave(),
        TrainError::OtherRank { .. } | TrainError::Part(PartError::Distributed(_)) => {}
        error => group.fail(error.failure()),
    }
}

impl<L: Learner> Opened<L> {
    /// Says what the run is, and starts what it needs; a new run's first checkpoint is begun.
    ///
    /// # Errors
    /// If data, metrics or store cannot be used.
    pub(super) fn begin(self, hooks: &mut dyn Hooks) -> Result<Session<L>, TrainError> {
        let Self { run, group, learner, source, data, device, start: Start { lock, found } } = self;
        let Learned { config, encoder, cursor, .. } = learner.learned();
        let steps = config.loader().steps(source.len());
        let metrics = group.is_first().then(|| Metrics::resume(&run, cursor.step)).transpose()?;
        hooks.started(&RunSummary {
            device: device.to_string(),
            ranks: group.world(),
            instances: source.len(),
            parameters: encoder.parameters().iter().map(|(_, tensor)| tensor.numel()).sum(),
            resumed_step: cursor.step,
            total_steps: steps * config.epochs,
            chance_loss: learner.chance_loss(),
            untrained_top1: metrics.as_ref().and_then(|metrics| metrics.start()?["knn_sample_top1"].as_f64()),
        });
        let mut divergence = Divergence::default();
        if let (Some(metrics), Some(chance)) = (&metrics, learner.chance_loss()) {
            // What was warned of before a resume is not warned of again.
            metrics.epoch_losses().for_each(|loss| drop(divergence.look(loss, chance, "")));
        }
        let part = RankShare { rank: group.rank(), ranks: group.world() };
        let loader = data::load(config, &source, cursor, part)?;
        let retention = Retention { newest: config.keep, every_steps: config.keep_every_epochs * steps };
        let last = found.as_ref().map(|checkpoint| checkpoint.folder().clone());
        let writer = Writer::new(run.clone(), group.is_first().then_some(retention), last);
        let now = Instant::now();
        let mut session = Session {
            run,
            data: Arc::new(data),
            writer,
            ranks: PartsOfRanks::new(&group),
            saved: now,
            saved_step: found.as_ref().map(|_| cursor.step),
            shown: now,
            learner,
            group,
            loader,
            metrics,
            lock: lock.map(Arc::new),
            divergence,
        };
        if found.is_none() {
            session.save()?;
        }
        Ok(session)
    }
}
