//! kNN of a run: embeds a split with a checkpoint's encoder, then votes.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use super::pair::KnnPair;
use super::{DEFAULT_MAP_POINTS, KnnJob, Place, Searchers, evaluate, page_beside};
use crate::checkpoint::{Checkpoint, checkpoint_at, run_of};
use crate::commands::reports::REPORTS;
use crate::commands::run::{Machine, RunDataset, usual_memory_limit};
use crate::commands::watch::{WatchOptions, WatchSummary, report_location, watch};
use crate::commands::{CommandError, Report, reports};
use crate::distributed::ProcessGroup;
use crate::eval::{
    EmbedError, EvalError, KnnOptions, KnnReports, MOST_BY_DEFAULT, RowChoice, checkpoint_bank, default_k,
    run_tables,
};
use crate::failure::Failure;
use crate::feature_table::{FeatureTable, StoredTable, Table};
use crate::model::FeatureLayer;
use crate::progress::Progress;
use crate::run_config::DeviceChoice;
use crate::storage::{Location, PublishMode, StorageError};

/// kNN evaluation of a run.
#[derive(Clone, Debug)]
pub struct KnnRun {
    /// Folder of the run, for its newest checkpoint, or of a checkpoint.
    pub run: Location,
    /// Folder of the dataset; a dataset that the run was not trained on requires `train_split`.
    pub dataset: Location,
    /// Split of the queries; by default the dataset's first evaluation split.
    pub split: Option<String>,
    /// Split that votes, for features other than the bank; by default the one that the run was trained on.
    pub train_split: Option<String>,
    /// Features to compare; the first is the headline.
    pub features: Vec<KnnFeature>,
    /// Number of this process on its machine; each process uses another CUDA device.
    pub local_rank: usize,
}

/// Vectors that vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnnFeature {
    /// Bank of the checkpoint, for queries by the projection.
    Bank,
    /// Layer with which both splits are embedded.
    Layer(FeatureLayer),
}

impl KnnFeature {
    /// Returns the layer that embeds the queries.
    fn layer(self) -> FeatureLayer {
        match self {
            Self::Bank => FeatureLayer::Projection,
            Self::Layer(layer) => layer,
        }
    }
}

impl fmt::Display for KnnFeature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bank => f.write_str("bank"),
            Self::Layer(layer) => layer.fmt(f),
        }
    }
}

impl FromStr for KnnFeature {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        if name == "bank" { Ok(Self::Bank) } else { name.parse().map(Self::Layer) }
    }
}

/// Evaluates the newest checkpoint of a run, or one checkpoint. Rank 0 returns the report.
///
/// Without an output, the report goes to the run's `eval/`, and an existing report of the same weights and dataset is
/// returned instead of a new one.
///
/// # Errors
/// If checkpoint or dataset cannot be read or do not belong together, or the store fails.
pub fn knn_of_run(
    of: &KnnRun,
    job: &KnnJob,
    group: &ProcessGroup,
    progress: &dyn Progress,
) -> Result<Option<Report<KnnReports>>, CommandError> {
    let run = RunEvaluation::open(of, job, group, progress)?;
    let (step, folder) = checkpoint_at(&of.run)?;
    group.agree("the newest checkpoint's step", &step.to_string())?;
    let checkpoint = Checkpoint::open(&folder)?;
    let weights = checkpoint.weights_digest();
    let eval = run.folder(&checkpoint)?;
    let default = run.default_k(&checkpoint)?;
    let location = match &job.output {
        Some(output) => output.clone(),
        None => report_location(&eval, &run.report_name(default), step),
    };
    // Reports kept from earlier calls do not include the neighbours' file.
    let is_plain = job.output.is_none() && job.neighbours.is_none();
    if is_plain && let Some(report) = run.kept(&location, &weights, default)? {
        group.leave();
        if let Some(page) = page_beside(&location) {
            progress.note(&format!("report {location}, page {page}"));
        }
        return Ok(group.is_first().then_some(Report::Kept { location, report }));
    }
    Ok(run.evaluate(&checkpoint, location, PublishMode::Overwrite, || Ok(()))?.map(Report::New))
}

