//! `instdisc knn`.

#[cfg(feature = "torch")]
mod of_run;
#[cfg(feature = "torch")]
mod peers;

use anyhow::bail;
use clap::Args;
use rayon::ThreadPool;

use super::exit::WrongUsage;
use super::progress::say;
use super::reports::Published;
use super::{GlobalArgs, write_stdout};
use crate::dataset::{Manifest, read_duplicates};
use crate::eval::{
    Duplicates, EvalError, KnnOptions, KnnReport, KnnReports, Thumbnails, evaluate_with_neighbours,
    open_bank, sprite, write_neighbours,
};
use crate::feature_table::{ColumnNames, FeatureTable, Table};
use crate::image::encode_jpeg;
use crate::page::{PageImages, PageInput, examples, history, map, page};
use crate::search::Neighbours;
use crate::storage::{Location, PublishMode};
use crate::units::Temperature;

/// Neighbours that vote where nothing else is asked for (paper, section 3.4).
const DEFAULT_K: usize = 200;
/// Neighbours that the page shows for each query at least.
const LEAST_SHOWN: usize = 10;
/// Of fewer rows one in so many is a neighbour: were all, the most frequent class would win each vote.
const ROWS_OF_A_NEIGHBOUR: usize = 10;
/// Points of the page's map where nothing else is asked for.
const DEFAULT_MAP_POINTS: u64 = 2000;
/// τ of the weights where nothing else is asked for.
const DEFAULT_TEMPERATURE: &str = "0.07";
/// Points of the page's map at most: their images fit into one JPEG, which has at most 65,535 rows of pixels.
const MOST_MAP_POINTS: u64 = 100_000;
/// The quality of the map's images.
const SPRITE_QUALITY: u8 = 78;

/// Evaluate features by a weighted k-nearest-neighbour vote.
///
/// Each query is given the class for which its K most similar bank rows vote, with weights exp(s/τ), where s
/// is their cosine. The report is JSON; with --output, a page (.html) is written beside it, which shows
/// images if --dataset is given. Several features are evaluated in one call: give --bank and --queries once
/// for each, or --feature with --run.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  instdisc knn --bank runs/r50/checkpoints/step-00005005/bank.arrow \\\n    --queries runs/r50/val.arrow --output runs/r50/eval/knn.json\n  instdisc knn --run runs/r50 --dataset data/in1k --split val --watch"
)]
pub(super) struct KnnArgs {
    /// The feature table that votes, or the checkpoint (of a run, its newest) whose bank does; may be repeated, with
    /// as many --queries
    #[arg(long, value_name = "URL", requires = "queries", required_unless_present = "run")]
    bank: Vec<String>,
    /// The feature table that is evaluated
    #[arg(long, value_name = "URL", requires = "bank")]
    queries: Vec<String>,
    /// The column of ids in tables that instdisc did not write [default: instance_id]
    #[arg(long, value_name = "NAME", requires = "bank")]
    id_column: Option<String>,
    /// The column of vectors in tables that instdisc did not write [default: feature]
    #[arg(long, value_name = "NAME", requires = "bank")]
    vector_column: Option<String>,
    /// The column of classes in tables that instdisc did not write [default: label]
    #[arg(long, value_name = "NAME", requires = "bank")]
    label_column: Option<String>,
    /// Evaluate this run's newest checkpoint, or the checkpoint of this folder: its encoder embeds --split, its bank votes
    #[arg(long, value_name = "URL", conflicts_with_all = ["bank", "queries"], requires = "dataset")]
    run: Option<String>,
    /// The dataset, for the page's images and for --run
    #[arg(long, value_name = "URL")]
    dataset: Option<String>,
    /// The split that --run evaluates on [default: the first of val, valid, validation, dev, test and testing]
    #[arg(long, value_name = "NAME", requires = "run")]
    split: Option<String>,
    /// The split whose images vote, for features other than `bank` [default: that of the run]
    #[arg(long, value_name = "NAME", requires = "run")]
    train_split: Option<String>,
    /// What --run compares: `bank` takes the vectors that the training stored; a layer (projection, pooled,
    /// conv1 to conv5) embeds training images and queries anew; several with commas between, the first is the
    /// headline
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "bank", requires = "run")]
    feature: Vec<String>,
    /// Evaluate each checkpoint of --run as it appears, once, also across restarts and several watchers; ends
    /// when the run is finished
    #[arg(long, requires = "run", conflicts_with_all = ["output", "neighbours"])]
    watch: bool,
    /// With --watch, end after so many seconds without a new checkpoint; 0 for never
    #[arg(long, value_name = "SECONDS", default_value_t = 0, requires = "watch")]
    idle_timeout: u64,
    /// With --watch, look at the run every so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, requires = "watch", value_parser = clap::value_parser!(u64).range(1..))]
    poll_interval: u64,
    /// K, neighbours that vote; several with commas between, the largest is the headline [default: 200, or a
    /// tenth of the rows where they are fewer than 2000]
    #[arg(long, value_name = "K", value_delimiter = ',')]
    k: Vec<usize>,
    /// τ of the weights exp(s/τ); several with commas between
    #[arg(long, value_name = "TAU", value_delimiter = ',', default_value = DEFAULT_TEMPERATURE)]
    temperature: Vec<Temperature>,
    /// A query's own row does not vote, for queries from the bank's own split
    #[arg(long)]
    leave_one_out: bool,
    /// Near-duplicates of a query do not vote, as ingest found them (--dataset)
    #[arg(long, requires = "dataset")]
    exclude_duplicates: bool,
    /// The report's place (.json), a page lies beside it (.html); stdout then has a line of scores [default: stdout
    /// alone, or the run's eval folder and stdout]
    #[arg(long, value_name = "URL")]
    output: Option<String>,
    /// Write neighbour ids and similarities of the first feature here, as Parquet
    #[arg(long, value_name = "URL")]
    neighbours: Option<String>,
    /// Queries on the page's map, at most 100000; 0 for no map
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAP_POINTS, value_parser = clap::value_parser!(u64).range(..=MOST_MAP_POINTS))]
    map_points: u64,
    /// Threads that search; 0 for one on each core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    #[cfg(feature = "torch")]
    #[command(flatten)]
    ranks: super::ranks::RankFlags,
}

