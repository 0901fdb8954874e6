//! Encoder: normalisation of pixels, backbone, projection, unit length.

use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn};

use super::compute::{kind_of, tf32_is_allowed};
use super::layers::{OverRanks, STAGES, Statistics, count_kept};
use super::libtorch::upload_pixels;
use super::network::{FeatureLayer, Network, NoSuchLayer, flat};
use super::weights::{NamedTensors, WeightsError};
use crate::augment::EvalTransform;
use crate::rng::{Purpose, Stream};
use crate::run_config::{Architecture, Precision, RecipeKind};

/// Keeps the division by a feature's length finite, as in `torch.nn.functional.normalize`.
const SHORTEST_LENGTH: f64 = 1e-12;

/// Mean and standard deviation of the pixels of each channel, on the scale 0..1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Normalisation {
    /// Subtracted from each channel (red, green, blue).
    pub mean: [f64; 3],
    /// Divisor of each channel.
    pub std: [f64; 3],
}

impl Normalisation {
    /// ImageNet's statistics (reference `main.py`).
    pub const IMAGENET: Self = Self { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
    /// CIFAR-10's statistics (reference `cifar.py`).
    pub const CIFAR: Self = Self { mean: [0.4914, 0.4822, 0.4465], std: [0.2023, 0.1994, 0.2010] };

    /// Returns the statistics for a recipe.
    pub fn of_recipe(kind: RecipeKind) -> Self {
        match kind {
            RecipeKind::Imagenet => Self::IMAGENET,
            RecipeKind::Cifar => Self::CIFAR,
        }
    }
}

/// Configuration of an encoder.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderConfig {
    /// Backbone network.
    pub arch: Architecture,
    /// Length of the embedding.
    pub dim: usize,
    /// Normalisation of pixels.
    pub normalisation: Normalisation,
    /// Side of the training images, in pixels.
    pub image_size: u32,
    /// Shorter side that an image is resized to before the centre crop of an evaluation.
    pub evaluation_resize: u32,
}

impl EncoderConfig {
    /// Returns the resize and centre crop of an evaluation.
    pub fn evaluation_transform(self) -> EvalTransform {
        EvalTransform::ResizeCenterCrop { resize: self.evaluation_resize, crop: self.image_size }
    }
}

/// Trainable encoder.
///
/// Invariant: the outputs are unit rows (within rounding), in f32.
pub struct Encoder {
    variables: nn::VarStore,
    network: Network,
    precision: Precision,
    /// Whether kernels and images have the channels last in memory.
    channels_last: bool,
    mean: Tensor,
    std: Tensor,
    config: EncoderConfig,
    ranks: Option<Rc<dyn OverRanks>>,
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Encoder {
    /// Creates an encoder with the initial weights of `seed`.
    pub fn new(config: EncoderConfig, seed: u64, device: Device) -> Self {
        let variables = nn::VarStore::new(device);
        let network = Network::new(&variables.root(), config.arch, config.dim as i64);
        let channel = |values: [f64; 3]| {
            Tensor::from_slice(&values).to_kind(Kind::Float).view([1, 3, 1, 1]).to_device(device)
        };
        let encoder = Self {
            network,
            precision: Precision::F32,
            channels_last: false,
            mean: channel(config.normalisation.mean),
            std: channel(config.normalisation.std),
            variables,
            config,
            ranks: None,
        };
        let variables = encoder.named_variables();
        let shapes: HashMap<String, Vec<i64>> =
            variables.iter().map(|(name, variable)| (name.clone(), variable.size())).collect();
        for (index, (name, mut variable)) in variables.into_iter().enumerate() {
            let weight = name.strip_suffix("bias").and_then(|layer| shapes.get(&format!("{layer}weight")));
            let weight = weight.map_or(&[][..], Vec::as_slice);
            let value = initial_value(seed, index as u64, &name, &variable.size(), weight);
            tch::no_grad(|| variable.copy_(&value));
        }
        encoder
    }

    /// Returns the encoder's configuration.
    pub fn config(&self) -> EncoderConfig {
        self.config
    }

    /// Uploads images from the loader to the encoder's device. On a GPU the copy overlaps with computation.
    ///
    /// # Shape
    /// `[batch * 3 * side * side]` -> `[batch, 3, side, side]` f32, values 0 to 255
    ///
    /// # Panics
    /// If the pixels are not whole images.
    pub fn images(&self, pixels: &[u8]) -> Tensor {
        let side = self.config.image_size as usize;
        let image = 3 * side * side;
        assert!(pixels.len().is_multiple_of(image), "{} bytes are not whole images of {side}", pixels.len());
        let shape = [pixels.len() / image, 3, side, side].map(|extent| extent as i64);
        upload_pixels(pixels, self.device()).view(shape)
    }

    /// Returns the number type of products: `f32`, `tf32`, `bf16` or `f16`.
    pub fn precision(&self) -> &'static str {
        let is_tf32 = || self.device().is_cuda() && tf32_is_allowed() == Ok(true);
        match self.precision {
            Precision::F32 | Precision::Tf32 if is_tf32() => "tf32",
            Precision::F32 | Precision::Tf32 => "f32",
            rounded => rounded.into(),
        }
    }

