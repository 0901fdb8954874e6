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
/// The source is an ImageFolder (`<class>/<file>` or `<split>/<class>/<file>`), the official ImageNet archives
/// or their folder, WebDataset shards or a tar of an ImageFolder, Hugging Face Parquet files, CIFAR's binary
/// archives, or a csv or jsonl of paths and labels; its content decides. How it was understood (splits, classes,
/// labels, what is passed over) is printed before anything is written; an ambiguous source is an error that
/// names the option. docs/formats.md has the rules.
///
/// Each image is validated once; one that cannot be decoded is listed in rejects/ with its reason and gets no id.
/// Ctrl-C and SIGTERM end it at once; the same command resumes it, with the same result.
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
    /// The images: a folder, a file, or several files. `'train-{000..146}.tar'` stands for 147 files and `'{a,b}.tar'`
    /// for two, as in bash; a file whose own name has a brace is found too
    #[arg(long, value_name = "PATH|URL", required = true, num_args = 1..)]
    source: Vec<String>,
    /// The dataset's folder
    #[arg(long, value_name = "URL", required_unless_present = "plan")]
    dest: Option<String>,
    /// What the source is
    #[arg(long, value_parser = choice::<SourceFormat>(), default_value = "auto")]
    format: SourceFormat,
    /// If the source has several splits (train/, val/), take this one alone; if it has none, call it this
    /// [default: all splits; a source without any takes its folder's name if that is train, val or test, else train]
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
    /// Put the images that match the pattern into the split NAME, whatever their names say; repeatable
    #[arg(long, value_name = "NAME=GLOB")]
    splits: Vec<String>,
    /// Put this share of each class of a source without splits into the split NAME (`test=0.1`, `test=10%`), always the
    /// same images of the same paths
    #[arg(long, value_name = "NAME=SHARE")]
    hold_out: Option<HoldOut>,
    /// Leave out what matches; a pattern without `/` matches a file or folder name at any depth; repeatable
    #[arg(long, value_name = "GLOB")]
    ignore: Vec<String>,
    /// Labels of images outside class folders: ImageNet's development kit, or a csv of image and class
    /// [default: ImageNet's, beside its validation images]
    #[arg(long, value_name = "URL")]
    labels: Option<String>,
    /// Names of classes that are numbers in the source: a file with a line for each
    #[arg(long, value_name = "URL")]
    classes: Option<String>,
    /// How the text of labels is read
    #[arg(long, value_parser = choice::<LabelsAs>(), default_value = "auto")]
    labels_as: LabelsAs,
    /// Of `train/a/b/x.jpg`, whether the class is `a` (first) or `b` (last) [default: such images are an error]
    #[arg(long, value_parser = choice::<ClassFolder>(), value_name = "WHICH")]
    class_folder: Option<ClassFolder>,
    /// The column (csv, Parquet) or field (jsonl, WebDataset's json) of labels [default: one with a known name]
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,
    /// The column of images (Parquet) or of their paths (csv, jsonl) [default: one with a known name]
    #[arg(long, value_name = "NAME")]
    image_column: Option<String>,
    /// Take no labels, and images without class folders
    #[arg(long)]
    unlabelled: bool,
    /// Take no labels of this split; repeatable
    #[arg(long, value_name = "NAME")]
    unlabelled_split: Vec<String>,
    /// Print how the source is understood and, with `--dest`, what the destination gets of it, as text or
    /// (`--plan=json`) as JSON; write nothing
    #[arg(long, value_enum, value_name = "FORMAT", num_args = 0..=1, require_equals = true,
        default_missing_value = "text")]
    plan: Option<PlanFormat>,
    /// Add the images to a split that is there: new ids after the old ones
    #[arg(long)]
    append: bool,
    /// Leave out images of the split `train` with a near-duplicate in another split that is there or comes with them
    #[arg(long)]
    drop_leaks: bool,
    /// Compare images by what they look like; off finds those that are equal byte for byte alone
    #[arg(long, value_enum, default_value = "on")]
    near_duplicates: Switch,
    /// Read every image of a source that the destination holds already, and compare it with the dataset; an error where
    /// it holds none
    #[arg(long)]
    verify_source: bool,
    /// The share of refused images above which the job fails
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
    /// How much of an image is looked at
    #[arg(long, value_parser = choice::<CheckDepth>(), default_value = "full")]
    check: CheckDepth,
    /// An image with more pixels is refused
    #[arg(long, value_name = "N", default_value_t = 100_000_000)]
    max_pixels: u64,
    /// Whether images are seen as the orientation in their EXIF says; their bytes stay as they are
    #[arg(long, value_parser = choice::<ExifOrientation>(), value_name = "WHAT", default_value = "ignore")]
    exif_orientation: ExifOrientation,
    /// Make images smaller until their longer side has at most N pixels
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_side: Option<u32>,
    /// Make images smaller until their shorter side has at most N pixels
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    short_side: Option<u32>,
    /// The JPEG quality of images that were made smaller
    #[arg(long, value_name = "N", default_value_t = 90, requires = "smaller")]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: u8,
    /// Turn progressive JPEGs into baseline ones: the same pixels, decoded in less time
    #[arg(long)]
    baseline: bool,
    /// Threads that validate images, at most 1024; 0 for one on each core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1024))]
    threads: u16,
    /// Shards that are written at once, at most one for each thread
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    uploads: u32,
    /// The memory for images of all threads together, encoded and decoded; an image that needs more is rejected
    /// [default: half of the machine's; a larger image is then decoded alone]
    #[arg(long, value_name = "BYTES")]
    memory_limit: Option<ByteSize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

/// How a plan is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PlanFormat {
    Text,
    Json,
}

/// `NAME=GLOB`.
fn split_pattern(text: &str) -> anyhow::Result<(String, PathGlob)> {
    let (name, glob) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(|| {
        usage(format!("`--splits {text}`: expected NAME=GLOB, such as `train=train_images/**`"))
    })?;
    Ok((name.to_owned(), pattern("--splits", glob)?))
}

fn pattern(option: &str, glob: &str) -> anyhow::Result<PathGlob> {
    Ok(PathGlob::new(glob).map_err(|reason| usage(format!("`{option} {glob}`: {reason}")))?)
}

/// The sources that a text names: a path of this machine that is there, or what its braces stand for.
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
        // A plan writes nothing.
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
    // Beside JSON on stdout a person reads them all the same.
    if !global.prints_lines() {
        lines.iter().for_each(|line| say(line));
    }
    global.write_result(&lines, &report)?;
    let dest = args.dest.as_deref().unwrap_or("DATASET");
    if report.plan.splits.contains_key("train") {
        // A run belongs to one dataset, so a run that is there is not proposed for this one.
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
