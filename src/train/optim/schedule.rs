//! The learning rate.

use crate::checkpoint::Cursor;
use crate::run_config::{LrSchedule, TrainConfig};

/// The learning rate of the step at the cursor, in a run of `steps_per_epoch`.
///
/// In the first `warmup_epochs` it rises linearly, the first step having one part of the full rate. After
/// that `step` has `lr * lr_decay ^ (milestones passed)`, `cosine` falls along half a period from `lr` to
/// `lr_final` at the end of the last epoch, and `constant` stays.
///
/// # Source
/// Reference `main.py`, `adjust_learning_rate`: ×0.1 from epoch 120 and again from 160; Loshchilov and
/// Hutter 2017 (cosine); Goyal et al. 2017 (warm-up).
pub(in crate::train) fn learning_rate(config: &TrainConfig, cursor: Cursor, steps_per_epoch: u64) -> f64 {
    let warmup = config.warmup_epochs * steps_per_epoch;
    if cursor.step < warmup {
        return config.lr * (cursor.step + 1) as f64 / warmup as f64;
    }
    match config.lr_schedule {
        LrSchedule::Constant => config.lr,
        LrSchedule::Step => {
            let passed = config.lr_milestones.iter().filter(|&&milestone| cursor.epoch >= milestone).count();
            (0..passed).fold(config.lr, |rate, _| rate * config.lr_decay)
        }
        LrSchedule::Cosine => {
            let total = (config.epochs * steps_per_epoch).saturating_sub(warmup).max(1);
            let share = ((cursor.step - warmup) as f64 / total as f64).min(1.0);
            let fall = 0.5 * (1.0 + (std::f64::consts::PI * share).cos());
            config.lr_final + (config.lr - config.lr_final) * fall
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: u64 = 10;

    fn rate(config: &TrainConfig, step: u64) -> f64 {
        let cursor = Cursor { step, epoch: step / STEPS, step_in_epoch: step % STEPS };
        learning_rate(config, cursor, STEPS)
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    #[test]
    fn the_rate_falls_at_the_milestones_of_the_reference() {
        let config = TrainConfig::default();
        let epochs = [0, 119, 120, 159, 160, 199];
        let expected = [0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003];
        assert!(
            epochs
                .iter()
                .zip(expected)
                .all(|(epoch, expected)| close(rate(&config, epoch * STEPS), expected))
        );
    }

    #[test]
    fn the_warm_up_rises_step_by_step_and_meets_the_full_rate() {
        let config = TrainConfig { warmup_epochs: 2, lr: 0.4, ..TrainConfig::default() };
        assert!(close(rate(&config, 0), 0.4 / 20.0));
        assert!(close(rate(&config, 9), 0.2));
        assert!(close(rate(&config, 19), 0.4) && close(rate(&config, 20), 0.4));
    }

    #[test]
    fn the_cosine_starts_full_is_half_in_the_middle_and_ends_at_its_final_rate() {
        let config = TrainConfig {
            lr_schedule: LrSchedule::Cosine,
            lr: 0.5,
            lr_final: 0.1,
            epochs: 12,
            warmup_epochs: 2,
            ..TrainConfig::default()
        };
        assert!(close(rate(&config, 20), 0.5));
        assert!(close(rate(&config, 70), 0.3));
        assert!(close(rate(&config, 120), 0.1));
    }
}
