//! kNN of a run during training: scores the bank between epochs, as the reference does, and the encoder on
//! other datasets.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::CommandError;
use super::run::BATCH_SIZE;
use crate::dataset::{DatasetError, EVALUATION_SPLITS, Manifest};
use crate::distributed::ProcessGroup;
use crate::eval::{GridCell, KnnOptions, default_k, encode, evaluate, evaluate_over, gather_table, share};
use crate::failure::Failure;
use crate::feature_table::{FeatureTable, Kind, TableMeta};
use crate::ids::{ClassId, InstanceId};
use crate::loader::{Source, Subset, open_split};
use crate::model::{Encoder, FeatureLayer};
use crate::progress::Progress;
use crate::run_config::{FEWEST_MONITORED, MonitoredDataset, TrainConfig};
use crate::storage::Location;
use crate::train::{Evaluation, HookError};

/// Maximum number of query images by default. Below it, there is one for [`TRAINING_IMAGES_OF_ONE`] training
/// images, and at least [`FEWEST_MONITORED`]. Queries take only a forward pass, by the count of operations a
/// third of a step's work.
const MOST_IMAGES: usize = 10_000;
const TRAINING_IMAGES_OF_ONE: usize = 5;
/// Number of queries below which scores may be off by 14 points and more (a standard error of 7).
const FEW_QUERIES: usize = 50;
/// Images per batch on a CPU, where a stop would wait seconds for [`BATCH_SIZE`] images.
const CPU_BATCH_SIZE: usize = 16;
/// Default split that votes.
const TRAINED: &str = "train";

/// Monitor that scores encoder and bank by the images of a labelled split.
#[derive(Debug)]
pub struct Monitor {
    queries: Option<(Arc<dyn Source>, TableMeta)>,
    ids: Vec<InstanceId>,
    labels: Vec<Option<ClassId>>,
    threads: usize,
}

impl Monitor {
    /// Opens a monitor for runs on this dataset. Reports what it evaluates, or why it evaluates nothing.
    ///
    /// # Errors
    /// If the dataset cannot be read, or lacks the configured split.
    pub fn open(
        dataset: &Location,
        config: &TrainConfig,
        progress: &dyn Progress,
    ) -> Result<Self, HookError> {
        let manifest = Manifest::read(dataset)?;
        let limit = if config.limit == 0 { None } else { Some(config.limit as usize) };
        let train = open_split(dataset, &manifest, &config.split, limit)?;
        let (ids, labels) = (train.ids().to_vec(), train.labels().to_vec());
        let none = |ids, labels| Self { queries: None, ids, labels, threads: config.loader_threads };
        let asked = Some(config.monitor_split.as_str()).filter(|name| !name.is_empty());
        let name = asked.or_else(|| manifest.first_evaluation_split(&config.split));
        let Some(name) = name else {
            let reason = if labels.iter().all(Option::is_none) {
                format!("`{}` has no labels", config.split)
            } else {
                format!("the dataset has no second split ({})", EVALUATION_SPLITS.join(", "))
            };
            progress.note(&format!("monitor: no scores of the bank during the training, as {reason}"));
            return Ok(none(ids, labels));
        };
        let source = config.source(dataset, &manifest, name, Some(images_of(config, ids.len())))?;
        if labels.iter().all(Option::is_none) || source.labels().iter().all(Option::is_none) {
            progress.note(&format!(
                "monitor: no scores of the bank, as `{}` or `{name}` has no labels",
                config.split
            ));
            return Ok(none(ids, labels));
        }
        progress.note(&format!(
            "monitor: {} images of `{name}` look for their classes in the bank{}",
            source.len(),
            if source.len() < FEW_QUERIES { "; scores of so few change by chance" } else { "" }
        ));
        let queries = Some((source, meta(&manifest, name, config.dim)));
        Ok(Self { queries, ids, labels, threads: config.loader_threads })
    }

