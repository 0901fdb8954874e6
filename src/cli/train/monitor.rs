//! Judging the bank while a run trains.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::dataset::Manifest;
use crate::eval::{KnnOptions, encode, evaluate, evaluate_by, gather_table, search, search_over, share};
use crate::feature_table::{FeatureTable, Kind, TableMeta};
use crate::ids::{ClassId, InstanceId};
use crate::loader::{DatasetSource, Source, Subset};
use crate::progress::Quiet;
use crate::storage::Location;
use crate::trainer::{HookError, Judged, TrainConfig};

/// The splits that the monitor takes, the first that the dataset has.
const MONITOR_SPLITS: [&str; 4] = ["val", "valid", "validation", "test"];
/// The monitor looks at so many pictures of the split at most.
const MONITOR_PICTURES: usize = 10_000;
/// Pictures of a batch when the monitor embeds.
const MONITOR_BATCH: usize = 256;

/// Scores the bank by the neighbours of a labelled split, as the reference does after each epoch.
pub(super) struct Monitor {
    split: Option<(Arc<dyn Source>, TableMeta)>,
    ids: Vec<InstanceId>,
    labels: Vec<Option<ClassId>>,
    threads: usize,
}

impl Monitor {
    /// A monitor for the runs on this dataset.
    pub(super) fn open(dataset: &Location, config: &TrainConfig) -> Result<Self, HookError> {
        let manifest = Manifest::read(dataset)?;
        let limit = if config.limit == 0 { None } else { Some(config.limit as usize) };
        let train = DatasetSource::open(dataset, &manifest, &config.split, limit)?;
        let (ids, labels) = (train.ids().to_vec(), train.labels().to_vec());
        let name = MONITOR_SPLITS
            .into_iter()
            .find(|name| manifest.splits.contains_key(*name) && *name != config.split);
        let split = match name {
            None => None,
            Some(name) => {
                let source = config.source(dataset, &manifest, name, Some(MONITOR_PICTURES))?;
                let meta = TableMeta {
                    kind: Kind::Embedding,
                    layer: "projection".into(),
                    dim: config.dim,
                    dataset_digest: manifest.dataset_digest.to_string(),
                    split: name.into(),
                    split_digest: manifest.splits.get(name).map(|split| split.digest.to_string()),
                    device: None,
                    precision: None,
                    step: 0,
                    unit_length: true,
                    classes: manifest.classes.clone(),
                };
                Some((Arc::new(source) as Arc<dyn Source>, meta))
            }
        };
        Ok(Self { split, ids, labels, threads: config.loader_threads })
    }

    /// The scores of the bank as it is now; none where the dataset has no second split. Each process embeds some
    /// of the pictures and searches the rows of the bank that it has.
    pub(super) fn judge(&self, state: Judged<'_>) -> Result<Map<String, Value>, HookError> {
        let Judged { encoder, bank, group } = state;
        let mut scores = Map::new();
        let (Some((source, meta)), Some(bank)) = (&self.split, bank) else { return Ok(scores) };
        let own = share(source.len(), group);
        let pictures: Arc<dyn Source> = if group.world() == 1 {
            Arc::clone(source)
        } else {
            Arc::new(Subset::of_range(Arc::clone(source), own))
        };
        let part = encode(encoder, pictures, meta.clone(), MONITOR_BATCH, self.threads, &Quiet);
        // Where one process failed, all leave it at that.
        let failed = group.gather_bytes(&[u8::from(part.is_err())])?;
        let part = part?;
        if let Some(rank) = failed.iter().position(|flag| flag == &[1]) {
            return Err(format!("rank {rank} could not embed its pictures").into());
        }
        let queries = gather_table(group, part, (source.ids(), source.labels()), true)?;
        let rows = bank.range();
        let own_rows = FeatureTable {
            meta: TableMeta { kind: Kind::Bank, ..meta.clone() },
            ids: self.ids[rows.clone()].to_vec(),
            labels: self.labels[rows.clone()].to_vec(),
            updated_step: bank.updated_step().to_vec(),
            features: bank.to_vec(),
        };
        let k = vec![1, 200.min(bank.instances())];
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
