//! One training step, and everything it moves.

use tch::{Kind, Tensor, no_grad};

use super::TrainError;
use super::clock::Phase;
use super::gather::{MicroBatch, Requests, present};
use super::state::Trainer;
use crate::bank::BatchRows;
use crate::distributed::Reduce;
use crate::loader::{Batch, GlobalBatch};
use crate::model::libtorch::{PendingRead, upload_indices};
use crate::objective::{Draw, Negatives, Queries};
use crate::run_config::OnNonFinite;
use crate::train::optim::loss_scale::LossScale;
use crate::train::optim::schedule::learning_rate;

/// After so many steps that moved nothing, one after the other, the run is over: it would move nothing more.
const MOST_SKIPPED_IN_A_ROW: u64 = 1000;

/// What a step measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepOutcome {
    /// Steps done with it.
    pub(super) step: u64,
    /// Images of its global batch.
    pub(super) images: usize,
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
    /// What any process asked with it.
    pub(super) asked: Requests,
}

impl StepOutcome {
    /// What is known of a step before its numbers are read.
    pub(super) fn before(lr: f64, images: usize) -> Self {
        Self {
            step: 0,
            images,
            loss: 0.0,
            gradient_norm: 0.0,
            lr,
            row_cosine: 1.0,
            alignment: 0.0,
            ln_partition: None,
            skipped: false,
            asked: Requests::default(),
        }
    }
}

/// A step whose numbers are on their way from the device.
#[derive(Debug)]
pub(super) struct PendingStep {
    outcome: StepOutcome,
    /// Features' sum, loss, gradient's norm, row cosine, alignment, the processes' requests, and ln Z where the batch moved it; nothing for a
    /// step that moved nothing.
    numbers: Option<PendingRead>,
    /// What the gradient's norm is multiplied by.
    norm_factor: f64,
    /// Whether ln Z was unknown before the step.
    sets_z: bool,
    suspects: Suspects,
}

/// What is named where a number is not finite.
#[derive(Debug)]
struct Suspects {
    ids: Vec<u32>,
    /// `[own, dim]`: the features of these images.
    features: Tensor,
}

/// The names of the numbers that must be finite, in the order in which they are read.
const QUANTITIES: [&str; 3] = ["features' sum", "loss", "gradient's norm"];

/// The first of these numbers that is not finite.
fn not_finite(numbers: &[f64]) -> Option<(&'static str, f64)> {
    QUANTITIES.into_iter().zip(numbers.iter().copied()).find(|(_, value)| !value.is_finite())
}

/// What the passes through the network left behind: gradients in the parameters, and this.
struct Passes {
    /// `[batch, dim]`: of the global batch.
    features: Tensor,
    /// `[own, dim]`: of the images of this process.
    own: Tensor,
    loss: Tensor,
    ln_partition: Option<Tensor>,
}

/// A step's micro-batches, with all indices that the step needs on the device: they are brought there at once.
struct Plan {
    micro_batches: Vec<Planned>,
    /// The rows of the whole batch, in the order of its micro-batches.
    rows: BatchRows,
}

struct Planned {
    micro_batch: MicroBatch,
    order: Tensor,
    rows: BatchRows,
    negatives: Option<Negatives>,
}

impl Trainer {
    /// Trains on one batch; what the step before measured, if it is not given back yet. `here`: what
    /// this process asks of all; they agree with the sums of the step. The host does not wait for the step itself, unless it may be skipped: then its numbers decide before anything moves.
    ///
    /// # Errors
    /// If a quantity of the step before is not finite, or of this one where it may be skipped and is not to be; or a
    /// collective fails.
    pub(super) fn step(&mut self, batch: &Batch, here: Requests) -> Result<Option<StepOutcome>, TrainError> {
        if self.may_skip() {
            let before = self.finish()?;
            self.pending = Some(self.launch(batch, here)?);
            return Ok(before);
        }
        let launched = self.launch(batch, here);
        // The step before comes first: a number of it that is not finite is the cause of what fails here.
        let before = self.finish()?;
        self.pending = Some(launched?);
        Ok(before)
    }

