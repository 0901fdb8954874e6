//! Snapshots of a run's state, and writing them as checkpoints.

use std::ops::Range;
use std::sync::Arc;

use serde_json::{Value, json};
use tch::Tensor;

use super::DataIdentity;
use super::sharded::SharedCheckpoint;
use super::soundness::not_finite;
use crate::bank::MemoryBank;
use crate::checkpoint::{
    CheckpointManifest, FileEntry, MODEL, OPTIMIZER, PROBE, STATE, TrainState, TrainedOn, checkpoint_name,
    publish_file,
};
use crate::feature_table::{Kind, RowColumns, TableMeta, TableWriter};
use crate::model::{EncoderConfig, NamedTensors};
use crate::storage::{Location, Lock};
use crate::train::learner::{Learned, Learner};
use crate::train::metrics::MetricsFiles;
use crate::train::{Probe, TrainError};

/// Host copy of this process's part of a checkpoint; training continues while it is written.
#[derive(Debug)]
pub(crate) struct Snapshot {
    step: u64,
    /// Set on rank 0.
    common: Option<Common>,
    bank: Option<BankRows>,
    data: Arc<DataIdentity>,
    ranks: SharedCheckpoint,
}

/// State that all processes share.
#[derive(Debug)]
struct Common {
    epoch: u64,
    encoder: EncoderConfig,
    model: NamedTensors,
    optimizer: NamedTensors,
    probe: Option<NamedTensors>,
    state: Vec<u8>,
    metrics: MetricsFiles,
    /// Lock of the run: a process that lost it during the write publishes nothing.
    lock: Arc<Lock>,
}

/// Bank rows of this process.
#[derive(Debug)]
struct BankRows {
    /// `[owned, dim]` on the host, in the bank's type.
    rows: Tensor,
    updated_step: Vec<Option<u64>>,
    /// Range of these rows in the whole bank.
    owned: Range<usize>,
}

impl Snapshot {
    /// Returns the number of steps done.
    pub(crate) fn step(&self) -> u64 {
        self.step
    }

    /// Copies the current state; `first` is set on rank 0 alone.
    pub(crate) fn take(
        learner: &impl Learner,
        data: &Arc<DataIdentity>,
        first: Option<(MetricsFiles, Arc<Lock>)>,
        ranks: &SharedCheckpoint,
    ) -> Self {
        Self {
            step: learner.learned().cursor.step,
            common: first.map(|(metrics, lock)| Common::of(learner, data, metrics, lock)),
            bank: learner.bank().map(BankRows::of),
            data: Arc::clone(data),
            ranks: ranks.clone(),
        }
    }

    /// Publishes the metrics up to this step, then the checkpoint.
    ///
    /// # Errors
    /// If a weight, a buffer, a feature or a bank row is not finite, a row does not have unit length, another
    /// process took the run over meanwhile, or the store fails. Earlier checkpoints remain.
    pub(crate) fn write(self, run: &Location) -> Result<Location, TrainError> {
        let Self { step, common, bank, data, ranks } = self;
        let folder = run.join("checkpoints").join(&checkpoint_name(step));
        let name = ranks.bank_file();
        let bank = bank.map(|rows| || rows.write(step, &data, &folder, name));
        match (common, bank) {
            (Some(common), bank) => {
                let published = common.write(step, &folder, &data.trained_on, || {
                    let Some(write) = bank else { return Ok(Vec::new()) };
                    Ok(std::iter::once(write()?).chain(ranks.collect(step, &folder)?).collect())
                });
                ranks.publish(step, published)?;
            }
            (None, Some(write)) => ranks.hand_in(step, write())?,
            (None, None) => ranks.wait_for(step)?,
        }
        Ok(folder)
    }
}

impl BankRows {
    fn of(bank: &MemoryBank) -> Self {
        let updated_step = bank.updated_step().to_vec();
        Self { rows: bank.to_host(), updated_step, owned: bank.shard().range() }
    }

    /// Publishes the rows in pieces, without a copy of all. Fails for rows that a reader would reject.
    fn write(
        self,
        step: u64,
        data: &DataIdentity,
        folder: &Location,
        name: String,
    ) -> Result<FileEntry, TrainError> {
        let Self { rows, updated_step, owned } = self;
        let meta = TableMeta {
            kind: Kind::Bank,
            layer: "projection".into(),
            dim: rows.size()[1] as usize,
            dataset_digest: data.trained_on.dataset_digest.clone(),
            split: data.trained_on.split.clone(),
            split_digest: Some(data.trained_on.split_digest.clone()),
            weights: None,
            device: None,
            precision: None,
            step,
            unit_length: true,
            classes: data.classes.clone(),
        };
        let columns = RowColumns {
            ids: &data.ids[owned.clone()],
            labels: &data.labels[owned],
            updated_steps: &updated_step,
        };
        let written = TableWriter::write(&folder.join(&name), &meta, columns, |range| {
            let some = rows.narrow(0, range.start as i64, range.len() as i64);
            let values = some.to_kind(tch::Kind::Float).reshape([-1]);
            let values = Vec::try_from(values).expect("rows of f32 on the host");
            meta.check(range.start, &values)?;
            Ok(values)
        })?;
        Ok(FileEntry { name, bytes: written.bytes, digest: written.digest })
    }
}

impl Common {
    fn of(learner: &impl Learner, data: &DataIdentity, metrics: MetricsFiles, lock: Arc<Lock>) -> Self {
        let Learned { config, encoder, optimizer, cursor } = learner.learned();
        let mut state = TrainState {
            cursor,
            ln_partition: None,
            optimizer_steps: Some(optimizer.steps()),
            skipped_steps: 0,
            loss_scale: Value::Null,
            layout: data.layout.clone(),
            instances: data.ids.len() as u64,
            encoder: json!(encoder.config()),
            config: json!(config),
        };
        learner.complete(&mut state);
        Self {
            epoch: cursor.epoch,
            encoder: encoder.config(),
            model: encoder.weights(),
            optimizer: optimizer.buffers(),
            probe: learner.probe().map(Probe::tensors),
            state: serde_json::to_vec_pretty(&state).expect("a state is plain data"),
            metrics,
            lock,
        }
    }

