//! `instdisc replay`.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use clap::Args;
use tch::{Kind, Tensor};

use super::choice;
use crate::bank::MemoryBank;
use crate::commands::CommandError;
use crate::distributed::ProcessGroup;
use crate::ids::BankRow;
use crate::model::{NamedTensors, select_device};
use crate::objective::{Negatives, Objective, Queries};
use crate::run_config::{BankDtype, DeviceChoice, ObjectiveKind, PartitionChoice, TrainConfig};
use crate::storage::{Location, PublishMode};
use crate::units::{BankMomentum, Temperature};

/// Run objective and bank update on given tensors, to compare implementations number by number.
///
/// The input (safetensors) has `bank` (n × dim), and for each step t from 0 `features_t` (batch × dim),
/// `ids_t` (batch) and, for nce and infonce, `negatives_t` (batch × K, or K shared rows); ids are int32 or
/// int64. The output has `loss_t`, `gradient_t` (batch × dim) with respect to the features, `bank_t` (n ×
/// dim) after the step's update, and, for nce, `z_t`, the Z of that step. Z is estimated from step 0.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  instdisc replay --input in.safetensors --output out.safetensors --objective nce \\
    --temperature 0.07 --bank-momentum 0.5")]
pub(super) struct ReplayArgs {
    /// File of input tensors
    #[arg(long, value_name = "FILE", value_parser = super::local_path)]
    input: PathBuf,
    /// File of results
    #[arg(long, value_name = "FILE", value_parser = super::local_path)]
    output: PathBuf,
    /// Training objective
    #[arg(long, value_parser = choice::<ObjectiveKind>(), value_name = "NAME", default_value = "nce")]
    objective: ObjectiveKind,
    /// Temperature τ, by which similarities are divided
    #[arg(long, value_name = "TAU", default_value = "0.07")]
    temperature: Temperature,
    /// Weight of the OLD row when the bank is updated
    #[arg(long, value_name = "M", default_value = "0.5")]
    bank_momentum: BankMomentum,
    /// Constant added to the noise's probability (nce); the reference has 1e-7
    #[arg(long, value_name = "EPS", default_value_t = 0.0)]
    eps: f64,
    /// Source of Z (nce): fixed (step 0), ema (a moving average), or a number
    #[arg(long, value_name = "CHOICE", default_value_t = PartitionChoice::Fixed)]
    partition: PartitionChoice,
    /// Weight of the old Z in the moving average
    #[arg(long, value_name = "D", default_value_t = 0.99)]
    partition_decay: f64,
    /// Weight λ of the proximal term
    #[arg(long, value_name = "LAMBDA", default_value_t = 0.0)]
    proximal_weight: f64,
    /// Exclude a sampled row that is the query's own
    #[arg(long)]
    exclude_positive: bool,
    /// Number type of the bank's rows
    #[arg(long, value_parser = choice::<BankDtype>(), value_name = "NAME", default_value = "f32")]
    bank_dtype: BankDtype,
    /// Device: auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: DeviceChoice,
    /// Evaluate like this many owners of bank shards
    #[arg(long, value_name = "N", default_value_t = 1)]
    blocks: usize,
}

pub(super) fn run(args: &ReplayArgs) -> anyhow::Result<()> {
    let bytes = Location::from_path(&args.input)?.read()?;
    let wrong =
        |error: anyhow::Error| CommandError::Data(format!("--input {}: {error:#}", args.input.display()));
    let input = NamedTensors::from_bytes(&bytes).map_err(|error| wrong(error.into()))?;
    let output = replay(args, &input).map_err(wrong)?;
    Location::from_path(&args.output)?.publish(output.to_bytes(), PublishMode::Overwrite)?;
    Ok(())
}

