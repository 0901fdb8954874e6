//! A run's state, to a checkpoint and back.

use crate::bank::MemoryBank;
use crate::checkpoint::{
    BANK, Checkpoint, CheckpointError, CheckpointManifest, FileEntry, MODEL, OPTIMIZER, STATE, TrainState,
    TrainedOn, checkpoint_name, list_checkpoints, publish_file, remove_checkpoint,
};
use crate::feature_table::{FeatureTable, Kind, TableMeta};
use crate::ids::{ClassId, InstanceId};
use crate::model::NamedTensors;
use crate::storage::Location;

use super::TrainError;
use super::step::Trainer;

/// What a checkpoint says of the data it was trained on.
#[derive(Clone, Debug)]
pub(super) struct DataIdentity {
    pub(super) trained_on: TrainedOn,
    pub(super) classes: Vec<String>,
    pub(super) ids: Vec<InstanceId>,
    pub(super) labels: Vec<Option<ClassId>>,
}

impl Trainer {
    /// Publishes a checkpoint of the state as it is.
    ///
    /// # Errors
    /// If the store fails; then earlier checkpoints stand.
    pub(super) fn save(&self, run: &Location, data: &DataIdentity) -> Result<Location, TrainError> {
        let step = self.cursor.step;
        let folder = run.join("checkpoints").join(&checkpoint_name(step));
        let state = TrainState {
            cursor: self.cursor,
            ln_partition: self.objective.ln_partition(),
            instances: self.bank.len() as u64,
            encoder: serde_json::to_value(self.encoder.config()).expect("a configuration is plain data"),
            config: serde_json::to_value(&self.config).expect("a configuration is plain data"),
        };
        let state = serde_json::to_vec_pretty(&state).expect("a state is plain data");
        let bank = self.bank_table(data).write(&folder.join(BANK))?;
        let files = vec![
            publish_file(&folder, MODEL, self.encoder.weights().to_bytes())?,
            publish_file(&folder, OPTIMIZER, self.optimizer.buffers().to_bytes())?,
            FileEntry { name: BANK.into(), bytes: bank.bytes, digest: bank.digest },
            publish_file(&folder, STATE, state)?,
        ];
        CheckpointManifest::new(step, self.cursor.epoch, data.trained_on.clone(), files).publish(&folder)?;
        Ok(folder)
    }

    /// Puts the state of a checkpoint in place.
    ///
    /// # Errors
    /// If the checkpoint is of another dataset or configuration, or damaged.
    pub(super) fn restore(&mut self, from: &Checkpoint, data: &DataIdentity) -> Result<(), TrainError> {
        let state = self.check_compatible(from, data)?;
        self.encoder.load(&NamedTensors::from_bytes(&from.read(MODEL)?)?)?;
        self.optimizer.load(&NamedTensors::from_bytes(&from.read(OPTIMIZER)?)?)?;
        let table = FeatureTable::read(&from.folder().join(BANK))?;
        if table.ids != data.ids {
            let file = from.folder().join(BANK).to_string();
            return Err(CheckpointError::Damaged { file }.into());
        }
        let device = self.encoder.device();
        self.bank = MemoryBank::from_rows(&table.features, table.meta.dim, table.updated_step, device);
        self.set_partition(state.ln_partition);
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
        if let Some((key, before, now)) = self.config.incompatibility(&state.config) {
            return Err(TrainError::OtherConfig { run: checkpoint, key, before, now });
        }
        Ok(state)
    }

    /// The bank as a feature table.
    fn bank_table(&self, data: &DataIdentity) -> FeatureTable {
        FeatureTable {
            meta: TableMeta {
                kind: Kind::Bank,
                layer: "projection".into(),
                dim: self.bank.dim(),
                dataset_digest: data.trained_on.dataset_digest.clone(),
                split: data.trained_on.split.clone(),
                step: self.cursor.step,
                unit_length: true,
                classes: data.classes.clone(),
            },
            ids: data.ids.clone(),
            labels: data.labels.clone(),
            updated_step: self.bank.updated_step().to_vec(),
            features: self.bank.to_vec(),
        }
    }
}

/// The newest checkpoint that is whole; damaged newer ones are reported and passed over.
pub(super) fn newest(run: &Location) -> Result<Option<Checkpoint>, TrainError> {
    for (_, folder) in list_checkpoints(run)?.into_iter().rev() {
        match Checkpoint::open(&folder).and_then(|checkpoint| checkpoint.verify().map(|()| checkpoint)) {
            Ok(checkpoint) => return Ok(Some(checkpoint)),
            Err(CheckpointError::Storage(error)) => return Err(error.into()),
            Err(error) => tracing::warn!("{error}; the checkpoint before it is used"),
        }
    }
    Ok(None)
}

/// Removes all but the newest `keep` checkpoints and the initial one.
pub(super) fn prune(run: &Location, keep: usize) -> Result<(), TrainError> {
    let all = list_checkpoints(run)?;
    let old = if keep == 0 { 0 } else { all.len().saturating_sub(keep) };
    for (_, folder) in all[..old].iter().filter(|(step, _)| *step > 0) {
        remove_checkpoint(folder)?;
    }
    Ok(())
}
