//! The backbones by name.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

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
    /// ResNet-18 with a 3×3 stem, for 32×32 pictures (reference `models/resnet_cifar.py`).
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

impl Architecture {
    pub(super) fn layout(self) -> Layout {
        let imagenet = Layout { blocks: &[2, 2, 2, 2], width: 64, bottleneck: false, small_stem: false };
        match self {
            Self::ResNet18 => imagenet,
            Self::ResNet34 => Layout { blocks: &[3, 4, 6, 3], ..imagenet },
            Self::ResNet50 => Layout { blocks: &[3, 4, 6, 3], bottleneck: true, ..imagenet },
            Self::ResNet18Cifar => Layout { small_stem: true, ..imagenet },
            Self::ResNet20Cifar => Layout { blocks: &[3, 3, 3], width: 16, small_stem: true, ..imagenet },
        }
    }
}
