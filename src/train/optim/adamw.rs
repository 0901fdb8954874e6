//! Adam with decoupled weight decay.

use super::{Settings, Slot};

/// Added to the root of the mean square; PyTorch's default.
const EPS: f64 = 1e-8;

/// `weight <- weight (1 - rate * weight_decay) - rate * m̂ / (√v̂ + eps)` with the bias-corrected means `m̂` of
/// gradients and `v̂` of their squares.
///
/// # Source
/// Loshchilov and Hutter 2019; `torch.optim.AdamW`.
pub(super) fn step(slot: &mut Slot, settings: &Settings, rate: f64, steps: u64) {
    let gradient = slot.parameter.grad();
    let (beta1, beta2) = settings.betas;
    let second = slot.second.as_mut().expect("adamw keeps a second buffer");
    let _ = slot.parameter.g_mul_scalar_(1.0 - rate * slot.weight_decay);
    let _ = slot.first.lerp_(&gradient, 1.0 - beta1);
    let _ = second.g_mul_scalar_(beta2).g_add_(&(gradient.square() * (1.0 - beta2)));
    let correction = |beta: f64| 1.0 - beta.powi(i32::try_from(steps).unwrap_or(i32::MAX));
    let deviation = second.sqrt() / correction(beta2).sqrt() + EPS;
    let _ = slot.parameter.g_sub_(&(&slot.first / deviation * (rate / correction(beta1))));
}
