//! Augmentation recipes, and the augmentations drawn from them.

use serde::{Deserialize, Serialize};

use crate::ids::InstanceId;
use crate::rng::{Purpose, Stream};
use crate::run_config::RecipeKind;

/// Number of attempts to find a crop that fits before the centre is used (torchvision's number).
const CROP_TRIES: usize = 10;

/// A rectangle of an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CropBox {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Number of columns.
    pub width: u32,
    /// Number of rows.
    pub height: u32,
}

/// Strength of colour jitter; 0 leaves a property unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JitterStrength {
    /// Strength `b`: the factor is drawn from `max(0, 1 - b) .. 1 + b`.
    pub brightness: f64,
    /// Strength of contrast, drawn like the brightness.
    pub contrast: f64,
    /// Strength of saturation, drawn like the brightness.
    pub saturation: f64,
    /// Strength `h`: the shift is drawn from `-h .. h`, as a share of the whole colour circle; at most 0.5.
    pub hue: f64,
}

/// Order of the steps after the crop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Grayscale, then jitter (reference, ImageNet).
    GrayscaleFirst,
    /// Jitter, then grayscale (reference, CIFAR).
    JitterFirst,
}

/// The distribution from which augmentations are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Side of the square output, in pixels.
    pub image_size: u32,
    /// Range of the crop's share of the image's area.
    pub crop_scale: (f64, f64),
    /// Range of the crop's width over its height; drawn uniformly in its logarithm.
    pub crop_ratio: (f64, f64),
    /// Probability of grayscale.
    pub grayscale: f64,
    /// Strength of colour jitter.
    pub jitter: JitterStrength,
    /// Probability of a horizontal flip.
    pub flip: f64,
    /// Order of the steps.
    pub order: Order,
}

/// One of the four steps of colour jitter, with its drawn factor or shift.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColourOperation {
    /// Blends with black.
    Brightness(f64),
    /// Blends with the mean grey of the image.
    Contrast(f64),
    /// Blends each pixel with its grey.
    Saturation(f64),
    /// Turns the colour circle.
    Hue(f64),
}

/// Augmentation drawn for one image in one epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Augmentation {
    /// Rectangle that is cut out and resized.
    pub crop: CropBox,
    /// Whether the image is converted to grey.
    pub grayscale: bool,
    /// Steps of colour jitter, in the order in which they are applied.
    pub jitter: Vec<ColourOperation>,
    /// Whether left and right are exchanged.
    pub flip: bool,
    /// Whether grayscale comes before or after the jitter.
    pub order: Order,
}

const JITTER: JitterStrength = JitterStrength { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.4 };

impl Recipe {
    /// Returns the recipe of this kind, for images of `image_size` pixels.
    pub fn new(kind: RecipeKind, image_size: u32) -> Self {
        match kind {
            RecipeKind::Imagenet => Self::imagenet(image_size),
            RecipeKind::Cifar => Self::cifar(image_size),
        }
    }

    /// Returns the ImageNet recipe: crop, grayscale, jitter, flip.
    ///
    /// # Source
    /// Reference `main.py`.
    pub fn imagenet(image_size: u32) -> Self {
        Self {
            image_size,
            crop_scale: (0.2, 1.0),
            crop_ratio: (3.0 / 4.0, 4.0 / 3.0),
            grayscale: 0.2,
            jitter: JITTER,
            flip: 0.5,
            order: Order::GrayscaleFirst,
        }
    }

    /// Returns the CIFAR recipe: crop, jitter, grayscale, no flip.
    ///
    /// # Source
    /// Reference `cifar.py`.
    pub fn cifar(image_size: u32) -> Self {
        Self { flip: 0.0, order: Order::JitterFirst, ..Self::imagenet(image_size) }
    }

    /// Draws the augmentation of an image of this size.
    pub fn draw(&self, stream: &mut Stream, width: u32, height: u32) -> Augmentation {
        Augmentation {
            crop: self.draw_crop(stream, width, height),
            grayscale: stream.chance(self.grayscale),
            jitter: self.draw_jitter(stream),
            flip: stream.chance(self.flip),
            order: self.order,
        }
    }

    /// Draws the augmentation of an instance in an epoch, a function of the arguments alone.
    pub fn draw_for(&self, seed: u64, epoch: u64, id: InstanceId, width: u32, height: u32) -> Augmentation {
        let mut stream = Stream::new(seed, Purpose::Augmentation, epoch, u64::from(id.0));
        self.draw(&mut stream, width, height)
    }

    /// # Source
    /// torchvision `RandomResizedCrop.get_params`.
    fn draw_crop(&self, stream: &mut Stream, width: u32, height: u32) -> CropBox {
        let (columns, rows) = (f64::from(width), f64::from(height));
        let (low, high) = self.crop_ratio;
        for _ in 0..CROP_TRIES {
            let area = columns * rows * stream.range(self.crop_scale.0, self.crop_scale.1);
            let ratio = stream.range(low.ln(), high.ln()).exp();
            let crop_width = (area * ratio).sqrt().round_ties_even() as u32;
            let crop_height = (area / ratio).sqrt().round_ties_even() as u32;
            if (1..=width).contains(&crop_width) && (1..=height).contains(&crop_height) {
                let top = stream.below(u64::from(height - crop_height) + 1) as u32;
                let left = stream.below(u64::from(width - crop_width) + 1) as u32;
                return CropBox { left, top, width: crop_width, height: crop_height };
            }
        }
        let ratio = columns / rows;
        let (crop_width, crop_height) = if ratio < low {
            (width, ((columns / low).round_ties_even() as u32).clamp(1, height))
        } else if ratio > high {
            (((rows * high).round_ties_even() as u32).clamp(1, width), height)
        } else {
            (width, height)
        };
        let (left, top) = ((width - crop_width) / 2, (height - crop_height) / 2);
        CropBox { left, top, width: crop_width, height: crop_height }
    }

    /// # Source
    /// torchvision `ColorJitter.get_params`.
    fn draw_jitter(&self, stream: &mut Stream) -> Vec<ColourOperation> {
        let strength = self.jitter;
        let mut factor = |strength: f64| stream.range((1.0 - strength).max(0.0), 1.0 + strength);
        let (brightness, contrast, saturation) =
            (factor(strength.brightness), factor(strength.contrast), factor(strength.saturation));
        let hue = stream.range(-strength.hue, strength.hue);
        let drawn = [
            (strength.brightness, ColourOperation::Brightness(brightness)),
            (strength.contrast, ColourOperation::Contrast(contrast)),
            (strength.saturation, ColourOperation::Saturation(saturation)),
            (strength.hue, ColourOperation::Hue(hue)),
        ];
        let mut operations: Vec<_> = drawn
            .into_iter()
            .filter(|(strength, _)| *strength > 0.0)
            .map(|(_, operation)| operation)
            .collect();
        stream.shuffle(&mut operations);
        operations
    }
}
