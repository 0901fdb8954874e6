//! One training step, and everything it moves.

use std::ops::Range;

use tch::{Kind, Tensor, no_grad};

use super::clock::{Clock, Phase};
use super::config::OnNonFinite;
use super::optimizer::Optimizer;
use super::scaler::LossScale;
use super::schedule::learning_rate;
use super::{Precision, TrainConfig, TrainError};
use crate::bank::MemoryBank;
use crate::checkpoint::Cursor;
use crate::ids::Position;
use crate::loader::Batch;
use crate::model::{Compute, ComputeType, Encoder};
use crate::objective::{Draw, Negatives, Objective, Partition, Queries};

/// After so many steps that moved nothing, one after the other, the run is over: it would move nothing more.
const MOST_SKIPPED_IN_A_ROW: u64 = 1000;
/// Keeps the division by the gradient's norm finite, as `torch.nn.utils.clip_grad_norm_` does.
const SHORTEST_NORM: f64 = 1e-6;

/// The state of a run.
#[derive(Debug)]
pub(super) struct Trainer {
    pub(super) config: TrainConfig,
    pub(super) encoder: Encoder,
    pub(super) optimizer: Optimizer,
    pub(super) bank: MemoryBank,
    pub(super) objective: Objective,
    pub(super) cursor: Cursor,
    /// With `precision = f16` only.
    pub(super) loss_scale: Option<LossScale>,
    /// Steps that moved nothing, because a number was not finite.
    pub(super) skipped: u64,
    skipped_in_a_row: u64,
    pub(super) clock: Clock,
    /// The features and positions of the last step, for whoever looks at the run.
    last: Option<(Tensor, Vec<Position>)>,
}

/// What a step measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepOutcome {
    pub(super) loss: f64,
    /// Before clipping.
    pub(super) gradient_norm: f64,
    pub(super) lr: f64,
    /// The mean cosine of an updated row before and after.
    pub(super) row_cosine: f64,
    /// The mean of `‖f - v‖²` over the batch.
    pub(super) alignment: f64,
    /// ln Z as the step assumed it, for `nce`.
    pub(super) ln_partition: Option<f64>,
    /// Nothing moved.
    pub(super) skipped: bool,
}

/// What the passes through the network left behind: gradients in the parameters, and this.
struct Passes {
    /// `[batch, dim]`
    features: Tensor,
    loss: Tensor,
    ln_partition: Option<Tensor>,
}

impl Trainer {
    /// The state before the first step.
    pub(super) fn new(config: TrainConfig, instances: usize, device: tch::Device) -> Self {
        let mut encoder = Encoder::new(config.encoder(), config.seed, device);
        encoder.set_compute(compute(&config));
        let optimizer = Optimizer::new(encoder.parameters(), &config);
        let bank = MemoryBank::initial(config.bank(instances), config.seed, device);
        let objective = Objective::new(config.objective(), Partition::Unset);
        let loss_scale = (config.precision == Precision::F16).then(LossScale::default);
        let cursor = Cursor::default();
        Self {
            config,
            encoder,
            optimizer,
            bank,
            objective,
            cursor,
            loss_scale,
            skipped: 0,
            skipped_in_a_row: 0,
            clock: Clock::off(),
            last: None,
        }
    }

