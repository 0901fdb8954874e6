//! `instdisc knn`.

#[cfg(not(feature = "torch"))]
#[path = "knn/without_torch.rs"]
mod of_run;
#[cfg(feature = "torch")]
mod of_run;

use anyhow::bail;
use clap::Args;

use super::progress::say;
use super::{GlobalArgs, write_json};
use crate::dataset::Manifest;
use crate::eval::{
    EvalError, KnnOptions, KnnReport, PageInput, Thumbnails, evaluate_with_neighbours, page, write_neighbours,
};
use crate::feature_table::{FeatureTable, StoredTable};
use crate::storage::{Location, PublishMode};
use crate::units::Temperature;

/// Judge features by a weighted k-nearest-neighbour vote.
///
/// Each query is given the class for which its K most similar bank rows vote, with weights exp(s/τ). The
/// report is JSON; with --output, a page (.html) is written beside it, which shows pictures if --dataset is
/// given.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  instdisc knn --bank runs/r50/checkpoints/step-00005004/bank.arrow \\\n    --queries runs/r50/val.arrow --output runs/r50/eval/knn.json\n  instdisc knn --run runs/r50 --dataset data/in1k --split val --watch"
)]
pub(super) struct KnnArgs {
    /// The feature table that votes
    #[arg(long, value_name = "URL", requires = "queries", required_unless_present = "run")]
    bank: Option<String>,
    /// The feature table that is judged
    #[arg(long, value_name = "URL", requires = "bank")]
    queries: Option<String>,
    /// A run: its newest checkpoint's bank votes on the split, embedded by its encoder
    #[arg(long, value_name = "URL", conflicts_with_all = ["bank", "queries"], requires = "dataset")]
    run: Option<String>,
    /// The dataset, for the page's pictures and for --run
    #[arg(long, value_name = "URL")]
    dataset: Option<String>,
    /// The split that --run embeds
    #[arg(long, value_name = "NAME", default_value = "val")]
    split: String,
    /// Judge each checkpoint of --run as it appears, once, also across restarts and several watchers; ends
    /// when the run is finished
    #[arg(long, requires = "run", conflicts_with_all = ["output", "neighbours"])]
    watch: bool,
    /// With --watch, end after so many seconds without a new checkpoint; 0 for never
    #[arg(long, value_name = "SECONDS", default_value_t = 0, requires = "watch")]
    idle_timeout: u64,
    /// With --watch, look at the run every so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, requires = "watch", value_parser = clap::value_parser!(u64).range(1..))]
    poll_interval: u64,
    /// K, neighbours that vote; several with commas between, the first is the headline
    #[arg(long, value_name = "K", value_delimiter = ',', default_value = "200")]
    k: Vec<usize>,
    /// τ of the weights exp(s/τ); several with commas between
    #[arg(long, value_name = "TAU", value_delimiter = ',', default_value = "0.07")]
    temperature: Vec<Temperature>,
    /// A query's own row does not vote, for queries from the bank's own split
    #[arg(long)]
    leave_one_out: bool,
    /// The report's place (.json); a page lies beside it (.html) [default: stdout, or the run's eval folder]
    #[arg(long, value_name = "URL")]
    output: Option<String>,
    /// Write neighbour ids and similarities here, as Parquet
    #[arg(long, value_name = "URL")]
    neighbours: Option<String>,
    /// Threads that search; 0 for one on each core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

/// What is judged by what, and where the report goes.
struct Tables {
    bank: StoredTable,
    queries: FeatureTable,
    output: Option<Location>,
}

pub(super) fn run(global: &GlobalArgs, args: &KnnArgs) -> anyhow::Result<()> {
    match (&args.bank, &args.queries, &args.run) {
        (Some(bank), Some(queries), _) => {
            let tables = Tables {
                bank: StoredTable::open(&global.location(bank)?)?,
                queries: FeatureTable::read(&global.location(queries)?)?,
                output: args.output.as_ref().map(|output| global.location(output)).transpose()?,
            };
            write_json(&judge(global, args, &tables, PublishMode::Overwrite)?)
        }
        (_, _, Some(run)) => of_run::judge_run(global, args, &global.location(run)?),
        _ => bail!("either --bank and --queries, or --run"),
    }
}

/// Votes, and publishes what was asked for.
fn judge(
    global: &GlobalArgs,
    args: &KnnArgs,
    tables: &Tables,
    mode: PublishMode,
) -> anyhow::Result<KnnReport> {
    let options = KnnOptions {
        k: args.k.clone(),
        temperature: args.temperature.clone(),
        leave_one_out: args.leave_one_out,
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads).build()?;
    let (report, neighbours) =
        pool.install(|| evaluate_with_neighbours(&tables.bank, &tables.queries, &options))?;
    if let Some(neighbours_at) = &args.neighbours {
        write_neighbours(&global.location(neighbours_at)?, &tables.bank, &tables.queries, &neighbours)?;
    }
    if let Some(output) = &tables.output {
        let input = PageInput {
            report: &report,
            bank: &tables.bank,
            queries: &tables.queries,
            neighbours: &neighbours,
        };
        publish(global, args, output, &input, mode)?;
    }
    Ok(report)
}

/// Publishes the report and the page beside it.
fn publish(
    global: &GlobalArgs,
    args: &KnnArgs,
    output: &Location,
    input: &PageInput<'_>,
    mode: PublishMode,
) -> anyhow::Result<()> {
    let (queries, bank) = match &args.dataset {
        Some(dataset) => pictures(&global.location(dataset)?, input)?,
        None => Default::default(),
    };
    let html = beside(output)?;
    html.publish(page(input, &queries, &bank), PublishMode::Overwrite)?;
    let json = serde_json::to_string_pretty(input.report)? + "\n";
    output.publish(json, mode)?;
    say(&format!("report {output}, page {html}"));
    Ok(())
}

fn pictures(dataset: &Location, input: &PageInput<'_>) -> anyhow::Result<(Thumbnails, Thumbnails)> {
    let manifest = Manifest::read(dataset)?;
    if manifest.dataset_digest.to_string() != input.bank.meta().dataset_digest {
        let reason = format!("--dataset {dataset} is another dataset than theirs");
        return Err(EvalError::Mismatch { reason }.into());
    }
    let query_ids: Vec<_> = input.shown_queries().into_iter().map(|row| input.queries.ids[row]).collect();
    Ok((
        Thumbnails::load(dataset, &manifest, &input.queries.meta.split, query_ids)?,
        Thumbnails::load(dataset, &manifest, &input.bank.meta().split, input.shown_bank_instances())?,
    ))
}

/// The page's place: the report's, with another ending.
fn beside(output: &Location) -> anyhow::Result<Location> {
    output
        .with_file_name(&format!("{}.html", output.file_name().trim_end_matches(".json")))
        .ok_or_else(|| anyhow::anyhow!("--output {output} names no file"))
}
