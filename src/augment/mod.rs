//! Transforms an encoded image to the pixels that the encoder sees.
//!
//! The output is planar: `[3, side, side]` u8, red first, written in place into the batch. Only the pixels under the
//! crop are decoded, and only their luma if grayscale comes first; docs/numerics.md compares that with torchvision's
//! grey.

mod colour;
mod recipe;
mod resize;

use std::cell::RefCell;

use serde::{Deserialize, Serialize};

use self::colour::{Step, recolour, recolour_grey, to_grey};
use self::resize::{Axis, Resizer, Rounding, Target};
use crate::image::{Channels, Encoded, ImageError, Planes, Region, RegionDecoder};

pub use recipe::{Augmentation, ColourOperation, CropBox, JitterStrength, Order, Recipe};

/// Transform of an image for evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EvalTransform {
    /// Resizes the shorter side to `resize` pixels, then cuts out the centre square of `crop`.
    ResizeCenterCrop {
        /// Shorter side after the resize, in pixels.
        resize: u32,
        /// Side of the square, in pixels; at most `resize`.
        crop: u32,
    },
}

impl EvalTransform {
    /// Returns the side of the square output, in pixels.
    pub fn side(self) -> u32 {
        match self {
            Self::ResizeCenterCrop { crop, .. } => crop,
        }
    }
}

thread_local! {
    static RENDERER: RefCell<Renderer> = RefCell::default();
}

/// Runs [`Renderer::augment`] with this thread's renderer.
///
/// # Shape
/// `out: [3, side, side]`
///
/// # Errors
/// If the image is cut or corrupt.
///
/// # Panics
/// If the crop is not inside the image or `out` is of another size.
pub fn augment(
    encoded: &Encoded,
    draw: impl FnOnce(u32, u32) -> Augmentation,
    side: u32,
    out: &mut [u8],
) -> Result<Augmentation, ImageError> {
    RENDERER.with_borrow_mut(|renderer| renderer.augment(encoded, draw, side, out, |_| ()))
}

/// Resizes and cuts out the centre of an image, as the reference does for evaluation.
///
/// # Shape
/// `out: [3, side, side]`
///
/// # Errors
/// If the image is cut or corrupt.
///
/// # Panics
/// If `out` is of another size.
///
/// # Source
/// torchvision `Resize` (longer side cut to an integer) and `CenterCrop` (offset rounded half to even).
pub fn evaluate(encoded: &Encoded, transform: EvalTransform, out: &mut [u8]) -> Result<(), ImageError> {
    RENDERER.with_borrow_mut(|renderer| renderer.evaluate(encoded, transform, out))
}

/// A stage of the work on an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Reading the header and drawing the augmentation.
    Open,
    /// Decoding the pixels under the crop.
    Decode,
    /// Resizing to the output size, and the flip.
    Resize,
    /// Grayscale and colour jitter.
    Colour,
}

/// Transform of encoded images to pixels, with buffers that are kept from image to image.
#[derive(Debug, Default)]
pub struct Renderer {
    decoder: RegionDecoder,
    resizer: Resizer,
}

impl Renderer {
    #[cfg(test)]
    fn held_bytes(&self) -> usize {
        self.resizer.held_bytes()
    }

    /// Crops, resizes, recolours and flips an image by the result of `draw` for its size (columns, rows), and calls
    /// `done` after each stage.
    ///
    /// # Shape
    /// `out: [3, side, side]`
    ///
    /// # Errors
    /// If the image is cut or corrupt.
    ///
    /// # Panics
    /// If the crop is not inside the image or `out` is of another size.
    pub fn augment(
        &mut self,
        encoded: &Encoded,
        draw: impl FnOnce(u32, u32) -> Augmentation,
        side: u32,
        out: &mut [u8],
        mut done: impl FnMut(Stage),
    ) -> Result<Augmentation, ImageError> {
        let (width, height) = encoded.size();
        let augmentation = draw(width, height);
        let channels = if is_grey_first(&augmentation) { Channels::Luma } else { Channels::Rgb };
        done(Stage::Open);
        let planes = self.decoder.decode(encoded, region(&augmentation), channels)?;
        done(Stage::Decode);
        resize(planes, &augmentation, side, &mut self.resizer, out);
        done(Stage::Resize);
        recolour_all(planes.count == 1, &augmentation, out);
        done(Stage::Colour);
        Ok(augmentation)
    }

