//! Resources that a run needs, computed before it starts.

use serde::Serialize;

use super::StepTime;
use crate::model::Encoder;
use crate::run_config::{BankDtype, BankInit, OptimizerKind, Precision, TrainConfig};

/// Bytes of a number in f32.
const F32: u64 = 4;
/// Bytes of a bank row besides its vector: id, label and step, in memory and in a checkpoint.
const BYTES_BESIDE_A_ROW: u64 = 4 + 2 + 8;
/// Memory of the loader if no limit is given.
const LOADER_BYTES: u64 = 4 << 30;

/// Resources of one process of a run. Bytes are computed, not measured, and do not include the working memory of
/// libraries, such as that of convolutions.
#[derive(Clone, Debug, Serialize)]
pub struct Estimate {
    /// Trainable parameters of the encoder.
    pub parameters: u64,
    /// Epochs of the whole run.
    pub epochs: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Steps that earlier calls have done.
    pub done_steps: u64,
    /// Images encoded before the first step, to fill the bank.
    pub encoded_images: u64,
    /// Device memory of weights, gradients and the optimiser's buffers.
    pub weights_bytes: u64,
    /// Device memory of activations kept between the forward and backward pass of a micro-batch.
    pub activation_bytes: u64,
    /// Device memory of this process's bank rows.
    pub bank_bytes: u64,
    /// Device memory of the probe's weights, gradient and momentum; 0 without a probe.
    pub probe_bytes: u64,
    /// Sum of the device memory.
    pub device_bytes: u64,
    /// Host memory: the loader's limit, and ids, labels and steps of all rows.
    pub host_bytes: u64,
    /// Size of a checkpoint on disk.
    pub checkpoint_bytes: u64,
    /// Checkpoints kept at the end, the initial one included; 0 if all are kept.
    pub checkpoints: u64,
    /// Measured time of a step.
    pub time: Option<StepTime>,
}

impl Estimate {
    /// Estimates a run on `instances` instances of `classes` classes in `ranks` processes, of which `done`
    /// steps are done if it has started. Builds the network on the CPU to count its parameters.
    pub fn of(
        config: &TrainConfig,
        instances: usize,
        classes: usize,
        ranks: usize,
        done: Option<u64>,
    ) -> Self {
        let encoder = Encoder::new(config.encoder(), config.seed, tch::Device::Cpu);
        let parameters = encoder.parameters().iter().map(|(_, tensor)| tensor.numel() as u64).sum::<u64>();
        let buffers = if config.optimizer == OptimizerKind::Adamw { 2 } else { 1 };
        let bytes_of = |of_16_bits: bool| if of_16_bits { F32 / 2 } else { F32 };
        let activation = bytes_of(matches!(config.precision, Precision::Bf16 | Precision::F16));
        let part = config.batch_size.div_ceil(config.accumulate).div_ceil(ranks) as u64;
        let (rows, dim) = (instances as u64, config.dim as u64);
        let row = dim * bytes_of(config.bank_dtype != BankDtype::F32);
        let weights_bytes = parameters * F32 * (2 + buffers);
        let activation_bytes = encoder.activations() * activation * part;
        let bank_bytes = rows.div_ceil(ranks as u64) * row;
        // Each class has one weight per feature, and a bias.
        let probe = if config.probe { classes as u64 * (encoder.pooled_width() as u64 + 1) } else { 0 };
        let probe_bytes = probe * F32 * 3;
        let loader = if config.memory_limit.0 == 0 { LOADER_BYTES } else { config.memory_limit.0 };
        // A resumed run has filled its bank.
        let fills_bank = config.bank_init == BankInit::Encode && done.is_none();
        Self {
            parameters,
            epochs: config.epochs,
            steps: config.loader().steps(instances) * config.epochs,
            done_steps: done.unwrap_or(0),
            encoded_images: if fills_bank { rows } else { 0 },
            weights_bytes,
            activation_bytes,
            bank_bytes,
            probe_bytes,
            device_bytes: weights_bytes + activation_bytes + bank_bytes + probe_bytes,
            host_bytes: loader + rows * BYTES_BESIDE_A_ROW,
            checkpoints: if config.keep == 0 { 0 } else { config.keep as u64 + 1 },
            time: None,
            checkpoint_bytes: parameters * F32 * (1 + buffers)
                + rows * (dim * F32 + BYTES_BESIDE_A_ROW)
                + probe * F32 * 2,
        }
    }

    /// Returns the number of remaining steps.
    pub fn left_steps(&self) -> u64 {
        self.steps.saturating_sub(self.done_steps)
    }

