//! The training job.
//!
//! [`train`] reads a dataset, moves encoder and memory bank step by step, and publishes checkpoints from
//! which the same command goes on. Everything that changes state is a visible call in `Trainer::launch`.
//! The trainer does not know how its progress is shown or how the bank is evaluated: hooks do that.
//!
//! Invariant: after a resume, weights and bank are bit for bit those of an uninterrupted run (on the CPU,
//! with the same number of threads).

mod checkpoint;
mod config;
mod error;
mod estimate;
mod finetune;
mod gather;
mod graphs;
mod hooks;
mod job;
mod learner;
mod metrics;
mod monitored;
mod optim;
mod probe;
mod trainer;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

pub use error::TrainError;
pub use estimate::Estimate;
pub use finetune::{FinetuneJob, LabelOptions, finetune, finetune_protocol};
pub use hooks::{Evaluation, HookError, Hooks, RunSummary, StepReport, StopFlag};
pub use job::TrainJob;
pub use metrics::bank_health::BankHealth;
pub use metrics::exporter::Exporter;
pub use metrics::{MetricsLine, ProbeLine, Scope};
pub use probe::Probe;
pub use trainer::{StepBench, StepTime};

use self::checkpoint::resume::{Start, agree};
use self::checkpoint::sharded::{SharedCheckpoint, make_replicas_equal};
use self::checkpoint::snapshot::Snapshot;
use self::checkpoint::writer::{Retention, Writer};
use self::checkpoint::{DataIdentity, publish_config};
use self::gather::{Requests, any};
use self::job::check_epochs;
use self::learner::{Learned, Learner, StepOutcome};
use self::metrics::{Divergence, Meter, Meters, Metrics};
use self::monitored::MonitorCost;
use self::trainer::Trainer;
use crate::checkpoint::{Cursor, finished_step, mark_finished, unmark_finished};
use crate::distributed::ProcessGroup;
use crate::ids::RankShare;
use crate::loader::{Loader, LoaderError, Source};
use crate::model::SelectedDevice;
use crate::progress::Progress;
use crate::run_config::{BankInit, TrainConfig};
use crate::storage::{Location, Lock};

/// How long a process whose peers were lost may take to find out by itself: it may wait for data, or for a device.
const LOST_GRACE: Duration = Duration::from_secs(3);

/// The longest time between two publications of the metrics, where there are any.
const SHOWN_EVERY: Duration = Duration::from_secs(60);

/// How a call of [`train`](train()) or [`finetune`](finetune()) ended well.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The run was finished before.
    AlreadyFinished {
        /// Its steps.
        step: u64,
    },
    /// The run is finished now.
    Finished {
        /// Its steps.
        step: u64,
        /// Its last checkpoint.
        checkpoint: Location,
    },
}

/// Trains to the end of the last epoch, continuing from the newest checkpoint if there is one.
///
/// # Errors
/// See [`TrainError`]; the checkpoints published so far remain.
pub fn train(job: &TrainJob, hooks: &mut dyn Hooks, stop: &StopFlag) -> Result<Outcome, TrainError> {
    Opened::of(job, hooks.progress(), stop)?.begin(hooks, stop)?.run()
}

/// A run before its next step.
struct Opened<L> {
    run: Location,
    /// The processes of the run.
    group: Rc<ProcessGroup>,
    /// Where the newest checkpoint is, or at its start.
    learner: L,
    source: Arc<dyn Source>,
    data: DataIdentity,
    device: SelectedDevice,
    start: Start,
}

