//! Operators over lists of tensors: on a GPU a few launches, however many tensors there are.

use tch::Tensor;

use super::ffi;

/// Forgets the gradients: a backward pass then writes them without adding to what was there.
pub fn drop_gradients(parameters: &[Tensor]) {
    ffi::drop_gradients(parameters);
}

/// The Euclidean norm of all gradients together, a f64 scalar on their device; 0 where there is none.
pub fn gradient_norm(parameters: &[Tensor]) -> Tensor {
    ffi::gradient_norm(parameters).unwrap_or_else(|| Tensor::from(0.0))
}

/// What parameters share in a step of an optimiser.
#[derive(Clone, Copy, Debug)]
pub struct Update<'a> {
    /// The learning rate.
    pub rate: f64,
    /// How much of the weight is added to the gradient, or for [`adamw`] taken off the weight.
    pub weight_decay: f64,
    /// What the gradients are divided by, a f32 scalar on their device.
    pub scale: Option<&'a Tensor>,
}

/// A step of `torch.optim.SGD` in its fused form; without momentum the buffers stay as they are.
///
/// # Panics
/// If a parameter has no gradient.
pub fn sgd(parameters: &[Tensor], buffers: &[Tensor], momentum: f64, nesterov: bool, update: Update<'_>) {
    let settings = (update.rate, momentum, nesterov, update.weight_decay);
    ffi::fused_sgd(parameters, buffers, settings, update.scale);
}

/// A step of `torch.optim.AdamW` in its fused form. `step`: its number, from 1, as a f32 scalar on the parameters' device.
///
/// # Panics
/// If a parameter has no gradient.
pub fn adamw(
    parameters: &[Tensor],
    buffers: (&[Tensor], &[Tensor]),
    step: &Tensor,
    (betas, eps): ((f64, f64), f64),
    update: Update<'_>,
) {
    ffi::fused_adamw(parameters, buffers, step, (update.rate, betas, update.weight_decay, eps), update.scale);
}

/// A step of LARS: SGD with momentum whose gradient is first scaled, for each tensor, by
/// `trust * ‖weight‖ / ‖gradient + weight_decay * weight‖` where both norms are above 0. With `trust` 0 it is SGD with
/// momentum. The gradients are used up. The scaling is a launch for each tensor.
///
/// # Panics
/// If a parameter has no gradient.
///
/// # Source
/// You, Gitman and Ginsburg 2017, with the weight decay inside the norm and the learning rate outside the buffer, as in
/// the official codes of SimSiam, Barlow Twins and DINO (`class LARS`).
pub fn lars(parameters: &[Tensor], buffers: &[Tensor], momentum: f64, trust: f64, update: Update<'_>) {
    ffi::lars(parameters, buffers, (update.rate, momentum, update.weight_decay, trust), update.scale);
}
