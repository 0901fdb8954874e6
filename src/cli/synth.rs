//! `instdisc synth`.

use std::path::PathBuf;

use clap::Args;

use super::progress::Terminal;
use super::write_json;
use crate::ingest::{SynthOptions, synth};

/// Write a small labelled image set in ImageFolder layout (train and val), for experiments.
///
/// The classes are textured shapes; pose, scale, colours and background are random and do not depend on the class.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  instdisc synth --dest images")]
pub(super) struct SynthArgs {
    /// Folder to write; must be empty or absent
    #[arg(long, value_name = "PATH", value_parser = super::local_path)]
    dest: PathBuf,
    /// Training images per class
    #[arg(long, value_name = "N", default_value_t = SynthOptions::default().train_per_class)]
    train_per_class: usize,
    /// Validation images per class
    #[arg(long, value_name = "N", default_value_t = SynthOptions::default().val_per_class)]
    val_per_class: usize,
    /// Side of an image, in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = SynthOptions::default().image_size)]
    image_size: u32,
    /// Seed of all random numbers
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

pub(super) fn run(args: &SynthArgs) -> anyhow::Result<()> {
    let options = SynthOptions {
        dest: args.dest.clone(),
        train_per_class: args.train_per_class,
        val_per_class: args.val_per_class,
        image_size: args.image_size,
        seed: args.seed,
    };
    write_json(&synth(&options, &Terminal::default())?)
}
