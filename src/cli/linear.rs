//! `instdisc linear`.

use anyhow::bail;
use clap::{Args, ValueEnum};

use super::GlobalArgs;
use super::exit::usage;
use super::progress::Terminal;
use super::ranks::{RankFlags, tell};
use crate::commands::{LinearJob, LinearRun, linear, linear_of_run, usual_memory_limit};
use crate::eval::{LinearOptions, LinearReport, ProbeReport, Solver};
use crate::model::FeatureLayer;
use crate::run_config::DeviceChoice;
use crate::units::{ByteSize, Fraction};

/// Evaluate features by training a linear classifier on them.
///
/// Multinomial logistic regression on frozen features of tables or of a run's checkpoint. One call evaluates several
/// layers, such as the paper's conv1 to conv5. A tenth of the training rows decides the sweep over --lr and
/// --weight-decay; the evaluated split is used once.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  instdisc linear --run runs/r50 --dataset data/in1k --split val \\
    --feature conv1,conv2,conv3,conv4,conv5,pooled
  instdisc linear --run runs/r50 --dataset data/in1k --label-fraction 0.01
  instdisc linear --train train.arrow --test val.arrow --solver sgd --lr 30,3,0.3")]
pub(super) struct LinearArgs {
    /// Feature table to train on; repeatable, with equally many --test
    #[arg(long, value_name = "URL", requires = "test", required_unless_present = "run")]
    train: Vec<String>,
    /// Feature table to evaluate
    #[arg(long, value_name = "URL", requires = "train")]
    test: Vec<String>,
    /// Run, for its newest checkpoint, or checkpoint; the run's eval/features keeps the features
    #[arg(long, value_name = "URL", conflicts_with_all = ["train", "test"], requires = "dataset")]
    run: Option<String>,
    /// Dataset of --run
    #[arg(long, value_name = "URL", requires = "run")]
    dataset: Option<String>,
    /// Split that --run evaluates on [default: the first of val, valid, validation, dev, test and testing]
    #[arg(long, value_name = "NAME", requires = "run")]
    split: Option<String>,
    /// Split to train on; needed if the run was trained on another dataset [default: that of the run]
    #[arg(long, value_name = "NAME", requires = "run")]
    train_split: Option<String>,
    /// Layers, separated by commas, the headline first: projection, pooled, conv1 to conv5
    #[arg(long, value_name = "LAYERS", value_delimiter = ',', default_value = "pooled", requires = "run")]
    feature: Vec<FeatureLayer>,
    /// Train on the same uniform sample of N images as train --limit; 0 for all [default: the run's training images]
    #[arg(long, value_name = "N", requires = "run", conflicts_with = "label_fraction")]
    limit: Option<u64>,
    /// Train on this fraction of the labels, with equal counts for each class
    #[arg(long, value_name = "SHARE", value_parser = super::label_fraction)]
    label_fraction: Option<Fraction>,
    /// Seed of the label selection
    #[arg(long, value_name = "N", default_value_t = 0, requires = "label_fraction")]
    label_seed: u64,
    /// Train on new crops and flips in each epoch; needs --run and --solver sgd
    #[arg(long, requires = "run")]
    augment: bool,
    /// lbfgs: all rows at once, to the minimum; sgd: in steps [default: lbfgs, or sgd with --augment]
    #[arg(long, value_enum, value_name = "NAME")]
    solver: Option<SolverName>,
    /// Learning rates for sgd, separated by commas; each is tried with each weight decay
    #[arg(long, value_name = "RATES", value_delimiter = ',', default_value = "30,3,0.3,0.03")]
    lr: Vec<f64>,
    /// Weight decays, separated by commas; scikit-learn's C is 1 / (decay × rows)
    #[arg(long, value_name = "DECAYS", value_delimiter = ',', default_value = "1e-3,1e-4,1e-5,1e-6")]
    weight_decay: Vec<f64>,
    /// Passes over the rows, for sgd
    #[arg(long, value_name = "N", default_value_t = 100)]
    epochs: u64,
    /// Rows per step, for sgd
    #[arg(long, value_name = "N", default_value_t = 256)]
    batch_size: usize,
    /// Maximum steps, for lbfgs
    #[arg(long, value_name = "N", default_value_t = 1000)]
    iterations: usize,
    /// Scale each number of the features to mean 0 and variance 1
    #[arg(long)]
    standardize: bool,
    /// Seed of the order of rows and of the held-out rows
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// File of the report (.json); stdout then gets a line of scores [default: stdout, and the run's eval
    /// folder for --run]
    #[arg(long, value_name = "URL")]
    output: Option<String>,
    /// Decoding threads; 0 for one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Device: auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: DeviceChoice,
    /// Memory of this process for features; a larger table is read again in each pass [default: half of the
    /// machine's, divided by the processes]
    #[arg(long, value_name = "BYTES")]
    memory_limit: Option<ByteSize>,
    #[command(flatten)]
    ranks: RankFlags,
}

