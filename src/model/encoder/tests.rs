use super::*;
use crate::model::ComputeType;
use crate::rng::{Purpose, Stream};

fn encoder(arch: Architecture) -> Encoder {
    let config = EncoderConfig {
        arch,
        dim: 32,
        normalisation: Normalisation::CIFAR,
        image_size: 32,
        evaluation_resize: 32,
    };
    Encoder::new(config, 1, Device::Cpu)
}

/// The same at every call. libtorch's generator is one for all threads: other tests would draw from it in between.
fn pixels(batch: i64, side: i64) -> Tensor {
    let mut stream = Stream::new(3, Purpose::Test, 0, 0);
    let values: Vec<u8> = (0..batch * 3 * side * side).map(|_| stream.below(256) as u8).collect();
    Tensor::from_slice(&values).view([batch, 3, side, side])
}

/// The features and the first kernel's gradient under some way of computing.
fn run(compute: Compute, train: bool) -> (Tensor, Tensor) {
    let mut encoder = encoder(Architecture::ResNet20Cifar);
    encoder.set_compute(compute);
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
    let (features, gradient) = run(Compute::default(), true);
    let (moved, moved_gradient) = run(Compute { channels_last: true, ..Compute::default() }, true);
    assert!(relative(&moved, &features) < 1e-5 && relative(&moved_gradient, &gradient) < 1e-4);
}

#[test]
fn channels_last_moves_the_kernels_and_leaves_the_file_as_it_is() {
    let mut encoder = encoder(Architecture::ResNet20Cifar);
    let before = encoder.weights().to_bytes();
    encoder.set_compute(Compute { channels_last: true, ..Compute::default() });
    let (_, kernel) = encoder.parameters().swap_remove(2);
    assert_eq!(kernel.stride(), [27, 1, 9, 3]);
    assert!(encoder.weights().to_bytes() == before);
}

#[test]
fn bf16_gives_nearly_the_same_unit_features_in_f32() {
    // With the statistics of a small batch an untrained network enlarges every rounding, as PyTorch's does.
    let (features, gradient) = run(Compute::default(), false);
    let compute = Compute { kind: ComputeType::Bf16, channels_last: false };
    let (rounded, rounded_gradient) = run(compute, false);
    assert_eq!((rounded.kind(), rounded_gradient.kind()), (Kind::Float, Kind::Float));
    assert!(relative(&rounded, &features) < 0.1, "{}", relative(&rounded, &features));
    assert!(relative(&rounded_gradient, &gradient) < 0.3, "{}", relative(&rounded_gradient, &gradient));
    let lengths = rounded.norm_scalaropt_dim(2, [1_i64].as_slice(), false);
    assert!((lengths - 1.0).abs().max().double_value(&[]) < 1e-6);
}

#[test]
fn weights_of_a_classifier_leave_the_projection_as_it_is() {
    let mut target = encoder(Architecture::ResNet20Cifar);
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
}

#[test]
fn weights_of_another_architecture_are_refused_by_name() {
    let mut target = encoder(Architecture::ResNet20Cifar);
    let other = encoder(Architecture::ResNet18Cifar).weights();
    assert!(target.load_backbone(&other).is_err());
}

#[test]
fn features_of_layers_are_those_of_the_one_pass_and_a_missing_layer_is_named() {
    use crate::model::FeatureLayer::{Pooled, Projection, Stage};
    let config = EncoderConfig {
        arch: Architecture::ResNet20Cifar,
        dim: 16,
        normalisation: Normalisation::CIFAR,
        image_size: 16,
        evaluation_resize: 16,
    };
    let encoder = Encoder::new(config, 3, Device::Cpu);
    let pixels = pixels(2, 16);
    let layers = [Stage(1), Stage(4), Pooled, Projection];
    let features = encoder.features(&pixels, &layers).expect("all are there");
    let widths: Vec<i64> = features.iter().map(|feature| feature.size()[1]).collect();
    assert_eq!(widths, [16 * 256, 64 * 16, 64, 16]);
    // The last stage's map, averaged, is the pooled feature; the projection is what training sees.
    let averaged = features[1].view([2, 64, 16]).mean_dim([2_i64].as_slice(), false, Kind::Float);
    assert!(averaged.allclose(&features[2], 1e-5, 1e-6, false));
    assert_eq!(features[3], tch::no_grad(|| encoder.forward(&pixels, false)));
    let error = encoder.features(&pixels, &[Projection, Stage(5)]).expect_err("three stages and a stem");
    assert_eq!(error.layer, Stage(5));
}
