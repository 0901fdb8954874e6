//! `instdisc render`.

use anyhow::bail;
use clap::Args;

use super::exit::usage;
use super::{GlobalArgs, choice, write_json};
use crate::commands::{RenderOptions, render};
use crate::ids::InstanceId;
use crate::run_config::RecipeKind;

/// Draw an image as the network saw it in some epochs, beside the original with the crop marked.
///
/// Seed, epoch and instance determine the pixels, so they equal those of a run with this seed, recipe and
/// size. --run takes these from a run. The applied augmentations go to stdout as JSON.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  instdisc render --dataset in1k --run runs/r50 --instance 12345 --epoch 0,17 --output x.png")]
pub(super) struct RenderArgs {
    /// Folder of the dataset
    #[arg(long, value_name = "URL")]
    dataset: String,
    /// Run or checkpoint with the split, seed, recipe and size to use; options given here win
    #[arg(long, value_name = "URL")]
    run: Option<String>,
    /// Split of the dataset [default: that of --run, else train]
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
    /// Instance to draw
    #[arg(long, value_name = "N")]
    instance: u32,
    /// Epochs, separated by commas, one row of the drawing each; 0 is epoch 1 in a run's lines
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "0")]
    epoch: Vec<u64>,
    /// Seed of the run [default: that of --run, else 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Recipe of the run [default: that of --run, else imagenet]
    #[arg(long, value_parser = choice::<RecipeKind>())]
    recipe: Option<RecipeKind>,
    /// Side of the network's images, in pixels [default: that of --run, else 224]
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..))]
    image_size: Option<u32>,
    /// Draw each pixel as a square of N by N [default: such that the network's images are at least 128 pixels wide]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    scale: Option<u32>,
    /// PNG file to write
    #[arg(long, value_name = "URL")]
    output: String,
}

pub(super) fn run(global: &GlobalArgs, args: &RenderArgs) -> anyhow::Result<()> {
    if !args.output.ends_with(".png") {
        bail!(usage(format!("--output {}: the drawing is a PNG; end its name in `.png`", args.output)));
    }
    let options = RenderOptions {
        dataset: global.location(&args.dataset)?,
        checkpoint: args.run.as_ref().map(|run| global.checkpoint(run)).transpose()?,
        split: args.split.clone(),
        instance: InstanceId(args.instance),
        epochs: args.epoch.clone(),
        seed: args.seed,
        recipe: args.recipe,
        image_size: args.image_size,
        scale: args.scale,
        output: global.location(&args.output)?,
    };
    write_json(&render(&options)?)
}
