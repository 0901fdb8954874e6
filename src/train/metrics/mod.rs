//! Metrics of a run, written to `metrics.jsonl`, TensorBoard and Prometheus.

pub(super) mod bank_health;
pub(super) mod exporter;
mod tensorboard;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::Value;

use self::bank_health::BankHealth;
use self::tensorboard::EventFile;
use crate::run_config::{BankInit, ObjectiveKind, PartitionChoice, TrainConfig};
use crate::storage::{Location, PublishMode, StorageError};
use crate::train::StepReport;
use crate::train::learner::{ProbeSums, StepOutcome};

/// Factor by which an epoch's loss may exceed the first epoch's, or that of chance.
const MOST_GROWTH: f64 = 1.5;

/// Steps that a line covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Steps since the last line of an interval or epoch.
    Interval,
    /// The epoch, or the rest of it after a resume.
    Epoch,
    /// No step: scores of the untrained encoder.
    Start,
    /// No step: scores of the monitor within an epoch, or after a resume.
    Monitor,
}

/// Results of the probe on the images of steps, measured before it learns from them.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ProbeLine {
    /// Mean loss, in nats.
    pub probe_train_loss: f64,
    /// Fraction of the images whose own class had the highest score.
    pub probe_train_top1: f64,
    /// Seconds that the host spent on the probe.
    pub probe_seconds: f64,
}

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, Serialize)]
pub struct MetricsLine {
    /// Steps that the line covers.
    pub scope: Scope,
    /// Seconds since 1970.
    pub time: f64,
    /// Steps done.
    pub step: u64,
    /// Epoch, counted from 0.
    pub epoch: u64,
    /// Mean loss, in nats.
    pub loss: f64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Training images per second.
    pub images_per_second: f64,
    /// Fraction of the time that the trainer waited for data, in 0..1.
    pub data_wait: f64,
    /// Gradient norm of the last step, before clipping.
    pub gradient_norm: f64,
    /// Mean cosine between updated bank rows before and after.
    pub row_cosine: f64,
    /// Mean of `‖f - v‖²` over features and their own rows (Wang and Isola 2020, with α = 2).
    pub alignment: f64,
    /// ln Z that `nce` assumed at the last step.
    pub ln_partition: Option<f64>,
    /// Steps that changed nothing.
    pub skipped_steps: u64,
    /// Seconds that training was blocked by checkpoints.
    pub checkpoint_stall: f64,
    /// Results of the probe, if enabled and an image had a label.
    #[serde(flatten)]
    pub probe: Option<ProbeLine>,
    /// Statistics of the bank; set after an epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bank: Option<BankHealth>,
    /// Scores of the monitor, if it ran.
    #[serde(flatten)]
    pub monitor: serde_json::Map<String, Value>,
}

impl MetricsLine {
    /// Returns the line as written, without the fields that no step measured.
    fn to_value(&self) -> Value {
        let mut value = serde_json::to_value(self).expect("a line is plain data");
        if let (Scope::Start | Scope::Monitor, Some(fields)) = (self.scope, value.as_object_mut()) {
            const ALWAYS: [&str; 4] = ["scope", "time", "step", "epoch"];
            fields.retain(|name, _| ALWAYS.contains(&name.as_str()) || self.monitor.contains_key(name));
        }
        value
    }

    /// Returns its numbers by name. Those of the monitor start with `monitor/`, other numbers of an epoch
    /// with `epoch/`, and those of the bank with `bank/`.
    pub fn scalars(&self) -> Vec<(String, f64)> {
        let is_monitor_alone = matches!(self.scope, Scope::Start | Scope::Monitor);
        let prefix = |name: &str| match self.scope {
            _ if self.monitor.contains_key(name) => "monitor/",
            Scope::Interval => "",
            _ => "epoch/",
        };
        let value = self.to_value();
        let number = |(name, value): (&String, &Value)| value.as_f64().map(|number| (name.clone(), number));
        let own = value.as_object().into_iter().flatten().filter_map(number);
        let own = own.filter(|(name, _)| !matches!(name.as_str(), "time" | "step"));
        let own = own.filter(|(name, _)| !is_monitor_alone || self.monitor.contains_key(name));
        let mut all: Vec<_> =
            own.map(|(name, number)| (format!("{}{name}", prefix(&name)), number)).collect();
        let bank = value["bank"].as_object().into_iter().flatten().filter_map(number);
        all.extend(bank.map(|(name, number)| (format!("bank/{name}"), number)));
        all
    }
}

/// Metrics at one moment, ready to be published.
#[derive(Debug)]
pub(crate) struct MetricsFiles {
    file: Location,
    text: String,
    /// Events since the last checkpoint, with their file.
    events: Option<(Location, Vec<u8>)>,
    /// Length of the longest text published so far by any thread.
    published: Arc<Mutex<usize>>,
}

