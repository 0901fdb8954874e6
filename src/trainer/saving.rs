//! A run's state, to a checkpoint and back.

use std::sync::Arc;

use crate::bank::MemoryBank;
use crate::checkpoint::{
    BANK, Checkpoint, CheckpointError, CheckpointManifest, FileEntry, MODEL, OPTIMIZER, STATE, TrainState,
    TrainedOn, checkpoint_name, list_checkpoints, publish_file, remove_checkpoint,
};
use crate::feature_table::{FeatureTable, Kind, TableMeta};
use crate::ids::{ClassId, InstanceId};
use crate::model::NamedTensors;
use crate::objective::{Objective, Partition};
use crate::storage::{Location, PublishMode};

use super::background::Saved;
use super::metrics::MetricsFiles;
use super::step::Trainer;
use super::{Difference, TrainError};

/// What a checkpoint says of the data it was trained on.
#[derive(Clone, Debug)]
pub(super) struct DataIdentity {
    pub(super) trained_on: TrainedOn,
    pub(super) classes: Vec<String>,
    pub(super) ids: Vec<InstanceId>,
    pub(super) labels: Vec<Option<ClassId>>,
    /// The digest of what lies in which row group, where the order of the pictures depends on it.
    pub(super) layout: Option<String>,
}

/// A copy of everything that a checkpoint holds, on the host: training can go on while it is written.
#[derive(Debug)]
pub(super) struct Snapshot {
    step: u64,
    epoch: u64,
    model: NamedTensors,
    optimizer: NamedTensors,
    bank: Vec<f32>,
    dim: usize,
    updated_step: Vec<Option<u64>>,
    state: Vec<u8>,
    metrics: MetricsFiles,
    data: Arc<DataIdentity>,
}

impl Trainer {
    /// Copies the state as it is.
    pub(super) fn snapshot(&self, data: &Arc<DataIdentity>, metrics: MetricsFiles) -> Snapshot {
        let json = |value: serde_json::Result<serde_json::Value>| value.expect("it is plain data");
        let state = TrainState {
            cursor: self.cursor,
            ln_partition: self.objective.partition().ln_z(),
            optimizer_steps: Some(self.optimizer.steps()),
            skipped_steps: self.skipped,
            loss_scale: json(serde_json::to_value(self.loss_scale)),
            instances: self.bank.len() as u64,
            encoder: json(serde_json::to_value(self.encoder.config())),
            config: json(serde_json::to_value(&self.config)),
            layout: data.layout.clone(),
        };
        Snapshot {
            step: self.cursor.step,
            epoch: self.cursor.epoch,
            model: self.encoder.weights(),
            optimizer: self.optimizer.buffers(),
            bank: self.bank.to_vec(),
            dim: self.bank.dim(),
            updated_step: self.bank.updated_step().to_vec(),
            state: serde_json::to_vec_pretty(&state).expect("a state is plain data"),
            metrics,
            data: Arc::clone(data),
        }
    }

    /// Puts the state of a checkpoint in place.
    ///
    /// # Errors
    /// If the checkpoint is of another dataset or configuration, or damaged.
    pub(super) fn restore(&mut self, from: &Checkpoint, data: &DataIdentity) -> Result<(), TrainError> {
        let state = self.check_compatible(from, data)?;
        self.encoder.load(&NamedTensors::from_bytes(&from.read(MODEL)?)?)?;
        let steps = state.optimizer_steps.unwrap_or(state.cursor.step);
        self.optimizer.load(&NamedTensors::from_bytes(&from.read(OPTIMIZER)?)?, steps)?;
        let damaged = |name| CheckpointError::Damaged { file: from.folder().join(name).to_string() };
        let table = FeatureTable::read(&from.folder().join(BANK))?;
        if table.ids != data.ids {
            return Err(damaged(BANK).into());
        }
        let device = self.encoder.device();
        let rows = MemoryBank::from_rows(&table.features, table.meta.dim, table.updated_step, device);
        self.bank = rows.with_dtype(self.config.bank_dtype);
        let partition = state.ln_partition.map_or(Partition::Unset, |ln_z| Partition::Set { ln_z });
        self.objective = Objective::new(self.config.objective(), partition);
        self.loss_scale = serde_json::from_value(state.loss_scale).map_err(|_| damaged(STATE))?;
        self.skipped = state.skipped_steps;
        self.cursor = state.cursor;
        Ok(())
    }

