//! `render`: draws an image as the network sees it.

use serde::Serialize;

use super::CommandError;
use crate::augment::{Augmentation, CropBox, Recipe, augment};
use crate::checkpoint::{Checkpoint, TrainedOn};
use crate::dataset::Manifest;
use crate::ids::{BankRow, InstanceId};
use crate::image::{DecodedImage, Encoded, Limits, decode, encode_png};
use crate::loader::open_split;
use crate::run_config::{RecipeKind, TrainConfig};
use crate::storage::{Location, PublishMode};

/// Gap between the two images, in pixels.
const GAP: u32 = 8;
/// Minimum side of the network's image in the drawing, in pixels, without a given scale.
const SIDE_TO_SEE: u32 = 128;
/// Colours of the frame around the crop, and of its edges.
const FRAME: [[u8; 3]; 3] = [[0, 0, 0], [255, 64, 64], [0, 0, 0]];
const GROUND: [u8; 3] = [255, 255, 255];

/// Options of a drawing.
#[derive(Clone, Debug)]
pub struct RenderOptions {
    /// Folder of the dataset.
    pub dataset: Location,
    /// Folder of a checkpoint; its run gives split, seed, recipe and size unless set here.
    pub checkpoint: Option<Location>,
    /// Split of the image; by default the run's, else `train`.
    pub split: Option<String>,
    /// Image to draw.
    pub instance: InstanceId,
    /// Epochs, from 0; each gets a row of the drawing.
    pub epochs: Vec<u64>,
    /// Seed of the augmentation; by default the run's, else 0.
    pub seed: Option<u64>,
    /// Augmentation recipe; by default the run's, else `imagenet`.
    pub recipe: Option<RecipeKind>,
    /// Side of the network's images, in pixels; by default the run's, else 224.
    pub image_size: Option<u32>,
    /// Side of the square that shows a pixel, in pixels.
    pub scale: Option<u32>,
    /// PNG file to write.
    pub output: Location,
}

/// Description of a drawing.
#[derive(Clone, Debug, Serialize)]
pub struct RenderReport {
    /// Instance that was drawn.
    pub instance: u32,
    /// Path of the instance in the dataset's source.
    pub path: String,
    /// Width of the original, in pixels.
    pub width: u32,
    /// Height of the original, in pixels.
    pub height: u32,
    /// Split of the instance.
    pub split: String,
    /// Seed of the augmentation.
    pub seed: u64,
    /// Side of the network's images, in pixels.
    pub image_size: u32,
    /// Augmentation of each epoch.
    #[serde(flatten)]
    pub epochs: RenderedEpochs,
}

/// Augmentations by epoch; a single one is not serialised as a list.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum RenderedEpochs {
    /// Single epoch.
    One(RenderedEpoch),
    /// Several epochs.
    Several {
        /// Augmentation of each epoch.
        epochs: Vec<RenderedEpoch>,
    },
}

/// Augmentation in an epoch.
#[derive(Clone, Debug, Serialize)]
pub struct RenderedEpoch {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Augmentation of the instance.
    pub augmentation: Augmentation,
}

