//! `instdisc knn --run`: embeds a split under a checkpoint's encoder, then votes.

use std::time::Duration;

use super::{Tables, judge};
use crate::checkpoint::{BANK, CheckpointError, list_checkpoints};
use crate::cli::knn::KnnArgs;
use crate::cli::progress::{Terminal, say};
use crate::cli::{GlobalArgs, write_json};
use crate::eval::{Claim, EmbedJob, KnnReport, WatchOptions, embed, report_location, watch};
use crate::feature_table::{FeatureTable, StoredTable};
use crate::model::DeviceChoice;
use crate::progress::Progress;
use crate::storage::{Location, PublishMode, StorageError};

/// How long a checkpoint stays claimed by a watcher that died.
const LEASE: Duration = Duration::from_secs(300);
/// Pictures of a batch.
const BATCH_SIZE: usize = 256;

/// Judges the newest checkpoint, or with `--watch` all of them.
pub(super) fn judge_run(global: &GlobalArgs, args: &KnnArgs, run: &Location) -> anyhow::Result<()> {
    if args.watch {
        return watch_run(global, args, run);
    }
    let Some((step, folder)) = list_checkpoints(run)?.pop() else {
        return Err(CheckpointError::NotThere { folder: format!("{run}/checkpoints") }.into());
    };
    let output = match &args.output {
        Some(output) => global.location(output)?,
        None => report_location(run, step),
    };
    let tables = embed_split(global, args, run, (step, &folder), output, &Terminal::default())?;
    write_json(&judge(global, args, &tables, PublishMode::Overwrite)?)
}

fn watch_run(global: &GlobalArgs, args: &KnnArgs, run: &Location) -> anyhow::Result<()> {
    let options = WatchOptions {
        poll: Duration::from_secs(args.poll_interval),
        idle_timeout: (args.idle_timeout > 0).then(|| Duration::from_secs(args.idle_timeout)),
        lease: LEASE,
    };
    let summary = watch(run, &options, |step, folder, claim| {
        let progress = Renewing { terminal: Terminal::default(), claim };
        let output = report_location(run, step);
        let tables = embed_split(global, args, run, (step, folder), output, &progress)?;
        claim.renew()?;
        match judge(global, args, &tables, PublishMode::Create) {
            Ok(report) => say(&line(&report)),
            Err(error) if is_done_already(&error) => say(&format!("step {step}: judged by another watcher")),
            Err(error) => return Err(error),
        }
        Ok(())
    })?;
    write_json(&summary)
}

fn line(report: &KnnReport) -> String {
    format!(
        "step {}: top-1 {:.2} %, top-5 {:.2} % (k = {}, τ = {}, {})",
        report.step,
        100.0 * report.top1,
        100.0 * report.top5,
        report.k,
        report.temperature,
        report.feature
    )
}

/// Whether a watcher whose claim this one took over published the report after all.
fn is_done_already(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<StorageError>(), Some(StorageError::AlreadyExists { .. }))
}

fn embed_split(
    global: &GlobalArgs,
    args: &KnnArgs,
    run: &Location,
    (step, checkpoint): (u64, &Location),
    output: Location,
    progress: &dyn Progress,
) -> anyhow::Result<Tables> {
    let table = run.join(&format!("eval/{}-step-{step:08}.arrow", args.split));
    let job = EmbedJob {
        checkpoint: checkpoint.clone(),
        dataset: global.location(args.dataset.as_deref().unwrap_or_default())?,
        split: args.split.clone(),
        output: table.clone(),
        limit: 0,
        batch_size: BATCH_SIZE,
        threads: args.threads,
        device: DeviceChoice::Auto,
    };
    embed(&job, progress)?;
    Ok(Tables {
        bank: StoredTable::open(&checkpoint.join(BANK))?,
        queries: FeatureTable::read(&table)?,
        output: Some(output),
    })
}

/// Shows progress, and renews the claim on the way.
struct Renewing<'a> {
    terminal: Terminal,
    claim: &'a Claim,
}

impl Progress for Renewing<'_> {
    fn begin(&self, stage: &str, total: u64) {
        self.terminal.begin(stage, total);
    }

    fn advance(&self, items: u64) {
        self.terminal.advance(items);
        if let Err(error) = self.claim.renew() {
            tracing::warn!("the claim could not be renewed: {error}");
        }
    }

    fn finish(&self) {
        self.terminal.finish();
    }
}
