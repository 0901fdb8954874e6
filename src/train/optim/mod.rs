//! Optimisers, their buffers open to the checkpoint.
//!
//! tch's own give no access to their buffers, and a resumed run needs them. Each follows PyTorch's
//! (`torch.optim.SGD`, `torch.optim.AdamW`) operation for operation; LARS has no PyTorch original.

mod adamw;
mod lars;
pub(super) mod loss_scale;
pub(super) mod schedule;
mod sgd;

use tch::{Kind, Tensor, no_grad};

use crate::model::{NamedTensors, WeightsError};
use crate::run_config::{OptimizerKind, TrainConfig};

/// A parameter with what the optimiser keeps for it.
#[derive(Debug)]
struct Slot {
    name: String,
    parameter: Tensor,
    /// Momentum of `sgd` and `lars`; mean of gradients of `adamw`.
    first: Tensor,
    /// Mean of squared gradients; of `adamw` only.
    second: Option<Tensor>,
    weight_decay: f64,
    /// A kernel or a matrix: not a bias, and not a batch norm's.
    matrix: bool,
}

/// The settings of an optimiser.
#[derive(Clone, Copy, Debug)]
struct Settings {
    kind: OptimizerKind,
    momentum: f64,
    nesterov: bool,
    betas: (f64, f64),
    trust: f64,
}

/// An optimiser with its buffers.
#[derive(Debug)]
pub(in crate::train) struct Optimizer {
    slots: Vec<Slot>,
    settings: Settings,
    /// Steps taken; `adamw` corrects its means by it.
    steps: u64,
}

impl Optimizer {
    /// An optimiser of these parameters, its buffers at zero.
    pub(in crate::train) fn new(parameters: Vec<(String, Tensor)>, config: &TrainConfig) -> Self {
        let slot = |(name, parameter): (String, Tensor)| {
            let matrix = parameter.dim() > 1;
            let decays = matrix || !config.decay_matrices_only;
            let zeros = || no_grad(|| parameter.zeros_like());
            Slot {
                first: zeros(),
                second: (config.optimizer == OptimizerKind::Adamw).then(zeros),
                weight_decay: if decays { config.weight_decay } else { 0.0 },
                matrix,
                name,
                parameter,
            }
        };
        let settings = Settings {
            kind: config.optimizer,
            momentum: config.momentum,
            nesterov: config.nesterov,
            betas: (config.adam_beta1, config.adam_beta2),
            trust: config.lars_trust,
        };
        Self { slots: parameters.into_iter().map(slot).collect(), settings, steps: 0 }
    }

    /// Forgets the gradients.
    pub(in crate::train) fn zero_gradients(&mut self) {
        for slot in &mut self.slots {
            slot.parameter.zero_grad();
        }
    }

    /// The Euclidean norm of all gradients together; a f64 scalar on their device.
    pub(in crate::train) fn gradient_norm(&self) -> Tensor {
        let gradients = self.slots.iter().map(|slot| slot.parameter.grad()).filter(Tensor::defined);
        let squares: Vec<Tensor> = gradients.map(|gradient| gradient.square().sum(Kind::Double)).collect();
        if squares.is_empty() {
            return Tensor::from(0.0);
        }
        Tensor::stack(&squares, 0).sum(Kind::Double).sqrt()
    }

    /// Multiplies the gradients by a factor.
    pub(in crate::train) fn scale_gradients(&mut self, factor: f64) {
        if factor != 1.0 {
            no_grad(|| {
                for slot in &self.slots {
                    let _ = slot.parameter.grad().g_mul_scalar_(factor);
                }
            });
        }
    }

    /// Moves the parameters.
    pub(in crate::train) fn step(&mut self, rate: f64) {
        self.steps += 1;
        no_grad(|| {
            for slot in &mut self.slots {
                match self.settings.kind {
                    OptimizerKind::Sgd => sgd::step(slot, &self.settings, rate),
                    OptimizerKind::Lars => lars::step(slot, &self.settings, rate),
                    OptimizerKind::Adamw => adamw::step(slot, &self.settings, rate, self.steps),
                }
            }
        });
    }

    /// Steps taken.
    pub(in crate::train) fn steps(&self) -> u64 {
        self.steps
    }

    /// The buffers: the first under the names of their parameters, the second with `.square` behind.
    pub(in crate::train) fn buffers(&self) -> NamedTensors {
        NamedTensors::from_tensors(self.named_buffers())
    }

    /// Puts buffers in place.
    ///
    /// # Errors
    /// If names or shapes are not those of the parameters.
    pub(in crate::train) fn load(&mut self, buffers: &NamedTensors, steps: u64) -> Result<(), WeightsError> {
        buffers.copy_into(self.named_buffers())?;
        self.steps = steps;
        Ok(())
    }

    fn named_buffers(&self) -> Vec<(String, Tensor)> {
        let named = |slot: &Slot| {
            let first = (slot.name.clone(), slot.first.shallow_clone());
            let second =
                slot.second.as_ref().map(|tensor| (format!("{}.square", slot.name), tensor.shallow_clone()));
            std::iter::once(first).chain(second).collect::<Vec<_>>()
        };
        self.slots.iter().flat_map(named).collect()
    }
}

#[cfg(test)]
mod tests;
