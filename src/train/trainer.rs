//! State of a training run, and the step that updates it.

mod bench;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tch::{Kind, Tensor, no_grad};

pub use self::bench::{StepBench, StepTime};

use self::bench::{Clock, Phase};
use super::checkpoint::DataIdentity;
use super::checkpoint::resume::{compatible_state, load_bank, load_learned};
use super::checkpoint::soundness::check_initial;
use super::gather::{MicroBatch, Plan, Planned, Requests, any, present, share_statistics};
use super::graphs::Graphs;
use super::learner::{Learned, Learner, ProbeSums, StepOutcome, advance};
use super::metrics::bank_health::BankHealth;
use super::optim::{LossScale, Optimizer, learning_rate};
use super::probe::Probe;
use super::{StopFlag, TrainError};
use crate::bank::MemoryBank;
use crate::checkpoint::{Checkpoint, Cursor, PROBE, STATE, TrainState};
use crate::distributed::{DistributedError, GradientReducer, ProcessGroup, Reduce};
use crate::ids::{BankRow, ClassId, RankShare};
use crate::loader::{Batch, GlobalBatch, LoaderOptions, Source, evaluation_epoch};
use crate::model::libtorch::{PendingRead, upload_indices};
use crate::model::{Encoder, NamedTensors};
use crate::objective::{Negatives, Objective, Queries};
use crate::progress::Progress;
use crate::run_config::{OnNonFinite, Precision, TrainConfig};
use crate::storage::Location;

/// Number of skipped steps in a row after which a run fails, as further steps would not differ.
const MOST_SKIPPED_IN_A_ROW: u64 = 1000;
/// Panic message for a shared encoder.
const NOT_SHARED: &str = "only recorded graphs share the encoder, and they come after the first steps";

/// State of a training run.
#[derive(Debug)]
pub(super) struct Trainer {
    config: TrainConfig,
    /// Processes of the run. All have the same encoder and optimiser; each has some rows of the bank.
    group: Rc<ProcessGroup>,
    /// First error of distributed batch norm, as forward passes return no error.
    failed: Rc<RefCell<Option<DistributedError>>>,
    reducer: GradientReducer,
    encoder: Rc<Encoder>,
    /// Set with `cuda_graphs`.
    graphs: Option<Graphs>,
    optimizer: Optimizer,
    bank: MemoryBank,
    objective: Objective,
    cursor: Cursor,
    /// Set with `precision = f16`.
    loss_scale: Option<LossScale>,
    /// Set with `probe`.
    probe: Option<Probe>,
    /// Steps skipped because a number was not finite.
    skipped: u64,
    skipped_in_a_row: u64,
    clock: Clock,
    /// Last step, until its numbers are read.
    pending: Option<PendingStep>,
    /// Features and bank rows of the last step's global batch, for [`BankHealth`].
    last: Option<(Tensor, Vec<BankRow>)>,
    /// Distance at the last warning; see [`BankHealth::drift`].
    warned_drift: Cell<f64>,
}

/// Step whose numbers are still being copied from the device.
#[derive(Debug)]
struct PendingStep {
    outcome: StepOutcome,
    /// Sum of features, loss, gradient norm, row cosine, alignment, the ranks' requests, the probe's numbers,
    /// and ln Z if the batch changed it; `None` for a skipped step.
    numbers: Option<PendingRead>,
    /// Host time spent on the probe; set if `numbers` has the probe's three numbers.
    probe_time: Option<Duration>,
    /// Factor that the gradient norm is multiplied by.
    norm_factor: f64,
    /// Whether ln Z was unknown before the step.
    sets_z: bool,
    suspects: Suspects,
}

/// Images to name in an error if a number is not finite.
#[derive(Debug)]
struct Suspects {
    ids: Vec<u32>,
    /// `[own, dim]`: features of these images.
    features: Tensor,
}

/// Names of the numbers that must be finite, in the order of reading.
const QUANTITIES: [&str; 3] = ["features' sum", "loss", "gradient's norm"];

/// Returns the first of these numbers that is not finite.
fn not_finite(numbers: &[f64]) -> Option<(&'static str, f64)> {
    QUANTITIES.into_iter().zip(numbers.iter().copied()).find(|(_, value)| !value.is_finite())
}

/// Results of a step's passes, besides the gradients in the parameters.
struct Passes {
    /// `[batch, dim]`: features of the global batch.
    features: Tensor,
    /// `[own, dim]`: features of this rank's images.
    own: Tensor,
    loss: Tensor,
    ln_partition: Option<Tensor>,
    /// Sums over this rank's images, and the time spent on them.
    probe: Option<(Tensor, Duration)>,
}

