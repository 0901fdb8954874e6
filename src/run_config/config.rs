//! Options of a run, each described once.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::option::{Heading, OptionSpec, Range, Scope};
use super::{
    Architecture, BankDtype, BankInit, DeviceChoice, LrSchedule, MonitorEvery, MonitoredDataset,
    ObjectiveKind, OnCorrupt, OnNonFinite, OptimizerKind, PartitionChoice, Precision, RecipeKind, Sampling,
    ShuffleKind,
};
use crate::storage::{Location, StorageError};
use crate::units::{BankMomentum, ByteSize, Temperature};

/// Defines a configuration from descriptions of its options: the struct, its defaults and `OPTIONS`.
///
/// An entry has the doc, which is also the help, then key, type, default and [`Scope`]. Fields of
/// [`OptionSpec`] that do not follow from the type come last. An entry without a scope does not compile.
///
/// ```text
/// /// Standard deviation of the blur, in pixels; 0 for none.
/// blur: f64 = 0.0, Identity, range: Range::NotNegative, value_name: "SIGMA";
/// ```
///
/// This single entry defines the field, the default, `--blur`, the key, their help, the check, the comparison
/// with other ranks and with a resumed run, and the line of docs/options.md.
macro_rules! options {
    (
        $(#[$attribute:meta])*
        $visibility:vis struct $config:ident;
        $($heading:ident { $(
            $(#[doc = $doc:literal])+
            $key:ident: $type:ty = $default:expr, $scope:ident $(, $field:ident: $value:expr)*;
        )+ })+
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        $visibility struct $config {
            $($($(#[doc = $doc])+ $visibility $key: $type,)+)+
        }

        impl $config {
            /// All options, in the order of the fields.
            $visibility const OPTIONS: &'static [OptionSpec] = &[$($(
                OptionSpec {
                    $($field: $value,)*
                    ..OptionSpec::new::<$type>(stringify!($key), &[$($doc),+], Heading::$heading, Scope::$scope)
                },
            )+)+];

            /// Returns the values in the order of [`Self::OPTIONS`]; `None` for those that are not numbers.
            fn numbers(&self) -> Vec<Option<f64>> {
                vec![$($(number(&self.$key),)+)+]
            }
        }

        impl Default for $config {
            fn default() -> Self {
                Self { $($($key: $default,)+)+ }
            }
        }
    };
}

fn number(value: &impl Serialize) -> Option<f64> {
    match toml::Value::try_from(value).ok()? {
        toml::Value::Integer(number) => Some(number as f64),
        toml::Value::Float(number) => Some(number),
        _ => None,
    }
}

// Published files have the keys in this order.
options! {
    /// Complete configuration of a run, except for its input and output locations.
    ///
    /// The defaults are those of the reference's `main.py` for ImageNet, except for Z and the bank's first
    /// rows. [`Images::defaults`](super::Images::defaults) has the defaults for given images.
    pub struct TrainConfig;

    Data {
        /// Split to train on.
        split: String = "train".into(), Identity, value_name: "NAME";
        /// Train on a uniform sample of this many images; 0 for all.
        limit: u64 = 0, Identity;
    }
    Network {
        /// Backbone.
        arch: Architecture = Architecture::ResNet18, Identity,
            by_images: Some("resnet18; for images of at most 48 pixels resnet18-cifar, on a CPU resnet20-cifar");
        /// Path or URL of a safetensors file with initial weights under torchvision's names; a projection of another
        /// shape is skipped. Without it, weights are random.
        init: String = String::new(), Resumable, value_name: "URL";
        /// Length of the embedding.
        dim: usize = 128, Identity, range: Range::Between(1, 65_536);
    }
    Data {
        /// Side of the square that the encoder sees, in pixels.
        image_size: u32 = 224, Identity, range: Range::Between(8, 4096), value_name: "PIXELS",
            by_images: Some("224; 32 for images of at most 48 pixels");
        /// Augmentation recipe.
        recipe: RecipeKind = RecipeKind::Imagenet, Identity, finetune: true,
            by_images: Some("imagenet; cifar for images of at most 48 pixels");
    }
    Optimisation {
        /// Images per step, of all processes together.
        batch_size: usize = 256, Identity, range: Range::AtLeast(2), finetune: true,
            by_images: Some("256; 128 for images of at most 48 pixels; in one process, for fewer than 4096 images \
                             halved while an epoch has fewer than 16 steps, but never below 16");
        /// Micro-batches per step, to save memory: they pass the network in turn. Loss, gradient and bank are those of
        /// the whole batch; batch norm sees each micro-batch alone.
        accumulate: usize = 1, Identity, range: Range::AtLeast(1), finetune: true;
        /// Passes over the images.
        epochs: u64 = 200, Schedule, range: Range::AtLeast(1), finetune: true;
    }
    Objective {
        /// Training objective.
        objective: ObjectiveKind = ObjectiveKind::Nce, Identity,
            by_images: Some("softmax up to 100000 images, nce above");
        /// Bank rows sampled for each image (`nce`, `infonce`).
        negatives: usize = 4096, Identity, range: Range::AtLeast(1), value_name: "K";
        /// Sharing of sampled rows between images.
        negative_sampling: Sampling = Sampling::PerSample, Identity;
        /// Leave out a sampled row that is the image's own.
        exclude_positive: bool = false, Identity;
        /// Temperature τ, by which similarities are divided.
        temperature: Temperature = Temperature::new(0.07).expect("in range"), Identity,
            by_images: Some("0.07; 0.1 for images of at most 48 pixels");
        /// Weight of the OLD row when the bank is updated, from 0 to below 1.
        bank_momentum: BankMomentum = BankMomentum::new(0.5).expect("in range"), Identity;
        /// Number type of the bank's rows.
        bank_dtype: BankDtype = BankDtype::F32, Identity;
        /// Bank rows before the first step.
        bank_init: BankInit = BankInit::Encode, Identity, formerly: Some("uniform"),
            by_images: Some("encode up to 2000000 images, uniform above");
        /// Constant added to the noise's probability (`nce`); the reference has 1e-7, see docs/numerics.md.
        eps: f64 = 0.0, Identity, range: Range::NotNegative, value_name: "EPS";
        /// Constant Z of `nce`: `ema` for a moving average of each batch's estimate; `fixed` for that of the
        /// first batch, as in the reference, which fails on small or young banks; `delayed` for the mean over
        /// the first epoch, constant afterwards; or a number.
        partition: PartitionChoice = PartitionChoice::Ema, Identity, formerly: Some("fixed");
        /// Weight of the old Z in the moving average, from 0 to below 1.
        partition_decay: f64 = 0.99, Identity, range: Range::BelowOne, value_name: "D";
        /// Weight λ of the proximal term `λ ‖f - v‖²` (paper, equation 9); the reference has none.
        proximal_weight: f64 = 0.0, Identity, range: Range::NotNegative, value_name: "LAMBDA";
    }
    Optimisation {
        /// Optimiser.
        optimizer: OptimizerKind = OptimizerKind::Sgd, Identity;
        /// Learning rate after the warm-up.
        lr: f64 = 0.03, Identity, range: Range::NotNegative, value_name: "RATE", finetune: true,
            by_images: Some("0.03; for batches of fewer than 128 images by default, smaller in proportion");
        /// Schedule of the learning rate after the warm-up.
        lr_schedule: LrSchedule = LrSchedule::Step, Identity;
        /// Epochs at which schedule `step` multiplies the learning rate by `--lr-decay`, separated by commas.
        lr_milestones: Vec<u64> = vec![120, 160], Identity, value_name: "EPOCHS", finetune: true;
        /// Factor of the learning rate at each of `--lr-milestones`.
        lr_decay: f64 = 0.1, Identity, range: Range::NotNegative, value_name: "FACTOR";
        /// Learning rate at the end of schedule `cosine`.
        lr_final: f64 = 0.0, Identity, range: Range::NotNegative, value_name: "RATE";
        /// Epochs over which the learning rate rises from 0, step by step.
        warmup_epochs: u64 = 0, Identity;
        /// Momentum of `sgd` and `lars`, from 0 to below 1.
        momentum: f64 = 0.9, Identity, range: Range::BelowOne, value_name: "M";
        /// Use Nesterov's form of the momentum (`sgd`).
        nesterov: bool = false, Identity;
        /// Decay of the mean of gradients (`adamw`).
        adam_beta1: f64 = 0.9, Identity, range: Range::BelowOne, value_name: "B";
        /// Decay of the mean of squared gradients (`adamw`).
        adam_beta2: f64 = 0.999, Identity, range: Range::BelowOne, value_name: "B";
        /// Ratio of a layer's step to its weights at which `lars` aims.
        lars_trust: f64 = 0.001, Identity, range: Range::NotNegative, value_name: "RATIO";
        /// Weight decay; on every parameter as in the reference, unless `--decay-matrices-only`.
        weight_decay: f64 = 1e-4, Identity, range: Range::NotNegative, value_name: "W", finetune: true,
            by_images: Some("0.0001; 0.0005 for images of at most 48 pixels");
        /// Exempt biases and batch norm from weight decay, and from the scaling of `lars`.
        decay_matrices_only: bool = false, Identity;
        /// Scale gradients down to at most this norm; 0 for no limit.
        clip_norm: f64 = 0.0, Identity, range: Range::NotNegative, value_name: "NORM";
        /// Seed of every random number of the run.
        seed: u64 = 0, Identity, finetune: true;
    }
    Network {
        /// Device: `auto` (the first GPU if there is one, else the CPU), `cpu` or `cuda:N`.
        device: DeviceChoice = DeviceChoice::Auto, Machine, finetune: true;
        /// Precision of the network; `finetune` does not support `f16`.
        precision: Precision = Precision::F32, Identity, finetune: true;
        /// Compute batch norm over the images of all processes, not of each alone.
        sync_batch_norm: bool = false, Identity, finetune: true;
        /// Keep activations and kernels with channels last in memory, which suits tensor cores.
        channels_last: bool = false, Identity;
        /// Record the network's forward and backward pass as CUDA graphs: fewer launches a step, more memory than
        /// `--estimate` has. For one process, without `--accumulate` and `--sync-batch-norm`. No GPU has run this yet.
        cuda_graphs: bool = false, Machine;
    }
    Optimisation {
        /// Action at a step whose loss, features or gradient are not finite.
        on_nonfinite: OnNonFinite = OnNonFinite::Fail, Resumable;
    }
    Loader {
        /// Order of an epoch's images.
        shuffle: ShuffleKind = ShuffleKind::Exact, Identity;
        /// Rows of a window of `--shuffle windowed`; more mix better and take more memory.
        window: usize = 16_384, Identity, value_name: "ROWS";
        /// Leave out the last batch of an epoch if it is short.
        drop_last: bool = false, Identity;
        /// Action at a missing or corrupt image.
        on_corrupt: OnCorrupt = OnCorrupt::Fail, Resumable;
        /// With `--on-corrupt skip`, end the run once more than this many images were left out.
        max_corrupt: u64 = 100, Resumable;
        /// Memory limit of the loader, such as 4GiB; 0 for 4 GiB.
        memory_limit: ByteSize = ByteSize(0), Machine;
        /// Local folder that caches row groups of an object store; several jobs may share it.
        cache: String = String::new(), Machine, value_name: "DIR";
        /// Size limit of `--cache`, such as 200GiB.
        cache_size: ByteSize = ByteSize(0), Machine;
        /// Threads that read.
        read_threads: usize = 8, Machine;
        /// Print the work and waiting time of each loader stage after each epoch.
        stats: bool = false, Resumable;
        /// Threads that decode and augment; 0 for one per core.
        loader_threads: usize = 0, Machine, range: Range::Between(0, 1024), finetune: true;
        /// Batches to prepare ahead of need.
        prefetch: usize = 2, Machine;
    }
    Checkpoints {
        /// Write a checkpoint after every N epochs, and after the last.
        checkpoint_every_epochs: u64 = 1, Resumable, finetune: true;
        /// Write a checkpoint after every N steps too; 0 for none.
        checkpoint_every_steps: u64 = 0, Resumable, finetune: true;
        /// Write a checkpoint once N minutes have passed since the last one; 0 for none.
        checkpoint_every_minutes: f64 = 0.0, Resumable, range: Range::NotNegative, value_name: "N";
        /// Keep the N newest checkpoints and the initial one; 0 for all.
        keep: usize = 3, Resumable, finetune: true;
        /// Keep the checkpoint of every N-th epoch forever; 0 for none.
        keep_every_epochs: u64 = 0, Resumable;
        /// Log metrics after every N steps too, not only after each epoch; 0 for none.
        log_every_steps: u64 = 50, Resumable, finetune: true;
        /// Do not evaluate between epochs, neither another split nor the datasets of `--monitor`.
        no_monitor: bool = false, Resumable, finetune: true;
        /// Evaluate the bank, and the datasets of `--monitor`, after every N epochs or N steps (`5000steps`), and after
        /// the last.
        monitor_every: MonitorEvery = MonitorEvery::Epochs(1), Resumable, range: Range::AtLeast(1),
            by_images: Some("1; for fewer than 667 images as often as costs a tenth of the steps");
        /// Split of the queries that evaluate the bank; by default the first of val, valid, validation, dev, test and
        /// testing.
        monitor_split: String = String::new(), Resumable, value_name: "NAME";
        /// Number of these queries; 0 for a fifth of the training images, at least 200 and at most 10,000.
        monitor_images: u64 = 0, Resumable;
        /// Also score another labelled dataset; repeatable. Images of its split TRAIN (`train`) vote on
        /// images of its split TEST (as for `--monitor-split`), `--monitor-images` of each. A dataset whose
        /// own name has a colon ends with a slash.
        monitor: Vec<MonitoredDataset> = Vec::new(), Resumable;
        /// Skip an evaluation, except the last, if evaluations would then take more than this share of the
        /// time since the start or the resume, from 0 to below 1; 0 for no bound.
        monitor_share: f64 = 0.0, Resumable, range: Range::BelowOne, value_name: "SHARE";
        /// Train a linear classifier beside the encoder, on its features before the projection and the labels
        /// of each step's images; its loss and top-1 are in the metrics. Encoder and bank do not depend on
        /// it.
        probe: bool = false, Resumable;
        /// Constant learning rate of `--probe`, which has momentum 0.9 and no weight decay.
        probe_lr: f64 = 0.1, Resumable, range: Range::NotNegative, value_name: "RATE";
    }
}

/// A value of the configuration is out of range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} must be {range}, not {value}")]
pub struct InvalidConfig {
    key: &'static str,
    range: String,
    value: String,
}

/// Option in which a run differs from the checkpoint to resume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Key of the option.
    pub key: String,
    /// Value in the checkpoint.
    pub before: String,
    /// Value now.
    pub now: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {} (now {})", self.key, self.before, self.now)
    }
}

