//! `instdisc render`.

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use serde_json::json;

use super::{GlobalArgs, write_json};
use crate::dataset::Manifest;
use crate::ids::{InstanceId, Position};
use crate::loader::{CropBox, DatasetSource, Recipe, Source, augment};
use crate::picture::{Limits, Picture, decode, encode_png};
use crate::storage::PublishMode;

/// Between the two pictures, in pixels.
const GAP: u32 = 8;
/// The frame around the crop: its colour, and the colours of its edges.
const FRAME: [[u8; 3]; 3] = [[0, 0, 0], [255, 64, 64], [0, 0, 0]];
const GROUND: [u8; 3] = [255, 255, 255];

/// Draw what the network saw of a picture in an epoch, beside the original with the crop marked.
///
/// The pixels are a function of seed, epoch and instance, so they are exactly those of a run with this seed,
/// recipe and size. What was drawn goes to stdout as JSON.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  instdisc render --dataset in1k --instance 12345 --epoch 17 --output x.png"
)]
pub(super) struct RenderArgs {
    /// The dataset's folder
    #[arg(long, value_name = "URL")]
    dataset: String,
    /// The dataset's split
    #[arg(long, value_name = "NAME", default_value = "train")]
    split: String,
    /// The instance
    #[arg(long, value_name = "N")]
    instance: u32,
    /// The epoch, from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    epoch: u64,
    /// The seed of the run
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// The recipe of the run
    #[arg(long, value_enum, default_value = "imagenet")]
    recipe: RecipeName,
    /// The side of the square that the network sees, in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 224, value_parser = clap::value_parser!(u32).range(1..))]
    image_size: u32,
    /// The PNG file to write
    #[arg(long, value_name = "URL")]
    output: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RecipeName {
    /// Crop, grayscale, colour jitter, flip
    Imagenet,
    /// Crop, colour jitter, grayscale, no flip
    Cifar,
}

pub(super) fn run(global: &GlobalArgs, args: &RenderArgs) -> anyhow::Result<()> {
    let location = global.location(&args.dataset)?;
    let manifest = Manifest::read(&location)?;
    let source = DatasetSource::open(&location, &manifest, &args.split, None)?;
    let id = InstanceId(args.instance);
    ensure!(id.row() < source.len(), "split {} has {} instances", args.split, source.len());
    let rows = source.read(&[Position(id.0)])?;
    let row = rows.first().context("the split gave no row")?;
    let original = decode(&row.bytes, &Limits::default()).with_context(|| row.path.clone())?;
    let recipe = match args.recipe {
        RecipeName::Imagenet => Recipe::imagenet(args.image_size),
        RecipeName::Cifar => Recipe::cifar(args.image_size),
    };
    let mut planes = vec![0; 3 * (args.image_size as usize).pow(2)];
    let draw = |width, height| recipe.draw_for(args.seed, args.epoch, id, width, height);
    let drawn = augment(&row.bytes, draw, args.image_size, &mut planes).with_context(|| row.path.clone())?;
    let picture = beside(&original, drawn.crop, &planes, args.image_size);
    global.location(&args.output)?.publish(encode_png(&picture)?, PublishMode::Overwrite)?;
    write_json(&json!({
        "instance": args.instance,
        "path": row.path,
        "width": original.width,
        "height": original.height,
        "seed": args.seed,
        "epoch": args.epoch,
        "augmentation": drawn,
    }))
}

/// The original with the crop's frame, and right of it the planes as they are.
fn beside(original: &Picture, crop: CropBox, planes: &[u8], side: u32) -> Picture {
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
    Picture { width, height, rgb }
}

/// Which line of the frame, which lies inside the crop, runs through a pixel.
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
    fn the_frame_lies_inside_the_crop_and_the_seen_pixels_stay_as_they_are() {
        let original = Picture { width: 10, height: 9, rgb: vec![7; 10 * 9 * 3] };
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