    /// Returns the encoder's device.
    pub fn device(&self) -> Device {
        self.variables.device()
    }

    /// Sets precision and memory layout of later passes; the weights stay in f32.
    pub fn set_compute(&mut self, precision: Precision, channels_last: bool) {
        (self.precision, self.channels_last) = (precision, channels_last);
        if channels_last {
            for (_, mut variable) in self.named_variables() {
                if variable.dim() == 4 {
                    let moved = tch::no_grad(|| with_channels_last(&variable.detach()));
                    variable.set_data(&moved);
                }
            }
        }
    }

    /// Makes batch norm in training use mean and variance of all processes' images.
    pub fn share_statistics(&mut self, ranks: Rc<dyn OverRanks>) {
        self.ranks = Some(ranks);
    }

    /// Computes a batch's unit features; with `train`, uses batch statistics and updates the running ones.
    ///
    /// # Shape
    /// `[batch, 3, height, width]` pixels of 0 to 255, of any type and on any device -> `[batch, dim]` f32,
    /// attached to the graph
    pub fn forward(&self, pixels: &Tensor, train: bool) -> Tensor {
        unit_rows(&self.projected(pixels, train))
    }

    /// Computes features in training mode, and the pooled features.
    ///
    /// # Shape
    /// As [`Encoder::forward`] -> `[batch, dim]` and `[batch, width]` f32, attached to the graph
    pub fn forward_with_pooled(&self, pixels: &Tensor) -> (Tensor, Tensor) {
        let pooled = self.pooled(pixels, true);
        (unit_rows(&self.network.project(&pooled)), pooled)
    }

    /// Computes the features of [`Encoder::forward`] before normalisation: for a classifier, the scores of the classes.
    ///
    /// # Shape
    /// As [`Encoder::forward`]
    pub fn projected(&self, pixels: &Tensor, train: bool) -> Tensor {
        self.network.project(&self.pooled(pixels, train))
    }

    fn pooled(&self, pixels: &Tensor, train: bool) -> Tensor {
        let statistics = match self.ranks.as_deref() {
            _ if !train => Statistics::Running,
            None => Statistics::OfBatch,
            Some(ranks) => Statistics::OfAllRanks(ranks),
        };
        self.network.pooled(&self.normalised(pixels), statistics, &mut |_, _| {})
    }