/// One feature: what votes, and what is evaluated.
struct Pair {
    bank: Box<dyn Table>,
    queries: FeatureTable,
}

/// Where results go.
struct Place {
    output: Location,
    /// The run whose checkpoints the page shows beside one another.
    run: Option<Location>,
    /// The digest of the run's weights that are evaluated.
    weights: Option<String>,
    mode: PublishMode,
}

/// Who searches: this process, or several together.
trait Searchers {
    /// Whether this process has the results.
    fn is_first(&self) -> bool;

    /// What was to be done together is done.
    fn leave(&self);

    /// Scores a feature.
    fn evaluate(
        &self,
        pair: &Pair,
        options: &KnnOptions,
        pool: &ThreadPool,
    ) -> Result<(KnnReport, Neighbours), EvalError>;
}

/// The only process.
struct Alone;

impl Searchers for Alone {
    fn is_first(&self) -> bool {
        true
    }

    fn leave(&self) {}

    fn evaluate(
        &self,
        pair: &Pair,
        options: &KnnOptions,
        pool: &ThreadPool,
    ) -> Result<(KnnReport, Neighbours), EvalError> {
        pool.install(|| evaluate_with_neighbours(&*pair.bank, &pair.queries, options))
    }
}

impl KnnArgs {
    /// Whether images are embedded, or several processes search.
    pub(super) fn needs_torch(&self) -> anyhow::Result<bool> {
        #[cfg(feature = "torch")]
        let together = self.ranks.rendezvous()?.world() > 1;
        #[cfg(not(feature = "torch"))]
        let together = false;
        Ok(self.run.is_some() || together)
    }
}

/// Evaluates tables by this process alone.
pub(super) fn run(global: &GlobalArgs, args: &KnnArgs) -> anyhow::Result<()> {
    evaluate_tables(global, args, &Alone)
}