    /// Returns the current scores of encoder and bank, by their names in the metrics; empty without labels.
    /// Each process embeds some of the images and searches its rows of the bank.
    ///
    /// # Errors
    /// If images cannot be embedded, another process fails, or `progress` is stopped.
    pub fn evaluate(
        &self,
        state: Evaluation<'_>,
        progress: &dyn Progress,
    ) -> Result<Map<String, Value>, HookError> {
        let Evaluation { bank, group, step, .. } = state;
        let mut scores = Map::new();
        let (Some((source, meta)), Some(bank)) = (&self.queries, bank) else { return Ok(scores) };
        scores.insert("monitor_split".to_owned(), json!(meta.split));
        let probe = state.probe.filter(|probe| probe.has_learnt());
        let layers = [FeatureLayer::Projection, FeatureLayer::Pooled];
        let layers = if probe.is_some() { &layers[..] } else { &layers[..1] };
        let mut parts = embed_share(state, (source, meta), layers, self.threads, progress)?;
        if let Some((probe, pooled)) = probe.zip(parts.get(1)) {
            scores.insert("probe_top1".to_owned(), json!(probe.top1(pooled, group)?));
        }
        let part = parts.swap_remove(0);
        let queries = gather_table(group, part, (source.ids(), source.labels()))?;
        // Scores the encoder alone, even before the first step.
        if queries.len() > 1 {
            // With few images, leaving the query out shrinks its own class, which would bias larger k.
            let among = KnnOptions { k: vec![1], leave_one_out: true, ..KnnOptions::default() };
            let report = evaluate(&queries, &queries, &among)?;
            scores.insert("knn_sample_top1".to_owned(), json!(report.top1));
            scores.insert("knn_chance".to_owned(), json!(report.most_frequent_class));
        }
        if step == 0 {
            return Ok(scores);
        }
        let range = bank.shard().range();
        let rows = FeatureTable {
            meta: TableMeta { kind: Kind::Bank, ..meta.clone() },
            ids: self.ids[range.clone()].to_vec(),
            labels: self.labels[range.clone()].to_vec(),
            updated_step: bank.updated_step().to_vec(),
            features: bank.to_vec(),
        };
        scores.extend(vote(group, (&self.ids, &self.labels), (range, &rows), &queries)?.0);
        Ok(scores)
    }
}

/// Monitor that scores an encoder by a fixed sample of two splits.
#[derive(Debug)]
pub struct OtherMonitor {
    name: String,
    voters: (Arc<dyn Source>, TableMeta),
    queries: (Arc<dyn Source>, TableMeta),
    threads: usize,
}

impl OtherMonitor {
    /// Opens the monitors of a run that trains on `instances` images, each given with its dataset's location.
    /// Reports what they evaluate.
    ///
    /// # Errors
    /// If a dataset cannot be read, lacks a split or its labels, or two monitors would share a name in the metrics.
    pub fn open_all(
        asked: &[(Location, MonitoredDataset)],
        config: &TrainConfig,
        instances: usize,
        progress: &dyn Progress,
    ) -> Result<Vec<Self>, CommandError> {
        let open = |(dataset, asked)| Self::open(dataset, asked, config, instances, progress);
        let monitors =
            asked.iter().map(|(dataset, asked)| open((dataset, asked))).collect::<Result<Vec<_>, _>>()?;
        let mut names = BTreeSet::new();
        if let Some(twice) = monitors.iter().find(|monitor| !names.insert(&monitor.name)) {
            let (name, all) = (&twice.name, asked.iter().map(|(_, asked)| format!("`{asked}`")));
            return Err(CommandError::Usage(format!(
                "--monitor {}: two of them would have the name `{name}` in the metrics, which is that of the \
                 folder and the scored split",
                all.collect::<Vec<_>>().join(", ")
            )));
        }
        Ok(monitors)
    }

