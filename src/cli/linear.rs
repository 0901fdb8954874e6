//! `instdisc linear`.

use std::collections::BTreeSet;

use anyhow::bail;
use clap::{Args, ValueEnum};

use super::exit::{WrongData, WrongUsage};
use super::progress::{Terminal, say};
use super::reports::{Published, made_before, show_again};
use super::{GlobalArgs, write_stdout};
use crate::checkpoint::{Checkpoint, checkpoint_at, run_of};
use crate::dataset::{Manifest, write_label_subset};
use crate::distributed::ProcessGroup;
use crate::eval::{
    AugmentedJob, LinearOptions, LinearReport, ProbeReport, RowChoice, RunTables, Solver, probe,
    probe_augmented, run_tables,
};
use crate::feature_table::FeatureTable;
use crate::ids::{ClassId, InstanceId};
use crate::loader::{SubsetRecord, balanced_rows};
use crate::model::FeatureLayer;
use crate::run_config::DeviceChoice;
use crate::storage::{Digest, Location, PublishMode};
use crate::units::Fraction;

/// Digits of the digest of a protocol in a report's name.
const PROTOCOL_DIGITS: usize = 6;
/// Images of a batch when rows are embedded.
const BATCH_SIZE: usize = 256;

/// Evaluate features by a linear classifier that is trained on them.
///
/// Multinomial logistic regression on frozen features, of feature tables or of a run's newest checkpoint; of
/// several layers, such as the paper's conv1 to conv5, in one call. The sweep over --lr and --weight-decay is
/// decided by a tenth of the training rows, and the split that is evaluated is looked at once.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  instdisc linear --run runs/r50 --dataset data/in1k --split val \\\n    --feature conv1,conv2,conv3,conv4,conv5,pooled\n  instdisc linear --run runs/r50 --dataset data/in1k --label-fraction 0.01\n  instdisc linear --train train.arrow --test val.arrow --solver sgd --lr 30,3,0.3"
)]
pub(super) struct LinearArgs {
    /// A feature table to train on; may be repeated, with as many --test
    #[arg(long, value_name = "URL", requires = "test", required_unless_present = "run")]
    train: Vec<String>,
    /// The feature table that is evaluated
    #[arg(long, value_name = "URL", requires = "train")]
    test: Vec<String>,
    /// A run: the features are those of its newest checkpoint, embedded once and kept in its eval/features
    #[arg(long, value_name = "URL", conflicts_with_all = ["train", "test"], requires = "dataset")]
    run: Option<String>,
    /// The dataset of --run
    #[arg(long, value_name = "URL", requires = "run")]
    dataset: Option<String>,
    /// The split that --run evaluates on [default: the first of val, valid, validation, dev, test and testing]
    #[arg(long, value_name = "NAME", requires = "run")]
    split: Option<String>,
    /// The split that is trained on [default: that of the run]
    #[arg(long, value_name = "NAME", requires = "run")]
    train_split: Option<String>,
    /// Layers, with commas between: projection, pooled, conv1 to conv5; the first is the headline
    #[arg(long, value_name = "LAYERS", value_delimiter = ',', default_value = "pooled", requires = "run")]
    feature: Vec<FeatureLayer>,
    /// Train on a uniform sample of N images, the one that train --limit takes; 0 for all [default: those that the
    /// run was trained on]
    #[arg(long, value_name = "N", requires = "run", conflicts_with = "label_fraction")]
    limit: Option<u64>,
    /// Train on this share of the labels, the same number for each class
    #[arg(long, value_name = "SHARE")]
    label_fraction: Option<Fraction>,
    /// The seed by which labels are chosen
    #[arg(long, value_name = "N", default_value_t = 0, requires = "label_fraction")]
    label_seed: u64,
    /// Train on other crops and mirror images in each epoch (with --run and --solver sgd)
    #[arg(long, requires = "run")]
    augment: bool,
    /// lbfgs: all rows at once, to the minimum; sgd: in steps. [default: lbfgs, with --augment sgd]
    #[arg(long, value_enum, value_name = "NAME")]
    solver: Option<SolverName>,
    /// Learning rates (sgd); each is tried with each weight decay
    #[arg(long, value_name = "RATES", value_delimiter = ',', default_value = "30,3,0.3,0.03")]
    lr: Vec<f64>,
    /// Weight decays; scikit-learn's C is 1 / (decay × rows)
    #[arg(long, value_name = "DECAYS", value_delimiter = ',', default_value = "1e-3,1e-4,1e-5,1e-6")]
    weight_decay: Vec<f64>,
    /// Passes over the rows (sgd)
    #[arg(long, value_name = "N", default_value_t = 100)]
    epochs: u64,
    /// Rows of a step (sgd)
    #[arg(long, value_name = "N", default_value_t = 256)]
    batch_size: usize,
    /// Steps at most (lbfgs)
    #[arg(long, value_name = "N", default_value_t = 1000)]
    iterations: usize,
    /// Bring each number of the features to mean 0 and variance 1 first
    #[arg(long)]
    standardize: bool,
    /// The seed of the order of rows, and of those held out
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// The report's place (.json); stdout then has a line of scores [default: stdout alone, or the run's eval folder
    /// and stdout]
    #[arg(long, value_name = "URL")]
    output: Option<String>,
    /// Threads that decode; 0 for one on each core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Where to compute: auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: DeviceChoice,
}

