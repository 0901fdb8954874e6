use std::sync::Arc;

use serde_json::{Value, json};
use tch::{Device, Kind};

use super::*;
use crate::bank::MemoryBank;
use crate::checkpoint::Cursor;
use crate::failure::Failure;
use crate::feature_table::UNIT_TOLERANCE;
use crate::ids::{BankRow, ClassId, InstanceId};
use crate::loader::GlobalBatch;
use crate::model::libtorch::drop_gradients;
use crate::rng::{Purpose, Stream};
use crate::run_config::{
    Architecture, BankDtype, ObjectiveKind, OnCorrupt, OptimizerKind, PartitionChoice, Precision, TrainConfig,
};
use crate::train::graphs::{Recorder, Recording, Work};
use crate::units::Temperature;

const INSTANCES: usize = 24;
const SIDE: u32 = 16;

fn config() -> TrainConfig {
    TrainConfig {
        arch: Architecture::ResNet20Cifar,
        image_size: SIDE,
        dim: 8,
        batch_size: 8,
        negatives: 16,
        ..TrainConfig::default()
    }
}

fn batch(step: u64) -> Batch {
    let mut stream = Stream::new(1, Purpose::Test, step, 0);
    let mut ids: Vec<u32> = (0..INSTANCES as u32).collect();
    stream.shuffle(&mut ids);
    ids.truncate(8);
    let pixels = (0..8 * 3 * SIDE * SIDE).map(|_| stream.below(256) as u8).collect();
    let positions: Vec<_> = ids.iter().copied().map(BankRow).collect();
    Batch {
        epoch: 0,
        step_in_epoch: step,
        global: Arc::new(GlobalBatch::assigned(positions.clone(), 1, 1)),
        ids: ids.iter().copied().map(InstanceId).collect(),
        bank_rows: positions,
        labels: ids.into_iter().map(label).collect(),
        pixels,
    }
}

fn label(id: u32) -> Option<ClassId> {
    Some(ClassId((id % 5) as u16))
}

fn probed(config: TrainConfig) -> Trainer {
    let mut trainer = trainer(TrainConfig { probe: true, ..config });
    trainer.add_probe(&(0..INSTANCES as u32).map(label).collect::<Vec<_>>());
    trainer
}

fn trainer(config: TrainConfig) -> Trainer {
    let alone = Rc::new(ProcessGroup::alone());
    Trainer::over(alone, config, INSTANCES, Device::Cpu).expect("one process waits for nobody")
}

/// Runs a step and waits for it.
fn step(trainer: &mut Trainer, batch: &Batch) -> StepOutcome {
    let before = trainer.step(batch, Requests::default()).expect("a step");
    assert!(before.is_none(), "the step before was waited for");
    trainer.finish().expect("finite numbers").expect("a step was made")
}

/// Returns the parameter with this name.
fn parameter(trainer: &Trainer, name: &str) -> Tensor {
    trainer.encoder.parameters().into_iter().find(|(of, _)| of == name).expect("it has").1
}

fn spoil(trainer: &Trainer) {
    let _ = no_grad(|| parameter(trainer, "fc.bias").fill_(f64::NAN));
}

/// Runs a step with non-finite features, which changes no state.
fn spoilt<T>(trainer: &mut Trainer, step: impl FnOnce(&mut Trainer) -> T) -> T {
    let mut bias = parameter(trainer, "fc.bias");
    let before = bias.detach().copy();
    spoil(trainer);
    let made = step(trainer);
    no_grad(|| bias.copy_(&before));
    made
}

/// Bytes of weights and buffers, and numbers of the bank.
type State = (Vec<u8>, Vec<u8>, Vec<f32>);

fn state(trainer: &Trainer) -> State {
    (trainer.encoder.weights().to_bytes(), trainer.optimizer.buffers().to_bytes(), trainer.bank.to_vec())
}