/// Evaluates every checkpoint of a run without a report, and waits for more; calls `each` with the reports.
/// Several watchers share a run's checkpoints.
///
/// # Errors
/// If the dataset cannot be read, or the store fails. The summary lists damaged checkpoints.
pub fn watch_run(
    of: &KnnRun,
    job: &KnnJob,
    options: &WatchOptions,
    progress: &dyn Progress,
    mut each: impl FnMut(&KnnReports),
) -> Result<WatchSummary, CommandError> {
    let group = ProcessGroup::alone();
    let run = RunEvaluation::open(of, job, &group, progress)?;
    let name = |folder: &Location| run.report_name_of(folder);
    let is_damaged = |error: &CommandError| error.failure() == Failure::Data && !is_of_dataset(error);
    watch(&run.run, name, options, is_damaged, |step, folder, lock| {
        let checkpoint = Checkpoint::open(folder)?;
        if of.train_split.is_some() && run.dataset.other_trained_on(&checkpoint).is_some() {
            let reason =
                "--watch: the run was trained on another dataset; evaluate its checkpoints one by one";
            return Err(CommandError::Usage(reason.into()));
        }
        let location = report_location(&run.run.join(REPORTS), &name(folder), step);
        let still_ours = || Ok(lock.check()?);
        match run.evaluate(&checkpoint, location, PublishMode::Create, still_ours) {
            Ok(reports) => reports.iter().for_each(&mut each),
            Err(CommandError::Storage(StorageError::AlreadyExists { .. })) => {
                progress.note(&format!("step {step}: evaluated by another watcher"));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    })
}

/// Returns whether the dataset caused the error, so that no checkpoint can be evaluated.
fn is_of_dataset(error: &CommandError) -> bool {
    match error {
        CommandError::OtherDataset { .. } | CommandError::Dataset(_) | CommandError::Loader(_) => true,
        CommandError::Eval(EvalError::Embed(error)) | CommandError::Embed(error) => {
            matches!(error, EmbedError::Dataset(_) | EmbedError::Loader(_))
        }
        CommandError::Eval(error) => matches!(error, EvalError::Dataset(_) | EvalError::Loader(_)),
        _ => false,
    }
}

/// Returns the part of a report's name for these numbers of neighbours, in ascending order. If the default is
/// 200, asking for 200 gives the default's report.
fn k_in_name(asked: &[usize], default: usize) -> String {
    let is_default = asked.is_empty() || (asked == [MOST_BY_DEFAULT] && default == MOST_BY_DEFAULT);
    if is_default { String::new() } else { format!("-k{}", joined(asked)) }
}

/// Evaluation of a run's checkpoints on one split.
struct RunEvaluation<'a> {
    of: &'a KnnRun,
    job: &'a KnnJob,
    /// Folder of the run, even if `of` names one of its checkpoints.
    run: Location,
    dataset: RunDataset,
    group: &'a ProcessGroup,
    progress: &'a dyn Progress,
    /// Default of `k`, which is the same for all checkpoints; set once one was read.
    default_k: OnceCell<usize>,
}

impl<'a> RunEvaluation<'a> {
    fn open(
        of: &'a KnnRun,
        job: &'a KnnJob,
        group: &'a ProcessGroup,
        progress: &'a dyn Progress,
    ) -> Result<Self, CommandError> {
        if of.train_split.is_some() && of.features.contains(&KnnFeature::Bank) {
            let reason = "--train-split: the bank is of the split that the run was trained on; give \
                          --feature projection";
            return Err(CommandError::Usage(reason.into()));
        }
        let run = run_of(&of.run)?;
        let trained_on = of.train_split.as_deref().unwrap_or_default();
        let dataset = RunDataset::open(&of.dataset, trained_on, of.split.as_deref())?;
        Ok(Self { of, job, run, dataset, group, progress, default_k: OnceCell::new() })
    }

    /// Returns the split that votes.
    fn bank_split<'b>(&'b self, checkpoint: &'b Checkpoint) -> &'b str {
        self.of.train_split.as_ref().unwrap_or(&checkpoint.manifest().trained_on.split)
    }

    /// Returns the default number of voting neighbours.
    fn default_k(&self, checkpoint: &Checkpoint) -> Result<usize, CommandError> {
        let (dataset, split) = (&self.dataset, self.bank_split(checkpoint));
        let all = dataset.manifest.split(&dataset.location, split)?.instances as usize;
        let rows = match dataset.training_rows(checkpoint, split)? {
            RowChoice::Sample(rows) => rows.min(all),
            _ => all,
        };
        Ok(default_k(rows.saturating_sub(usize::from(self.job.leave_one_out))))
    }

    /// Returns the requested numbers of neighbours, in ascending order.
    fn asked(&self) -> Vec<usize> {
        let mut ks = self.job.k.clone();
        ks.sort_unstable();
        ks.dedup();
        ks
    }

    /// Returns the report name of the checkpoint in a folder, which is read only if the name depends on its rows.
    fn report_name_of(&self, folder: &Location) -> String {
        if self.asked() != [MOST_BY_DEFAULT] {
            return self.report_name(MOST_BY_DEFAULT);
        }
        let read = || self.default_k(&Checkpoint::open(folder).ok()?).ok();
        let known = self.default_k.get().copied().or_else(read);
        if let Some(default) = known {
            let _ = self.default_k.set(default);
        }
        // Evaluating an unreadable checkpoint reports the error.
        self.report_name(known.unwrap_or_default())
    }

    /// Returns the name of a checkpoint's report: `knn-val`, with the options that differ from the defaults.
    fn report_name(&self, default_k: usize) -> String {
        let (Self { of, job, .. }, split) = (self, &self.dataset.split);
        let mut name = format!("knn-{split}");
        if let Some(train_split) = &of.train_split {
            name += &format!("-from-{train_split}");
        }
        if of.features != [KnnFeature::Bank] {
            name += &format!("-{}", joined(&of.features));
        }
        name += &k_in_name(&self.asked(), default_k);
        if job.temperature != KnnOptions::default().temperature {
            name += &format!("-tau{}", joined(&job.temperature));
        }
        if job.leave_one_out {
            name += "-leave-one-out";
        }
        if job.exclude_duplicates {
            name += "-without-duplicates";
        }
        if job.map_points != DEFAULT_MAP_POINTS {
            name += &format!("-map{}", job.map_points);
        }
        name
    }

    /// Returns an existing report of these weights, this dataset and these neighbours, if its page exists
    /// too. All processes get the same answer.
    fn kept(
        &self,
        location: &Location,
        weights: &str,
        default_k: usize,
    ) -> Result<Option<Value>, CommandError> {
        let wanted = if self.job.k.is_empty() { vec![default_k] } else { self.asked() };
        // Earlier versions used the default's name for any report of 200 neighbours.
        let has_wanted = |report: &Value| {
            // Earlier versions measured no retrieval; it is also absent without labels.
            let is_whole = report["top1"].is_null() || !report["retrieval"].is_null();
            let cells = report["grid"].as_array().into_iter().flatten();
            let ks: BTreeSet<_> = cells.filter_map(|cell| cell["k"].as_u64()).collect();
            is_whole && ks.into_iter().eq(wanted.iter().map(|&k| k as u64))
        };
        let mut found = reports::find(location, weights, &self.dataset.digest())?.filter(has_wanted);
        if found.is_some() && !page_beside(location).map_or(Ok(true), |page| reports::is_made(&page))? {
            found = None;
        }
        let flags = self.group.gather_bytes(&[u8::from(found.is_some())])?;
        Ok(found.filter(|_| flags.iter().all(|flag| flag == &[1])))
    }

    /// Evaluates a checkpoint, and publishes the report after `check` has passed.
    fn evaluate(
        &self,
        checkpoint: &Checkpoint,
        output: Location,
        mode: PublishMode,
        check: impl FnOnce() -> Result<(), CommandError>,
    ) -> Result<Option<KnnReports>, CommandError> {
        let pairs = self.tables(checkpoint)?;
        check()?;
        let run = Some((self.run.clone(), self.dataset.other_folder(checkpoint)));
        let (of, dataset_digest) = (self.dataset.of_run(checkpoint), Some(self.dataset.digest()));
        let place = Place { output, run, of, dataset_digest, mode };
        let dataset = Some(&self.of.dataset);
        evaluate(&pairs, self.job, dataset, Some(&place), self.group as &dyn Searchers, self.progress)
    }

    /// Returns the folder of reports and features.
    fn folder(&self, checkpoint: &Checkpoint) -> Result<Location, CommandError> {
        self.dataset.folder(&self.run, checkpoint, self.of.train_split.as_deref())
    }

    /// Checks, before anything is embedded, that `--leave-one-out` is used with queries of the split that votes.
    fn check_left_out(&self, checkpoint: &Checkpoint) -> Result<(), CommandError> {
        // The error of another dataset takes precedence.
        self.folder(checkpoint)?;
        let RunDataset { manifest, location, split } = &self.dataset;
        let bank_split = self.bank_split(checkpoint);
        let digest = |split: &str| manifest.split(location, split).map(|split| split.digest);
        if self.job.leave_one_out && digest(split)? != digest(bank_split)? {
            return Err(CommandError::Usage(format!(
                "--leave-one-out is for queries of the split that votes, `{bank_split}`, not of `{split}`; \
                 give --split {bank_split}"
            )));
        }
        Ok(())
    }

    /// Returns the tables of each feature; one pass over a split embeds all of its layers.
    fn tables(&self, checkpoint: &Checkpoint) -> Result<Vec<KnnPair>, CommandError> {
        let Self { of, dataset, .. } = self;
        let split = self.bank_split(checkpoint);
        self.check_left_out(checkpoint)?;
        let queries = self.embedded(checkpoint, &dataset.split, RowChoice::All, &of.features)?;
        let is_embedded = |feature: &KnnFeature| *feature != KnnFeature::Bank;
        let embedded: Vec<KnnFeature> = of.features.iter().copied().filter(is_embedded).collect();
        let banks = if embedded.is_empty() {
            Vec::new()
        } else {
            self.embedded(checkpoint, split, dataset.training_rows(checkpoint, split)?, &embedded)?
        };
        let mut banks = banks.into_iter();
        let mut pairs = Vec::new();
        for (feature, queries) in of.features.iter().zip(queries) {
            let bank: Box<dyn Table> = match feature {
                KnnFeature::Bank => Box::new(checkpoint_bank(checkpoint)?),
                KnnFeature::Layer(_) => {
                    let table = banks.next().expect("each embedded feature has its table");
                    Box::new(StoredTable::open(&table)?)
                }
            };
            pairs.push(KnnPair::new(bank, FeatureTable::read(&queries)?));
        }
        Ok(pairs)
    }

    /// Returns the table of each feature's layer.
    fn embedded(
        &self,
        checkpoint: &Checkpoint,
        split: &str,
        rows: RowChoice,
        features: &[KnnFeature],
    ) -> Result<Vec<Location>, CommandError> {
        let mut layers: Vec<FeatureLayer> = Vec::new();
        for layer in features.iter().map(|feature| feature.layer()) {
            if !layers.contains(&layer) {
                layers.push(layer);
            }
        }
        let (threads, local_rank) = (self.job.threads, self.of.local_rank);
        let memory_limit = usual_memory_limit(self.group.world());
        let machine = Machine { threads, device: DeviceChoice::Auto, local_rank, memory_limit };
        let job = self.dataset.embedding(checkpoint, split, rows, machine);
        let tables =
            run_tables(&job, &self.folder(checkpoint)?.join("features"), &layers, self.group, self.progress)?;
        let of_feature = |feature: &KnnFeature| layers.iter().position(|&layer| layer == feature.layer());
        Ok(features.iter().filter_map(of_feature).map(|at| tables[at].clone()).collect())
    }
}

fn joined<T: ToString>(values: &[T]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join("_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_different_neighbours_have_different_names() {
        assert_eq!((k_in_name(&[], 12).as_str(), k_in_name(&[], 200).as_str()), ("", ""));
        assert_eq!((k_in_name(&[200], 12).as_str(), k_in_name(&[200], 200).as_str()), ("-k200", ""));
        // Names of earlier versions.
        assert_eq!((k_in_name(&[12], 12).as_str(), k_in_name(&[1, 200], 200).as_str()), ("-k12", "-k1_200"));
    }
}
