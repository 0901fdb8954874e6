//! `linear`: scores features by training a linear classifier on them. Rank 0 of several processes publishes.

use std::collections::BTreeSet;

use super::run::{Machine, RunDataset};
use super::{CommandError, Report, reports};
use crate::checkpoint::{Checkpoint, checkpoint_at, run_of};
use crate::dataset::write_label_subset;
use crate::distributed::ProcessGroup;
use crate::eval::{
    LinearOptions, LinearReport, ProbeReport, ProbeTables, RowChoice, check_whole, probe, probe_augmented,
    run_tables,
};
use crate::feature_table::{StoredTable, Table, TableError, open_table};
use crate::ids::{ClassId, InstanceId};
use crate::loader::{SubsetRecord, balanced_rows};
use crate::model::FeatureLayer;
use crate::progress::Progress;
use crate::storage::{Digest, Location, PublishMode};
use crate::units::Fraction;

/// Digits of a protocol's digest in a report's name.
const PROTOCOL_DIGITS: usize = 6;

/// Options and output of an evaluation.
#[derive(Clone, Debug)]
pub struct LinearJob {
    /// Training protocol.
    pub options: LinearOptions,
    /// Fraction of the labels to train on, with equal counts for each class.
    pub label_fraction: Option<Fraction>,
    /// Seed of the label selection.
    pub label_seed: u64,
    /// File of the report (`.json`). By default tables get no file, and a run's report goes to its `eval/`.
    pub output: Option<Location>,
}

/// Linear evaluation of a run.
#[derive(Clone, Debug)]
pub struct LinearRun {
    /// Folder of the run, for its newest checkpoint, or of a checkpoint.
    pub run: Location,
    /// Folder of the dataset; a dataset that the run was not trained on requires `train_split`.
    pub dataset: Location,
    /// Split to evaluate; by default the dataset's first evaluation split other than the training split.
    pub split: Option<String>,
    /// Split to train on; by default the one that the run was trained on.
    pub train_split: Option<String>,
    /// Layers to evaluate; the first is the headline.
    pub layers: Vec<FeatureLayer>,
    /// Number of training images, sampled uniformly, 0 for all; by default the run's own images.
    pub limit: Option<u64>,
    /// Whether to train on new crops and flips in each epoch.
    pub augment: bool,
    /// Decoding threads; 0 for one per core.
    pub threads: usize,
}

/// On rank 0 a report for each feature, and the labels used unless all were.
type Probed = (Vec<ProbeReport>, Option<Labels>);

/// Key under which rank 0 announces that everything is published.
const PUBLISHED: &str = "linear/published";

/// Selected labels.
struct Labels {
    ids: Vec<InstanceId>,
    labels: Vec<Option<ClassId>>,
}

/// Evaluates pairs of feature tables, one for training and one for evaluation. Rank 0 returns the report.
///
/// # Errors
/// If tables cannot be read, do not belong together or have no labels, or the store fails.
pub fn linear(
    pairs: &[(Location, Location)],
    job: &LinearJob,
    group: &ProcessGroup,
    progress: &dyn Progress,
) -> Result<Option<LinearReport>, CommandError> {
    agree(job, group)?;
    let (mut probed, mut labels) = (Vec::new(), None);
    for (number, (train, test)) in pairs.iter().enumerate() {
        let names = [format!("--train {train}"), format!("--test {test}")];
        let (train, test) = (open(train)?, open(test)?);
        group.agree("the table to train on", &format!("{:?}, {} rows", train.meta(), train.rows()))?;
        group.agree("the table to evaluate", &format!("{:?}, {} rows", test.meta(), test.rows()))?;
        let among = job.label_fraction.map(|fraction| {
            let (ids, labels) = (train.ids().collect::<Vec<_>>(), train.labels().collect::<Vec<_>>());
            balanced_rows(&ids, &labels, fraction, job.label_seed)
        });
        labels = among.as_ref().map(|rows| Labels {
            ids: rows.iter().map(|&row| train.id(row)).collect(),
            labels: rows.iter().map(|&row| train.label(row)).collect(),
        });
        let (among, names) = (among.as_deref(), names.each_ref().map(String::as_str));
        let tables = ProbeTables { train: &*train, among, test: &*test, names, number };
        probed.extend(probe(tables, &job.options, group, progress)?);
    }
    let finished = || finish(job, (probed, labels), job.output.as_ref(), None, progress);
    first_of(group, finished)
}

/// Opens a table with the format's columns only, as classes of two other programs' tables may differ.
fn open(place: &Location) -> Result<Box<dyn Table>, CommandError> {
    check_whole(place)?;
    let (table, _) = open_table(place, None)?;
    if table.rows() == 0 {
        return Err(TableError::Empty { table: place.to_string() }.into());
    }
    Ok(table)
}