    /// The last step's batch, as an objective sees it.
    pub(super) fn last_batch(&self) -> Option<Queries<'_>> {
        self.last.as_ref().map(|(features, positions)| Queries::whole(features, positions))
    }

    /// Steps of an epoch.
    pub(super) fn steps_per_epoch(&self) -> u64 {
        self.config.loader().steps(self.bank.len())
    }

    /// Trains on one batch.
    ///
    /// # Errors
    /// If a quantity is not finite and that is not to be skipped.
    pub(super) fn step(&mut self, batch: &Batch) -> Result<StepOutcome, TrainError> {
        let step = self.cursor.step;
        let lr = learning_rate(&self.config, self.cursor, self.steps_per_epoch());
        let scale = self.loss_scale.map_or(1.0, |scale| scale.factor);
        let statistics = self.kept_statistics();
        let (partition, ln_partition) = (self.objective.partition(), self.objective.partition().ln_z());

        self.optimizer.zero_gradients();
        let passes = self.passes(batch, scale);
        let [sum, loss, norm] =
            read([&passes.features.sum(Kind::Double), &passes.loss, &self.optimizer.gradient_norm()]);
        let mut outcome = StepOutcome {
            loss,
            gradient_norm: norm / scale,
            lr,
            row_cosine: 1.0,
            alignment: 0.0,
            ln_partition,
            skipped: false,
        };

        let quantities = [("features' sum", sum), ("loss", loss), ("gradient's norm", norm)];
        if let Some(&(quantity, value)) = quantities.iter().find(|(_, value)| !value.is_finite()) {
            self.excuse(quantity, value, &passes.features, batch)?;
            put_back(statistics);
            self.objective.set_partition(partition);
            outcome.skipped = true;
        } else {
            self.optimizer.scale_gradients(clip_factor(&self.config, outcome.gradient_norm) / scale);
            self.optimizer.step(lr);
            self.clock.mark(Phase::Optimizer);
            let momentum = self.config.bank_momentum;
            let moved = self.bank.update(&batch.positions, &passes.features, momentum, step);
            if let Some(estimate) = passes.ln_partition {
                self.objective.observe(estimate.double_value(&[]));
            }
            self.skipped_in_a_row = 0;
            if let Some(scale) = &mut self.loss_scale {
                scale.succeeded();
            }
            [outcome.row_cosine, outcome.alignment] = read([&moved.row_cosine, &moved.distance]);
            self.clock.mark(Phase::Bank);
            outcome.ln_partition = ln_partition.or(self.objective.partition().ln_z());
            self.last = Some((passes.features, batch.positions.clone()));
        }
        self.cursor.step += 1;
        self.cursor.step_in_epoch += 1;
        if self.cursor.step_in_epoch == self.steps_per_epoch() {
            (self.cursor.epoch, self.cursor.step_in_epoch) = (self.cursor.epoch + 1, 0);
        }
        Ok(outcome)
    }

    /// Forward and backward, part by part; parameters get the gradient of the whole batch, times `scale`.
    fn passes(&mut self, batch: &Batch, scale: f64) -> Passes {
        let rows = [self.bank.whole()];
        let total = batch.ids.len();
        let (mut features, mut losses, mut estimates) = (Vec::new(), Vec::new(), Vec::new());
        for range in parts(total, self.config.accumulate) {
            let pixels = self.pixels(batch, &range);
            self.clock.mark(Phase::Data);
            let attached = self.encoder.forward(&pixels, true);
            self.clock.mark(Phase::Forward);
            let detached = attached.detach();
            let positions = &batch.positions[range.clone()];
            let queries = Queries { features: &detached, positions, batch: total };
            let negatives = self.draw_negatives(range.clone());
            self.objective.prepare(queries, &rows, negatives.as_ref());
            let evaluation = self.objective.evaluate(queries, &rows, negatives.as_ref());
            self.clock.mark(Phase::Objective);
            (attached * &evaluation.gradient * scale).sum(Kind::Float).backward();
            self.clock.mark(Phase::Backward);
            let share = (range.len() as f64 / total as f64).ln();
            estimates.extend(evaluation.ln_partition.map(|estimate| estimate + share));
            losses.push(evaluation.loss);
            features.push(detached);
        }
        let stack = |values: &[Tensor]| Tensor::stack(values, 0);
        Passes {
            features: Tensor::cat(&features, 0),
            loss: stack(&losses).sum(Kind::Double),
            ln_partition: (!estimates.is_empty())
                .then(|| stack(&estimates).logsumexp([0_i64].as_slice(), false)),
        }
    }

    /// Whether a step with such a number may be skipped.
    fn excuse(
        &mut self,
        quantity: &'static str,
        value: f64,
        features: &Tensor,
        batch: &Batch,
    ) -> Result<(), TrainError> {
        let overflow =
            quantity == "gradient's norm" && self.loss_scale.as_mut().is_some_and(LossScale::overflowed);
        let is_finite = features.isfinite().all_dim(1, false).to_device(tch::Device::Cpu);
        let wrong = (0..).zip(&batch.ids).filter(|(row, _)| is_finite.int64_value(&[*row]) == 0);
        let wrong: Vec<u32> = wrong.map(|(_, id)| id.0).collect();
        let ids = if wrong.is_empty() { batch.ids.iter().map(|id| id.0).collect() } else { wrong };
        let error = TrainError::NotFinite { step: self.cursor.step, quantity, value, ids };
        self.skipped += 1;
        self.skipped_in_a_row += 1;
        let is_hopeless = self.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW;
        if is_hopeless || (!overflow && self.config.on_nonfinite == OnNonFinite::Fail) {
            return Err(error);
        }
        if overflow {
            tracing::debug!("step {}: f16 gradients overflowed; the loss scale halves", self.cursor.step);
        } else {
            tracing::warn!("{error}; the step is skipped");
        }
        Ok(())
    }

    /// Copies of batch norm's statistics, where a step may be skipped: the forward pass moves them.
    fn kept_statistics(&self) -> Vec<(Tensor, Tensor)> {
        if self.config.on_nonfinite == OnNonFinite::Fail && self.loss_scale.is_none() {
            return Vec::new();
        }
        self.encoder.statistics().into_iter().map(|tensor| (tensor.copy(), tensor)).collect()
    }

    /// Some of the batch's pixels as a u8 tensor on the encoder's device, `[part, 3, side, side]`.
    fn pixels(&self, batch: &Batch, range: &Range<usize>) -> Tensor {
        let side = self.config.image_size as usize;
        let picture = 3 * side * side;
        Tensor::from_slice(&batch.pixels[range.start * picture..range.end * picture])
            .view([range.len() as i64, 3, side as i64, side as i64])
            .to_device(self.encoder.device())
    }

    fn draw_negatives(&self, queries: Range<usize>) -> Option<Negatives> {
        let count = self.objective.negatives()?;
        let (seed, sampling) = (self.config.seed, self.config.negative_sampling);
        let draw = Draw { seed, step: self.cursor.step, count, sampling };
        Some(Negatives::draw(draw, queries, self.bank.len()))
    }
}

