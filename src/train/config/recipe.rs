//! The augmentation recipes by name, with what goes with each.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::augment::Recipe;
use crate::model::Normalisation;

/// The augmentation recipes by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum RecipeKind {
    /// Crop, grayscale, colour jitter, flip (reference `main.py`).
    Imagenet,
    /// Crop, colour jitter, grayscale, no flip (reference `cifar.py`).
    Cifar,
}

impl RecipeKind {
    /// The recipe for images of this size.
    pub fn recipe(self, image_size: u32) -> Recipe {
        match self {
            Self::Imagenet => Recipe::imagenet(image_size),
            Self::Cifar => Recipe::cifar(image_size),
        }
    }

    /// The shorter side to which an image is resized before its centre is cut out for evaluation:
    /// 256 for 224 as the reference does, and no margin for small images.
    pub(super) fn evaluation_resize(self, image_size: u32) -> u32 {
        match self {
            Self::Imagenet => image_size * 256 / 224,
            Self::Cifar => image_size,
        }
    }

    /// The statistics by which pixels are normalised.
    pub fn normalisation(self) -> Normalisation {
        match self {
            Self::Imagenet => Normalisation::IMAGENET,
            Self::Cifar => Normalisation::CIFAR,
        }
    }
}