/// See [`Solver`].
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum SolverName {
    Lbfgs,
    Sgd,
}

/// Reports, and the labels that were used where not all were.
type Probed = (Vec<ProbeReport>, Option<Labels>);

/// Which labels were used.
struct Labels {
    ids: Vec<InstanceId>,
    labels: Vec<Option<ClassId>>,
}

pub(super) fn run(global: &GlobalArgs, args: &LinearArgs) -> anyhow::Result<()> {
    let solver = match args.solver {
        Some(SolverName::Lbfgs) => Solver::Lbfgs,
        Some(SolverName::Sgd) => Solver::Sgd,
        None if args.augment => Solver::Sgd,
        None => Solver::Lbfgs,
    };
    let options = LinearOptions {
        solver,
        lr: args.lr.clone(),
        weight_decay: args.weight_decay.clone(),
        epochs: args.epochs,
        batch_size: args.batch_size,
        iterations: args.iterations,
        standardize: args.standardize,
        seed: args.seed,
        device: args.device,
    };
    options.validate()?;
    if args.label_fraction.is_some() && args.seed > 0 && args.label_seed == 0 {
        tracing::warn!("--seed {} does not choose labels; --label-seed does", args.seed);
    }
    let mut output = args.output.as_ref().map(|output| global.location(output)).transpose()?;
    let mut weights = None;
    let (reports, labels) = match &args.run {
        Some(place) => {
            let of_run = OfRun::open(global, args, place)?;
            if output.is_none() {
                let place = of_run.report(args, &options);
                let digest = of_run.manifest.dataset_digest.to_string();
                if let Some(report) = made_before(&place, &of_run.checkpoint.weights_digest(), &digest)? {
                    return show_again(global, &place, &report);
                }
                output = Some(place);
            }
            weights = Some(of_run.checkpoint.weights_digest());
            of_run.probe(args, &options)?
        }
        None => of_tables(global, args, &options)?,
    };
    let record = labels.as_ref().map(|labels| SubsetRecord::new(&labels.ids, &labels.labels));
    let marked = |report| ProbeReport {
        label_fraction: args.label_fraction,
        label_seed: args.label_fraction.map(|_| args.label_seed),
        labels: record.clone(),
        ..report
    };
    let mut reports = reports.into_iter().map(marked);
    let Some(first) = reports.next() else {
        bail!(WrongUsage("no feature to evaluate".into()));
    };
    let report = LinearReport { first, other_features: reports.collect() };
    let all = std::iter::once(&report.first).chain(&report.other_features);
    let notes: BTreeSet<_> = all.flat_map(|report| &report.notes).collect();
    notes.iter().for_each(|note| tracing::warn!("{note}"));
    if let Some(output) = &output {
        if let Some(Labels { ids, labels }) = &labels {
            let name = format!("{}-labels.parquet", output.file_name().trim_end_matches(".json"));
            if let Some(folder) = output.folder() {
                write_label_subset(&folder, &name, ids, labels)?;
            }
        }
        let published = Published { report: &report, weights: weights.as_deref() };
        output.publish(serde_json::to_string_pretty(&published)? + "\n", PublishMode::Overwrite)?;
        say(&format!("report {output}"));
    }
    let all = std::iter::once(&report.first).chain(&report.other_features);
    let lines: Vec<String> = all.map(line).collect();
    if args.output.is_none() {
        return global.write_result(&lines, &report);
    }
    write_stdout((lines.join("\n") + "\n").as_bytes())
}

