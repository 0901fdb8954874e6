//! Gradients as the mean over all ranks.

use std::sync::Arc;

use tch::Tensor;

use super::error::first_line;
use super::join::Joined;
use super::watch::Watch;
use super::{DistributedError, ProcessGroup, ffi};

/// Runs backward passes after which gradients are the mean over the ranks, by c10d's Reducer: gradients are sent in
/// buckets of up to 25 MB while the rest of the backward pass still runs.
///
/// It holds the parameters, and buckets as large as their gradients. Their order must be the same on every rank.
/// Every parameter must get a gradient in every last backward pass; one that does not is an error at once, on the
/// ranks where it is so. Looking for such parameters would walk through the whole graph in every step.
#[derive(Debug)]
pub struct GradientReducer {
    several: Option<(ffi::Reducer, Arc<Watch>)>,
}

impl GradientReducer {
    /// Makes it for these parameters, which require gradients. They are not made equal: broadcast them before.
    ///
    /// # Errors
    /// If ranks have other parameters (by number, shape or kind), a rank is lost or does not come in time.
    pub fn new(group: &ProcessGroup, parameters: &[Tensor]) -> Result<Self, DistributedError> {
        let Some(Joined { handle: Some(handle), watch, .. }) = &group.joined else {
            return Ok(Self { several: None });
        };
        watch.check()?;
        let number = watch.begin();
        let reducer = ffi::Reducer::new(handle, parameters)
            .map_err(|message| watch.explain("comparing the ranks' parameters", number, &message))?;
        Ok(Self { several: Some((reducer, watch.clone())) })
    }

    /// The backward pass of a loss. With `last` false gradients add up where they are, and nothing is sent; with
    /// true they become the mean over the ranks, of what has added up since the last one.
    ///
    /// # Shape
    /// `loss`: a scalar.
    /// # Errors
    /// If a parameter gets no gradient, a rank is lost or does not come in time.
    pub fn backward(&self, loss: &Tensor, last: bool) -> Result<(), DistributedError> {
        let Some((reducer, watch)) = &self.several else {
            return loss.f_backward().map_err(|error| DistributedError::Backend {
                what: "backward".into(),
                message: first_line(&error.to_string()),
            });
        };
        watch.check()?;
        let number = if last { watch.begin() } else { 0 };
        reducer.backward(loss, last).map_err(|message| watch.explain("backward", number, &message))
    }
}
