//! A fine-tuning from its start or its newest checkpoint to its end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::super::background::Writer;
use super::super::data;
use super::super::meter::Meter;
use super::super::metrics::Metrics;
use super::super::retention::{Retention, remove_unpublished};
use super::super::saving::{DataIdentity, newest};
use super::super::session::Outcome;
use super::super::start::set_precision;
use super::super::{MetricsLine, Precision, RunSummary, Scope, StopFlag, TrainConfig, TrainError};
use super::tuner::Tuner;
use super::{FinetuneHooks, FinetuneJob, LabelRecord};
use crate::checkpoint::{Checkpoint, MODEL, mark_finished, unmark_finished};
use crate::dataset::{Manifest, write_label_subset};
use crate::loader::{Loader, LoaderError, Part, Source, Subset, SubsetRecord};
use crate::model::{NamedTensors, select_device};
use crate::storage::{Lock, PublishMode};

/// The file in the run's folder that names the labels which were seen.
const LABELS: &str = "labels.parquet";

/// Fine-tunes to the end of the last epoch, going on from the newest checkpoint if there is one.
///
/// # Errors
/// See [`TrainError`]; the checkpoints published so far stand.
pub fn finetune(
    job: &FinetuneJob,
    hooks: &mut dyn FinetuneHooks,
    stop: &StopFlag,
) -> Result<Outcome, TrainError> {
    let mut session = Session::open(job, hooks)?;
    let run = &job.train.run;
    let epochs = job.train.config.epochs;
    if session.tuner.cursor.epoch >= epochs {
        mark_finished(run, session.tuner.cursor.step)?;
        return Ok(Outcome::AlreadyFinished { step: session.tuner.cursor.step });
    }
    unmark_finished(run)?;
    let trained = session.epochs(hooks, stop);
    if trained.is_err()
        && let Err(error) = session.metrics.files().publish()
    {
        tracing::warn!("the last metrics could not be written: {error}");
    }
    trained?;
    let checkpoint = session.writer.last().cloned().expect("the last epoch ends with a checkpoint");
    mark_finished(run, session.tuner.cursor.step)?;
    Ok(Outcome::Finished { step: session.tuner.cursor.step, checkpoint })
}

/// A fine-tuning that is under way.
struct Session {
    data: Arc<DataIdentity>,
    labels: LabelRecord,
    tuner: Tuner,
    loader: Loader,
    metrics: Metrics,
    writer: Writer,
    /// When the last checkpoint was begun, and of which step it is.
    saved: Instant,
    saved_step: Option<u64>,
    lock: Lock,
}

impl Session {
    fn open(job: &FinetuneJob, hooks: &mut dyn FinetuneHooks) -> Result<Self, TrainError> {
        let (run, manifest) = (&job.train.run, Manifest::read(&job.train.dataset)?);
        let config = TrainConfig { dim: manifest.classes.len(), ..job.train.config.clone() };
        config.validate()?;
        if config.precision == Precision::F16 {
            let reason = "fine-tuning knows f32, tf32 and bf16".into();
            return Err(TrainError::Config { reason });
        }
        let whole: Arc<dyn Source> = Arc::new(data::open(&job.train, &manifest)?);
        let source: Arc<dyn Source> =
            Arc::new(Subset::of_labels(whole, job.labels.fraction, job.labels.seed));
        if config.loader().steps(source.len()) == 0 {
            let reason = format!("{} labels of split {:?} make no batch", source.len(), config.split);
            return Err(TrainError::Config { reason });
        }
        let identity = DataIdentity::of(&job.train, &manifest, source.as_ref())?;
        let from = Checkpoint::open(&job.from)?;
        let weights =
            from.manifest().files.iter().find(|entry| entry.name == MODEL).map(|entry| entry.digest);
        let labels = LabelRecord {
            options: job.labels,
            subset: SubsetRecord::new(source.ids(), source.labels()),
            weights: weights.filter(|_| !job.labels.from_scratch),
        };
        let lock = Lock::take(&run.join("lock"))?;
        let found = newest(run)?;
        remove_unpublished(run)?;
        let selected = select_device(config.device)?;
        set_precision(&config, selected.device);
        let mut tuner = Tuner::new(config.clone(), source.len(), selected.device);
        match &found {
            Some(checkpoint) => tuner.restore(checkpoint, &identity, &labels)?,
            None => {
                let text = toml::to_string(&config).expect("a configuration is plain data");
                run.join("config.toml").publish(text, PublishMode::Overwrite)?;
                write_label_subset(run, LABELS, source.ids(), source.labels())?;
                if !job.labels.from_scratch {
                    tuner.begin_with(&NamedTensors::from_bytes(&from.read(MODEL)?)?)?;
                }
            }
        }
        let parameters = tuner.encoder.parameters().iter().map(|(_, tensor)| tensor.numel()).sum();
        let steps = tuner.steps_per_epoch();
        hooks.started(&RunSummary {
            device: format!("{:?} ({})", selected.device, selected.reason),
            ranks: 1,
            instances: source.len(),
            parameters,
            resumed_step: tuner.cursor.step,
            total_steps: steps * config.epochs,
        });
        let metrics = Metrics::resume(run, tuner.cursor.step)?;
        let loader = data::load(&config, &source, tuner.cursor, Part::WHOLE)?;
        let retention = Retention { newest: config.keep, every_steps: config.keep_every_epochs * steps };
        let last = found.as_ref().map(|checkpoint| checkpoint.folder().clone());
        let writer = Writer::new(run.clone(), Some(retention), last);
        let (data, saved) = (Arc::new(identity), Instant::now());
        let saved_step = found.as_ref().map(|_| tuner.cursor.step);
        let mut session = Self { data, labels, tuner, loader, metrics, writer, saved, saved_step, lock };
        if found.is_none() {
            session.save()?;
        }
        Ok(session)
    }