impl MetricsFiles {
    /// Publishes the metrics; the text only if no later one is published.
    pub(crate) fn publish(self) -> Result<(), StorageError> {
        if let Some((file, bytes)) = self.events {
            file.publish(bytes, PublishMode::Overwrite)?;
        }
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        if self.text.len() < *published {
            return Ok(());
        }
        *published = self.text.len();
        self.file.publish(self.text, PublishMode::Overwrite)
    }
}

/// Metrics of a run, held in memory. The lines are published as a whole each time. Events go into one file
/// per checkpoint, named by the step of its first event so that TensorBoard reads them in order.
///
/// A resumed run first drops lines and events of steps that will be repeated.
#[derive(Debug)]
pub(crate) struct Metrics {
    run: Location,
    text: String,
    events: Option<(String, EventFile)>,
    /// Step after which the newest event file is named, and the number of files with that name.
    named: (u64, u32),
    published: Arc<Mutex<usize>>,
}

const EVENTS: &str = "events.out.tfevents.";

impl Metrics {
    /// Continues the metrics of a run that has done `step` steps.
    pub(crate) fn resume(run: &Location, step: u64) -> Result<Self, StorageError> {
        let before = match run.join("metrics.jsonl").read() {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.is_not_found() => String::new(),
            Err(error) => return Err(error),
        };
        let done = |line: &&str| {
            let value: Option<Value> = serde_json::from_str(line).ok();
            value.and_then(|value| value["step"].as_u64()).is_some_and(|of_line| of_line <= step)
        };
        let text = before.lines().filter(done).flat_map(|line| [line, "\n"]).collect();
        let folder = run.join("tensorboard");
        for entry in folder.list()? {
            let first =
                entry.name.strip_prefix(EVENTS).and_then(|rest| rest.split('.').next()?.parse::<u64>().ok());
            if first.is_some_and(|first| first > step) {
                folder.join(&entry.name).delete()?;
            }
        }
        Ok(Self { run: run.clone(), text, events: None, named: (step, 0), published: Arc::default() })
    }

    /// Returns the line of the untrained encoder, if recorded.
    pub(crate) fn start(&self) -> Option<Value> {
        self.lines().next().filter(|line| line["scope"] == "start")
    }

    /// Returns whether the monitor's scores after this step are recorded.
    pub(crate) fn has_scores(&self, step: u64) -> bool {
        let is_score = |name: &String| name.rsplit('/').next().is_some_and(|name| name.starts_with("knn"));
        let mut of_step = self.lines().filter(|line| line["step"] == step);
        of_step.any(|line| line.as_object().is_some_and(|fields| fields.keys().any(is_score)))
    }

    /// Returns the mean losses of the epochs so far, in nats.
    pub(crate) fn epoch_losses(&self) -> impl Iterator<Item = f64> {
        self.lines().filter(|line| line["scope"] == "epoch").filter_map(|line| line["loss"].as_f64())
    }

    fn lines(&self) -> impl Iterator<Item = Value> {
        self.text.lines().filter_map(|line| serde_json::from_str(line).ok())
    }

    /// Appends a line.
    pub(crate) fn push(&mut self, line: &MetricsLine) {
        self.text += &line.to_value().to_string();
        self.text.push('\n');
        let (_, events) = self.events.get_or_insert_with(|| {
            self.named =
                if self.named.0 == line.step { (line.step, self.named.1 + 1) } else { (line.step, 0) };
            (format!("{EVENTS}{:010}.{}.instdisc", self.named.0, self.named.1), EventFile::new(line.time))
        });
        events.scalars(line.time, line.step, line.scalars());
        if let Some(bank) = &line.bank {
            events.histogram(line.time, line.step, "bank/age", &bank.age_histogram);
        }
    }

    /// Returns the current metrics, ready to be published.
    pub(crate) fn files(&self) -> MetricsFiles {
        let place = |name: &str| self.run.join("tensorboard").join(name);
        let events = self.events.as_ref().map(|(name, events)| (place(name), events.to_bytes()));
        let published = Arc::clone(&self.published);
        MetricsFiles { file: self.run.join("metrics.jsonl"), text: self.text.clone(), events, published }
    }

    /// Returns the current metrics for a checkpoint. Later events go into a new file, which a resume can drop.
    pub(crate) fn files_of_checkpoint(&mut self) -> MetricsFiles {
        let files = self.files();
        self.events = None;
        files
    }
}

