//! The encoder against torchvision's networks, with the same weights.

use instdisc::model::{
    Encoder, EncoderConfig, NamedTensors, Normalisation, allow_tf32, select_device, tf32_is_allowed,
};
use instdisc::rng::{Purpose, Stream};
use instdisc::run_config::{Architecture, DeviceChoice};
use tch::{Device, Kind, Tensor};

use super::support::{python, scratch};

/// libtorch by itself rounds the factors of convolutions to TF32 on a GPU.
#[test]
fn a_selected_device_computes_in_f32_unless_tf32_is_allowed_afterwards() {
    assert_eq!(allow_tf32(true), Ok(()));
    select_device(DeviceChoice::Cpu).expect("the CPU");
    assert_eq!(tf32_is_allowed(), Ok(false));
}

#[test]
fn the_encoder_agrees_with_torchvision() {
    let dir = scratch();
    for (name, arch, side) in [
        ("resnet18", Architecture::ResNet18, 64),
        ("resnet34", Architecture::ResNet34, 64),
        ("resnet50", Architecture::ResNet50, 64),
        ("resnet101", Architecture::ResNet101, 64),
        ("resnet152", Architecture::ResNet152, 64),
        ("alexnet", Architecture::AlexNet, 64),
        ("vgg16", Architecture::Vgg16, 32),
        ("vgg16-bn", Architecture::Vgg16Bn, 32),
        ("resnet18-cifar", Architecture::ResNet18Cifar, 32),
        ("resnet20-cifar", Architecture::ResNet20Cifar, 32),
    ] {
        let config = EncoderConfig {
            arch,
            dim: 128,
            normalisation: Normalisation::IMAGENET,
            image_size: side,
            evaluation_resize: side,
        };
        let encoder = Encoder::new(config, 3, Device::Cpu);
        let side = i64::from(side);
        let mut stream = Stream::new(3, Purpose::Test, 0, 0);
        let mut pixels = |batch| {
            let values: Vec<u8> = (0..batch * 3 * side * side).map(|_| stream.below(256) as u8).collect();
            Tensor::from_slice(&values).view([batch, 3, side, side])
        };
        // Two passes in training mode, so that the running statistics are not the initial ones.
        for _ in 0..2 {
            let _ = encoder.forward(&pixels(8), true);
        }
        let given = pixels(4);
        let features = tch::no_grad(|| encoder.forward(&given, false));
        let weights = dir.path().join("model.safetensors");
        let sample = dir.path().join("sample.safetensors");
        std::fs::write(&weights, encoder.weights().to_bytes()).expect("written");
        let tensors = [("pixels".to_owned(), given.to_kind(Kind::Float)), ("features".to_owned(), features)];
        std::fs::write(&sample, NamedTensors::from_tensors(tensors).to_bytes()).expect("written");
        let args = [weights.as_path(), sample.as_path(), name.as_ref()];
        let test = "the_encoder_agrees_with_torchvision";
        let Some(output) = python(test, "tests/python/check_encoder.py", &args) else { return };
        let difference: f64 = output.trim().parse().expect("a number");
        assert!(difference <= 1e-4, "{name}: {difference}");
    }
}