    /// Trains to the end of the last epoch.
    fn epochs(&mut self, hooks: &mut dyn FinetuneHooks, stop: &StopFlag) -> Result<(), TrainError> {
        while self.tuner.cursor.epoch < self.tuner.config.epochs {
            self.epoch(hooks, stop)?;
        }
        self.writer.finish()
    }

    /// Trains to the end of the epoch that is under way.
    fn epoch(&mut self, hooks: &mut dyn FinetuneHooks, stop: &StopFlag) -> Result<(), TrainError> {
        let every = self.tuner.config.log_every_steps;
        let cursor = self.tuner.cursor;
        let (mut meter, mut interval) = (Meter::start(), Meter::start());
        let waited = self.loader.waited();
        let mut waited_before = waited;
        while let Some(batch) = self.loader.next_of(cursor.epoch, stop) {
            let batch = batch?;
            let outcome = self.tuner.step(&batch)?;
            meter.add(outcome, batch.ids.len(), self.loader.waited() - waited);
            interval.add(outcome, batch.ids.len(), self.loader.waited() - waited_before);
            self.loader.give_back(batch);
            let step = self.tuner.cursor.step;
            hooks.stepped(&meter.report(step, cursor.epoch));
            if every > 0 && step.is_multiple_of(every) {
                let line = interval.line(Scope::Interval, step, cursor.epoch);
                self.metrics.push(&line);
                hooks.measured(&line);
                (interval, waited_before) = (Meter::start(), self.loader.waited());
            }
            self.writer.check()?;
            if self.tuner.cursor.epoch > cursor.epoch {
                return self.end_epoch(&meter, cursor.epoch, hooks, stop);
            }
            if stop.load(Ordering::Relaxed) {
                return self.stopped();
            }
            if self.is_due() {
                self.save()?;
            }
        }
        // Stopped while it waited for data, or the loader ended without a word.
        if stop.load(Ordering::Relaxed) { self.stopped() } else { Err(LoaderError::Stopped.into()) }
    }

    /// Saves, then judges: what that meets costs no steps.
    fn end_epoch(
        &mut self,
        meter: &Meter,
        epoch: u64,
        hooks: &mut dyn FinetuneHooks,
        stop: &StopFlag,
    ) -> Result<(), TrainError> {
        let is_stopped = || stop.load(Ordering::Relaxed);
        let (done, config) = (self.tuner.cursor.epoch, &self.tuner.config);
        let falls_on = |every: u64| every > 0 && done.is_multiple_of(every);
        let is_due = done == config.epochs
            || falls_on(config.checkpoint_every_epochs.max(1))
            || falls_on(config.keep_every_epochs);
        let judges = !config.no_monitor && !is_stopped();
        if is_due || is_stopped() {
            self.save()?;
        }
        let mut monitor = serde_json::Map::new();
        if judges {
            match hooks.judge(&self.tuner.encoder) {
                Ok(scores) => monitor = scores,
                Err(error) => tracing::warn!("epoch {}: the classifier was not judged: {error}", epoch + 1),
            }
        }
        let line = MetricsLine { monitor, ..meter.line(Scope::Epoch, self.tuner.cursor.step, epoch) };
        self.metrics.push(&line);
        hooks.measured(&line);
        self.metrics.files().publish()?;
        if is_stopped() { self.stopped() } else { Ok(()) }
    }

    /// Saves what is not saved yet and ends the run with the error that says so.
    fn stopped(&mut self) -> Result<(), TrainError> {
        self.save()?;
        self.writer.finish()?;
        Err(TrainError::Stopped { step: self.tuner.cursor.step })
    }

    /// Whether it is time for a checkpoint in the middle of an epoch.
    fn is_due(&self) -> bool {
        let (steps, minutes) =
            (self.tuner.config.checkpoint_every_steps, self.tuner.config.checkpoint_every_minutes);
        let by_steps = steps > 0 && self.tuner.cursor.step.is_multiple_of(steps);
        by_steps || (minutes > 0.0 && self.saved.elapsed().as_secs_f64() >= minutes * 60.0)
    }

    /// Starts to write a checkpoint, unless that of this step is written.
    fn save(&mut self) -> Result<(), TrainError> {
        let step = self.tuner.cursor.step;
        if self.saved_step == Some(step) {
            return Ok(());
        }
        self.lock.check()?;
        let (tuner, data, labels, metrics) = (&self.tuner, &self.data, &self.labels, &mut self.metrics);
        self.writer.start(|| tuner.snapshot(data, labels, metrics.files_of_checkpoint()))?;
        (self.saved, self.saved_step) = (Instant::now(), Some(step));
        Ok(())
    }
}
