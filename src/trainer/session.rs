//! A run from its start or its newest checkpoint to its end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::bank::BankInit;
use crate::checkpoint::{TrainedOn, mark_finished, unmark_finished};
use crate::dataset::Manifest;
use crate::loader::{Loader, Source};
use crate::model::{NamedTensors, allow_tf32, select_device};
use crate::storage::{Location, Lock};

use super::background::Writer;
use super::data;
use super::encode::encode_bank;
use super::health::BankHealth;
use super::meter::Meter;
use super::metrics::Metrics;
use super::retention::{Retention, remove_unpublished};
use super::saving::{DataIdentity, newest, publish_config};
use super::step::Trainer;
use super::{Hooks, MetricsLine, Precision, RunSummary, Scope, StopFlag, TrainConfig, TrainError, TrainJob};

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
    let mut session = Session::open(job, hooks)?;
    if session.trainer.cursor.epoch >= job.config.epochs {
        mark_finished(&job.run, session.trainer.cursor.step)?;
        return Ok(Outcome::AlreadyFinished { step: session.trainer.cursor.step });
    }
    unmark_finished(&job.run)?;
    while session.trainer.cursor.epoch < job.config.epochs {
        session.epoch(hooks, stop)?;
    }
    session.writer.finish()?;
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
    /// When the last checkpoint was begun.
    saved: Instant,
    /// Of several jobs on one run, the one that may write.
    lock: Lock,
}

impl<'a> Session<'a> {
    fn open(job: &'a TrainJob, hooks: &mut dyn Hooks) -> Result<Self, TrainError> {
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
        };
        let lock = Lock::take(&job.run.join("lock"))?;
        let found = newest(&job.run)?;
        remove_unpublished(&job.run)?;
        let selected = select_device(config.device)?;
        set_precision(config, selected.device);
        let mut trainer = Trainer::new(config.clone(), instances, selected.device);
        let source: Arc<dyn Source> = Arc::new(source);
        match &found {
            Some(checkpoint) => trainer.restore(checkpoint, &identity)?,
            None => {
                publish_config(&trainer, &job.run)?;
                if let Some(file) = &job.init {
                    begin_with(&mut trainer, file)?;
                }
                if config.bank_init == BankInit::Encode {
                    encode_bank(&mut trainer, &source)?;
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
        let mut session = Self { job, data, trainer, loader, metrics, writer, saved, lock };
        if found.is_none() {
            session.save()?;
        }
        Ok(session)
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
            }
            if stop.load(Ordering::Relaxed) {
                let _ = self.save()?;
                self.writer.finish()?;
                return Err(TrainError::Stopped { step });
            }
            self.writer.check()?;
            if self.is_due() {
                let stall = self.save()?;
                meter.stalled(stall);
                interval.stalled(stall);
            }
        }
        if self.loader.epoch() == cursor.epoch {
            // Stopped while it waited for data, or the loader ended without a word.
            let _ = self.save()?;
            self.writer.finish()?;
            return Err(TrainError::Stopped { step: self.trainer.cursor.step });
        }
        let stats = self.loader.stats();
        tracing::info!("{}", stats.verdict());
        if config.stats {
            stats.table().lines().for_each(|line| tracing::info!("{line}"));
        }
        self.trainer.cursor.epoch += 1;
        self.trainer.cursor.step_in_epoch = 0;
        self.end_epoch(&meter, cursor.epoch, hooks)
    }

    fn end_epoch(&mut self, meter: &Meter, epoch: u64, hooks: &mut dyn Hooks) -> Result<(), TrainError> {
        let config = &self.job.config;
        let done = self.trainer.cursor.epoch;
        let monitor = if config.no_monitor {
            serde_json::Map::new()
        } else {
            let judged = hooks.judge(&self.trainer.encoder, &self.trainer.bank);
            judged.map_err(|source| TrainError::Part(super::PartError::Monitor(source)))?
        };
        let bank = Some(BankHealth::of(&self.trainer));
        let line = MetricsLine { monitor, bank, ..meter.line(Scope::Epoch, self.trainer.cursor.step, epoch) };
        self.metrics.push(&line);
        hooks.measured(&line);
        if done == config.epochs || done.is_multiple_of(config.checkpoint_every_epochs.max(1)) {
            let _ = self.save()?;
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

    /// Starts to write a checkpoint; how long training stood still for it.
    fn save(&mut self) -> Result<Duration, TrainError> {
        self.lock.check()?;
        let (trainer, data, metrics) = (&self.trainer, &self.data, &mut self.metrics);
        let stall = self.writer.start(|| trainer.snapshot(data, metrics.files()))?;
        tracing::debug!(
            "step {}: training stood still for {:.3} s",
            trainer.cursor.step,
            stall.as_secs_f64()
        );
        self.saved = Instant::now();
        Ok(stall)
    }
}

/// Puts the weights of a file in place of the initial ones.
fn begin_with(trainer: &mut Trainer, file: &Location) -> Result<(), TrainError> {
    let weights = NamedTensors::from_bytes(&file.read()?)?;
    let whole = trainer.encoder.load_backbone(&weights)?;
    tracing::info!("weights of {file}{}", if whole { "" } else { ", without its last layer" });
    Ok(())
}

/// Sets libtorch's switches for f32 products.
pub(super) fn set_precision(config: &TrainConfig, device: tch::Device) {
    let tf32 = config.precision == Precision::Tf32;
    if let Err(reason) = allow_tf32(tf32) {
        tracing::warn!("{reason}");
    }
    if tf32 && !device.is_cuda() {
        tracing::warn!("precision tf32 is that of CUDA's tensor cores; here it is f32");
    }
}

fn check_size(job: &TrainJob, instances: usize) -> Result<(), TrainError> {
    if instances < 2 {
        let reason = format!("split {:?} has {instances} pictures; training needs two", job.config.split);
        return Err(TrainError::Config { reason });
    }
    if job.config.loader().steps(instances) == 0 {
        let reason = format!(
            "split {:?} has {instances} pictures, fewer than a batch of {}, and drop_last leaves short ones out",
            job.config.split, job.config.batch_size
        );
        return Err(TrainError::Config { reason });
    }
    Ok(())
}
