//! `instdisc render`.

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;

use super::choice::choice;
use super::exit::{WrongData, WrongUsage};
use super::{GlobalArgs, write_json};
use crate::augment::{CropBox, Recipe, augment};
use crate::checkpoint::{Checkpoint, TrainedOn};
use crate::dataset::Manifest;
use crate::ids::{InstanceId, Position};
use crate::image::{DecodedImage, Limits, decode, encode_png};
use crate::loader::{DatasetSource, Source};
use crate::run_config::{RecipeKind, TrainConfig};
use crate::storage::PublishMode;

/// Between the two images, in pixels.
const GAP: u32 = 8;
/// The frame around the crop: its colour, and the colours of its edges.
const FRAME: [[u8; 3]; 3] = [[0, 0, 0], [255, 64, 64], [0, 0, 0]];
const GROUND: [u8; 3] = [255, 255, 255];

/// Draw what the network saw of an image in some epochs, beside the original with the crop marked.
///
/// The pixels are a function of seed, epoch and instance, so they are exactly those of a run with this seed,
/// recipe and size; --run takes these from a run. What was drawn goes to stdout as JSON.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  instdisc render --dataset in1k --run runs/r50 --instance 12345 --epoch 0,17 --output x.png"
)]
pub(super) struct RenderArgs {
    /// The dataset's folder
    #[arg(long, value_name = "URL")]
    dataset: String,
    /// The run, or a checkpoint of it, whose split, seed, recipe and size these are, but for what is given here
    #[arg(long, value_name = "URL")]
    run: Option<String>,
    /// The dataset's split [default: that of --run, else train]
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
    /// The instance
    #[arg(long, value_name = "N")]
    instance: u32,
    /// The epochs, with commas between, a row of the drawing for each; 0 is what a run's lines call epoch 1
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "0")]
    epoch: Vec<u64>,
    /// The seed of the run [default: that of --run, else 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// The recipe of the run [default: that of --run, else imagenet]
    #[arg(long, value_parser = choice::<RecipeKind>())]
    recipe: Option<RecipeKind>,
    /// The side of the square that the network sees, in pixels [default: that of --run, else 224]
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..))]
    image_size: Option<u32>,
    /// Draw each pixel as a square of N by N, to see small images
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    scale: u32,
    /// The PNG file to write
    #[arg(long, value_name = "URL")]
    output: String,
}

pub(super) fn run(global: &GlobalArgs, args: &RenderArgs) -> anyhow::Result<()> {
    if !args.output.ends_with(".png") {
        bail!(WrongUsage(format!("--output {}: the drawing is a PNG; end its name in `.png`", args.output)));
    }
    let location = global.location(&args.dataset)?;
    let manifest = Manifest::read(&location)?;
    let config = args.run.as_ref().map(|run| config_of(global, run, args, &manifest)).transpose()?;
    if let Some(TrainConfig { epochs, .. }) = config
        && let Some(beyond) = args.epoch.iter().find(|epoch| **epoch >= epochs)
    {
        let last = epochs.saturating_sub(1);
        bail!(WrongUsage(format!(
            "--epoch {beyond}: the run has {epochs} epochs, here called 0 to {last}; its own lines count from 1"
        )));
    }
    // What was asked for, then what the run was begun with, then what `train` does by default.
    let config = config.unwrap_or_default();
    let split = args.split.clone().unwrap_or(config.split);
    let seed = args.seed.unwrap_or(config.seed);
    let image_size = args.image_size.unwrap_or(config.image_size);
    let recipe = Recipe::new(args.recipe.unwrap_or(config.recipe), image_size);
    let source = DatasetSource::open(&location, &manifest, &split, None)?;
    let id = InstanceId(args.instance);
    if id.row() >= source.len() {
        bail!(WrongUsage(format!("--instance {id}: split {split} has {} instances, from 0", source.len())));
    }
    let rows = source.read(&[Position(id.0)])?;
    let row = rows.first().context("the split gave no row")?;
    let orientation = source.exif_orientation();
    // Images were checked when they were ingested.
    let limits = Limits { max_pixels: u64::MAX };
    let original = decode(&row.bytes, &limits).map_err(|error| undecodable(&row.path, &error))?;
    let original = original.turned(orientation.of(&row.bytes));
    let mut planes = vec![0; 3 * (image_size as usize).pow(2)];
    let (mut rows, mut epochs) = (Vec::new(), Vec::new());
    for &epoch in &args.epoch {
        let draw = |width, height| recipe.draw_for(seed, epoch, id, width, height);
        let drawn = augment(&row.bytes, orientation, draw, image_size, &mut planes)
            .map_err(|error| undecodable(&row.path, &error))?;
        rows.push(beside(&original, drawn.crop, &planes, image_size));
        epochs.push((epoch, drawn));
    }
    let drawing = enlarged(&stacked(&rows), args.scale);
    global.location(&args.output)?.publish(encode_png(&drawing)?, PublishMode::Overwrite)?;
    let mut drawn = json!({
        "instance": args.instance,
        "path": row.path,
        "width": original.width,
        "height": original.height,
        "split": split,
        "seed": seed,
        "image_size": image_size,
    });
    match epochs.as_slice() {
        // Of one epoch its keys are beside the others.
        [(epoch, augmentation)] => {
            drawn["epoch"] = json!(epoch);
            drawn["augmentation"] = json!(augmentation);
        }
        several => {
            let each = several.iter();
            let each = each.map(|(epoch, drawn)| json!({"epoch": epoch, "augmentation": drawn}));
            drawn["epochs"] = each.collect();
        }
    }
    write_json(&drawn)
}

/// The error of an image that was decoded at ingest and is not now.
fn undecodable(path: &str, error: &dyn std::fmt::Display) -> WrongData {
    WrongData(format!("{path}: cannot be decoded: {error}"))
}

/// The configuration of a run on this dataset.
fn config_of(
    global: &GlobalArgs,
    run: &str,
    args: &RenderArgs,
    manifest: &Manifest,
) -> anyhow::Result<TrainConfig> {
    let checkpoint = Checkpoint::open(&global.checkpoint(run)?)?;
    let TrainedOn { split, split_digest, .. } = &checkpoint.manifest().trained_on;
    if manifest.splits.get(split).is_none_or(|own| own.digest.to_string() != *split_digest) {
        let dataset = &args.dataset;
        bail!(WrongUsage(format!("--run {run} was trained on another {split} split than that of {dataset}")));
    }
    Ok(checkpoint.run_config()?)
}

/// Drawings of equal width, one below the other.
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

/// The same with each pixel as a square of this side.
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

/// The original with the crop's frame, and right of it the planes as they are.
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
