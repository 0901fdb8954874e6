//! Defaults that depend on the images.

use std::collections::BTreeSet;

use super::{Architecture, BankInit, MonitorEvery, ObjectiveKind, RecipeKind, TrainConfig};
use crate::dataset::Split;
use crate::units::Temperature;

/// Largest number of images with exact softmax by default. By the count of operations, its three products of
/// a batch of 256 with 100,000 rows of 128 numbers take 2 % of a ResNet-18 on images of 32 pixels.
pub const MOST_OF_SOFTMAX: usize = 100_000;
/// Largest number of images whose encoder features fill the initial bank by default. This takes one pass,
/// which lasts minutes on a GPU and is not saved in between.
const MOST_OF_ENCODING: usize = 2_000_000;
/// Smallest number of queries of a monitor.
pub const FEWEST_MONITORED: usize = 200;
/// The monitor takes at most one part in this many of the work.
const MOST_OF_A_MONITOR: usize = 10;
/// Work of a step on one image, in forward passes.
const FORWARD_AND_BACKWARD: usize = 3;
/// Largest mean of the shorter sides, in pixels, for which images get CIFAR's defaults.
const MOST_SIDE_OF_CIFAR: u64 = 48;
/// Minimum steps of an epoch with few images, unless this makes a batch too small.
const STEPS_OF_AN_EPOCH: usize = 16;
/// Batch size below which the learning rate shrinks; the reference uses one rate for 128 (CIFAR) and 256 (ImageNet).
const BATCH_OF_LR: usize = 128;
/// Smallest default batch.
const FEWEST_OF_A_BATCH: usize = 16;
/// Keys without effect on the exact softmax: if one is given, the default objective is nce.
const OF_SAMPLING: [&str; 6] =
    ["negatives", "negative_sampling", "exclude_positive", "partition", "partition_decay", "eps"];
/// Keys with other defaults for small images if none of them, or a backbone for small images, is given.
const OF_SIZE: [&str; 3] = ["arch", "image_size", "recipe"];

/// Images of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Images {
    /// Number of images.
    pub count: usize,
    /// Mean of their shorter sides, in pixels.
    pub shorter_side: u64,
}

/// Machines of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machines {
    /// Number of processes.
    pub ranks: usize,
    /// Whether the processes compute on CPUs.
    pub are_cpus: bool,
}

impl Images {
    /// Describes the images of a split, or `limit` of them if that is not 0.
    pub fn of(split: &Split, limit: u64) -> Self {
        let count = if limit == 0 { split.instances } else { limit.min(split.instances) };
        let sides = split.ingest.iter().map(|part| (part.instances, part.report.short_side[1]));
        let (sum, images) = sides.fold((0, 0), |(sum, images), (n, side)| (sum + n * side, images + n));
        Self { count: count as usize, shorter_side: sum / images.max(1) }
    }

    /// Returns the defaults for these images and machines, where the keys `given` have the values in `asked`.
    ///
    /// Defaults equal the reference's `main.py`, except for
    ///
    /// - the objective: the exact softmax if it costs little. It needs no Z, and a young bank estimates Z badly
    ///   (docs/training.md);
    /// - Z, a moving average, and the bank's first rows, the encoder's features up to some number of images
    ///   (docs/performance.md, "Objectives by the number of images");
    /// - side, augmentations, batch, τ and weight decay of small images: those of the reference's `cifar.py`;
    ///   its ResNet-18 too, but on CPUs ResNet-20, which takes a fourteenth of the multiplications
    ///   (docs/performance.md, "Plain defaults on a CPU");
    /// - the batch of few images: smaller, so that an epoch is more than one step, and with it the learning rate
    ///   (Goyal et al., 2017, section 2.1; docs/performance.md has runs with and without).
    pub fn defaults(self, machines: Machines, asked: &TrainConfig, given: &BTreeSet<String>) -> TrainConfig {
        let mut config = TrainConfig::default();
        let gives = |keys: &[&str]| keys.iter().any(|key| given.contains(*key));
        if self.count <= MOST_OF_SOFTMAX && !gives(&OF_SAMPLING) {
            config.objective = ObjectiveKind::Softmax;
        }
        if self.count > MOST_OF_ENCODING {
            config.bank_init = BankInit::Uniform;
        }
        config.monitor_every = MonitorEvery::Epochs(epochs_of_a_monitor(self.count));
        // 0: ingest did not measure the images.
        let is_for_small = matches!(asked.arch, Architecture::ResNet18Cifar | Architecture::ResNet20Cifar);
        let is_small = (1..=MOST_SIDE_OF_CIFAR).contains(&self.shorter_side);
        if is_small && (is_for_small || !gives(&OF_SIZE)) {
            let arch =
                if machines.are_cpus { Architecture::ResNet20Cifar } else { Architecture::ResNet18Cifar };
            (config.arch, config.image_size, config.recipe) = (arch, 32, RecipeKind::Cifar);
            config.batch_size = 128;
            config.temperature = Temperature::new(0.1).expect("in range");
            config.weight_decay = 5e-4;
        }
        // Each rank needs images of each micro-batch.
        if machines.ranks == 1 && !gives(&["accumulate"]) {
            let most = (self.count / STEPS_OF_AN_EPOCH).max(FEWEST_OF_A_BATCH);
            while config.batch_size > most {
                config.batch_size /= 2;
            }
            if !gives(&["batch_size", "optimizer"]) {
                config.lr *= (config.batch_size as f64 / BATCH_OF_LR as f64).min(1.0);
            }
        }
        config
    }
}

/// Returns the number of epochs after which the monitor's forward passes are a tenth of the work.
fn epochs_of_a_monitor(images: usize) -> u64 {
    images_of_a_monitor(images.max(1)) as u64
}

