//! The state of a fine-tuning, to a checkpoint and back. Its folder has no bank.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::TrainError;
use super::super::background::Saved;
use super::super::config::Difference;
use super::super::metrics::MetricsFiles;
use super::super::saving::DataIdentity;
use super::LabelRecord;
use super::tuner::Tuner;
use crate::checkpoint::{
    Checkpoint, CheckpointManifest, MODEL, OPTIMIZER, STATE, TrainState, checkpoint_name, publish_file,
};
use crate::model::NamedTensors;
use crate::storage::Location;

/// The key of `config` in state.json under which the labels stand.
const LABELS: &str = "finetune";

/// A copy of everything that a checkpoint holds, on the host.
#[derive(Debug)]
pub(super) struct TunerSnapshot {
    step: u64,
    epoch: u64,
    model: NamedTensors,
    optimizer: NamedTensors,
    state: Vec<u8>,
    metrics: MetricsFiles,
    data: Arc<DataIdentity>,
}

impl Tuner {
    /// Copies the state as it is.
    pub(super) fn snapshot(
        &self,
        data: &Arc<DataIdentity>,
        labels: &LabelRecord,
        metrics: MetricsFiles,
    ) -> TunerSnapshot {
        let plain = |value: serde_json::Result<Value>| value.expect("it is plain data");
        let mut config = plain(serde_json::to_value(&self.config));
        config[LABELS] = json!(labels);
        let state = TrainState {
            cursor: self.cursor,
            ln_partition: None,
            optimizer_steps: Some(self.optimizer.steps()),
            skipped_steps: 0,
            loss_scale: Value::Null,
            layout: data.layout.clone(),
            instances: data.ids.len() as u64,
            encoder: plain(serde_json::to_value(self.encoder.config())),
            config,
        };
        TunerSnapshot {
            step: self.cursor.step,
            epoch: self.cursor.epoch,
            model: self.encoder.weights(),
            optimizer: self.optimizer.buffers(),
            state: serde_json::to_vec_pretty(&state).expect("a state is plain data"),
            metrics,
            data: Arc::clone(data),
        }
    }

    /// Puts the state of a checkpoint in place.
    ///
    /// # Errors
    /// If the checkpoint is of other data, labels or configuration, or damaged.
    pub(super) fn restore(
        &mut self,
        from: &Checkpoint,
        data: &DataIdentity,
        labels: &LabelRecord,
    ) -> Result<(), TrainError> {
        let (before, now) = (&from.manifest().trained_on, &data.trained_on);
        let checkpoint = from.folder().to_string();
        if before.split_digest != now.split_digest {
            let (before, now) = (before.dataset_digest.clone(), now.dataset_digest.clone());
            return Err(TrainError::OtherDataset { checkpoint, before, now });
        }
        let state = from.state()?;
        let mut differences = self.config.incompatibilities(&state.config);
        let (before, now) = (&state.config[LABELS], json!(labels));
        if *before != now {
            let (before, now) = (before.to_string(), now.to_string());
            differences.push(Difference { key: LABELS.into(), before, now });
        }
        if !differences.is_empty() {
            return Err(TrainError::OtherConfig { checkpoint, differences });
        }
        self.encoder.load(&NamedTensors::from_bytes(&from.read(MODEL)?)?)?;
        let steps = state.optimizer_steps.unwrap_or(state.cursor.step);
        self.optimizer.load(&NamedTensors::from_bytes(&from.read(OPTIMIZER)?)?, steps)?;
        self.cursor = state.cursor;
        Ok(())
    }
}

impl Saved for TunerSnapshot {
    fn step(&self) -> u64 {
        self.step
    }

    fn write(self, run: &Location) -> Result<Location, TrainError> {
        if let Some(name) = self.model.not_finite() {
            return Err(TrainError::Poisoned { step: self.step, name: name.to_owned() });
        }
        self.metrics.publish()?;
        let folder = run.join("checkpoints").join(&checkpoint_name(self.step));
        let files = vec![
            publish_file(&folder, MODEL, self.model.to_bytes())?,
            publish_file(&folder, OPTIMIZER, self.optimizer.to_bytes())?,
            publish_file(&folder, STATE, self.state)?,
        ];
        let trained_on = self.data.trained_on.clone();
        CheckpointManifest::new(self.step, self.epoch, trained_on, files).publish(&folder)?;
        Ok(folder)
    }
}
