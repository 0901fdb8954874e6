//! Stochastic gradient descent with momentum and weight decay, its buffers open to the checkpoint.

use tch::{Tensor, no_grad};

use crate::model::{NamedTensors, WeightsError};

/// The optimiser.
///
/// `buffer <- momentum * buffer + gradient + weight_decay * weight; weight <- weight - rate * buffer`
///
/// # Source
/// `torch.optim.SGD` (whose first buffer is the first gradient: the same, as buffers start at zero).
#[derive(Debug)]
pub(super) struct Sgd {
    parameters: Vec<(String, Tensor, Tensor)>,
    momentum: f64,
    weight_decay: f64,
}

impl Sgd {
    /// An optimiser of these parameters, its buffers at zero.
    pub(super) fn new(parameters: Vec<(String, Tensor)>, momentum: f64, weight_decay: f64) -> Self {
        let parameters = parameters
            .into_iter()
            .map(|(name, parameter)| {
                let buffer = no_grad(|| parameter.zeros_like());
                (name, parameter, buffer)
            })
            .collect();
        Self { parameters, momentum, weight_decay }
    }

    /// Forgets the gradients.
    pub(super) fn zero_gradients(&mut self) {
        for (_, parameter, _) in &mut self.parameters {
            parameter.zero_grad();
        }
    }

    /// The Euclidean norm of all gradients together.
    pub(super) fn gradient_norm(&self) -> f64 {
        let squares: Vec<Tensor> = self
            .parameters
            .iter()
            .filter(|(_, parameter, _)| parameter.grad().defined())
            .map(|(_, parameter, _)| parameter.grad().square().sum(tch::Kind::Double))
            .collect();
        if squares.is_empty() {
            return 0.0;
        }
        Tensor::stack(&squares, 0).sum(tch::Kind::Double).double_value(&[]).sqrt()
    }

    /// Moves the parameters.
    pub(super) fn step(&mut self, rate: f64) {
        no_grad(|| {
            for (_, parameter, buffer) in &mut self.parameters {
                let gradient = parameter.grad() + &*parameter * self.weight_decay;
                let _ = buffer.g_mul_scalar_(self.momentum).g_add_(&gradient);
                let _ = parameter.g_sub_(&(&*buffer * rate));
            }
        });
    }

    /// The buffers, under the names of their parameters.
    pub(super) fn buffers(&self) -> NamedTensors {
        NamedTensors::from_tensors(
            self.parameters.iter().map(|(name, _, buffer)| (name.clone(), buffer.shallow_clone())),
        )
    }

    /// Puts buffers in place.
    ///
    /// # Errors
    /// If names or shapes are not those of the parameters.
    pub(super) fn load(&mut self, buffers: &NamedTensors) -> Result<(), WeightsError> {
        buffers.copy_into(
            self.parameters.iter().map(|(name, _, buffer)| (name.clone(), buffer.shallow_clone())).collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two steps by hand: w = 1, gradient 2w, rate 0.1, momentum 0.5, decay 0.1.
    #[test]
    fn two_steps_follow_the_formula() {
        let weight = Tensor::from_slice(&[1.0_f64]).set_requires_grad(true);
        let mut sgd = Sgd::new(vec![("w".into(), weight.shallow_clone())], 0.5, 0.1);
        for expected in [0.79, 0.5191] {
            sgd.zero_gradients();
            weight.square().sum(tch::Kind::Double).backward();
            sgd.step(0.1);
            assert!((weight.double_value(&[0]) - expected).abs() < 1e-12);
        }
    }
}
