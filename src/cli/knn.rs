//! `instdisc knn`.

#[cfg(feature = "torch")]
pub(super) mod query;

use anyhow::bail;
use clap::Args;

use super::GlobalArgs;
use super::exit::usage;
use super::progress::Terminal;
use crate::commands::{Alone, DEFAULT_MAP_POINTS, KnnJob, KnnTables, Searchers, knn};
use crate::eval::{KnnReport, KnnReports, Retrieval};
use crate::feature_table::ColumnNames;
use crate::progress::Progress;
use crate::units::Temperature;
#[cfg(feature = "torch")]
use {
    super::progress::say,
    super::ranks::tell,
    super::write_json,
    crate::commands::{CommandError, KnnFeature, KnnRun, WatchOptions, knn_of_run, watch_run},
    crate::distributed::ProcessGroup,
    std::time::Duration,
};

/// Default temperature τ of the weights.
const DEFAULT_TEMPERATURE: &str = "0.07";
/// Maximum number of points on the page's map: their images fit into one JPEG, which has at most 65,535 rows of pixels.
const MOST_MAP_POINTS: u64 = 100_000;

/// Evaluate features by a weighted k-nearest-neighbour vote.
///
/// The K most similar bank rows vote for the class of a query, with weights exp(s/τ) for a cosine s. The
/// report is JSON. With --output, a page (.html) is written beside it, with images if --dataset is given. One
/// call evaluates several features: repeat --bank and --queries, or list --feature with --run.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  instdisc knn --bank runs/r50/checkpoints/step-00005005/bank.arrow \\
    --queries runs/r50/val.arrow --output runs/r50/eval/knn.json
  instdisc knn --run runs/r50 --dataset data/in1k --split val --watch")]
pub(super) struct KnnArgs {
    /// Feature table that votes, or checkpoint or run whose bank votes; repeatable, with equally many --queries
    #[arg(long, value_name = "URL", requires = "queries")]
    bank: Vec<String>,
    /// Feature table to evaluate
    #[arg(long, value_name = "URL", requires = "bank")]
    queries: Vec<String>,
    /// Column of ids in tables of other programs, integers or text; give it twice if bank and queries differ
    /// [default: instance_id, or the only one that is named like ids; '' for none]
    #[arg(long, value_name = "NAME", requires = "bank")]
    id_column: Vec<String>,
    /// Column of vectors in tables of other programs; give it twice if bank and queries differ [default:
    /// feature, or the only one of vectors]
    #[arg(long, value_name = "NAME", requires = "bank")]
    vector_column: Vec<String>,
    /// Column of classes in tables of other programs: numbers, names, or lists of them; give it twice if bank
    /// and queries differ [default: label, or the only one that is named like labels; '' for none]
    #[arg(long, value_name = "NAME", requires = "bank")]
    label_column: Vec<String>,
    /// Normalise vectors of other programs' tables to unit length, to compare them by cosine; without this,
    /// other lengths are an error
    #[arg(long, requires = "bank")]
    normalize: bool,
    /// Run, for its newest checkpoint, or checkpoint: its encoder embeds --split, its bank votes
    #[arg(long, value_name = "URL", conflicts_with_all = ["bank", "queries"], requires = "dataset")]
    run: Option<String>,
    /// Dataset, for the page's images and for --run
    #[arg(long, value_name = "URL")]
    dataset: Option<String>,
    /// Split that --run evaluates on [default: the first of val, valid, validation, dev, test and testing]
    #[arg(long, value_name = "NAME", requires = "run")]
    split: Option<String>,
    /// Split whose images vote, for features other than `bank`; needed if the run was trained on another
    /// dataset [default: that of the run]
    #[arg(long, value_name = "NAME", requires = "run")]
    train_split: Option<String>,
    /// Features that --run compares, separated by commas, the headline first: `bank` for the vectors stored by the
    /// training, or a layer (projection, pooled, conv1 to conv5) with which to embed training images and queries
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "bank", requires = "run")]
    feature: Vec<String>,
    /// Evaluate each checkpoint of --run once as it appears, until the run is finished; several watchers
    /// share the checkpoints. Ctrl-C ends the watch at once, and the same command continues
    #[arg(long, requires = "run", conflicts_with_all = ["output", "neighbours"])]
    watch: bool,
    /// Stop watching after this many seconds without a new checkpoint; 0 for never
    #[arg(long, value_name = "SECONDS", default_value_t = 0, requires = "watch")]
    idle_timeout: u64,
    /// Seconds between two looks at a watched run
    #[arg(long, value_name = "SECONDS", default_value_t = 10, requires = "watch",
        value_parser = clap::value_parser!(u64).range(1..))]
    poll_interval: u64,
    /// Number of neighbours that vote (K), separated by commas; the largest is the headline [default: 200, or
    /// a tenth of fewer than 2000 rows]
    #[arg(long, value_name = "K", value_delimiter = ',')]
    k: Vec<usize>,
    /// Temperatures of the weights exp(s/τ), separated by commas; the first is the headline
    #[arg(long, value_name = "TAU", value_delimiter = ',', default_value = DEFAULT_TEMPERATURE)]
    temperature: Vec<Temperature>,
    /// Exclude a query's own row, for queries of the bank's split
    #[arg(long)]
    leave_one_out: bool,
    /// Exclude near-duplicates of a query that ingest found
    #[arg(long, requires = "dataset")]
    exclude_duplicates: bool,
    /// File of the report (.json), with a page (.html) beside it; stdout then gets a line of scores [default:
    /// stdout, and the run's eval folder for --run]
    #[arg(long, value_name = "URL")]
    output: Option<String>,
    /// Parquet file for neighbour ids and similarities of the first feature
    #[arg(long, value_name = "URL")]
    neighbours: Option<String>,
    /// Queries on the page's map, at most 100000; 0 for no map
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAP_POINTS as u64,
        value_parser = clap::value_parser!(u64).range(..=MOST_MAP_POINTS))]
    map_points: u64,
    /// Search threads; 0 for one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    #[cfg(feature = "torch")]
    #[command(flatten)]
    ranks: super::ranks::RankFlags,
}

