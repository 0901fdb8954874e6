//! `instdisc ingest`.

use clap::{ArgGroup, Args, ValueEnum};

use super::progress::{Terminal, say};
use super::{GlobalArgs, braces, write_json};
use crate::ingest::{CheckDepth, IngestOptions, SourceFormat, ingest};
use crate::units::{ByteSize, Fraction};

/// Turn pictures into a dataset: Parquet shards with instance ids, and a manifest.
///
/// The source is an ImageFolder (`<class>/<file>` or `<split>/<class>/<file>`), the official ImageNet archives
/// or their folder, WebDataset shards or a tar of an ImageFolder, Hugging Face Parquet files, CIFAR's binary
/// archives, or a csv or jsonl of paths and labels; its content says which. Nothing is unpacked beside it.
///
/// Each picture is checked once; one that cannot be decoded goes to rejects/ with its reason and gets no id.
/// A killed ingest goes on when the same command is given again, with the same result.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  instdisc ingest --source /data/ILSVRC2012/train --dest s3://bucket/in1k --split train

More:
  instdisc ingest --source /downloads/imagenet --dest in1k         # ILSVRC2012_img_{train,val}.tar, devkit
  instdisc ingest --source 's3://bucket/wds/train-{000..146}.tar' --dest in1k --classes wnids.txt
  instdisc ingest --source more/ --dest in1k --split train --append")]
#[command(group = ArgGroup::new("smaller").args(["max_side", "short_side"]).multiple(true))]
pub(super) struct IngestArgs {
    /// The pictures: a folder, a file, or several files; {000..146} and {a,b} stand for each of theirs
    #[arg(long, value_name = "PATH|URL", required = true, num_args = 1..)]
    source: Vec<String>,
    /// The dataset's folder
    #[arg(long, value_name = "URL")]
    dest: String,
    /// What the source is
    #[arg(long, value_enum, default_value = "auto")]
    format: SourceFormat,
    /// The split's name; of a source with several splits, the one to take [default: train, or all]
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
    /// The labels of the ImageNet validation archive: the development kit or a csv of file and WordNet id
    /// [default: what lies beside the archive]
    #[arg(long, value_name = "URL")]
    labels: Option<String>,
    /// The names of classes that are numbers in the source: a file with a line for each
    #[arg(long, value_name = "URL")]
    classes: Option<String>,
    /// Take no labels, and pictures without class folders
    #[arg(long)]
    unlabelled: bool,
    /// Add the pictures to a split that is there: new ids after the old ones
    #[arg(long)]
    append: bool,
    /// Leave out training images with a near-duplicate in another split that is there or comes with them
    #[arg(long)]
    drop_leaks: bool,
    /// Compare images by what they look like; off finds those that are equal byte for byte alone
    #[arg(long, value_enum, default_value = "on")]
    near_duplicates: Switch,
    /// Read every image of a source that the destination holds already, and compare it with the dataset
    #[arg(long)]
    verify_source: bool,
    /// The share of refused pictures above which the job fails
    #[arg(long, value_name = "FRACTION", default_value = "0.01")]
    max_reject_fraction: Fraction,
    /// The size at which a shard is full
    #[arg(long, value_name = "BYTES", default_value_t = IngestOptions::SHARD_SIZE)]
    shard_size: ByteSize,
    /// Rows of a row group
    #[arg(long, value_name = "ROWS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    row_group: u32,
    /// The seed of the rows' order over the shards
    #[arg(long, value_name = "N", default_value_t = 0)]
    shuffle_seed: u64,
    /// How much of a picture is looked at
    #[arg(long, value_enum, default_value = "full")]
    check: CheckDepth,
    /// A picture with more pixels is refused
    #[arg(long, value_name = "N", default_value_t = 100_000_000)]
    max_pixels: u64,
    /// Make pictures smaller until their longer side has at most N pixels
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_side: Option<u32>,
    /// Make pictures smaller until their shorter side has at most N pixels
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    short_side: Option<u32>,
    /// The JPEG quality of pictures that were made smaller
    #[arg(long, value_name = "N", default_value_t = 90, requires = "smaller")]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: u8,
    /// Turn progressive JPEGs into baseline ones: the same pixels, decoded in less time
    #[arg(long)]
    baseline: bool,
    /// Give JPEGs restart markers: the same pixels, crops decoded in less time; `export pictures` takes them out again
    #[arg(long)]
    tile_index: bool,
    /// Threads that check pictures; 0 for one on each core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Shards that are written at once, at most one for each thread
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    uploads: u32,
    /// The memory for images of all threads together, encoded and decoded; an image that needs more is rejected
    /// [default: half of the machine's, and no image is rejected]
    #[arg(long, value_name = "BYTES")]
    memory_limit: Option<ByteSize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

pub(super) fn run(global: &GlobalArgs, args: &IngestArgs) -> anyhow::Result<()> {
    let mut sources = Vec::new();
    for pattern in &args.source {
        for source in braces::expand(pattern)? {
            sources.push(global.location(&source)?);
        }
    }
    let optional =
        |option, text: &Option<String>| text.as_deref().map(|text| global.file(option, text)).transpose();
    let options = IngestOptions {
        format: args.format,
        split: args.split.clone(),
        labels: optional("--labels", &args.labels)?,
        classes: optional("--classes", &args.classes)?,
        unlabelled: args.unlabelled,
        append: args.append,
        drop_leaks: args.drop_leaks,
        near_duplicates: args.near_duplicates == Switch::On,
        verify_source: args.verify_source,
        max_reject_fraction: args.max_reject_fraction,
        shard_bytes: args.shard_size.0.max(1),
        row_group: args.row_group as usize,
        shuffle_seed: args.shuffle_seed,
        check: args.check,
        max_pixels: args.max_pixels,
        max_side: args.max_side,
        short_side: args.short_side,
        quality: args.quality,
        baseline: args.baseline,
        tile_index: args.tile_index,
        threads: args.threads,
        uploads: args.uploads as usize,
        memory_limit: args.memory_limit.map(|limit| limit.0),
        ..IngestOptions::new(sources[0].clone(), global.location(&args.dest)?)
    };
    let report = ingest(&IngestOptions { sources, ..options }, &Terminal::default())?;
    if report.already_done {
        let basis = match report.verified_source {
            Some(_) => "by the contents of its images",
            None => "by the names, classes and sizes of its images; --verify-source reads and compares each",
        };
        say(&format!("{}: holds this dataset already, {basis}", args.dest));
    }
    report.lines().iter().for_each(|line| say(line));
    write_json(&report)
}
