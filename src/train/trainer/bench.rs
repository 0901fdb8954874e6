//! Benchmark of the training step: time by phase, and operators launched on the device.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Map, Value, json};
use tch::Device;

use super::{Learner, Requests, TrainError, Trainer};
use crate::distributed::{ProcessGroup, Rendezvous};
use crate::ids::{BankRow, ClassId, InstanceId, RankShare};
use crate::loader::{Batch, EpochOrder, GlobalBatch};
use crate::model::{libtorch, select_device_of, threads, wait_for};
use crate::rng::{Purpose, Stream};
use crate::run_config::TrainConfig;

/// Classes of the probe, as in ImageNet.
const CLASSES: u16 = 1000;
/// Distinct batches, drawn before the clock starts.
const BATCHES: usize = 4;
/// Images of a step measured on a CPU, where time is proportional to images.
const CPU_IMAGES: usize = 16;
/// Measured steps of an estimate on a CPU, after equally many for warm-up.
const CPU_STEPS: usize = 2;
const GPU_STEPS: usize = 10;
/// Operator of libtorch that waits for a number.
const READ: &str = "aten::_local_scalar_dense";
/// Name under which a replay is counted, as libtorch does not see the recorded operators.
const REPLAY: &str = "CUDA graph";

/// Size of a step benchmark.
#[derive(Clone, Copy, Debug)]
pub struct StepBench {
    /// Rows of the bank.
    pub instances: usize,
    /// Measured steps.
    pub steps: usize,
    /// Warm-up steps before the measured ones.
    pub warmup_steps: usize,
}

impl StepBench {
    /// Runs the steps on random pixels: once as in training, for the rate; once with a wait for the device after each
    /// phase, for the split; and once to count operators. Each of several processes has its share of batch and bank.
    ///
    /// # Errors
    /// If the configuration is invalid, a number is not finite, or another process is lost.
    pub fn run(
        self,
        config: TrainConfig,
        rendezvous: &Rendezvous,
        timeout: Duration,
    ) -> Result<Value, TrainError> {
        config.validate()?;
        let selected = select_device_of(config.device, rendezvous.local_rank(), rendezvous.world())?;
        config.set_precision(selected.device);
        let group = Rc::new(ProcessGroup::join(rendezvous, selected.device, timeout)?);
        let mut drawn = Drawn::new(config, self.instances, Rc::clone(&group), selected.device)?;
        drawn.steps(self.warmup_steps)?;
        let seconds = drawn.steps(self.steps)?;
        drawn.trainer.clock.start(selected.device);
        drawn.steps(self.steps)?;
        let clock = &drawn.trainer.clock;
        let each = clock.seconds.iter().map(|sum| json!(sum / self.steps as f64));
        let split: Map<_, _> = Phase::NAMES.iter().map(|name| (*name).to_owned()).zip(each).collect();
        let (seconds_by_phase, total) = (clock.seconds, clock.seconds.iter().sum::<f64>());
        drawn.trainer.clock.start_counting();
        libtorch::take_waits();
        drawn.steps(self.steps)?;
        let waits = libtorch::take_waits();
        let trainer = &mut drawn.trainer;
        trainer.clock.stop_counting();
        let mut operators = operators(&trainer.clock, self.steps);
        operators["waits"] = json!(waits as f64 / self.steps as f64);
        group.leave();
        Ok(json!({
            "device": selected.to_string(),
            "threads": threads(),
            "ranks": group.world(),
            "bank_rows": trainer.bank.shard().len(),
            "bank_bytes": trainer.bank.rows().numel() * trainer.bank.rows().kind().elt_size_in_bytes(),
            "gradient_bytes": trainer.encoder.parameters().iter().map(|(_, t)| t.numel() * 4).sum::<usize>(),
            "arch": trainer.config.arch,
            "image_size": trainer.config.image_size,
            "batch_size": trainer.config.batch_size,
            "precision": trainer.config.precision,
            "channels_last": trainer.config.channels_last,
            "cuda_graphs": trainer.config.cuda_graphs,
            "objective": trainer.config.objective,
            "negatives": trainer.objective.negatives(),
            "instances": self.instances,
            "steps": self.steps,
            "step_seconds": seconds,
            "images_per_second": trainer.config.batch_size as f64 / seconds,
            "split_seconds": split,
            "objective_share": seconds_by_phase[Phase::Objective as usize] / total,
            "operators": operators,
        }))
    }
}

