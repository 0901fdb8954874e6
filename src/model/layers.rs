//! Layers that compute in the number type of their input.
//!
//! Weights are kept in f32. A layer with bf16 or f16 input rounds a copy of them for the product, and
//! autograd converts the gradient back to f32, like PyTorch's autocast, on every device.

use std::cell::Cell;

use tch::nn::{self, Conv2D, Linear, ModuleT};
use tch::{Kind, Tensor, no_grad};

/// Maximum number of stages of a network.
pub(super) const STAGES: usize = 5;

thread_local! {
    /// Number of values that autograd keeps, while counting.
    static KEPT: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Counts a tensor that autograd keeps for the backward pass.
fn note_kept(input: &Tensor) {
    KEPT.with(|kept| kept.set(kept.get().map(|numbers| numbers + input.numel() as u64)));
}

/// Counts the numbers that autograd keeps while `compute` runs: the inputs of convolutions, batch norms and
/// linear layers. A ReLU keeps its output, which is such an input.
pub(super) fn count_kept(compute: impl FnOnce()) -> u64 {
    KEPT.set(Some(0));
    compute();
    KEPT.take().unwrap_or(0)
}

/// Square convolution.
#[derive(Debug)]
pub(super) struct Convolution {
    layer: Conv2D,
    stride: i64,
    padding: i64,
}

/// Shape of a convolution.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConvShape {
    pub input: i64,
    pub output: i64,
    pub kernel: i64,
    pub stride: i64,
    pub padding: i64,
    pub bias: bool,
}

impl Convolution {
    pub(super) fn new(path: &nn::Path, shape: ConvShape) -> Self {
        let ConvShape { input, output, kernel, stride, padding, bias } = shape;
        let config = nn::ConvConfig { stride, padding, bias, ..nn::ConvConfig::default() };
        Self { layer: nn::conv2d(path, input, output, kernel, config), stride, padding }
    }

    pub(super) fn forward(&self, input: &Tensor) -> Tensor {
        note_kept(input);
        let (kind, one) = (input.kind(), [1_i64; 2]);
        let bias = self.layer.bs.as_ref().map(|bias| bias.to_kind(kind));
        input.conv2d(&self.layer.ws.to_kind(kind), bias, [self.stride; 2], [self.padding; 2], one, 1)
    }
}

/// Applies a linear layer.
pub(super) fn linear(layer: &Linear, input: &Tensor) -> Tensor {
    note_kept(input);
    let kind = input.kind();
    input.linear(&layer.ws.to_kind(kind), layer.bs.as_ref().map(|bias| bias.to_kind(kind)))
}

/// Operations over all processes for batch norm, with gradients.
pub trait OverRanks {
    /// Returns the sum of a tensor over all processes.
    fn sum(&self, values: &Tensor) -> Tensor;

    /// Computes a whole batch norm of maps on CUDA, and updates the layer's running statistics.
    ///
    /// # Shape
    /// As the layer; all processes together need at least two values of a channel.
    fn batch_norm(&self, input: &Tensor, layer: &nn::BatchNorm) -> Tensor;
}

/// Source of the mean and variance that normalise a batch.
#[derive(Clone, Copy)]
pub(super) enum Statistics<'a> {
    /// Running statistics, unchanged.
    Running,
    /// Statistics of this process's images, which update the running ones.
    OfBatch,
    /// Statistics of all processes' images, which update the running ones equally everywhere.
    OfAllRanks(&'a dyn OverRanks),
}

/// Batch norm with PyTorch's settings, over the images of one or all processes. Weights and statistics remain
/// in f32 for any input.
///
/// # Source
/// Ioffe and Szegedy 2015; PyTorch's `BatchNorm2d` and `SyncBatchNorm` for names, settings and the unbiased
/// variance in the running statistics.
#[derive(Debug)]
pub(super) struct BatchNorm(nn::BatchNorm);

impl BatchNorm {
    pub(super) fn new(path: &nn::Path, channels: i64) -> Self {
        // tch's default draws random weights from a generator that all threads share.
        let config = nn::BatchNormConfig { ws_init: nn::Init::Const(1.0), ..nn::BatchNormConfig::default() };
        Self(nn::batch_norm2d(path, channels, config))
    }

    /// # Shape
    /// `[batch, channels, height, width]` of any float type -> the same
    pub(super) fn forward(&self, input: &Tensor, statistics: Statistics<'_>) -> Tensor {
        note_kept(input);
        match statistics {
            Statistics::Running => self.0.forward_t(input, false),
            Statistics::OfBatch => self.of_batch(input),
            Statistics::OfAllRanks(ranks) => {
                let size = input.size();
                // All one-pixel maps together may be a single value, for whose variance the kernels compute 0 / 0.
                if input.device().is_cuda() && size[2] * size[3] > 1 {
                    ranks.batch_norm(input, &self.0)
                } else {
                    self.over_ranks(input, ranks)
                }
            }
        }
    }

    fn of_batch(&self, input: &Tensor) -> Tensor {
        let values = input.size().iter().product::<i64>() / input.size()[1].max(1);
        if values > 1 {
            return self.0.forward_t(input, true);
        }
        // A single value has no variance to track, and no values have no mean.
        let config = nn::BatchNormConfig::default();
        let (weight, bias) = (self.0.ws.as_ref(), self.0.bs.as_ref());
        let nothing = None::<&Tensor>;
        input.batch_norm(weight, bias, nothing, nothing, true, config.momentum, config.eps, false)
    }