    /// Computes the features of several layers in one pass, in evaluation mode. Those of the projection have
    /// unit length, all others are unchanged.
    ///
    /// # Shape
    /// `[batch, 3, height, width]` u8 pixels on any device -> for each layer `[batch, width of the layer]` f32
    ///
    /// # Errors
    /// If this network lacks a layer, with the first one.
    pub fn features(&self, pixels: &Tensor, layers: &[FeatureLayer]) -> Result<Vec<Tensor>, NoSuchLayer> {
        tch::no_grad(|| {
            let mut maps: [Option<Tensor>; STAGES] = Default::default();
            let mut stages = 0;
            let mut at_stage = |stage, map: &Tensor| {
                stages = stage + 1;
                if layers.iter().any(|layer| layer.stage() == Some(stage)) {
                    maps[stage] = Some(flat(map));
                }
            };
            let pooled = self.network.pooled(&self.normalised(pixels), Statistics::Running, &mut at_stage);
            let of_layer = |&layer: &FeatureLayer| match layer.stage() {
                Some(stage) => {
                    maps[stage].as_ref().map(Tensor::shallow_clone).ok_or(NoSuchLayer { layer, stages })
                }
                None if layer == FeatureLayer::Pooled => Ok(pooled.shallow_clone()),
                None => Ok(unit_rows(&self.network.project(&pooled))),
            };
            layers.iter().map(of_layer).collect()
        })
    }

    fn normalised(&self, pixels: &Tensor) -> Tensor {
        let pixels = pixels.to_device(self.device()).to_kind(Kind::Float);
        let normalised = ((pixels / 255.0 - &self.mean) / &self.std).to_kind(kind_of(self.precision));
        if self.channels_last { with_channels_last(&normalised) } else { normalised }
    }

    /// Counts the numbers that autograd keeps per image between forward and backward pass. Changes the
    /// running statistics, so call this on an otherwise unused encoder.
    pub fn activations(&self) -> u64 {
        let side = i64::from(self.config.image_size);
        // Batch norm needs two images.
        let pixels = Tensor::zeros([2, 3, side, side], (Kind::Uint8, self.device()));
        count_kept(|| drop(self.forward(&pixels, true))) / 2
    }

    /// Returns the length of the pooled feature, before the projection.
    pub fn pooled_width(&self) -> i64 {
        let projection = format!("{}weight", self.config.arch.projection());
        self.variables.variables()[&projection].size()[1]
    }

    /// Returns the trainable parameters, sorted by name.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        self.named_variables().into_iter().filter(|(_, variable)| variable.requires_grad()).collect()
    }

    /// Returns the running statistics of batch norm, sorted by name.
    pub fn statistics(&self) -> Vec<Tensor> {
        let all = self.named_variables().into_iter();
        all.filter(|(_, variable)| !variable.requires_grad()).map(|(_, variable)| variable).collect()
    }

    /// Returns weights and batch-norm statistics under torchvision's names.
    pub fn weights(&self) -> NamedTensors {
        NamedTensors::from_tensors(self.named_variables())
    }

    /// Loads weights; names and shapes must match exactly.
    ///
    /// # Errors
    /// If a name is missing, unexpected or has another shape, with the first one.
    pub fn load(&mut self, weights: &NamedTensors) -> Result<(), WeightsError> {
        weights.copy_into(self.named_variables())
    }

    /// Loads the weights of a model with any last layer: if that is missing or has another shape, the
    /// projection is unchanged. Returns whether the last layer was loaded too.
    ///
    /// # Errors
    /// As [`Encoder::load`], for all other layers; nothing is copied then.
    pub fn load_backbone(&mut self, weights: &NamedTensors) -> Result<bool, WeightsError> {
        let prefix = self.config.arch.projection();
        let of_projection = |name: &str| name.starts_with(prefix);
        let variables = self.named_variables();
        let (projection, backbone): (Vec<_>, Vec<_>) =
            variables.into_iter().partition(|(name, _)| of_projection(name));
        let fits = |(name, variable): &(String, Tensor)| {
            weights.get(name).is_ok_and(|given| given.size() == variable.size())
        };
        if projection.iter().all(fits) {
            return self.load(weights).map(|()| true);
        }
        weights.only(|name| !of_projection(name)).copy_into(backbone).map(|()| false)
    }

    /// Loads only the last layer of a model with this architecture.
    ///
    /// # Errors
    /// If the layer is missing or has another shape.
    pub fn load_projection(&mut self, weights: &NamedTensors) -> Result<(), WeightsError> {
        let prefix = self.config.arch.projection();
        let variables = self.named_variables().into_iter().filter(|(name, _)| name.starts_with(prefix));
        weights.only(|name| name.starts_with(prefix)).copy_into(variables.collect())
    }

    fn named_variables(&self) -> Vec<(String, Tensor)> {
        let mut variables: Vec<_> = self.variables.variables().into_iter().collect();
        variables.sort_by(|(a, _), (b, _)| a.cmp(b));
        variables
    }
}

