//! Measures the time of an ingest relative to decoding the same images once.

use std::time::Instant;

use rayon::prelude::*;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::job::pool;
use super::source::Source;
use super::{CheckDepth, IngestError, IngestOptions, ingest};
use crate::image::{Limits, decode};
use crate::progress::Quiet;
use crate::storage::{Location, Upload};

/// Options of the measurement.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// Images, in any form that ingest reads.
    pub source: Location,
    /// Folder for the copies and the datasets, which are removed afterwards.
    pub scratch: Location,
    /// Minimum number of bytes, reached by repeating the images.
    pub bytes: u64,
    /// Number of threads.
    pub threads: usize,
    /// Depth of the check of each image.
    pub check: CheckDepth,
    /// Number of rounds; in each, decoding and ingest are measured one after the other.
    pub rounds: usize,
}

/// Results. Ratios are of one round each; the other values are of the round with the median ratio.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    /// Number of images.
    pub images: u64,
    /// Size of the images in bytes.
    pub bytes: u64,
    /// Number of threads.
    pub threads: usize,
    /// Time to decode every image once to RGB, in seconds.
    pub decode_seconds: f64,
    /// Time to ingest the images, in seconds.
    pub ingest_seconds: f64,
    /// Processor time to decode the images, summed over threads, in seconds.
    pub decode_cpu_seconds: f64,
    /// Processor time to ingest the images, summed over threads, in seconds.
    pub ingest_cpu_seconds: f64,
    /// Speed of the ingest in millions of bytes a second.
    pub ingest_megabytes_per_second: f64,
    /// Median ratio of the ingest's time to that of decoding.
    pub ratio_to_plain_decode: f64,
    /// The same ratio of every round.
    pub ratios: Vec<f64>,
    /// Ratio of processor time of every round.
    pub cpu_ratios: Vec<f64>,
    /// Peak memory of the process, in bytes; `None` if the system does not report it.
    pub peak_memory_bytes: Option<u64>,
}

/// Runs the measurement.
///
/// # Errors
/// As [`ingest`].
pub fn bench(options: &BenchOptions) -> Result<BenchReport, IngestError> {
    let tar = options.scratch.join("images.tar");
    repeat(options, &tar)?;
    let mut rounds = Vec::new();
    for round in 0..options.rounds.max(1) {
        rounds.push(measure(options, &tar, &options.scratch.join(&format!("dataset-{round}")))?);
    }
    tar.delete()?;
    let ratios = rounds.iter().map(|round| round.ratio_to_plain_decode).collect();
    let cpu_ratios = rounds.iter().map(|round| round.ingest_cpu_seconds / round.decode_cpu_seconds).collect();
    rounds.sort_by(|a, b| a.ratio_to_plain_decode.total_cmp(&b.ratio_to_plain_decode));
    let median = rounds.swap_remove(rounds.len() / 2);
    Ok(BenchReport { ratios, cpu_ratios, peak_memory_bytes: peak_memory(), ..median })
}

/// Measures one round: decodes all images, then ingests them into `dest`, which is removed afterwards.
fn measure(options: &BenchOptions, tar: &Location, dest: &Location) -> Result<BenchReport, IngestError> {
    let job = IngestOptions {
        threads: options.threads,
        uploads: options.threads,
        check: options.check,
        ..IngestOptions::new(tar.clone(), dest.clone())
    };
    let (decode_seconds, decode_cpu_seconds, ()) = timed(|| decode_all(&job))?;
    let (ingest_seconds, ingest_cpu_seconds, report) = timed(|| ingest(&job, &Quiet))?;
    dest.delete_folder()?;
    let splits = report.splits.values();
    let bytes = splits.clone().map(|split| split.image_bytes).sum();
    Ok(BenchReport {
        images: splits.map(|split| split.instances).sum(),
        bytes,
        threads: options.threads,
        decode_seconds,
        ingest_seconds,
        decode_cpu_seconds,
        ingest_cpu_seconds,
        ingest_megabytes_per_second: bytes as f64 / 1e6 / ingest_seconds,
        ratio_to_plain_decode: ingest_seconds / decode_seconds,
        ratios: Vec::new(),
        cpu_ratios: Vec::new(),
        peak_memory_bytes: None,
    })
}

/// Runs a piece of work; returns its time, its processor time, both in seconds, and its result.
fn timed<T>(work: impl FnOnce() -> Result<T, IngestError>) -> Result<(f64, f64, T), IngestError> {
    let cpu = || {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
    };
    let (started, before) = (Instant::now(), cpu());
    let result = work()?;
    Ok((started.elapsed().as_secs_f64(), cpu() - before, result))
}

/// Writes a tar that repeats the images under other names.
fn repeat(options: &BenchOptions, tar: &Location) -> Result<(), IngestError> {
    let source = Source::open(&IngestOptions::new(options.source.clone(), options.scratch.clone()))?;
    let failed = |error: std::io::Error| IngestError::Tar {
        tar: tar.to_string(),
        offset: 0,
        reason: error.to_string(),
    };
    let mut builder = tar::Builder::new(Upload::start(tar)?);
    let mut written = 0;
    for copy in 0.. {
        for (split, entries) in &source.splits {
            for entry in entries {
                let bytes = source.read(entry)?;
                let class = entry.class.map_or("none", |class| &source.classes[class.index()]);
                let name = entry.path.rsplit('/').next().unwrap_or(&entry.path);
                let mut header = tar::Header::new_ustar();
                header.set_size(bytes.len() as u64);
                header.set_mode(0o644);
                let path = format!("{class}/{copy:04}-{split}-{name}");
                builder.append_data(&mut header, path, bytes.as_ref()).map_err(failed)?;
                written += bytes.len() as u64;
            }
        }
        if written >= options.bytes {
            break;
        }
        if written == 0 {
            let reason = "its images have 0 bytes: there is nothing to measure";
            return Err(IngestError::layout(&options.source, reason));
        }
    }
    builder.into_inner().map_err(failed)?.finish()?;
    Ok(())
}

fn decode_all(options: &IngestOptions) -> Result<(), IngestError> {
    let source = Source::open(options)?;
    pool(options.threads)?.install(|| {
        source.splits.values().flatten().collect::<Vec<_>>().par_iter().try_for_each(|entry| {
            let bytes = source.read(entry)?;
            // Ingest also rejects an image that cannot be decoded, after the same work.
            let _ = std::hint::black_box(decode(&bytes, &Limits::default()));
            Ok::<_, IngestError>(())
        })
    })
}

/// Returns the peak memory of this process in bytes; `None` if the system does not report it.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}
