//! `instdisc embed`.

use anyhow::bail;
use clap::Args;
use serde_json::json;

use super::exit::WrongUsage;
use super::progress::{Terminal, say, say_next};
use super::ranks::{RankFlags, progress_of};
use super::{GlobalArgs, write_json};
use crate::checkpoint::Checkpoint;
use crate::dataset::Manifest;
use crate::eval::{EmbedJob, RowChoice, embed};
use crate::model::FeatureLayer;
use crate::run_config::DeviceChoice;
use crate::units::shell_word;

/// In `--output`, where the layer's name goes.
const PLACEHOLDER: &str = "{feature}";

/// Write the features of a split under a checkpoint's encoder, as a feature table (Arrow IPC).
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  instdisc embed --checkpoint runs/r50/checkpoints/step-00005005 --dataset data/in1k \\\n    --split val --output runs/r50/val.arrow"
)]
pub(super) struct EmbedArgs {
    /// The checkpoint's folder, or that of a run, whose newest checkpoint it is then
    #[arg(long, value_name = "URL")]
    checkpoint: String,
    /// The dataset's folder; it must be the one that the checkpoint was trained on
    #[arg(long, value_name = "URL")]
    dataset: String,
    /// The split [default: the first of val, valid, validation, dev, test and testing]
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
    /// Layers, with commas between: projection (the embedding, of unit length), pooled (what the projection
    /// sees), conv1 to conv5 (the maps behind the stages, averaged to about 9000 numbers)
    #[arg(long, value_name = "LAYERS", value_delimiter = ',', default_value = "projection")]
    feature: Vec<FeatureLayer>,
    /// The feature table to write; with several layers its name holds {feature}, which becomes the layer's name. A table
    /// of the same weights, split and layer is kept; any other file there is an error
    #[arg(long, value_name = "URL")]
    output: String,
    /// Embed a uniform sample of N images, the one that train --limit takes; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    limit: u64,
    /// Images of a batch
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Threads that decode; 0 for one on each core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Where to compute: auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: DeviceChoice,
    #[command(flatten)]
    ranks: RankFlags,
}

pub(super) fn run(global: &GlobalArgs, args: &EmbedArgs) -> anyhow::Result<()> {
    if args.feature.len() > 1 && !args.output.contains(PLACEHOLDER) {
        bail!(WrongUsage(format!("--output needs {PLACEHOLDER} in its name where there are several layers")));
    }
    let rendezvous = args.ranks.rendezvous()?;
    let place = |layer: &FeatureLayer| {
        Ok((*layer, global.location(&args.output.replace(PLACEHOLDER, &layer.to_string()))?))
    };
    let dataset = global.location(&args.dataset)?;
    let manifest = Manifest::read(&dataset)?;
    let job = EmbedJob {
        checkpoint: Checkpoint::open(&global.checkpoint(&args.checkpoint)?)?,
        split: manifest.evaluation_split(&dataset, "", args.split.as_deref())?,
        manifest,
        dataset,
        replaces: false,
        outputs: args.feature.iter().map(place).collect::<anyhow::Result<_>>()?,
        rows: RowChoice::limited(args.limit),
        batch_size: args.batch_size as usize,
        threads: args.threads,
        device: args.device,
        local_rank: rendezvous.local_rank(),
    };
    let group = args.ranks.join(&rendezvous)?;
    let published = embed(&job, &group, progress_of(group.is_first(), &Terminal::default()))?;
    group.leave();
    if !group.is_first() {
        return Ok(());
    }
    let tables: Vec<_> = job
        .outputs
        .iter()
        .zip(&published)
        .map(|((layer, output), published)| {
            let mut table = json!({"feature": layer.to_string(), "output": output.to_string()});
            match published {
                Some(published) => {
                    table["bytes"] = json!(published.bytes);
                    table["blake3"] = json!(published.digest);
                }
                None => {
                    say(&format!("`{output}` exists and is kept; remove it to embed again"));
                    table["kept"] = json!(true);
                }
            }
            table
        })
        .collect();
    if let [FeatureLayer::Projection] = args.feature[..] {
        let own =
            if job.split == job.checkpoint.manifest().trained_on.split { " --leave-one-out" } else { "" };
        let [bank, queries, dataset] =
            [&args.checkpoint, &args.output, &args.dataset].map(|text| shell_word(text));
        say_next(&format!("instdisc knn --bank {bank} --queries {queries} --dataset {dataset}{own}"));
    }
    write_json(&if let [one] = tables.as_slice() { one.clone() } else { serde_json::Value::from(tables) })
}