impl TrainConfig {
    /// Checks ranges and combinations that the types do not enforce.
    ///
    /// # Errors
    /// If an option is out of range, with the first one.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        let invalid = |key, range: String, value: String| Err(InvalidConfig { key, range, value });
        for (option, number) in Self::OPTIONS.iter().zip(self.numbers()) {
            if let Some(value) = number.filter(|value| !option.range.contains(*value)) {
                return invalid(option.key, option.range.to_string(), value.to_string());
            }
        }
        if !self.cache.is_empty()
            && let Err(StorageError::BadLocation { text, reason }) = Location::parse_local(&self.cache)
        {
            return invalid("cache", "a folder of this machine".into(), format!("`{text}`: {reason}"));
        }
        let least = self.arch.least_side();
        if self.image_size < least {
            let range = format!("at least {least} for {}", <&str>::from(self.arch));
            return invalid("image_size", range, self.image_size.to_string());
        }
        if self.batch_size / self.accumulate < 2 {
            let range = "so small that each micro-batch has two images".into();
            return invalid("accumulate", range, self.accumulate.to_string());
        }
        Ok(())
    }

    /// Returns the options by key, in order.
    pub fn values(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(values)) => values,
            other => unreachable!("a configuration is plain data: {other:?}"),
        }
    }

    /// Returns the defaults for runs that started before the options existed.
    fn former_defaults() -> Map<String, Value> {
        let mut defaults = Self::default().values();
        for option in Self::OPTIONS {
            if let Some(value) = option.formerly {
                defaults.insert(option.key.into(), value.into());
            }
        }
        defaults
    }

    /// Reads the configuration in a checkpoint of this, an older or a newer program: missing options have
    /// their former default, and unknown keys are ignored.
    ///
    /// # Errors
    /// If a value has another type.
    pub fn of_checkpoint(kept: &Value) -> Result<Self, serde_json::Error> {
        let mut values = Self::former_defaults();
        for (key, value) in &mut values {
            if let Some(kept) = kept.get(key) {
                value.clone_from(kept);
            }
        }
        serde_json::from_value(Value::Object(values))
    }

    /// Returns these defaults, with the run's earlier values for options that a resume may change, and for
    /// those whose default depends on the images or once differed.
    ///
    /// # Errors
    /// If a value has another type.
    pub fn as_begun(&self, kept: &Value) -> Result<Self, serde_json::Error> {
        let mut values = self.values();
        for OptionSpec { key, by_images, formerly, scope, .. } in Self::OPTIONS {
            let goes_on = matches!(scope, Scope::Schedule | Scope::Resumable);
            if by_images.is_none() && formerly.is_none() && !goes_on {
                continue;
            }
            if let Some(value) = kept.get(key).cloned().or(formerly.map(Value::from)) {
                values.insert((*key).into(), value);
            }
        }
        serde_json::from_value(Value::Object(values))
    }

    /// Returns the options that keep a run with this earlier configuration from resuming under the present one.
    ///
    /// An option that the earlier configuration lacks has its former default.
    pub fn incompatibilities(&self, earlier: &Value) -> Vec<Difference> {
        let (values, defaults) = (self.values(), Self::former_defaults());
        let decides = |option: &&OptionSpec| match option.scope {
            Scope::Identity => true,
            Scope::Schedule => self.lr_schedule == LrSchedule::Cosine,
            Scope::Resumable | Scope::Machine => false,
        };
        let differing = |option: &OptionSpec| {
            let (before, now) =
                (earlier.get(option.key).unwrap_or(&defaults[option.key]), &values[option.key]);
            let (key, before, now) =
                (before != now).then(|| (option.key.into(), before.to_string(), now.to_string()))?;
            Some(Difference { key, before, now })
        };
        Self::OPTIONS.iter().filter(decides).filter_map(differing).collect()
    }

    /// Returns the options that must be equal on all ranks, with their values.
    pub fn of_all_ranks(&self) -> Vec<(&'static str, Value)> {
        let mut values = self.values();
        let options = Self::OPTIONS.iter().filter(|option| option.scope != Scope::Machine);
        options.map(|option| (option.key, values[option.key].take())).collect()
    }
}

#[cfg(test)]
mod tests;
