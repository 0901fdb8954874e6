//! `instdisc embed`.

use std::sync::atomic::AtomicBool;

use anyhow::bail;
use clap::Args;
use serde_json::json;

use super::exit::usage;
use super::progress::{Terminal, say, say_next};
use super::ranks::{RankFlags, tell};
use super::{GlobalArgs, write_json};
use crate::commands::{EmbeddedTable, Machine, embed, open_embedding, usual_memory_limit};
use crate::eval::{EmbedJob, RowChoice};
use crate::feature_table::Dtype;
use crate::model::FeatureLayer;
use crate::run_config::DeviceChoice;
use crate::units::{ByteSize, shell_word};

/// Placeholder of the layer's name in `--output`.
const PLACEHOLDER: &str = "{feature}";

/// Write the features of a split under a checkpoint's encoder, as a feature table (Arrow IPC).
#[derive(Debug, Args)]
#[command(after_help = "Example:
  instdisc embed --run runs/r50 --dataset data/in1k \\
    --split val --output runs/r50/val.arrow")]
pub(super) struct EmbedArgs {
    /// Run, for its newest checkpoint, or checkpoint
    #[arg(long = "run", visible_alias = "checkpoint", value_name = "URL")]
    checkpoint: String,
    /// Folder of the dataset
    #[arg(long, value_name = "URL")]
    dataset: String,
    /// Split to embed [default: the first of val, valid, validation, dev, test and testing]
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
    /// Layers, separated by commas: projection (the embedding, of unit length), pooled (the projection's
    /// input), conv1 to conv5 (the maps after the stages, averaged to about 9000 numbers)
    #[arg(long, value_name = "LAYERS", value_delimiter = ',', default_value = "projection")]
    feature: Vec<FeatureLayer>,
    /// Feature table to write; {feature} in its name becomes the layer's name, and is needed for several layers. An
    /// existing table of the same weights, split and layer is kept; any other existing file is an error
    #[arg(long, value_name = "URL")]
    output: String,
    /// Embed the same uniform sample of N images as train --limit; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    limit: u64,
    /// Images per batch
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Decoding threads; 0 for one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Device: auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: DeviceChoice,
    /// Number type of the table, f32 or f16 [default: f16 for vectors of more than 512 numbers, else f32]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<Dtype>,
    /// Memory of this process for features; more are kept in a temporary file in TMPDIR until written
    /// [default: half of the machine's, divided by the processes]
    #[arg(long, value_name = "BYTES")]
    memory_limit: Option<ByteSize>,
    #[command(flatten)]
    ranks: RankFlags,
}

pub(super) fn run(global: &GlobalArgs, args: &EmbedArgs) -> anyhow::Result<()> {
    if args.feature.len() > 1 && !args.output.contains(PLACEHOLDER) {
        bail!(usage(format!("--output needs {PLACEHOLDER} in its name where there are several layers")));
    }
    let rendezvous = args.ranks.rendezvous()?;
    let output = |layer: &FeatureLayer| {
        Ok((*layer, global.location(&args.output.replace(PLACEHOLDER, &layer.to_string()))?))
    };
    let outputs = args.feature.iter().map(output).collect::<anyhow::Result<Vec<_>>>()?;
    let memory_limit =
        args.memory_limit.map_or_else(|| usual_memory_limit(rendezvous.world()), |limit| limit.0);
    let local_rank = rendezvous.local_rank();
    let machine = Machine { threads: args.threads, device: args.device, local_rank, memory_limit };
    let open = || {
        let (checkpoint, dataset) = (global.checkpoint(&args.checkpoint)?, global.location(&args.dataset)?);
        let (split, rows) = (args.split.as_deref(), RowChoice::limited(args.limit));
        let job = open_embedding(&checkpoint, &dataset, split, rows, machine)?;
        Ok(EmbedJob { batch_size: args.batch_size as usize, dtype: args.dtype, ..job })
    };
    let job = args.ranks.told(&rendezvous, &AtomicBool::new(false), open())?;
    let group = args.ranks.join(&rendezvous)?;
    let embedded = embed(&job, &outputs, &group, &Terminal::of_rank(group.is_first()));
    let Some(report) = tell(&group, embedded.map_err(Into::into))? else { return Ok(()) };
    let json_of = |table: &EmbeddedTable| {
        let EmbeddedTable { layer, output, published } = table;
        let mut json = json!({"feature": layer.to_string(), "output": output.to_string()});
        match published {
            Some(published) => {
                json["bytes"] = json!(published.bytes);
                json["blake3"] = json!(published.digest);
            }
            None => {
                say(&format!("`{output}` exists and is kept; remove it to embed again"));
                json["kept"] = json!(true);
            }
        }
        json
    };
    let tables: Vec<_> = report.tables.iter().map(json_of).collect();
    if args.feature == [FeatureLayer::Projection] && report.is_own_dataset && report.has_bank {
        let own = if report.is_trained_split { " --leave-one-out" } else { "" };
        let [bank, queries, dataset] =
            [&args.checkpoint, &args.output, &args.dataset].map(|text| shell_word(text));
        say_next(&format!("instdisc knn --bank {bank} --queries {queries} --dataset {dataset}{own}"));
    }
    write_json(&if let [one] = tables.as_slice() { one.clone() } else { serde_json::Value::from(tables) })
}
