//! Common interface of both kinds of network, the layout of each architecture, and the layers whose output is
//! a feature.

use std::fmt;
use std::str::FromStr;

use tch::{Kind, Tensor, nn};

use super::layers::{STAGES, Statistics};
use super::plain::{ALEXNET, Plain, PlainLayout, VGG16};
use super::resnet::{ResNet, ResNetLayout};
use crate::run_config::Architecture;

/// Maximum length of a stage's feature; larger maps are averaged over squares.
///
/// # Source
/// Goyal et al. 2019, "Scaling and Benchmarking Self-Supervised Visual Representation Learning", table 12:
/// 9216, 9216, 8192, 9216 and 8192 numbers for ResNet-50. The paper follows Zhang et al. 2017 (about 9000).
const STAGE_WIDTH: i64 = 9216;

/// Network whose last layer is the projection.
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

    /// Computes the feature before the projection. `at_stage` gets the map of each stage, counted from 0.
    ///
    /// # Shape
    /// `[batch, 3, height, width]` normalised pixels of any float type -> `[batch, width]` f32
    pub(super) fn pooled(
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

    /// Projects a pooled feature, without normalisation.
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

/// Layout of either kind of network.
#[derive(Clone, Copy, Debug)]
enum NetworkLayout {
    ResNet(ResNetLayout),
    Plain(PlainLayout),
}

impl Architecture {
    /// Returns the prefix of the last layer's names, such as `fc.`; this layer is the projection.
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

/// Layer of an encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FeatureLayer {
    /// Embedding, of unit length.
    Projection,
    /// Input of the projection: in a ResNet, the average over the last map.
    Pooled,
    /// Map behind a stage, 1 to 5 (the paper's conv1 to conv5): stem and stages of a ResNet, convolutions of
    /// AlexNet, blocks of VGG.
    Stage(u8),
}

/// Error for a layer that a network lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this network has no layer {layer}; it has conv1 to conv{stages}, pooled and projection")]
pub struct NoSuchLayer {
    /// Requested layer.
    pub layer: FeatureLayer,
    /// Number of the network's stages.
    pub stages: usize,
}

impl FeatureLayer {
    /// Returns the stage, counted from 0.
    pub(super) fn stage(self) -> Option<usize> {
        match self {
            Self::Stage(number) => Some(usize::from(number) - 1),
            Self::Projection | Self::Pooled => None,
        }
    }
}

impl fmt::Display for FeatureLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Projection => f.write_str("projection"),
            Self::Pooled => f.write_str("pooled"),
            Self::Stage(number) => write!(f, "conv{number}"),
        }
    }
}

impl FromStr for FeatureLayer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let stages = 1..=STAGES as u8;
        match text {
            "projection" => Ok(Self::Projection),
            "pooled" => Ok(Self::Pooled),
            _ => text
                .strip_prefix("conv")
                .and_then(|number| number.parse().ok())
                .filter(|number| stages.contains(number))
                .map(Self::Stage)
                .ok_or_else(|| format!("{text:?} is neither projection, pooled nor conv1 to conv{STAGES}")),
        }
    }
}

/// Flattens a map to one vector per image, averaged over as many squares as [`STAGE_WIDTH`] allows.
///
/// # Shape
/// `[batch, channels, height, width]` -> `[batch, channels * side * side]` f32
pub(super) fn flat(map: &Tensor) -> Tensor {
    let size = map.size();
    let (channels, extent) = (size[1], size[2].min(size[3]));
    let side = (1..=extent).take_while(|side| side * side * channels <= STAGE_WIDTH).last().unwrap_or(1);
    map.to_kind(Kind::Float).adaptive_avg_pool2d([side; 2]).flatten(1, -1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_has_the_width_of_the_benchmark() {
        let width = |channels, side| {
            flat(&Tensor::zeros([1, channels, side, side], (Kind::Float, tch::Device::Cpu))).size()[1]
        };
        let resnet50 = [(64, 56), (256, 56), (512, 28), (1024, 14), (2048, 7)];
        assert_eq!(resnet50.map(|(channels, side)| width(channels, side)), [9216, 9216, 8192, 9216, 8192]);
        assert_eq!(width(16, 8), 16 * 64, "a small map stays as it is");
    }

    #[test]
    fn a_layer_is_read_from_the_text_that_it_prints() {
        let layers = [FeatureLayer::Projection, FeatureLayer::Pooled, FeatureLayer::Stage(5)];
        assert!(layers.iter().all(|layer| layer.to_string().parse() == Ok(*layer)));
        assert!(["conv0", "conv6", "fc"].iter().all(|text| text.parse::<FeatureLayer>().is_err()));
    }
}
