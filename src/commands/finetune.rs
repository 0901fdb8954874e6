//! `finetune`: trains a checkpoint's encoder on few labels and scores the classifier.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Map, Value, json};
use toml::Table;

use super::CommandError;
use super::monitor::batch_size;
use crate::checkpoint::{Checkpoint, checkpoint_name, newest_state};
use crate::dataset::Manifest;
use crate::distributed::{DistributedError, Rendezvous};
use crate::eval::{ClassifierReport, EmbedError, Score, classify, load_encoder, share};
use crate::loader::{Source, Subset};
use crate::model::select_device_of;
use crate::progress::Progress;
use crate::run_config::{Given, OptionSpec, Scope, TrainConfig};
use crate::storage::{Location, PublishMode};
use crate::train::{
    Evaluation, FinetuneJob, HookError, Hooks, LabelOptions, Outcome, StopFlag, TrainJob, finetune,
    finetune_protocol,
};

/// Options of a fine-tuning, and its processes.
#[derive(Clone, Debug)]
pub struct FinetuneRun {
    /// Checkpoint with the initial encoder.
    pub checkpoint: Location,
    /// Folder of the dataset.
    pub dataset: Location,
    /// Folder of the new run.
    pub run: Location,
    /// Selection of labels.
    pub labels: LabelOptions,
    /// Split to train on; by default that of the checkpoint's run.
    pub train_split: Option<String>,
    /// Split that scores the classifier; by default the dataset's first evaluation split.
    pub split: Option<String>,
    /// Rank of this process, and the meeting point.
    pub rendezvous: Rendezvous,
    /// See [`TrainJob::collective_timeout`].
    pub collective_timeout: Duration,
    /// See [`TrainJob::on_lost`].
    pub on_lost: fn(DistributedError),
}

/// Fine-tuning with resolved options.
#[derive(Debug)]
pub struct Finetuning {
    job: FinetuneJob,
    split: String,
    evaluated: Arc<dyn Source>,
}

/// Finished fine-tuning.
#[derive(Clone, Debug)]
pub struct Finetuned {
    /// File of the report.
    pub location: Location,
    /// Scores of the classifier.
    pub report: Value,
    /// Whether the report already existed.
    pub is_kept: bool,
}

impl Finetuning {
    /// Resolves the options: those given, over those of the run if it has started, over
    /// [`finetune_protocol`]. Reports the settings of a run that has started.
    ///
    /// # Errors
    /// If checkpoint or dataset cannot be read, or the same split would be trained on and scored.
    pub fn open(of: FinetuneRun, given: &Table, progress: &dyn Progress) -> Result<Self, CommandError> {
        let FinetuneRun { checkpoint: from, dataset, run, labels, .. } = of;
        let mut of_run = Checkpoint::open(&from)?.run_config()?;
        let begun = newest_state(&run)?;
        let begun_split = || begun.as_ref()?.config["split"].as_str().map(ToOwned::to_owned);
        if let Some(split) = of.train_split.or_else(begun_split) {
            of_run.split = split;
        }
        let mut defaults = finetune_protocol(&of_run);
        if let Some(begun) = &begun {
            // The encoder must be that of the checkpoint; otherwise the resume is rejected.
            let TrainConfig { arch, image_size, .. } = defaults;
            let mut values = defaults.as_begun(&begun.config)?.values();
            let own = TrainConfig::OPTIONS
                .iter()
                .filter(|option| option.finetune && option.scope != Scope::Machine);
            for OptionSpec { key, .. } in own {
                if let Some(value) = begun.config.get(key) {
                    values.insert((*key).into(), value.clone());
                }
            }
            defaults = TrainConfig { arch, image_size, ..serde_json::from_value(Value::Object(values))? };
        }
        let config = Given::new(None, given).over(&defaults).expect("flags were checked");
        if let Some(begun) = &begun {
            let settings = settings(&config, &begun.config).join(", ");
            progress.note(&format!("settings of this run: {settings}"));
        }
        let manifest = Manifest::read(&dataset)?;
        let split = manifest.evaluation_split(&dataset, &config.split, of.split.as_deref())?;
        if split == config.split {
            return Err(CommandError::Usage(format!(
                "split `{split}` is trained on and evaluated; another --split or --train-split tells more"
            )));
        }
        let evaluated = config.source(&dataset, &manifest, &split, None)?;
        let (rendezvous, collective_timeout, on_lost) = (of.rendezvous, of.collective_timeout, of.on_lost);
        let train = TrainJob { dataset, run, init: None, config, rendezvous, collective_timeout, on_lost };
        Ok(Self { job: FinetuneJob { train, from, labels }, split, evaluated })
    }

