//! Making an image smaller.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use super::DecodedImage;

/// The sides of an image made smaller so that its longer one has at most `max_side` pixels and its shorter one at
/// most `short_side`; `None` where it is small enough. The ratio of the sides is kept, but for rounding.
pub fn shrunk_size(
    width: u32,
    height: u32,
    max_side: Option<u32>,
    short_side: Option<u32>,
) -> Option<(u32, u32)> {
    let limit = |side: u32, limit: Option<u32>| limit.map_or(1.0, |limit| f64::from(limit) / f64::from(side));
    let factor = limit(width.max(height), max_side).min(limit(width.min(height), short_side));
    let side = |side: u32| ((f64::from(side) * factor).round() as u32).max(1);
    (factor < 1.0).then(|| (side(width), side(height)))
}

/// An image made as small as [`shrunk_size`] says.
///
/// The filter is Pillow's antialiased Lanczos, which keeps what later crops need.
pub fn shrink(image: &DecodedImage, max_side: Option<u32>, short_side: Option<u32>) -> Option<DecodedImage> {
    let (width, height) = shrunk_size(image.width, image.height, max_side, short_side)?;
    let source = ImageRef::new(image.width, image.height, &image.rgb, PixelType::U8x3)
        .expect("an image holds three bytes for each pixel");
    let mut resized = Image::new(width, height, PixelType::U8x3);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3));
    Resizer::new().resize(&source, &mut resized, &options).expect("both have the same kind of pixels");
    Some(DecodedImage { width, height, rgb: resized.into_vec() })
}
