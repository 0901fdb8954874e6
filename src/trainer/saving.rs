//! A run's state, to a checkpoint and back.

use std::ops::Range;
use std::sync::Arc;

use crate::bank::{MemoryBank, StoredRows};
use crate::checkpoint::{
    BANK, Checkpoint, CheckpointError, CheckpointManifest, FileEntry, MODEL, OPTIMIZER, STATE, TrainState,
    TrainedOn, bank_part, checkpoint_name, list_checkpoints, publish_file, remove_checkpoint,
};
use crate::dataset::Manifest;
use crate::feature_table::{FeatureTable, Kind, StoredTable, Table, TableMeta};
use crate::ids::{ClassId, InstanceId};
use crate::loader::Source;
use crate::model::NamedTensors;
use crate::objective::{Objective, Partition};
use crate::storage::{Location, PublishMode};

use super::background::Saved;
use super::data::ShuffleKind;
use super::metrics::MetricsFiles;
use super::parts_of_ranks::PartsOfRanks;
use super::state::Trainer;
use super::{Difference, TrainError, TrainJob};

/// Rows of a bank that are read at a time: 32 MiB at 128 numbers a row.
const ROWS_OF_A_READ: usize = 1 << 16;

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

impl DataIdentity {
    /// What a job trains on.
    ///
    /// # Errors
    /// If the dataset has no such split.
    pub(super) fn of(job: &TrainJob, manifest: &Manifest, source: &dyn Source) -> Result<Self, TrainError> {
        let config = &job.config;
        Ok(Self {
            trained_on: TrainedOn {
                dataset_digest: manifest.dataset_digest.to_string(),
                split: config.split.clone(),
                split_digest: manifest.split(&job.dataset, &config.split)?.digest.to_string(),
            },
            classes: manifest.classes.clone(),
            ids: source.ids().to_vec(),
            labels: source.labels().to_vec(),
            layout: (config.shuffle == ShuffleKind::Windowed).then(|| source.layout().digest().to_string()),
        })
    }
}

/// A copy of everything that a process adds to a checkpoint, on the host: training can go on while it is written.
#[derive(Debug)]
pub(super) struct Snapshot {
    step: u64,
    /// Of rank 0.
    common: Option<Common>,
    bank: Vec<f32>,
    dim: usize,
    updated_step: Vec<Option<u64>>,
    /// The places of the bank's rows.
    owned: Range<usize>,
    data: Arc<DataIdentity>,
    ranks: PartsOfRanks,
}

/// What is the same in all processes.
#[derive(Debug)]
struct Common {
    epoch: u64,
    model: NamedTensors,
    optimizer: NamedTensors,
    state: Vec<u8>,
    metrics: MetricsFiles,
}

impl Trainer {
    /// Copies the state as it is; `metrics` are rank 0's.
    pub(super) fn snapshot(
        &self,
        data: &Arc<DataIdentity>,
        metrics: Option<MetricsFiles>,
        ranks: &PartsOfRanks,
    ) -> Snapshot {
        Snapshot {
            step: self.cursor.step,
            common: metrics.map(|metrics| self.common(data, metrics)),
            bank: self.bank.to_vec(),
            dim: self.bank.dim(),
            updated_step: self.bank.updated_step().to_vec(),
            owned: self.bank.range(),
            data: Arc::clone(data),
            ranks: ranks.clone(),
        }
    }

