//! `instdisc ingest`.

pub(super) mod braces;

use clap::{ArgGroup, Args, ValueEnum};

use super::exit::usage;
use super::progress::{Terminal, say, say_next};
use super::{GlobalArgs, choice, write_json, write_stdout};
use crate::image::ExifOrientation;
use crate::ingest::{
    CheckDepth, ClassFolder, HoldOut, IngestOptions, LabelsAs, PathGlob, SourceFormat, ingest, plan,
    source_plan,
};
use crate::units::{ByteSize, Fraction, shell_word};

/// Turn images into a dataset: Parquet shards with instance ids, and a manifest.
///
/// The source is an ImageFolder (`<class>/<file>` or `<split>/<class>/<file>`), the official ImageNet
/// archives or their folder, WebDataset shards or a tar of an ImageFolder, Hugging Face Parquet files,
/// CIFAR's binary archives, or a csv or jsonl of paths and labels; its content decides. The interpretation
/// (splits, classes, labels, ignored files) is printed before anything is written; an ambiguous source is an
/// error that names the option to decide. docs/formats.md has the rules.
///
/// Each image is validated once; rejects/ lists those that cannot be decoded with the reason, and they get no
/// id. Ctrl-C and SIGTERM end the ingest at once; the same command resumes it, with the same result.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  instdisc ingest --source /data/ILSVRC2012/train --dest s3://bucket/in1k --split train

More:
  instdisc ingest --source downloads/ --plan                       # what would become of it; writes nothing
  instdisc ingest --source /downloads/imagenet --dest in1k         # ILSVRC2012_img_{train,val}.tar, devkit
  instdisc ingest --source 's3://bucket/wds/train-{000..146}.tar' --dest in1k --classes wnids.txt
  instdisc ingest --source more/ --dest in1k --split train --append")]