impl KnnArgs {
    /// Returns whether images are embedded, or several processes search.
    pub(super) fn needs_torch(&self) -> anyhow::Result<bool> {
        #[cfg(feature = "torch")]
        let together = self.ranks.rendezvous()?.world() > 1;
        #[cfg(not(feature = "torch"))]
        let together = false;
        if self.run.is_none() && self.bank.is_empty() {
            bail!(usage(
                "what to evaluate is missing: --run RUN with --dataset DATASET, or --bank and --queries"
            ));
        }
        Ok(self.run.is_some() || together)
    }

    fn job(&self, global: &GlobalArgs) -> anyhow::Result<KnnJob> {
        let output = |text: &Option<String>| text.as_ref().map(|text| global.output(text)).transpose();
        if let Some(output) = self.output.as_ref().filter(|output| output.ends_with(".html")) {
            bail!(usage(format!(
                "--output {output}: the report is JSON; name a .json file, and its page goes beside it"
            )));
        }
        Ok(KnnJob {
            k: self.k.clone(),
            temperature: self.temperature.clone(),
            leave_one_out: self.leave_one_out,
            exclude_duplicates: self.exclude_duplicates,
            output: output(&self.output)?,
            neighbours: output(&self.neighbours)?,
            map_points: self.map_points as usize,
            threads: self.threads,
        })
    }
}

/// Evaluates tables in this process alone.
pub(super) fn run(global: &GlobalArgs, args: &KnnArgs) -> anyhow::Result<()> {
    evaluate_tables(global, args, &Alone, &Terminal::default())
}

/// Evaluates a run, or tables with several processes.
#[cfg(feature = "torch")]
pub(super) fn run_together(global: &GlobalArgs, args: &KnnArgs) -> anyhow::Result<()> {
    let rendezvous = args.ranks.rendezvous()?;
    let group = args.ranks.join(&rendezvous)?;
    tell(&group, run_in(&group, global, args, rendezvous.local_rank()))
}

/// Evaluates as one of the processes that have joined.
#[cfg(feature = "torch")]
fn run_in(
    group: &ProcessGroup,
    global: &GlobalArgs,
    args: &KnnArgs,
    local_rank: usize,
) -> anyhow::Result<()> {
    let progress = &Terminal::of_rank(group.is_first());
    let Some(run) = &args.run else { return evaluate_tables(global, args, group, progress) };
    let feature = |name: &String| {
        name.parse().map_err(|error| usage(format!("--feature {name}: not bank, and {error}")))
    };
    let run = KnnRun {
        run: global.location(run)?,
        dataset: global.location(args.dataset.as_deref().unwrap_or_default())?,
        split: args.split.clone(),
        train_split: args.train_split.clone(),
        features: args.feature.iter().map(feature).collect::<Result<Vec<KnnFeature>, _>>()?,
        local_rank,
    };
    let job = args.job(global)?;
    if !args.watch {
        return match knn_of_run(&run, &job, group, progress)? {
            Some(report) => super::print_report_of_run(global, args.output.as_ref(), lines, &report),
            None => Ok(()),
        };
    }
    if group.world() > 1 {
        bail!(usage("--watch is for one process; several watchers share a run's checkpoints by themselves"));
    }
    let options = WatchOptions {
        poll: Duration::from_secs(args.poll_interval),
        idle_timeout: (args.idle_timeout > 0).then(|| Duration::from_secs(args.idle_timeout)),
    };
    let summary = watch_run(&run, &job, &options, progress, |reports| say(&lines(reports)[0]))?;
    write_json(&summary)?;
    if summary.failed.is_empty() {
        return Ok(());
    }
    let steps: Vec<_> = summary.failed.iter().map(ToString::to_string).collect();
    let run = crate::checkpoint::run_of(&run.run)?;
    let reason = format!("{run}: the checkpoints of steps {} could not be evaluated", steps.join(", "));
    bail!(CommandError::Data(reason))
}

