//! How an image is seen: in training, and when it is evaluated.

use super::recipe::Recipe;
use crate::augment::{EvalTransform, augment, evaluate_pixels};
use crate::ids::InstanceId;
use crate::image::{ExifOrientation, ImageError};

/// An encoded image, and how it is held.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) orientation: ExifOrientation,
}

/// Turns encoded bytes into the pixels of a batch.
pub(crate) trait View: Send + Sync {
    /// The side of the square that comes out.
    fn side(&self) -> u32;

    /// Writes all pixels of one image.
    ///
    /// # Shape
    /// `out: [3 * side * side]`, planar
    fn render(&self, epoch: u64, id: InstanceId, image: Seen<'_>, out: &mut [u8]) -> Result<(), ImageError>;
}

/// Augmented; the pixels are a function of (seed, epoch, instance).
pub(crate) struct TrainingView {
    pub(crate) recipe: Recipe,
    pub(crate) seed: u64,
}

impl View for TrainingView {
    fn side(&self) -> u32 {
        self.recipe.image_size
    }

    fn render(&self, epoch: u64, id: InstanceId, image: Seen<'_>, out: &mut [u8]) -> Result<(), ImageError> {
        let draw = |width, height| self.recipe.draw_for(self.seed, epoch, id, width, height);
        augment(image.bytes, image.orientation, draw, self.recipe.image_size, out).map(drop)
    }
}

/// The evaluation's transform, the same in every epoch.
pub(crate) struct EvaluationView(pub(crate) EvalTransform);

impl View for EvaluationView {
    fn side(&self) -> u32 {
        self.0.side()
    }

    fn render(
        &self,
        _epoch: u64,
        _id: InstanceId,
        image: Seen<'_>,
        out: &mut [u8],
    ) -> Result<(), ImageError> {
        evaluate_pixels(image.bytes, image.orientation, self.0, out)
    }
}
