//! `instdisc bench loader`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use rustix::time::ClockId;
use serde_json::{Value, json};
use turbojpeg::{Decompressor, Image, PixelFormat};

use super::time_of;
use crate::augment::{JitterStrength, Recipe, Renderer};
use crate::cli::{GlobalArgs, write_json};
use crate::dataset::Manifest;
use crate::ids::{BankRow, InstanceId};
use crate::image::{Channels, Encoded, Limits, Region, RegionDecoder};
use crate::ingest::peak_memory;
use crate::loader::open_split;

/// Measure how fast images become pixels, compared with plainly decoding the same images.
///
/// Plain decoding uses libjpeg-turbo, for whole images to RGB. Each image passes both in turn, so the ratio is valid on
/// a busy machine. Images are read into memory first. Those of a dataset have entry points, files do not.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  instdisc bench loader --images imagenet-sample-500.tar --stage full --threads 1"
)]
pub(super) struct BenchLoaderArgs {
    /// JPEG files: a folder or a tar
    #[arg(long, value_name = "PATH", required_unless_present = "dataset", value_parser = crate::cli::local_path)]
    images: Option<PathBuf>,
    /// Dataset to use instead of files
    #[arg(long, value_name = "URL", conflicts_with = "images")]
    dataset: Option<String>,
    /// Split of the dataset
    #[arg(long, value_name = "NAME", default_value = "train")]
    split: String,
    /// Maximum number of images
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
    /// Last stage to measure
    #[arg(long, value_enum, default_value = "full")]
    stage: Depth,
    /// Threads
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    threads: u16,
    /// Passes over the images, each with other crops
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Side of the output, in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 224, value_parser = clap::value_parser!(u32).range(1..))]
    image_size: u32,
}

/// Encoded image in memory.
struct File {
    bytes: Bytes,
    entry_points: Option<Bytes>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Depth {
    /// Decode whole images
    Decode,
    /// Decode and resize random crops, flip
    Crop,
    /// The whole recipe: crop, grayscale, colour jitter, flip
    Full,
}

/// Time spent by one thread.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    cpu: Duration,
    wall: Duration,
}

/// Stopwatch that measures from one call to the next.
struct Watch {
    cpu: Duration,
    wall: Instant,
}

impl Watch {
    fn start() -> Self {
        Self { cpu: time_of(ClockId::ThreadCPUTime), wall: Instant::now() }
    }

    fn add_to(&mut self, spent: &mut Spent) {
        let now = Self::start();
        spent.cpu += now.cpu - self.cpu;
        spent.wall += now.wall - self.wall;
        *self = now;
    }
}

/// Times measured by one thread: plain decoding, and the stages in order.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    plain: Spent,
    stages: [Spent; 4],
}

/// Names of the stages, in the order of [`Stage`](crate::augment::Stage).
const STAGES: [&str; 4] = ["open", "decode", "resize", "colour"];

pub(super) fn run(global: &GlobalArgs, args: &BenchLoaderArgs) -> anyhow::Result<()> {
    let mut files = match (&args.images, &args.dataset) {
        (Some(path), _) => {
            let files = read_files(path).with_context(|| path.display().to_string())?;
            files.into_iter().map(|bytes| File { bytes: bytes.into(), entry_points: None }).collect()
        }
        (None, Some(dataset)) => read_dataset(global, dataset, args)?,
        (None, None) => Vec::new(),
    };
    files.retain(|file| file.bytes.starts_with(&[0xFF, 0xD8]));
    files.truncate(args.limit);
    ensure!(!files.is_empty(), "no JPEG to decode");
    let began = Instant::now();
    let times = std::thread::scope(|scope| {
        let start = |thread| {
            let files = &files;
            scope.spawn(move || measure(args, files, thread))
        };
        let threads: Vec<_> = (0..usize::from(args.threads)).map(start).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, anyhow::Result<Times>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect::<anyhow::Result<Vec<_>>>()
    })?;
    write_json(&report(args, &files, &times, began.elapsed()))
}

/// Measures this thread's share of the images, alternating plain decoding and the stages.
fn measure(args: &BenchLoaderArgs, files: &[File], thread: usize) -> anyhow::Result<Times> {
    let mut plain = PlainDecoder::new()?;
    let mut renderer = Renderer::default();
    let mut decoder = RegionDecoder::default();
    let mut out = vec![0; 3 * (args.image_size as usize).pow(2)];
    let mut recipe = Recipe::imagenet(args.image_size);
    if args.stage == Depth::Crop {
        recipe.jitter = JitterStrength { brightness: 0.0, contrast: 0.0, saturation: 0.0, hue: 0.0 };
        recipe.grayscale = 0.0;
    }
    let mut times = Times::default();
    let limits = Limits { max_pixels: u64::MAX };
    // The first pass fills caches and buffers and is not counted.
    for round in 0..=args.rounds {
        for (index, file) in files.iter().enumerate().skip(thread).step_by(usize::from(args.threads)) {
            if round == 1 && index == thread {
                times = Times::default();
            }
            let mut watch = Watch::start();
            plain.decode(&file.bytes)?;
            watch.add_to(&mut times.plain);
            let encoded = Encoded::open(&file.bytes, &limits)?;
            let encoded = encoded.with_entry_points(file.entry_points.as_deref());
            if args.stage == Depth::Decode {
                let (width, height) = encoded.size();
                let whole = Region { left: 0, top: 0, width: width as usize, height: height as usize };
                watch.add_to(&mut times.stages[0]);
                std::hint::black_box(decoder.decode(&encoded, whole, Channels::Rgb)?);
                watch.add_to(&mut times.stages[1]);
                continue;
            }
            let draw = |width, height| recipe.draw_for(0, round, InstanceId(index as u32), width, height);
            let done = |stage| watch.add_to(&mut times.stages[stage as usize]);
            renderer.augment(&encoded, draw, args.image_size, &mut out, done)?;
            std::hint::black_box(&mut out);
        }
    }
    Ok(times)
}

