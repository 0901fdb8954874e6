//! Fine-tuning: trains an encoder on few labels, with a classifier in place of its projection.
//!
//! A fine-tuning run works like [`train`](super::train): same loader, optimisers, schedules, checkpoints and metrics,
//! and the same command resumes it. Only the loss differs, the cross entropy of the labels, and there is no bank.
//!
//! # Source
//! Paper, section 4.3 (semi-supervised learning): 70 epochs, learning rate 0.01, a tenth of it after every 30.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Kind, Reduction, Tensor};

use super::checkpoint::DataIdentity;
use super::checkpoint::resume::{Start, compatible_state, load_learned};
use super::gather::{Requests, present, share_statistics};
use super::learner::{Learned, Learner, StepOutcome, advance};
use super::optim::{Optimizer, learning_rate};
use super::{Hooks, Opened, Outcome, StopFlag, TrainError, TrainJob, join, tell};
use crate::checkpoint::{Checkpoint, Cursor, MODEL, TrainState};
use crate::dataset::write_label_subset;
use crate::distributed::{DistributedError, GradientReducer, ProcessGroup, Reduce};
use crate::loader::{Batch, Source, Subset, SubsetRecord};
use crate::model::libtorch::PendingRead;
use crate::model::{Encoder, NamedTensors, WeightsError};
use crate::run_config::{BankInit, Difference, LrSchedule, PartitionChoice, Precision, TrainConfig};
use crate::storage::{Digest, Location};
use crate::units::Fraction;

/// File in the run's folder with the instances whose labels are used.
const LABELS_FILE: &str = "labels.parquet";
/// Key of the label options in the `config` of state.json.
const LABELS: &str = "finetune";
/// Number of a batch's ids that an error names.
const IDS_IN_ERROR: usize = 8;
/// Target of images without a label; PyTorch's `ignore_index`.
const NO_LABEL: i64 = -100;

/// Fine-tuning job: model, data and options.
#[derive(Clone, Debug)]
pub struct FinetuneJob {
    /// Dataset, run and configuration. Options of objective and bank have no effect, and the embedding's
    /// length becomes the number of classes.
    pub train: TrainJob,
    /// Checkpoint with the initial weights.
    pub from: Location,
    /// Selection of labels and initial weights.
    pub labels: LabelOptions,
}

/// Selection of labels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelOptions {
    /// Fraction of labels used, with equal counts for each class.
    pub fraction: Fraction,
    /// Seed of the selection.
    pub seed: u64,
    /// Start from random weights, as a baseline of what the labels alone teach.
    pub from_scratch: bool,
}

/// Record of the labels in a checkpoint of a fine-tuning run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct LabelRecord {
    options: LabelOptions,
    /// Identity of the selected labels.
    subset: SubsetRecord,
    /// Digest of the initial weights; `None` for random ones.
    weights: Option<Digest>,
}

/// Returns the paper's schedule, with all other options of the pretraining run.
pub fn finetune_protocol(of_run: &TrainConfig) -> TrainConfig {
    TrainConfig {
        split: of_run.split.clone(),
        arch: of_run.arch,
        image_size: of_run.image_size,
        recipe: of_run.recipe,
        epochs: 70,
        lr: 0.01,
        lr_schedule: LrSchedule::Step,
        lr_milestones: vec![30, 60],
        lr_decay: 0.1,
        // These have no effect, and keep the values of the first fine-tuning runs.
        partition: PartitionChoice::Fixed,
        bank_init: BankInit::Uniform,
        ..TrainConfig::default()
    }
}

/// Fine-tunes to the end of the last epoch, continuing from the newest checkpoint if there is one.
///
/// # Errors
/// See [`TrainError`]; the checkpoints published so far remain.
pub fn finetune(job: &FinetuneJob, hooks: &mut dyn Hooks, stop: &StopFlag) -> Result<Outcome, TrainError> {
    Opened::of_labels(job, stop)?.begin(hooks, stop)?.run()
}

impl Opened<Tuner> {
    /// Connects the processes, and loads the newest checkpoint or the initial weights.
    fn of_labels(job: &FinetuneJob, stop: &StopFlag) -> Result<Self, TrainError> {
        let run = &job.train.run;
        let Labelled { config, source, data, from, labels } = job.train.told(Labelled::open(job), stop)?;
        let (group, device) = join(&job.train, &config, &data, stop)?;
        group.agree("the labels, and the weights to begin with", &json!(labels).to_string())?;
        let start = Start::of(&group, run)?;
        let group = Rc::new(group);
        let mut tuner = Tuner::over(Rc::clone(&group), config, labels, source.len(), device.device)?;
        let begun = match &start.found {
            Some(checkpoint) => tuner.restore(checkpoint, &data),
            None => begin(job, &mut tuner, source.as_ref(), &from),
        };
        begun.inspect_err(|error| tell(&group, error))?;
        Self { run: run.clone(), group, learner: tuner, source, data, device, start }.checked()
    }
}