    /// Returns the estimate as lines of text, without the time.
    pub fn lines(&self) -> Vec<String> {
        let size = |bytes: u64| {
            let gib = bytes as f64 / f64::from(1 << 30);
            if gib >= 1.0 { format!("{gib:.1} GiB") } else { format!("{:.0} MiB", gib * 1024.0) }
        };
        let stay =
            if self.checkpoints == 0 { "all".to_owned() } else { format!("{} of them", self.checkpoints) };
        let probe = match self.probe_bytes {
            0 => String::new(),
            bytes => format!("; probe {}", size(bytes)),
        };
        let before = match self.encoded_images {
            0 => String::new(),
            images => format!(", after a pass of {images} images that fills the bank"),
        };
        let done = match self.done_steps {
            0 => String::new(),
            done => format!(": {done} are done, {} are left", self.left_steps()),
        };
        vec![
            format!(
                "{:.1} million parameters, {} epochs of together {} steps{done}{before}",
                self.parameters as f64 / 1e6,
                self.epochs,
                self.steps
            ),
            format!(
                "device: {} for a process and what its libraries need (weights, gradients, optimiser {}; \
                 activations {}; bank {}{probe})",
                size(self.device_bytes),
                size(self.weights_bytes),
                size(self.activation_bytes),
                size(self.bank_bytes)
            ),
            format!(
                "host: {} at most: the loader takes what the images need, up to `--memory-limit`",
                size(self.host_bytes)
            ),
            format!("checkpoint: {} on disk, {stay} are kept (`--keep`)", size(self.checkpoint_bytes)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_config::Architecture;

    #[test]
    fn a_run_like_the_papers_needs_what_can_be_counted_by_hand() {
        let config = TrainConfig { arch: Architecture::ResNet18, ..TrainConfig::default() };
        let one = Estimate::of(&config, 1_281_167, 1000, 1, None);
        // torchvision's resnet18 with 128 outputs.
        assert_eq!(one.parameters, 11_242_176);
        assert_eq!(one.weights_bytes, 12 * 11_242_176);
        assert_eq!(one.bank_bytes, 1_281_167 * 128 * 4);
        assert_eq!((one.steps, one.encoded_images), (5005 * 200, 1_281_167));
        assert_eq!(one.checkpoint_bytes, 8 * 11_242_176 + 1_281_167 * (512 + 14));
        let eight = Estimate::of(&config, 1_281_167, 1000, 8, None);
        assert_eq!(
            (eight.activation_bytes, eight.weights_bytes),
            (one.activation_bytes / 8, one.weights_bytes)
        );
        assert!(one.lines()[1].contains("bank 626 MiB)"), "{:?}", one.lines());
        // 1,000 classes by 512 features and a bias, with their momentum; while it learns, with their gradient too.
        let probed = Estimate::of(&TrainConfig { probe: true, ..config }, 1_281_167, 1000, 1, None);
        assert_eq!(probed.probe_bytes, 3 * 4 * 1000 * 513);
        assert_eq!(probed.device_bytes, one.device_bytes + probed.probe_bytes);
        assert_eq!(probed.checkpoint_bytes, one.checkpoint_bytes + 2 * 4 * 1000 * 513);
        assert!(probed.lines()[1].contains("bank 626 MiB; probe 6 MiB)"), "{:?}", probed.lines());
    }

    #[test]
    fn a_run_that_has_begun_is_told_what_is_left_of_it() {
        let config = TrainConfig {
            arch: Architecture::ResNet20Cifar,
            image_size: 32,
            batch_size: 50,
            epochs: 6,
            ..TrainConfig::default()
        };
        let of = |done| Estimate::of(&config, 100, 10, 1, done);
        assert_eq!((of(None).steps, of(None).left_steps(), of(None).encoded_images), (12, 12, 100));
        assert!(of(None).lines()[0].ends_with("12 steps, after a pass of 100 images that fills the bank"));
        let begun = of(Some(5));
        assert_eq!((begun.steps, begun.left_steps(), begun.encoded_images), (12, 7, 0));
        assert!(begun.lines()[0].ends_with("12 steps: 5 are done, 7 are left"), "{:?}", begun.lines());
        // A run may have done more steps than are requested.
        assert_eq!(of(Some(20)).left_steps(), 0);
    }

    /// The stem of a CIFAR network by hand: a convolution sees 3 planes and its batch norm 16, both of 32×32.
    #[test]
    fn activations_are_the_inputs_of_layers_and_grow_with_the_batch() {
        let of = |batch_size, precision| {
            let config = TrainConfig {
                arch: Architecture::ResNet20Cifar,
                image_size: 32,
                batch_size,
                precision,
                ..TrainConfig::default()
            };
            Estimate::of(&config, 1000, 10, 1, None).activation_bytes
        };
        let one = of(2, Precision::F32) / 2;
        assert_eq!(of(256, Precision::F32), 256 * one);
        assert_eq!(of(256, Precision::Bf16), 128 * one);
        // Per stage and layer: the inputs of 6 convolutions and their batch norms, 1024 numbers of 16 planes each, half
        // as many in the next stage, and the shortcuts.
        let plane = 32 * 32;
        let stage = |planes: u64, size: u64| planes * size;
        let first = 3 * plane + stage(16, plane) + 12 * stage(16, plane);
        let second = stage(16, plane) + 11 * stage(32, plane / 4) + stage(16, plane) + stage(32, plane / 4);
        let third =
            stage(32, plane / 4) + 11 * stage(64, plane / 16) + stage(32, plane / 4) + stage(64, plane / 16);
        assert_eq!(one, 4 * (first + second + third + 64));
    }
}