/// Draws an image as the network sees it in some epochs, beside the original with the crop marked.
///
/// The pixels depend only on seed, epoch and instance, so they equal those of a run with this seed, recipe and size.
///
/// # Errors
/// If dataset or checkpoint cannot be read or do not belong together, instance or epoch is out of range, or
/// the store fails.
pub fn render(options: &RenderOptions) -> Result<RenderReport, CommandError> {
    let RenderOptions { dataset, instance: id, .. } = options;
    let manifest = Manifest::read(dataset)?;
    let run = options.checkpoint.as_ref().map(|folder| config_of(folder, dataset, &manifest)).transpose()?;
    if let Some(TrainConfig { epochs, .. }) = run
        && let Some(beyond) = options.epochs.iter().find(|epoch| **epoch >= epochs)
    {
        let last = epochs.saturating_sub(1);
        return Err(CommandError::Usage(format!(
            "--epoch {beyond}: the run has {epochs} epochs, here called 0 to {last}; its own lines count from 1"
        )));
    }
    let run = run.unwrap_or_default();
    let split = options.split.clone().unwrap_or(run.split);
    let seed = options.seed.unwrap_or(run.seed);
    let image_size = options.image_size.unwrap_or(run.image_size);
    let scale = options.scale.unwrap_or_else(|| SIDE_TO_SEE.div_ceil(image_size));
    let recipe = Recipe::new(options.recipe.unwrap_or(run.recipe), image_size);
    let source = open_split(dataset, &manifest, &split, None)?;
    if id.row() >= source.len() {
        let reason = format!("--instance {id}: split {split} has {} instances, from 0", source.len());
        return Err(CommandError::Usage(reason));
    }
    let rows = source.read(&[BankRow(id.0)])?;
    let row = rows.first().expect("a read position gives a row");
    let orientation = source.instances().exif_orientation;
    // Images were checked at ingest.
    let limits = Limits { max_pixels: u64::MAX };
    let original = decode(&row.bytes, &limits).map_err(|error| undecodable(&row.path, &error))?;
    let original = original.turned(orientation.of(&row.bytes));
    let encoded =
        Encoded::ingested(&row.bytes, orientation).map_err(|error| undecodable(&row.path, &error))?;
    let mut planes = vec![0; 3 * (image_size as usize).pow(2)];
    let (mut drawings, mut epochs) = (Vec::new(), Vec::new());
    for &epoch in &options.epochs {
        let draw = |width, height| recipe.draw_for(seed, epoch, *id, width, height);
        let augmentation = augment(&encoded, draw, image_size, &mut planes)
            .map_err(|error| undecodable(&row.path, &error))?;
        drawings.push(beside(&original, augmentation.crop, &planes, image_size));
        epochs.push(RenderedEpoch { epoch, augmentation });
    }
    let drawing = enlarged(&stacked(&drawings), scale);
    options.output.publish(encode_png(&drawing)?, PublishMode::Overwrite)?;
    Ok(RenderReport {
        instance: id.0,
        path: row.path.clone(),
        width: original.width,
        height: original.height,
        split,
        seed,
        image_size,
        epochs: match <[RenderedEpoch; 1]>::try_from(epochs) {
            Ok([epoch]) => RenderedEpochs::One(epoch),
            Err(epochs) => RenderedEpochs::Several { epochs },
        },
    })
}

/// Returns the error of an image that was decoded at ingest but no longer is.
fn undecodable(path: &str, error: &dyn std::fmt::Display) -> CommandError {
    CommandError::Data(format!("{path}: cannot be decoded: {error}"))
}

/// Returns the configuration of a checkpoint's run, which must have been trained on this dataset.
fn config_of(
    folder: &Location,
    dataset: &Location,
    manifest: &Manifest,
) -> Result<TrainConfig, CommandError> {
    let checkpoint = Checkpoint::open(folder)?;
    let TrainedOn { split, split_digest, .. } = &checkpoint.manifest().trained_on;
    if manifest.splits.get(split).is_none_or(|own| own.digest.to_string() != *split_digest) {
        let reason = format!("--run {folder} was trained on another {split} split than that of {dataset}");
        return Err(CommandError::Data(reason));
    }
    Ok(checkpoint.run_config()?)
}

/// Stacks drawings of equal width vertically.
fn stacked(rows: &[DecodedImage]) -> DecodedImage {
    let width = rows.iter().map(|row| row.width).max().unwrap_or(0);
    let mut rgb = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        if number > 0 {
            rgb.extend(GROUND.repeat((width * GAP) as usize));
        }
        rgb.extend_from_slice(&row.rgb);
    }
    DecodedImage { width, height: (rgb.len() / 3 / width.max(1) as usize) as u32, rgb }
}

