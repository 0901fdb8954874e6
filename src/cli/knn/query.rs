//! `instdisc query`.

use clap::Args;

use crate::cli::progress::Terminal;
use crate::cli::{GlobalArgs, choice};
use crate::commands::{FoundRow, QueriedImage, QueryJob, query};
use crate::image::ExifOrientation;
use crate::run_config::{DeviceChoice, OnCorrupt};

/// Find the most similar images of a dataset for your own images.
///
/// The run's encoder embeds the images like those of a dataset, and their cosines with the rows of the bank
/// are compared. Run and dataset are only read.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  instdisc query --run runs/r50 --image photo.jpg --dataset data/in1k --page photo.html"
)]
pub(in crate::cli) struct QueryArgs {
    /// Run, for its newest checkpoint, or checkpoint
    #[arg(long, value_name = "URL")]
    run: String,
    /// Images, or folders of images; repeatable
    #[arg(long, value_name = "URL", required = true, num_args = 1..)]
    image: Vec<String>,
    /// Rows to search: a table of `embed`, or a checkpoint or run [default: the bank of --run]
    #[arg(long, value_name = "URL")]
    bank: Option<String>,
    /// Dataset of these rows, for their paths and the page's images
    #[arg(long, value_name = "URL")]
    dataset: Option<String>,
    /// Neighbours of an image [default: 10]
    #[arg(long, value_name = "K")]
    k: Option<usize>,
    /// Page (.html) of the images and their neighbours, with images of these if --dataset is given
    #[arg(long, value_name = "URL")]
    page: Option<String>,
    /// Action at a corrupt image
    #[arg(long, value_name = "WHAT", value_parser = choice::<OnCorrupt>(), default_value = "fail")]
    on_corrupt: OnCorrupt,
    /// Interpretation of the orientation in EXIF [default: as --dataset was ingested; without it such an
    /// image is an error]
    #[arg(long, value_name = "WHAT", value_parser = choice::<ExifOrientation>())]
    exif_orientation: Option<ExifOrientation>,
    /// Threads that decode and search; 0 for one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Device: auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: DeviceChoice,
}

pub(in crate::cli) fn run(global: &GlobalArgs, args: &QueryArgs) -> anyhow::Result<()> {
    let location = |text: &Option<String>| text.as_ref().map(|text| global.location(text)).transpose();
    let job = QueryJob {
        run: global.location(&args.run)?,
        images: args.image.iter().map(|image| global.location(image)).collect::<Result<_, _>>()?,
        bank: location(&args.bank)?,
        dataset: location(&args.dataset)?,
        k: args.k,
        on_corrupt: args.on_corrupt,
        exif_orientation: args.exif_orientation,
        page: location(&args.page)?,
        threads: args.threads,
        device: args.device,
    };
    let report = query(&job, &Terminal::default())?;
    global.write_result(&report.images.iter().flat_map(lines).collect::<Vec<_>>(), &report)
}

/// Formats an image, and below it a line for each neighbour: its cosine, its path or number, and its class
/// unless the path starts with that.
fn lines(queried: &QueriedImage) -> Vec<String> {
    let line = |FoundRow { id, similarity, class, path, .. }: &FoundRow| {
        let name = path.clone().unwrap_or_else(|| format!("image {id}"));
        let is_said = |class: &&String| !name.starts_with(&format!("{class}/"));
        let class = class.as_ref().filter(is_said).map_or_else(String::new, |class| format!("  {class}"));
        format!("  {similarity:.3}  {name}{class}")
    };
    std::iter::once(queried.image.clone()).chain(queried.neighbours.iter().map(line)).collect()
}
