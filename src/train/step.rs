//! One training step, and everything it moves.

use std::ops::Range;

use tch::{Kind, Tensor, no_grad};

use super::TrainError;
use super::clock::Phase;
use super::gather::{Gathered, present};
use super::state::Trainer;
use crate::distributed::Reduce;
use crate::ids::BankRow;
use crate::loader::{Batch, GlobalBatch};
use crate::objective::{Draw, Negatives, Queries};
use crate::run_config::{OnNonFinite, TrainConfig};
use crate::train::optim::loss_scale::LossScale;
use crate::train::optim::schedule::learning_rate;

/// After so many steps that moved nothing, one after the other, the run is over: it would move nothing more.
const MOST_SKIPPED_IN_A_ROW: u64 = 1000;
/// Keeps the division by the gradient's norm finite, as `torch.nn.utils.clip_grad_norm_` does.
const SHORTEST_NORM: f64 = 1e-6;

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

impl StepOutcome {
    /// A step without images, which moves nothing.
    pub(super) fn skipped(lr: f64, ln_partition: Option<f64>) -> Self {
        Self {
            loss: 0.0,
            gradient_norm: 0.0,
            lr,
            row_cosine: 1.0,
            alignment: 0.0,
            ln_partition,
            skipped: true,
        }
    }
}

/// What the passes through the network left behind: gradients in the parameters, and this.
struct Passes {
    /// `[batch, dim]`: of the global batch.
    features: Tensor,
    /// `[batch]`
    positions: Vec<BankRow>,
    /// `[own, dim]`: of the images of this process.
    own: Tensor,
    loss: Tensor,
    ln_partition: Option<Tensor>,
}

impl Trainer {
    /// Trains on one batch.
    ///
    /// # Errors
    /// If a quantity is not finite and that is not to be skipped, or a collective fails.
    pub(super) fn step(&mut self, batch: &Batch) -> Result<StepOutcome, TrainError> {
        let step = self.cursor.step;
        let lr = learning_rate(&self.config, self.cursor, self.steps_per_epoch());
        let scale = self.loss_scale.map_or(1.0, |scale| scale.factor);
        // The reducer gives the mean over ranks; the loss is a sum over them.
        let ranks = self.group.world() as f64;
        let statistics = self.kept_statistics();
        let (partition, ln_partition) = (self.objective.log_z(), self.objective.log_z().ln_z());
        let global = present(&self.group, batch, self.config.on_corrupt)?;
        if global.bank_rows.is_empty() {
            tracing::warn!("step {step}: every image of the batch is corrupt; the step is skipped");
            self.skipped += 1;
            self.advance();
            return Ok(StepOutcome::skipped(lr, ln_partition));
        }

        self.optimizer.zero_gradients();
        let passes = self.passes(batch, &global, scale)?;
        let [sum, loss, norm] =
            read([&passes.features.sum(Kind::Double), &passes.loss, &self.optimizer.gradient_norm()]);
        let mut outcome = StepOutcome {
            loss,
            gradient_norm: norm * ranks / scale,
            lr,
            row_cosine: 1.0,
            alignment: 0.0,
            ln_partition,
            skipped: false,
        };

        let quantities = [("features' sum", sum), ("loss", loss), ("gradient's norm", norm)];
        if let Some(&(quantity, value)) = quantities.iter().find(|(_, value)| !value.is_finite()) {
            self.excuse(quantity, value, &passes.own, batch)?;
            put_back(statistics);
            self.objective.set_log_z(partition);
            outcome.skipped = true;
        } else {
            self.optimizer.scale_gradients(clip_factor(&self.config, outcome.gradient_norm) * ranks / scale);
            self.optimizer.step(lr);
            self.clock.mark(Phase::Optimizer);
            let momentum = self.config.bank_momentum;
            let moved = self.bank.update(&passes.positions, &passes.features, momentum, step);
            let moved = Tensor::stack(&[moved.row_cosine, moved.distance], 0);
            self.group.all_reduce(&moved, Reduce::Sum)?;
            if let Some(estimate) = passes.ln_partition {
                self.objective.observe(estimate.double_value(&[]), (step, self.cursor.epoch));
            }
            self.skipped_in_a_row = 0;
            if let Some(scale) = &mut self.loss_scale {
                scale.succeeded();
            }
            [outcome.row_cosine, outcome.alignment] = read([&moved.get(0), &moved.get(1)]);
            self.clock.mark(Phase::Bank);
            outcome.ln_partition = ln_partition.or(self.objective.log_z().ln_z());
            self.last = Some((passes.features, passes.positions));
        }
        self.advance();
        Ok(outcome)
    }

