//! Training and fine-tuning runs.
//!
//! [`train`] reads a dataset, updates encoder and memory bank step by step, and publishes checkpoints from
//! which the same command resumes. Every state change is a visible call in `Trainer::launch`. The trainer
//! knows neither progress display nor evaluation: hooks do that.
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

/// Grace period for a process whose peers are lost to notice by itself, while it waits for data or a device.
const LOST_GRACE: Duration = Duration::from_secs(3);

/// Longest time between two publications of the metrics.
const SHOWN_EVERY: Duration = Duration::from_secs(60);

/// Successful result of [`train`](train()) or [`finetune`](finetune()).
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The run had already finished.
    AlreadyFinished {
        /// Steps of the run.
        step: u64,
    },
    /// The run has finished now.
    Finished {
        /// Steps of the run.
        step: u64,
        /// Last checkpoint.
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

/// Run that is ready for its next step.
struct Opened<L> {
    run: Location,
    /// Processes of the run.
    group: Rc<ProcessGroup>,
    /// State of the newest checkpoint, or the initial one.
    learner: L,
    source: Arc<dyn Source>,
    data: DataIdentity,
    device: SelectedDevice,
    start: Start,
}

impl Opened<Trainer> {
    /// Connects the processes, and loads the newest checkpoint in each.
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

/// Connects the processes, each with its device, and checks that all belong to one run.
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

/// Initialises a new run.
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
            // Publish early, so that others find the run while it is prepared.
            publish_config(&job.config, &job.run)?;
        }
        trainer.encode_bank(source, progress, stop)?;
    }
    Ok(())
}

impl<L: Learner> Opened<L> {
    /// Publishes the configuration of a run that is not finished.
    ///
    /// # Errors
    /// If more epochs are done than requested and the run has not finished, or if the store fails.
    fn checked(self) -> Result<Self, TrainError> {
        let Learned { config, cursor, .. } = self.learner.learned();
        let done = cursor.epoch;
        check_epochs(&self.run, done, config.epochs)?;
        if self.group.is_first() && done < config.epochs {
            publish_config(config, &self.run)?;
        }
        Ok(self)
    }

    /// Reports the run, and starts loader, metrics and writer; a new run also starts its first checkpoint.
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
            // Warnings from before a resume are not repeated.
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

/// Active run: a training or a fine-tuning.
struct Session<'a, L> {
    run: Location,
    data: Arc<DataIdentity>,
    /// Dropped before the group, which the writer needs to finish.
    writer: Writer,
    learner: L,
    /// Processes of the run.
    group: Rc<ProcessGroup>,
    loader: Loader,
    /// Set on rank 0.
    metrics: Option<Metrics>,
    ranks: SharedCheckpoint,
    /// Start time of the last checkpoint; `saved_step` is its step.
    saved: Instant,
    saved_step: Option<u64>,
    /// Requests of any process with the steps read so far.
    asked: Requests,
    /// Time of the metrics' last publication.
    shown: Instant,
    /// Lock that allows one of several jobs to write to the run; rank 0 only.
    lock: Option<Arc<Lock>>,
    divergence: Divergence,
    monitor_cost: MonitorCost,
    hooks: &'a mut dyn Hooks,
    stop: &'a StopFlag,
}

impl<L: Learner> Session<'_, L> {
    /// Trains to the end of the last epoch, unless already done.
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

    /// Checks that this process may still write to the run.
    fn check_lock(&self) -> Result<(), TrainError> {
        Ok(self.lock.as_ref().map_or(Ok(()), |lock| lock.check())?)
    }

    /// Cleans up after an error.
    fn failed(&mut self, error: &TrainError) {
        // After an error that all processes share, the current checkpoint can still finish.
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

    /// Evaluates the last step of a run that was stopped before that.
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

    /// Trains to the end of the current epoch.
    fn epoch(&mut self) -> Result<(), TrainError> {
        let (every, epoch) = (self.config().log_every_steps, self.cursor().epoch);
        let mut meters = Meters::start(epoch, self.loader.waited());
        let before = self.loader.stats();
        while self.cursor().epoch == epoch {
            // With several processes, continue until all have agreed to stop.
            let gives_up = if self.group.world() == 1 { self.stop } else { &StopFlag::new(false) };
            // `None`: stopped while waiting for data, or the loader ended without an error.
            let batch = self.loader.next_of(epoch, gives_up).transpose()?;
            if batch.is_none() && !self.should_stop() {
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
            // For people, epochs count from 1.
            tracing::info!("epoch {}: {}", epoch + 1, of_epoch.verdict());
        }
        if self.config().stats {
            stats.table().lines().for_each(|line| tracing::info!("{line}"));
        }
        self.end_epoch(meters.epoch, epoch)
    }

    /// Records the measurements of a step.
    fn measured(&mut self, outcome: Option<StepOutcome>, meters: &mut Meters) {
        let Some(outcome) = outcome else { return };
        self.asked.stop |= outcome.asked.stop;
        self.asked.save |= outcome.asked.save;
        let waited = self.loader.waited();
        meters.epoch.add(outcome, waited);
        meters.interval.add(outcome, waited);
        self.hooks.stepped(&meters.epoch.report(outcome.step, meters.number));
    }

    /// Saves, then evaluates, so that a failing monitor costs no steps.
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
        // Before the evaluation, whose time does not belong to the steps.
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

    /// Returns this process's requests: stop if flagged, and save if due by rank 0's clock.
    fn requests(&self) -> Requests {
        let minutes = self.config().checkpoint_every_minutes;
        let is_late = minutes > 0.0 && self.saved.elapsed().as_secs_f64() >= minutes * 60.0;
        Requests { stop: self.should_stop(), save: self.group.is_first() && is_late }
    }

    /// Returns the requests for all processes before the next step: those that came with an earlier step, and those
    /// that every process derives itself. A single process uses its requests directly.
    fn decided(&self, here: Requests) -> Requests {
        let every = self.config().checkpoint_every_steps;
        let asked = if self.group.world() == 1 { here } else { self.asked };
        let falls_due = every > 0 && self.cursor().step.is_multiple_of(every);
        Requests { save: asked.save || falls_due, ..asked }
    }

    /// Agrees on what all processes do at the end of an epoch.
    fn decide(&self, save: bool) -> Result<Requests, TrainError> {
        let here = Requests { stop: self.should_stop(), save: save && self.group.is_first() };
        Ok(here.of_any(&self.group)?)
    }

    fn should_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Saves unsaved state and ends with [`TrainError::Stopped`].
    fn stopped(&mut self) -> Result<(), TrainError> {
        let _ = self.save()?;
        self.writer.finish()?;
        Err(TrainError::Stopped { step: self.cursor().step })
    }

    /// Publishes the metrics from time to time, so that users can watch the run.
    fn show(&mut self) -> Result<(), TrainError> {
        if let Some(metrics) = &self.metrics
            && self.shown.elapsed() >= SHOWN_EVERY
        {
            metrics.files().publish()?;
            self.shown = Instant::now();
        }
        Ok(())
    }

    /// Starts to write a checkpoint, unless this step already has one. Returns how long training was blocked.
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

/// Reports to the other processes how this one ends, unless the error is another's.
fn tell(group: &ProcessGroup, error: &TrainError) {
    match error {
        TrainError::Stopped { .. } => group.leave(),
        TrainError::OtherRank { .. } | TrainError::Distributed(_) => {}
        error => group.fail(error.failure()),
    }
}
