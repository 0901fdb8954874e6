//! `instdisc knn`.

use anyhow::bail;
use clap::Args;

use super::progress::say;
use super::{GlobalArgs, write_json};
use crate::dataset::Manifest;
use crate::eval::{
    EvalError, KnnOptions, PageInput, Thumbnails, evaluate_with_neighbours, page, write_neighbours,
};
use crate::feature_table::FeatureTable;
use crate::storage::{Location, PublishMode};
use crate::units::Temperature;

/// Judge features by a weighted k-nearest-neighbour vote.
///
/// Each query is given the class for which its K most similar bank rows vote, with weights exp(s/τ). The
/// report is JSON; with --output, a page (.html) is written beside it, which shows pictures if --dataset is
/// given.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  instdisc knn --bank runs/r50/checkpoints/step-00005004/bank.arrow \\\n    --queries runs/r50/val.arrow --output runs/r50/eval/knn.json\n  instdisc knn --run runs/r50 --dataset data/in1k --split val"
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
    bank: FeatureTable,
    queries: FeatureTable,
    output: Option<Location>,
}

pub(super) fn run(global: &GlobalArgs, args: &KnnArgs) -> anyhow::Result<()> {
    let tables = match (&args.bank, &args.queries, &args.run) {
        (Some(bank), Some(queries), _) => Tables {
            bank: FeatureTable::read(&global.location(bank)?)?,
            queries: FeatureTable::read(&global.location(queries)?)?,
            output: args.output.as_ref().map(|output| global.location(output)).transpose()?,
        },
        (_, _, Some(run)) => of_run(global, args, run)?,
        _ => bail!("either --bank and --queries, or --run"),
    };
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
        publish(global, args, output, &input)?;
    }
    write_json(&report)
}

/// Publishes the report and the page beside it.
fn publish(
    global: &GlobalArgs,
    args: &KnnArgs,
    output: &Location,
    input: &PageInput<'_>,
) -> anyhow::Result<()> {
    let (queries, bank) = match &args.dataset {
        Some(dataset) => pictures(&global.location(dataset)?, input)?,
        None => Default::default(),
    };
    let html = beside(output)?;
    html.publish(page(input, &queries, &bank), PublishMode::Overwrite)?;
    let json = serde_json::to_string_pretty(input.report)? + "\n";
    output.publish(json, PublishMode::Overwrite)?;
    say(&format!("report {output}, page {html}"));
    Ok(())
}

fn pictures(dataset: &Location, input: &PageInput<'_>) -> anyhow::Result<(Thumbnails, Thumbnails)> {
    let manifest = Manifest::read(dataset)?;
    if manifest.dataset_digest.to_string() != input.bank.meta.dataset_digest {
        let reason = format!("--dataset {dataset} is another dataset than theirs");
        return Err(EvalError::Mismatch { reason }.into());
    }
    let query_ids: Vec<_> = input.shown_queries().into_iter().map(|row| input.queries.ids[row]).collect();
    Ok((
        Thumbnails::load(dataset, &manifest, &input.queries.meta.split, query_ids)?,
        Thumbnails::load(dataset, &manifest, &input.bank.meta.split, input.shown_bank_instances())?,
    ))
}

/// The page's place: the report's, with another ending.
fn beside(output: &Location) -> anyhow::Result<Location> {
    output
        .with_file_name(&format!("{}.html", output.file_name().trim_end_matches(".json")))
        .ok_or_else(|| anyhow::anyhow!("--output {output} names no file"))
}

#[cfg(not(feature = "torch"))]
fn of_run(_global: &GlobalArgs, _args: &KnnArgs, _run: &str) -> anyhow::Result<Tables> {
    Err(EvalError::Options { reason: "--run needs a build with libtorch; use --bank and --queries".into() }
        .into())
}

#[cfg(feature = "torch")]
fn of_run(global: &GlobalArgs, args: &KnnArgs, run: &str) -> anyhow::Result<Tables> {
    use super::progress::Terminal;
    use crate::checkpoint::{BANK, CheckpointError, list_checkpoints};
    use crate::eval::{EmbedJob, embed};
    use crate::model::DeviceChoice;

    let run_at = global.location(run)?;
    let Some((step, checkpoint)) = list_checkpoints(&run_at)?.pop() else {
        return Err(CheckpointError::NotThere { folder: format!("{run_at}/checkpoints") }.into());
    };
    let name = format!("eval/knn-step-{step:08}");
    let table = run_at.join(&format!("eval/{}-step-{step:08}.arrow", args.split));
    let job = EmbedJob {
        checkpoint: checkpoint.clone(),
        dataset: global.location(args.dataset.as_deref().unwrap_or_default())?,
        split: args.split.clone(),
        output: table.clone(),
        limit: 0,
        batch_size: 256,
        threads: args.threads,
        device: DeviceChoice::Auto,
    };
    embed(&job, &Terminal::default())?;
    let output = match &args.output {
        Some(output) => global.location(output)?,
        None => run_at.join(&format!("{name}.json")),
    };
    Ok(Tables {
        bank: FeatureTable::read(&checkpoint.join(BANK))?,
        queries: FeatureTable::read(&table)?,
        output: Some(output),
    })
}