impl Trainer {
    /// Creates the state before the first step, in one of several processes.
    pub(super) fn over(
        group: Rc<ProcessGroup>,
        config: TrainConfig,
        instances: usize,
        device: tch::Device,
    ) -> Result<Self, TrainError> {
        config.check_graphs(group.is_alone(), device)?;
        let graphs = config.cuda_graphs.then(|| Graphs::on(device, config.batch_size)).transpose()?;
        // Lets cuDNN choose the fastest convolutions by trying them; the shapes of a run are constant.
        tch::Cuda::cudnn_set_benchmark(device.is_cuda());
        let mut encoder = Encoder::new(config.encoder(), config.seed, device);
        encoder.set_compute(config.precision, config.channels_last);
        let failed = share_statistics(&mut encoder, &group, &config);
        let optimizer = Optimizer::new(encoder.parameters(), &config);
        let parameters: Vec<Tensor> = encoder.parameters().into_iter().map(|(_, tensor)| tensor).collect();
        let reducer = GradientReducer::new(&group, &parameters)?;
        let owned = RankShare { rank: group.rank(), ranks: group.world() }.of(instances);
        let bank = MemoryBank::initial(&config, instances, owned, device);
        let objective = Objective::new(&config, None);
        let loss_scale = (config.precision == Precision::F16).then(LossScale::default);
        let cursor = Cursor::default();
        Ok(Self {
            config,
            group,
            failed,
            reducer,
            encoder: Rc::new(encoder),
            graphs,
            optimizer,
            bank,
            objective,
            cursor,
            loss_scale,
            probe: None,
            skipped: 0,
            skipped_in_a_row: 0,
            clock: Clock::off(),
            pending: None,
            last: None,
            warned_drift: Cell::new(0.0),
        })
    }

    /// Adds an untrained probe for images with these labels.
    pub(super) fn add_probe(&mut self, labels: &[Option<ClassId>]) {
        let (width, device) = (self.encoder.pooled_width(), self.encoder.device());
        self.probe = Some(Probe::new(width, labels, self.config.probe_lr, device));
    }

    /// Returns the number of steps in an epoch.
    fn steps_per_epoch(&self) -> u64 {
        self.config.loader().steps(self.bank.shard().instances())
    }

    /// Replaces the initial weights by those of a file.
    pub(super) fn begin_with(&mut self, file: &Location) -> Result<(), TrainError> {
        let wrong = |source| TrainError::of_init(file, self.config.arch, source);
        let weights =
            NamedTensors::from_bytes(&file.read()?).and_then(NamedTensors::in_range).map_err(wrong)?;
        let whole =
            Rc::get_mut(&mut self.encoder).expect(NOT_SHARED).load_backbone(&weights).map_err(wrong)?;
        check_initial(&self.encoder, &self.config.init, wrong)?;
        tracing::info!("weights of {file}{}", if whole { "" } else { ", without its last layer" });
        Ok(())
    }

    /// Loads the state of a checkpoint.
    ///
    /// # Errors
    /// If the checkpoint has another dataset or configuration, or is damaged.
    pub(super) fn restore(&mut self, from: &Checkpoint, data: &DataIdentity) -> Result<(), TrainError> {
        let state = compatible_state(from, &self.config, data, |_| None)?;
        let encoder = Rc::get_mut(&mut self.encoder).expect(NOT_SHARED);
        load_learned(from, &state, encoder, &mut self.optimizer)?;
        if let Some(probe) = &mut self.probe {
            if state.config["probe"] == true {
                probe.load(&NamedTensors::from_bytes(&from.read(PROBE)?)?)?;
            } else if self.group.is_first() {
                tracing::info!("probe: the run had none until step {}; it begins here", state.cursor.step);
            }
        }
        let bank = load_bank(from, data, self.bank.shard().range(), self.encoder.device())?;
        self.bank = bank.with_dtype(self.config.bank_dtype);
        self.objective = Objective::new(&self.config, state.ln_partition);
        self.loss_scale = serde_json::from_value(state.loss_scale).map_err(|_| from.damaged(STATE))?;
        self.skipped = state.skipped_steps;
        self.cursor = state.cursor;
        Ok(())
    }

