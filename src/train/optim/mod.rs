//! Optimisers with accessible buffers, learning rate and loss scale.
//!
//! A resumed run needs the buffers, which tch's own optimisers do not expose. Each step calls libtorch's operators over
//! lists of tensors (`torch.optim.SGD` and `torch.optim.AdamW` with `fused=True`); LARS has no PyTorch original.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};

use crate::checkpoint::Cursor;
use crate::model::libtorch::{self, Update};
use crate::model::{NamedTensors, WeightsError};
use crate::run_config::{LrSchedule, OptimizerKind, TrainConfig};

/// Keeps the division by the gradient norm finite, as in `torch.nn.utils.clip_grad_norm_`.
const SHORTEST_NORM: f64 = 1e-6;
/// Added to the root of the mean square by `adamw`; PyTorch's default.
const ADAM_EPS: f64 = 1e-8;
/// Steps without an overflow after which the scale doubles.
const GROWTH_STEPS: u64 = 2000;
/// Initial scale.
const FIRST_SCALE: f64 = 65_536.0;

/// Parameters that a step treats alike, with the optimiser's buffers.
#[derive(Debug)]
struct Group {
    names: Vec<String>,
    parameters: Vec<Tensor>,
    /// Momentum for `sgd` and `lars`; mean of gradients for `adamw`.
    first: Vec<Tensor>,
    /// Mean of squared gradients, for `adamw` only.
    second: Vec<Tensor>,
    weight_decay: f64,
    /// Whether these are kernels and matrices, not biases or batch-norm parameters.
    matrices: bool,
}

/// Optimiser with its buffers.
#[derive(Debug)]
pub(crate) struct Optimizer {
    groups: Vec<Group>,
    config: TrainConfig,
    /// Steps taken; `adamw` uses them for bias correction.
    steps: u64,
}

impl Optimizer {
    /// Creates an optimiser of these parameters, with zero buffers.
    pub(crate) fn new(parameters: Vec<(String, Tensor)>, config: &TrainConfig) -> Self {
        let (matrices, vectors): (Vec<_>, Vec<_>) =
            parameters.into_iter().partition(|(_, parameter)| parameter.dim() > 1);
        let zeros = |parameters: &[Tensor]| -> Vec<Tensor> {
            no_grad(|| parameters.iter().map(Tensor::zeros_like).collect())
        };
        let group = |named: Vec<(String, Tensor)>, matrices: bool| {
            let (names, parameters): (_, Vec<_>) = named.into_iter().unzip();
            let decays = matrices || !config.decay_matrices_only;
            let is_adamw = config.optimizer == OptimizerKind::Adamw;
            Group {
                names,
                first: zeros(&parameters),
                second: if is_adamw { zeros(&parameters) } else { Vec::new() },
                parameters,
                weight_decay: if decays { config.weight_decay } else { 0.0 },
                matrices,
            }
        };
        let groups = [group(matrices, true), group(vectors, false)];
        let groups = groups.into_iter().filter(|group| !group.names.is_empty()).collect();
        Self { groups, config: config.clone(), steps: 0 }
    }

    /// Drops the gradients.
    pub(crate) fn drop_gradients(&mut self) {
        self.groups.iter().for_each(|group| libtorch::drop_gradients(&group.parameters));
    }

    /// Returns the Euclidean norm of all gradients together, as a f64 scalar on their device.
    pub(crate) fn gradient_norm(&self) -> Tensor {
        let all = self.groups.iter().flat_map(|group| &group.parameters).map(Tensor::shallow_clone);
        libtorch::gradient_norm(&all.collect::<Vec<_>>())
    }

    /// Returns the divisor for gradients of this norm: `scale`, which they contain, times the excess over
    /// `clip_norm`. `None` if both are 1.
    ///
    /// # Shape
    /// `norm`: a f64 scalar -> a f32 scalar on the same device
    pub(crate) fn divisor(&self, norm: &Tensor, scale: f64) -> Option<Tensor> {
        let clip_norm = self.config.clip_norm;
        if clip_norm == 0.0 {
            return (scale != 1.0).then(|| Tensor::full([], scale, (Kind::Float, norm.device())));
        }
        let longer = (norm / (scale * clip_norm) + SHORTEST_NORM / clip_norm).clamp_min(1.0);
        Some((longer * scale).to_kind(Kind::Float))
    }

