//! `instdisc bench objective`.

use std::time::Instant;

use anyhow::ensure;
use clap::Args;
use serde_json::json;

use crate::bank::MemoryBank;
use crate::cli::{choice, write_json};
use crate::distributed::ProcessGroup;
use crate::ids::BankRow;
use crate::ingest::peak_memory;
use crate::model::{allow_tf32, select_device, threads, wait_for};
use crate::objective::{Negatives, Objective, Queries};
use crate::rng::{Purpose, Stream};
use crate::run_config::{
    BankDtype, BankInit, DeviceChoice, ObjectiveKind, PartitionChoice, Sampling, TrainConfig,
};
use crate::units::Temperature;

/// Measure loss and gradient of one batch against a bank of random rows.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  instdisc bench objective --objective softmax --instances 1281167 --batch-size 256"
)]
pub(in crate::cli) struct ObjectiveArgs {
    /// Training objective
    #[arg(long, value_parser = choice::<ObjectiveKind>(), value_name = "NAME", default_value = "nce")]
    objective: ObjectiveKind,
    /// Rows of the bank
    #[arg(long, value_name = "N", default_value_t = 1_281_167)]
    instances: usize,
    /// Length of a row
    #[arg(long, value_name = "N", default_value_t = 128)]
    dim: usize,
    /// Queries per batch
    #[arg(long, value_name = "N", default_value_t = 256)]
    batch_size: usize,
    /// Sampled rows per query, K (nce, infonce)
    #[arg(long, value_name = "K", default_value_t = 4096)]
    negatives: usize,
    /// Sharing of sampled rows between queries
    #[arg(long, value_parser = choice::<Sampling>(), value_name = "NAME", default_value = "per-sample")]
    negative_sampling: Sampling,
    /// Temperature τ
    #[arg(long, value_name = "TAU", default_value = "0.07")]
    temperature: Temperature,
    /// Number type of the bank's rows
    #[arg(long, value_parser = choice::<BankDtype>(), value_name = "NAME", default_value = "f32")]
    bank_dtype: BankDtype,
    /// Let tensor cores round the factors of products (CUDA)
    #[arg(long)]
    tf32: bool,
    /// Device: auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: DeviceChoice,
    /// Measured evaluations, after one for warm-up
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeats: usize,
}

pub(super) fn run(args: &ObjectiveArgs) -> anyhow::Result<()> {
    ensure!(args.batch_size <= args.instances, "`--batch-size` must be at most `--instances`");
    ensure!(args.repeats > 0, "`--repeats` must be above 0");
    let selected = select_device(args.device)?;
    allow_tf32(args.tf32).map_err(anyhow::Error::msg)?;
    let device = selected.device;
    let &ObjectiveArgs { instances, dim, batch_size, .. } = args;
    let config = TrainConfig {
        objective: args.objective,
        temperature: args.temperature,
        negatives: args.negatives,
        negative_sampling: args.negative_sampling,
        partition: PartitionChoice::Fixed,
        dim,
        bank_dtype: args.bank_dtype,
        bank_init: BankInit::Uniform,
        ..TrainConfig::default()
    };
    let bank = MemoryBank::initial(&config, instances, 0..instances, device);
    let before = peak_memory();
    let queries = MemoryBank::random(batch_size, dim, 1, device);
    let mut positions: Vec<_> = (0..instances as u32).map(BankRow).collect();
    Stream::new(0, Purpose::BenchQueries, 0, 0).shuffle(&mut positions);
    positions.truncate(batch_size);
    let queries = Queries::whole(queries.rows(), &positions);
    let mut objective = Objective::new(&config, None);
    let parts = bank.parts(1);
    let mut seconds = Vec::new();
    let mut loss = 0.0;
    let alone = ProcessGroup::alone();
    for step in 0..=args.repeats as u64 {
        wait_for(device);
        let began = Instant::now();
        let draw = |_| Negatives::draw(&config, step, 0..batch_size, instances);
        let negatives = objective.negatives().map(draw);
        objective.prepare(queries, &parts, negatives.as_ref(), &alone)?;
        let evaluation = objective.evaluate(queries, &parts, negatives.as_ref(), &alone)?;
        wait_for(device);
        if step > 0 {
            seconds.push(began.elapsed().as_secs_f64());
        }
        loss = evaluation.loss.double_value(&[]);
    }
    seconds.sort_by(f64::total_cmp);
    write_json(&json!({
        "objective": args.objective,
        "instances": instances,
        "dim": dim,
        "batch_size": batch_size,
        "negatives": objective.negatives(),
        "negative_sampling": objective.negatives().map(|_| args.negative_sampling),
        "bank_dtype": args.bank_dtype,
        "device": format!("{device:?} ({})", selected.reason),
        "threads": threads(),
        "tf32": args.tf32,
        "loss": loss,
        "seconds": {"minimum": seconds[0], "median": seconds[seconds.len() / 2], "all": seconds},
        "bank_bytes": bank.rows().numel() * bank.rows().kind().elt_size_in_bytes(),
        "peak_resident_bytes_with_the_bank_alone": before,
        "peak_resident_bytes": peak_memory(),
    }))
}