#[test]
fn a_batch_seen_again_costs_less_under_every_objective_and_in_bf16_with_weights_in_f32() {
    use ObjectiveKind::{InfoNce, Nce, Softmax};
    let of = |objective, precision| TrainConfig { objective, precision, ..config() };
    let in_f32 = [Nce, InfoNce, Softmax].map(|objective| of(objective, Precision::F32));
    for config in in_f32.into_iter().chain([of(Softmax, Precision::Bf16)]) {
        let temperature = Temperature::new(0.5).expect("a temperature");
        let channels_last = config.precision == Precision::Bf16;
        let mut trainer = trainer(TrainConfig { temperature, channels_last, ..config });
        let losses: Vec<f64> = (0..2).map(|_| step(&mut trainer, &batch(0)).loss).collect();
        assert!(losses[1] < losses[0], "{:?} {losses:?}", trainer.config.objective);
        assert!(trainer.bank.updated_step()[batch(0).bank_rows[0].row()] == Some(1));
        assert!(trainer.encoder.parameters().iter().all(|(_, weight)| weight.kind() == Kind::Float));
    }
}

/// Both micro-batches have the same images, so that batch norm has the same statistics in each and in the whole.
#[test]
fn accumulated_parts_move_as_the_whole_batch_does() {
    let mut batch = batch(0);
    batch.pixels.truncate(batch.pixels.len() / 2);
    batch.pixels = batch.pixels.repeat(2);
    let config = TrainConfig { objective: ObjectiveKind::InfoNce, proximal_weight: 0.1, ..config() };
    let outcome = |accumulate| {
        let mut trainer = trainer(TrainConfig { accumulate, ..config.clone() });
        let global = Arc::new(GlobalBatch::assigned(batch.bank_rows.clone(), 1, accumulate));
        let batch = Batch { global, ..batch.clone() };
        let outcome = step(&mut trainer, &batch);
        (outcome.loss, outcome.gradient_norm, trainer.bank.to_vec())
    };
    let (whole, parts) = (outcome(1), outcome(2));
    assert!((whole.0 / parts.0 - 1.0).abs() < 1e-5 && (whole.1 / parts.1 - 1.0).abs() < 1e-3);
    assert!(whole.2.iter().zip(&parts.2).all(|(a, b)| (a - b).abs() < 1e-5));
}

#[test]
fn a_number_that_is_not_finite_names_step_quantity_and_ids() {
    let mut trainer = trainer(config());
    step(&mut trainer, &batch(0));
    spoil(&trainer);
    trainer.step(&batch(1), Requests::default()).expect("its numbers come later");
    // The error comes before anything of the step can be saved.
    let error = trainer.step(&batch(2), Requests::default()).expect_err("the step before").to_string();
    let first = batch(1).ids[0].0;
    assert!(error.starts_with("step 1: the features' sum is NaN"), "{error}");
    assert!(error.contains(&format!("[{first}, ")), "{error}");
}

#[test]
fn a_skipped_step_moves_nothing_and_is_counted() {
    let mut trainer = probed(TrainConfig { on_nonfinite: OnNonFinite::Skip, ..config() });
    let probe = |trainer: &Trainer| trainer.probe.as_ref().expect("it has one").tensors().to_bytes();
    assert!(step(&mut trainer, &batch(0)).probe.is_some_and(|sums| sums.images == 8.0));
    spoil(&trainer);
    let before = (state(&trainer), probe(&trainer));
    let outcome = step(&mut trainer, &batch(1));
    assert!(outcome.skipped && trainer.skipped == 1 && trainer.cursor.step == 2);
    assert!((state(&trainer), probe(&trainer)) == before && outcome.probe.is_none());
}

#[test]
fn a_probe_changes_no_bit_of_a_training() {
    let batches: Vec<_> = (0..4).map(batch).collect();
    let softmax = TrainConfig { objective: ObjectiveKind::Softmax, accumulate: 2, ..config() };
    let skips = TrainConfig { on_nonfinite: OnNonFinite::Skip, partition: PartitionChoice::Ema, ..config() };
    for config in [config(), softmax, skips] {
        let (bare, beside) = (trainer(config.clone()), probed(config));
        assert!(trained(bare, true, &batches) == trained(beside, true, &batches));
    }
}

