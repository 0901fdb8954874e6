//! Evaluating the bank while a run trains.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Map, Value, json};

use crate::cli::knn::default_k;
use crate::cli::progress::{Terminal, say};
use crate::dataset::{EVALUATION_SPLITS, Manifest};
use crate::eval::{KnnOptions, encode, evaluate, evaluate_by, gather_table, search_over, share};
use crate::feature_table::{FeatureTable, Kind, TableMeta};
use crate::ids::{ClassId, InstanceId};
use crate::loader::{DatasetSource, Source, Subset};
use crate::progress::Progress;
use crate::run_config::{FEWEST_MONITORED, TrainConfig};
use crate::search::search;
use crate::storage::Location;
use crate::train::{Evaluation, HookError, StopFlag};

/// Query images at most, where their number is not given; below that they are a share of the training images,
/// [`FEWEST_MONITORED`] at least. They pass forward alone, which by the count of operations is a third of a step's work.
const MOST_IMAGES: usize = 10_000;
const TRAINING_IMAGES_OF_ONE: usize = 5;
/// Images of a batch when the monitor embeds.
const MONITOR_BATCH: usize = 256;

/// Scores the bank by the neighbours of a labelled split, as the reference does after each epoch.
pub(super) struct Monitor {
    queries: Option<(Arc<dyn Source>, TableMeta)>,
    ids: Vec<InstanceId>,
    labels: Vec<Option<ClassId>>,
    threads: usize,
}

/// Shows work beside the steps, which ends where the run is to stop.
pub(super) struct Shown<'a> {
    stage: &'static str,
    terminal: Terminal,
    stop: &'a StopFlag,
    is_first: bool,
}

impl<'a> Shown<'a> {
    pub(super) fn new(stage: &'static str, stop: &'a StopFlag, is_first: bool) -> Self {
        Self { stage, terminal: Terminal::default(), stop, is_first }
    }
}

impl Progress for Shown<'_> {
    fn begin(&self, _stage: &str, total: u64) {
        if self.is_first {
            self.terminal.begin(self.stage, total);
        }
    }

    fn advance(&self, items: u64) {
        self.terminal.advance(items);
    }

    fn finish(&self) {
        self.terminal.finish();
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Monitor {
    /// A monitor for the runs on this dataset; says what it evaluates, or why nothing.
    ///
    /// # Errors
    /// If the dataset cannot be read, or lacks the split that was asked for.
    pub(super) fn open(dataset: &Location, config: &TrainConfig, is_first: bool) -> Result<Self, HookError> {
        let manifest = Manifest::read(dataset)?;
        let limit = if config.limit == 0 { None } else { Some(config.limit as usize) };
        let train = DatasetSource::open(dataset, &manifest, &config.split, limit)?;
        let (ids, labels) = (train.ids().to_vec(), train.labels().to_vec());
        let note = |line: String| {
            if is_first {
                say(&line);
            }
        };
        let none = |ids, labels| Self { queries: None, ids, labels, threads: config.loader_threads };
        let asked = Some(config.monitor_split.as_str()).filter(|name| !name.is_empty());
        let name = asked.or_else(|| manifest.first_evaluation_split(&config.split));
        let Some(name) = name else {
            note(format!(
                "monitor: no scores during the training, as the dataset has no second split ({})",
                EVALUATION_SPLITS.join(", ")
            ));
            return Ok(none(ids, labels));
        };
        let images = match config.monitor_images as usize {
            0 => (ids.len() / TRAINING_IMAGES_OF_ONE).clamp(FEWEST_MONITORED, MOST_IMAGES),
            asked => asked,
        };
        let source = config.source(dataset, &manifest, name, Some(images))?;
        if labels.iter().all(Option::is_none) || source.labels().iter().all(Option::is_none) {
            note(format!("monitor: no scores, as `{}` or `{name}` has no labels", config.split));
            return Ok(none(ids, labels));
        }
        note(format!("monitor: {} images of `{name}` look for their classes in the bank", source.len()));
        let meta = TableMeta {
            kind: Kind::Embedding,
            layer: "projection".into(),
            dim: config.dim,
            dataset_digest: manifest.dataset_digest.to_string(),
            split: name.into(),
            split_digest: manifest.splits.get(name).map(|split| split.digest.to_string()),
            weights: None,
            device: None,
            precision: None,
            step: 0,
            unit_length: true,
            classes: manifest.classes.clone(),
        };
        let queries = Some((Arc::new(source) as Arc<dyn Source>, meta));
        Ok(Self { queries, ids, labels, threads: config.loader_threads })
    }

    /// The scores of encoder and bank as they are now; none where there is nothing to score. Each process embeds some
    /// of the images and searches the rows of the bank that it has.
    pub(super) fn evaluate(&self, state: Evaluation<'_>) -> Result<Map<String, Value>, HookError> {
        let Evaluation { encoder, bank, group, step, stop } = state;
        let mut scores = Map::new();
        let (Some((source, meta)), Some(bank)) = (&self.queries, bank) else { return Ok(scores) };
        let own = share(source.len(), group);
        let images: Arc<dyn Source> = if group.world() == 1 {
            Arc::clone(source)
        } else {
            Arc::new(Subset::of_range(Arc::clone(source), own))
        };
        let shown = Shown::new("monitor", stop, group.is_first());
        let part = encode(encoder, images, meta.clone(), MONITOR_BATCH, self.threads, &shown);
        // Where one process failed, all leave it at that.
        let failed = group.gather_bytes(&[u8::from(part.is_err())])?;
        let part = part?;
        if let Some(rank) = failed.iter().position(|flag| flag == &[1]) {
            return Err(format!("rank {rank} could not embed its images").into());
        }
        let queries = gather_table(group, part, (source.ids(), source.labels()), true)?;
        // What the encoder is worth, before the first step too.
        if queries.len() > 1 {
            // Of few images the own class lacks one of its own, which more neighbours would count against it.
            let among = KnnOptions { k: vec![1], leave_one_out: true, ..KnnOptions::default() };
            let report = evaluate(&queries, &queries, &among)?;
            scores.insert("knn_sample_top1".to_owned(), json!(report.top1));
            scores.insert("knn_chance".to_owned(), json!(report.chance));
        }
        if step == 0 {
            return Ok(scores);
        }
        let rows = bank.range();
        let own_rows = FeatureTable {
            meta: TableMeta { kind: Kind::Bank, ..meta.clone() },
            ids: self.ids[rows.clone()].to_vec(),
            labels: self.labels[rows.clone()].to_vec(),
            updated_step: bank.updated_step().to_vec(),
            features: bank.to_vec(),
        };
        let most = default_k(bank.instances());
        let k = if most > 1 { vec![1, most] } else { vec![1] };
        let options = KnnOptions { k, ..KnnOptions::default() };
        let report = if group.world() == 1 {
            evaluate(&own_rows, &queries, &options)?
        } else {
            let all_rows = FeatureTable {
                ids: self.ids.clone(),
                labels: self.labels.clone(),
                updated_step: Vec::new(),
                features: Vec::new(),
                meta: own_rows.meta.clone(),
            };
            let find = |queries: &FeatureTable, k| {
                let here = |k| search(&own_rows, queries, k, false);
                search_over(group, (&self.ids, rows.clone()), queries, (k, false), here)
            };
            evaluate_by(&all_rows, &queries, &options, &find)?.0
        };
        for cell in &report.grid {
            scores.insert(format!("knn{}_top1", cell.k), json!(cell.top1));
        }
        Ok(scores)
    }
}