/// Trainer with batches of random pixels.
struct Drawn {
    trainer: Trainer,
    batches: Vec<Batch>,
    device: Device,
}

impl Drawn {
    fn new(
        config: TrainConfig,
        instances: usize,
        group: Rc<ProcessGroup>,
        device: Device,
    ) -> Result<Self, TrainError> {
        let share = RankShare { rank: group.rank(), ranks: group.world() };
        let mut trainer = Trainer::over(group, config, instances, device)?;
        if trainer.config.probe {
            trainer.add_probe(&(0..CLASSES).map(ClassId).map(Some).collect::<Vec<_>>());
        }
        let draw = |number| draw(&trainer.config, instances, number, share);
        let batches = (0..BATCHES).map(draw).collect();
        Ok(Self { trainer, batches, device })
    }

    /// Runs steps. Returns the seconds per step.
    fn steps(&mut self, count: usize) -> Result<f64, TrainError> {
        wait_for(self.device);
        let began = Instant::now();
        for step in 0..count {
            self.trainer.step(&self.batches[step % BATCHES], Requests::default())?;
        }
        self.trainer.finish()?;
        wait_for(self.device);
        Ok(began.elapsed().as_secs_f64() / count.max(1) as f64)
    }
}

/// Time of one process's step, measured on random pixels without loader and other processes.
#[derive(Clone, Debug, Serialize)]
pub struct StepTime {
    /// Device, with the reason for the choice.
    pub device: String,
    /// Images of this process's batch.
    pub images: usize,
    /// Images of a measured step; on a CPU fewer, with the time scaled up.
    pub measured_images: usize,
    /// Seconds per step.
    pub step_seconds: f64,
}

impl StepTime {
    /// Measures the time of a step.
    ///
    /// # Errors
    /// If the configuration is invalid, a number is not finite, or the device does not exist.
    pub fn measure(config: &TrainConfig, instances: usize, ranks: usize) -> Result<Self, TrainError> {
        let selected = select_device_of(config.device, 0, 1)?;
        config.set_precision(selected.device);
        let images = config.batch_size.div_ceil(ranks);
        let (measured_images, accumulate, steps) = match selected.device {
            Device::Cpu => (images.min(CPU_IMAGES), 1, CPU_STEPS),
            _ => (images, config.accumulate, GPU_STEPS),
        };
        let config = TrainConfig { batch_size: measured_images, accumulate, ..config.clone() };
        let alone = Rc::new(ProcessGroup::alone());
        let mut drawn = Drawn::new(config, instances, alone, selected.device)?;
        drawn.steps(steps)?;
        let seconds = drawn.steps(steps)?;
        let step_seconds = seconds * images as f64 / measured_images as f64;
        Ok(Self { device: selected.to_string(), images, measured_images, step_seconds })
    }
}

/// Returns the operators that a step launches on the device, by phase: their total, and counts by name. An
/// operator over a list of tensors, an accumulation into a gradient, and the replay of a CUDA graph count as
/// one each. `reads` are waits for a single number.
pub(super) fn operators(clock: &Clock, steps: usize) -> Value {
    let a_step = |count: u64| json!(count as f64 / steps as f64);
    let mut by_phase = Map::new();
    let mut reads = 0;
    for (phase, counts) in Phase::NAMES.iter().zip(&clock.operators) {
        let launches = counts.iter().filter(|(name, _)| *name != READ);
        let names: Map<_, _> = launches.clone().map(|(name, &count)| (name.clone(), a_step(count))).collect();
        let total = launches.map(|(_, &count)| count).sum();
        reads += counts.get(READ).copied().unwrap_or(0);
        by_phase.insert((*phase).to_owned(), json!({"launches": a_step(total), "by_name": names}));
    }
    json!({"reads": a_step(reads), "phases": by_phase})
}