    /// Waits for the last step; what it measured, if it is not given back yet.
    ///
    /// # Errors
    /// If a quantity is not finite.
    pub(super) fn finish(&mut self) -> Result<Option<StepOutcome>, TrainError> {
        self.pending.take().map(|pending| self.settle(pending)).transpose()
    }

    /// Whether a step whose numbers are not finite may be left out.
    fn may_skip(&self) -> bool {
        self.config.on_nonfinite == OnNonFinite::Skip || self.loss_scale.is_some()
    }

    /// Everything of a step but the wait for its numbers.
    fn launch(&mut self, batch: &Batch, here: Requests) -> Result<PendingStep, TrainError> {
        let step = self.cursor.step;
        let lr = learning_rate(&self.config, self.cursor, self.steps_per_epoch());
        let scale = self.loss_scale.map_or(1.0, |scale| scale.factor);
        // The reducer gives the mean over ranks; the loss is a sum over them.
        let ranks = self.group.world() as f64;
        let statistics = self.kept_statistics();
        let partition = self.objective.log_z();
        let mut pending = PendingStep {
            outcome: StepOutcome::before(lr, batch.global.bank_rows.len()),
            numbers: None,
            norm_factor: ranks / scale,
            sets_z: partition.ln_z().is_none(),
            suspects: Suspects { ids: batch.ids.iter().map(|id| id.0).collect(), features: Tensor::new() },
        };
        let global = present(&self.group, batch, self.config.on_corrupt)?;
        if global.bank_rows.is_empty() {
            tracing::warn!("step {step}: every image of the batch is corrupt; the step is skipped");
            self.skipped += 1;
            return self.left_out(pending, here);
        }

        self.optimizer.drop_gradients();
        let plan = self.plan(&global);
        let passes = self.passes(batch, &global, &plan, scale)?;
        pending.suspects.features = passes.own.shallow_clone();
        let norm = self.optimizer.gradient_norm();
        let mut numbers = vec![passes.features.sum(Kind::Double), passes.loss, norm.shallow_clone()];
        if self.may_skip() {
            let read = PendingRead::begin(&Tensor::stack(&numbers, 0)).finish();
            if let Some((quantity, value)) = not_finite(&read) {
                self.excuse(step, (quantity, value), &pending.suspects)?;
                put_back(statistics);
                self.objective.set_log_z(partition);
                pending.outcome.loss = read[1];
                pending.outcome.gradient_norm = read[2] * pending.norm_factor;
                return self.left_out(pending, here);
            }
        }
        let divisor = self.optimizer.divisor(&norm, scale / ranks);
        self.optimizer.step(lr, divisor.as_ref());
        self.clock.mark(Phase::Optimizer);
        let moved = self.bank.update_rows(&plan.rows, &passes.features, self.config.bank_momentum, step);
        let asked = here.numbers().map(|number| Tensor::full([], number, (Kind::Double, norm.device())));
        let [stop, save] = asked;
        let moved = Tensor::stack(&[moved.row_cosine, moved.distance, stop, save], 0);
        self.group.all_reduce(&moved, Reduce::Sum)?;
        numbers.extend(moved.unbind(0));
        let ln_z = passes.ln_partition.and_then(|estimate| {
            let at = (step, self.cursor.epoch);
            self.objective.follow(&estimate, at)
        });
        numbers.extend(ln_z);
        pending.numbers = Some(PendingRead::begin(&Tensor::stack(&numbers, 0)));
        self.skipped_in_a_row = 0;
        if let Some(scale) = &mut self.loss_scale {
            scale.succeeded();
        }
        self.last = Some((passes.features, plan.rows.positions().to_vec()));
        pending.outcome.step = self.advance();
        self.clock.mark(Phase::Bank);
        Ok(pending)
    }

    /// A step that moves nothing.
    fn left_out(&mut self, mut pending: PendingStep, here: Requests) -> Result<PendingStep, TrainError> {
        pending.outcome.asked = here.of_any(&self.group)?;
        pending.outcome.skipped = true;
        pending.outcome.step = self.advance();
        Ok(pending)
    }

