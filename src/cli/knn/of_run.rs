//! `instdisc knn --run`: embeds a split under a checkpoint's encoder, then votes.

use std::time::Duration;

use super::peers::Peers;
use super::{
    DEFAULT_K, DEFAULT_MAP_POINTS, DEFAULT_TEMPERATURE, Pair, Place, Searchers, evaluate, line, print_reports,
};
use serde_json::Value;

use crate::checkpoint::{Checkpoint, checkpoint_at, run_of};
use crate::cli::exit::{WrongData, WrongUsage, failure};
use crate::cli::knn::KnnArgs;
use crate::cli::progress::{Terminal, say};
use crate::cli::ranks::progress_of;
use crate::cli::reports::{made_before, show_again};
use crate::cli::{GlobalArgs, write_json};
use crate::dataset::Manifest;
use crate::eval::{RowChoice, RunTables, WatchOptions, checkpoint_bank, report_location, run_tables, watch};
use crate::failure::Failure;
use crate::feature_table::{FeatureTable, StoredTable, Table};
use crate::model::FeatureLayer;
use crate::progress::Progress;
use crate::run_config::DeviceChoice;
use crate::storage::{Location, PublishMode, StorageError};

/// Images of a batch.
const BATCH_SIZE: usize = 256;

/// Evaluates the newest checkpoint, or with `--watch` all of them.
pub(super) fn evaluate_run(
    global: &GlobalArgs,
    args: &KnnArgs,
    run: &Location,
    peers: &Peers,
) -> anyhow::Result<()> {
    let features =
        args.feature.iter().map(|name| Feature::parse(name)).collect::<anyhow::Result<Vec<_>>>()?;
    if args.train_split.is_some() && features.contains(&Feature::Bank) {
        let reason =
            "--train-split: the bank is of the split that the run was trained on; give --feature projection";
        return Err(WrongUsage(reason.into()).into());
    }
    // At the place may be one checkpoint of the run. A watcher may come before the first.
    let place = run;
    let run = &run_of(place)?;
    let newest = if args.watch { None } else { Some(checkpoint_at(place)?) };
    let dataset = global.location(args.dataset.as_deref().unwrap_or_default())?;
    // Without it no checkpoint can be evaluated: that is not a fault of one of them.
    let manifest = Manifest::read(&dataset)?;
    let split = manifest.evaluation_split(
        &dataset,
        args.train_split.as_deref().unwrap_or_default(),
        args.split.as_deref(),
    )?;
    let whole = RunEvaluation { global, args, run, features, peers, dataset, manifest, split };
    let Some((step, folder)) = newest else {
        if peers.group.world() > 1 {
            let reason =
                "--watch is for one process; several watchers share a run's checkpoints by themselves";
            return Err(WrongUsage(reason.into()).into());
        }
        return whole.watch();
    };
    peers.group.agree("the newest checkpoint's step", &step.to_string())?;
    let checkpoint = Checkpoint::open(&folder)?;
    let weights = checkpoint.weights_digest();
    let output = match &args.output {
        Some(output) => global.location(output)?,
        None => report_location(run, &args.report_name(&whole.split), step),
    };
    // What is asked for beside the report is not in it.
    let is_plain =
        args.output.is_none() && args.neighbours.is_none() && args.map_points == DEFAULT_MAP_POINTS;
    if is_plain && let Some(report) = whole.made_before(&output, &weights)? {
        peers.leave();
        return if peers.is_first() { show_again(global, &output, &report) } else { Ok(()) };
    }
    let pairs = whole.tables(checkpoint, progress_of(peers.is_first(), &Terminal::default()))?;
    let place =
        Place { output, run: Some(run.clone()), weights: Some(weights), mode: PublishMode::Overwrite };
    print_reports(global, args, evaluate(global, args, &pairs, Some(&place), peers)?.as_ref())
}

impl KnnArgs {
    /// What a report of a run's checkpoint is called: `knn-val`, with what differs from the defaults.
    fn report_name(&self, split: &str) -> String {
        let joined = |values: Vec<String>| values.join("_");
        let mut name = format!("knn-{split}");
        if let Some(train_split) = &self.train_split {
            name += &format!("-from-{train_split}");
        }
        if self.feature != ["bank"] {
            name += &format!("-{}", joined(self.feature.clone()));
        }
        let mut ks = self.k.clone();
        ks.sort_unstable();
        ks.dedup();
        if !ks.is_empty() && ks != [DEFAULT_K] {
            name += &format!("-k{}", joined(ks.iter().map(ToString::to_string).collect()));
        }
        let temperatures: Vec<String> = self.temperature.iter().map(ToString::to_string).collect();
        if temperatures != [DEFAULT_TEMPERATURE] {
            name += &format!("-tau{}", joined(temperatures));
        }
        if self.leave_one_out {
            name += "-leave-one-out";
        }
        if self.exclude_duplicates {
            name += "-without-duplicates";
        }
        name
    }
}

/// What votes.
#[derive(Clone, Copy, PartialEq)]
enum Feature {
    /// The bank as it lies in the checkpoint, on queries by the projection.
    Bank,
    /// Both splits, embedded.
    Layer(FeatureLayer),
}

impl Feature {
    fn parse(name: &str) -> anyhow::Result<Self> {
        if name == "bank" {
            return Ok(Self::Bank);
        }
        let layer =
            name.parse().map_err(|error| WrongUsage(format!("--feature {name}: not bank, and {error}")))?;
        Ok(Self::Layer(layer))
    }

