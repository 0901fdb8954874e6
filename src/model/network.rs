//! Either kind of network behind one face.

use tch::{Tensor, nn};

use super::architecture::NetworkLayout;
use super::batch_norm::Statistics;
use super::plain::Plain;
use super::resnet::ResNet;
use crate::run_config::Architecture;

/// A network with its last layer as the projection.
#[derive(Debug)]
pub(super) enum Network {
    ResNet(Box<ResNet>),
    Plain(Plain),
}

impl Network {
    pub(super) fn new(root: &nn::Path, arch: Architecture, dim: i64) -> Self {
        match arch.layout() {
            NetworkLayout::ResNet(layout) => Self::ResNet(Box::new(ResNet::new(root, layout, dim))),
            NetworkLayout::Plain(layout) => Self::Plain(Plain::new(root, layout, dim)),
        }
    }

    /// The feature before the projection.
    ///
    /// # Shape
    /// `[batch, 3, height, width]` normalised pixels of any float type -> `[batch, width]` f32
    pub(super) fn pooled(&self, pixels: &Tensor, statistics: Statistics<'_>) -> Tensor {
        self.pooled_with_stages(pixels, statistics, &mut |_, _| {})
    }

    /// Likewise; `at_stage` sees the map of each stage, counted from 0, on the way.
    pub(super) fn pooled_with_stages(
        &self,
        pixels: &Tensor,
        statistics: Statistics<'_>,
        at_stage: &mut dyn FnMut(usize, &Tensor),
    ) -> Tensor {
        match self {
            Self::ResNet(network) => network.pooled(pixels, statistics, at_stage),
            Self::Plain(network) => network.pooled(pixels, statistics, at_stage),
        }
    }

    /// The projection of that, not yet of unit length.
    ///
    /// # Shape
    /// `[batch, width]` -> `[batch, dim]`
    pub(super) fn project(&self, pooled: &Tensor) -> Tensor {
        match self {
            Self::ResNet(network) => network.project(pooled),
            Self::Plain(network) => network.project(pooled),
        }
    }
}