/// Evaluates a run, or tables by several processes.
#[cfg(feature = "torch")]
pub(super) fn run_together(global: &GlobalArgs, args: &KnnArgs) -> anyhow::Result<()> {
    let peers = peers::Peers::join(args)?;
    match &args.run {
        Some(run) => of_run::evaluate_run(global, args, &global.location(run)?, &peers),
        None => evaluate_tables(global, args, &peers),
    }
}

fn evaluate_tables(global: &GlobalArgs, args: &KnnArgs, searchers: &dyn Searchers) -> anyhow::Result<()> {
    if args.bank.len() != args.queries.len() {
        bail!(WrongUsage("there are as many --bank as --queries".into()));
    }
    let names = ColumnNames {
        id: args.id_column.clone(),
        vector: args.vector_column.clone(),
        label: args.label_column.clone(),
    };
    let pair = |(bank, queries): (&String, &String)| {
        anyhow::Ok(Pair {
            bank: open_bank(&global.location(bank)?, &names)?,
            queries: FeatureTable::read_with(&global.location(queries)?, &names)?,
        })
    };
    let pairs = args.bank.iter().zip(&args.queries).map(pair).collect::<anyhow::Result<Vec<_>>>()?;
    let output = args.output.as_ref().map(|output| global.location(output)).transpose()?;
    let place = output.map(|output| Place { output, run: None, weights: None, mode: PublishMode::Overwrite });
    print_reports(global, args, evaluate(global, args, &pairs, place.as_ref(), searchers)?.as_ref())
}

/// Prints the reports as JSON; where they were written to a place that the user chose, a line of each.
fn print_reports(global: &GlobalArgs, args: &KnnArgs, reports: Option<&KnnReports>) -> anyhow::Result<()> {
    let Some(reports) = reports else { return Ok(()) };
    let all = std::iter::once(&reports.first).chain(&reports.other_features);
    let lines: Vec<String> = all.map(line).collect();
    if args.output.is_none() {
        return global.write_result(&lines, reports);
    }
    write_stdout((lines.join("\n") + "\n").as_bytes())
}

/// A report for people.
fn line(report: &KnnReport) -> String {
    let KnnReport { step, k, temperature, feature, .. } = report;
    if !report.has_scores() {
        return format!("step {step}: no labels, so no scores ({feature})");
    }
    let top1 = 100.0 * report.top1;
    let top5 = if *k < 5 || report.classes <= 5 {
        String::new()
    } else {
        format!(", top-5 {:.2} %", 100.0 * report.top5)
    };
    let largest = 100.0 * report.most_frequent_class;
    format!(
        "step {step}: top-1 {top1:.2} %{top5} (k = {k}, τ = {temperature}, {feature}; most frequent class {largest:.2} %)"
    )
}

