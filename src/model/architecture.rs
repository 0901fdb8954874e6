//! The backbones by name.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::plain::{ALEXNET, PlainLayout, VGG16};

/// A backbone: how many blocks of which kind, behind which stem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum Architecture {
    /// ResNet-18 with the ImageNet stem (7×7 stride 2, max-pool).
    #[serde(rename = "resnet18")]
    #[value(name = "resnet18")]
    ResNet18,
    /// ResNet-34 with the ImageNet stem.
    #[serde(rename = "resnet34")]
    #[value(name = "resnet34")]
    ResNet34,
    /// ResNet-50 with the ImageNet stem.
    #[serde(rename = "resnet50")]
    #[value(name = "resnet50")]
    ResNet50,
    /// ResNet-101 with the ImageNet stem.
    #[serde(rename = "resnet101")]
    #[value(name = "resnet101")]
    ResNet101,
    /// ResNet-152 with the ImageNet stem.
    #[serde(rename = "resnet152")]
    #[value(name = "resnet152")]
    ResNet152,
    /// AlexNet as torchvision has it, for images of 64 pixels or more.
    #[serde(rename = "alexnet")]
    #[value(name = "alexnet")]
    AlexNet,
    /// VGG-16, for images of 32 pixels or more.
    #[serde(rename = "vgg16")]
    #[value(name = "vgg16")]
    Vgg16,
    /// VGG-16 with batch norms.
    #[serde(rename = "vgg16-bn")]
    #[value(name = "vgg16-bn")]
    Vgg16Bn,
    /// ResNet-18 with a 3×3 stem, for 32×32 images (reference `models/resnet_cifar.py`).
    #[serde(rename = "resnet18-cifar")]
    #[value(name = "resnet18-cifar")]
    ResNet18Cifar,
    /// ResNet-20 of He et al. 2016, section 4.2: three stages of 16, 32 and 64 channels, 3×3 stem.
    #[serde(rename = "resnet20-cifar")]
    #[value(name = "resnet20-cifar")]
    ResNet20Cifar,
}

/// How an architecture is put together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// Blocks of each stage.
    pub(super) blocks: &'static [usize],
    /// Channels of the first stage; each further stage doubles them.
    pub(super) width: i64,
    /// Bottleneck blocks (1×1, 3×3, 1×1, four times wider output) instead of basic ones.
    pub(super) bottleneck: bool,
    /// A 3×3 stride-1 stem without max-pool instead of ImageNet's.
    pub(super) small_stem: bool,
}

/// How any architecture is put together.
#[derive(Clone, Copy, Debug)]
pub(super) enum NetworkLayout {
    ResNet(Layout),
    Plain(PlainLayout),
}

impl Architecture {
    /// The least side of an image, in pixels, that leaves something of every map.
    pub fn least_side(self) -> u32 {
        match self {
            Self::AlexNet => 64,
            Self::Vgg16 | Self::Vgg16Bn => 32,
            _ => 8,
        }
    }

    /// The name of the last layer, which is the projection, with a dot behind.
    pub(super) fn projection(self) -> &'static str {
        match self.layout() {
            NetworkLayout::ResNet(_) => "fc.",
            NetworkLayout::Plain(_) => "classifier.6.",
        }
    }

    pub(super) fn layout(self) -> NetworkLayout {
        let basic = Layout { blocks: &[2, 2, 2, 2], width: 64, bottleneck: false, small_stem: false };
        let deep = |blocks| Layout { blocks, bottleneck: true, ..basic };
        let vgg =
            |batch_norm| PlainLayout { pieces: VGG16, batch_norm, pooled_side: 7, classifier: [0, 3, 6] };
        NetworkLayout::ResNet(match self {
            Self::ResNet18 => basic,
            Self::ResNet34 => Layout { blocks: &[3, 4, 6, 3], ..basic },
            Self::ResNet50 => deep(&[3, 4, 6, 3]),
            Self::ResNet101 => deep(&[3, 4, 23, 3]),
            Self::ResNet152 => deep(&[3, 8, 36, 3]),
            Self::ResNet18Cifar => Layout { small_stem: true, ..basic },
            Self::ResNet20Cifar => Layout { blocks: &[3, 3, 3], width: 16, small_stem: true, ..basic },
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