/// After one step from zero, the probe's weights are a sum of the images' features by label.
#[test]
fn the_probe_learns_each_image_under_its_own_label() {
    let whole = batch(0);
    let mut corrupt = whole.clone();
    let image = 3 * (SIDE * SIDE) as usize;
    for row in [5, 2] {
        corrupt.ids.remove(row);
        corrupt.bank_rows.remove(row);
        corrupt.labels.remove(row);
        corrupt.pixels.drain(row * image..(row + 1) * image);
    }
    for (batch, accumulate) in [(&whole, 1), (&whole, 2), (&corrupt, 1)] {
        let global = Arc::new(GlobalBatch::assigned(whole.bank_rows.clone(), 1, accumulate));
        let batch = Batch { global, ..batch.clone() };
        let mut trainer = probed(TrainConfig { accumulate, on_corrupt: OnCorrupt::Skip, ..config() });
        let parts = batch.pixels.chunks(batch.pixels.len() / accumulate);
        let pooled = parts
            .map(|pixels| trainer.encoder.forward_with_pooled(&trainer.encoder.images(pixels)).1.detach());
        let pooled = Tensor::cat(&pooled.collect::<Vec<_>>(), 0);
        step(&mut trainer, &batch);
        let expected = Tensor::zeros([5, pooled.size()[1]], (Kind::Float, Device::Cpu));
        for (row, id) in (0..).zip(&batch.ids) {
            for class in 0..5 {
                let own = f64::from(u8::from(i64::from(id.0 % 5) == class));
                let mut of_class = expected.get(class);
                of_class +=
                    pooled.get(row) * ((own - 0.2) * trainer.config.probe_lr / batch.ids.len() as f64);
            }
        }
        let probe = trainer.probe.as_ref().expect("it has one").tensors();
        let off = (probe.get("weight").expect("there") - &expected).abs().max().double_value(&[]);
        let largest = expected.abs().max().double_value(&[]);
        assert!(off < 1e-5 * largest && largest > 1e-3, "{accumulate}: off by {off} of {largest}");
    }
}

#[test]
fn a_batch_of_nothing_but_corrupt_images_is_a_skipped_step() {
    let mut trainer = trainer(TrainConfig { on_corrupt: OnCorrupt::Skip, ..config() });
    step(&mut trainer, &batch(0));
    let before = state(&trainer);
    let empty =
        Batch { ids: Vec::new(), bank_rows: Vec::new(), labels: Vec::new(), pixels: Vec::new(), ..batch(1) };
    let outcome = step(&mut trainer, &empty);
    assert!(outcome.skipped && trainer.skipped == 1 && trainer.cursor.step == 2);
    assert!(state(&trainer) == before);
}

#[test]
fn a_skipped_first_step_does_not_set_z() {
    let mut trainer = trainer(TrainConfig { on_nonfinite: OnNonFinite::Skip, ..config() });
    spoil(&trainer);
    assert!(step(&mut trainer, &batch(0)).skipped);
    assert_eq!(trainer.objective.ln_z(), None);
}

#[test]
fn the_last_step_of_an_epoch_leads_to_the_next_one() {
    let mut trainer = trainer(config());
    let steps = trainer.steps_per_epoch();
    for number in 0..steps {
        step(&mut trainer, &batch(number));
    }
    assert_eq!(trainer.cursor, Cursor { step: steps, epoch: 1, step_in_epoch: 0 });
}

#[test]
fn a_loss_scale_leaves_no_trace_in_f32_numbers() {
    let mut plain = trainer(config());
    let mut scaled = trainer(config());
    scaled.loss_scale = Some(LossScale::default());
    for number in 0..3 {
        let (a, b) = (step(&mut plain, &batch(number)), step(&mut scaled, &batch(number)));
        // Scaling by powers of two is exact.
        assert_eq!((a.loss, a.gradient_norm), (b.loss, b.gradient_norm));
    }
    assert!(state(&plain) == state(&scaled));
}

#[test]
fn a_moving_average_of_z_moves_and_a_fixed_one_does_not() {
    for (partition, moves) in [(PartitionChoice::Ema, true), (PartitionChoice::Fixed, false)] {
        let mut trainer = trainer(TrainConfig { partition, partition_decay: 0.5, ..config() });
        let first = step(&mut trainer, &batch(0)).ln_partition;
        let second = step(&mut trainer, &batch(1)).ln_partition;
        let third = step(&mut trainer, &batch(2)).ln_partition;
        assert!(first.is_some() && (second != third) == moves);
    }
}