/// State of a fine-tuning process before it joins the others.
struct Labelled {
    config: TrainConfig,
    source: Arc<dyn Source>,
    data: DataIdentity,
    from: Checkpoint,
    labels: LabelRecord,
}

impl Labelled {
    /// Opens the training data, and checks that the configuration fits it.
    fn open(job: &FinetuneJob) -> Result<Self, TrainError> {
        let manifest = job.train.manifest()?;
        if manifest.classes.is_empty() {
            let reason = format!(
                "{}: the dataset has no labels, which fine-tuning learns from; ingest it with its classes",
                job.train.dataset
            );
            return Err(TrainError::Config { reason });
        }
        let config = TrainConfig { dim: manifest.classes.len(), ..job.train.config.clone() };
        config.validate()?;
        if config.precision == Precision::F16 {
            let reason = "fine-tuning knows f32, tf32 and bf16".into();
            return Err(TrainError::Config { reason });
        }
        let whole = config.training_source(&job.train.dataset, &manifest)?;
        let source: Arc<dyn Source> =
            Arc::new(Subset::of_labels(whole, job.labels.fraction, job.labels.seed));
        if config.loader().steps(source.len()) == 0 {
            let reason = format!("{} labels of split `{}` make no batch", source.len(), config.split);
            return Err(TrainError::Config { reason });
        }
        config.check_size(source.len(), job.train.rendezvous.world())?;
        let data = DataIdentity::of(&job.train, &manifest, source.as_ref())?;
        let from = Checkpoint::open(&job.from)?;
        let weights = from.entry(MODEL).map(|entry| entry.digest);
        let labels = LabelRecord {
            options: job.labels,
            subset: SubsetRecord::new(source.ids(), source.labels()),
            weights: weights.filter(|_| !job.labels.from_scratch),
        };
        Ok(Self { config, source, data, from, labels })
    }
}

/// Initialises a new run.
fn begin(
    job: &FinetuneJob,
    tuner: &mut Tuner,
    source: &dyn Source,
    from: &Checkpoint,
) -> Result<(), TrainError> {
    if tuner.group.is_first() {
        write_label_subset(&job.train.run, LABELS_FILE, source.ids(), source.labels())?;
    }
    if !job.labels.from_scratch {
        tuner.begin_with(&NamedTensors::from_bytes(&from.read(MODEL)?)?)?;
    }
    Ok(())
}

/// State of a fine-tuning run.
#[derive(Debug)]
struct Tuner {
    config: TrainConfig,
    /// Processes of the run; all have the same encoder and optimiser.
    group: Rc<ProcessGroup>,
    /// First error of distributed batch norm, as forward passes return no error.
    failed: Rc<RefCell<Option<DistributedError>>>,
    reducer: GradientReducer,
    encoder: Encoder,
    optimizer: Optimizer,
    cursor: Cursor,
    labels: LabelRecord,
    instances: usize,
}

impl Tuner {
    /// Creates the state before the first step, with random weights.
    fn over(
        group: Rc<ProcessGroup>,
        config: TrainConfig,
        labels: LabelRecord,
        instances: usize,
        device: tch::Device,
    ) -> Result<Self, TrainError> {
        let mut encoder = Encoder::new(config.encoder(), config.seed, device);
        encoder.set_compute(config.precision, config.channels_last);
        let failed = share_statistics(&mut encoder, &group, &config);
        let optimizer = Optimizer::new(encoder.parameters(), &config);
        let parameters: Vec<Tensor> = encoder.parameters().into_iter().map(|(_, tensor)| tensor).collect();
        let reducer = GradientReducer::new(&group, &parameters)?;
        let cursor = Cursor::default();
        Ok(Self { config, group, failed, reducer, encoder, optimizer, cursor, labels, instances })
    }

    /// Loads the backbone's weights from a model with any last layer.
    fn begin_with(&mut self, weights: &NamedTensors) -> Result<(), WeightsError> {
        // Keeps the random classifier even if the file's last layer happens to have its shape.
        let projection = self.encoder.weights();
        let whole = self.encoder.load_backbone(weights)?;
        if whole {
            self.encoder.load_projection(&projection)?;
        }
        Ok(())
    }