/// What gradients of this norm are multiplied by, so that it does not exceed `clip_norm`.
pub(super) fn clip_factor(config: &TrainConfig, norm: f64) -> f64 {
    match config.clip_norm {
        0.0 => 1.0,
        longest => (longest / (norm + SHORTEST_NORM)).min(1.0),
    }
}

pub(super) fn compute(config: &TrainConfig) -> Compute {
    let kind = match config.precision {
        Precision::F32 | Precision::Tf32 => ComputeType::F32,
        Precision::Bf16 => ComputeType::Bf16,
        Precision::F16 => ComputeType::F16,
    };
    Compute { kind, channels_last: config.channels_last }
}

/// `0..total` in so many runs of nearly equal length, none of one picture alone unless there is no other.
pub(super) fn parts(total: usize, count: usize) -> impl Iterator<Item = Range<usize>> {
    let count = count.min(total / 2).max(1);
    (0..count).map(move |part| part * total / count..(part + 1) * total / count)
}

/// Reads f64 scalars from their device at once: one wait instead of three.
pub(super) fn read<const N: usize>(scalars: [&Tensor; N]) -> [f64; N] {
    let all = Tensor::stack(&scalars, 0).to_device(tch::Device::Cpu);
    std::array::from_fn(|index| all.double_value(&[index as i64]))
}

fn put_back(statistics: Vec<(Tensor, Tensor)>) {
    no_grad(|| {
        for (before, mut tensor) in statistics {
            tensor.copy_(&before);
        }
    });
}

#[cfg(test)]
mod tests;
