//! Layers that compute in the type of their input.
//!
//! Weights are kept in f32; a layer whose input is bf16 or f16 rounds a copy of them for the product, and
//! autograd brings the gradient back to f32. That is what PyTorch's autocast does, on every device.

use std::cell::Cell;

use tch::Tensor;
use tch::nn::{self, Conv2D, Linear};

thread_local! {
    /// Numbers that autograd keeps, where they are counted.
    static KEPT: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Takes note of a tensor that autograd keeps for the backward pass.
pub(super) fn note_kept(input: &Tensor) {
    KEPT.with(|kept| kept.set(kept.get().map(|numbers| numbers + input.numel() as u64)));
}

/// How many numbers autograd keeps of what is computed meanwhile: the inputs of convolutions, batch norms and linear
/// layers. A ReLU keeps its output, which is such an input.
pub(super) fn count_kept(compute: impl FnOnce()) -> u64 {
    KEPT.set(Some(0));
    compute();
    KEPT.take().unwrap_or(0)
}

/// A square convolution.
#[derive(Debug)]
pub(super) struct Convolution {
    layer: Conv2D,
    stride: i64,
    padding: i64,
}

/// The shape of a convolution.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConvShape {
    pub(super) input: i64,
    pub(super) output: i64,
    pub(super) kernel: i64,
    pub(super) stride: i64,
    pub(super) padding: i64,
    pub(super) bias: bool,
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

/// A linear layer.
pub(super) fn linear(layer: &Linear, input: &Tensor) -> Tensor {
    note_kept(input);
    let kind = input.kind();
    input.linear(&layer.ws.to_kind(kind), layer.bs.as_ref().map(|bias| bias.to_kind(kind)))
}
