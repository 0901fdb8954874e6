//! `instdisc knn --run`: embeds a split under a checkpoint's encoder, then votes.

use std::time::Duration;

use super::peers::Peers;
use super::{Pair, Place, judge, line, print_reports};
use crate::checkpoint::{Checkpoint, checkpoint_at};
use crate::cli::exit::{WrongData, WrongUsage, failure};
use crate::cli::knn::KnnArgs;
use crate::cli::progress::{Terminal, say};
use crate::cli::ranks::progress_of;
use crate::cli::{GlobalArgs, write_json};
use crate::dataset::Manifest;
use crate::eval::{RowChoice, RunTables, WatchOptions, checkpoint_bank, report_location, run_tables, watch};
use crate::failure::Failure;
use crate::feature_table::{FeatureTable, StoredTable, Table};
use crate::model::{DeviceChoice, FeatureLayer};
use crate::progress::Progress;
use crate::storage::{Location, PublishMode, StorageError};

/// Pictures of a batch.
const BATCH_SIZE: usize = 256;

/// Judges the newest checkpoint, or with `--watch` all of them.
pub(super) fn judge_run(
    global: &GlobalArgs,
    args: &KnnArgs,
    run: &Location,
    peers: &Peers,
) -> anyhow::Result<()> {
    let features =
        args.feature.iter().map(|name| Feature::parse(name)).collect::<anyhow::Result<Vec<_>>>()?;
    let whole = Judging { global, args, run, features, peers };
    if args.watch {
        if peers.group.world() > 1 {
            let reason =
                "--watch is for one process; several watchers share a run's checkpoints by themselves";
            return Err(WrongUsage(reason.into()).into());
        }
        return whole.watch();
    }
    let (step, folder) = checkpoint_at(run)?;
    let output = match &args.output {
        Some(output) => global.location(output)?,
        None => report_location(run, step),
    };
    peers.group.agree("the newest checkpoint's step", &step.to_string())?;
    let pairs = whole.tables(&folder, progress_of(peers.is_first(), &Terminal::default()))?;
    let place = Place { output, run: Some(run.clone()), mode: PublishMode::Overwrite };
    print_reports(args, judge(global, args, &pairs, Some(&place), peers)?.as_ref())
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

/// A run that is judged.
struct Judging<'a> {
    global: &'a GlobalArgs,
    args: &'a KnnArgs,
    run: &'a Location,
    features: Vec<Feature>,
    peers: &'a Peers,
}

impl Judging<'_> {
    fn watch(&self) -> anyhow::Result<()> {
        let Self { global, args, run, peers, .. } = *self;
        let options = WatchOptions {
            poll: Duration::from_secs(args.poll_interval),
            idle_timeout: (args.idle_timeout > 0).then(|| Duration::from_secs(args.idle_timeout)),
        };
        // Without it no checkpoint can be evaluated: that is not a fault of one of them.
        Manifest::read(&self.dataset()?)?;
        let is_damaged = |error: &anyhow::Error| failure(error) == Failure::Data;
        let summary = watch(run, &options, is_damaged, |step, folder, lock| {
            let pairs = self.tables(folder, &Terminal::default())?;
            lock.check()?;
            let output = report_location(run, step);
            let place = Place { output, run: Some(run.clone()), mode: PublishMode::Create };
            match judge(global, args, &pairs, Some(&place), peers) {
                Ok(reports) => reports.iter().for_each(|reports| say(&line(&reports.first))),
                Err(error) if is_done_already(&error) => {
                    say(&format!("step {step}: judged by another watcher"));
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

    fn dataset(&self) -> anyhow::Result<Location> {
        self.global.location(self.args.dataset.as_deref().unwrap_or_default())
    }

    /// The tables of each feature; of each split, all layers are embedded in one pass.
    fn tables(&self, checkpoint: &Location, progress: &dyn Progress) -> anyhow::Result<Vec<Pair>> {
        let dataset = self.dataset()?;
        let (checkpoint, manifest) = (Checkpoint::open(checkpoint)?, Manifest::read(&dataset)?);
        let of = Of { checkpoint, dataset, manifest };
        let split = &of.checkpoint.manifest().trained_on.split;
        let queries = self.embedded(&of, &self.args.split, RowChoice::All, &self.features, progress)?;
        let embedded: Vec<Feature> =
            self.features.iter().copied().filter(|&feature| feature != Feature::Bank).collect();
        let mut banks = if embedded.is_empty() {
            Vec::new()
        } else {
            self.embedded(&of, split, trained_rows(&of.checkpoint)?, &embedded, progress)?
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

/// The rows of its split on which a checkpoint was trained.
fn trained_rows(checkpoint: &Checkpoint) -> anyhow::Result<RowChoice> {
    let limit = checkpoint.state()?.config["limit"].as_u64().unwrap_or(0);
    Ok(if limit == 0 { RowChoice::All } else { RowChoice::Sample(limit as usize) })
}

/// Whether another watcher published the report after all.
fn is_done_already(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<StorageError>(), Some(StorageError::AlreadyExists { .. }))
}