fn replay(args: &ReplayArgs, input: &NamedTensors) -> anyhow::Result<NamedTensors> {
    let rows = input.get("bank")?.to_kind(Kind::Float);
    ensure!(rows.dim() == 2 && rows.size()[0] > 0, "bank: its shape is {:?}, not [n, dim]", rows.size());
    let (instances, dim) = (rows.size()[0], rows.size()[1]);
    let mut values = vec![0.0; rows.numel()];
    let count = values.len();
    rows.contiguous().copy_data(&mut values, count);
    let device = select_device(args.device)?.device;
    let bank = MemoryBank::from_rows(&values, dim as usize, vec![None; instances as usize], device);
    let mut bank = bank.with_dtype(args.bank_dtype);

    let mut results = Vec::new();
    let mut objective = Objective::new(&config(args), None);
    let alone = ProcessGroup::alone();
    for step in 0_u64.. {
        let Ok(features) = input.get(&format!("features_{step}")) else { break };
        let features = features.to_kind(Kind::Float).to_device(device);
        let ids = ids(input, step, instances)?;
        let expected = [ids.len() as i64, dim];
        ensure!(features.size() == expected, "features_{step}: {:?}, not {expected:?}", features.size());
        let negatives = negatives(args.objective, input, step, &ids, instances)?;
        let queries = Queries::whole(&features, &ids);
        let parts = bank.parts(args.blocks.max(1));
        objective.prepare(queries, &parts, negatives.as_ref(), &alone)?;
        let evaluation = objective.evaluate(queries, &parts, negatives.as_ref(), &alone)?;
        let rows = bank.shard().rows_of(&ids);
        let _ = bank.update_rows(&rows, &features, args.bank_momentum, step);

        results.push((format!("loss_{step}"), evaluation.loss));
        results.push((format!("gradient_{step}"), evaluation.gradient));
        results.push((format!("bank_{step}"), bank.rows().copy()));
        if let Some(ln_z) = objective.ln_z() {
            results.push((format!("z_{step}"), Tensor::from(ln_z.exp())));
        }
        let moved = evaluation.ln_partition.and_then(|estimate| objective.follow(&estimate, (step, 0)));
        if let Some(ln_z) = moved {
            objective.note_ln_z(ln_z.double_value(&[]));
        }
    }
    ensure!(!results.is_empty(), "tensor \"features_0\" is missing");
    Ok(NamedTensors::from_tensors(results))
}

fn ids(input: &NamedTensors, step: u64, instances: i64) -> anyhow::Result<Vec<BankRow>> {
    let name = format!("ids_{step}");
    let values = indices(input.get(&name)?, &name, instances)?;
    let values = Vec::<i64>::try_from(values.reshape([-1]))?;
    let mut distinct = values.clone();
    distinct.sort_unstable();
    ensure!(distinct.windows(2).all(|pair| pair[0] != pair[1]), "{name}: an id occurs twice");
    values.into_iter().map(|id| BankRow::from_index(id).context("an id is out of range")).collect()
}

fn negatives(
    objective: ObjectiveKind,
    input: &NamedTensors,
    step: u64,
    ids: &[BankRow],
    instances: i64,
) -> anyhow::Result<Option<Negatives>> {
    if objective == ObjectiveKind::Softmax {
        return Ok(None);
    }
    let name = format!("negatives_{step}");
    let rows = indices(input.get(&name)?, &name, instances)?;
    let size = rows.size();
    let own = size.len() == 2 && size[0] == ids.len() as i64;
    ensure!(own || size.len() == 1, "{name}: its shape is {size:?}, neither [batch, K] nor [K]");
    Ok(Some(Negatives::given(rows)))
}

/// Converts the tensor to int64, and checks that every value is a row of the bank.
fn indices(tensor: &Tensor, name: &str, instances: i64) -> anyhow::Result<Tensor> {
    if !matches!(tensor.kind(), Kind::Int | Kind::Int64) {
        bail!("{name}: its type is {:?}, not an integer", tensor.kind());
    }
    let rows = tensor.to_kind(Kind::Int64).contiguous();
    let inside =
        rows.numel() == 0 || (rows.min().int64_value(&[]) >= 0 && rows.max().int64_value(&[]) < instances);
    ensure!(inside, "{name}: a value is no row of the bank, which has {instances}");
    Ok(rows)
}

fn config(args: &ReplayArgs) -> TrainConfig {
    TrainConfig {
        objective: args.objective,
        temperature: args.temperature,
        eps: args.eps,
        partition: args.partition,
        partition_decay: args.partition_decay,
        proximal_weight: args.proximal_weight,
        exclude_positive: args.exclude_positive,
        ..TrainConfig::default()
    }
}
