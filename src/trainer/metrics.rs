//! The run's record of numbers, `metrics.jsonl`.

use serde::Serialize;
use serde_json::Value;

use crate::storage::{Location, PublishMode, StorageError};

/// One line of the record.
#[derive(Clone, Debug, Serialize)]
pub struct MetricsLine {
    /// Steps done.
    pub step: u64,
    /// The epoch, from 0.
    pub epoch: u64,
    /// The mean loss since the line before, in nats.
    pub loss: f64,
    /// The learning rate.
    pub lr: f64,
    /// Pictures trained on, per second.
    pub images_per_second: f64,
    /// The share of the time in which the trainer waited for data, in 0..1.
    pub data_wait: f64,
    /// The gradient's norm at the last step.
    pub gradient_norm: f64,
    /// What the monitor measured, if it ran.
    #[serde(flatten)]
    pub monitor: serde_json::Map<String, Value>,
}

/// The record, held in memory and published whole.
///
/// A resumed run first drops the lines of steps that it will do again.
#[derive(Debug)]
pub(super) struct Metrics {
    file: Location,
    text: String,
}

impl Metrics {
    /// Goes on with the record of a run that has done `step` steps.
    pub(super) fn resume(run: &Location, step: u64) -> Result<Self, StorageError> {
        let file = run.join("metrics.jsonl");
        let before = match file.read() {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.is_not_found() => String::new(),
            Err(error) => return Err(error),
        };
        let done = |line: &&str| {
            let value: Option<Value> = serde_json::from_str(line).ok();
            value.and_then(|value| value["step"].as_u64()).is_some_and(|of_line| of_line <= step)
        };
        let text = before.lines().filter(done).flat_map(|line| [line, "\n"]).collect();
        Ok(Self { file, text })
    }

    /// Adds a line.
    pub(super) fn push(&mut self, line: &MetricsLine) {
        self.text += &serde_json::to_string(line).expect("a line is plain data");
        self.text.push('\n');
    }

    /// Publishes the record.
    pub(super) fn publish(&self) -> Result<(), StorageError> {
        self.file.publish(self.text.clone(), PublishMode::Overwrite)
    }
}