#[command(group = ArgGroup::new("smaller").args(["max_side", "short_side"]).multiple(true))]
pub(super) struct IngestArgs {
    /// Images: a folder, a file, or several files. `'train-{000..146}.tar'` stands for 147 files and
    /// `'{a,b}.tar'` for two, as in bash; a file whose own name has a brace is found too
    #[arg(long, value_name = "PATH|URL", required = true, num_args = 1..)]
    source: Vec<String>,
    /// Folder of the dataset
    #[arg(long, value_name = "URL", required_unless_present = "plan")]
    dest: Option<String>,
    /// Format of the source
    #[arg(long, value_parser = choice::<SourceFormat>(), default_value = "auto")]
    format: SourceFormat,
    /// If the source has several splits (train/, val/), take only this one; if it has none, use this name [default: all
    /// splits; a source without any takes its folder's name if that is train, val or test, else train]
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
    /// Put the images that match the pattern into the split NAME, whatever their names; repeatable
    #[arg(long, value_name = "NAME=GLOB")]
    splits: Vec<String>,
    /// Put this fraction of each class of a source without splits into the split NAME (`test=0.1`,
    /// `test=10%`); equal paths give equal selections
    #[arg(long, value_name = "NAME=SHARE")]
    hold_out: Option<HoldOut>,
    /// Ignore matching files; a pattern without `/` matches a file or folder name at any depth; repeatable
    #[arg(long, value_name = "GLOB")]
    ignore: Vec<String>,
    /// Labels of images outside class folders: ImageNet's development kit, or a csv of image and class
    /// [default: ImageNet's, beside its validation images]
    #[arg(long, value_name = "URL")]
    labels: Option<String>,
    /// File with a line for each class name, for classes that are numbers in the source
    #[arg(long, value_name = "URL")]
    classes: Option<String>,
    /// Interpretation of label text
    #[arg(long, value_parser = choice::<LabelsAs>(), default_value = "auto")]
    labels_as: LabelsAs,
    /// Class of `train/a/b/x.jpg`: `a` (first) or `b` (last) [default: such images are an error]
    #[arg(long, value_parser = choice::<ClassFolder>(), value_name = "WHICH")]
    class_folder: Option<ClassFolder>,
    /// Column (csv, Parquet) or field (jsonl, WebDataset's json) of labels [default: one with a known name]
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,
    /// Column of images (Parquet) or of their paths (csv, jsonl) [default: one with a known name]
    #[arg(long, value_name = "NAME")]
    image_column: Option<String>,
    /// Take no labels, and accept images without class folders
    #[arg(long)]
    unlabelled: bool,
    /// Take no labels of this split; repeatable
    #[arg(long, value_name = "NAME")]
    unlabelled_split: Vec<String>,
    /// Print the interpretation of the source and, with `--dest`, the changes to the destination, as text or
    /// (`--plan=json`) as JSON; write nothing
    #[arg(long, value_enum, value_name = "FORMAT", num_args = 0..=1, require_equals = true,
        default_missing_value = "text")]
    plan: Option<PlanFormat>,
    /// Append the images to an existing split, with new ids after the old ones
    #[arg(long)]
    append: bool,
    /// Drop images of the split `train` that have a near-duplicate in another split, existing or new
    #[arg(long)]
    drop_leaks: bool,
    /// Compare images by appearance; off finds only those that are equal byte for byte
    #[arg(long, value_enum, default_value = "on")]
    near_duplicates: Switch,
    /// Read every image of a source that the destination already has, and compare it with the dataset; an
    /// error if the destination has none of them
    #[arg(long)]
    verify_source: bool,
    /// Fraction of rejected images above which the job fails
    #[arg(long, value_name = "FRACTION", default_value = "0.01")]
    max_reject_fraction: Fraction,
    /// Size at which a shard is full
    #[arg(long, value_name = "BYTES", default_value_t = IngestOptions::SHARD_SIZE)]
    shard_size: ByteSize,
    /// Rows per row group
    #[arg(long, value_name = "ROWS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    row_group: u32,
    /// Seed of the rows' order over the shards
    #[arg(long, value_name = "N", default_value_t = 0)]
    shuffle_seed: u64,
    /// Depth of the check of each image
    #[arg(long, value_parser = choice::<CheckDepth>(), default_value = "full")]
    check: CheckDepth,
    /// Reject images with more pixels than this
    #[arg(long, value_name = "N", default_value_t = 100_000_000)]
    max_pixels: u64,
    /// Interpretation of the orientation in EXIF; the images' bytes do not change
    #[arg(long, value_parser = choice::<ExifOrientation>(), value_name = "WHAT", default_value = "ignore")]
    exif_orientation: ExifOrientation,
    /// Shrink images until their longer side has at most N pixels
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_side: Option<u32>,
    /// Shrink images until their shorter side has at most N pixels
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    short_side: Option<u32>,
    /// JPEG quality of shrunk images
    #[arg(long, value_name = "N", default_value_t = 90, requires = "smaller")]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: u8,
    /// Convert progressive JPEGs to baseline: the same pixels, decoded faster
    #[arg(long)]
    baseline: bool,
    /// Threads that validate images, at most 1024; 0 for one per core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1024))]
    threads: u16,
    /// Shards written at once, at most one per thread
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    uploads: u32,
    /// Memory for the images of all threads together, encoded and decoded; an image that needs more is
    /// rejected [default: half of the machine's; a larger image is then decoded alone]
    #[arg(long, value_name = "BYTES")]
    memory_limit: Option<ByteSize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

/// Output format of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PlanFormat {
    Text,
    Json,
}

/// Parses `NAME=GLOB`.
fn split_pattern(text: &str) -> anyhow::Result<(String, PathGlob)> {
    let (name, glob) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(|| {
        usage(format!("`--splits {text}`: expected NAME=GLOB, such as `train=train_images/**`"))
    })?;
    Ok((name.to_owned(), pattern("--splits", glob)?))
}

fn pattern(option: &str, glob: &str) -> anyhow::Result<PathGlob> {
    Ok(PathGlob::new(glob).map_err(|reason| usage(format!("`{option} {glob}`: {reason}")))?)
}

