//! The learning rate.

use super::TrainConfig;

/// The learning rate of an epoch (from 0): `lr * lr_decay ^ (milestones passed)`.
///
/// # Source
/// Reference `main.py`, `adjust_learning_rate`: ×0.1 from epoch 120 and again from 160.
pub(super) fn learning_rate(config: &TrainConfig, epoch: u64) -> f64 {
    let passed = config.lr_milestones.iter().filter(|&&milestone| epoch >= milestone).count();
    (0..passed).fold(config.lr, |rate, _| rate * config.lr_decay)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_falls_at_the_milestones_of_the_reference() {
        let config = TrainConfig::default();
        let rates = [0, 119, 120, 159, 160, 199].map(|epoch| learning_rate(&config, epoch));
        let expected = [0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003];
        assert!(rates.iter().zip(expected).all(|(rate, expected)| (rate - expected).abs() < 1e-12));
    }
}
