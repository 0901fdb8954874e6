//! Fine-tuning: an encoder goes on to learn from few labels, with a classifier in place of its projection.
//!
//! The run is one like that of [`train`](super::train): the same loader, optimisers, schedules, checkpoints and
//! metrics, and the same command goes on where it was. Only the loss differs, which is the cross entropy of the
//! labels, and there is no bank.
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
use crate::dataset::{Manifest, write_label_subset};
use crate::distributed::{DistributedError, GradientReducer, ProcessGroup, Reduce};
use crate::loader::{Batch, Source, Subset, SubsetRecord};
use crate::model::libtorch::PendingRead;
use crate::model::{Encoder, NamedTensors, WeightsError};
use crate::run_config::{BankInit, Difference, LrSchedule, PartitionChoice, Precision, TrainConfig};
use crate::storage::{Digest, Location};
use crate::units::Fraction;

/// The file in the run's folder that names the labels which were seen.
const LABELS_FILE: &str = "labels.parquet";
/// The key of the labels in the `config` of state.json.
const LABELS: &str = "finetune";
/// How many ids of a batch an error names.
const IDS_IN_ERROR: usize = 8;
/// A label that counts for nothing, as PyTorch has it.
const NO_LABEL: i64 = -100;

/// What to fine-tune, on what, and how.
#[derive(Clone, Debug)]
pub struct FinetuneJob {
    /// The dataset, the run and the configuration. Of the latter, what concerns objective and bank has no meaning;
    /// the embedding's length becomes the number of classes.
    pub train: TrainJob,
    /// The checkpoint with whose weights it begins.
    pub from: Location,
    /// Which labels, and whether the weights count.
    pub labels: LabelOptions,
}

/// Which labels are seen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelOptions {
    /// Their share, the same number for each class.
    pub fraction: Fraction,
    /// The seed by which they are chosen.
    pub seed: u64,
    /// Begin with random weights instead: what the labels teach by themselves.
    pub from_scratch: bool,
}

/// What a checkpoint of a fine-tuning says of its labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct LabelRecord {
    options: LabelOptions,
    /// Which these are.
    subset: SubsetRecord,
    /// The weights with which it began; none for random ones.
    weights: Option<Digest>,
}

/// The paper's schedule; the rest is that of the run whose encoder is fine-tuned.
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
        // Without effect, and as they were when the first fine-tunings were begun.
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
    /// Brings the processes together, and each to where the newest checkpoint is, or to the start.
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

/// What a process knows of a fine-tuning before it joins the others.
struct Labelled {
    config: TrainConfig,
    source: Arc<dyn Source>,
    data: DataIdentity,
    from: Checkpoint,
    labels: LabelRecord,
}

impl Labelled {
    /// Opens what is trained on, and checks that the configuration fits it.
    fn open(job: &FinetuneJob) -> Result<Self, TrainError> {
        let manifest = Manifest::read(&job.train.dataset)?;
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

/// Brings a new run to where its first step begins.
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

/// The state of a fine-tuning.
#[derive(Debug)]
struct Tuner {
    config: TrainConfig,
    /// The processes of the run; encoder and optimiser are the same in all.
    group: Rc<ProcessGroup>,
    /// What went wrong while batch norm summed over the processes.
    failed: Rc<RefCell<Option<DistributedError>>>,
    reducer: GradientReducer,
    encoder: Encoder,
    optimizer: Optimizer,
    cursor: Cursor,
    labels: LabelRecord,
    instances: usize,
}

impl Tuner {
    /// The state before the first step, with random weights.
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

    /// Takes the backbone's weights from a model whose last layer was something else.
    fn begin_with(&mut self, weights: &NamedTensors) -> Result<(), WeightsError> {
        // Also where the embedding happens to be as long as there are classes.
        let projection = self.encoder.weights();
        let whole = self.encoder.load_backbone(weights)?;
        if whole {
            self.encoder.load_projection(&projection)?;
        }
        Ok(())
    }

    /// Steps of an epoch.
    fn steps_per_epoch(&self) -> u64 {
        self.config.loader().steps(self.instances)
    }

    /// Puts the state of a checkpoint, whose folder has no bank, in place.
    ///
    /// # Errors
    /// If the checkpoint is of other data, labels or configuration, or damaged.
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
        // The reducer gives the mean over ranks; the loss is a sum over them.
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
            asked: Requests::from_sums(stop, save),
            ..StepOutcome::default()
        }))
    }

    fn complete(&self, state: &mut TrainState) {
        state.config[LABELS] = json!(self.labels);
    }
}