fn draw(config: &TrainConfig, instances: usize, number: usize, share: RankShare) -> Batch {
    let places = number * config.batch_size..(number + 1) * config.batch_size;
    let order = EpochOrder::new(0, 0, instances);
    let global = GlobalBatch::assigned(
        places.map(|place| order.at(place % instances)).collect(),
        share.ranks,
        config.accumulate,
    );
    let own = &global.shares[share.rank];
    let bank_rows: Vec<BankRow> = own.iter().map(|index| global.bank_rows[index.index()]).collect();
    let mut stream = Stream::new(0, Purpose::BenchPixels, number as u64, 0);
    let side = config.image_size as usize;
    Batch {
        epoch: 0,
        step_in_epoch: 0,
        ids: bank_rows.iter().map(|row| InstanceId(row.0)).collect(),
        labels: bank_rows.iter().map(|row| Some(ClassId((row.0 % u32::from(CLASSES)) as u16))).collect(),
        pixels: (0..bank_rows.len() * 3 * side * side).map(|_| stream.bits() as u8).collect(),
        bank_rows,
        global: Arc::new(global),
    }
}

/// Phase of a step, in the order of the loop.
#[derive(Clone, Copy, Debug, strum::VariantNames)]
#[strum(serialize_all = "lowercase")]
pub(super) enum Phase {
    /// Copies pixels to the device.
    Data,
    /// Forward pass of the encoder.
    Forward,
    /// Gradient of the probe. The optimiser's phase includes the probe's update and its sum over processes.
    Probe,
    /// Negatives, loss and gradient.
    Objective,
    /// Backward pass of the encoder.
    Backward,
    /// Reads the numbers, clips the gradients and updates the weights.
    Optimizer,
    /// Updates the bank rows.
    Bank,
}

impl Phase {
    const NAMES: &[&str] = <Self as strum::VariantNames>::VARIANTS;
}

/// Quantity that a clock adds up by phase.
#[derive(Clone, Copy, Debug)]
enum Measure {
    Nothing,
    /// Measurement of time; each mark waits for the device.
    Time(Device, Instant),
    /// Operators of libtorch.
    Operators,
}

/// Sums of time or operators by phase, once started.
#[derive(Debug)]
pub(super) struct Clock {
    measure: Measure,
    seconds: [f64; Phase::NAMES.len()],
    /// Count by name.
    operators: [BTreeMap<String, u64>; Phase::NAMES.len()],
}

impl Clock {
    /// Creates a clock that measures nothing.
    pub(super) fn off() -> Self {
        Self { measure: Measure::Nothing, seconds: Default::default(), operators: Default::default() }
    }

    /// Starts to measure time, from zero.
    fn start(&mut self, device: Device) {
        wait_for(device);
        *self = Self { measure: Measure::Time(device, Instant::now()), ..Self::off() };
    }

    /// Starts to count operators, from zero.
    pub(super) fn start_counting(&mut self) {
        libtorch::start_counting();
        *self = Self { measure: Measure::Operators, ..Self::off() };
    }

    /// Stops counting.
    pub(super) fn stop_counting(&mut self) {
        libtorch::stop_counting();
        self.measure = Measure::Nothing;
    }

    /// Counts the replay of a CUDA graph in this phase as one launch.
    pub(super) fn count_replay(&mut self, phase: Phase) {
        if matches!(self.measure, Measure::Operators) {
            *self.operators[phase as usize].entry(REPLAY.to_owned()).or_default() += 1;
        }
    }

    /// Ends a phase.
    pub(super) fn mark(&mut self, phase: Phase) {
        match &mut self.measure {
            Measure::Nothing => {}
            Measure::Time(device, since) => {
                wait_for(*device);
                let now = Instant::now();
                self.seconds[phase as usize] += (now - *since).as_secs_f64();
                *since = now;
            }
            Measure::Operators => {
                for (name, count) in libtorch::take_counts() {
                    *self.operators[phase as usize].entry(name).or_default() += count;
                }
            }
        }
    }
}