#[test]
fn rows_of_16_bits_are_of_unit_length_as_a_table_means_it() {
    for dtype in [BankDtype::Bf16, BankDtype::F16] {
        for dim in [1, 2, 3, 8] {
            let bank = MemoryBank::random(20_000, dim, 5, Device::Cpu).with_dtype(dtype);
            let lengths = bank.rows().to_kind(Kind::Double).norm_scalaropt_dim(2, [1_i64].as_slice(), false);
            let off = (lengths - 1.0).abs().max().double_value(&[]);
            assert!(off < UNIT_TOLERANCE, "{dtype:?}, {dim}: {off}");
        }
    }
}

/// Returns bank and weights after some batches, and the measurements of each step.
fn trained(mut trainer: Trainer, late: bool, batches: &[Batch]) -> (State, Vec<(u64, f64, bool)>) {
    let mut outcomes = Vec::new();
    for batch in batches {
        outcomes.extend(trainer.step(batch, Requests::default()).expect("a step"));
        if !late {
            outcomes.extend(trainer.finish().expect("finite numbers"));
        }
    }
    outcomes.extend(trainer.finish().expect("finite numbers"));
    (state(&trainer), outcomes.iter().map(|outcome| (outcome.step, outcome.loss, outcome.skipped)).collect())
}

#[test]
fn a_step_whose_numbers_are_read_late_is_the_same_step() {
    let batches: Vec<_> = (0..4).map(batch).collect();
    let ema = TrainConfig { partition: PartitionChoice::Ema, partition_decay: 0.5, ..config() };
    let softmax = TrainConfig { objective: ObjectiveKind::Softmax, accumulate: 2, ..config() };
    for config in [config(), ema, softmax] {
        let (late, early) =
            (trained(trainer(config.clone()), true, &batches), trained(trainer(config), false, &batches));
        assert!(late.0 == early.0 && late.1 == early.1);
        assert_eq!(late.1.iter().map(|outcome| outcome.0).collect::<Vec<_>>(), [1, 2, 3, 4]);
    }
}

/// With momentum 0 a row becomes its image's feature, which identifies the row.
#[test]
fn rows_become_the_features_of_their_own_images_also_where_a_step_is_read_late_or_skipped() {
    let momentum = crate::units::BankMomentum::new(0.0).expect("a momentum");
    for (accumulate, skips) in [(1, false), (2, false), (1, true)] {
        let on_nonfinite = if skips { OnNonFinite::Skip } else { OnNonFinite::Fail };
        let config = TrainConfig { bank_momentum: momentum, accumulate, on_nonfinite, ..config() };
        let mut trainer = trainer(config);
        let mut expected = trainer.bank.to_vec();
        let mut written = vec![None; INSTANCES];
        for number in 0..5_u64 {
            let batch = batch(number);
            let step = |trainer: &mut Trainer| trainer.step(&batch, Requests::default()).expect("a step");
            if skips && number == 2 {
                spoilt(&mut trainer, step);
                continue;
            }
            step(&mut trainer);
            let (features, positions) = trainer.last.as_ref().expect("it moved");
            let ids: Vec<u32> = positions.iter().map(|position| position.0).collect();
            assert_eq!(ids, batch.ids.iter().map(|id| id.0).collect::<Vec<_>>());
            let features = Vec::<f32>::try_from(features.reshape([-1])).expect("features");
            for (feature, row) in features.chunks(8).zip(ids) {
                expected[row as usize * 8..][..8].copy_from_slice(feature);
                written[row as usize] = Some(number);
            }
        }
        trainer.finish().expect("finite numbers");
        let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
        assert!(trainer.bank.to_vec().iter().zip(&expected).all(close), "{accumulate} {skips}");
        assert_eq!(trainer.bank.updated_step(), written);
    }
}

