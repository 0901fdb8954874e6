//! ResNet with torchvision's names and shapes.
//!
//! # Source
//! He et al. 2016; torchvision `models/resnet.py` for names, strides (on the 3×3 of a bottleneck) and
//! padding. The stems for 32×32 images are those of the reference's `models/resnet_cifar.py`.

use tch::nn::{self, Linear};
use tch::{Kind, Tensor};

use super::layers::{BatchNorm, ConvShape, Convolution, Statistics, linear};

/// Ratio of a bottleneck's output width to that of its 3×3 convolution.
const BOTTLENECK_EXPANSION: i64 = 4;

/// Layout of a ResNet.
#[derive(Clone, Copy, Debug)]
pub(super) struct ResNetLayout {
    /// Number of blocks of each stage.
    pub blocks: &'static [usize],
    /// Channels of the first stage; each further stage doubles them.
    pub width: i64,
    /// Whether blocks are bottlenecks (1×1, 3×3, 1×1, four times wider output) instead of basic.
    pub bottleneck: bool,
    /// Whether the stem is 3×3 with stride 1 and without max-pool, instead of ImageNet's.
    pub small_stem: bool,
}

#[derive(Debug)]
struct Block {
    /// Convolutions with their batch norms, and a ReLU between them.
    layers: Vec<(Convolution, BatchNorm)>,
    downsample: Option<(Convolution, BatchNorm)>,
}

impl Block {
    fn new(path: &nn::Path, input: i64, width: i64, stride: i64, bottleneck: bool) -> Self {
        let output = if bottleneck { width * BOTTLENECK_EXPANSION } else { width };
        // (input, output, kernel, stride) of each convolution.
        let shapes = if bottleneck {
            vec![(input, width, 1, 1), (width, width, 3, stride), (width, output, 1, 1)]
        } else {
            vec![(input, width, 3, stride), (width, width, 3, 1)]
        };
        let layers = (1..)
            .zip(shapes)
            .map(|(number, (input, output, kernel, stride))| {
                let conv = convolution(&(path / format!("conv{number}")), input, output, kernel, stride);
                (conv, BatchNorm::new(&(path / format!("bn{number}")), output))
            })
            .collect();
        let downsample = (stride != 1 || input != output).then(|| {
            let path = path / "downsample";
            (convolution(&(&path / "0"), input, output, 1, stride), BatchNorm::new(&(&path / "1"), output))
        });
        Self { layers, downsample }
    }

    fn forward(&self, input: &Tensor, statistics: Statistics<'_>) -> Tensor {
        let mut hidden = input.shallow_clone();
        for (number, (conv, norm)) in self.layers.iter().enumerate() {
            if number > 0 {
                hidden = hidden.relu();
            }
            hidden = norm.forward(&conv.forward(&hidden), statistics);
        }
        let shortcut = match &self.downsample {
            Some((conv, norm)) => norm.forward(&conv.forward(input), statistics),
            None => input.shallow_clone(),
        };
        (hidden + shortcut).relu()
    }
}

/// ResNet whose `fc` layer is the projection.
#[derive(Debug)]
pub(super) struct ResNet {
    stem: (Convolution, BatchNorm),
    small_stem: bool,
    blocks: Vec<Block>,
    /// Number of blocks up to the end of each stage.
    stage_ends: Vec<usize>,
    projection: Linear,
}

impl ResNet {
    pub(super) fn new(root: &nn::Path, layout: ResNetLayout, dim: i64) -> Self {
        let (kernel, stride) = if layout.small_stem { (3, 1) } else { (7, 2) };
        let stem = (
            convolution(&(root / "conv1"), 3, layout.width, kernel, stride),
            BatchNorm::new(&(root / "bn1"), layout.width),
        );
        let (mut blocks, mut stage_ends) = (Vec::new(), Vec::new());
        let mut channels = layout.width;
        for (stage, &count) in layout.blocks.iter().enumerate() {
            let width = layout.width << stage;
            for number in 0..count {
                let path = root / format!("layer{}", stage + 1) / number;
                let stride = if number == 0 && stage > 0 { 2 } else { 1 };
                blocks.push(Block::new(&path, channels, width, stride, layout.bottleneck));
                channels = if layout.bottleneck { width * BOTTLENECK_EXPANSION } else { width };
            }
            stage_ends.push(blocks.len());
        }
        let projection = nn::linear(root / "fc", channels, dim, nn::LinearConfig::default());
        Self { stem, small_stem: layout.small_stem, blocks, stage_ends, projection }
    }

    /// Computes the pooled feature of the last stage. `at_stage` gets the map behind the stem (0) and each stage.
    ///
    /// # Shape
    /// `[batch, 3, height, width]` normalised pixels -> `[batch, channels]`
    pub(super) fn pooled(
        &self,
        pixels: &Tensor,
        statistics: Statistics<'_>,
        at_stage: &mut dyn FnMut(usize, &Tensor),
    ) -> Tensor {
        let (conv, norm) = &self.stem;
        let mut hidden = norm.forward(&conv.forward(pixels), statistics).relu();
        if !self.small_stem {
            hidden = hidden.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false);
        }
        at_stage(0, &hidden);
        for (number, block) in (1..).zip(&self.blocks) {
            hidden = block.forward(&hidden, statistics);
            if let Some(stage) = self.stage_ends.iter().position(|&end| end == number) {
                at_stage(stage + 1, &hidden);
            }
        }
        hidden.mean_dim([2_i64, 3].as_slice(), false, Kind::Float)
    }

    /// Projects the pooled feature, without normalisation.
    ///
    /// # Shape
    /// `[batch, channels]` -> `[batch, dim]`
    pub(super) fn project(&self, pooled: &Tensor) -> Tensor {
        linear(&self.projection, pooled)
    }
}

fn convolution(path: &nn::Path, input: i64, output: i64, kernel: i64, stride: i64) -> Convolution {
    Convolution::new(path, ConvShape { input, output, kernel, stride, padding: kernel / 2, bias: false })
}