/// A report for people.
fn line(report: &ProbeReport) -> String {
    let ProbeReport { step, train_rows, feature, .. } = report;
    let (top1, top5) = (100.0 * report.top1, 100.0 * report.top5);
    let end = if report.converged { "" } else { "; not converged, more `--iterations` may help" };
    format!("step {step}: top-1 {top1:.2} %, top-5 {top5:.2} % (linear on {train_rows} rows, {feature}{end})")
}

fn of_tables(global: &GlobalArgs, args: &LinearArgs, options: &LinearOptions) -> anyhow::Result<Probed> {
    if args.train.len() != args.test.len() {
        bail!(WrongUsage("there are as many --train as --test".into()));
    }
    let (mut reports, mut labels) = (Vec::new(), None);
    for (train, test) in args.train.iter().zip(&args.test) {
        let mut train = FeatureTable::read(&global.location(train)?)?;
        if let Some(fraction) = args.label_fraction {
            train = chosen(&train, &balanced_rows(&train.ids, &train.labels, fraction, args.label_seed));
            labels = Some(Labels { ids: train.ids.clone(), labels: train.labels.clone() });
        }
        let test = FeatureTable::read(&global.location(test)?)?;
        reports.push(probe(&train, &test, options, &Terminal::default())?);
    }
    Ok((reports, labels))
}

fn chosen(table: &FeatureTable, rows: &[usize]) -> FeatureTable {
    FeatureTable {
        meta: table.meta.clone(),
        ids: rows.iter().map(|&row| table.ids[row]).collect(),
        labels: rows.iter().map(|&row| table.labels[row]).collect(),
        updated_step: rows.iter().map(|&row| table.updated_step[row]).collect(),
        features: rows.iter().flat_map(|&row| table.feature(row)).copied().collect(),
    }
}

/// A checkpoint of a run, and the splits of the dataset.
struct OfRun {
    run: Location,
    checkpoint: Checkpoint,
    dataset: Location,
    manifest: Manifest,
    split: String,
    train_split: String,
}

impl OfRun {
    fn open(global: &GlobalArgs, args: &LinearArgs, place: &str) -> anyhow::Result<Self> {
        let place = global.location(place)?;
        let dataset = global.location(args.dataset.as_deref().unwrap_or_default())?;
        let (_, folder) = checkpoint_at(&place)?;
        let (checkpoint, manifest) = (Checkpoint::open(&folder)?, Manifest::read(&dataset)?);
        let trained_on = &checkpoint.manifest().trained_on.split;
        let train_split = args.train_split.as_ref().unwrap_or(trained_on).clone();
        Ok(Self {
            run: run_of(&place)?,
            split: manifest.evaluation_split(&dataset, &train_split, args.split.as_deref())?,
            train_split,
            checkpoint,
            dataset,
            manifest,
        })
    }

