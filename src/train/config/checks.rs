//! What the types of the options do not say.

use super::TrainConfig;
use crate::storage::{Location, StorageError};

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
        let at_least =
            |key, value: f64, least: f64, range| (key, value.is_finite() && value >= least, range, value);
        let count = |key, value: usize, least: usize, range| at_least(key, value as f64, least as f64, range);
        let share = |key, value: f64| (key, (0.0..1.0).contains(&value), "at least 0 and below 1", value);
        let rate = |key, value| at_least(key, value, 0.0, "finite and at least 0");
        let checks = [
            count("dim", self.dim, 1, "above 0"),
            count("image_size", self.image_size as usize, 8, "at least 8"),
            count("batch_size", self.batch_size, 2, "at least 2"),
            count("accumulate", self.accumulate, 1, "above 0"),
            count("epochs", self.epochs as usize, 1, "above 0"),
            count("negatives", self.negatives, 1, "above 0"),
            count("monitor_every", self.monitor_every as usize, 1, "above 0"),
            rate("eps", self.eps),
            share("partition_decay", self.partition_decay),
            rate("proximal_weight", self.proximal_weight),
            rate("lr", self.lr),
            rate("lr_final", self.lr_final),
            rate("lr_decay", self.lr_decay),
            rate("weight_decay", self.weight_decay),
            rate("clip_norm", self.clip_norm),
            rate("lars_trust", self.lars_trust),
            rate("checkpoint_every_minutes", self.checkpoint_every_minutes),
            share("momentum", self.momentum),
            share("adam_beta1", self.adam_beta1),
            share("adam_beta2", self.adam_beta2),
        ];
        if let Some((key, _, range, value)) = checks.into_iter().find(|(_, good, ..)| !good) {
            return Err(InvalidConfig { key, range, value: value.to_string() });
        }
        if !self.cache.is_empty()
            && let Err(StorageError::BadLocation { text, reason }) = Location::parse_local(&self.cache)
        {
            let value = format!("`{text}`: {reason}");
            return Err(InvalidConfig { key: "cache", range: "a folder of this machine", value });
        }
        if self.image_size < self.arch.least_side() {
            let range = "at least 64 for alexnet, and 32 for vgg16";
            return Err(InvalidConfig { key: "image_size", range, value: self.image_size.to_string() });
        }
        if self.batch_size / self.accumulate < 2 {
            let range = "so small that each part of a batch has two images";
            return Err(InvalidConfig { key: "accumulate", range, value: self.accumulate.to_string() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Architecture;

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
        let config = TrainConfig { clip_norm: f64::NAN, ..TrainConfig::default() };
        assert!(config.validate().expect_err("no number").to_string().starts_with("clip_norm"));
    }

    #[test]
    fn a_cache_that_only_a_shell_would_find_is_no_folder() {
        for cache in ["~/c", "$HOME/c", "s3:/bucket/c", "s3://bucket/c"] {
            let config = TrainConfig { cache: cache.into(), ..TrainConfig::default() };
            let error = config.validate().expect_err(cache).to_string();
            assert!(
                error.starts_with("cache must be a folder of this machine") && error.contains(cache),
                "{error}"
            );
        }
    }

    #[test]
    fn a_image_that_is_too_small_for_the_network_is_refused() {
        let config = TrainConfig { arch: Architecture::AlexNet, image_size: 32, ..TrainConfig::default() };
        assert!(config.validate().expect_err("too small").to_string().contains("at least 64 for alexnet"));
        assert!(TrainConfig { image_size: 64, ..config }.validate().is_ok());
    }

    #[test]
    fn a_part_of_a_batch_has_two_images() {
        let config = TrainConfig { batch_size: 16, accumulate: 9, ..TrainConfig::default() };
        assert!(config.validate().is_err());
        assert!(TrainConfig { accumulate: 8, ..config }.validate().is_ok());
    }
}