/// Enlarges each pixel to a square of this side.
fn enlarged(small: &DecodedImage, scale: u32) -> DecodedImage {
    let times = scale as usize;
    let line =
        |row: &[u8]| -> Vec<u8> { row.chunks_exact(3).flat_map(|pixel| pixel.repeat(times)).collect() };
    let rows = small.rgb.chunks_exact(3 * small.width.max(1) as usize);
    DecodedImage {
        width: small.width * scale,
        height: small.height * scale,
        rgb: rows.flat_map(|row| line(row).repeat(times)).collect(),
    }
}

/// Draws the original with the crop's frame, and to its right the unchanged planes.
fn beside(original: &DecodedImage, crop: CropBox, planes: &[u8], side: u32) -> DecodedImage {
    let (width, height) = (original.width + GAP + side, original.height.max(side));
    let mut rgb = Vec::with_capacity((width * height * 3) as usize);
    let plane = (side * side) as usize;
    for y in 0..height {
        for x in 0..width {
            let seen = x.checked_sub(original.width + GAP);
            rgb.extend(match seen {
                Some(column) if y < side => {
                    let at = (y * side + column) as usize;
                    [planes[at], planes[plane + at], planes[2 * plane + at]]
                }
                None if x < original.width && y < original.height => {
                    let at = ((y * original.width + x) * 3) as usize;
                    let own = [original.rgb[at], original.rgb[at + 1], original.rgb[at + 2]];
                    frame(crop, x, y).map_or(own, |line| FRAME[line])
                }
                _ => GROUND,
            });
        }
    }
    DecodedImage { width, height, rgb }
}

/// Returns the line of the frame that passes through a pixel; the frame is inside the crop.
fn frame(crop: CropBox, x: u32, y: u32) -> Option<usize> {
    let (column, row) = (x.checked_sub(crop.left)?, y.checked_sub(crop.top)?);
    let to_right = crop.width.checked_sub(column + 1)?;
    let to_bottom = crop.height.checked_sub(row + 1)?;
    let depth = column.min(row).min(to_right).min(to_bottom) as usize;
    (depth < FRAME.len()).then_some(depth)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawings_are_stacked_and_small_ones_enlarged() {
        let row = |value: u8| DecodedImage { width: 2, height: 1, rgb: vec![value, 0, 0, 0, value, 0] };
        let stacked = stacked(&[row(1), row(2)]);
        assert_eq!((stacked.width, stacked.height), (2, 2 + GAP));
        assert_eq!(
            (&stacked.rgb[..6], &stacked.rgb[stacked.rgb.len() - 6..]),
            (&row(1).rgb[..], &row(2).rgb[..])
        );
        let large = enlarged(&row(9), 400);
        assert_eq!((large.width, large.height), (800, 400));
        let pixel = |x: u32, y: u32| &large.rgb[((y * large.width + x) * 3) as usize..][..3];
        assert_eq!((pixel(399, 399), pixel(400, 0)), (&[9, 0, 0][..], &[0, 9, 0][..]));
        assert_eq!(enlarged(&row(9), 1).rgb, row(9).rgb);
    }

    #[test]
    fn the_frame_lies_inside_the_crop_and_the_seen_pixels_stay_as_they_are() {
        let original = DecodedImage { width: 10, height: 9, rgb: vec![7; 10 * 9 * 3] };
        let crop = CropBox { left: 1, top: 1, width: 8, height: 7 };
        let planes: Vec<u8> = (0..3 * 12 * 12).map(|at| (at % 251) as u8).collect();
        let shown = beside(&original, crop, &planes, 12);
        let pixel = |x: u32, y: u32| &shown.rgb[((y * shown.width + x) * 3) as usize..][..3];
        assert_eq!((shown.width, shown.height), (10 + GAP + 12, 12));
        assert_eq!((pixel(0, 0), pixel(1, 1), pixel(2, 2)), (&[7; 3][..], &FRAME[0][..], &FRAME[1][..]));
        assert_eq!(pixel(10 + GAP + 5, 3), [planes[41], planes[144 + 41], planes[288 + 41]]);
        assert_eq!((pixel(0, 11), pixel(12, 0)), (&GROUND[..], &GROUND[..]));
    }
}
