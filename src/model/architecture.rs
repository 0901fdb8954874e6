//! How the backbones are put together.

use super::plain::{ALEXNET, PlainLayout, VGG16};
use crate::run_config::Architecture;

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