    fn open(
        dataset: &Location,
        asked: &MonitoredDataset,
        config: &TrainConfig,
        instances: usize,
        progress: &dyn Progress,
    ) -> Result<Self, CommandError> {
        let manifest = Manifest::read(dataset).map_err(|error| {
            let reason = format!(
                "--monitor {asked}: {error}. A resumed run keeps its --monitor: give its datasets anew, or \
                 --no-monitor for no scores at all"
            );
            match error.failure() {
                Failure::Data => CommandError::Data(reason),
                _ => error.into(),
            }
        })?;
        let train = asked.train.as_deref().unwrap_or(TRAINED);
        let test = asked.test.as_deref().or_else(|| manifest.first_evaluation_split(train));
        let test = test.ok_or_else(|| DatasetError::NoEvaluationSplit {
            dataset: dataset.to_string(),
            known: manifest.splits.keys().cloned().collect(),
        })?;
        if train == test {
            let reason =
                format!("--monitor {asked}: images of `{test}` would vote on themselves; name two splits");
            return Err(CommandError::Usage(reason));
        }
        let open = |split: &str| -> Result<_, CommandError> {
            let images = images_of(config, instances);
            let source = config.source(dataset, &manifest, split, Some(images))?;
            if source.labels().iter().all(Option::is_none) {
                let reason = format!("--monitor {asked}: split `{split}` of {dataset} has no labels");
                return Err(CommandError::Data(reason));
            }
            Ok((source, meta(&manifest, split, config.dim)))
        };
        let (voters, queries) = (open(train)?, open(test)?);
        let name = name_of(dataset, test);
        let (voting, scored) = (voters.0.len(), queries.0.len());
        progress.note(&format!(
            "monitor: {voting} images of `{train}` vote on {scored} of `{test}` in {dataset}, as `{name}` in \
             the metrics"
        ));
        Ok(Self { name, voters, queries, threads: config.loader_threads })
    }

    /// Returns the prefix of its scores in the metrics.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the current scores of the encoder, by their names in the metrics. Each process embeds a share
    /// of the images of both splits, and searches its share of the voters.
    ///
    /// # Errors
    /// If images cannot be embedded, another process fails, or `progress` is stopped.
    pub fn evaluate(
        &self,
        state: Evaluation<'_>,
        progress: &dyn Progress,
    ) -> Result<Map<String, Value>, HookError> {
        let group = state.group;
        let of = |(source, meta): &(Arc<dyn Source>, TableMeta)| {
            format!("{} of {:?} in {}", source.len(), meta.split_digest, meta.dataset_digest)
        };
        group.agree("the images of --monitor", &format!("{}, {}", of(&self.voters), of(&self.queries)))?;
        let (source, meta) = &self.voters;
        let projection = [FeatureLayer::Projection];
        let embed =
            |of| embed_share(state, of, &projection, self.threads, progress).map(|mut parts| parts.remove(0));
        let rows = embed((source, meta))?;
        let voters = (source.ids(), source.labels());
        let (source, meta) = &self.queries;
        let part = embed((source, meta))?;
        let queries = gather_table(group, part, (source.ids(), source.labels()))?;
        let (mut scores, chance) = vote(group, voters, (share(voters.0.len(), group), &rows), &queries)?;
        scores.insert("knn_chance".to_owned(), json!(chance));
        Ok(scores.into_iter().map(|(name, score)| (format!("{}/{name}", self.name), score)).collect())
    }
}