/// Evaluates the newest checkpoint of a run, or one checkpoint. Rank 0 returns the report.
///
/// Without an output, the report goes to the run's `eval/`, and an existing report of the same weights and dataset is
/// returned instead of a new one.
///
/// # Errors
/// If checkpoint or dataset cannot be read or do not belong together, a split has no labels, or the store fails.
pub fn linear_of_run(
    of: &LinearRun,
    job: &LinearJob,
    group: &ProcessGroup,
    progress: &dyn Progress,
) -> Result<Option<Report<LinearReport>>, CommandError> {
    agree(job, group)?;
    let run = RunEvaluation::open(of, job, group)?;
    let weights = run.checkpoint.weights_digest();
    group.agree("the checkpoint", &weights)?;
    let output = match &job.output {
        Some(output) => output.clone(),
        None => run.report_location()?,
    };
    // Only rank 0 looks, as the others might find the report that it has just published.
    let kept = if job.output.is_none() && group.is_first() {
        let is_whole = job.label_fraction.is_none()
            || labels_beside(&output).map_or(Ok(true), |at| reports::is_made(&at))?;
        reports::find(&output, &weights, &run.dataset.digest())?.filter(|_| is_whole)
    } else {
        None
    };
    let is_kept = group.gather_bytes(&[u8::from(kept.is_some())])?.swap_remove(0) == [1];
    if is_kept {
        return first_of(group, || Ok(kept.map(|report| Report::Kept { location: output, report })))
            .map(Option::flatten);
    }
    let probed = run.probe(progress)?;
    let of = Some((&run.checkpoint, &run.dataset));
    first_of(group, || finish(job, probed, Some(&output), of, progress).map(Report::New))
}

/// Checks that all processes have the same protocol.
fn agree(job: &LinearJob, group: &ProcessGroup) -> Result<(), CommandError> {
    let LinearJob { options, label_fraction, label_seed, output: _ } = job;
    let labels = (label_fraction.map(Fraction::get), label_seed);
    Ok(group.agree("the protocol", &format!("{}, labels {labels:?}", options.protocol()))?)
}

/// Runs `finish` on rank 0. The others wait for it without a collective, which would time out.
fn first_of<T>(
    group: &ProcessGroup,
    finish: impl FnOnce() -> Result<T, CommandError>,
) -> Result<Option<T>, CommandError> {
    let finished = if group.is_first() {
        let finished = finish()?;
        group.store().set(PUBLISHED, b"published")?;
        Some(finished)
    } else {
        group.store().wait_for(PUBLISHED)?;
        None
    };
    group.leave();
    Ok(finished)
}

/// Returns the file of the labels that a report used, in the same folder.
fn labels_beside(report: &Location) -> Option<Location> {
    report.with_file_name(&format!("{}-labels.parquet", report.file_name().trim_end_matches(".json")))
}

/// Publishes the report and the selected labels.
fn finish(
    job: &LinearJob,
    (probed, labels): Probed,
    output: Option<&Location>,
    checkpoint: Option<(&Checkpoint, &RunDataset)>,
    progress: &dyn Progress,
) -> Result<LinearReport, CommandError> {
    let record = labels.as_ref().map(|labels| SubsetRecord::new(&labels.ids, &labels.labels));
    let marked = |report: ProbeReport| ProbeReport {
        label_fraction: job.label_fraction,
        label_seed: job.label_fraction.map(|_| job.label_seed),
        labels: record.clone(),
        // A run's tables may have the dataset's digest from before a split was added.
        dataset_digest: checkpoint.map_or(report.dataset_digest, |(_, dataset)| dataset.digest()),
        ..report
    };
    let mut probed = probed.into_iter().map(marked);
    let Some(first) = probed.next() else {
        return Err(CommandError::Usage("no feature to evaluate".into()));
    };
    let report = LinearReport { first, other_features: probed.collect() };
    let notes: BTreeSet<_> = report.all().flat_map(|report| &report.notes).collect();
    notes.iter().for_each(|note| tracing::warn!("{note}"));
    if let Some(output) = output {
        if let Some(Labels { ids, labels }) = &labels
            && let (Some(folder), Some(file)) = (output.folder(), labels_beside(output))
        {
            write_label_subset(&folder, file.file_name(), ids, labels)?;
        }
        let of = checkpoint.map(|(checkpoint, dataset)| dataset.of_run(checkpoint)).unwrap_or_default();
        reports::publish(output, &report, &of, PublishMode::Overwrite)?;
        progress.note(&format!("report {output}"));
    }
    Ok(report)
}

/// Evaluation of a run's checkpoint, with the dataset's splits.
struct RunEvaluation<'a> {
    of: &'a LinearRun,
    job: &'a LinearJob,
    group: &'a ProcessGroup,
    checkpoint: Checkpoint,
    dataset: RunDataset,
    train_split: String,
}