#[test]
fn the_optimiser_works_on_lists() {
    let _alone = crate::model::libtorch::COUNTING.lock();
    let mut trainer = trainer(config());
    step(&mut trainer, &batch(0));
    trainer.clock.start_counting();
    step(&mut trainer, &batch(1));
    trainer.clock.stop_counting();
    // Other tests run at the same time and are counted too, so an upper bound would not hold.
    let operators = bench::operators(&trainer.clock, 1);
    let optimizer = operators["phases"]["optimizer"]["by_name"].as_object().expect("counts");
    assert!(optimizer.contains_key("aten::_foreach_norm") && optimizer.contains_key("aten::_fused_sgd_"));
    assert!(!optimizer.contains_key("torch::autograd::AccumulateGrad"));
}

/// Recorder on the CPU. As with CUDA, recording runs nothing; a replay runs the work on the tensors of its
/// recording, writes the results to their first addresses, and gives no parameter a gradient.
#[derive(Clone, Debug)]
struct StandIn {
    statistics: Rc<Vec<Tensor>>,
    parameters: Rc<Vec<Tensor>>,
    replays: Rc<Cell<u32>>,
}

struct Recorded {
    device: StandIn,
    work: Work,
    made: Vec<Tensor>,
}

impl std::fmt::Debug for Recorded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recorded")
    }
}

impl Recorder for StandIn {
    fn record(&self, work: Work) -> Result<Box<dyn Recording>, String> {
        // Hide the copy from autograd, which starts from this tensor in the next recording.
        let before = self.statistics.iter().map(|tensor| (tensor.copy(), tensor.data()));
        let before: Vec<_> = before.collect();
        let made = work()?.iter().map(|tensor| tensor.full_like(f64::NAN)).collect();
        put_back(before);
        drop_gradients(&self.parameters);
        Ok(Box::new(Recorded { device: self.clone(), work, made }))
    }
}

impl Recording for Recorded {
    fn replay(&self) {
        for (kept, made) in self.made.iter().zip((self.work)().expect("it was recorded")) {
            no_grad(|| kept.shallow_clone().copy_(&made));
        }
        drop_gradients(&self.device.parameters);
        self.device.replays.set(self.device.replays.get() + 1);
    }

    fn made(&self) -> &[Tensor] {
        &self.made
    }
}

/// Returns a trainer with stand-in graphs, and their number of replays.
fn by_graphs(mut trainer: Trainer) -> (Trainer, Rc<Cell<u32>>) {
    let parameters = trainer.encoder.parameters().into_iter().map(|(_, tensor)| tensor).collect();
    let device = StandIn {
        statistics: Rc::new(trainer.encoder.statistics()),
        parameters: Rc::new(parameters),
        replays: Rc::default(),
    };
    let replays = Rc::clone(&device.replays);
    trainer.graphs = Some(Graphs::by(Box::new(device), trainer.config.batch_size));
    (trainer, replays)
}

/// Returns the first images of a batch.
fn short(batch: Batch, images: usize) -> Batch {
    let bank_rows = batch.bank_rows[..images].to_vec();
    Batch {
        global: Arc::new(GlobalBatch::assigned(bank_rows.clone(), 1, 1)),
        bank_rows,
        ids: batch.ids[..images].to_vec(),
        labels: batch.labels[..images].to_vec(),
        pixels: batch.pixels[..images * 3 * (SIDE * SIDE) as usize].to_vec(),
        ..batch
    }
}

#[test]
fn a_training_by_graphs_has_the_bits_of_one_without_also_where_a_batch_is_short() {
    let mut batches: Vec<_> = (0..8).map(batch).collect();
    batches[5] = short(batch(5), 5);
    let (softmax, optimizer) = (ObjectiveKind::Softmax, OptimizerKind::Adamw);
    let clipped = TrainConfig { objective: softmax, optimizer, clip_norm: 0.1, ..config() };
    let (precision, optimizer) = (Precision::Bf16, OptimizerKind::Lars);
    let rounded = TrainConfig { precision, channels_last: true, optimizer, ..config() };
    for (config, is_scaled) in [(config(), false), (config(), true), (clipped, false), (rounded, false)] {
        let made = || {
            let mut made = trainer(config.clone());
            made.loss_scale = is_scaled.then(LossScale::default);
            made
        };
        let (recorded, replays) = by_graphs(made());
        assert!(trained(recorded, true, &batches) == trained(made(), true, &batches), "{config:?}");
        // Forward and backward passes of seven full batches, minus the first three.
        assert_eq!(replays.get(), 2 * 4);
    }
}

