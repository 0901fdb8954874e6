//! Saving a run's state as a checkpoint, and loading it from one.

pub(super) mod resume;
pub(super) mod sharded;
pub(super) mod snapshot;
pub(super) mod soundness;
pub(super) mod writer;

use crate::checkpoint::TrainedOn;
use crate::dataset::Manifest;
use crate::ids::{ClassId, InstanceId};
use crate::loader::Source;
use crate::run_config::{ShuffleKind, TrainConfig};
use crate::storage::{Location, PublishMode};
use crate::train::{TrainError, TrainJob};

/// Identity of the training data, stored in each checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct DataIdentity {
    /// Location of the dataset, for errors.
    pub dataset: String,
    pub trained_on: TrainedOn,
    pub classes: Vec<String>,
    pub ids: Vec<InstanceId>,
    pub labels: Vec<Option<ClassId>>,
    /// Digest of the row groups' contents; set only if the order of the images depends on them.
    pub layout: Option<String>,
}

impl DataIdentity {
    /// Returns the identity of a job's training data.
    pub(crate) fn of(job: &TrainJob, manifest: &Manifest, source: &dyn Source) -> Result<Self, TrainError> {
        let config = &job.config;
        Ok(Self {
            dataset: job.dataset.to_string(),
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

/// Publishes the configuration of a new run.
pub(crate) fn publish_config(config: &TrainConfig, run: &Location) -> Result<(), TrainError> {
    let text = toml::to_string(config).expect("a configuration is plain data");
    Ok(run.join("config.toml").publish(text, PublishMode::Overwrite)?)
}