    fn common(&self, data: &DataIdentity, metrics: MetricsFiles) -> Common {
        let json = |value: serde_json::Result<serde_json::Value>| value.expect("it is plain data");
        let state = TrainState {
            cursor: self.cursor,
            ln_partition: self.objective.partition().ln_z(),
            optimizer_steps: Some(self.optimizer.steps()),
            skipped_steps: self.skipped,
            loss_scale: json(serde_json::to_value(self.loss_scale)),
            instances: self.bank.instances() as u64,
            encoder: json(serde_json::to_value(self.encoder.config())),
            config: json(serde_json::to_value(&self.config)),
            layout: data.layout.clone(),
        };
        Common {
            epoch: self.cursor.epoch,
            model: self.encoder.weights(),
            optimizer: self.optimizer.buffers(),
            state: serde_json::to_vec_pretty(&state).expect("a state is plain data"),
            metrics,
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
        let table = StoredTable::open_all(&from.bank()?)?;
        if table.ids() != data.ids {
            return Err(damaged(BANK).into());
        }
        let owned = self.bank.range();
        let rows = read_rows(&table, &owned)?;
        let updated_step = table.updated_steps()[owned.clone()].to_vec();
        let (first_row, instances) = (owned.start, data.ids.len());
        let stored = StoredRows { rows: &rows, updated_step, first_row, instances };
        let bank = MemoryBank::from_stored(stored, table.meta().dim, self.encoder.device());
        self.bank = bank.with_dtype(self.config.bank_dtype);
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
        let Self { step, common, ranks, data, owned, dim, .. } = self;
        let folder = run.join("checkpoints").join(&checkpoint_name(step));
        let table = FeatureTable {
            meta: TableMeta {
                kind: Kind::Bank,
                layer: "projection".into(),
                dim,
                dataset_digest: data.trained_on.dataset_digest.clone(),
                split: data.trained_on.split.clone(),
                step,
                unit_length: true,
                classes: data.classes.clone(),
            },
            ids: data.ids[owned.clone()].to_vec(),
            labels: data.labels[owned].to_vec(),
            updated_step: self.updated_step,
            features: self.bank,
        };
        let name = bank_part(ranks.rank, ranks.ranks);
        match common {
            None => ranks.hand_in(step, write_bank(&table, &folder, name))?,
            Some(common) => {
                let published = common.write(step, &folder, &data.trained_on, || {
                    let own = write_bank(&table, &folder, name)?;
                    Ok(std::iter::once(own).chain(ranks.collect(step, &folder)?).collect())
                });
                ranks.publish(step, published)?;
            }
        }
        Ok(folder)
    }
}

impl Common {
    /// Writes everything, the manifest last; `bank` writes the bank, and waits for what others write of it.
    fn write(
        self,
        step: u64,
        folder: &Location,
        trained_on: &TrainedOn,
        bank: impl FnOnce() -> Result<Vec<FileEntry>, TrainError>,
    ) -> Result<(), TrainError> {
        if let Some(name) = self.model.not_finite() {
            return Err(TrainError::Poisoned { step, name: name.to_owned() });
        }
        self.metrics.publish()?;
        let mut files = vec![
            publish_file(folder, MODEL, self.model.to_bytes())?,
            publish_file(folder, OPTIMIZER, self.optimizer.to_bytes())?,
            publish_file(folder, STATE, self.state)?,
        ];
        files.extend(bank()?);
        Ok(CheckpointManifest::new(step, self.epoch, trained_on.clone(), files).publish(folder)?)
    }
}

/// Publishes rows of the bank, unless a reader would refuse them.
fn write_bank(table: &FeatureTable, folder: &Location, name: String) -> Result<FileEntry, TrainError> {
    table.check()?;
    let written = table.write(&folder.join(&name))?;
    Ok(FileEntry { name, bytes: written.bytes, digest: written.digest })
}

/// Some rows of a table, row after row, without the others.
fn read_rows(table: &StoredTable, rows: &Range<usize>) -> Result<Vec<f32>, TrainError> {
    let mut values = Vec::with_capacity(rows.len() * table.meta().dim);
    for range in table.ranges(ROWS_OF_A_READ) {
        let wanted = range.start.max(rows.start)..range.end.min(rows.end);
        if !wanted.is_empty() {
            values.extend_from_slice(&table.start_read(range).finish()?.rows(wanted)?);
        }
    }
    Ok(values)
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
