//! The configuration of a training run.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::loader::{OnCorrupt, Recipe};
use crate::model::{Architecture, DeviceChoice, EncoderConfig, Normalisation};
use crate::objective::ObjectiveKind;
use crate::units::{BankMomentum, ByteSize, Temperature};

use super::data::ShuffleKind;

/// The augmentation recipes by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum RecipeKind {
    /// Crop, grayscale, colour jitter, flip (reference `main.py`).
    Imagenet,
    /// Crop, colour jitter, grayscale, no flip (reference `cifar.py`).
    Cifar,
}

impl RecipeKind {
    /// The recipe for pictures of this size.
    pub fn recipe(self, image_size: u32) -> Recipe {
        match self {
            Self::Imagenet => Recipe::imagenet(image_size),
            Self::Cifar => Recipe::cifar(image_size),
        }
    }

    /// The shorter side to which a picture is resized before its centre is cut out for evaluation:
    /// 256 for 224 as the reference does, and no margin for small pictures.
    fn evaluation_resize(self, image_size: u32) -> u32 {
        match self {
            Self::Imagenet => image_size * 256 / 224,
            Self::Cifar => image_size,
        }
    }

    /// The statistics by which pixels are normalised.
    pub fn normalisation(self) -> Normalisation {
        match self {
            Self::Imagenet => Normalisation::IMAGENET,
            Self::Cifar => Normalisation::CIFAR,
        }
    }
}

/// In which precision the network computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floating point throughout.
    F32,
}

/// Everything that a run is made from, apart from where it reads and writes.
///
/// The defaults are those of the reference's `main.py` for ImageNet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// The split to train on.
    pub split: String,
    /// Train on so many instances only, a uniform sample; 0 for all.
    pub limit: u64,
    /// The backbone.
    pub arch: Architecture,
    /// The length of the embedding.
    pub dim: usize,
    /// The side of the square that the encoder sees, in pixels.
    pub image_size: u32,
    /// The augmentation recipe.
    pub recipe: RecipeKind,
    /// Pictures of one step.
    pub batch_size: usize,
    /// Passes over the split.
    pub epochs: u64,
    /// The objective.
    pub objective: ObjectiveKind,
    /// K, noise samples of each picture, for `nce`.
    pub negatives: usize,
    /// τ.
    pub temperature: Temperature,
    /// The weight of the old row when the bank is updated.
    pub bank_momentum: BankMomentum,
    /// Added to the noise's probability by `nce`; the reference has 1e-7, see docs/numerics.md.
    pub eps: f64,
    /// The learning rate of the first epoch.
    pub lr: f64,
    /// Epochs at which the learning rate is multiplied by `lr_decay`.
    pub lr_milestones: Vec<u64>,
    /// See `lr_milestones`.
    pub lr_decay: f64,
    /// The momentum of SGD.
    pub momentum: f64,
    /// Weight decay, on every parameter as in the reference.
    pub weight_decay: f64,
    /// The seed of every random number of the run.
    pub seed: u64,
    /// `auto`, `cpu` or `cuda:N`.
    pub device: DeviceChoice,
    /// In which precision the network computes.
    pub precision: Precision,
    /// How the instances of an epoch are mixed.
    pub shuffle: ShuffleKind,
    /// Rows of a window of the windowed shuffle.
    pub window: usize,
    /// Leave out the last batch of an epoch if it is short.
    pub drop_last: bool,
    /// What happens to a picture that is missing or corrupt.
    pub on_corrupt: OnCorrupt,
    /// So many instances may be left out as corrupt.
    pub max_corrupt: u64,
    /// The memory of the loader; 0 for a default of 4 GiB.
    pub memory_limit: ByteSize,
    /// A folder of this machine that keeps row groups of an object store; empty for none.
    pub cache: String,
    /// The bytes that are kept there.
    pub cache_size: ByteSize,
    /// Threads that read.
    pub read_threads: usize,
    /// Print after each epoch what each stage of the loader did and waited for.
    pub stats: bool,
    /// Threads that decode and augment; 0 for one on each core.
    pub loader_threads: usize,
    /// Batches that are made ahead of need.
    pub prefetch: usize,
    /// A checkpoint after every so many epochs, and always after the last.
    pub checkpoint_every_epochs: u64,
    /// A checkpoint after every so many steps too; 0 for none.
    pub checkpoint_every_steps: u64,
    /// How many of the newest checkpoints are kept, beside the initial one; 0 for all.
    pub keep: usize,
    /// Do not judge the bank on the val split after each epoch.
    pub no_monitor: bool,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            split: "train".into(),
            limit: 0,
            arch: Architecture::ResNet18,
            dim: 128,
            image_size: 224,
            recipe: RecipeKind::Imagenet,
            batch_size: 256,
            epochs: 200,
            objective: ObjectiveKind::Nce,
            negatives: 4096,
            temperature: Temperature::new(0.07).expect("in range"),
            bank_momentum: BankMomentum::new(0.5).expect("in range"),
            eps: 0.0,
            lr: 0.03,
            lr_milestones: vec![120, 160],
            lr_decay: 0.1,
            momentum: 0.9,
            weight_decay: 1e-4,
            seed: 0,
            device: DeviceChoice::Auto,
            precision: Precision::F32,
            shuffle: ShuffleKind::Exact,
            window: 16_384,
            drop_last: false,
            on_corrupt: OnCorrupt::Fail,
            max_corrupt: 100,
            memory_limit: ByteSize(0),
            cache: String::new(),
            cache_size: ByteSize(0),
            read_threads: 8,
            stats: false,
            loader_threads: 0,
            prefetch: 2,
            checkpoint_every_epochs: 1,
            checkpoint_every_steps: 0,
            keep: 3,
            no_monitor: false,
        }
    }
}

