//! `instdisc bench knn`.

use std::time::Instant;

use clap::Args;
use rustix::time::ClockId;
use serde::Serialize;

use super::time_of;
use crate::cli::progress::say;
use crate::cli::{GlobalArgs, write_json};
use crate::eval::write_neighbours;
use crate::feature_table::{FeatureTable, StoredTable, Table};
use crate::ingest::peak_memory;
use crate::search::{Shape, draw_tables, search};

/// Time the exact search of the kNN vote.
///
/// The vectors are random, or those of --bank and --queries. A bank in a file is read during the search, as
/// in `instdisc knn`. benches/knn_faiss.py compares with faiss on the same vectors in the same run.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  instdisc bench knn --rows 200000 --query-rows 1000 --k 200 --shape clusters"
)]
pub(super) struct BenchKnnArgs {
    /// Rows of the bank
    #[arg(long, value_name = "N", default_value_t = 1_281_167, value_parser = clap::value_parser!(u32).range(1..))]
    rows: u32,
    /// Queries
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    query_rows: u32,
    /// Length of a vector
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    dim: u32,
    /// Distribution of the vectors
    #[arg(long, value_name = "uniform|clusters", default_value = "uniform")]
    shape: Shape,
    /// Seed of the vectors
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Search this feature table
    #[arg(long, value_name = "URL", requires = "queries", conflicts_with_all = ["rows", "query_rows", "dim", "shape"])]
    bank: Option<String>,
    /// Search with the vectors of this feature table
    #[arg(long, value_name = "URL", requires = "bank")]
    queries: Option<String>,
    /// Neighbours per query
    #[arg(long, value_name = "K", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    k: u32,
    /// Search threads; 0 for one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Number of searches, each timed
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Write the random tables to bank.arrow and queries.arrow in this folder
    #[arg(long, value_name = "URL", conflicts_with = "bank")]
    save: Option<String>,
    /// Write neighbour ids and similarities to this Parquet file
    #[arg(long, value_name = "URL")]
    neighbours: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    rows: usize,
    queries: usize,
    dim: usize,
    k: usize,
    threads: usize,
    /// Place of the bank: `memory` or `file`.
    bank: &'static str,
    /// Wall time of each search.
    search_seconds: Vec<f64>,
    /// Processor time of each search over all threads.
    cpu_seconds: Vec<f64>,
    /// Queries per second of the fastest search.
    queries_per_second: f64,
    /// Peak memory of the process; `None` on systems without such accounting.
    peak_bytes: Option<u64>,
}

pub(super) fn run(global: &GlobalArgs, args: &BenchKnnArgs) -> anyhow::Result<()> {
    match (&args.bank, &args.queries) {
        (Some(bank), Some(queries)) => {
            let bank = StoredTable::open(&global.location(bank)?)?;
            time(global, args, &bank, &FeatureTable::read(&global.location(queries)?)?, "file")
        }
        _ => {
            let (rows, queries) = (args.rows as usize, args.query_rows as usize);
            let (bank, queries) = draw_tables(args.shape, rows, queries, args.dim as usize, args.seed);
            if let Some(folder) = &args.save {
                let folder = global.location(folder)?;
                bank.write(&folder.join("bank.arrow"))?;
                queries.write(&folder.join("queries.arrow"))?;
                say(&format!("{folder}: bank.arrow and queries.arrow"));
            }
            time(global, args, &bank, &queries, "memory")
        }
    }
}

fn time(
    global: &GlobalArgs,
    args: &BenchKnnArgs,
    bank: &dyn Table,
    queries: &FeatureTable,
    place: &'static str,
) -> anyhow::Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads).build()?;
    let (mut search_seconds, mut cpu_seconds) = (Vec::new(), Vec::new());
    for round in 0..args.repeat {
        let (started, cpu) = (Instant::now(), time_of(ClockId::ProcessCPUTime));
        let found = pool.install(|| search(bank, queries, args.k as usize, false))?;
        search_seconds.push(started.elapsed().as_secs_f64());
        cpu_seconds.push((time_of(ClockId::ProcessCPUTime) - cpu).as_secs_f64());
        if let (0, Some(location)) = (round, &args.neighbours) {
            write_neighbours(&global.location(location)?, bank, queries, &found, &Default::default())?;
        }
    }
    let quickest = search_seconds.iter().copied().fold(f64::INFINITY, f64::min);
    write_json(&Report {
        rows: bank.rows(),
        queries: queries.len(),
        dim: queries.meta.dim,
        k: args.k as usize,
        threads: pool.current_num_threads(),
        bank: place,
        queries_per_second: queries.len() as f64 / quickest,
        peak_bytes: peak_memory(),
        search_seconds,
        cpu_seconds,
    })
}