    /// Exchanges one message each way: sums of `x - shift` and of its square, and their count. The shift is the running
    /// mean, which all processes share. It is near the mean, so the variance is not a difference of large numbers.
    fn over_ranks(&self, input: &Tensor, ranks: &dyn OverRanks) -> Tensor {
        let config = nn::BatchNormConfig::default();
        let by_channel = |values: &Tensor| values.view([1, -1, 1, 1]);
        let x = input.to_kind(Kind::Float);
        let shift = self.0.running_mean.detach().copy();
        let shifted = &x - by_channel(&shift);
        let over = [0_i64, 2, 3];
        let total = |values: &Tensor| values.sum_dim_intlist(over.as_slice(), false, Kind::Float);
        let size = x.size();
        let count = Tensor::full([1], size[0] * size[2] * size[3], (Kind::Double, x.device()));
        let sums = Tensor::cat(
            &[total(&shifted).to_kind(Kind::Double), total(&shifted.square()).to_kind(Kind::Double), count],
            0,
        );
        let sums = ranks.sum(&sums);
        let channels = size[1];
        let count = sums.narrow(0, 2 * channels, 1).detach();
        let mean = sums.narrow(0, 0, channels) / &count;
        let variance = (sums.narrow(0, channels, channels) / &count - mean.square()).clamp_min(0.0);
        no_grad(|| {
            let unbiased = &variance * (&count / (&count - 1.0).clamp_min(1.0));
            let follow = |running: &Tensor, now: &Tensor| {
                let mut running = running.shallow_clone();
                let moved = &running * (1.0 - config.momentum) + now.to_kind(Kind::Float) * config.momentum;
                running.copy_(&moved);
            };
            follow(&self.0.running_mean, &(&mean + shift.to_kind(Kind::Double)));
            follow(&self.0.running_var, &unbiased);
        });
        let scale = (variance + config.eps).rsqrt().to_kind(Kind::Float);
        let normalised = (shifted - by_channel(&mean.to_kind(Kind::Float))) * by_channel(&scale);
        let normalised = match (&self.0.ws, &self.0.bs) {
            (Some(weight), Some(bias)) => normalised * by_channel(weight) + by_channel(bias),
            _ => normalised,
        };
        normalised.to_kind(input.kind())
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::rng::{Purpose, Stream};

    fn norm() -> (nn::VarStore, BatchNorm) {
        let variables = nn::VarStore::new(Device::Cpu);
        let norm = BatchNorm::new(&(variables.root() / "bn"), 3);
        (variables, norm)
    }

    #[test]
    fn a_single_value_leaves_the_running_statistics_as_they_are() {
        let (_variables, norm) = norm();
        for batch in [1, 0] {
            let input = Tensor::ones([batch, 3, 1, 1], (Kind::Float, Device::Cpu));
            assert_eq!(norm.forward(&input, Statistics::OfBatch).size(), [batch, 3, 1, 1]);
        }
        assert!(norm.0.running_mean.equal(&norm.0.running_mean.zeros_like()));
        assert!(norm.0.running_var.equal(&norm.0.running_var.ones_like()));
    }

    #[test]
    fn over_one_process_it_is_the_plain_batch_norm_with_its_gradient_and_statistics() {
        let everything = |statistics: Statistics<'_>| {
            let mut stream = Stream::new(1, Purpose::Test, 0, 0);
            let mut normal = || {
                let values: Vec<f32> = (0..5 * 3 * 4 * 4).map(|_| stream.normal() as f32).collect();
                Tensor::from_slice(&values).view([5, 3, 4, 4])
            };
            let (variables, norm) = norm();
            let (mut weight, mut bias) =
                (norm.0.ws.as_ref().expect("it has").detach(), norm.0.bs.as_ref().expect("it has").detach());
            weight.copy_(&Tensor::from_slice(&[0.5_f32, -1.5, 2.0]));
            bias.copy_(&Tensor::from_slice(&[0.25_f32, 0.0, -1.0]));
            let mut state = Vec::new();
            for step in 0..3 {
                let input = (normal() * 2.0 + f64::from(step)).set_requires_grad(true);
                let output = norm.forward(&input, statistics);
                (&output * normal()).sum(Kind::Float).backward();
                state.extend([output.detach(), input.grad()]);
            }
            let mut variables: Vec<_> = variables.variables().into_iter().collect();
            variables.sort_by(|(a, _), (b, _)| a.cmp(b));
            state.extend(variables.into_iter().map(|(_, variable)| variable.detach()));
            state
        };
        struct Alone;
        impl OverRanks for Alone {
            fn sum(&self, values: &Tensor) -> Tensor {
                values.shallow_clone()
            }
            fn batch_norm(&self, _: &Tensor, _: &nn::BatchNorm) -> Tensor {
                panic!("the CPU has no kernel for it")
            }
        }
        let (plain, synced) = (everything(Statistics::OfBatch), everything(Statistics::OfAllRanks(&Alone)));
        assert_eq!(plain.len(), 10);
        for (plain, synced) in plain.iter().zip(&synced) {
            assert!(plain.allclose(synced, 1e-5, 1e-5, false), "{plain} {synced}");
        }
    }
}