/// Decoder of libjpeg-turbo with default settings, into a reused buffer.
struct PlainDecoder {
    decompressor: Decompressor,
    pixels: Vec<u8>,
}

impl PlainDecoder {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { decompressor: Decompressor::new()?, pixels: Vec::new() })
    }

    fn decode(&mut self, file: &[u8]) -> anyhow::Result<()> {
        let header = self.decompressor.read_header(file)?;
        let pitch = header.width * 3;
        if self.pixels.len() < pitch * header.height {
            self.pixels.resize(pitch * header.height, 0);
        }
        let pixels = &mut self.pixels[..pitch * header.height];
        let (width, height, format) = (header.width, header.height, PixelFormat::RGB);
        // Warnings do not matter here, as both sides decode the same file.
        let _ = self.decompressor.decompress(file, Image { pixels, width, pitch, height, format });
        std::hint::black_box(&mut self.pixels);
        Ok(())
    }
}

fn report(args: &BenchLoaderArgs, files: &[File], times: &[Times], elapsed: Duration) -> Value {
    let sum = |of: &dyn Fn(&Times) -> Duration| times.iter().map(of).sum::<Duration>().as_secs_f64();
    let plain_cpu = sum(&|times| times.plain.cpu);
    let plain_wall = sum(&|times| times.plain.wall);
    let own_cpu = sum(&|times| times.stages.iter().map(|spent| spent.cpu).sum());
    let own_wall = sum(&|times| times.stages.iter().map(|spent| spent.wall).sum());
    let done = files.len() as f64 * args.rounds as f64;
    let threads = f64::from(args.threads);
    let bytes: usize = files.iter().map(|file| file.bytes.len()).sum();
    let points = files.iter().flat_map(|file| &file.entry_points).map(Bytes::len).sum::<usize>();
    let stages: serde_json::Map<_, _> = STAGES
        .iter()
        .enumerate()
        .map(|(at, name)| ((*name).to_owned(), json!(sum(&|times| times.stages[at].cpu) / done * 1e3)))
        .collect();
    json!({
        "stage": args.stage.to_possible_value().map(|value| value.get_name().to_owned()),
        "threads": args.threads,
        "images": files.len(),
        "rounds": args.rounds,
        "images_per_second": done / own_wall * threads,
        "plain_decode_images_per_second": done / plain_wall * threads,
        "ratio_to_plain_decode": plain_cpu / own_cpu,
        "ratio_to_plain_decode_wall": plain_wall / own_wall,
        "milliseconds_per_image": stages,
        "plain_decode_milliseconds_per_image": plain_cpu / done * 1e3,
        "megabytes_per_second": bytes as f64 * args.rounds as f64 / own_wall * threads / 1e6,
        "mean_image_bytes": bytes / files.len(),
        "mean_entry_points_bytes": points / files.len(),
        "peak_rss_bytes": peak_memory(),
        "elapsed_seconds": elapsed.as_secs_f64(),
    })
}

fn read_files(path: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    if path.is_dir() {
        let entries = walkdir::WalkDir::new(path).sort_by_file_name().into_iter();
        return entries
            .filter(|entry| entry.as_ref().map_or(true, |entry| entry.file_type().is_file()))
            .map(|entry| Ok(std::fs::read(entry?.path())?))
            .collect();
    }
    let mut archive = tar::Archive::new(std::fs::File::open(path)?);
    let mut files = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.header().entry_type().is_file() {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            files.push(bytes);
        }
    }
    Ok(files)
}

fn read_dataset(global: &GlobalArgs, dataset: &str, args: &BenchLoaderArgs) -> anyhow::Result<Vec<File>> {
    let location = global.location(dataset)?;
    let manifest = Manifest::read(&location)?;
    let source = open_split(&location, &manifest, &args.split, Some(args.limit))?;
    let positions: Vec<_> = (0..source.len() as u32).map(BankRow).collect();
    let rows = source.read(&positions)?.into_iter();
    Ok(rows.map(|row| File { bytes: row.bytes, entry_points: row.entry_points }).collect())
}