/// Returns the sources that a text names: an existing local path, or the expansion of its braces.
fn names(pattern: &str) -> anyhow::Result<Vec<String>> {
    let has_braces = pattern.contains(['{', '}']);
    if has_braces && std::path::Path::new(pattern).exists() {
        tracing::info!("{pattern}: exists under this name, so its braces are not expanded");
        return Ok(vec![pattern.to_owned()]);
    }
    let names = braces::expand(pattern).map_err(|error| usage(error.to_string()))?;
    if let ([first, .., last], true) = (names.as_slice(), has_braces) {
        tracing::info!("{pattern}: its braces stand for {} sources, from {first} to {last}", names.len());
    }
    Ok(names)
}

fn write_plan(format: PlanFormat, plan: &impl serde::Serialize, lines: &[String]) -> anyhow::Result<()> {
    match format {
        PlanFormat::Json => write_json(plan),
        PlanFormat::Text => write_stdout((lines.join("\n") + "\n").as_bytes()),
    }
}

pub(super) fn run(global: &GlobalArgs, args: &IngestArgs) -> anyhow::Result<()> {
    let mut sources = Vec::new();
    for pattern in &args.source {
        for source in names(pattern)? {
            sources.push(global.location(&source)?);
        }
    }
    let dest = match &args.dest {
        Some(dest) => global.folder("--dest", dest)?,
        // `--plan` writes nothing.
        None => sources[0].clone(),
    };
    let optional =
        |option, text: &Option<String>| text.as_deref().map(|text| global.file(option, text)).transpose();
    let options = IngestOptions {
        format: args.format,
        split: args.split.clone(),
        splits: args.splits.iter().map(|text| split_pattern(text)).collect::<Result<_, _>>()?,
        hold_out: args.hold_out.clone(),
        ignore: args.ignore.iter().map(|glob| pattern("--ignore", glob)).collect::<Result<_, _>>()?,
        labels_as: args.labels_as,
        class_folder: args.class_folder,
        label_column: args.label_column.clone(),
        image_column: args.image_column.clone(),
        unlabelled_splits: args.unlabelled_split.clone(),
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
        exif_orientation: args.exif_orientation,
        max_side: args.max_side,
        short_side: args.short_side,
        quality: args.quality,
        baseline: args.baseline,
        threads: args.threads.into(),
        uploads: args.uploads as usize,
        memory_limit: args.memory_limit.map(|limit| limit.0),
        ..IngestOptions::new(sources[0].clone(), dest)
    };
    let options = IngestOptions { sources, ..options };
    if let Some(format) = args.plan {
        return match &args.dest {
            Some(_) => {
                let plan = plan(&options, &Terminal::default())?;
                write_plan(format, &plan, &plan.lines())
            }
            None => {
                let plan = source_plan(&options)?;
                write_plan(format, &plan, &plan.lines())
            }
        };
    }
    let report = ingest(&options, &Terminal::default())?;
    if let Some(held_by) = report.held_by {
        say(&format!(
            "{}: nothing to do, it holds this dataset already, {}",
            report.dest,
            held_by.describe()
        ));
    }
    let lines = report.lines();
    // With JSON on stdout, print the lines for people to stderr.
    if !global.prints_lines() {
        lines.iter().for_each(|line| say(line));
    }
    global.write_result(&lines, &report)?;
    let dest = args.dest.as_deref().unwrap_or("DATASET");
    if report.plan.splits.contains_key("train") {
        // A run belongs to one dataset, so do not suggest an existing run.
        let run = if std::path::Path::new("run").exists() {
            format!("{}-run", dest.trim_end_matches('/'))
        } else {
            "run".to_owned()
        };
        say_next(&format!(
            "instdisc train --dataset {} --run {} --epochs 20    # a first look; the default is 200",
            shell_word(dest),
            shell_word(&run)
        ));
    }
    Ok(())
}
