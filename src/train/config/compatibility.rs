//! Whether a run can go on under another configuration.

use std::fmt;

use serde_json::Value;

use super::{LrSchedule, TrainConfig};

/// Keys that change neither the weights nor the order of what was done: what is saved and shown, threads.
/// A run may also go on elsewhere (`device`), though not bit for bit.
const HARMLESS: [&str; 23] = [
    "init",
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
    "checkpoint_every_minutes",
    "keep",
    "keep_every_epochs",
    "log_every_steps",
    "no_monitor",
    "monitor_every",
    "monitor_split",
    "monitor_images",
    "on_nonfinite",
];

/// A key in which two configurations differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The key.
    pub key: String,
    /// Its value when the run was begun.
    pub before: String,
    /// Its value now.
    pub now: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {} (now {})", self.key, self.before, self.now)
    }
}

impl TrainConfig {
    /// Every key in which a run that was begun under an earlier configuration cannot go on under this one.
    ///
    /// A key that the earlier one lacks, because the program did not know it yet, counts as its default of then.
    /// The number of epochs may change unless the learning rate depends on it.
    pub fn incompatibilities(&self, earlier: &Value) -> Vec<Difference> {
        let plain = |config: &Self| serde_json::to_value(config).expect("a configuration is plain data");
        let (own, mut defaults) = (plain(self), plain(&Self::default()));
        for (key, value) in Self::CHANGED {
            defaults[key] = value.into();
        }
        let harmless = |key: &str| {
            HARMLESS.contains(&key) && !(key == "epochs" && self.lr_schedule == LrSchedule::Cosine)
        };
        let keys = own.as_object().into_iter().flatten().filter(|(key, _)| !harmless(key));
        keys.filter_map(|(key, now)| {
            let before = earlier.get(key).unwrap_or(&defaults[key]);
            let (before, now) = (before != now).then(|| (before.to_string(), now.to_string()))?;
            Some(Difference { key: key.clone(), before, now })
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Temperature;

    fn earlier() -> Value {
        serde_json::to_value(TrainConfig::default()).expect("plain data")
    }

    #[test]
    fn a_key_that_was_not_known_counts_as_its_default_of_then() {
        let mut earlier = earlier();
        let keys = earlier.as_object_mut().expect("keys");
        keys.remove("partition").and(keys.remove("bank_init")).expect("they were there");
        let differing = TrainConfig::default().incompatibilities(&earlier);
        let differing: Vec<String> = differing.iter().map(ToString::to_string).collect();
        assert_eq!(
            differing,
            ["bank_init = \"uniform\" (now \"encode\")", "partition = \"fixed\" (now \"ema\")"]
        );
    }

    #[test]
    fn more_epochs_and_another_way_of_saving_are_compatible() {
        let longer = TrainConfig { epochs: 400, keep: 9, ..TrainConfig::default() };
        assert_eq!(longer.incompatibilities(&earlier()), []);
    }

    #[test]
    fn every_key_that_differs_is_named_with_both_values() {
        let temperature = Temperature::new(0.1).expect("valid");
        let other = TrainConfig { temperature, lr: 0.5, ..TrainConfig::default() };
        let shown: Vec<_> = other.incompatibilities(&earlier()).iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["temperature = 0.07 (now 0.1)", "lr = 0.03 (now 0.5)"]);
    }

    #[test]
    fn epochs_matter_where_the_learning_rate_follows_a_cosine() {
        let cosine = TrainConfig { lr_schedule: LrSchedule::Cosine, ..TrainConfig::default() };
        let earlier = serde_json::to_value(&cosine).expect("plain data");
        let longer = TrainConfig { epochs: 400, ..cosine };
        assert_eq!(longer.incompatibilities(&earlier)[0].key, "epochs");
    }

    #[test]
    fn a_key_that_the_run_did_not_know_counts_as_its_default() {
        let mut earlier = earlier();
        earlier.as_object_mut().expect("an object").remove("nesterov");
        assert_eq!(TrainConfig::default().incompatibilities(&earlier), []);
        let nesterov = TrainConfig { nesterov: true, ..TrainConfig::default() };
        assert_eq!(nesterov.incompatibilities(&earlier)[0].key, "nesterov");
    }
}