    fn evaluate(
        &mut self,
        encoded: &Encoded,
        transform: EvalTransform,
        out: &mut [u8],
    ) -> Result<(), ImageError> {
        let EvalTransform::ResizeCenterCrop { resize: short, crop } = transform;
        let (width, height) = encoded.size();
        let longer =
            |long: u32, shorter: u32| (u64::from(short) * u64::from(long) / u64::from(shorter)) as u32;
        let (new_width, new_height) =
            if width <= height { (short, longer(height, width)) } else { (longer(width, height), short) };
        // The longer side of a long thin image becomes millions of pixels, so only the centre square is computed.
        let side = crop as usize;
        let part = |from: u32, to: u32| {
            let first = (f64::from(to - crop) / 2.0).round_ties_even() as usize;
            Axis::part(from as usize, to as usize, first..first + side)
        };
        let (across, down) = (part(width, new_width), part(height, new_height));
        let (columns, rows) = (across.inputs(), down.inputs());
        let region =
            Region { left: columns.start, top: rows.start, width: columns.len(), height: rows.len() };
        let planes = self.decoder.decode(encoded, region, Channels::Rgb)?;
        let plane = side * side;
        assert_eq!(out.len(), 3 * plane, "three planes of the side");
        let target = Target { width: side, height: side, flip: false, rounding: Rounding::Nearest };
        let made = &mut out[..planes.count * plane];
        self.resizer.resize_part(planes.samples, (&across, &down), target, made);
        if planes.count == 1 {
            let (shared, others) = out.split_at_mut(plane);
            others.chunks_exact_mut(plane).for_each(|other| other.copy_from_slice(shared));
        }
        Ok(())
    }
}

fn region(augmentation: &Augmentation) -> Region {
    let crop = augmentation.crop;
    let [left, top, width, height] = [crop.left, crop.top, crop.width, crop.height].map(|side| side as usize);
    Region { left, top, width, height }
}

fn is_grey_first(augmentation: &Augmentation) -> bool {
    augmentation.grayscale && augmentation.order == Order::GrayscaleFirst
}

/// Resizes to the output size; luma that all channels share goes into the first plane.
fn resize(planes: Planes, augmentation: &Augmentation, side: u32, resizer: &mut Resizer, out: &mut [u8]) {
    let side = side as usize;
    let plane = side * side;
    assert_eq!(out.len(), 3 * plane, "three planes of the side");
    let becomes_grey = planes.count == 1 && is_grey_first(augmentation);
    let rounding = if becomes_grey { Rounding::Down } else { Rounding::Nearest };
    let target = Target { width: side, height: side, flip: augmentation.flip, rounding };
    resizer.resize(planes.samples, planes.width, planes.height, target, &mut out[..planes.count * plane]);
}

/// Runs all steps after the resize.
fn recolour_all(is_shared: bool, augmentation: &Augmentation, out: &mut [u8]) {
    let mut steps: Vec<Step> = augmentation.jitter.iter().copied().map(Step::Jitter).collect();
    if augmentation.grayscale && augmentation.order == Order::JitterFirst {
        steps.push(Step::Grayscale);
    }
    if !is_shared && !is_grey_first(augmentation) {
        recolour(out, &steps);
        return;
    }
    if !is_shared {
        to_grey(out);
    }
    let plane = out.len() / 3;
    let (shared, others) = out.split_at_mut(plane);
    recolour_grey(shared, &steps);
    others.chunks_exact_mut(plane).for_each(|other| other.copy_from_slice(shared));
}

#[cfg(test)]
mod tests;