/// Scores queries by one neighbour and by the default number. Returns the scores by their names in the metrics, and
/// chance. `ids` and `labels` cover all voters; `rows` has the vectors of this process's `range`.
fn vote(
    group: &ProcessGroup,
    (ids, labels): (&[InstanceId], &[Option<ClassId>]),
    (range, rows): (Range<usize>, &FeatureTable),
    queries: &FeatureTable,
) -> Result<(Map<String, Value>, f64), HookError> {
    let whole = FeatureTable {
        meta: rows.meta.clone(),
        ids: ids.to_vec(),
        labels: labels.to_vec(),
        updated_step: Vec::new(),
        features: Vec::new(),
    };
    let most = default_k(ids.len());
    let k = if most > 1 { vec![1, most] } else { vec![1] };
    let options = KnnOptions { k, ..KnnOptions::default() };
    let (report, _) = evaluate_over(group, &whole, (range, Some(rows)), queries, &options, None)?;
    let score = |cell: &GridCell| (format!("knn{}_top1", cell.k), json!(cell.top1));
    Ok((report.grid.iter().map(score).collect(), report.most_frequent_class))
}

/// Returns the name of a monitor: that of the folder and that of the scored split, with only characters that
/// TensorBoard and Prometheus accept.
fn name_of(dataset: &Location, split: &str) -> String {
    let letters = |text: &str| -> String {
        text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
    };
    format!("{}_{}", letters(dataset.file_name()), letters(split))
}

/// Returns the images per batch for scores during training, when a stop waits for the current batch.
pub(super) fn batch_size(encoder: &Encoder) -> usize {
    if encoder.device().is_cuda() { BATCH_SIZE } else { CPU_BATCH_SIZE }
}

/// Returns how many images of a split a monitor embeds if the run trains on `instances`.
fn images_of(config: &TrainConfig, instances: usize) -> usize {
    match config.monitor_images as usize {
        0 => (instances / TRAINING_IMAGES_OF_ONE).clamp(FEWEST_MONITORED, MOST_IMAGES),
        asked => asked,
    }
}

/// Returns the metadata of a split's embeddings.
fn meta(manifest: &Manifest, split: &str, dim: usize) -> TableMeta {
    TableMeta {
        kind: Kind::Embedding,
        layer: "projection".into(),
        dim,
        dataset_digest: manifest.dataset_digest.to_string(),
        split: split.into(),
        split_digest: manifest.splits.get(split).map(|split| split.digest.to_string()),
        weights: None,
        device: None,
        precision: None,
        step: 0,
        unit_length: true,
        classes: manifest.classes.clone(),
    }
}

/// Returns this process's result, or fails if any process failed. All processes call it.
///
/// # Errors
/// This process's own error, or else `reason` for the first rank that failed.
pub fn all_or_none<T, E: Into<HookError>>(
    group: &ProcessGroup,
    result: Result<T, E>,
    reason: &str,
) -> Result<T, HookError> {
    let failed = group.gather_bytes(&[u8::from(result.is_err())])?;
    let result = result.map_err(Into::into)?;
    match failed.iter().position(|flag| flag == &[1]) {
        Some(rank) => Err(format!("rank {rank} {reason}").into()),
        None => Ok(result),
    }
}

/// Embeds this process's share of a source with these layers.
///
/// # Errors
/// If images cannot be embedded in any process; then all fail.
fn embed_share(
    state: Evaluation<'_>,
    (source, meta): (&Arc<dyn Source>, &TableMeta),
    layers: &[FeatureLayer],
    threads: usize,
    progress: &dyn Progress,
) -> Result<Vec<FeatureTable>, HookError> {
    let group = state.group;
    let images: Arc<dyn Source> = if group.world() == 1 {
        Arc::clone(source)
    } else {
        Arc::new(Subset::of_range(Arc::clone(source), share(source.len(), group)))
    };
    let part = encode(state.encoder, images, layers, meta, (batch_size(state.encoder), threads), progress);
    all_or_none(group, part, "could not embed its images")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_folder_and_split_and_plain_letters_alone() {
        let of = |path: &str, split| name_of(&Location::from_path(path.as_ref()).expect("a location"), split);
        assert_eq!(of("/data/cifar-10/", "test"), "cifar_10_test");
        assert_eq!(of("/data/é b", "val"), "__b_val");
    }
}
