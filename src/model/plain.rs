//! AlexNet and VGG-16 with torchvision's names and shapes; their last layer is the projection.
//!
//! Dropout is left out, so a feature depends on the image alone and a resumed run needs no generator's state.
//! In evaluation, torchvision's networks have none either.
//!
//! # Source
//! Krizhevsky 2014 and Simonyan and Zisserman 2015; torchvision `models/alexnet.py`, `models/vgg.py`.

use tch::nn::{self, Linear};
use tch::{Kind, Tensor};

use super::layers::{BatchNorm, ConvShape, Convolution, STAGES, Statistics, linear};

/// Width of the hidden linear layers.
const HIDDEN: i64 = 4096;

/// Piece of the convolutional part, numbered as in torchvision.
#[derive(Clone, Copy, Debug)]
pub(super) enum Piece {
    /// Output channels, kernel, stride, padding; a ReLU follows.
    Conv(i64, i64, i64, i64),
    /// Kernel; the stride is 2.
    MaxPool(i64),
}

/// Layout of a network without shortcuts.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlainLayout {
    pub pieces: &'static [Piece],
    /// Whether a batch norm follows each convolution.
    pub batch_norm: bool,
    /// Side of the square that the last map is averaged to.
    pub pooled_side: i64,
    /// Numbers of the linear layers within torchvision's `classifier`.
    pub classifier: [u8; 3],
}

/// torchvision's `alexnet`.
pub(super) const ALEXNET: &[Piece] = &[
    Piece::Conv(64, 11, 4, 2),
    Piece::MaxPool(3),
    Piece::Conv(192, 5, 1, 2),
    Piece::MaxPool(3),
    Piece::Conv(384, 3, 1, 1),
    Piece::Conv(256, 3, 1, 1),
    Piece::Conv(256, 3, 1, 1),
    Piece::MaxPool(3),
];

/// torchvision's configuration `D`.
pub(super) const VGG16: &[Piece] = &[
    Piece::Conv(64, 3, 1, 1),
    Piece::Conv(64, 3, 1, 1),
    Piece::MaxPool(2),
    Piece::Conv(128, 3, 1, 1),
    Piece::Conv(128, 3, 1, 1),
    Piece::MaxPool(2),
    Piece::Conv(256, 3, 1, 1),
    Piece::Conv(256, 3, 1, 1),
    Piece::Conv(256, 3, 1, 1),
    Piece::MaxPool(2),
    Piece::Conv(512, 3, 1, 1),
    Piece::Conv(512, 3, 1, 1),
    Piece::Conv(512, 3, 1, 1),
    Piece::MaxPool(2),
    Piece::Conv(512, 3, 1, 1),
    Piece::Conv(512, 3, 1, 1),
    Piece::Conv(512, 3, 1, 1),
    Piece::MaxPool(2),
];

#[derive(Debug)]
enum Layer {
    Conv(Box<(Convolution, Option<BatchNorm>)>),
    MaxPool(i64),
}

/// Network without shortcuts.
#[derive(Debug)]
pub(super) struct Plain {
    layers: Vec<Layer>,
    pooled_side: i64,
    hidden: [Linear; 2],
    projection: Linear,
}

impl Plain {
    pub(super) fn new(root: &nn::Path, layout: PlainLayout, dim: i64) -> Self {
        let features = root / "features";
        let (mut layers, mut number, mut channels) = (Vec::new(), 0, 3);
        for piece in layout.pieces {
            match *piece {
                Piece::MaxPool(kernel) => layers.push(Layer::MaxPool(kernel)),
                Piece::Conv(output, kernel, stride, padding) => {
                    let shape = ConvShape { input: channels, output, kernel, stride, padding, bias: true };
                    let conv = Convolution::new(&(&features / number), shape);
                    let norm = layout.batch_norm.then(|| BatchNorm::new(&(&features / (number + 1)), output));
                    layers.push(Layer::Conv(Box::new((conv, norm))));
                    // ReLU and batch norm take numbers too.
                    number += if layout.batch_norm { 2 } else { 1 };
                    channels = output;
                }
            }
            number += 1;
        }
        let classifier = root / "classifier";
        let [first, second, last] = layout.classifier;
        let layer = |number, input, output| {
            nn::linear(&classifier / number, input, output, nn::LinearConfig::default())
        };
        let pooled = channels * layout.pooled_side * layout.pooled_side;
        Self {
            layers,
            pooled_side: layout.pooled_side,
            hidden: [layer(first, pooled, HIDDEN), layer(second, HIDDEN, HIDDEN)],
            projection: layer(last, HIDDEN, dim),
        }
    }

    /// Computes the feature before the projection. `at_stage` gets the map of each convolution of AlexNet, or
    /// of each block of VGG before pooling.
    ///
    /// # Shape
    /// `[batch, 3, height, width]` normalised pixels -> `[batch, 4096]` f32
    pub(super) fn pooled(
        &self,
        pixels: &Tensor,
        statistics: Statistics<'_>,
        at_stage: &mut dyn FnMut(usize, &Tensor),
    ) -> Tensor {
        let mut hidden = pixels.shallow_clone();
        let mut stages = 0;
        let convolutions = self.layers.iter().filter(|layer| matches!(layer, Layer::Conv(..))).count();
        for (number, layer) in self.layers.iter().enumerate() {
            hidden = match layer {
                Layer::MaxPool(kernel) => hidden.max_pool2d([*kernel; 2], [2; 2], [0; 2], [1; 2], false),
                Layer::Conv(layer) => {
                    let (conv, norm) = &**layer;
                    let mapped = conv.forward(&hidden);
                    norm.as_ref()
                        .map_or_else(|| mapped.shallow_clone(), |norm| norm.forward(&mapped, statistics))
                        .relu()
                }
            };
            let is_pooled_next = matches!(self.layers.get(number + 1), None | Some(Layer::MaxPool(_)));
            if matches!(layer, Layer::Conv(..)) && (convolutions == STAGES || is_pooled_next) {
                at_stage(stages, &hidden);
                stages += 1;
            }
        }
        hidden = hidden.adaptive_avg_pool2d([self.pooled_side; 2]).flatten(1, -1);
        for layer in &self.hidden {
            hidden = linear(layer, &hidden).relu();
        }
        hidden.to_kind(Kind::Float)
    }

    /// # Shape
    /// `[batch, 4096]` -> `[batch, dim]`
    pub(super) fn project(&self, pooled: &Tensor) -> Tensor {
        linear(&self.projection, pooled)
    }
}
