//! Stochastic gradient descent with momentum.

use super::{Settings, Slot};

/// `g <- gradient + weight_decay * weight; buffer <- momentum * buffer + g; weight <- weight - rate * buffer`,
/// or with Nesterov's form `weight <- weight - rate * (g + momentum * buffer)`.
///
/// # Source
/// `torch.optim.SGD`, whose first buffer is the first gradient: the same, as buffers start at zero.
pub(super) fn step(slot: &mut Slot, settings: &Settings, rate: f64) {
    let gradient = slot.parameter.grad() + &slot.parameter * slot.weight_decay;
    let _ = slot.first.g_mul_scalar_(settings.momentum).g_add_(&gradient);
    let direction = if settings.nesterov {
        gradient + &slot.first * settings.momentum
    } else {
        slot.first.shallow_clone()
    };
    let _ = slot.parameter.g_sub_(&(direction * rate));
}
