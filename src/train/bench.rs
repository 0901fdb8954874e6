//! Measuring the training step.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::TrainError;
use super::clock::Phase;
use super::state::Trainer;
use crate::distributed::{ProcessGroup, Rendezvous};
use crate::ids::{BankRow, InstanceId, RankShare};
use crate::loader::{Batch, EpochOrder, GlobalBatch};
use crate::model::{select_device_of, threads, wait_for};
use crate::rng::{Purpose, Stream};
use crate::run_config::TrainConfig;

/// Different batches that are drawn before the clock starts.
const BATCHES: usize = 4;

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct StepBench {
    /// Rows of the bank.
    pub instances: usize,
    /// Steps that are measured.
    pub steps: usize,
    /// Steps before those, which are not.
    pub warmup_steps: usize,
}

impl StepBench {
    /// Runs the steps on drawn pixels: once as in training, for the rate, and once with a wait for the device
    /// after each phase, for the split. Of several processes each has a part of the batch and of the bank.
    ///
    /// # Errors
    /// If the configuration makes no sense, a number is not finite, or another process is lost.
    pub fn run(
        self,
        config: TrainConfig,
        rendezvous: &Rendezvous,
        timeout: Duration,
    ) -> Result<Value, TrainError> {
        config.validate()?;
        let selected = select_device_of(config.device, rendezvous.local_rank(), rendezvous.world())?;
        crate::train::checkpoint::resume::set_precision(&config, selected.device);
        let group = Rc::new(ProcessGroup::join(rendezvous, selected.device, timeout)?);
        let mut trainer = Trainer::over(Rc::clone(&group), config, self.instances, selected.device)?;
        let part = RankShare { rank: group.rank(), ranks: group.world() };
        let batches: Vec<Batch> =
            (0..BATCHES).map(|number| draw(&trainer.config, self.instances, number, part)).collect();
        let steps = |trainer: &mut Trainer, count: usize| {
            (0..count).try_for_each(|step| trainer.step(&batches[step % BATCHES]).map(drop))
        };
        steps(&mut trainer, self.warmup_steps)?;
        wait_for(selected.device);
        let began = Instant::now();
        steps(&mut trainer, self.steps)?;
        wait_for(selected.device);
        let seconds = began.elapsed().as_secs_f64() / self.steps as f64;
        trainer.clock.start(selected.device);
        steps(&mut trainer, self.steps)?;
        let each = trainer.clock.seconds.iter().map(|sum| json!(sum / self.steps as f64));
        let split: Map<_, _> = Phase::NAMES.iter().map(|name| (*name).to_owned()).zip(each).collect();
        let total: f64 = trainer.clock.seconds.iter().sum();
        group.leave();
        Ok(json!({
            "device": selected.to_string(),
            "threads": threads(),
            "ranks": group.world(),
            "bank_rows": trainer.bank.len(),
            "bank_bytes": trainer.bank.rows().numel() * trainer.bank.rows().kind().elt_size_in_bytes(),
            "gradient_bytes": trainer.encoder.parameters().iter().map(|(_, t)| t.numel() * 4).sum::<usize>(),
            "arch": trainer.config.arch,
            "image_size": trainer.config.image_size,
            "batch_size": trainer.config.batch_size,
            "precision": trainer.config.precision,
            "channels_last": trainer.config.channels_last,
            "objective": trainer.objective.options().kind,
            "negatives": trainer.objective.negatives(),
            "instances": self.instances,
            "steps": self.steps,
            "step_seconds": seconds,
            "images_per_second": trainer.config.batch_size as f64 / seconds,
            "split_seconds": split,
            "objective_share": trainer.clock.seconds[Phase::Objective as usize] / total,
        }))
    }
}

fn draw(config: &TrainConfig, instances: usize, number: usize, part: RankShare) -> Batch {
    let places = number * config.batch_size..(number + 1) * config.batch_size;
    let order = EpochOrder::new(0, 0, instances);
    let global = GlobalBatch::assigned(
        places.map(|place| order.at(place % instances)).collect(),
        part.ranks,
        config.accumulate,
    );
    let own = &global.shares[part.rank];
    let bank_rows: Vec<BankRow> = own.iter().map(|index| global.bank_rows[index.index()]).collect();
    let mut stream = Stream::new(0, Purpose::BenchPixels, number as u64, 0);
    let side = config.image_size as usize;
    Batch {
        epoch: 0,
        step_in_epoch: 0,
        ids: bank_rows.iter().map(|row| InstanceId(row.0)).collect(),
        labels: vec![None; bank_rows.len()],
        pixels: (0..bank_rows.len() * 3 * side * side).map(|_| stream.bits() as u8).collect(),
        bank_rows,
        global: Arc::new(global),
    }
}