    /// The layer by which queries are embedded.
    fn layer(self) -> FeatureLayer {
        match self {
            Self::Bank => FeatureLayer::Projection,
            Self::Layer(layer) => layer,
        }
    }
}

/// A run that is evaluated.
struct RunEvaluation<'a> {
    global: &'a GlobalArgs,
    args: &'a KnnArgs,
    run: &'a Location,
    features: Vec<Feature>,
    peers: &'a Peers,
    dataset: Location,
    manifest: Manifest,
    split: String,
}

impl RunEvaluation<'_> {
    fn watch(&self) -> anyhow::Result<()> {
        let Self { global, args, run, peers, .. } = *self;
        let name = args.report_name(&self.split);
        let options = WatchOptions {
            poll: Duration::from_secs(args.poll_interval),
            idle_timeout: (args.idle_timeout > 0).then(|| Duration::from_secs(args.idle_timeout)),
        };
        let is_damaged = |error: &anyhow::Error| failure(error) == Failure::Data;
        let summary = watch(run, &name, &options, is_damaged, |step, folder, lock| {
            let checkpoint = Checkpoint::open(folder)?;
            let weights = Some(checkpoint.weights_digest());
            let pairs = self.tables(checkpoint, &Terminal::default())?;
            lock.check()?;
            let output = report_location(run, &name, step);
            let place = Place { output, run: Some(run.clone()), weights, mode: PublishMode::Create };
            match evaluate(global, args, &pairs, Some(&place), peers) {
                Ok(reports) => reports.iter().for_each(|reports| say(&line(&reports.first))),
                Err(error) if is_done_already(&error) => {
                    say(&format!("step {step}: evaluated by another watcher"));
                }
                Err(error) => return Err(error),
            }
            Ok(())
        })?;
        write_json(&summary)?;
        if summary.failed.is_empty() {
            return Ok(());
        }
        let steps: Vec<_> = summary.failed.iter().map(ToString::to_string).collect();
        let reason = format!("{run}: the checkpoints of steps {} could not be evaluated", steps.join(", "));
        Err(WrongData(reason).into())
    }

    /// The report that is there already, of these weights and this dataset; in each process the same.
    fn made_before(&self, output: &Location, weights: &str) -> anyhow::Result<Option<Value>> {
        let found = made_before(output, weights, &self.manifest.dataset_digest.to_string())?;
        let flags = self.peers.group.gather_bytes(&[u8::from(found.is_some())])?;
        Ok(found.filter(|_| flags.iter().all(|flag| flag == &[1])))
    }

    /// The tables of each feature; of each split, all layers are embedded in one pass.
    fn tables(&self, checkpoint: Checkpoint, progress: &dyn Progress) -> anyhow::Result<Vec<Pair>> {
        let of = Of { checkpoint, dataset: self.dataset.clone(), manifest: self.manifest.clone() };
        let trained_on = &of.checkpoint.manifest().trained_on.split;
        let split = self.args.train_split.as_ref().unwrap_or(trained_on);
        let queries = self.embedded(&of, &self.split, RowChoice::All, &self.features, progress)?;
        let embedded: Vec<Feature> =
            self.features.iter().copied().filter(|&feature| feature != Feature::Bank).collect();
        let mut banks = if embedded.is_empty() {
            Vec::new()
        } else {
            let rows = if split == trained_on { RowChoice::trained(&of.checkpoint)? } else { RowChoice::All };
            self.embedded(&of, split, rows, &embedded, progress)?
        }
        .into_iter();
        let mut pairs = Vec::new();
        for (feature, queries) in self.features.iter().zip(queries) {
            let bank: Box<dyn Table> = match feature {
                Feature::Bank => Box::new(checkpoint_bank(&of.checkpoint)?),
                Feature::Layer(_) => {
                    let table = banks.next().expect("each embedded feature has its table");
                    Box::new(StoredTable::open(&table)?)
                }
            };
            pairs.push(Pair { bank, queries: FeatureTable::read(&queries)? });
        }
        Ok(pairs)
    }

    fn embedded(
        &self,
        of: &Of,
        split: &str,
        rows: RowChoice,
        features: &[Feature],
        progress: &dyn Progress,
    ) -> anyhow::Result<Vec<Location>> {
        let mut layers: Vec<FeatureLayer> = Vec::new();
        for layer in features.iter().map(|feature| feature.layer()) {
            if !layers.contains(&layer) {
                layers.push(layer);
            }
        }
        let job = RunTables {
            run: self.run.clone(),
            checkpoint: of.checkpoint.clone(),
            dataset: of.dataset.clone(),
            manifest: of.manifest.clone(),
            split: split.to_owned(),
            rows,
            layers: layers.clone(),
            batch_size: BATCH_SIZE,
            threads: self.args.threads,
            device: DeviceChoice::Auto,
            local_rank: self.peers.local_rank,
        };
        let places = run_tables(&job, &self.peers.group, progress)?;
        let place = |feature: &Feature| layers.iter().position(|&layer| layer == feature.layer());
        Ok(features.iter().filter_map(place).map(|at| places[at].clone()).collect())
    }
}

/// What is embedded with what, opened once.
struct Of {
    checkpoint: Checkpoint,
    dataset: Location,
    manifest: Manifest,
}

/// Whether another watcher published the report after all.
fn is_done_already(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<StorageError>(), Some(StorageError::AlreadyExists { .. }))
}