/// Running sums over an epoch, or over an interval of it.
#[derive(Debug)]
pub(crate) struct Meter {
    started: Instant,
    waited_before: Duration,
    steps: u64,
    images: u64,
    loss_sum: f64,
    cosine_sum: f64,
    alignment_sum: f64,
    probe: ProbeSums,
    skipped: u64,
    last: StepOutcome,
    waited: Duration,
    stalled: Duration,
}

impl Meter {
    /// Starts measuring; `waited_before`: the time spent waiting for data until then.
    pub(crate) fn start(waited_before: Duration) -> Self {
        Self {
            started: Instant::now(),
            waited_before,
            steps: 0,
            images: 0,
            loss_sum: 0.0,
            cosine_sum: 0.0,
            alignment_sum: 0.0,
            probe: ProbeSums::default(),
            skipped: 0,
            last: StepOutcome::default(),
            waited: Duration::ZERO,
            stalled: Duration::ZERO,
        }
    }

    /// Returns a line that covers no steps.
    pub(crate) fn line_of_nothing(scope: Scope, step: u64, epoch: u64) -> MetricsLine {
        Self::start(Duration::ZERO).line(scope, step, epoch)
    }

    /// Counts a step; `waited`: the time spent waiting for data so far.
    pub(crate) fn add(&mut self, outcome: StepOutcome, waited: Duration) {
        self.images += outcome.images as u64;
        self.waited = waited.saturating_sub(self.waited_before);
        if outcome.skipped {
            self.skipped += 1;
        } else {
            self.steps += 1;
            self.loss_sum += outcome.loss;
            self.cosine_sum += outcome.row_cosine;
            self.alignment_sum += outcome.alignment;
            self.probe.add(outcome.probe.unwrap_or_default());
        }
        self.last = outcome;
    }

    /// Adds time in which a checkpoint blocked training.
    pub(crate) fn stalled(&mut self, stall: Duration) {
        self.stalled += stall;
    }

    pub(crate) fn report(&self, step: u64, epoch: u64) -> StepReport {
        let seconds = self.started.elapsed().as_secs_f64().max(1e-9);
        StepReport {
            step,
            epoch,
            loss: self.last.loss,
            lr: self.last.lr,
            images_per_second: self.images as f64 / seconds,
            data_wait: self.waited.as_secs_f64() / seconds,
        }
    }

    pub(crate) fn line(&self, scope: Scope, step: u64, epoch: u64) -> MetricsLine {
        let report = self.report(step, epoch);
        let mean = |sum: f64| sum / self.steps.max(1) as f64;
        let ProbeSums { loss, hits, images, time } = self.probe;
        let probe = (images > 0.0).then(|| ProbeLine {
            probe_train_loss: loss / images,
            probe_train_top1: hits / images,
            probe_seconds: time.as_secs_f64(),
        });
        MetricsLine {
            scope,
            time: now(),
            step,
            epoch,
            loss: mean(self.loss_sum),
            lr: self.last.lr,
            images_per_second: report.images_per_second,
            data_wait: report.data_wait,
            gradient_norm: self.last.gradient_norm,
            row_cosine: mean(self.cosine_sum),
            alignment: mean(self.alignment_sum),
            ln_partition: self.last.ln_partition,
            skipped_steps: self.skipped,
            checkpoint_stall: self.stalled.as_secs_f64(),
            probe,
            bank: None,
            monitor: serde_json::Map::new(),
        }
    }
}

/// Meters of the current epoch and of its current interval.
#[derive(Debug)]
pub(crate) struct Meters {
    /// Number of the epoch.
    pub(crate) number: u64,
    pub(crate) epoch: Meter,
    pub(crate) interval: Meter,
}

impl Meters {
    pub(crate) fn start(number: u64, waited: Duration) -> Self {
        Self { number, epoch: Meter::start(waited), interval: Meter::start(waited) }
    }

    /// Excludes time in which no step was taken.
    pub(crate) fn paused(&mut self, pause: Duration) {
        self.epoch.started += pause;
        self.interval.started += pause;
    }
}

/// Comparison of an epoch's mean loss with that of the first epoch and with chance.
#[derive(Clone, Debug)]
pub(crate) struct Divergence {
    /// Advice for a new run.
    advice: String,
    first: Option<f64>,
    /// Loss at the last warning.
    warned: f64,
}

impl Divergence {
    pub(crate) fn new(config: &TrainConfig) -> Self {
        Self { advice: advice(config), first: None, warned: 0.0 }
    }

    /// Warns if an epoch's loss, in nats, is far above the first, chance and the loss at the last warning.
    pub(crate) fn look(&mut self, loss: f64, chance: f64) -> Option<String> {
        let first = *self.first.get_or_insert(loss);
        let most = MOST_GROWTH * first.max(chance).max(self.warned);
        if loss <= most {
            return None;
        }
        self.warned = loss;
        Some(format!(
            "the loss grows: {loss:.2} in this epoch, {first:.2} in the first; features that tell nothing have \
             {chance:.2}. {}",
            self.advice
        ))
    }
}

