//! `linear`: scores features by a linear classifier that is trained on them.

use std::collections::BTreeSet;

use super::run::{Machine, RunDataset};
use super::{CommandError, Report, reports};
use crate::checkpoint::{Checkpoint, checkpoint_at, run_of};
use crate::dataset::write_label_subset;
use crate::distributed::ProcessGroup;
use crate::eval::{LinearOptions, LinearReport, ProbeReport, RowChoice, probe, probe_augmented, run_tables};
use crate::feature_table::FeatureTable;
use crate::ids::{ClassId, InstanceId};
use crate::loader::{SubsetRecord, balanced_rows};
use crate::model::FeatureLayer;
use crate::progress::Progress;
use crate::storage::{Digest, Location, PublishMode};
use crate::units::Fraction;

/// Digits of the digest of a protocol in a report's name.
const PROTOCOL_DIGITS: usize = 6;

/// How to train, and what to write.
#[derive(Clone, Debug)]
pub struct LinearJob {
    /// The protocol.
    pub options: LinearOptions,
    /// Train on this share of the labels, the same number for each class.
    pub label_fraction: Option<Fraction>,
    /// The seed that chooses labels.
    pub label_seed: u64,
    /// The report's file (`.json`). By default, tables get no file and a run's report goes to its `eval/`.
    pub output: Option<Location>,
}

/// A run to evaluate.
#[derive(Clone, Debug)]
pub struct LinearRun {
    /// The run's folder, for its newest checkpoint, or the folder of a checkpoint.
    pub run: Location,
    /// The dataset's folder; one that the run was not trained on needs a `train_split`.
    pub dataset: Location,
    /// The evaluated split; by default the dataset's first evaluation split other than the one that is trained on.
    pub split: Option<String>,
    /// The split to train on; by default the one that the run was trained on.
    pub train_split: Option<String>,
    /// The layers; the first is the headline.
    pub layers: Vec<FeatureLayer>,
    /// Train on a uniform sample of this many images, 0 for all; by default on the run's own.
    pub limit: Option<u64>,
    /// Train on new crops and mirror images in each epoch.
    pub augment: bool,
    /// Threads that decode; 0 for one per core.
    pub threads: usize,
}

/// A report for each feature, and the labels that were used if not all.
type Probed = (Vec<ProbeReport>, Option<Labels>);

/// The labels that were used.
struct Labels {
    ids: Vec<InstanceId>,
    labels: Vec<Option<ClassId>>,
}

/// Evaluates pairs of feature tables: one to train on, and one to evaluate.
///
/// # Errors
/// If tables cannot be read, do not fit together or have no labels, or the store fails.
pub fn linear(
    pairs: &[(Location, Location)],
    job: &LinearJob,
    progress: &dyn Progress,
) -> Result<LinearReport, CommandError> {
    let (mut probed, mut labels) = (Vec::new(), None);
    for (train, test) in pairs {
        let mut train = FeatureTable::read(train)?;
        if let Some(fraction) = job.label_fraction {
            train = chosen(&train, &balanced_rows(&train.ids, &train.labels, fraction, job.label_seed));
            labels = Some(Labels { ids: train.ids.clone(), labels: train.labels.clone() });
        }
        probed.push(probe(&train, &FeatureTable::read(test)?, &job.options, progress)?);
    }
    finish(job, (probed, labels), job.output.as_ref(), None, progress)
}

/// Evaluates the newest checkpoint of a run, or one checkpoint.
///
/// Without an output, the report goes to the run's `eval/`, and an existing report of the same weights and dataset is
/// returned instead of a new one.
///
/// # Errors
/// If checkpoint or dataset cannot be read or do not fit together, a split has no labels, or the store fails.
pub fn linear_of_run(
    of: &LinearRun,
    job: &LinearJob,
    progress: &dyn Progress,
) -> Result<Report<LinearReport>, CommandError> {
    let run = RunEvaluation::open(of, job)?;
    let weights = run.checkpoint.weights_digest();
    let output = match &job.output {
        Some(output) => output.clone(),
        None => {
            let location = run.report_location()?;
            if let Some(report) = reports::find(&location, &weights, &run.dataset.digest())? {
                return Ok(Report::Kept { location, report });
            }
            location
        }
    };
    let probed = run.probe(progress)?;
    finish(job, probed, Some(&output), Some((&run.checkpoint, &run.dataset)), progress).map(Report::New)
}