impl Opened<Trainer> {
    /// Brings the processes together, and each to where the newest checkpoint is.
    fn of(job: &TrainJob, progress: &dyn Progress, stop: &StopFlag) -> Result<Self, TrainError> {
        let config = &job.config;
        let (source, data) = job.told(job.open(), stop)?;
        let (instances, labelled) = (source.len(), data.labels.iter().flatten().count());
        let (group, device) = join(job, config, &data, stop)?;
        if config.probe && labelled < instances && group.is_first() {
            tracing::info!("probe: {labelled} of {instances} images have a label, the others do not count");
        }
        if group.is_first() {
            config.advise(instances);
        }
        let start = Start::of(&group, &job.run)?;
        let group = Rc::new(group);
        let mut trainer = Trainer::over(Rc::clone(&group), config.clone(), instances, device.device)?;
        if config.probe {
            trainer.add_probe(&data.labels);
        }
        let begun = match &start.found {
            Some(checkpoint) => trainer.restore(checkpoint, &data),
            None => begin(job, &group, &mut trainer, &source, progress, stop),
        };
        begun.inspect_err(|error| tell(&group, error))?;
        Self { run: job.run.clone(), group, learner: trainer, source, data, device, start }.checked()
    }
}

/// Brings the processes together, each with its device; all must be of one run.
fn join(
    job: &TrainJob,
    config: &TrainConfig,
    data: &DataIdentity,
    stop: &StopFlag,
) -> Result<(ProcessGroup, SelectedDevice), TrainError> {
    let device = job.told(job.device(), stop)?;
    config.set_precision(device.device);
    tracing::info!("device {device}");
    let group =
        ProcessGroup::join_unless_stopped(&job.rendezvous, device.device, job.collective_timeout, stop)?;
    group.when_lost(LOST_GRACE, job.on_lost);
    agree(&group, config, &data.trained_on, device.device)?;
    Ok((group, device))
}

/// Brings a new run to where its first step begins.
fn begin(
    job: &TrainJob,
    group: &ProcessGroup,
    trainer: &mut Trainer,
    source: &Arc<dyn Source>,
    progress: &dyn Progress,
    stop: &StopFlag,
) -> Result<(), TrainError> {
    if let Some(file) = &job.init {
        trainer.begin_with(file)?;
    }
    if job.config.bank_init == BankInit::Encode {
        if group.is_first() {
            // So that others find the run while it is prepared.
            publish_config(&job.config, &job.run)?;
        }
        trainer.encode_bank(source, progress, stop)?;
    }
    Ok(())
}

impl<L: Learner> Opened<L> {
    /// Publishes the configuration of a run that has epochs to do.
    ///
    /// # Errors
    /// If more epochs are done than are asked for, and the run is not finished; if the store fails.
    fn checked(self) -> Result<Self, TrainError> {
        let Learned { config, cursor, .. } = self.learner.learned();
        let done = cursor.epoch;
        check_epochs(&self.run, done, config.epochs)?;
        if self.group.is_first() && done < config.epochs {
            publish_config(config, &self.run)?;
        }
        Ok(self)
    }

    /// Says what the run is, and starts what it needs; a new run's first checkpoint is begun.
    ///
    /// # Errors
    /// If data, metrics or store cannot be used.
    fn begin<'a>(self, hooks: &'a mut dyn Hooks, stop: &'a StopFlag) -> Result<Session<'a, L>, TrainError> {
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
        let mut divergence = Divergence::new(config);
        if let (Some(metrics), Some(chance)) = (&metrics, learner.chance_loss()) {
            // What was warned of before a resume is not warned of again.
            metrics.epoch_losses().for_each(|loss| drop(divergence.look(loss, chance)));
        }
        let share = RankShare { rank: group.rank(), ranks: group.world() };
        let loader = config.start_loader(&source, cursor, share)?;
        let retention = Retention { newest: config.keep, every_steps: config.keep_every_epochs * steps };
        let last = found.as_ref().map(|checkpoint| checkpoint.folder().clone());
        let writer = Writer::new(run.clone(), group.is_first().then_some(retention), last);
        let now = Instant::now();
        let mut session = Session {
            run,
            data: Arc::new(data),
            writer,
            ranks: SharedCheckpoint::new(&group),
            saved: now,
            saved_step: found.as_ref().map(|_| cursor.step),
            asked: Requests::default(),
            shown: now,
            learner,
            group,
            loader,
            metrics,
            lock: lock.map(Arc::new),
            divergence,
            hooks,
            stop,
            monitor_cost: MonitorCost::since(now),
        };
        if found.is_none() {
            session.save()?;
        }
        Ok(session)
    }
}