    /// Returns the configuration of the run.
    pub fn config(&self) -> &TrainConfig {
        &self.job.train.config
    }

    /// Trains to the end of the last epoch. The metrics have scores only if the hooks' `evaluate` calls
    /// [`Finetuning::evaluate`].
    ///
    /// # Errors
    /// As [`finetune`].
    pub fn train(&self, hooks: &mut dyn Hooks, stop: &StopFlag) -> Result<Outcome, CommandError> {
        Ok(finetune(&self.job, hooks, stop)?)
    }

    /// Scores the classifier as it is: `top1` and `top5` in the metrics. Each process counts the hits of its share of
    /// the images.
    ///
    /// # Errors
    /// If an image cannot be read, or another process fails.
    pub fn evaluate(&self, state: &Evaluation<'_>) -> Result<Map<String, Value>, HookError> {
        let ClassifierReport { top1, top5, .. } = ClassifierReport::new(self.score(state)?);
        Ok(Map::from_iter([("top1".to_owned(), json!(top1)), ("top5".to_owned(), json!(top5))]))
    }

    /// Returns the report of the checkpoint after this step; publishes it if it does not exist. For one process only.
    ///
    /// # Errors
    /// If the checkpoint or an image cannot be read, or the store fails.
    pub fn report(&self, step: u64, progress: &dyn Progress) -> Result<Finetuned, CommandError> {
        let TrainJob { run, config, rendezvous, .. } = &self.job.train;
        let location = run.join(&format!("eval/classifier-{}-step-{step:08}.json", self.split));
        if location.exists()? {
            let report = serde_json::from_slice(&location.read()?).map_err(|error| {
                CommandError::Data(format!("{location}: not a report of finetune ({error}); delete it"))
            })?;
            return Ok(Finetuned { location, report, is_kept: true });
        }
        let checkpoint = Checkpoint::open(&run.join("checkpoints").join(&checkpoint_name(step)))?;
        let device = select_device_of(config.device, rendezvous.local_rank(), rendezvous.world());
        let encoder = load_encoder(&checkpoint, device.map_err(EmbedError::from)?.device)?;
        let images = Arc::clone(&self.evaluated);
        let score = classify(&encoder, images, batch_size(&encoder), config.loader_threads, progress)?;
        let mut report = serde_json::to_value(ClassifierReport::new(score))?;
        report["split"] = json!(self.split);
        report["labels"] = checkpoint.state()?.config["finetune"].clone();
        location.publish(serde_json::to_string_pretty(&report)? + "\n", PublishMode::Overwrite)?;
        Ok(Finetuned { location, report, is_kept: false })
    }

    fn score(&self, state: &Evaluation<'_>) -> Result<Score, HookError> {
        let own = share(self.evaluated.len(), state.group);
        let images: Arc<dyn Source> = if state.group.world() == 1 {
            Arc::clone(&self.evaluated)
        } else {
            Arc::new(Subset::of_range(Arc::clone(&self.evaluated), own))
        };
        let threads = self.config().loader_threads;
        let counted = if images.is_empty() {
            Ok(Score::default())
        } else {
            classify(state.encoder, images, batch_size(state.encoder), threads, &UntilStopped(state.stop))
        };
        // If one process failed, all fail.
        let numbers =
            counted.as_ref().map(|score| [score.top1, score.top5, score.rows].map(|hits| hits as u64));
        let of_ranks = state.group.gather_bytes(&json!(numbers.ok()).to_string().into_bytes())?;
        counted?;
        let mut sum = Score::default();
        for (rank, numbers) in of_ranks.iter().enumerate() {
            let Ok(Some([top1, top5, rows])) = serde_json::from_slice::<Option<[usize; 3]>>(numbers) else {
                return Err(format!("rank {rank} could not score its images").into());
            };
            sum = Score { top1: sum.top1 + top1, top5: sum.top5 + top5, rows: sum.rows + rows };
        }
        Ok(sum)
    }
}

/// Lists the number of epochs, and each option whose value differs from before.
fn settings(config: &TrainConfig, begun: &Value) -> Vec<String> {
    let text = |key: &str, now: &Value| match begun.get(key).filter(|before| *before != now) {
        Some(before) => Some(format!("{key} = {now} (until now {before})")),
        None => (key == "epochs").then(|| format!("{key} = {now}")),
    };
    let values = config.values();
    let options = TrainConfig::OPTIONS.iter().filter(|option| option.finetune);
    options.filter_map(|option| text(option.key, &values[option.key])).collect()
}

/// Progress that shows nothing, and stops with the run.
struct UntilStopped<'a>(&'a StopFlag);

impl Progress for UntilStopped<'_> {
    fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