/// A value of the configuration is out of range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} must be {range}, not {value}")]
pub struct InvalidConfig {
    key: &'static str,
    range: &'static str,
    value: String,
}

impl TrainConfig {
    /// Checks what the types do not.
    ///
    /// # Errors
    /// The first key that is out of range.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        let rate = |value: f64| value.is_finite() && value >= 0.0;
        let checks: [(bool, &'static str, &'static str, String); 9] = [
            (self.dim > 0, "dim", "above 0", self.dim.to_string()),
            (self.image_size >= 8, "image_size", "at least 8", self.image_size.to_string()),
            (self.batch_size >= 2, "batch_size", "at least 2", self.batch_size.to_string()),
            (self.epochs > 0, "epochs", "above 0", self.epochs.to_string()),
            (self.negatives > 0, "negatives", "above 0", self.negatives.to_string()),
            (rate(self.eps), "eps", "finite and at least 0", self.eps.to_string()),
            (rate(self.lr), "lr", "finite and at least 0", self.lr.to_string()),
            (rate(self.weight_decay), "weight_decay", "finite and at least 0", self.weight_decay.to_string()),
            (
                (0.0..1.0).contains(&self.momentum),
                "momentum",
                "at least 0 and below 1",
                self.momentum.to_string(),
            ),
        ];
        match checks.into_iter().find(|(good, ..)| !good) {
            Some((_, key, range, value)) => Err(InvalidConfig { key, range, value }),
            None => Ok(()),
        }
    }

    /// What the encoder is built from.
    pub fn encoder(&self) -> EncoderConfig {
        EncoderConfig {
            arch: self.arch,
            dim: self.dim,
            normalisation: self.recipe.normalisation(),
            image_size: self.image_size,
            evaluation_resize: self.recipe.evaluation_resize(self.image_size),
        }
    }

    /// The first key in which a run cannot be continued under this configuration, with both values.
    ///
    /// Keys that change neither the weights nor the order of what was done may differ: the number of
    /// epochs, what is saved and shown, the device, threads.
    pub fn incompatibility(&self, earlier: &serde_json::Value) -> Option<(String, String, String)> {
        const HARMLESS: [&str; 15] = [
            "on_corrupt",
            "max_corrupt",
            "memory_limit",
            "cache",
            "cache_size",
            "read_threads",
            "stats",
            "epochs",
            "device",
            "loader_threads",
            "prefetch",
            "checkpoint_every_epochs",
            "checkpoint_every_steps",
            "keep",
            "no_monitor",
        ];
        let own = serde_json::to_value(self).expect("a configuration is plain data");
        // A run that was begun before a key existed was begun with its default.
        let defaults = serde_json::to_value(Self::default()).expect("a configuration is plain data");
        own.as_object()?.iter().filter(|(key, _)| !HARMLESS.contains(&key.as_str())).find_map(
            |(key, value)| {
                let before = earlier.get(key).or(defaults.get(key)).unwrap_or(&serde_json::Value::Null);
                (before != value).then(|| (key.clone(), before.to_string(), value.to_string()))
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_those_of_the_reference() {
        let config = TrainConfig::default();
        assert_eq!(config.validate(), Ok(()));
        assert_eq!((config.negatives, config.temperature.get(), config.lr), (4096, 0.07, 0.03));
    }

    #[test]
    fn a_value_out_of_range_is_named() {
        let config = TrainConfig { batch_size: 1, ..TrainConfig::default() };
        let error = config.validate().expect_err("batch norm needs two");
        assert_eq!(error.to_string(), "batch_size must be at least 2, not 1");
    }

    #[test]
    fn more_epochs_are_compatible_and_another_temperature_is_not() {
        let earlier = serde_json::to_value(TrainConfig::default()).expect("plain data");
        let longer = TrainConfig { epochs: 400, ..TrainConfig::default() };
        assert_eq!(longer.incompatibility(&earlier), None);
        let warmer = TrainConfig { temperature: Temperature::new(0.1).expect("valid"), ..longer };
        let (key, before, now) = warmer.incompatibility(&earlier).expect("named");
        assert_eq!((key.as_str(), before.as_str(), now.as_str()), ("temperature", "0.07", "0.1"));
    }
}