/// A run that is under way: a training, or a fine-tuning.
struct Session<'a, L> {
    run: Location,
    data: Arc<DataIdentity>,
    /// Before the group, which it needs to end well.
    writer: Writer,
    learner: L,
    /// The processes of the run.
    group: Rc<ProcessGroup>,
    loader: Loader,
    /// Of rank 0.
    metrics: Option<Metrics>,
    ranks: SharedCheckpoint,
    /// When the last checkpoint was begun, and of which step it is.
    saved: Instant,
    saved_step: Option<u64>,
    /// What any process asked with the steps that were read.
    asked: Requests,
    /// When the metrics were last published.
    shown: Instant,
    /// Of several jobs on one run, the one that may write; rank 0's.
    lock: Option<Arc<Lock>>,
    divergence: Divergence,
    monitor_cost: MonitorCost,
    hooks: &'a mut dyn Hooks,
    stop: &'a StopFlag,
}

impl<L: Learner> Session<'_, L> {
    /// Trains to the end of the last epoch, unless that is done.
    fn run(mut self) -> Result<Outcome, TrainError> {
        if self.is_done() {
            let caught_up = self.catch_up_at_the_end().inspect_err(|error| self.failed(error));
            self.group.leave();
            caught_up?;
            self.mark_finished()?;
            return Ok(Outcome::AlreadyFinished { step: self.cursor().step });
        }
        if self.group.is_first() {
            if let Some(step) = finished_step(&self.run)? {
                tracing::info!(
                    "the run was finished after {step} steps; it goes on to {} epochs",
                    self.config().epochs
                );
            }
            unmark_finished(&self.run)?;
        }
        let trained = self.catch_up().and_then(|()| self.epochs());
        let trained = trained.inspect_err(|error| self.failed(error));
        if matches!(trained, Ok(()) | Err(TrainError::Stopped { .. })) {
            self.group.leave();
        }
        trained?;
        let checkpoint = self.writer.last().cloned().expect("the last epoch ends with a checkpoint");
        self.mark_finished()?;
        Ok(Outcome::Finished { step: self.cursor().step, checkpoint })
    }

    fn config(&self) -> &TrainConfig {
        self.learner.learned().config
    }

    fn cursor(&self) -> Cursor {
        self.learner.learned().cursor
    }

    fn is_done(&self) -> bool {
        self.cursor().epoch >= self.config().epochs
    }

    fn mark_finished(&self) -> Result<(), TrainError> {
        if self.group.is_first() {
            self.check_lock()?;
            mark_finished(&self.run, self.cursor().step)?;
        }
        Ok(())
    }

    /// Whether this process may write to the run.
    fn check_lock(&self) -> Result<(), TrainError> {
        Ok(self.lock.as_ref().map_or(Ok(()), |lock| lock.check())?)
    }

    /// What is still to be done when a run ends with an error.
    fn failed(&mut self, error: &TrainError) {
        // Errors that all processes meet leave the checkpoint that is under way as it is.
        if !matches!(error, TrainError::Stopped { .. } | TrainError::NotFinite { .. }) {
            self.ranks.give_up();
            tell(&self.group, error);
        }
        if let Some(metrics) = &self.metrics
            && let Err(error) = metrics.files().publish()
        {
            tracing::warn!("the last metrics could not be written: {error}");
        }
    }

    /// What a run that was stopped after its last step still lacks: that step's scores.
    fn catch_up_at_the_end(&mut self) -> Result<(), TrainError> {
        let [is_finished] = any(&self.group, [self.group.is_first() && finished_step(&self.run)?.is_some()])?;
        if is_finished {
            return Ok(());
        }
        self.catch_up()?;
        if let Some(metrics) = &self.metrics {
            metrics.files().publish()?;
        }
        let stops = self.decide(false)?.stop;
        if stops { Err(TrainError::Stopped { step: self.cursor().step }) } else { Ok(()) }
    }

    /// Trains to the end of the last epoch.
    fn epochs(&mut self) -> Result<(), TrainError> {
        while !self.is_done() {
            self.epoch()?;
        }
        self.writer.finish()
    }

    /// Trains to the end of the epoch that is under way.
    fn epoch(&mut self) -> Result<(), TrainError> {
        let (every, epoch) = (self.config().log_every_steps, self.cursor().epoch);
        let mut meters = Meters::start(epoch, self.loader.waited());
        let before = self.loader.stats();
        while self.cursor().epoch == epoch {
            // One of several processes goes on until all have agreed to stop.
            let gives_up = if self.group.world() == 1 { self.stop } else { &StopFlag::new(false) };
            // Stopped while it waited for data, or the loader ended without a word.
            let batch = self.loader.next_of(epoch, gives_up).transpose()?;
            if batch.is_none() && !self.is_told_to_stop() {
                return Err(LoaderError::Stopped.into());
            }
            let here = self.requests();
            let decided = self.decided(here);
            if decided.stop || decided.save || batch.is_none() {
                let outcome = self.learner.finish()?;
                self.measured(outcome, &mut meters);
                self.asked = Requests::default();
            }
            let Some(batch) = batch.filter(|_| !decided.stop) else {
                return self.stopped();
            };
            if decided.save {
                let stall = self.save()?;
                meters.epoch.stalled(stall);
                meters.interval.stalled(stall);
            }
            let outcome = self.learner.step(&batch, here)?;
            self.loader.give_back(batch);
            self.measured(outcome, &mut meters);
            let step = self.cursor().step;
            let is_logged = every > 0 && step.is_multiple_of(every);
            let is_evaluated = self.cursor().epoch == epoch && self.is_monitored();
            if is_logged || is_evaluated || self.cursor().epoch != epoch {
                let outcome = self.learner.finish()?;
                self.measured(outcome, &mut meters);
            }
            if is_logged {
                let line = meters.interval.line(Scope::Interval, step, epoch);
                self.push(&line);
                meters.interval = Meter::start(self.loader.waited());
                self.show()?;
            }
            if is_evaluated {
                let began = Instant::now();
                self.evaluate_alone(false)?;
                meters.paused(began.elapsed());
            }
            self.writer.check()?;
        }
        let stats = self.loader.stats();
        let of_epoch = stats.since(&before);
        if of_epoch.waits_for_data() || self.config().stats {
            // People count epochs from 1.
            tracing::info!("epoch {}: {}", epoch + 1, of_epoch.verdict());
        }
        if self.config().stats {
            stats.table().lines().for_each(|line| tracing::info!("{line}"));
        }
        self.end_epoch(meters.epoch, epoch)
    }

    /// Takes note of what a step measured.
    fn measured(&mut self, outcome: Option<StepOutcome>, meters: &mut Meters) {
        let Some(outcome) = outcome else { return };
        self.asked.stop |= outcome.asked.stop;
        self.asked.save |= outcome.asked.save;
        let waited = self.loader.waited();
        meters.epoch.add(outcome, waited);
        meters.interval.add(outcome, waited);
        self.hooks.stepped(&meters.epoch.report(outcome.step, meters.number));
    }

    /// Saves, then evaluates: what the monitor meets costs no steps.
    fn end_epoch(&mut self, mut meter: Meter, epoch: u64) -> Result<(), TrainError> {
        let config = self.config();
        let done = self.cursor().epoch;
        let is_last = done == config.epochs;
        let evaluates = self.is_monitored() || is_last && !config.no_monitor;
        let falls_on = |every: u64| every > 0 && done.is_multiple_of(every);
        let is_due =
            is_last || falls_on(config.checkpoint_every_epochs.max(1)) || falls_on(config.keep_every_epochs);
        let decided = self.decide(is_due)?;
        if decided.save || decided.stop {
            let stall = self.save()?;
            meter.stalled(stall);
        }
        // Before the evaluation: its time is not that of the steps.
        let mut line = meter.line(Scope::Epoch, self.cursor().step, epoch);
        if evaluates && !decided.stop {
            line.monitor = self.evaluate(is_last)?;
        }
        line.bank = self.learner.bank_health()?;
        self.push(&line);
        let grown = self.learner.chance_loss().and_then(|chance| self.divergence.look(line.loss, chance));
        if let Some(warning) = grown.filter(|_| self.group.is_first()) {
            tracing::warn!("{warning}");
        }
        if let Some(metrics) = &self.metrics {
            metrics.files().publish()?;
        }
        self.shown = Instant::now();
        let stop = decided.stop || self.decide(false)?.stop;
        if stop { self.stopped() } else { Ok(()) }
    }

    fn push(&mut self, line: &MetricsLine) {
        if let Some(metrics) = &mut self.metrics {
            metrics.push(line);
        }
        self.hooks.measured(line);
    }

    /// What this process asks of all: to stop where it was told to, and to save where rank 0's clock says so.
    fn requests(&self) -> Requests {
        let minutes = self.config().checkpoint_every_minutes;
        let is_late = minutes > 0.0 && self.saved.elapsed().as_secs_f64() >= minutes * 60.0;
        Requests { stop: self.is_told_to_stop(), save: self.group.is_first() && is_late }
    }

    /// What all processes do before the next step: what any asked with a step that was read, and what all know by
    /// themselves. One process alone need not ask.
    fn decided(&self, here: Requests) -> Requests {
        let every = self.config().checkpoint_every_steps;
        let asked = if self.group.world() == 1 { here } else { self.asked };
        let falls_due = every > 0 && self.cursor().step.is_multiple_of(every);
        Requests { save: asked.save || falls_due, ..asked }
    }

    /// What all processes do at the end of an epoch.
    fn decide(&self, save: bool) -> Result<Requests, TrainError> {
        let here = Requests { stop: self.is_told_to_stop(), save: save && self.group.is_first() };
        Ok(here.of_any(&self.group)?)
    }

    fn is_told_to_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Saves what is not saved yet and ends.
    fn stopped(&mut self) -> Result<(), TrainError> {
        let _ = self.save()?;
        self.writer.finish()?;
        Err(TrainError::Stopped { step: self.cursor().step })
    }

    /// Publishes the metrics from time to time: a run is watched while it goes on.
    fn show(&mut self) -> Result<(), TrainError> {
        if let Some(metrics) = &self.metrics
            && self.shown.elapsed() >= SHOWN_EVERY
        {
            metrics.files().publish()?;
            self.shown = Instant::now();
        }
        Ok(())
    }

    /// Starts to write a checkpoint, unless that of this step is written; how long training stood still.
    fn save(&mut self) -> Result<Duration, TrainError> {
        let Learned { encoder, cursor, .. } = self.learner.learned();
        let step = cursor.step;
        if self.saved_step == Some(step) {
            return Ok(Duration::ZERO);
        }
        self.check_lock()?;
        make_replicas_equal(&self.group, encoder, self.learner.probe(), step)?;
        let (learner, data, ranks) = (&self.learner, &self.data, &self.ranks);
        let metrics = self.metrics.as_mut().map(Metrics::files_of_checkpoint);
        let first = metrics.zip(self.lock.clone());
        let stall = self.writer.start(|| Snapshot::take(learner, data, first, ranks))?;
        tracing::debug!("step {step}: training stood still for {:.3} s", stall.as_secs_f64());
        (self.saved, self.saved_step) = (Instant::now(), Some(step));
        Ok(stall)
    }
}

/// Tells the other processes how this one ends; of another's error that one tells itself.
fn tell(group: &ProcessGroup, error: &TrainError) {
    match error {
        TrainError::Stopped { .. } => group.leave(),
        TrainError::OtherRank { .. } | TrainError::Distributed(_) => {}
        error => group.fail(error.failure()),
    }
}
