//! Either kind of network behind one face, and how each architecture is put together.

use tch::{Tensor, nn};

use super::layers::Statistics;
use super::plain::{ALEXNET, Plain, PlainLayout, VGG16};
use super::resnet::{ResNet, ResNetLayout};
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

/// How either kind of network is put together.
#[derive(Clone, Copy, Debug)]
enum NetworkLayout {
    ResNet(ResNetLayout),
    Plain(PlainLayout),
}

impl Architecture {
    /// The name of the last layer, which is the projection, with a dot behind.
    pub(super) fn projection(self) -> &'static str {
        match self.layout() {
            NetworkLayout::ResNet(_) => "fc.",
            NetworkLayout::Plain(_) => "classifier.6.",
        }
    }

    fn layout(self) -> NetworkLayout {
        let basic = ResNetLayout { blocks: &[2, 2, 2, 2], width: 64, bottleneck: false, small_stem: false };
        let deep = |blocks| ResNetLayout { blocks, bottleneck: true, ..basic };
        let vgg =
            |batch_norm| PlainLayout { pieces: VGG16, batch_norm, pooled_side: 7, classifier: [0, 3, 6] };
        NetworkLayout::ResNet(match self {
            Self::ResNet18 => basic,
            Self::ResNet34 => ResNetLayout { blocks: &[3, 4, 6, 3], ..basic },
            Self::ResNet50 => deep(&[3, 4, 6, 3]),
            Self::ResNet101 => deep(&[3, 4, 23, 3]),
            Self::ResNet152 => deep(&[3, 8, 36, 3]),
            Self::ResNet18Cifar => ResNetLayout { small_stem: true, ..basic },
            Self::ResNet20Cifar => ResNetLayout { blocks: &[3, 3, 3], width: 16, small_stem: true, ..basic },
            Self::AlexNet => {
                let classifier = [1, 4, 6];
                let layout = PlainLayout { pieces: ALEXNET, batch_norm: false, pooled_side: 6, classifier };
                return NetworkLayout::Plain(layout);
            }
            Self::Vgg16 => return NetworkLayout::Plain(vgg(false)),
            Self::Vgg16Bn => return NetworkLayout::Plain(vgg(true)),
        })
    }
}
