//! How a fine-tuning begins, or goes on.

use std::rc::Rc;
use std::sync::Arc;

use super::super::{Hooks, StopFlag, TrainError};
use super::tuner::Tuner;
use super::{FinetuneJob, LabelRecord};
use crate::checkpoint::{Checkpoint, MODEL};
use crate::dataset::{Manifest, write_label_subset};
use crate::distributed::ProcessGroup;
use crate::loader::{Source, Subset, SubsetRecord};
use crate::model::{NamedTensors, select_device};
use crate::run_config::{Precision, TrainConfig};
use crate::train::Opened;
use crate::train::Outcome;
use crate::train::checkpoint::resume::{Start, set_precision};
use crate::train::checkpoint::snapshot::{DataIdentity, publish_config};
use crate::train::data;

/// The file in the run's folder that names the labels which were seen.
const LABELS: &str = "labels.parquet";

/// Fine-tunes to the end of the last epoch, going on from the newest checkpoint if there is one.
///
/// # Errors
/// See [`TrainError`]; the checkpoints published so far stand.
pub fn finetune(job: &FinetuneJob, hooks: &mut dyn Hooks, stop: &StopFlag) -> Result<Outcome, TrainError> {
    Opened::of_labels(job)?.begin(hooks)?.run(hooks, stop)
}

impl Opened<Tuner> {
    /// A fine-tuning where its newest checkpoint is, or at its start.
    fn of_labels(job: &FinetuneJob) -> Result<Self, TrainError> {
        let (run, manifest) = (&job.train.run, Manifest::read(&job.train.dataset)?);
        if manifest.classes.is_empty() {
            let reason = format!(
                "{}: the dataset has no labels, which fine-tuning learns from; ingest it with its classes",
                job.train.dataset
            );
            return Err(TrainError::Config { reason });
        }
        let config = TrainConfig { dim: manifest.classes.len(), ..job.train.config.clone() };
        config.validate()?;
        if config.precision == Precision::F16 {
            let reason = "fine-tuning knows f32, tf32 and bf16".into();
            return Err(TrainError::Config { reason });
        }
        let whole = data::open(&job.train, &manifest)?;
        let source: Arc<dyn Source> =
            Arc::new(Subset::of_labels(whole, job.labels.fraction, job.labels.seed));
        if config.loader().steps(source.len()) == 0 {
            let reason = format!("{} labels of split `{}` make no batch", source.len(), config.split);
            return Err(TrainError::Config { reason });
        }
        let data = DataIdentity::of(&job.train, &manifest, source.as_ref())?;
        let from = Checkpoint::open(&job.from)?;
        let weights =
            from.manifest().files.iter().find(|entry| entry.name == MODEL).map(|entry| entry.digest);
        let labels = LabelRecord {
            options: job.labels,
            subset: SubsetRecord::new(source.ids(), source.labels()),
            weights: weights.filter(|_| !job.labels.from_scratch),
        };
        let group = Rc::new(ProcessGroup::alone());
        let start = Start::of(&group, run)?;
        let device = select_device(config.device)?;
        set_precision(&config, device.device);
        let mut tuner = Tuner::new(config, labels, source.len(), device.device);
        match &start.found {
            Some(checkpoint) => tuner.restore(checkpoint, &data)?,
            None => {
                publish_config(&tuner.config, run)?;
                write_label_subset(run, LABELS, source.ids(), source.labels())?;
                if !job.labels.from_scratch {
                    tuner.begin_with(&NamedTensors::from_bytes(&from.read(MODEL)?)?)?;
                }
            }
        }
        Ok(Self { run: run.clone(), group, learner: tuner, source, data, device, start })
    }
}