fn evaluate_tables(
    global: &GlobalArgs,
    args: &KnnArgs,
    searchers: &dyn Searchers,
    progress: &dyn Progress,
) -> anyhow::Result<()> {
    if args.bank.len() != args.queries.len() {
        bail!(usage("there are as many --bank as --queries"));
    }
    let pair =
        |(bank, queries): (&String, &String)| anyhow::Ok((global.location(bank)?, global.location(queries)?));
    let tables = KnnTables {
        pairs: args.bank.iter().zip(&args.queries).map(pair).collect::<Result<_, _>>()?,
        columns: columns(args)?,
        normalize: args.normalize,
        dataset: args.dataset.as_ref().map(|dataset| global.location(dataset)).transpose()?,
    };
    let Some(found) = knn(&tables, &args.job(global)?, searchers, progress)? else { return Ok(()) };
    let lines = lines(&found);
    super::print_report(global, args.output.as_ref(), &lines, &found)
}

/// Returns the column names of the bank and of the queries.
fn columns(args: &KnnArgs) -> anyhow::Result<[ColumnNames; 2]> {
    let of = |option: &str, given: &[String]| match given {
        [] => Ok([None, None]),
        [both] => Ok([Some(both.clone()), Some(both.clone())]),
        [bank, queries] => Ok([Some(bank.clone()), Some(queries.clone())]),
        _ => Err(usage(format!(
            "{option} is given once for all tables, or twice: for the banks, then for the queries"
        ))),
    };
    let [id, other_id] = of("--id-column", &args.id_column)?;
    let [vector, other_vector] = of("--vector-column", &args.vector_column)?;
    let [label, other_label] = of("--label-column", &args.label_column)?;
    let queries = ColumnNames { id: other_id, vector: other_vector, label: other_label };
    Ok([ColumnNames { id, vector, label }, queries])
}

/// Returns a line for each feature.
fn lines(reports: &KnnReports) -> Vec<String> {
    reports.all().zip(reports.names()).map(|(report, feature)| line(report, &feature)).collect()
}

/// Formats the scores of a report on one line.
fn line(report: &KnnReport, feature: &str) -> String {
    let KnnReport { step, k, temperature, queries, .. } = report;
    let measures = report.retrieval.as_ref().map(measures).unwrap_or_default();
    if !report.has_scores() {
        let measures = if measures.is_empty() { "no labels, so no scores" } else { &measures };
        return format!("step {step}: {measures} ({feature})");
    }
    let top1 = 100.0 * report.top1;
    let top5 = if *k < 5 || report.classes <= 5 {
        String::new()
    } else {
        format!(", top-5 {:.2} %", 100.0 * report.top5)
    };
    let largest = 100.0 * report.most_frequent_class;
    format!(
        "step {step}: top-1 {top1:.2} %{top5} of {queries} queries (k = {k}, τ = {temperature}, {feature}; \
         always naming the most frequent class: {largest:.2} %); {measures}"
    )
}

/// Formats recall and mean average precision.
pub(super) fn measures(retrieval: &Retrieval) -> String {
    let Retrieval { k, recall, map, map_at_r, .. } = retrieval;
    let recalls = recall.iter().map(|at| (format!("recall@{}", at.k), at.recall));
    let means = [(format!("mAP@{k}"), Some(*map)), ("mAP@R".to_owned(), *map_at_r)];
    let means = means.into_iter().filter_map(|(name, mean)| Some((name, mean?)));
    let all = recalls.chain(means).map(|(name, share)| format!("{name} {:.2} %", 100.0 * share));
    all.collect::<Vec<_>>().join(", ")
}