/// Returns the smallest number of images for which a monitor after every this many epochs is a tenth of the
/// work. The function is its own inverse.
fn images_of_a_monitor(epochs: usize) -> usize {
    (MOST_OF_A_MONITOR * FEWEST_MONITORED).div_ceil(FORWARD_AND_BACKWARD * epochs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPU: Machines = Machines { ranks: 1, are_cpus: false };
    const CPU: Machines = Machines { ranks: 1, are_cpus: true };

    fn plain(count: usize, shorter_side: u64, machines: Machines) -> TrainConfig {
        Images { count, shorter_side }.defaults(machines, &TrainConfig::default(), &BTreeSet::new())
    }

    #[test]
    fn images_like_imagenets_have_the_general_defaults() {
        let of = |count, shorter_side| plain(count, shorter_side, GPU);
        assert_eq!(of(1_281_167, 400), TrainConfig::default());
        let [few, many] = [2_000_000, 2_000_001].map(|count| of(count, 400).bank_init);
        assert_eq!((few, many), (BankInit::Encode, BankInit::Uniform));
        let every = [40, 500, 667, 50_000].map(|count| of(count, 400).monitor_every);
        assert_eq!(every, [17, 2, 1, 1].map(MonitorEvery::Epochs));
        let cifar = of(50_000, 32);
        assert_eq!((cifar.arch, cifar.image_size), (Architecture::ResNet18Cifar, 32));
        assert_eq!((cifar.objective, cifar.batch_size), (ObjectiveKind::Softmax, 128));
        assert_eq!((cifar.temperature.get(), cifar.weight_decay), (0.1, 5e-4));
        assert_eq!([500, 40, 2].map(|count| of(count, 400).batch_size), [16, 16, 16]);
        assert_eq!((of(1000, 400).batch_size, of(50_000, 0).arch), (32, Architecture::ResNet18));
        assert_eq!(
            [(40, 400), (40, 32), (5000, 32)].map(|(n, side)| of(n, side).lr),
            [0.03 / 8.0, 0.03 / 8.0, 0.03]
        );
        assert!([of(2, 32), of(3000, 64)].iter().all(|config| config.validate() == Ok(())));
    }

    #[test]
    fn small_images_have_a_small_network_on_a_cpu() {
        assert_eq!(
            plain(50_000, 32, CPU),
            TrainConfig { arch: Architecture::ResNet20Cifar, ..plain(50_000, 32, GPU) }
        );
        assert_eq!(plain(500, 400, CPU), plain(500, 400, GPU));
        // A backbone for small images implies the related defaults.
        let images = Images { count: 500, shorter_side: 32 };
        let asked = TrainConfig { arch: Architecture::ResNet18Cifar, ..TrainConfig::default() };
        for machines in [CPU, GPU] {
            let of_arch = images.defaults(machines, &asked, &BTreeSet::from(["arch".to_owned()]));
            assert_eq!(TrainConfig { arch: asked.arch, ..of_arch }, plain(500, 32, GPU));
        }
    }

    #[test]
    fn what_is_given_keeps_what_goes_with_it() {
        let of = |ranks, key: &str| {
            let images = Images { count: 500, shorter_side: 32 };
            let machines = Machines { ranks, ..GPU };
            images.defaults(machines, &TrainConfig::default(), &BTreeSet::from([key.to_owned()]))
        };
        assert_eq!(of(1, "partition").objective, ObjectiveKind::Nce);
        assert_eq!((of(1, "image_size").arch, of(1, "arch").image_size), (Architecture::ResNet18, 224));
        assert_eq!(
            (of(1, "lr").batch_size, of(1, "accumulate").batch_size, of(9, "lr").batch_size),
            (16, 128, 128)
        );
        assert_eq!(
            (of(1, "batch_size").lr, of(1, "optimizer").lr, of(1, "seed").lr),
            (0.03, 0.03, 0.03 / 8.0)
        );
        let keys = TrainConfig::default().values();
        assert!(OF_SAMPLING.iter().chain(&OF_SIZE).all(|key| keys.contains_key(*key)), "they are keys");
    }

    #[test]
    fn the_descriptions_have_the_numbers_of_the_code() {
        let described = |key: &str, numbers: &[usize]| {
            let option = TrainConfig::OPTIONS.iter().find(|option| option.key == key).expect(key);
            let text = option.by_images.expect(key);
            let has = |number: &usize| text.split([' ', ';', ',']).any(|word| word == number.to_string());
            assert!(numbers.iter().all(has), "{key}: {text}");
        };
        let side = MOST_SIDE_OF_CIFAR as usize;
        described("objective", &[MOST_OF_SOFTMAX]);
        described("bank_init", &[MOST_OF_ENCODING]);
        described("lr", &[BATCH_OF_LR]);
        described("monitor_every", &[images_of_a_monitor(1)]);
        let few = TrainConfig::default().batch_size * STEPS_OF_AN_EPOCH;
        described("batch_size", &[side, few, STEPS_OF_AN_EPOCH, FEWEST_OF_A_BATCH]);
        for key in ["arch", "image_size", "recipe", "temperature", "weight_decay"] {
            described(key, &[side]);
        }
        // Exactly the options described so depend on the images.
        let [large, small, many] =
            [(60, 400), (50_000, 32), (3_000_000, 400)].map(|(n, side)| plain(n, side, GPU).values());
        for option in TrainConfig::OPTIONS {
            let depends = large[option.key] != small[option.key] || small[option.key] != many[option.key];
            assert_eq!(depends, option.by_images.is_some(), "{}", option.key);
        }
    }
}