/// Publishes the report and the labels that were used.
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
        // A run's tables may name the dataset as it was before a split was added.
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
            && let Some(folder) = output.folder()
        {
            let name = format!("{}-labels.parquet", output.file_name().trim_end_matches(".json"));
            write_label_subset(&folder, &name, ids, labels)?;
        }
        let weights = checkpoint.map(|(checkpoint, _)| checkpoint.weights_digest());
        let trained_on = checkpoint.and_then(|(checkpoint, dataset)| dataset.other_trained_on(checkpoint));
        reports::publish(output, &report, weights.as_deref(), trained_on, PublishMode::Overwrite)?;
        progress.note(&format!("report {output}"));
    }
    Ok(report)
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
struct RunEvaluation<'a> {
    of: &'a LinearRun,
    job: &'a LinearJob,
    checkpoint: Checkpoint,
    dataset: RunDataset,
    train_split: String,
}

impl<'a> RunEvaluation<'a> {
    fn open(of: &'a LinearRun, job: &'a LinearJob) -> Result<Self, CommandError> {
        let (_, folder) = checkpoint_at(&of.run)?;
        let checkpoint = Checkpoint::open(&folder)?;
        let trained_on = &checkpoint.manifest().trained_on.split;
        let train_split = of.train_split.as_ref().unwrap_or(trained_on).clone();
        let dataset = RunDataset::open(&of.dataset, &train_split, of.split.as_deref())?;
        Ok(Self { of, job, checkpoint, dataset, train_split })
    }

    /// The folder of reports and features.
    fn folder(&self) -> Result<Location, CommandError> {
        self.dataset.folder(&run_of(&self.of.run)?, &self.checkpoint, self.of.train_split.as_deref())
    }

    /// The report's file in the run, with the options that differ from the defaults in its name.
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
        // The rest are many numbers: any difference gives another name.
        let protocol = Digest::of(job.options.protocol().to_string().as_bytes()).to_string();
        let step = self.checkpoint.manifest().step;
        let name = format!("{name}-{}-step-{step:08}.json", &protocol[..PROTOCOL_DIGITS]);
        Ok(self.folder()?.join(&name))
    }

    fn probe(&self, progress: &dyn Progress) -> Result<Probed, CommandError> {
        let Self { of, job, checkpoint, dataset, train_split } = self;
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
        let machine = Machine { threads: of.threads, device: job.options.device, local_rank: 0 };
        let training = dataset.embedding(checkpoint, train_split, rows, machine);
        let evaluated = dataset.embedding(checkpoint, &dataset.split, RowChoice::All, machine);
        let group = ProcessGroup::alone();
        let tests = run_tables(&evaluated, &features, &of.layers, &group, progress)?;
        let labels_of = |ids: &[InstanceId], labels: &[Option<ClassId>]| {
            job.label_fraction.map(|_| Labels { ids: ids.to_vec(), labels: labels.to_vec() })
        };
        if of.augment {
            let tests = tests.iter().map(FeatureTable::read).collect::<Result<Vec<_>, _>>()?;
            let probed = probe_augmented(&training, &of.layers, &tests, &job.options, progress)?;
            let source = rows.open(&dataset.location, &dataset.manifest, train_split)?;
            return Ok((probed, labels_of(source.ids(), source.labels())));
        }
        let (mut probed, mut labels) = (Vec::new(), None);
        let trained = run_tables(&training, &features, &of.layers, &group, progress)?;
        for (train, test) in trained.iter().zip(&tests) {
            let train = FeatureTable::read(train)?;
            labels = labels_of(&train.ids, &train.labels);
            probed.push(probe(&train, &FeatureTable::read(test)?, &job.options, progress)?);
        }
        Ok((probed, labels))
    }
}