    /// Fills the bank with the encoder's features, in evaluation mode, of each image's centre crop.
    ///
    /// # Errors
    /// If an image cannot be loaded, or the stop flag is set.
    pub(super) fn encode_bank(
        &mut self,
        source: &Arc<dyn Source>,
        progress: &dyn Progress,
        stop: &StopFlag,
    ) -> Result<(), TrainError> {
        let transform = self.encoder.config().evaluation_transform();
        let group = Rc::clone(&self.group);
        let share = RankShare { rank: group.rank(), ranks: group.world() };
        // Use as many images at once as in a training step.
        let batch_size = self.config.batch_size.div_ceil(self.config.accumulate);
        let options = LoaderOptions { share, batch_size, micro_batches: 1, ..self.config.loader() };
        progress.begin("bank", source.len() as u64);
        let mut batches = evaluation_epoch(Arc::clone(source), transform, options)?;
        loop {
            let batch = batches.next_of(0, stop);
            // All processes have equally many batches, unless one was asked to stop.
            if any(&group, [stop.load(Ordering::Relaxed)])? == [true] {
                return Err(TrainError::Stopped { step: 0 });
            }
            let Some(batch) = batch.transpose()? else { break };
            let global = present(&group, &batch, self.config.on_corrupt)?;
            if global.bank_rows.is_empty() {
                continue;
            }
            // A rank may have no image of a short batch.
            let features = if batch.ids.is_empty() {
                Tensor::zeros([0, self.bank.shard().dim() as i64], (Kind::Float, self.encoder.device()))
            } else {
                let images = self.encoder.images(&batch.pixels);
                no_grad(|| self.encoder.forward(&images, false))
            };
            let whole = MicroBatch::of(&group, &global, 0);
            let order = upload_indices(whole.words(), self.encoder.device());
            let features = whole.gather(&group, &features, &order)?;
            if features.isfinite().all().int64_value(&[]) == 0 {
                return Err(TrainError::not_encoded(&self.config.init, self.encoder.precision()));
            }
            self.bank.set_initial(&whole.positions, &features);
            progress.advance(whole.positions.len() as u64);
        }
        progress.finish();
        Ok(())
    }

    /// Returns whether a step with a number that is not finite may be skipped.
    fn may_skip(&self) -> bool {
        self.config.on_nonfinite == OnNonFinite::Skip || self.loss_scale.is_some()
    }

    /// Launches a step, without waiting for its numbers.
    fn launch(&mut self, batch: &Batch, here: Requests) -> Result<PendingStep, TrainError> {
        let step = self.cursor.step;
        let lr = learning_rate(&self.config, self.cursor, self.steps_per_epoch());
        let scale = self.loss_scale.map_or(1.0, LossScale::factor);
        // The reducer averages over ranks, while the loss is a sum over them.
        let ranks = self.group.world() as f64;
        let statistics = self.kept_statistics();
        let ln_z = self.objective.ln_z();
        let mut pending = PendingStep {
            outcome: StepOutcome { lr, images: batch.global.bank_rows.len(), ..StepOutcome::default() },
            numbers: None,
            probe_time: None,
            norm_factor: ranks / scale,
            sets_z: ln_z.is_none(),
            suspects: Suspects { ids: batch.ids.iter().map(|id| id.0).collect(), features: Tensor::new() },
        };
        let global = present(&self.group, batch, self.config.on_corrupt)?;
        if global.bank_rows.is_empty() {
            tracing::warn!("step {step}: every image of the batch is corrupt; the step is skipped");
            self.skipped += 1;
            return self.left_out(pending, here);
        }

        self.optimizer.drop_gradients();
        let plan = Plan::new(&self.group, &global, self.bank.shard(), self.encoder.device(), |queries| {
            self.draw_negatives(queries)
        });
        let passes = self.passes(batch, &global, &plan, scale)?;
        pending.suspects.features = passes.own.shallow_clone();
        let norm = self.optimizer.gradient_norm();
        let mut numbers = vec![passes.features.sum(Kind::Double), passes.loss, norm.shallow_clone()];
        if self.may_skip() {
            let read = PendingRead::begin(&Tensor::stack(&numbers, 0)).finish();
            if let Some((quantity, value)) = not_finite(&read) {
                self.excuse(step, (quantity, value), &pending.suspects)?;
                put_back(statistics);
                self.objective.set_ln_z(ln_z);
                pending.outcome.loss = read[1];
                pending.outcome.gradient_norm = read[2] * pending.norm_factor;
                return self.left_out(pending, here);
            }
        }
        let divisor = self.optimizer.divisor(&norm, scale / ranks);
        self.optimizer.step(lr, divisor.as_ref());
        let began = Instant::now();
        let probe = self.probe.as_mut().zip(passes.probe);
        let probe = probe.map(|(probe, (sums, time))| {
            self.group.all_reduce(&sums, Reduce::Sum)?;
            Ok::<_, TrainError>((probe.step(&sums), time + began.elapsed()))
        });
        let (of_probe, probe_time) = probe.transpose()?.unzip();
        self.clock.mark(Phase::Optimizer);
        let moved = self.bank.update_rows(&plan.rows, &passes.features, self.config.bank_momentum, step);
        let asked = here.numbers().map(|number| Tensor::full([], number, (Kind::Double, norm.device())));
        let [stop, save] = asked;
        let moved = Tensor::stack(&[moved.row_cosine, moved.distance, stop, save], 0);
        self.group.all_reduce(&moved, Reduce::Sum)?;
        numbers.extend(moved.unbind(0));
        numbers.extend(of_probe.into_iter().flatten());
        pending.probe_time = probe_time;
        let at = (step, self.cursor.epoch);
        numbers.extend(passes.ln_partition.and_then(|estimate| self.objective.follow(&estimate, at)));
        pending.numbers = Some(PendingRead::begin(&Tensor::stack(&numbers, 0)));
        self.skipped_in_a_row = 0;
        if let Some(scale) = &mut self.loss_scale {
            scale.succeeded();
        }
        self.last = Some((passes.features, plan.rows.positions().to_vec()));
        pending.outcome.step = advance(self.steps_per_epoch(), &mut self.cursor);
        self.clock.mark(Phase::Bank);
        Ok(pending)
    }

