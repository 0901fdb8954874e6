//! `instdisc replay`.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use clap::Args;
use tch::{Device, Kind, Tensor};

use super::exit::WrongData;
use crate::bank::MemoryBank;
use crate::ids::Position;
use crate::model::NamedTensors;
use crate::objective::{Nce, NceOptions, Negatives, Objective, ObjectiveKind, Partition, Queries, Softmax};
use crate::storage::{Location, PublishMode};
use crate::units::{BankMomentum, Temperature};

/// Run objective and bank update on given tensors, to compare implementations number by number.
///
/// The input (safetensors) holds `bank` (n × dim), and for each step t from 0 `features_t` (batch × dim),
/// `ids_t` (batch) and, for nce, `negatives_t` (batch × K); ids are int32 or int64. The output holds `loss_t`,
/// `gradient_t` (batch × dim) with respect to the features, `bank_t` (n × dim) after the step's update, and,
/// for nce, `z_t`. Z is estimated from step 0.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  instdisc replay --input in.safetensors --output out.safetensors --objective nce \\\n    --temperature 0.07 --bank-momentum 0.5"
)]
pub(super) struct ReplayArgs {
    /// The file of given tensors
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// The file of results
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// The objective
    #[arg(long, value_enum, value_name = "NAME", default_value = "nce")]
    objective: ObjectiveKind,
    /// τ, by which similarities are divided
    #[arg(long, value_name = "TAU", default_value = "0.07")]
    temperature: Temperature,
    /// The weight of the OLD row when the bank is updated
    #[arg(long, value_name = "M", default_value = "0.5")]
    bank_momentum: BankMomentum,
    /// Added to the noise's probability (nce); the reference has 1e-7
    #[arg(long, value_name = "EPS", default_value_t = 0.0)]
    eps: f64,
}

pub(super) fn run(args: &ReplayArgs) -> anyhow::Result<()> {
    let bytes = Location::from_path(&args.input)?.read()?;
    let wrong = |error: anyhow::Error| WrongData(format!("--input {}: {error:#}", args.input.display()));
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
    let mut bank = MemoryBank::from_rows(&values, dim as usize, vec![None; instances as usize], Device::Cpu);

    let mut results = Vec::new();
    let mut objective = None;
    for step in 0_u64.. {
        let Ok(features) = input.get(&format!("features_{step}")) else { break };
        let features = features.to_kind(Kind::Float);
        let ids = ids(input, step, instances)?;
        let expected = [ids.len() as i64, dim];
        ensure!(features.size() == expected, "features_{step}: {:?}, not {expected:?}", features.size());
        let negatives = negatives(args.objective, input, step, &ids, instances)?;
        let objective = objective.get_or_insert_with(|| new_objective(args, negatives.as_ref()));
        let queries = Queries { features: &features, positions: &ids };
        objective.prepare(queries, &bank, negatives.as_ref());
        let evaluation = objective.evaluate(queries, &bank, negatives.as_ref());
        bank.update(&ids, &features, args.bank_momentum, step);

        results.push((format!("loss_{step}"), Tensor::from(evaluation.loss)));
        results.push((format!("gradient_{step}"), evaluation.gradient));
        results.push((format!("bank_{step}"), bank.rows().copy()));
        if let Some(ln_z) = objective.ln_partition() {
            results.push((format!("z_{step}"), Tensor::from(ln_z.exp())));
        }
    }
    ensure!(!results.is_empty(), "tensor \"features_0\" is missing");
    Ok(NamedTensors::from_tensors(results))
}

fn ids(input: &NamedTensors, step: u64, instances: i64) -> anyhow::Result<Vec<Position>> {
    let name = format!("ids_{step}");
    let values = indices(input.get(&name)?, &name, instances)?;
    let values = Vec::<i64>::try_from(values.reshape([-1]))?;
    let mut distinct = values.clone();
    distinct.sort_unstable();
    ensure!(distinct.windows(2).all(|pair| pair[0] != pair[1]), "{name}: an id occurs twice");
    values.into_iter().map(|id| Position::from_index(id).context("an id is out of range")).collect()
}

fn negatives(
    objective: ObjectiveKind,
    input: &NamedTensors,
    step: u64,
    ids: &[Position],
    instances: i64,
) -> anyhow::Result<Option<Negatives>> {
    if objective != ObjectiveKind::Nce {
        return Ok(None);
    }
    let name = format!("negatives_{step}");
    let rows = indices(input.get(&name)?, &name, instances)?;
    let size = rows.size();
    ensure!(size.len() == 2 && size[0] == ids.len() as i64, "{name}: its shape is {size:?}, not [batch, K]");
    Ok(Some(Negatives::given(rows)))
}

/// The tensor as int64, every value a row of the bank.
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

fn new_objective(args: &ReplayArgs, negatives: Option<&Negatives>) -> Objective {
    match (args.objective, negatives) {
        (ObjectiveKind::Nce, Some(negatives)) => {
            let negatives = negatives.rows().size()[1] as usize;
            let options = NceOptions { negatives, temperature: args.temperature, eps: args.eps };
            Objective::Nce(Nce::new(options, Partition::Unset))
        }
        _ => Objective::Softmax(Softmax::new(args.temperature)),
    }
}
