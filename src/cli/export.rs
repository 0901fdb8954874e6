//! `instdisc export`.

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::json;

use super::GlobalArgs;
use super::exit::usage;
use super::progress::{Terminal, say};
use crate::commands::{
    Hub, ProjectorJob, export_hub, export_parquet, export_projector, export_torchvision, preprocessing_of,
};
use crate::ingest::{ExportOptions, ExportedSplit, export};

/// Write weights, embeddings or images in the formats of other programs.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  instdisc export torchvision --run runs/r50 \\
    --without-projection --output r50.safetensors
  instdisc export parquet --table val.arrow --output val.parquet
  instdisc export projector --table val.arrow --dataset data/in1k --output projector")]
pub(super) struct ExportArgs {
    #[command(subcommand)]
    form: Form,
}

#[derive(Debug, Subcommand)]
enum Form {
    Images(ImagesArgs),
    /// Weights as one safetensors file with torchvision's names; jobs/tools/cifar_resnet.py defines the CIFAR networks
    Torchvision {
        /// Run, for its newest checkpoint, or checkpoint
        #[arg(long = "run", visible_alias = "checkpoint", value_name = "URL")]
        checkpoint: String,
        /// Omit the last layer, for a model whose last layer is torch.nn.Identity()
        #[arg(long)]
        without_projection: bool,
        /// File to write
        #[arg(long, value_name = "URL")]
        output: String,
    },
    /// Folder that timm loads: `timm.create_model("local-dir:FOLDER", pretrained=True)`
    Timm(HubArgs),
    /// Folder that transformers loads, with a model card: `from_pretrained("FOLDER")`
    #[command(name = "huggingface")]
    HuggingFace(HubArgs),
    /// Feature table as Parquet, for DuckDB, LanceDB, Polars and pandas
    Parquet {
        /// Feature table; a checkpoint, or a run for its newest, stands for its bank
        #[arg(long, value_name = "URL")]
        table: String,
        /// File to write
        #[arg(long, value_name = "URL")]
        output: String,
    },
    /// Feature table as a folder for TensorBoard's embedding projector
    Projector {
        /// Feature table; a checkpoint, or a run for its newest, stands for its bank
        #[arg(long, value_name = "URL")]
        table: String,
        /// Dataset, for a small image of each row
        #[arg(long, value_name = "URL")]
        dataset: Option<String>,
        /// Maximum number of rows, sampled uniformly
        #[arg(long, value_name = "N", default_value_t = 10_000)]
        limit: usize,
        /// Folder to write
        #[arg(long, value_name = "URL")]
        output: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct HubArgs {
    /// Run, for its newest checkpoint, or checkpoint
    #[arg(long = "run", visible_alias = "checkpoint", value_name = "URL")]
    checkpoint: String,
    /// Folder to write
    #[arg(long, value_name = "URL")]
    output: String,
}

/// Write a dataset's images back as files: `<split>/<class>/<file>`.
///
/// Each file has the bytes of the ingest's source. Images that the ingest made smaller or baseline are
/// written as stored, and counted.
///
/// A labelled image goes to the folder of its class with an image file's extension, so `ingest` reads the files with
/// the same labels. If several rows have the same path, the first keeps it and the others get `-<instance id>` before
/// the extension. So do paths that are folders of others, and names over 250 bytes, which are truncated. Control
/// characters become %XX. A path outside the split is an error, and nothing is written.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  instdisc export images --dataset in1k --split val --dest images")]
pub(super) struct ImagesArgs {
    /// Folder of the dataset
    #[arg(long, value_name = "URL")]
    dataset: String,
    /// Folder to write, outside the dataset; existing files with the same bytes are kept
    #[arg(long, value_name = "URL")]
    dest: String,
    /// Split to export [default: all]
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
}

pub(super) fn run(global: &GlobalArgs, args: &ExportArgs) -> anyhow::Result<()> {
    match &args.form {
        Form::Images(args) => export_images(global, args),
        Form::Torchvision { checkpoint, without_projection, output } => {
            if !output.ends_with(".safetensors") {
                bail!(usage(format!(
                    "--output {output}: the file is safetensors, not a pickle; end its name in `.safetensors`"
                )));
            }
            let (checkpoint, place) = (global.checkpoint(checkpoint)?, global.output(output)?);
            let tensors = export_torchvision(&checkpoint, &place, !without_projection)?;
            written(global, output, "tensors", tensors, Some(preprocessing_of(&checkpoint)?))
        }
        Form::Timm(args) => to_hub(global, args, Hub::Timm),
        Form::HuggingFace(args) => to_hub(global, args, Hub::HuggingFace),
        Form::Parquet { table, output } => {
            if !output.ends_with(".parquet") {
                bail!(usage(format!("--output {output}: end its name in `.parquet`")));
            }
            let rows = export_parquet(&global.location(table)?, &global.output(output)?)?;
            written(global, output, "rows", rows, None)
        }
        Form::Projector { table, dataset, limit, output } => {
            global.folder("--output", output)?;
            let place = global.output(output)?;
            if let Ok([file, ..]) = place.list().as_deref() {
                tracing::warn!("{place} holds `{}`: files of an earlier export are replaced", file.name);
            }
            let job = ProjectorJob {
                table: global.location(table)?,
                dataset: dataset.as_ref().map(|dataset| global.location(dataset)).transpose()?,
                output: place,
                limit: *limit,
            };
            let rows = export_projector(&job)?;
            written(global, output, "rows", rows, None)
        }
    }
}

fn to_hub(global: &GlobalArgs, args: &HubArgs, hub: Hub) -> anyhow::Result<()> {
    let (checkpoint, output) =
        (global.checkpoint(&args.checkpoint)?, global.folder("--output", &args.output)?);
    let tensors = export_hub(&checkpoint, &output, hub)?;
    written(global, &args.output, "tensors", tensors, Some(preprocessing_of(&checkpoint)?))
}

/// Prints the output and its number of tensors or rows, and for people a note on its use.
fn written(
    global: &GlobalArgs,
    output: &str,
    what: &str,
    count: usize,
    beside: Option<String>,
) -> anyhow::Result<()> {
    let lines: Vec<String> = std::iter::once(format!("{output}: {count} {what}")).chain(beside).collect();
    global.write_result(&lines, &json!({"output": output, what: count}))
}

fn export_images(global: &GlobalArgs, args: &ImagesArgs) -> anyhow::Result<()> {
    let options = ExportOptions {
        dataset: global.location(&args.dataset)?,
        dest: global.location(&args.dest)?,
        split: args.split.clone(),
    };
    let report = export(&options, &Terminal::default())?;
    for (name, split) in &report.splits {
        if split.not_original > 0 {
            say(&format!("{name}: {} images are not as the ingest was given them", split.not_original));
        }
        if split.renamed > 0 {
            say(&format!("{name}: {} files have other names than the paths of their rows", split.renamed));
        }
    }
    let line = |(name, split): (&String, &ExportedSplit)| format!("{name:>8}  {} images", split.images);
    let lines: Vec<String> = report.splits.iter().map(line).collect();
    global.write_result(&lines, &report)
}
