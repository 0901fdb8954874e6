//! How an image is seen: in training, and when it is evaluated.

use super::recipe::Recipe;
use crate::augment::{EvalTransform, RENDERER, open};
use crate::ids::InstanceId;
use crate::image::{Encoded, ExifOrientation, ImageError};

/// An encoded image, and how it is held.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) orientation: ExifOrientation,
    /// Where decoding can start within it, if that is known.
    pub(crate) entry_points: Option<&'a [u8]>,
}

impl<'a> Seen<'a> {
    fn open(self) -> Result<Encoded<'a>, ImageError> {
        Ok(open(self.bytes, self.orientation)?.with_entry_points(self.entry_points))
    }
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
        let (encoded, side) = (image.open()?, self.recipe.image_size);
        RENDERER
            .with_borrow_mut(|renderer| renderer.augment_observed(encoded, draw, side, out, |_| ()).map(drop))
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
        let encoded = image.open()?;
        RENDERER.with_borrow_mut(|renderer| renderer.evaluate_open(&encoded, self.0, out))
    }
}