    fn advance(&mut self) {
        self.cursor.step += 1;
        self.cursor.step_in_epoch += 1;
        if self.cursor.step_in_epoch == self.steps_per_epoch() {
            (self.cursor.epoch, self.cursor.step_in_epoch) = (self.cursor.epoch + 1, 0);
        }
    }

    /// Forward and backward, part by part; parameters get the gradient of the whole batch, times `scale`.
    fn passes(&mut self, batch: &Batch, global: &GlobalBatch, scale: f64) -> Result<Passes, TrainError> {
        let rows = [self.bank.owned()];
        let total = global.bank_rows.len();
        let last = global.micro_batches.len() - 1;
        let (mut features, mut own, mut positions) = (Vec::new(), Vec::new(), Vec::new());
        let (mut losses, mut estimates) = (Vec::new(), Vec::new());
        for number in 0..=last {
            let pixels = self.pixels(batch, &global.of_rank(self.group.rank(), number).0);
            self.clock.mark(Phase::Data);
            let attached = self.encoder.forward(&pixels, true);
            if let Some(error) = self.failed.take() {
                return Err(error.into());
            }
            self.clock.mark(Phase::Forward);
            let detached = attached.detach();
            let gathered = Gathered::gather(&self.group, global, number, &detached)?;
            let queries =
                Queries { features: &gathered.features, positions: &gathered.positions, batch: total };
            let negatives = self.draw_negatives(&gathered.numbers);
            self.objective.prepare_over(queries, &rows, negatives.as_ref(), &self.group)?;
            let evaluation = self.objective.evaluate_over(queries, &rows, negatives.as_ref(), &self.group)?;
            self.clock.mark(Phase::Objective);
            let made_here = &gathered.own;
            let gradient = evaluation.gradient.narrow(0, made_here.start as i64, made_here.len() as i64);
            let loss = (attached * gradient * scale).sum(Kind::Float);
            self.reducer.backward(&loss, number == last)?;
            self.clock.mark(Phase::Backward);
            let share = (gathered.positions.len() as f64 / total as f64).ln();
            estimates.extend(evaluation.ln_partition.map(|estimate| estimate + share));
            losses.push(evaluation.loss);
            features.push(gathered.features);
            positions.extend(gathered.positions);
            own.push(detached);
        }
        let stack = |values: &[Tensor]| Tensor::stack(values, 0);
        Ok(Passes {
            features: Tensor::cat(&features, 0),
            positions,
            own: Tensor::cat(&own, 0),
            loss: stack(&losses).sum(Kind::Double),
            ln_partition: (!estimates.is_empty())
                .then(|| stack(&estimates).logsumexp([0_i64].as_slice(), false)),
        })
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
        let wrong: Vec<u32> = self.ids_of_all(wrong.map(|(_, id)| id.0).collect())?;
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
        let image = 3 * (self.config.image_size as usize).pow(2);
        let pixels = &batch.pixels[range.start * image..range.end * image];
        self.encoder.images(pixels).to_device(self.encoder.device())
    }

    /// Ids from every process.
    fn ids_of_all(&self, ids: Vec<u32>) -> Result<Vec<u32>, TrainError> {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let all = self.group.gather_bytes(&bytes)?.concat();
        Ok(all.as_chunks().0.iter().map(|&id| u32::from_le_bytes(id)).collect())
    }

    fn draw_negatives(&self, queries: &[usize]) -> Option<Negatives> {
        let count = self.objective.negatives()?;
        let (seed, sampling) = (self.config.seed, self.config.negative_sampling);
        let draw = Draw { seed, step: self.cursor.step, count, sampling };
        Some(Negatives::draw(draw, queries.iter().copied(), self.bank.instances()))
    }
}

/// What gradients of this norm are multiplied by, so that it does not exceed `clip_norm`.
pub(super) fn clip_factor(config: &TrainConfig, norm: f64) -> f64 {
    match config.clip_norm {
        0.0 => 1.0,
        longest => (longest / (norm + SHORTEST_NORM)).min(1.0),
    }
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
