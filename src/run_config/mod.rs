//! Configuration of a run: every option, described once.
//!
//! [`TrainConfig::OPTIONS`] describes the options. Flags and their help, keys of TOML files, checks, the
//! comparison of ranks and with a resumed run, and docs/options.md derive from it. This module needs neither
//! libtorch nor clap, so that every program can read a run's configuration.

mod choices;
mod config;
mod file;
mod for_images;
mod monitored;
mod option;

pub use choices::{
    Architecture, BankDtype, BankInit, Choice, DeviceChoice, LrSchedule, ObjectiveKind, OnCorrupt,
    OnNonFinite, OptimizerKind, PartitionChoice, Precision, RecipeKind, Sampling, ShuffleKind, choices,
};
pub use config::{Difference, InvalidConfig, TrainConfig};
pub use file::{ConfigError, Given, read_file};
pub use for_images::{FEWEST_MONITORED, Images, MOST_OF_SOFTMAX, Machines};
pub use monitored::{MonitorEvery, MonitoredDataset};
pub use option::{Arity, Heading, OptionSpec, OptionValue, Range, Scope, shown};
