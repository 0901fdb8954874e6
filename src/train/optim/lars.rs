//! Layer-wise adaptive rate scaling.

use tch::Kind;

use super::{Settings, Slot};

/// SGD with momentum whose gradient is first scaled, for each kernel and matrix, by
/// `trust * ‖weight‖ / ‖gradient + weight_decay * weight‖` where both norms are above 0. Biases and batch
/// norms are not scaled.
///
/// # Source
/// You, Gitman and Ginsburg 2017, with the weight decay inside the norm and the learning rate outside the
/// buffer, as in the official codes of SimSiam, Barlow Twins and DINO (`class LARS`).
pub(super) fn step(slot: &mut Slot, settings: &Settings, rate: f64) {
    let mut update = slot.parameter.grad() + &slot.parameter * slot.weight_decay;
    if slot.matrix {
        let (weight, gradient) = (slot.parameter.norm(), update.norm());
        let ratio = &weight * settings.trust / &gradient;
        let both = weight.gt(0.0).logical_and(&gradient.gt(0.0));
        update *= ratio.where_self(&both, &weight.ones_like()).to_kind(Kind::Float);
    }
    let _ = slot.first.g_mul_scalar_(settings.momentum).g_add_(&update);
    let _ = slot.parameter.g_sub_(&(&slot.first * rate));
}