    /// Ends a step that changes nothing but the cursor.
    fn left_out(&mut self, mut pending: PendingStep, here: Requests) -> Result<PendingStep, TrainError> {
        pending.outcome.asked = here.of_any(&self.group)?;
        pending.outcome.skipped = true;
        pending.outcome.step = advance(self.steps_per_epoch(), &mut self.cursor);
        Ok(pending)
    }

    /// Reads the numbers of a step.
    fn settle(&mut self, pending: PendingStep) -> Result<StepOutcome, TrainError> {
        let PendingStep { mut outcome, numbers, probe_time, norm_factor, sets_z, suspects } = pending;
        outcome.ln_partition = self.objective.ln_z();
        let Some(numbers) = numbers.map(PendingRead::finish) else { return Ok(outcome) };
        if let Some((quantity, value)) = not_finite(&numbers) {
            return Err(self.blame(outcome.step - 1, (quantity, value), &suspects)?);
        }
        outcome.loss = numbers[1];
        outcome.gradient_norm = numbers[2] * norm_factor;
        [outcome.row_cosine, outcome.alignment] = [numbers[3], numbers[4]];
        outcome.asked = Requests::from_sums(numbers[5], numbers[6]);
        let mut more = numbers[7..].iter().copied();
        if let Some(time) = probe_time {
            let [loss, hits, images] =
                std::array::from_fn(|_| more.next().expect("the probe has three numbers"));
            if !loss.is_finite() {
                return Err(self.blame(outcome.step - 1, ("probe's loss", loss), &suspects)?);
            }
            outcome.probe = Some(ProbeSums { loss, hits, images, time });
        }
        if let Some(ln_z) = more.next() {
            self.objective.note_ln_z(ln_z);
            if sets_z {
                outcome.ln_partition = Some(ln_z);
            }
        }
        Ok(outcome)
    }