    /// Reads a step's numbers.
    fn settle(&mut self, pending: PendingStep) -> Result<StepOutcome, TrainError> {
        let PendingStep { mut outcome, numbers, norm_factor, sets_z, suspects } = pending;
        outcome.ln_partition = self.objective.log_z().ln_z();
        let Some(numbers) = numbers.map(PendingRead::finish) else { return Ok(outcome) };
        if let Some((quantity, value)) = not_finite(&numbers) {
            return Err(self.blame(outcome.step - 1, (quantity, value), &suspects)?);
        }
        outcome.loss = numbers[1];
        outcome.gradient_norm = numbers[2] * norm_factor;
        [outcome.row_cosine, outcome.alignment] = [numbers[3], numbers[4]];
        outcome.asked = Requests::from_sums(numbers[5], numbers[6]);
        if let Some(&ln_z) = numbers.get(7) {
            self.objective.note_log_z(ln_z);
            if sets_z {
                outcome.ln_partition = Some(ln_z);
            }
        }
        Ok(outcome)
    }

    /// Moves the cursor; the steps done.
    fn advance(&mut self) -> u64 {
        self.cursor.step += 1;
        self.cursor.step_in_epoch += 1;
        if self.cursor.step_in_epoch == self.steps_per_epoch() {
            (self.cursor.epoch, self.cursor.step_in_epoch) = (self.cursor.epoch + 1, 0);
        }
        self.cursor.step
    }

    /// Who makes which features, which rows and negatives they need; with one upload for all indices.
    fn plan(&self, global: &GlobalBatch) -> Plan {
        let (shard, device) = (self.bank.owned(), self.encoder.device());
        let mut words = Vec::new();
        let mut add = |more: &[i64]| {
            let start = words.len() as i64;
            words.extend_from_slice(more);
            (start, more.len() as i64)
        };
        let mut micro_batches = Vec::new();
        let mut positions = Vec::new();
        for number in 0..global.micro_batches.len() {
            let micro_batch = MicroBatch::of(&self.group, global, number);
            let rows = shard.locate(&micro_batch.positions);
            let negatives = self.draw_negatives(&micro_batch.numbers);
            // The CPU draws where it needs them.
            let drawn = negatives.as_ref().filter(|_| device.is_cuda()).map(Negatives::words);
            let places = (add(micro_batch.words()), add(rows.words()), drawn.map(|drawn| add(&drawn)));
            positions.extend_from_slice(&micro_batch.positions);
            micro_batches.push((micro_batch, rows, negatives, places));
        }
        let whole = (micro_batches.len() > 1).then(|| shard.locate(&positions));
        let whole = whole.map(|rows| (add(rows.words()), rows));
        let uploaded = upload_indices(&words, device);
        let words = |(start, len)| uploaded.narrow(0, start, len);
        let mut planned = Vec::new();
        for (micro_batch, rows, negatives, (order, places, drawn)) in micro_batches {
            if let Some((negatives, drawn)) = negatives.as_ref().zip(drawn) {
                negatives.set_words(&words(drawn));
            }
            let (order, rows) = (words(order), rows.with(words(places)));
            planned.push(Planned { micro_batch, order, rows, negatives });
        }
        let rows = match whole {
            Some((places, rows)) => rows.with(words(places)),
            None => planned[0].rows.shallow_clone(),
        };
        Plan { micro_batches: planned, rows }
    }