    /// The place of the report, called by what it is of.
    fn report(&self, args: &LinearArgs, options: &LinearOptions) -> Location {
        let layers: Vec<String> = args.feature.iter().map(ToString::to_string).collect();
        let mut name = format!("eval/linear-{}-{}", self.split, layers.join("_"));
        if self.train_split != self.checkpoint.manifest().trained_on.split {
            name += &format!("-from-{}", self.train_split);
        }
        if let Some(fraction) = args.label_fraction {
            name += &format!("-labels-{fraction}");
            if args.label_seed > 0 {
                name += &format!("-seed-{}", args.label_seed);
            }
        }
        if let Some(limit) = args.limit {
            name += &format!("-limit-{limit}");
        }
        if args.augment {
            name += "-augmented";
        }
        // The rest are many numbers: any difference gives another name.
        let protocol = Digest::of(options.protocol().to_string().as_bytes()).to_string();
        let step = self.checkpoint.manifest().step;
        self.run.join(&format!("{name}-{}-step-{step:08}.json", &protocol[..PROTOCOL_DIGITS]))
    }

    fn probe(&self, args: &LinearArgs, options: &LinearOptions) -> anyhow::Result<Probed> {
        for name in [&self.train_split, &self.split] {
            if self.manifest.split(&self.dataset, name)?.labelled == 0 {
                let reason =
                    format!("{}: split `{name}` has no labels, which linear learns from", self.dataset);
                return Err(WrongData(reason).into());
            }
        }
        let Self { run, checkpoint, dataset, manifest, train_split, .. } = self;
        let rows = match (args.label_fraction, args.limit) {
            (Some(fraction), _) => RowChoice::Labels { fraction, seed: args.label_seed },
            (None, Some(limit)) => RowChoice::limited(limit),
            (None, None) if *train_split == checkpoint.manifest().trained_on.split => {
                RowChoice::trained(checkpoint)?
            }
            (None, None) => RowChoice::All,
        };
        if let (None, None, RowChoice::Sample(rows)) = (args.label_fraction, args.limit, rows) {
            say(&format!("trained on the {rows} images of the run's own sample; --limit 0 takes all"));
        }
        let progress = Terminal::default();
        let tables = |split: &str, rows: RowChoice| {
            let job = RunTables {
                run: run.clone(),
                checkpoint: checkpoint.clone(),
                dataset: dataset.clone(),
                manifest: manifest.clone(),
                split: split.to_owned(),
                rows,
                layers: args.feature.clone(),
                batch_size: BATCH_SIZE,
                threads: args.threads,
                device: args.device,
                local_rank: 0,
            };
            run_tables(&job, &ProcessGroup::alone(), &progress)
        };
        let tests = tables(&self.split, RowChoice::All)?;
        let labels_of = |ids: &[InstanceId], labels: &[Option<ClassId>]| {
            args.label_fraction.map(|_| Labels { ids: ids.to_vec(), labels: labels.to_vec() })
        };
        if args.augment {
            let job = AugmentedJob {
                checkpoint: checkpoint.clone(),
                dataset: dataset.clone(),
                manifest: manifest.clone(),
                train_split: train_split.clone(),
                rows,
                layers: args.feature.clone(),
                batch_size: BATCH_SIZE,
                threads: args.threads,
            };
            let tests = tests.iter().map(FeatureTable::read).collect::<Result<Vec<_>, _>>()?;
            let reports = probe_augmented(&job, &tests, options, &progress)?;
            let source = rows.open(dataset, manifest, train_split)?;
            return Ok((reports, labels_of(source.ids(), source.labels())));
        }
        let (mut reports, mut labels) = (Vec::new(), None);
        for (train, test) in tables(train_split, rows)?.iter().zip(&tests) {
            let train = FeatureTable::read(train)?;
            labels = labels_of(&train.ids, &train.labels);
            reports.push(probe(&train, &FeatureTable::read(test)?, options, &progress)?);
        }
        Ok((reports, labels))
    }
}
