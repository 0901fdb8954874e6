//! One training step, and everything it moves.

use tch::{Kind, Tensor};

use super::schedule::learning_rate;
use super::sgd::Sgd;
use super::{TrainConfig, TrainError};
use crate::bank::MemoryBank;
use crate::checkpoint::Cursor;
use crate::ids::InstanceId;
use crate::loader::Batch;
use crate::model::Encoder;
use crate::objective::{Nce, NceOptions, Negatives, Objective, ObjectiveKind, Partition, Queries, Softmax};

/// How many ids of a batch an error names.
const IDS_IN_ERROR: usize = 8;

/// The state of a run.
#[derive(Debug)]
pub(super) struct Trainer {
    pub(super) config: TrainConfig,
    pub(super) encoder: Encoder,
    pub(super) optimizer: Sgd,
    pub(super) bank: MemoryBank,
    pub(super) objective: Objective,
    pub(super) cursor: Cursor,
}

/// What a step measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepOutcome {
    pub(super) loss: f64,
    pub(super) gradient_norm: f64,
}

impl Trainer {
    /// The state before the first step.
    pub(super) fn new(config: TrainConfig, instances: usize, device: tch::Device) -> Self {
        let encoder = Encoder::new(config.encoder(), config.seed, device);
        let optimizer = Sgd::new(encoder.parameters(), config.momentum, config.weight_decay);
        let bank = MemoryBank::random(instances, config.dim, config.seed, device);
        let objective = objective(&config, None);
        Self { config, encoder, optimizer, bank, objective, cursor: Cursor::default() }
    }

    /// Puts the partition constant of an earlier run in place.
    pub(super) fn set_partition(&mut self, ln_z: Option<f64>) {
        self.objective = objective(&self.config, ln_z);
    }

    /// Trains on one batch.
    ///
    /// # Errors
    /// If a quantity is not finite; then nothing was moved.
    pub(super) fn step(&mut self, batch: &Batch) -> Result<StepOutcome, TrainError> {
        let step = self.cursor.step;
        let features = self.encoder.forward(&self.pixels(batch), true);
        let detached = features.detach();
        self.check("features' sum", detached.sum(Kind::Double).double_value(&[]), &batch.ids)?;

        let queries = Queries { features: &detached, positions: &batch.positions };
        let negatives = self.draw_negatives(batch.ids.len());
        self.objective.prepare(queries, &self.bank, negatives.as_ref());
        let evaluation = self.objective.evaluate(queries, &self.bank, negatives.as_ref());
        self.check("loss", evaluation.loss, &batch.ids)?;

        self.optimizer.zero_gradients();
        (&features * &evaluation.gradient).sum(Kind::Float).backward();
        let gradient_norm = self.optimizer.gradient_norm();
        self.check("gradient's norm", gradient_norm, &batch.ids)?;

        self.optimizer.step(learning_rate(&self.config, self.cursor.epoch));
        self.bank.update(&batch.positions, &detached, self.config.bank_momentum, step);
        self.cursor.step += 1;
        self.cursor.step_in_epoch += 1;
        Ok(StepOutcome { loss: evaluation.loss, gradient_norm })
    }

    /// The batch's pixels as a u8 tensor on the encoder's device, `[batch, 3, side, side]`.
    fn pixels(&self, batch: &Batch) -> Tensor {
        let side = i64::from(self.config.image_size);
        Tensor::from_slice(&batch.pixels)
            .view([batch.ids.len() as i64, 3, side, side])
            .to_device(self.encoder.device())
    }

    fn draw_negatives(&self, batch: usize) -> Option<Negatives> {
        let count = self.objective.negatives()?;
        let device = self.encoder.device();
        Some(Negatives::draw(self.config.seed, self.cursor.step, batch, count, self.bank.len(), device))
    }

    fn check(&self, quantity: &'static str, value: f64, ids: &[InstanceId]) -> Result<(), TrainError> {
        if value.is_finite() {
            return Ok(());
        }
        let ids = ids.iter().take(IDS_IN_ERROR).map(|id| id.0).collect();
        Err(TrainError::NotFinite { step: self.cursor.step, quantity, value, ids })
    }
}

fn objective(config: &TrainConfig, ln_z: Option<f64>) -> Objective {
    let temperature = config.temperature;
    match config.objective {
        ObjectiveKind::Nce => {
            let options = NceOptions { negatives: config.negatives, temperature, eps: config.eps };
            let partition = ln_z.map_or(Partition::Unset, |ln_z| Partition::Fixed { ln_z });
            Objective::Nce(Nce::new(options, partition))
        }
        ObjectiveKind::Softmax => Objective::Softmax(Softmax::new(temperature)),
    }
}