/// Votes with each feature, and publishes what was asked for. Several processes search together; process 0 has
/// the reports.
fn evaluate(
    global: &GlobalArgs,
    args: &KnnArgs,
    pairs: &[Pair],
    place: Option<&Place>,
    searchers: &dyn Searchers,
) -> anyhow::Result<Option<KnnReports>> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads).build()?;
    let duplicates = match &args.dataset {
        Some(dataset) if args.exclude_duplicates => Some(read_duplicates(&global.location(dataset)?)?),
        _ => None,
    };
    let mut evaluated = Vec::new();
    for pair in pairs {
        let splits = (&pair.queries.meta.split, &pair.bank.meta().split);
        let exclude = duplicates.as_ref().map(|rows| Duplicates::between(rows, splits.0, splits.1));
        let options = KnnOptions {
            k: if args.k.is_empty() {
                vec![default_k(pair.bank.ids().len().saturating_sub(usize::from(args.leave_one_out)))]
            } else {
                args.k.clone()
            },
            temperature: args.temperature.clone(),
            leave_one_out: args.leave_one_out,
            exclude,
            shown: if place.is_some() && args.neighbours.is_none() { LEAST_SHOWN } else { 0 },
        };
        evaluated.push(searchers.evaluate(pair, &options, &pool)?);
    }
    searchers.leave();
    if !searchers.is_first() {
        return Ok(None);
    }
    // Before anything is printed or published.
    pairs.iter().try_for_each(|pair| pair.bank.verify())?;
    let mut evaluated = evaluated.into_iter();
    let Some(((first, neighbours), pair)) = evaluated.next().zip(pairs.first()) else {
        bail!(WrongUsage("no feature to evaluate: give --bank and --queries, or --run".into()));
    };
    let reports = KnnReports { first, other_features: evaluated.map(|(report, _)| report).collect() };
    // A note about the rows is the same for each feature.
    let mut notes: Vec<&String> = Vec::new();
    for note in
        std::iter::once(&reports.first).chain(&reports.other_features).flat_map(|report| &report.notes)
    {
        if !notes.contains(&note) {
            tracing::warn!("{note}");
            notes.push(note);
        }
    }
    if let Some(neighbours_at) = &args.neighbours {
        write_neighbours(&global.location(neighbours_at)?, &*pair.bank, &pair.queries, &neighbours)?;
    }
    if let Some(place) = place {
        let shown = examples(&*pair.bank, &pair.queries, &neighbours, reports.first.k, args.temperature[0]);
        let history = place.run.as_ref().map(|run| history(run, &reports.first)).transpose()?;
        let map = (args.map_points > 0)
            .then(|| pool.install(|| map(&pair.queries, args.map_points as usize)))
            .transpose()?;
        let input = PageInput {
            reports: &reports,
            bank: &*pair.bank,
            queries: &pair.queries,
            neighbours: &neighbours,
            examples: &shown,
            history: &history.unwrap_or_default(),
            map: map.as_ref(),
        };
        publish(global, args, place, &input)?;
    }
    Ok(Some(reports))
}

/// K where none is asked for: the paper's, or a tenth of the rows that can vote.
pub(super) fn default_k(rows: usize) -> usize {
    (rows / ROWS_OF_A_NEIGHBOUR).clamp(1, DEFAULT_K)
}

/// Publishes the report and the page beside it.
fn publish(global: &GlobalArgs, args: &KnnArgs, place: &Place, input: &PageInput<'_>) -> anyhow::Result<()> {
    let images = match &args.dataset {
        Some(dataset) => images(&global.location(dataset)?, input)?,
        None => PageImages::default(),
    };
    let html = beside(&place.output)?;
    html.publish(page(input, &images), PublishMode::Overwrite)?;
    let published = Published { report: input.reports, weights: place.weights.as_deref() };
    place.output.publish(serde_json::to_string_pretty(&published)? + "\n", place.mode)?;
    say(&format!("report {}, page {html}", place.output));
    Ok(())
}

fn images(dataset: &Location, input: &PageInput<'_>) -> anyhow::Result<PageImages> {
    let manifest = Manifest::read(dataset)?;
    let dataset_digest = manifest.dataset_digest.to_string();
    for meta in [input.bank.meta(), &input.queries.meta] {
        let split_digest = manifest.split(dataset, &meta.split)?.digest.to_string();
        if !meta.is_of(&split_digest, &dataset_digest) {
            let reason = format!("split `{}` of --dataset {dataset} is another one than theirs", meta.split);
            return Err(EvalError::Mismatch { reason }.into());
        }
    }
    let split = &input.queries.meta.split;
    let mapped = input.mapped();
    // From a store every point would cost a row group; the map has images where images are at hand.
    let sprite = if mapped.is_empty() || dataset.local_path().is_none() {
        None
    } else {
        Some(encode_jpeg(&sprite(dataset, &manifest, split, &mapped)?, SPRITE_QUALITY)?)
    };
    Ok(PageImages {
        queries: Thumbnails::load(dataset, &manifest, split, input.shown_queries())?,
        bank: Thumbnails::load(dataset, &manifest, &input.bank.meta().split, input.shown_neighbours())?,
        sprite,
    })
}

/// The page's place: the report's, with another ending.
fn beside(output: &Location) -> anyhow::Result<Location> {
    output
        .with_file_name(&format!("{}.html", output.file_name().trim_end_matches(".json")))
        .ok_or_else(|| anyhow::anyhow!("--output {output} names no file"))
}