    /// Returns the number of steps in an epoch.
    fn steps_per_epoch(&self) -> u64 {
        self.config.loader().steps(self.instances)
    }

    /// Loads the state of a checkpoint, which has no bank.
    ///
    /// # Errors
    /// If the checkpoint has other data, labels or configuration, or is damaged.
    fn restore(&mut self, from: &Checkpoint, data: &DataIdentity) -> Result<(), TrainError> {
        let labels = json!(self.labels);
        let state = compatible_state(from, &self.config, data, |state| {
            let before = &state.config[LABELS];
            let difference = || (before.to_string(), labels.to_string());
            let (before, now) = (*before != labels).then(difference)?;
            Some(Difference { key: LABELS.into(), before, now })
        })?;
        load_learned(from, &state, &mut self.encoder, &mut self.optimizer)?;
        self.cursor = state.cursor;
        Ok(())
    }
}

impl Learner for Tuner {
    fn learned(&self) -> Learned<'_> {
        let Self { config, encoder, optimizer, cursor, .. } = self;
        Learned { config, encoder, optimizer, cursor: *cursor }
    }

    fn step(&mut self, batch: &Batch, here: Requests) -> Result<Option<StepOutcome>, TrainError> {
        let lr = learning_rate(&self.config, self.cursor, self.steps_per_epoch());
        let images = batch.global.bank_rows.len();
        let global = present(&self.group, batch, self.config.on_corrupt)?;
        let total = global.bank_rows.len();
        if total == 0 {
            tracing::warn!(
                "step {}: every image of the batch is corrupt; the step is skipped",
                self.cursor.step
            );
            let asked = here.of_any(&self.group)?;
            let step = advance(self.steps_per_epoch(), &mut self.cursor);
            return Ok(Some(StepOutcome {
                skipped: true,
                step,
                images,
                lr,
                asked,
                ..StepOutcome::default()
            }));
        }
        self.optimizer.drop_gradients();
        let image = 3 * (self.config.image_size as usize).pow(2);
        let last = global.micro_batches.len() - 1;
        let mut losses = Vec::new();
        for number in 0..=last {
            let range = global.of_rank(self.group.rank(), number).0;
            let images = self.encoder.images(&batch.pixels[range.start * image..range.end * image]);
            let labels: Vec<i64> = batch.labels[range]
                .iter()
                .map(|label| label.map_or(NO_LABEL, |class| i64::from(class.0)))
                .collect();
            let labels = Tensor::from_slice(&labels).to_device(self.encoder.device());
            let logits = self.encoder.projected(&images, true).to_kind(Kind::Float);
            if let Some(error) = self.failed.take() {
                return Err(error.into());
            }
            let weights: Option<Tensor> = None;
            let loss =
                logits.cross_entropy_loss(&labels, weights, Reduction::Sum, NO_LABEL, 0.0) / total as f64;
            self.reducer.backward(&loss, number == last)?;
            losses.push(loss.detach());
        }
        // The reducer averages over ranks, while the loss is a sum over them.
        let ranks = self.group.world() as f64;
        let norm = self.optimizer.gradient_norm();
        let mut sums = vec![Tensor::stack(&losses, 0).sum(Kind::Double)];
        let number = |asked| Tensor::full([], asked, (Kind::Double, norm.device()));
        sums.extend(here.numbers().map(number));
        let sums = Tensor::stack(&sums, 0);
        self.group.all_reduce(&sums, Reduce::Sum)?;
        let read = PendingRead::begin(&Tensor::cat(&[sums, (&norm * ranks).unsqueeze(0)], 0)).finish();
        let [loss, stop, save, gradient_norm] = read[..] else { unreachable!("four numbers were read") };
        for (quantity, value) in [("loss", loss), ("gradient's norm", gradient_norm)] {
            if !value.is_finite() {
                let ids = batch.ids.iter().take(IDS_IN_ERROR).map(|id| id.0).collect();
                return Err(TrainError::NotFinite { step: self.cursor.step, quantity, value, ids });
            }
        }
        let divisor = self.optimizer.divisor(&norm, 1.0 / ranks);
        self.optimizer.step(lr, divisor.as_ref());
        Ok(Some(StepOutcome {
            step: advance(self.steps_per_epoch(), &mut self.cursor),
            images,
            loss,
            gradient_norm,
            lr,
            // No meaning without a bank; published as 1.
            row_cosine: 1.0,
            asked: Requests::from_sums(stop, save),
            ..StepOutcome::default()
        }))
    }

    fn complete(&self, state: &mut TrainState) {
        state.config[LABELS] = json!(self.labels);
    }
}