fn unit_rows(projected: &Tensor) -> Tensor {
    let length = projected.norm_scalaropt_dim(2, [1_i64].as_slice(), true).clamp_min(SHORTEST_LENGTH);
    projected / length
}

/// Returns a copy with the channels last in memory, `[batch, height, width, channels]`.
fn with_channels_last(tensor: &Tensor) -> Tensor {
    tensor.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

/// Draws the initial value of the parameter with this torchvision name.
///
/// Convolutions are normal with variance 2 / (kernel² · output channels). Batch norms start as the identity.
/// Linear layers with their biases are uniform in ±1/√input as in PyTorch's `Linear`; `weight` is the shape
/// of the layer's weight.
///
/// # Source
/// Reference `models/resnet.py`, constructor.
fn initial_value(seed: u64, index: u64, name: &str, shape: &[i64], weight: &[i64]) -> Tensor {
    let count: i64 = shape.iter().product();
    let linear_bound = |input: i64| 1.0 / (input as f64).sqrt();
    let values: Vec<f32> = match shape {
        [output, _, height, width] => {
            let deviation = (2.0 / (output * height * width) as f64).sqrt();
            draw(seed, index, count, |stream| stream.normal() * deviation)
        }
        [_, input] => {
            let bound = linear_bound(*input);
            draw(seed, index, count, |stream| stream.range(-bound, bound))
        }
        _ if weight.len() == 2 && name.ends_with("bias") => {
            let bound = linear_bound(weight[1]);
            draw(seed, index, count, |stream| stream.range(-bound, bound))
        }
        _ => {
            let one = name.ends_with("weight") || name.ends_with("running_var");
            vec![if one { 1.0 } else { 0.0 }; count as usize]
        }
    };
    Tensor::from_slice(&values).view(shape)
}

/// Draws numbers in blocks, so that threads share the work without changing the values.
fn draw(seed: u64, index: u64, count: i64, value: impl Fn(&mut Stream) -> f64 + Sync) -> Vec<f32> {
    const BLOCK: usize = 1 << 14;
    let mut values = vec![0.0; count as usize];
    values.par_chunks_mut(BLOCK).enumerate().for_each(|(block, values)| {
        let mut stream = Stream::new(seed, Purpose::WeightInit, index, block as u64);
        for slot in values {
            *slot = value(&mut stream) as f32;
        }
    });
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};

    fn encoder(arch: Architecture, image_size: u32) -> Encoder {
        let normalisation = Normalisation::CIFAR;
        let config =
            EncoderConfig { arch, dim: 32, normalisation, image_size, evaluation_resize: image_size };
        Encoder::new(config, 1, Device::Cpu)
    }

    /// Draws pixels, not by libtorch's generator, which other tests would draw from in between.
    fn pixels(batch: i64, side: i64) -> Tensor {
        let mut stream = Stream::new(3, Purpose::Test, 0, 0);
        let values: Vec<u8> = (0..batch * 3 * side * side).map(|_| stream.below(256) as u8).collect();
        Tensor::from_slice(&values).view([batch, 3, side, side])
    }

    /// Returns the features and the first kernel's gradient, computed in this way.
    fn run(precision: Precision, channels_last: bool, train: bool) -> (Tensor, Tensor) {
        let mut encoder = encoder(Architecture::ResNet20Cifar, 32);
        encoder.set_compute(precision, channels_last);
        let features = encoder.forward(&pixels(4, 32), train);
        features.narrow(1, 0, 1).sum(Kind::Float).backward();
        let (_, kernel) = encoder.parameters().swap_remove(2);
        assert_eq!(kernel.size(), [16, 3, 3, 3]);
        (features.detach(), kernel.grad())
    }

    fn relative(a: &Tensor, b: &Tensor) -> f64 {
        ((a - b).norm() / b.norm()).double_value(&[])
    }

    #[test]
    fn channels_last_gives_the_same_features_and_gradients() {
        let (features, gradient) = run(Precision::F32, false, true);
        let (moved, moved_gradient) = run(Precision::F32, true, true);
        assert!(relative(&moved, &features) < 1e-5 && relative(&moved_gradient, &gradient) < 1e-4);
    }

    #[test]
    fn channels_last_moves_the_kernels_and_leaves_the_file_as_it_is() {
        let mut encoder = encoder(Architecture::ResNet20Cifar, 32);
        let before = encoder.weights().to_bytes();
        encoder.set_compute(Precision::F32, true);
        let (_, kernel) = encoder.parameters().swap_remove(2);
        assert_eq!(kernel.stride(), [27, 1, 9, 3]);
        assert!(encoder.weights().to_bytes() == before);
    }

    #[test]
    fn bf16_gives_nearly_the_same_unit_features_in_f32() {
        // With a small batch's statistics an untrained network amplifies every rounding, as PyTorch's does.
        let (features, gradient) = run(Precision::F32, false, false);
        let (rounded, rounded_gradient) = run(Precision::Bf16, false, false);
        assert_eq!((rounded.kind(), rounded_gradient.kind()), (Kind::Float, Kind::Float));
        assert!(relative(&rounded, &features) < 0.1, "{}", relative(&rounded, &features));
        assert!(relative(&rounded_gradient, &gradient) < 0.3, "{}", relative(&rounded_gradient, &gradient));
        let lengths = rounded.norm_scalaropt_dim(2, [1_i64].as_slice(), false);
        assert!((lengths - 1.0).abs().max().double_value(&[]) < 1e-6);
    }

    #[test]
    fn weights_of_a_classifier_leave_the_projection_as_it_is() {
        let mut target = encoder(Architecture::ResNet20Cifar, 32);
        let before = target.weights();
        let other = Encoder::new(EncoderConfig { dim: 10, ..target.config() }, 9, Device::Cpu).weights();
        assert!(!target.load_backbone(&other).expect("a backbone"));
        let after = target.weights();
        let same = |a: &NamedTensors, b: &NamedTensors, name| {
            a.get(name).expect("there").equal(b.get(name).expect("there"))
        };
        assert!(same(&after, &before, "fc.weight") && same(&after, &other, "conv1.weight"));
        let whole = Encoder::new(target.config(), 9, Device::Cpu).weights();
        assert!(target.load_backbone(&whole).expect("all of it"));
        assert!(same(&target.weights(), &whole, "fc.weight"));
        assert!(target.load_backbone(&encoder(Architecture::ResNet18Cifar, 32).weights()).is_err());
    }

    #[test]
    fn features_of_layers_are_those_of_the_one_pass_and_a_missing_layer_is_named() {
        use crate::model::FeatureLayer::{Pooled, Projection, Stage};
        let encoder = encoder(Architecture::ResNet20Cifar, 16);
        let pixels = pixels(2, 16);
        let layers = [Stage(1), Stage(4), Pooled, Projection];
        let features = encoder.features(&pixels, &layers).expect("all are there");
        let widths: Vec<i64> = features.iter().map(|feature| feature.size()[1]).collect();
        assert_eq!(widths, [16 * 256, 64 * 16, 64, 32]);
        // The pooled feature is the average of the last stage's map; the projection is the training output.
        let averaged = features[1].view([2, 64, 16]).mean_dim([2_i64].as_slice(), false, Kind::Float);
        assert!(averaged.allclose(&features[2], 1e-5, 1e-6, false));
        assert_eq!(features[3], tch::no_grad(|| encoder.forward(&pixels, false)));
        let error = encoder.features(&pixels, &[Projection, Stage(5)]).expect_err("three stages and a stem");
        assert_eq!(error.layer, Stage(5));
    }
}
