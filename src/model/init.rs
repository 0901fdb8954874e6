//! Initial weights as a function of the seed alone.

use rayon::prelude::*;
use tch::Tensor;

use crate::rng::{Purpose, Stream};

/// The initial value of the parameter with this torchvision name.
///
/// Convolutions are normal with variance 2 / (kernel² · output channels), batch norms start as the
/// identity, linear layers with their biases are uniform in ±1/√input as PyTorch's `Linear` is. `weight` is
/// the shape of the layer's weight.
///
/// # Source
/// Reference `models/resnet.py`, constructor.
pub(super) fn initial_value(seed: u64, index: u64, name: &str, shape: &[i64], weight: &[i64]) -> Tensor {
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

/// Numbers drawn in blocks, so that threads can share the work and the values do not depend on them.
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