    /// Writes everything, the manifest last; `bank` writes this shard of the bank and waits for the others.
    fn write(
        self,
        step: u64,
        folder: &Location,
        trained_on: &TrainedOn,
        bank: impl FnOnce() -> Result<Vec<FileEntry>, TrainError>,
    ) -> Result<(), TrainError> {
        if let Some(name) = not_finite(self.encoder, &self.model, &self.optimizer, self.probe.as_ref()) {
            return Err(TrainError::Poisoned { step, name });
        }
        self.metrics.publish()?;
        let mut files = vec![
            publish_file(folder, MODEL, self.model.to_bytes())?,
            publish_file(folder, OPTIMIZER, self.optimizer.to_bytes())?,
            publish_file(folder, STATE, self.state)?,
        ];
        if let Some(probe) = self.probe {
            files.push(publish_file(folder, PROBE, probe.to_bytes())?);
        }
        files.extend(bank()?);
        self.lock.check()?;
        Ok(CheckpointManifest::new(step, self.epoch, trained_on.clone(), files).publish(folder)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::list_checkpoints;
    use crate::feature_table::FeatureTable;
    use crate::ids::{ClassId, InstanceId};
    use crate::model::Encoder;
    use crate::run_config::{BankDtype, TrainConfig};
    use crate::storage::PublishMode;
    use crate::train::metrics::Metrics;

    fn common(run: &Location, lock: Lock) -> Common {
        let metrics = Metrics::resume(run, 0).expect("a new run").files();
        let arch = crate::run_config::Architecture::ResNet20Cifar;
        let config = TrainConfig { arch, image_size: 16, dim: 8, ..TrainConfig::default() };
        let encoder = Encoder::new(config.encoder(), 0, tch::Device::Cpu);
        let (model, optimizer) = (encoder.weights(), NamedTensors::from_tensors([]));
        Common {
            epoch: 0,
            encoder: encoder.config(),
            model,
            optimizer,
            probe: None,
            state: b"{}".to_vec(),
            metrics,
            lock: Arc::new(lock),
        }
    }

    fn trained_on() -> TrainedOn {
        let digest = "0".repeat(64);
        TrainedOn { dataset_digest: digest.clone(), split: "train".into(), split_digest: digest }
    }

    /// Rows of more than one record batch.
    const ROWS: usize = 70_000;

    fn identity() -> DataIdentity {
        let ids = (0..ROWS as u32).map(InstanceId).collect();
        let labels = (0..ROWS).map(|row| (row % 3 > 0).then_some(ClassId(1))).collect();
        let classes = vec!["a".into(), "b".into()];
        DataIdentity { dataset: "data".into(), trained_on: trained_on(), classes, ids, labels, layout: None }
    }

    #[test]
    fn rows_are_written_piece_by_piece_as_a_whole_table_is() {
        for dtype in [BankDtype::F32, BankDtype::Bf16] {
            let bank = MemoryBank::random(ROWS, 3, 5, tch::Device::Cpu).with_dtype(dtype);
            let folder = Location::in_memory().join("checkpoint");
            let (written, again) = (folder.join("bank.arrow"), folder.join("again.arrow"));
            let rows = BankRows::of(&bank);
            assert_eq!(rows.rows.kind(), bank.rows().kind());
            rows.write(7, &identity(), &folder, "bank.arrow".into()).expect("written");
            let table = FeatureTable::read(&written).expect("a table");
            assert!(table.features == bank.to_vec() && table.ids == identity().ids);
            assert!(table.labels == identity().labels && table.meta.step == 7);
            table.write(&again).expect("written");
            assert!(written.read().expect("bytes") == again.read().expect("bytes"), "{dtype:?}");
        }
    }

    #[test]
    fn a_row_that_is_not_finite_is_named_and_nothing_is_published() {
        let bank = MemoryBank::random(ROWS, 3, 5, tch::Device::Cpu);
        let _ = bank.rows().get(ROWS as i64 - 1).fill_(f64::NAN);
        let folder = Location::in_memory().join("checkpoint");
        let written = BankRows::of(&bank).write(7, &identity(), &folder, "bank.arrow".into());
        let error = written.expect_err("not a number").to_string();
        assert!(error.contains("69999"), "{error}");
        assert!(folder.list().expect("a list").is_empty());
    }

    #[test]
    fn who_loses_the_run_while_it_writes_publishes_no_checkpoint() {
        let run = Location::in_memory().join("run");
        let folder = run.join("checkpoints").join(&checkpoint_name(5));
        let lock = || Lock::take(&run.join("lock"));
        let overtaken = common(&run, lock().expect("free"));
        let overtake = || {
            run.join("lock.00000001").publish("another process", PublishMode::Overwrite)?;
            Ok(Vec::new())
        };
        let error = overtaken.write(5, &folder, &trained_on(), overtake).expect_err("it is another's");
        assert_eq!(error.failure(), crate::failure::Failure::Unavailable, "{error}");
        assert!(list_checkpoints(&run).expect("a list").is_empty());

        run.join("lock.00000001").delete().expect("removed");
        let holder = common(&run, lock().expect("free again"));
        holder.write(5, &folder, &trained_on(), || Ok(Vec::new())).expect("published");
        assert_eq!(list_checkpoints(&run).expect("a list").len(), 1);
    }
}
