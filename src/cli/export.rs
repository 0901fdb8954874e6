//! `instdisc export`.

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::json;

use super::exit::WrongUsage;
use super::progress::{Terminal, say};
use super::{GlobalArgs, write_json};
use crate::eval::{ProjectorJob, export_parquet, export_projector, export_torchvision};
use crate::feature_table::StoredTable;
use crate::ingest::{ExportOptions, export};

/// Write a dataset's pictures as files again: `<split>/<class>/<file>`; or, by a subcommand, weights and
/// embeddings in other programs' forms.
///
/// Restart markers that `ingest --tile-index` has set are taken out: each file has the bytes that the ingest was
/// given, bit for bit. What the ingest made smaller or baseline comes as it is stored, and is counted.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  instdisc export --dataset in1k --split val --dest pictures\n  instdisc export torchvision --checkpoint runs/r50/checkpoints/step-00005004 \\\n    --without-projection --output r50.safetensors\n  instdisc export parquet --table val.arrow --output val.parquet\n  instdisc export projector --table val.arrow --dataset data/in1k --output projector"
)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct ExportArgs {
    /// The dataset's folder
    #[arg(long, value_name = "URL", requires = "dest")]
    dataset: Option<String>,
    /// The folder to write; files that are there with the same bytes stay
    #[arg(long, value_name = "URL", requires = "dataset")]
    dest: Option<String>,
    /// The split [default: all]
    #[arg(long, value_name = "NAME", requires = "dataset")]
    split: Option<String>,
    #[command(subcommand)]
    form: Option<Form>,
}

#[derive(Debug, Subcommand)]
enum Form {
    /// Weights as one safetensors file with torchvision's names
    Torchvision {
        /// The checkpoint's folder
        #[arg(long, value_name = "URL")]
        checkpoint: String,
        /// Leave out the last layer: for a model whose last layer is torch.nn.Identity()
        #[arg(long)]
        without_projection: bool,
        /// The file's place
        #[arg(long, value_name = "URL")]
        output: String,
    },
    /// A feature table as Parquet, for DuckDB, LanceDB, Polars and pandas
    Parquet {
        /// The feature table, or the bank of a checkpoint
        #[arg(long, value_name = "URL")]
        table: String,
        /// The file's place
        #[arg(long, value_name = "URL")]
        output: String,
    },
    /// A feature table as a folder for TensorBoard's embedding projector
    Projector {
        /// The feature table, or the bank of a checkpoint
        #[arg(long, value_name = "URL")]
        table: String,
        /// The dataset, for a small picture of each row
        #[arg(long, value_name = "URL")]
        dataset: Option<String>,
        /// A uniform sample of N rows at most
        #[arg(long, value_name = "N", default_value_t = 10_000)]
        limit: usize,
        /// The folder
        #[arg(long, value_name = "URL")]
        output: String,
    },
}

pub(super) fn run(global: &GlobalArgs, args: &ExportArgs) -> anyhow::Result<()> {
    let Some(form) = &args.form else {
        let (Some(dataset), Some(dest)) = (&args.dataset, &args.dest) else {
            bail!(WrongUsage(
                "either --dataset and --dest, or one of torchvision, parquet and projector".into()
            ));
        };
        return pictures(global, args, dataset, dest);
    };
    match form {
        Form::Torchvision { checkpoint, without_projection, output } => {
            let (checkpoint, place) = (global.location(checkpoint)?, global.location(output)?);
            let tensors = export_torchvision(&checkpoint, &place, !without_projection)?;
            write_json(&json!({"output": output, "tensors": tensors}))
        }
        Form::Parquet { table, output } => {
            let table = StoredTable::open(&global.location(table)?)?;
            let rows = export_parquet(&table, &global.location(output)?)?;
            write_json(&json!({"output": output, "rows": rows}))
        }
        Form::Projector { table, dataset, limit, output } => {
            let job = ProjectorJob {
                table: global.location(table)?,
                dataset: dataset.as_ref().map(|dataset| global.location(dataset)).transpose()?,
                output: global.location(output)?,
                limit: *limit,
            };
            let rows = export_projector(&job)?;
            write_json(&json!({"output": output, "rows": rows}))
        }
    }
}

fn pictures(global: &GlobalArgs, args: &ExportArgs, dataset: &str, dest: &str) -> anyhow::Result<()> {
    let options = ExportOptions {
        dataset: global.location(dataset)?,
        dest: global.location(dest)?,
        split: args.split.clone(),
    };
    let report = export(&options, &Terminal::default())?;
    for (name, split) in report.splits.iter().filter(|(_, split)| split.not_original > 0) {
        say(&format!("{name}: {} pictures are not as the ingest was given them", split.not_original));
    }
    write_json(&report)
}
