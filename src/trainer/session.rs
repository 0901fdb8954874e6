//! A run from its start or its newest checkpoint to its end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::bank::BankInit;
use crate::checkpoint::{TrainedOn, mark_finished, unmark_finished};
use crate::dataset::Manifest;
use crate::loader::{Loader, LoaderError, Source};
use crate::model::select_device;
use crate::storage::{Location, Lock};

use super::background::Writer;
use super::data::{self, ShuffleKind};
use super::encode::encode_bank;
use super::health::BankHealth;
use super::meter::Meter;
use super::metrics::Metrics;
use super::retention::{Retention, remove_unpublished};
use super::saving::{DataIdentity, newest, publish_config};
use super::start::{begin_with, check_size, set_precision};
use super::step::Trainer;
use super::{Hooks, MetricsLine, RunSummary, Scope, StopFlag, TrainConfig, TrainError, TrainJob};

/// The metrics are published at least so often, where there are any.
const SHOWN_EVERY: Duration = Duration::from_secs(60);

/// How a call of [`train`] ended well.
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

/// Trains to the end of the last epoch, going on from the newest checkpoint if there is one.
///
/// # Errors
/// See [`TrainError`]; the checkpoints published so far stand.
pub fn train(job: &TrainJob, hooks: &mut dyn Hooks, stop: &StopFlag) -> Result<Outcome, TrainError> {
    let mut session = Session::open(job, hooks, stop)?;
    if session.trainer.cursor.epoch >= job.config.epochs {
        mark_finished(&job.run, session.trainer.cursor.step)?;
        return Ok(Outcome::AlreadyFinished { step: session.trainer.cursor.step });
    }
    unmark_finished(&job.run)?;
    let trained = session.epochs(hooks, stop);
    if trained.is_err()
        && let Err(error) = session.metrics.files().publish()
    {
        tracing::warn!("the last metrics could not be written: {error}");
    }
    trained?;
    let checkpoint = session.writer.last().cloned().expect("the last epoch ends with a checkpoint");
    mark_finished(&job.run, session.trainer.cursor.step)?;
    Ok(Outcome::Finished { step: session.trainer.cursor.step, checkpoint })
}

/// A run that is under way.
struct Session<'a> {
    job: &'a TrainJob,
    data: Arc<DataIdentity>,
    trainer: Trainer,
    loader: Loader,
    metrics: Metrics,
    writer: Writer,
    /// When the last checkpoint was begun, and of which step it is.
    saved: Instant,
    saved_step: Option<u64>,
    /// When the metrics were last published.
    shown: Instant,
    /// Of several jobs on one run, the one that may write.
    lock: Lock,
}

impl<'a> Session<'a> {
    fn open(job: &'a TrainJob, hooks: &mut dyn Hooks, stop: &StopFlag) -> Result<Self, TrainError> {
        let config = &job.config;
        config.validate()?;
        let manifest = Manifest::read(&job.dataset)?;
        let source = data::open(job, &manifest)?;
        let instances = source.len();
        check_size(job, instances)?;
        let identity = DataIdentity {
            trained_on: TrainedOn {
                dataset_digest: manifest.dataset_digest.to_string(),
                split: config.split.clone(),
                split_digest: manifest.split(&job.dataset, &config.split)?.digest.to_string(),
            },
            classes: manifest.classes.clone(),
            ids: source.ids().to_vec(),
            labels: source.labels().to_vec(),
            layout: (config.shuffle == ShuffleKind::Windowed).then(|| source.layout().digest().to_string()),
        };
        let lock = Lock::take(&job.run.join("lock"))?;
        let found = newest(&job.run)?;
        remove_unpublished(&job.run)?;
        let selected = select_device(config.device)?;
        set_precision(config, selected.device);
        let mut trainer = Trainer::new(config.clone(), instances, selected.device);
        let source: Arc<dyn Source> = Arc::new(source);
        match &found {
            Some(checkpoint) => {
                trainer.restore(checkpoint, &identity)?;
                publish_config(&trainer, &job.run)?;
            }
            None => {
                publish_config(&trainer, &job.run)?;
                if let Some(file) = &job.init {
                    begin_with(&mut trainer, file)?;
                }
                if config.bank_init == BankInit::Encode {
                    encode_bank(&mut trainer, &source, stop)?;
                }
            }
        }
        let parameters = trainer.encoder.parameters().iter().map(|(_, tensor)| tensor.numel()).sum();
        let steps = trainer.steps_per_epoch();
        hooks.started(&RunSummary {
            device: format!("{:?} ({})", selected.device, selected.reason),
            instances,
            parameters,
            resumed_step: trainer.cursor.step,
            total_steps: steps * config.epochs,
        });
        let metrics = Metrics::resume(&job.run, trainer.cursor.step)?;
        let loader = data::load(config, &source, trainer.cursor)?;
        let retention = Retention { newest: config.keep, every_steps: config.keep_every_epochs * steps };
        let last = found.as_ref().map(|checkpoint| checkpoint.folder().clone());
        let writer = Writer::new(job.run.clone(), retention, last);
        let (data, saved) = (Arc::new(identity), Instant::now());
        let (saved_step, shown) = (found.as_ref().map(|_| trainer.cursor.step), saved);
        let mut session =
            Self { job, data, trainer, loader, metrics, writer, saved, saved_step, shown, lock };
        if found.is_none() {
            session.save()?;
        }
        Ok(session)
    }