    fn check_compatible(&self, from: &Checkpoint, data: &DataIdentity) -> Result<TrainState, TrainError> {
        let (before, now) = (&from.manifest().trained_on, &data.trained_on);
        let checkpoint = from.folder().to_string();
        if before.split_digest != now.split_digest {
            let (before, now) = (before.dataset_digest.clone(), now.dataset_digest.clone());
            return Err(TrainError::OtherDataset { checkpoint, before, now });
        }
        let state = from.state()?;
        let mut differences = self.config.incompatibilities(&state.config);
        if state.layout != data.layout {
            let shown = |layout: &Option<String>| layout.clone().unwrap_or_else(|| "any".into());
            let key = "row groups of the dataset, on which a windowed order depends".into();
            differences.push(Difference { key, before: shown(&state.layout), now: shown(&data.layout) });
        }
        if !differences.is_empty() {
            return Err(TrainError::OtherConfig { checkpoint, differences });
        }
        Ok(state)
    }
}

impl Saved for Snapshot {
    fn step(&self) -> u64 {
        self.step
    }

    fn write(self, run: &Location) -> Result<Location, TrainError> {
        if let Some(name) = self.model.not_finite() {
            return Err(TrainError::Poisoned { step: self.step, name: name.to_owned() });
        }
        self.metrics.publish()?;
        let folder = run.join("checkpoints").join(&checkpoint_name(self.step));
        let data = Arc::clone(&self.data);
        let (step, epoch) = (self.step, self.epoch);
        let mut files = vec![
            publish_file(&folder, MODEL, self.model.to_bytes())?,
            publish_file(&folder, OPTIMIZER, self.optimizer.to_bytes())?,
            publish_file(&folder, STATE, self.state)?,
        ];
        let bank = FeatureTable {
            meta: TableMeta {
                kind: Kind::Bank,
                layer: "projection".into(),
                dim: self.dim,
                dataset_digest: data.trained_on.dataset_digest.clone(),
                split: data.trained_on.split.clone(),
                step,
                unit_length: true,
                classes: data.classes.clone(),
            },
            ids: data.ids.clone(),
            labels: data.labels.clone(),
            updated_step: self.updated_step,
            features: self.bank,
        };
        // What a reader would refuse is not published.
        bank.check()?;
        let written = bank.write(&folder.join(BANK))?;
        files.push(FileEntry { name: BANK.into(), bytes: written.bytes, digest: written.digest });
        CheckpointManifest::new(step, epoch, data.trained_on.clone(), files).publish(&folder)?;
        Ok(folder)
    }
}

/// Publishes the configuration of a run that begins.
///
/// # Errors
/// If the store fails.
pub(super) fn publish_config(trainer: &Trainer, run: &Location) -> Result<(), TrainError> {
    let text = toml::to_string(&trainer.config).expect("a configuration is plain data");
    Ok(run.join("config.toml").publish(text, PublishMode::Overwrite)?)
}

/// The newest checkpoint that is whole. Damaged newer ones are reported and removed: they would count as
/// newer than what the run saves next. Only for who alone writes to the run.
///
/// # Errors
/// If none is whole, one is of a version that this program does not know, or the store fails.
pub(super) fn newest(run: &Location) -> Result<Option<Checkpoint>, TrainError> {
    let mut damaged = Vec::new();
    for (_, folder) in list_checkpoints(run)?.into_iter().rev() {
        match Checkpoint::open(&folder).and_then(|checkpoint| checkpoint.verify().map(|()| checkpoint)) {
            Ok(checkpoint) => {
                for (folder, error) in damaged {
                    tracing::warn!("{error}; it is removed, the checkpoint before it is used");
                    remove_checkpoint(&folder)?;
                }
                return Ok(Some(checkpoint));
            }
            Err(error @ (CheckpointError::Storage(_) | CheckpointError::Version { .. })) => {
                return Err(error.into());
            }
            Err(error) => damaged.push((folder, error)),
        }
    }
    // With all checkpoints lost, to begin anew in the same place is not for the program to decide.
    damaged.into_iter().next().map_or(Ok(None), |(_, error)| Err(error.into()))
}
