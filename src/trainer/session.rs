//! A run from its start or its newest checkpoint to its end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::checkpoint::{TrainedOn, mark_finished, unmark_finished};
use crate::dataset::Manifest;
use crate::loader::{Loader, Source};
use crate::model::select_device;
use crate::storage::{Location, PublishMode};

use super::data;
use super::metrics::Metrics;
use super::saving::{DataIdentity, newest, prune};
use super::schedule::learning_rate;
use super::step::{StepOutcome, Trainer};
use super::{Hooks, MetricsLine, RunSummary, StepReport, StopFlag, TrainError, TrainJob};

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
    let checkpoint = session.last_checkpoint.expect("the last epoch ends with a checkpoint");
    mark_finished(&job.run, session.trainer.cursor.step)?;
    Ok(Outcome::Finished { step: session.trainer.cursor.step, checkpoint })
}

/// A run that is under way.
struct Session<'a> {
    job: &'a TrainJob,
    data: DataIdentity,
    trainer: Trainer,
    loader: Loader,
    metrics: Metrics,
    last_checkpoint: Option<Location>,
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
        let found = newest(&job.run)?;
        let selected = select_device(config.device)?;
        let mut trainer = Trainer::new(config.clone(), instances, selected.device);
        let mut last_checkpoint = None;
        match &found {
            Some(checkpoint) => {
                trainer.restore(checkpoint, &identity)?;
                last_checkpoint = Some(checkpoint.folder().clone());
            }
            None => {
                let text = toml::to_string(config).expect("a configuration is plain data");
                job.run.join("config.toml").publish(text, PublishMode::Overwrite)?;
            }
        }
        let parameters = trainer.encoder.parameters().iter().map(|(_, tensor)| tensor.numel()).sum();
        let steps = config.loader().steps(instances);
        hooks.started(&RunSummary {
            device: format!("{:?} ({})", selected.device, selected.reason),
            instances,
            parameters,
            resumed_step: trainer.cursor.step,
            total_steps: steps * config.epochs,
        });
        let metrics = Metrics::resume(&job.run, trainer.cursor.step)?;
        let source: Arc<dyn Source> = Arc::new(source);
        let loader = data::load(config, &source, trainer.cursor)?;
        let mut session = Self { job, data: identity, trainer, loader, metrics, last_checkpoint };
        if found.is_none() {
            session.save()?;
        }
        Ok(session)
    }

    /// Trains to the end of the epoch that is under way.
    fn epoch(&mut self, hooks: &mut dyn Hooks, stop: &StopFlag) -> Result<(), TrainError> {
        let config = &self.job.config;
        let cursor = self.trainer.cursor;
        let mut meter = Meter::start(learning_rate(config, cursor.epoch));
        let waited = self.loader.waited();
        while let Some(batch) = self.loader.next_of(cursor.epoch, stop) {
            let batch = batch?;
            let outcome = self.trainer.step(&batch)?;
            meter.add(outcome, batch.ids.len(), self.loader.waited() - waited);
            self.loader.give_back(batch);
            hooks.stepped(&meter.report(self.trainer.cursor.step, cursor.epoch));
            if stop.load(Ordering::Relaxed) {
                self.save()?;
                return Err(TrainError::Stopped { step: self.trainer.cursor.step });
            }
            let every = config.checkpoint_every_steps;
            if every > 0 && self.trainer.cursor.step.is_multiple_of(every) {
                self.save()?;
            }
        }
        if self.loader.epoch() == cursor.epoch {
            // Stopped while it waited for data, or the loader ended without a word.
            self.save()?;
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
        let line = MetricsLine { monitor, ..meter.line(self.trainer.cursor.step, epoch) };
        self.metrics.push(&line);
        hooks.epoch_ended(&line);
        if done == config.epochs || done.is_multiple_of(config.checkpoint_every_epochs.max(1)) {
            self.save()?;
        }
        Ok(())
    }

    fn save(&mut self) -> Result<(), TrainError> {
        self.metrics.publish()?;
        let folder = self.trainer.save(&self.job.run, &self.data)?;
        tracing::info!("checkpoint {folder}");
        self.last_checkpoint = Some(folder);
        prune(&self.job.run, self.job.config.keep)
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

/// Adds up what an epoch measures.
struct Meter {
    started: Instant,
    lr: f64,
    steps: u64,
    images: u64,
    loss_sum: f64,
    last: StepOutcome,
    waited: Duration,
}

impl Meter {
    fn start(lr: f64) -> Self {
        let last = StepOutcome { loss: 0.0, gradient_norm: 0.0 };
        let waited = Duration::ZERO;
        Self { started: Instant::now(), lr, steps: 0, images: 0, loss_sum: 0.0, last, waited }
    }

    fn add(&mut self, outcome: StepOutcome, images: usize, waited: Duration) {
        self.steps += 1;
        self.images += images as u64;
        self.loss_sum += outcome.loss;
        self.last = outcome;
        self.waited = waited;
    }

    fn report(&self, step: u64, epoch: u64) -> StepReport {
        let seconds = self.started.elapsed().as_secs_f64().max(1e-9);
        StepReport {
            step,
            epoch,
            loss: self.last.loss,
            lr: self.lr,
            images_per_second: self.images as f64 / seconds,
            data_wait: self.waited.as_secs_f64() / seconds,
        }
    }

    fn line(&self, step: u64, epoch: u64) -> MetricsLine {
        let report = self.report(step, epoch);
        MetricsLine {
            step,
            epoch,
            loss: self.loss_sum / self.steps.max(1) as f64,
            lr: self.lr,
            images_per_second: report.images_per_second,
            data_wait: report.data_wait,
            gradient_norm: self.last.gradient_norm,
            monitor: serde_json::Map::new(),
        }
    }
}