    /// Trains to the end of the last epoch.
    fn epochs(&mut self, hooks: &mut dyn Hooks, stop: &StopFlag) -> Result<(), TrainError> {
        while self.trainer.cursor.epoch < self.job.config.epochs {
            self.epoch(hooks, stop)?;
        }
        self.writer.finish()
    }

    /// Trains to the end of the epoch that is under way.
    fn epoch(&mut self, hooks: &mut dyn Hooks, stop: &StopFlag) -> Result<(), TrainError> {
        let config = &self.job.config;
        let cursor = self.trainer.cursor;
        let (mut meter, mut interval) = (Meter::start(), Meter::start());
        let waited = self.loader.waited();
        let mut waited_before = waited;
        while let Some(batch) = self.loader.next_of(cursor.epoch, stop) {
            let batch = batch?;
            let outcome = self.trainer.step(&batch)?;
            meter.add(outcome, batch.ids.len(), self.loader.waited() - waited);
            interval.add(outcome, batch.ids.len(), self.loader.waited() - waited_before);
            self.loader.give_back(batch);
            let step = self.trainer.cursor.step;
            hooks.stepped(&meter.report(step, cursor.epoch));
            if config.log_every_steps > 0 && step.is_multiple_of(config.log_every_steps) {
                let line = interval.line(Scope::Interval, step, cursor.epoch);
                self.metrics.push(&line);
                hooks.measured(&line);
                (interval, waited_before) = (Meter::start(), self.loader.waited());
                self.show()?;
            }
            self.writer.check()?;
            if self.trainer.cursor.epoch > cursor.epoch {
                // What comes at its end saves it, with the epoch after it as the next one.
                break;
            }
            if stop.load(Ordering::Relaxed) {
                return self.stopped();
            }
            if self.is_due() {
                let stall = self.save()?;
                meter.stalled(stall);
                interval.stalled(stall);
            }
        }
        if self.trainer.cursor.epoch == cursor.epoch {
            // Stopped while it waited for data, or the loader ended without a word.
            return if stop.load(Ordering::Relaxed) {
                self.stopped()
            } else {
                Err(LoaderError::Stopped.into())
            };
        }
        let stats = self.loader.stats();
        tracing::info!("{}", stats.verdict());
        if config.stats {
            stats.table().lines().for_each(|line| tracing::info!("{line}"));
        }
        self.end_epoch(meter, cursor.epoch, hooks, stop)
    }

    /// Saves, then judges: what the monitor meets costs no steps.
    fn end_epoch(
        &mut self,
        mut meter: Meter,
        epoch: u64,
        hooks: &mut dyn Hooks,
        stop: &StopFlag,
    ) -> Result<(), TrainError> {
        let config = &self.job.config;
        let done = self.trainer.cursor.epoch;
        let falls_on = |every: u64| every > 0 && done.is_multiple_of(every);
        let is_stopped = || stop.load(Ordering::Relaxed);
        let is_due = done == config.epochs
            || falls_on(config.checkpoint_every_epochs.max(1))
            || falls_on(config.keep_every_epochs);
        if is_due || is_stopped() {
            let stall = self.save()?;
            meter.stalled(stall);
        }
        let mut monitor = serde_json::Map::new();
        if !config.no_monitor && !is_stopped() {
            match hooks.judge(&self.trainer.encoder, &self.trainer.bank) {
                Ok(scores) => monitor = scores,
                Err(error) => tracing::warn!("epoch {}: the monitor failed: {}", epoch + 1, chain(&*error)),
            }
        }
        let bank = Some(BankHealth::of(&self.trainer));
        let line = MetricsLine { monitor, bank, ..meter.line(Scope::Epoch, self.trainer.cursor.step, epoch) };
        self.metrics.push(&line);
        hooks.measured(&line);
        self.metrics.files().publish()?;
        self.shown = Instant::now();
        if is_stopped() { self.stopped() } else { Ok(()) }
    }

    /// Saves what is not saved yet and ends.
    fn stopped(&mut self) -> Result<(), TrainError> {
        let _ = self.save()?;
        self.writer.finish()?;
        Err(TrainError::Stopped { step: self.trainer.cursor.step })
    }

    /// Publishes the metrics from time to time: a run is watched while it goes on.
    fn show(&mut self) -> Result<(), TrainError> {
        if self.shown.elapsed() >= SHOWN_EVERY {
            self.metrics.files().publish()?;
            self.shown = Instant::now();
        }
        Ok(())
    }

    /// Whether it is time for a checkpoint in the middle of an epoch.
    fn is_due(&self) -> bool {
        let TrainConfig { checkpoint_every_steps: steps, checkpoint_every_minutes: minutes, .. } =
            self.job.config;
        let by_steps = steps > 0 && self.trainer.cursor.step.is_multiple_of(steps);
        by_steps || (minutes > 0.0 && self.saved.elapsed().as_secs_f64() >= minutes * 60.0)
    }

    /// Starts to write a checkpoint, unless that of this step is written; how long training stood still.
    fn save(&mut self) -> Result<Duration, TrainError> {
        let step = self.trainer.cursor.step;
        if self.saved_step == Some(step) {
            return Ok(Duration::ZERO);
        }
        self.lock.check()?;
        let (trainer, data, metrics) = (&self.trainer, &self.data, &mut self.metrics);
        let stall = self.writer.start(|| trainer.snapshot(data, metrics.files_of_checkpoint()))?;
        tracing::debug!(
            "step {}: training stood still for {:.3} s",
            trainer.cursor.step,
            stall.as_secs_f64()
        );
        (self.saved, self.saved_step) = (Instant::now(), Some(step));
        Ok(stall)
    }
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