    /// Forward and backward, one micro-batch after the other; parameters get the gradient of the whole batch, times
    /// `scale`.
    fn passes(
        &mut self,
        batch: &Batch,
        global: &GlobalBatch,
        plan: &Plan,
        scale: f64,
    ) -> Result<Passes, TrainError> {
        let shard = [self.bank.owned()];
        let total = global.bank_rows.len();
        let image = 3 * (self.config.image_size as usize).pow(2);
        let last = plan.micro_batches.len() - 1;
        let (mut features, mut own) = (Vec::new(), Vec::new());
        let (mut losses, mut estimates) = (Vec::new(), Vec::new());
        for (number, planned) in plan.micro_batches.iter().enumerate() {
            let Planned { micro_batch, order, rows, negatives } = planned;
            let range = global.of_rank(self.group.rank(), number).0;
            let images = self.encoder.images(&batch.pixels[range.start * image..range.end * image]);
            self.clock.mark(Phase::Data);
            let attached = self.encoder.forward(&images, true);
            if let Some(error) = self.failed.take() {
                return Err(error.into());
            }
            self.clock.mark(Phase::Forward);
            let detached = attached.detach();
            let gathered = micro_batch.gather(&self.group, &detached, order)?;
            let positions = &micro_batch.positions;
            let queries = Queries { features: &gathered, positions, batch: total, rows: Some(rows) };
            let negatives = negatives.as_ref();
            self.objective.prepare_over(queries, &shard, negatives, &self.group)?;
            let evaluation = self.objective.evaluate_over(queries, &shard, negatives, &self.group)?;
            self.clock.mark(Phase::Objective);
            let made_here = &micro_batch.own;
            let gradient = evaluation.gradient.narrow(0, made_here.start as i64, made_here.len() as i64);
            let loss = (attached * gradient * scale).sum(Kind::Float);
            self.reducer.backward(&loss, number == last)?;
            self.clock.mark(Phase::Backward);
            let share = (positions.len() as f64 / total as f64).ln();
            estimates.extend(evaluation.ln_partition.map(|estimate| estimate + share));
            losses.push(evaluation.loss);
            features.push(gathered);
            own.push(detached);
        }
        let stack = |values: &[Tensor]| Tensor::stack(values, 0);
        let whole =
            |mut parts: Vec<Tensor>| if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(&parts, 0) };
        Ok(Passes {
            features: whole(features),
            own: whole(own),
            loss: stack(&losses).sum(Kind::Double),
            ln_partition: (!estimates.is_empty())
                .then(|| stack(&estimates).logsumexp([0_i64].as_slice(), false)),
        })
    }

    /// The error of a step with such a number.
    fn blame(
        &self,
        step: u64,
        (quantity, value): (&'static str, f64),
        suspects: &Suspects,
    ) -> Result<TrainError, TrainError> {
        let is_finite = suspects.features.isfinite().all_dim(1, false).to_device(tch::Device::Cpu);
        let wrong = (0..).zip(&suspects.ids).filter(|(row, _)| is_finite.int64_value(&[*row]) == 0);
        let wrong: Vec<u32> = self.ids_of_all(wrong.map(|(_, id)| *id).collect())?;
        let ids = if wrong.is_empty() { suspects.ids.clone() } else { wrong };
        Ok(TrainError::NotFinite { step, quantity, value, ids })
    }

    /// Whether a step with such a number may be skipped.
    fn excuse(
        &mut self,
        step: u64,
        (quantity, value): (&'static str, f64),
        suspects: &Suspects,
    ) -> Result<(), TrainError> {
        let overflow =
            quantity == "gradient's norm" && self.loss_scale.as_mut().is_some_and(LossScale::overflowed);
        let error = self.blame(step, (quantity, value), suspects)?;
        self.skipped += 1;
        self.skipped_in_a_row += 1;
        let is_hopeless = self.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW;
        if is_hopeless || (!overflow && self.config.on_nonfinite == OnNonFinite::Fail) {
            return Err(error);
        }
        if overflow {
            tracing::debug!("step {step}: f16 gradients overflowed; the loss scale halves");
        } else {
            tracing::warn!("{error}; the step is skipped");
        }
        Ok(())
    }

    /// Copies of batch norm's statistics, where a step may be skipped: the forward pass moves them.
    fn kept_statistics(&self) -> Vec<(Tensor, Tensor)> {
        if !self.may_skip() {
            return Vec::new();
        }
        self.encoder.statistics().into_iter().map(|tensor| (tensor.copy(), tensor)).collect()
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

fn put_back(statistics: Vec<(Tensor, Tensor)>) {
    no_grad(|| {
        for (before, mut tensor) in statistics {
            tensor.copy_(&before);
        }
    });
}

#[cfg(test)]
mod tests;
