//! The encoder of a run on another labelled dataset: images of one of its splits vote on those of another.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{TRAINED, embed_share, images_of};
use crate::commands::CommandError;
use crate::dataset::{DatasetError, Manifest};
use crate::eval::{KnnOptions, default_k, evaluate_over, gather_table, share};
use crate::failure::Failure;
use crate::feature_table::{FeatureTable, TableMeta};
use crate::loader::Source;
use crate::model::FeatureLayer;
use crate::progress::Progress;
use crate::run_config::{MonitoredDataset, TrainConfig};
use crate::storage::Location;
use crate::train::{Evaluation, HookError};

/// Scores an encoder by a fixed sample of two splits.
pub struct OtherMonitor {
    name: String,
    voters: (Arc<dyn Source>, TableMeta),
    queries: (Arc<dyn Source>, TableMeta),
    threads: usize,
}

impl fmt::Debug for OtherMonitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtherMonitor").field("name", &self.name).finish_non_exhaustive()
    }
}

impl OtherMonitor {
    /// The monitors of a run that trains on `instances` images, each with its dataset's location. Notes what they evaluate.
    ///
    /// # Errors
    /// If a dataset cannot be read, lacks a split or its labels, or two would have one name in the metrics.
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
                "--monitor {}: two of them would have the name `{name}` in the metrics, which is that of the folder and the \
                 scored split",
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
                "--monitor {asked}: {error}. A resumed run keeps its --monitor: give its datasets anew, or --no-monitor for \
                 no scores at all"
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
            Ok((source, super::meta(&manifest, split, config.dim)))
        };
        let (voters, queries) = (open(train)?, open(test)?);
        let name = name_of(dataset, test);
        let (voting, scored) = (voters.0.len(), queries.0.len());
        progress.note(&format!(
            "monitor: {voting} images of `{train}` vote on {scored} of `{test}` in {dataset}, as `{name}` in the metrics"
        ));
        Ok(Self { name, voters, queries, threads: config.loader_threads })
    }

    /// What precedes its scores in the metrics.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The scores of the encoder as it is now, by their names in the metrics. Each process embeds a share of the images of
    /// both splits, and searches its share of the voters.
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
        let (ids, labels) = (source.ids().to_vec(), source.labels().to_vec());
        // Ids and labels of all voters; the vectors are with those that embedded them.
        let whole = FeatureTable {
            meta: rows.meta.clone(),
            ids,
            labels,
            updated_step: Vec::new(),
            features: Vec::new(),
        };
        let (source, meta) = &self.queries;
        let part = embed((source, meta))?;
        let queries = gather_table(group, part, (source.ids(), source.labels()), true)?;
        let most = default_k(whole.ids.len());
        let k = if most > 1 { vec![1, most] } else { vec![1] };
        let options = KnnOptions { k, ..KnnOptions::default() };
        let own = share(whole.ids.len(), group);
        let (report, _) = evaluate_over(group, &whole, (own, &rows), &queries, &options, None)?;
        let mut scores = Map::new();
        for cell in &report.grid {
            scores.insert(format!("{}/knn{}_top1", self.name, cell.k), json!(cell.top1));
        }
        scores.insert(format!("{}/knn_chance", self.name), json!(report.chance));
        Ok(scores)
    }
}

/// The name of a monitor: that of the folder and that of the scored split, of letters that TensorBoard and Prometheus take.
fn name_of(dataset: &Location, split: &str) -> String {
    let letters = |text: &str| -> String {
        text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
    };
    format!("{}_{}", letters(dataset.file_name()), letters(split))
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
