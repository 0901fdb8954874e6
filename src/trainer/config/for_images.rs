//! What a run does where nothing is asked for, by the images that it trains on.

use super::{RecipeKind, TrainConfig};
use crate::dataset::Split;
use crate::model::Architecture;
use crate::objective::ObjectiveKind;

/// Up to so many images the objective is the exact softmax: its products then are a few per cent of a small network's.
const MOST_OF_SOFTMAX: usize = 100_000;
/// Images whose shorter sides have a mean of so many pixels are seen as CIFAR's are.
const MOST_SIDE_OF_CIFAR: u64 = 48;
/// An epoch of few images has so many steps at least, if a batch then has the fewest images or more.
const STEPS_OF_AN_EPOCH: usize = 16;
/// Images of a batch at least, where a run decides by itself.
const FEWEST_OF_A_BATCH: usize = 16;

/// The images of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Images {
    /// How many.
    pub count: usize,
    /// The mean of their shorter sides in pixels.
    pub shorter_side: u64,
}

impl Images {
    /// Those of a split, or `limit` of them where it is not 0.
    pub fn of(split: &Split, limit: u64) -> Self {
        let count = if limit == 0 { split.instances } else { limit.min(split.instances) };
        let sides = split.ingest.iter().map(|part| (part.instances, part.report.short_side[1]));
        let (sum, images) = sides.fold((0, 0), |(sum, images), (n, side)| (sum + n * side, images + n));
        Self { count: count as usize, shorter_side: sum / images.max(1) }
    }
}

impl TrainConfig {
    /// The defaults for these images: those of the reference's `main.py`, but for
    ///
    /// - the objective, which is the exact softmax where it costs little: it needs no Z, whose estimate by a young bank
    ///   is what the noise contrast fails by (docs/training.md);
    /// - network, side and augmentations, which are those of the reference's `cifar.py` for small images;
    /// - the batch, which is smaller for few images, so that an epoch is not one step.
    pub fn for_images(images: Images) -> Self {
        let mut config = Self::default();
        if images.count <= MOST_OF_SOFTMAX {
            config.objective = ObjectiveKind::Softmax;
        }
        if images.shorter_side <= MOST_SIDE_OF_CIFAR {
            (config.arch, config.image_size, config.recipe) =
                (Architecture::ResNet18Cifar, 32, RecipeKind::Cifar);
        }
        let most = (images.count / STEPS_OF_AN_EPOCH).max(FEWEST_OF_A_BATCH);
        while config.batch_size > most {
            config.batch_size /= 2;
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_like_imagenets_have_the_defaults_of_the_reference() {
        let of = |count, shorter_side| TrainConfig::for_images(Images { count, shorter_side });
        assert_eq!(of(1_281_167, 400), TrainConfig::default());
        let cifar = of(50_000, 32);
        assert_eq!((cifar.arch, cifar.image_size), (Architecture::ResNet18Cifar, 32));
        assert_eq!((cifar.objective, cifar.batch_size), (ObjectiveKind::Softmax, 256));
        assert_eq!([500, 40, 2].map(|count| of(count, 400).batch_size), [16, 16, 16]);
        assert_eq!(of(1000, 400).batch_size, 32);
        assert!([of(2, 32), of(3000, 64)].iter().all(|config| config.validate() == Ok(())));
    }
}
