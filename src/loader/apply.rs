//! From a decoded picture to the pixels that the encoder sees.
//!
//! The layout of the output is planar: `[3, side, side]` u8, red first, as a batch tensor wants it.

use std::cell::RefCell;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use serde::{Deserialize, Serialize};

use super::colour::{adjust, grayscale};
use super::recipe::{Augmentation, CropBox, Order};
use crate::picture::Picture;

/// What is done to a picture for evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EvalTransform {
    /// The shorter side becomes `resize` pixels, then the centre square of `crop` is cut out.
    ResizeCenterCrop {
        /// The shorter side, in pixels.
        resize: u32,
        /// The side of the square, in pixels; at most `resize`.
        crop: u32,
    },
}

impl EvalTransform {
    /// The side of the square that comes out, in pixels.
    pub fn side(self) -> u32 {
        match self {
            Self::ResizeCenterCrop { crop, .. } => crop,
        }
    }
}

thread_local! {
    /// A resizer for each thread: it keeps its buffers and coefficients.
    static RESIZER: RefCell<Resizer> = RefCell::new(Resizer::new());
}

/// Crops, resizes, recolours and flips a picture.
///
/// # Shape
/// `out: [3 * side * side]`, planar
///
/// # Panics
/// If the crop is not inside the picture or `out` is of another size.
pub fn augment(picture: &Picture, augmentation: &Augmentation, side: u32, out: &mut [u8]) {
    let mut pixels = resize(picture, augmentation.crop, side, side);
    if augmentation.grayscale && augmentation.order == Order::GrayscaleFirst {
        grayscale(&mut pixels);
    }
    for &operation in &augmentation.jitter {
        adjust(&mut pixels, operation);
    }
    if augmentation.grayscale && augmentation.order == Order::JitterFirst {
        grayscale(&mut pixels);
    }
    to_planes(&pixels, side as usize, augmentation.flip, out);
}

/// Resizes and cuts out the centre of a picture, as the reference does for evaluation.
///
/// # Shape
/// `out: [3 * side * side]`, planar
///
/// # Panics
/// If `out` is of another size.
///
/// # Source
/// torchvision `Resize` (longer side cut to an integer) and `CenterCrop` (offset rounded half to even).
pub fn evaluate_pixels(picture: &Picture, transform: EvalTransform, out: &mut [u8]) {
    let EvalTransform::ResizeCenterCrop { resize: short, crop } = transform;
    let (width, height) = (picture.width, picture.height);
    let longer = |long: u32, shorter: u32| (u64::from(short) * u64::from(long) / u64::from(shorter)) as u32;
    let (new_width, new_height) =
        if width <= height { (short, longer(height, width)) } else { (longer(width, height), short) };
    let whole = CropBox { left: 0, top: 0, width, height };
    let resized = resize(picture, whole, new_width, new_height);
    let offset = |size: u32| (f64::from(size - crop) / 2.0).round_ties_even() as usize;
    let (left, top, side) = (offset(new_width), offset(new_height), crop as usize);
    let pitch = new_width as usize * 3;
    let square: Vec<u8> = (top..top + side)
        .flat_map(|row| resized[row * pitch + left * 3..][..side * 3].iter().copied())
        .collect();
    to_planes(&square, side, false, out);
}

/// Resizes a part of a picture by an antialiased bilinear filter (Pillow's, in its support and rounding).
fn resize(picture: &Picture, part: CropBox, width: u32, height: u32) -> Vec<u8> {
    // The part is cut out first, as torchvision does: the filter must not see beyond it.
    let part_rgb = cut_out(picture, part);
    if (part.width, part.height) == (width, height) {
        return part_rgb;
    }
    let source = ImageRef::new(part.width, part.height, &part_rgb, PixelType::U8x3)
        .expect("a picture holds three bytes for each pixel");
    let mut resized = Image::new(width, height, PixelType::U8x3);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
    RESIZER
        .with_borrow_mut(|resizer| resizer.resize(&source, &mut resized, &options))
        .expect("both have the same kind of pixels");
    resized.into_vec()
}

fn cut_out(picture: &Picture, part: CropBox) -> Vec<u8> {
    let pitch = picture.width as usize * 3;
    let (left, columns) = (part.left as usize * 3, part.width as usize * 3);
    let mut rgb = Vec::with_capacity(columns * part.height as usize);
    for row in part.top as usize..(part.top + part.height) as usize {
        rgb.extend_from_slice(&picture.rgb[row * pitch + left..][..columns]);
    }
    rgb
}

fn to_planes(pixels: &[u8], side: usize, flip: bool, out: &mut [u8]) {
    assert_eq!(out.len(), 3 * side * side, "three planes of the side");
    let (red, rest) = out.split_at_mut(side * side);
    let (green, blue) = rest.split_at_mut(side * side);
    for (row, line) in pixels.chunks_exact(side * 3).enumerate() {
        for (column, pixel) in line.as_chunks::<3>().0.iter().enumerate() {
            let at = row * side + if flip { side - 1 - column } else { column };
            (red[at], green[at], blue[at]) = (pixel[0], pixel[1], pixel[2]);
        }
    }
}