impl<'a> RunEvaluation<'a> {
    fn open(of: &'a LinearRun, job: &'a LinearJob, group: &'a ProcessGroup) -> Result<Self, CommandError> {
        let (_, folder) = checkpoint_at(&of.run)?;
        let checkpoint = Checkpoint::open(&folder)?;
        let trained_on = &checkpoint.manifest().trained_on.split;
        let train_split = of.train_split.as_ref().unwrap_or(trained_on).clone();
        let dataset = RunDataset::open(&of.dataset, &train_split, of.split.as_deref())?;
        Ok(Self { of, job, group, checkpoint, dataset, train_split })
    }

    /// Returns the folder of reports and features.
    fn folder(&self) -> Result<Location, CommandError> {
        self.dataset.folder(&run_of(&self.of.run)?, &self.checkpoint, self.of.train_split.as_deref())
    }

    /// Returns the file of the report in the run; its name has the options that differ from the defaults.
    fn report_location(&self) -> Result<Location, CommandError> {
        let Self { of, job, dataset, train_split, .. } = self;
        let layers: Vec<String> = of.layers.iter().map(ToString::to_string).collect();
        let mut name = format!("linear-{}-{}", dataset.split, layers.join("_"));
        if *train_split != self.checkpoint.manifest().trained_on.split {
            name += &format!("-from-{train_split}");
        }
        if let Some(fraction) = job.label_fraction {
            name += &format!("-labels-{fraction}");
            if job.label_seed > 0 {
                name += &format!("-seed-{}", job.label_seed);
            }
        }
        if let Some(limit) = of.limit {
            name += &format!("-limit-{limit}");
        }
        if of.augment {
            name += "-augmented";
        }
        // The other options are many numbers: any difference gives another name.
        let protocol = Digest::of(job.options.protocol().to_string().as_bytes()).to_string();
        let step = self.checkpoint.manifest().step;
        let name = format!("{name}-{}-step-{step:08}.json", &protocol[..PROTOCOL_DIGITS]);
        Ok(self.folder()?.join(&name))
    }

    fn probe(&self, progress: &dyn Progress) -> Result<Probed, CommandError> {
        let Self { of, job, group, checkpoint, dataset, train_split } = self;
        for split in [train_split, &dataset.split] {
            if dataset.manifest.split(&dataset.location, split)?.labelled == 0 {
                let location = &dataset.location;
                let reason = format!("{location}: split `{split}` has no labels, which linear learns from");
                return Err(CommandError::Data(reason));
            }
        }
        let rows = match (job.label_fraction, of.limit) {
            (Some(fraction), _) => RowChoice::Labels { fraction, seed: job.label_seed },
            (None, Some(limit)) => RowChoice::limited(limit),
            (None, None) => dataset.training_rows(checkpoint, train_split)?,
        };
        if let (None, None, RowChoice::Sample(rows)) = (job.label_fraction, of.limit, rows) {
            let line = format!("trained on the {rows} images of the run's own sample; --limit 0 takes all");
            progress.note(&line);
        }
        let features = self.folder()?.join("features");
        let LinearOptions { device, local_rank, memory_limit, .. } = job.options;
        let machine = Machine { threads: of.threads, device, local_rank, memory_limit };
        let training = dataset.embedding(checkpoint, train_split, rows, machine);
        let evaluated = dataset.embedding(checkpoint, &dataset.split, RowChoice::All, machine);
        let tests_at = run_tables(&evaluated, &features, &of.layers, group, progress)?;
        let tests = tests_at.iter().map(StoredTable::open).collect::<Result<Vec<_>, _>>()?;
        if of.augment {
            let probed = probe_augmented(&training, &of.layers, &tests, &job.options, group, progress)?;
            let source = rows.open(&dataset.location, &dataset.manifest, train_split)?;
            let (ids, labels) = (source.ids().to_vec(), source.labels().to_vec());
            let labels = job.label_fraction.map(|_| Labels { ids, labels });
            return Ok((probed.unwrap_or_default(), labels));
        }
        let (mut probed, mut labels) = (Vec::new(), None);
        let trained = run_tables(&training, &features, &of.layers, group, progress)?;
        for (number, ((train_at, test_at), test)) in trained.iter().zip(&tests_at).zip(&tests).enumerate() {
            let names = [train_at, test_at].map(Location::to_string);
            let train = StoredTable::open(train_at)?;
            let all: &dyn Table = &train;
            let all_labels = || Labels { ids: all.ids().collect(), labels: all.labels().collect() };
            labels = job.label_fraction.map(|_| all_labels());
            let names = names.each_ref().map(String::as_str);
            let tables = ProbeTables { train: &train, among: None, test, names, number };
            probed.extend(probe(tables, &job.options, group, progress)?);
        }
        Ok((probed, labels))
    }
}
