//! The run's record of numbers: `metrics.jsonl`, and the same for TensorBoard.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::Value;

use super::bank_health::BankHealth;
use super::tensorboard::EventFile;
use crate::storage::{Location, PublishMode, StorageError};

/// What a line covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// The steps since the last line of either kind.
    Interval,
    /// The epoch, or its part since a resume.
    Epoch,
    /// No step: what the untrained encoder is worth.
    Start,
}

/// One line of the record.
#[derive(Clone, Debug, Serialize)]
pub struct MetricsLine {
    /// What it covers.
    pub scope: Scope,
    /// Seconds since 1970.
    pub time: f64,
    /// Steps done.
    pub step: u64,
    /// The epoch, from 0.
    pub epoch: u64,
    /// The mean loss, in nats.
    pub loss: f64,
    /// The learning rate of the last step.
    pub lr: f64,
    /// Images trained on, per second.
    pub images_per_second: f64,
    /// The share of the time in which the trainer waited for data, in 0..1.
    pub data_wait: f64,
    /// The gradient's norm at the last step, before clipping.
    pub gradient_norm: f64,
    /// The mean cosine of an updated bank row before and after.
    pub row_cosine: f64,
    /// The mean of `‖f - v‖²` over features and their own rows (Wang and Isola 2020, with α = 2).
    pub alignment: f64,
    /// ln Z as `nce` assumed it at the last step.
    pub ln_partition: Option<f64>,
    /// Steps that moved nothing.
    pub skipped_steps: u64,
    /// Seconds in which training stood still for checkpoints.
    pub checkpoint_stall: f64,
    /// How the bank is, after an epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bank: Option<BankHealth>,
    /// What the monitor measured, if it ran.
    #[serde(flatten)]
    pub monitor: serde_json::Map<String, Value>,
}

impl MetricsLine {
    /// The line as it is written: what no step has measured is not there.
    fn to_value(&self) -> Value {
        let mut value = serde_json::to_value(self).expect("a line is plain data");
        if let (Scope::Start, Some(fields)) = (self.scope, value.as_object_mut()) {
            const ALWAYS: [&str; 4] = ["scope", "time", "step", "epoch"];
            fields.retain(|name, _| ALWAYS.contains(&name.as_str()) || self.monitor.contains_key(name));
        }
        value
    }

    /// Its numbers by name; those of an epoch have `epoch/` before it, those of the bank `bank/`.
    pub fn scalars(&self) -> Vec<(String, f64)> {
        let prefix = if self.scope == Scope::Interval { "" } else { "epoch/" };
        let value = self.to_value();
        let number = |(name, value): (&String, &Value)| value.as_f64().map(|number| (name.clone(), number));
        let own = value.as_object().into_iter().flatten().filter_map(number);
        let own = own.filter(|(name, _)| !matches!(name.as_str(), "time" | "step"));
        let mut all: Vec<_> = own.map(|(name, number)| (format!("{prefix}{name}"), number)).collect();
        let bank = value["bank"].as_object().into_iter().flatten().filter_map(number);
        all.extend(bank.map(|(name, number)| (format!("bank/{name}"), number)));
        all
    }
}

/// Seconds since 1970.
pub(in crate::train) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// The record as it was at one moment, ready to be published.
#[derive(Debug)]
pub(in crate::train) struct MetricsFiles {
    file: Location,
    text: String,
    /// Events since the last checkpoint: a file of its own.
    events: Option<(Location, Vec<u8>)>,
    /// The longest text that was published, by any thread.
    published: Arc<Mutex<usize>>,
}

impl MetricsFiles {
    /// Publishes the record; its text not where a later one is there already.
    ///
    /// # Errors
    /// If the store fails.
    pub(in crate::train) fn publish(self) -> Result<(), StorageError> {
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

/// The record, held in memory. The lines are published whole each time; events go into one file after
/// the other, one for each checkpoint, named by the step of its first event, as TensorBoard reads them.
///
/// A resumed run first drops lines and events of steps that it will do again.
#[derive(Debug)]
pub(in crate::train) struct Metrics {
    run: Location,
    text: String,
    events: Option<(String, EventFile)>,
    /// The step after which the newest event file is named, and how many have that name.
    named: (u64, u32),
    published: Arc<Mutex<usize>>,
}

const EVENTS: &str = "events.out.tfevents.";

impl Metrics {
    /// Goes on with the record of a run that has done `step` steps.
    pub(in crate::train) fn resume(run: &Location, step: u64) -> Result<Self, StorageError> {
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

    /// The line of the untrained encoder, once it is recorded.
    pub(in crate::train) fn start(&self) -> Option<Value> {
        let line = serde_json::from_str::<Value>(self.text.lines().next()?).ok()?;
        (line["scope"] == "start").then_some(line)
    }

    /// The mean losses of the epochs so far, in nats.
    pub(in crate::train) fn epoch_losses(&self) -> impl Iterator<Item = f64> {
        let lines = self.text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["scope"] == "epoch").filter_map(|line| line["loss"].as_f64())
    }

    /// Adds a line.
    pub(in crate::train) fn push(&mut self, line: &MetricsLine) {
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

    /// The record as it is now.
    pub(in crate::train) fn files(&self) -> MetricsFiles {
        let place = |name: &str| self.run.join("tensorboard").join(name);
        let events = self.events.as_ref().map(|(name, events)| (place(name), events.to_bytes()));
        let published = Arc::clone(&self.published);
        MetricsFiles { file: self.run.join("metrics.jsonl"), text: self.text.clone(), events, published }
    }

    /// The record as it is now, for a checkpoint: what comes after it goes into another file of events, which
    /// goes when a resume drops it.
    pub(in crate::train) fn files_of_checkpoint(&mut self) -> MetricsFiles {
        let files = self.files();
        self.events = None;
        files
    }
}

#[cfg(test)]
mod tests {
    use super::super::meter::Meter;
    use super::*;

    #[test]
    fn a_resumed_record_drops_the_lines_and_events_of_steps_that_come_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let run = Location::from_path(dir.path()).expect("a location");
        let mut metrics = Metrics::resume(&run, 0).expect("a new record");
        for step in [10, 20, 30] {
            metrics.push(&Meter::start().line(Scope::Interval, step, 0));
            metrics.files_of_checkpoint().publish().expect("published");
        }
        let mut metrics = Metrics::resume(&run, 20).expect("the record");
        metrics.push(&Meter::start().line(Scope::Epoch, 25, 0));
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

    #[test]
    fn an_older_record_does_not_replace_a_newer_one() {
        let dir = tempfile::tempdir().expect("a folder");
        let run = Location::from_path(dir.path()).expect("a location");
        let mut metrics = Metrics::resume(&run, 0).expect("a new record");
        metrics.push(&Meter::start().line(Scope::Interval, 10, 0));
        let older = metrics.files_of_checkpoint();
        // Of the same step, after the checkpoint: in a file of its own.
        metrics.push(&Meter::start().line(Scope::Epoch, 10, 0));
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
}
