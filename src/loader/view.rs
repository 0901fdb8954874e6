//! How a picture is seen: in training, and when it is evaluated.

use super::apply::{EvalTransform, augment, evaluate_pixels};
use super::recipe::Recipe;
use crate::ids::InstanceId;
use crate::picture::{Limits, PictureError, decode};
use crate::rng::{Purpose, Stream};

/// What was ingested is decoded, whatever its size.
const NO_LIMIT: Limits = Limits { max_pixels: u64::MAX };

/// Turns encoded bytes into the pixels of a batch.
pub(super) trait View: Send + Sync {
    /// The side of the square that comes out.
    fn side(&self) -> u32;

    /// Writes all pixels of one picture.
    ///
    /// # Shape
    /// `out: [3 * side * side]`, planar
    fn render(&self, epoch: u64, id: InstanceId, bytes: &[u8], out: &mut [u8]) -> Result<(), PictureError>;
}

/// Augmented; the pixels are a function of (seed, epoch, instance).
pub(super) struct TrainingView {
    pub(super) recipe: Recipe,
    pub(super) seed: u64,
}

impl View for TrainingView {
    fn side(&self) -> u32 {
        self.recipe.image_size
    }

    fn render(&self, epoch: u64, id: InstanceId, bytes: &[u8], out: &mut [u8]) -> Result<(), PictureError> {
        let picture = decode(bytes, &NO_LIMIT)?;
        let mut stream = Stream::new(self.seed, Purpose::Augmentation, epoch, u64::from(id.0));
        let drawn = self.recipe.draw(&mut stream, picture.width, picture.height);
        augment(&picture, &drawn, self.recipe.image_size, out);
        Ok(())
    }
}

/// The evaluation's transform, the same in every epoch.
pub(super) struct EvaluationView(pub(super) EvalTransform);

impl View for EvaluationView {
    fn side(&self) -> u32 {
        self.0.side()
    }

    fn render(&self, _epoch: u64, _id: InstanceId, bytes: &[u8], out: &mut [u8]) -> Result<(), PictureError> {
        evaluate_pixels(&decode(bytes, &NO_LIMIT)?, self.0, out);
        Ok(())
    }
}