    /// Updates the parameters by their gradients, divided by `divisor`. Overwrites the gradients.
    pub(crate) fn step(&mut self, rate: f64, divisor: Option<&Tensor>) {
        self.steps += 1;
        let &TrainConfig { momentum, nesterov, adam_beta1, adam_beta2, lars_trust, .. } = &self.config;
        for group in &self.groups {
            let Group { parameters, first, second, .. } = group;
            let update = Update { rate, weight_decay: group.weight_decay, scale: divisor };
            match self.config.optimizer {
                OptimizerKind::Sgd => libtorch::sgd(parameters, first, momentum, nesterov, update),
                OptimizerKind::Lars => {
                    // Biases and batch-norm parameters take the unmodified rate.
                    let trust = if group.matrices { lars_trust } else { 0.0 };
                    libtorch::lars(parameters, first, momentum, trust, update);
                }
                OptimizerKind::Adamw => {
                    let step = Tensor::full([], self.steps as f64, (Kind::Float, parameters[0].device()));
                    let betas = (adam_beta1, adam_beta2);
                    libtorch::adamw(parameters, (first, second), &step, (betas, ADAM_EPS), update);
                }
            }
        }
    }

    /// Returns the number of steps taken.
    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    /// Returns the buffers: the first by parameter name, the second with the suffix `.square`.
    pub(crate) fn buffers(&self) -> NamedTensors {
        NamedTensors::from_tensors(self.named_buffers())
    }

    /// Loads buffers.
    pub(crate) fn load(&mut self, buffers: &NamedTensors, steps: u64) -> Result<(), WeightsError> {
        buffers.copy_into(self.named_buffers())?;
        self.steps = steps;
        Ok(())
    }

    fn named_buffers(&self) -> Vec<(String, Tensor)> {
        let named = |group: &Group| {
            let first = group.names.iter().cloned().zip(group.first.iter().map(Tensor::shallow_clone));
            let squares = group.names.iter().map(|name| format!("{name}.square"));
            let second = squares.zip(group.second.iter().map(Tensor::shallow_clone));
            first.chain(second).collect::<Vec<_>>()
        };
        self.groups.iter().flat_map(named).collect()
    }
}

/// Returns the learning rate of the step at the cursor, with `steps_per_epoch` steps in an epoch.
///
/// During the first `warmup_epochs` it rises linearly, from one part of the full rate in the first step.
/// After that `step` gives `lr * lr_decay ^ (milestones passed)`, `cosine` falls along half a period from
/// `lr` to `lr_final` at the end of the last epoch, and `constant` keeps `lr`.
///
/// # Source
/// Reference `main.py`, `adjust_learning_rate`: ×0.1 from epoch 120 and again from 160; Loshchilov and
/// Hutter 2017 (cosine); Goyal et al. 2017 (warm-up).
pub(crate) fn learning_rate(config: &TrainConfig, cursor: Cursor, steps_per_epoch: u64) -> f64 {
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

/// Factor of the loss before the backward pass, which keeps small f16 gradients from becoming zero.
///
/// The factor halves when a gradient overflows and doubles after 2000 steps without an overflow.
///
/// # Source
/// Micikevicius et al. 2018; the constants are those of `torch.amp.GradScaler`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LossScale {
    factor: f64,
    good_steps: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { factor: FIRST_SCALE, good_steps: 0 }
    }
}

impl LossScale {
    pub(crate) fn factor(self) -> f64 {
        self.factor
    }

    /// Records a step without an overflow.
    pub(crate) fn succeeded(&mut self) {
        self.good_steps += 1;
        if self.good_steps == GROWTH_STEPS {
            *self = Self { factor: self.factor * 2.0, good_steps: 0 };
        }
    }

    /// Records an overflow. Returns false if the scale was already 1 and so was not the cause.
    pub(crate) fn overflowed(&mut self) -> bool {
        let to_blame = self.factor > 1.0;
        *self = Self { factor: (self.factor / 2.0).max(1.0), good_steps: 0 };
        to_blame
    }
}

#[cfg(test)]
mod tests;
