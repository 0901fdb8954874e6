//! How long an ingest takes beside decoding the same images once.

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

/// What to measure.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// The images, in any form that is ingested.
    pub source: Location,
    /// A folder for the copies and the datasets; what is made there is removed.
    pub scratch: Location,
    /// Repeat the images until they have at least this many bytes.
    pub bytes: u64,
    /// Threads.
    pub threads: usize,
    /// How thoroughly to validate an image.
    pub check: CheckDepth,
    /// Rounds; in each both are measured, one after the other.
    pub rounds: usize,
}

/// What was measured. Ratios are of one round; the rest is of the round with the median ratio.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    /// Images.
    pub images: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Threads.
    pub threads: usize,
    /// Decoding every image once to RGB, in seconds.
    pub decode_seconds: f64,
    /// Ingesting them, in seconds.
    pub ingest_seconds: f64,
    /// Processor time of decoding them, all threads together, in seconds.
    pub decode_cpu_seconds: f64,
    /// Processor time of ingesting them, in seconds.
    pub ingest_cpu_seconds: f64,
    /// Millions of bytes a second of the ingest.
    pub ingest_megabytes_per_second: f64,
    /// The ingest's time over that of decoding, in the median.
    pub ratio_to_plain_decode: f64,
    /// The same ratio of every round.
    pub ratios: Vec<f64>,
    /// Ratios of processor time, of every round.
    pub cpu_ratios: Vec<f64>,
    /// The peak memory of the process, in bytes; none where the system does not say.
    pub peak_memory_bytes: Option<u64>,
}

/// Measures.
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

/// A round: decodes all images, then ingests them into `dest`, which is removed.
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

/// What a piece of work gives, after its time and its processor time in seconds.
fn timed<T>(work: impl FnOnce() -> Result<T, IngestError>) -> Result<(f64, f64, T), IngestError> {
    let cpu = || {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
    };
    let (started, before) = (Instant::now(), cpu());
    let result = work()?;
    Ok((started.elapsed().as_secs_f64(), cpu() - before, result))
}

/// Writes a tar with the images again and again under other names.
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
            // An image that cannot be decoded is rejected by the ingest, too, after the same work.
            let _ = std::hint::black_box(decode(&bytes, &Limits::default()));
            Ok::<_, IngestError>(())
        })
    })
}

/// The peak memory of this process, in bytes; none where the system does not say.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}