    /// Runs forward and backward passes, one micro-batch after the other. Leaves the gradient of the whole
    /// batch, times `scale`, in the parameters.
    fn passes(
        &mut self,
        batch: &Batch,
        global: &GlobalBatch,
        plan: &Plan,
        scale: f64,
    ) -> Result<Passes, TrainError> {
        let shard = std::slice::from_ref(self.bank.shard());
        let total = global.bank_rows.len();
        let image = 3 * (self.config.image_size as usize).pow(2);
        let last = plan.micro_batches.len() - 1;
        let (mut features, mut own) = (Vec::new(), Vec::new());
        let (mut losses, mut estimates) = (Vec::new(), Vec::new());
        let (mut probed, mut probe_time) = (Vec::new(), Duration::ZERO);
        for (number, planned) in plan.micro_batches.iter().enumerate() {
            let Planned { micro_batch, order, rows, negatives } = planned;
            let range = global.of_rank(self.group.rank(), number).0;
            let images = self.encoder.images(&batch.pixels[range.start * image..range.end * image]);
            self.clock.mark(Phase::Data);
            let graphs = self.graphs.as_mut().map(|graphs| graphs.of_batch(&self.encoder, range.len()));
            let graphs = graphs.transpose()?.flatten();
            let (attached, pooled) = match graphs {
                Some(graphs) => {
                    self.clock.count_replay(Phase::Forward);
                    graphs.forward(&images)
                }
                None => self.encoder.forward_with_pooled(&images),
            };
            if let Some(error) = self.failed.take() {
                return Err(error.into());
            }
            self.clock.mark(Phase::Forward);
            if let Some(probe) = &self.probe {
                let began = Instant::now();
                probed.push(probe.sums(&pooled.detach(), &batch.labels[range]));
                probe_time += began.elapsed();
                self.clock.mark(Phase::Probe);
            }
            let detached = attached.detach();
            let gathered = micro_batch.gather(&self.group, &detached, order)?;
            let positions = &micro_batch.positions;
            let queries = Queries { features: &gathered, positions, batch: total, rows: Some(rows) };
            let negatives = negatives.as_ref();
            self.objective.prepare(queries, shard, negatives, &self.group)?;
            let evaluation = self.objective.evaluate(queries, shard, negatives, &self.group)?;
            self.clock.mark(Phase::Objective);
            let made_here = &micro_batch.own;
            let gradient = evaluation.gradient.narrow(0, made_here.start as i64, made_here.len() as i64);
            match graphs {
                Some(graphs) => {
                    self.clock.count_replay(Phase::Backward);
                    graphs.backward(&(gradient * scale));
                }
                None => {
                    let loss = (attached * gradient * scale).sum(Kind::Float);
                    self.reducer.backward(&loss, number == last)?;
                }
            }
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
            probe: probed.into_iter().reduce(|sum, more| sum + more).map(|sums| (sums, probe_time)),
        })
    }

    /// Returns the error of a step with this number.
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

    /// Counts a skipped step. Returns its error if it may not be skipped, or too many in a row were.
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

    /// Copies the batch-norm statistics, which a forward pass changes, if the step may be skipped.
    fn kept_statistics(&self) -> Vec<(Tensor, Tensor)> {
        if !self.may_skip() {
            return Vec::new();
        }
        self.encoder.statistics().into_iter().map(|tensor| (tensor.copy(), tensor)).collect()
    }

    /// Gathers ids from all processes.
    fn ids_of_all(&self, ids: Vec<u32>) -> Result<Vec<u32>, TrainError> {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let all = self.group.gather_bytes(&bytes)?.concat();
        Ok(all.as_chunks().0.iter().map(|&id| u32::from_le_bytes(id)).collect())
    }

    fn draw_negatives(&self, queries: &[usize]) -> Option<Negatives> {
        self.objective.negatives()?;
        let (queries, instances) = (queries.iter().copied(), self.bank.shard().instances());
        Some(Negatives::draw(&self.config, self.cursor.step, queries, instances))
    }
}

impl Learner for Trainer {
    fn learned(&self) -> Learned<'_> {
        let Self { config, encoder, optimizer, cursor, .. } = self;
        Learned { config, encoder, optimizer, cursor: *cursor }
    }

    /// Launches a step without waiting for it. If steps may be skipped, `launch` waits, as the numbers decide
    /// before anything changes.
    fn step(&mut self, batch: &Batch, here: Requests) -> Result<Option<StepOutcome>, TrainError> {
        if self.may_skip() {
            let before = self.finish()?;
            self.pending = Some(self.launch(batch, here)?);
            return Ok(before);
        }
        let launched = self.launch(batch, here);
        // The previous step comes first: a number of it that is not finite causes errors here.
        let before = self.finish()?;
        self.pending = Some(launched?);
        Ok(before)
    }

    fn finish(&mut self) -> Result<Option<StepOutcome>, TrainError> {
        self.pending.take().map(|pending| self.settle(pending)).transpose()
    }

    fn complete(&self, state: &mut TrainState) {
        state.ln_partition = self.objective.ln_z();
        state.skipped_steps = self.skipped;
        state.loss_scale = serde_json::to_value(self.loss_scale).expect("it is plain data");
    }

    fn bank(&self) -> Option<&MemoryBank> {
        Some(&self.bank)
    }

    fn probe(&self) -> Option<&Probe> {
        self.probe.as_ref()
    }

    fn chance_loss(&self) -> Option<f64> {
        Some(self.objective.chance_loss(self.bank.shard().instances()))
    }

    fn bank_health(&self) -> Result<Option<BankHealth>, TrainError> {
        let health =
            BankHealth::of(&self.bank, self.last.as_ref(), &self.objective, self.cursor.step, &self.group)?;
        let drift = health.drift(self.objective.ln_z(), &self.warned_drift);
        if let Some(warning) = drift.filter(|_| self.group.is_first()) {
            tracing::warn!("{warning}");
        }
        Ok(Some(health))
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