/// Names of [`Solver`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum SolverName {
    Lbfgs,
    Sgd,
}

pub(super) fn run(global: &GlobalArgs, args: &LinearArgs) -> anyhow::Result<()> {
    let solver = match args.solver {
        Some(SolverName::Lbfgs) => Solver::Lbfgs,
        Some(SolverName::Sgd) => Solver::Sgd,
        None if args.augment => Solver::Sgd,
        None => Solver::Lbfgs,
    };
    let rendezvous = args.ranks.rendezvous()?;
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
        local_rank: rendezvous.local_rank(),
        memory_limit: args
            .memory_limit
            .map_or_else(|| usual_memory_limit(rendezvous.world()), |limit| limit.0),
    };
    options.validate()?;
    if args.label_fraction.is_some() && args.seed > 0 && args.label_seed == 0 {
        tracing::warn!("--seed {} does not choose labels; --label-seed does", args.seed);
    }
    let job = LinearJob {
        options,
        label_fraction: args.label_fraction,
        label_seed: args.label_seed,
        output: args.output.as_ref().map(|output| global.output(output)).transpose()?,
    };
    let lines = |report: &LinearReport| report.all().map(line).collect::<Vec<_>>();
    let Some(run) = &args.run else {
        if args.train.len() != args.test.len() {
            bail!(usage("there are as many --train as --test"));
        }
        let pairs = args.train.iter().zip(&args.test);
        let pairs = pairs.map(|(train, test)| anyhow::Ok((global.location(train)?, global.location(test)?)));
        let pairs = pairs.collect::<Result<Vec<_>, _>>()?;
        let group = args.ranks.join(&rendezvous)?;
        let report = linear(&pairs, &job, &group, &Terminal::of_rank(group.is_first()));
        let Some(report) = tell(&group, report.map_err(Into::into))? else { return Ok(()) };
        return super::print_report(global, args.output.as_ref(), &lines(&report), &report);
    };
    let run = LinearRun {
        run: global.location(run)?,
        dataset: global.location(args.dataset.as_deref().unwrap_or_default())?,
        split: args.split.clone(),
        train_split: args.train_split.clone(),
        layers: args.feature.clone(),
        limit: args.limit,
        augment: args.augment,
        threads: args.threads,
    };
    let group = args.ranks.join(&rendezvous)?;
    let report = linear_of_run(&run, &job, &group, &Terminal::of_rank(group.is_first()));
    let Some(report) = tell(&group, report.map_err(Into::into))? else { return Ok(()) };
    super::print_report_of_run(global, args.output.as_ref(), lines, &report)
}

/// Formats the scores of a report on one line.
fn line(report: &ProbeReport) -> String {
    let ProbeReport { step, train_rows, feature, .. } = report;
    let (top1, top5) = (100.0 * report.top1, 100.0 * report.top5);
    let end = if report.converged { "" } else { "; not converged, more `--iterations` may help" };
    format!("step {step}: top-1 {top1:.2} %, top-5 {top5:.2} % (linear on {train_rows} rows, {feature}{end})")
}
