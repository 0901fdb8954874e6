//! One step of fine-tuning, and everything it moves.

use tch::{Kind, Reduction, Tensor};

use super::LabelRecord;
use crate::checkpoint::Cursor;
use crate::loader::{Batch, micro_batch_ranges};
use crate::model::libtorch::PendingRead;
use crate::model::{Encoder, NamedTensors, WeightsError};
use crate::run_config::TrainConfig;
use crate::train::error::TrainError;
use crate::train::optim::Optimizer;
use crate::train::optim::schedule::learning_rate;
use crate::train::state::compute;
use crate::train::step::StepOutcome;

/// How many ids of a batch an error names.
const IDS_IN_ERROR: usize = 8;
/// A label that counts for nothing, as PyTorch has it.
const NO_LABEL: i64 = -100;

/// The state of a fine-tuning.
#[derive(Debug)]
pub(super) struct Tuner {
    pub(super) config: TrainConfig,
    pub(super) encoder: Encoder,
    pub(super) optimizer: Optimizer,
    pub(super) cursor: Cursor,
    pub(super) labels: LabelRecord,
    instances: usize,
}

impl Tuner {
    /// The state before the first step, with random weights.
    pub(super) fn new(
        config: TrainConfig,
        labels: LabelRecord,
        instances: usize,
        device: tch::Device,
    ) -> Self {
        let mut encoder = Encoder::new(config.encoder(), config.seed, device);
        encoder.set_compute(compute(&config));
        let optimizer = Optimizer::new(encoder.parameters(), &config);
        Self { config, encoder, optimizer, cursor: Cursor::default(), labels, instances }
    }

    /// Takes the backbone's weights from a model whose last layer was something else.
    ///
    /// # Errors
    /// If they are not of this architecture.
    pub(super) fn begin_with(&mut self, weights: &NamedTensors) -> Result<(), WeightsError> {
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

    fn advance(&mut self) {
        self.cursor.step += 1;
        self.cursor.step_in_epoch += 1;
        if self.cursor.step_in_epoch == self.steps_per_epoch() {
            self.cursor.epoch += 1;
            self.cursor.step_in_epoch = 0;
        }
    }

    /// Trains on one batch.
    ///
    /// # Errors
    /// If loss or gradient are not finite.
    pub(super) fn step(&mut self, batch: &Batch) -> Result<StepOutcome, TrainError> {
        let lr = learning_rate(&self.config, self.cursor, self.steps_per_epoch());
        let total = batch.ids.len();
        if total == 0 {
            tracing::warn!(
                "step {}: every image of the batch is corrupt; the step is skipped",
                self.cursor.step
            );
            self.advance();
            return Ok(StepOutcome { skipped: true, step: self.cursor.step, ..StepOutcome::before(lr, 0) });
        }
        self.optimizer.drop_gradients();
        let image = 3 * (self.config.image_size as usize).pow(2);
        let mut losses = Vec::new();
        for range in micro_batch_ranges(total, self.config.accumulate) {
            let images = self.encoder.images(&batch.pixels[range.start * image..range.end * image]);
            let labels: Vec<i64> = batch.labels[range]
                .iter()
                .map(|label| label.map_or(NO_LABEL, |class| i64::from(class.0)))
                .collect();
            let labels = Tensor::from_slice(&labels).to_device(self.encoder.device());
            let logits = self.encoder.projected(&images, true).to_kind(Kind::Float);
            let weights: Option<Tensor> = None;
            let loss =
                logits.cross_entropy_loss(&labels, weights, Reduction::Sum, NO_LABEL, 0.0) / total as f64;
            loss.backward();
            losses.push(loss.detach());
        }
        let loss = Tensor::stack(&losses, 0).sum(Kind::Double);
        let gradient_norm = self.optimizer.gradient_norm();
        let read = PendingRead::begin(&Tensor::stack(&[&loss, &gradient_norm], 0)).finish();
        for (quantity, &value) in ["loss", "gradient's norm"].into_iter().zip(&read) {
            if !value.is_finite() {
                let ids = batch.ids.iter().take(IDS_IN_ERROR).map(|id| id.0).collect();
                return Err(TrainError::NotFinite { step: self.cursor.step, quantity, value, ids });
            }
        }
        let divisor = self.optimizer.divisor(&gradient_norm, 1.0);
        self.optimizer.step(lr, divisor.as_ref());
        self.advance();
        Ok(StepOutcome {
            step: self.cursor.step,
            loss: read[0],
            gradient_norm: read[1],
            ..StepOutcome::before(lr, batch.global.bank_rows.len())
        })
    }
}