#[test]
fn a_skipped_step_leaves_a_training_by_graphs_and_its_probe_as_one_without() {
    let config = TrainConfig { on_nonfinite: OnNonFinite::Skip, ..config() };
    let run = |mut trainer: Trainer| {
        for number in 0..7 {
            let step = |trainer: &mut Trainer| step(trainer, &batch(number)).skipped;
            assert!(if number == 4 { spoilt(&mut trainer, step) } else { !step(&mut trainer) });
        }
        (state(&trainer), trainer.probe.as_ref().expect("it has one").tensors().to_bytes())
    };
    let (recorded, replays) = by_graphs(probed(config.clone()));
    assert!(run(recorded) == run(probed(config)));
    assert_eq!(replays.get(), 2 * 4);
}

#[test]
fn a_replay_counts_as_one_launch_of_its_phase() {
    let _alone = crate::model::libtorch::COUNTING.lock();
    let (mut trainer, _) = by_graphs(trainer(config()));
    for number in 0..4 {
        step(&mut trainer, &batch(number));
    }
    trainer.clock.start_counting();
    for number in 4..6 {
        step(&mut trainer, &batch(number));
    }
    trainer.clock.stop_counting();
    let phases = bench::operators(&trainer.clock, 2)["phases"].take();
    for (phase, launches) in [("forward", json!(1.0)), ("backward", json!(1.0)), ("bank", Value::Null)] {
        assert_eq!(phases[phase]["by_name"]["CUDA graph"], launches, "{phase}");
    }
}

/// An error names images by their step's features, although the numbers are read late.
#[test]
fn features_of_a_step_stay_when_the_next_one_is_replayed() {
    let (mut trainer, replays) = by_graphs(trainer(config()));
    for number in 0..5 {
        step(&mut trainer, &batch(number));
    }
    let features = trainer.last.as_ref().expect("it moved").0.shallow_clone();
    let before = features.copy();
    step(&mut trainer, &batch(5));
    assert!(replays.get() == 6 && features.equal(&before));
}

/// Recorder under which an operator fails, as the weight has lost its shape.
#[derive(Debug)]
struct Failing(Tensor);

impl Recorder for Failing {
    fn record(&self, work: Work) -> Result<Box<dyn Recording>, String> {
        self.0.shallow_clone().set_data(&Tensor::zeros([1, 1], (Kind::Float, Device::Cpu)));
        Err(work().expect_err("shapes differ"))
    }
}

#[test]
fn work_that_fails_while_it_is_recorded_ends_the_run_by_one_line_and_the_code_of_the_configuration() {
    let mut trainer = trainer(config());
    let weight = parameter(&trainer, "fc.weight");
    trainer.graphs = Some(Graphs::by(Box::new(Failing(weight)), trainer.config.batch_size));
    for number in 0..3 {
        step(&mut trainer, &batch(number));
    }
    let error = trainer.step(&batch(3), Requests::default()).expect_err("it cannot be recorded");
    assert_eq!(error.failure(), Failure::Config);
    let error = error.to_string();
    let words = error.strip_prefix("--cuda-graphs cannot be used here: ").expect("the option is named");
    assert!(words.starts_with("mat1 and mat2 shapes cannot be multiplied"), "{error}");
    assert!(words.ends_with("; leave it out") && !words.contains("\\n") && !words.contains('\n'), "{error}");
}

#[test]
fn graphs_are_refused_where_they_do_not_fit() {
    let config = TrainConfig { cuda_graphs: true, ..config() };
    let accumulate = TrainConfig { accumulate: 2, ..config.clone() };
    let sync_batch_norm = TrainConfig { sync_batch_norm: true, ..config.clone() };
    for (config, named) in
        [(config, "a CUDA device"), (accumulate, "--accumulate"), (sync_batch_norm, "--sync-batch-norm")]
    {
        let alone = Rc::new(ProcessGroup::alone());
        let error = Trainer::over(alone, config, INSTANCES, Device::Cpu).expect_err("refused");
        assert_eq!(error.failure(), Failure::Config);
        let error = error.to_string();
        assert!(error.starts_with("--cuda-graphs") && error.contains(named), "{error}");
    }
}