/// Returns advice against a growing loss.
fn advice(config: &TrainConfig) -> String {
    let is_sampled = config.objective != ObjectiveKind::Softmax;
    let is_constant = config.objective == ObjectiveKind::Nce && config.partition != PartitionChoice::Ema;
    let helps = [
        is_sampled.then_some("`--objective softmax` is exact"),
        is_constant.then_some("`--partition ema` follows the bank"),
        (config.bank_init != BankInit::Encode)
            .then_some("`--bank-init encode` begins with what the encoder sees"),
        Some("a lower `--lr` or `--warmup-epochs` moves it less"),
    ];
    format!("In a new run {}", helps.into_iter().flatten().collect::<Vec<_>>().join(", "))
}

/// Returns the seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_record_drops_the_lines_and_events_of_steps_that_come_again() {
        let run = Location::in_memory().join("run");
        let mut metrics = Metrics::resume(&run, 0).expect("a new record");
        for step in [10, 20, 30] {
            metrics.push(&Meter::line_of_nothing(Scope::Interval, step, 0));
            metrics.files_of_checkpoint().publish().expect("published");
        }
        let mut metrics = Metrics::resume(&run, 20).expect("the record");
        metrics.push(&Meter::line_of_nothing(Scope::Epoch, 25, 0));
        metrics.files().publish().expect("published");
        let text =
            String::from_utf8(run.join("metrics.jsonl").read().expect("there").to_vec()).expect("text");
        let steps: Vec<_> = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["step"].as_u64().expect("a step"))
            .collect();
        assert_eq!(steps, [10, 20, 25]);
        let files: Vec<_> =
            run.join("tensorboard").list().expect("a list").into_iter().map(|e| e.name).collect();
        assert_eq!(files, [10, 20, 25].map(|step| format!("{EVENTS}{step:010}.0.instdisc")));
    }

    /// Otherwise a curve over steps would be split in two at the end of an epoch.
    #[test]
    fn scores_of_the_monitor_have_one_name_wherever_they_are_measured() {
        let names = |scope| {
            let monitor = [("knn1_top1".to_owned(), Value::from(0.5))].into_iter().collect();
            let line = MetricsLine { monitor, ..Meter::line_of_nothing(scope, 5, 0) };
            line.scalars().into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        for scope in [Scope::Start, Scope::Monitor] {
            assert_eq!(names(scope), ["monitor/knn1_top1"], "{scope:?}");
        }
        let of_epoch = names(Scope::Epoch);
        assert!(["monitor/knn1_top1", "epoch/loss"].iter().all(|name| of_epoch.iter().any(|of| of == name)));
    }

    #[test]
    fn an_older_record_does_not_replace_a_newer_one() {
        let run = Location::in_memory().join("run");
        let mut metrics = Metrics::resume(&run, 0).expect("a new record");
        metrics.push(&Meter::line_of_nothing(Scope::Interval, 10, 0));
        let older = metrics.files_of_checkpoint();
        // An event of the same step after the checkpoint goes into another file.
        metrics.push(&Meter::line_of_nothing(Scope::Epoch, 10, 0));
        metrics.files().publish().expect("published");
        older.publish().expect("published");
        let text = run.join("metrics.jsonl").read().expect("there");
        assert_eq!(text.iter().filter(|&&byte| byte == b'\n').count(), 2);
        let names = run.join("tensorboard").list().expect("a list").into_iter().map(|entry| entry.name);
        assert_eq!(
            names.collect::<Vec<_>>(),
            [0, 1].map(|number| format!("{EVENTS}0000000010.{number}.instdisc"))
        );
    }

    #[test]
    fn a_loss_that_grows_is_warned_of_once_for_each_growth() {
        let mut divergence = Divergence::new(&TrainConfig::default());
        let mut warns = |loss| divergence.look(loss, 6.2).is_some();
        assert!(!warns(10.0) && !warns(14.9), "the first epoch's loss, and little more");
        assert!(warns(15.1) && !warns(20.0) && warns(23.0));
        let mut divergence = Divergence::new(&TrainConfig::default());
        assert!(divergence.look(2.0, 6.2).is_none() && divergence.look(9.0, 6.2).is_none());
        let warning = divergence.look(9.4, 6.2).expect("above 1.5 times chance");
        assert!(
            warning.contains("9.40") && warning.contains("6.20") && warning.ends_with("moves it less"),
            "{warning}"
        );
    }
}
