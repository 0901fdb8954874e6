//! The loss scale that keeps small f16 gradients from becoming zero.

use serde::{Deserialize, Serialize};

/// Steps without an overflow after which the scale doubles.
const GROWTH_STEPS: u64 = 2000;
/// The scale of the first step.
const FIRST_SCALE: f64 = 65_536.0;

/// The factor by which the loss is multiplied before the backward pass.
///
/// It halves where a gradient overflows and doubles after 2000 steps without.
///
/// # Source
/// Micikevicius et al. 2018; the constants are those of `torch.amp.GradScaler`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::train) struct LossScale {
    pub(in crate::train) factor: f64,
    pub(in crate::train) good_steps: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { factor: FIRST_SCALE, good_steps: 0 }
    }
}

impl LossScale {
    /// Takes note of a step without an overflow.
    pub(in crate::train) fn succeeded(&mut self) {
        self.good_steps += 1;
        if self.good_steps == GROWTH_STEPS {
            *self = Self { factor: self.factor * 2.0, good_steps: 0 };
        }
    }

    /// Takes note of an overflow; false where the scale is 1 already, so that it is not to blame.
    pub(in crate::train) fn overflowed(&mut self) -> bool {
        let to_blame = self.factor > 1.0;
        *self = Self { factor: (self.factor / 2.0).max(1.0), good_steps: 0 };
        to_blame
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_halves_on_an_overflow_and_doubles_after_two_thousand_steps_without() {
        let mut scale = LossScale::default();
        assert!(scale.overflowed());
        assert_eq!(scale.factor, 32_768.0);
        for _ in 0..2000 {
            scale.succeeded();
        }
        assert_eq!(scale, LossScale::default());
    }

    #[test]
    fn a_scale_of_one_is_not_to_blame() {
        let mut scale = LossScale { factor: 1.0, good_steps: 0 };
        assert!(!scale.overflowed());
    }
}
