//! `instdisc bench scaling`.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::cli::progress::say;
use crate::cli::write_json;

/// Measure training steps with 1, 2 and more processes of this machine, at the same global batch.
///
/// For each number N of processes: N train together, and then N train side by side, each alone on an N-th of
/// batch and bank. The difference is the cost of communication.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  instdisc bench scaling --ranks 1,2 --instances 100000 -- --arch resnet18 --image-size 64"
)]
pub(in crate::cli) struct ScalingArgs {
    /// Numbers of processes, separated by commas
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,2")]
    ranks: Vec<usize>,
    /// Rows of the whole bank
    #[arg(long, value_name = "N", default_value_t = 1_281_167)]
    instances: usize,
    /// Images per global batch
    #[arg(long, value_name = "N", default_value_t = 32)]
    batch_size: usize,
    /// Measured steps
    #[arg(long, value_name = "N", default_value_t = 10)]
    steps: usize,
    /// Further options of `instdisc bench step`, after --
    #[arg(last = true, value_name = "OPTIONS")]
    more: Vec<String>,
}

pub(super) fn run(args: &ScalingArgs) -> anyhow::Result<()> {
    let mut measured = Vec::new();
    for &ranks in &args.ranks {
        ensure!(ranks > 0 && args.batch_size >= 2 * ranks, "each process needs two images of a batch");
        say(&format!("{ranks} processes, each alone"));
        let alone = seconds(&slowest(call(args, ranks, 1)?)?)?;
        say(&format!("{ranks} processes together"));
        let together = slowest(call(args, ranks, ranks)?)?;
        let step = seconds(&together)?;
        measured.push(json!({
            "ranks": ranks,
            "step_seconds": step,
            "alone_seconds": alone,
            "communication_share": (1.0 - alone / step).max(0.0),
            "images_per_second": args.batch_size as f64 / step,
            "bank_bytes_per_rank": together["bank_bytes"],
            "gradient_bytes": together["gradient_bytes"],
            "split_seconds": together["split_seconds"],
            "device": together["device"],
        }));
    }
    let first = measured.first().and_then(|first| first["step_seconds"].as_f64());
    for of_ranks in &mut measured {
        let speedup = first.zip(of_ranks["step_seconds"].as_f64()).map(|(first, step)| first / step);
        of_ranks["speedup"] = json!(speedup);
    }
    write_json(&json!({
        "instances": args.instances,
        "batch_size": args.batch_size,
        "steps": args.steps,
        "options": args.more,
        "ranks": measured,
    }))
}

/// Runs processes concurrently, in groups of `world`. Returns the output of the first of each group.
fn call(args: &ScalingArgs, processes: usize, world: usize) -> anyhow::Result<Vec<Value>> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let groups = processes / world;
    let program = std::env::current_exe()?;
    let start = |rank: usize| -> anyhow::Result<Child> {
        let mut command = Command::new(&program);
        command.args(["bench", "step", "--instances", &(args.instances / groups).to_string()]);
        command.args(["--batch-size", &(args.batch_size / groups).to_string()]);
        command.args(["--steps", &args.steps.to_string()]).args(&args.more);
        if world > 1 {
            let master = format!("127.0.0.1:{port}");
            command.args(["--rank", &rank.to_string(), "--world-size", &world.to_string()]);
            command.args(["--master", &master]);
        } else if processes > 1 {
            // Each process uses another device, as ranks do.
            command.env("CUDA_VISIBLE_DEVICES", visible_device(rank));
        }
        command.stdout(Stdio::piped()).spawn().context("a process cannot be started")
    };
    let children = (0..processes).map(start).collect::<anyhow::Result<Vec<_>>>()?;
    let mut printed = Vec::new();
    for child in children {
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("a process failed: {}", output.status);
        }
        if !output.stdout.is_empty() {
            printed.push(serde_json::from_slice(&output.stdout)?);
        }
    }
    Ok(printed)
}

/// Returns the CUDA device of a process, among those visible to this one.
fn visible_device(rank: usize) -> String {
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
    let own = visible.split(',').map(str::trim).filter(|device| !device.is_empty()).nth(rank);
    own.map_or_else(|| rank.to_string(), str::to_owned)
}

/// Returns the slowest of several measurements, which all processes wait for.
fn slowest(measured: Vec<Value>) -> anyhow::Result<Value> {
    let step = |value: &Value| value["step_seconds"].as_f64().unwrap_or(f64::INFINITY);
    let slowest = measured.into_iter().max_by(|a, b| step(a).total_cmp(&step(b)));
    slowest.context("no process printed a measurement")
}

fn seconds(measured: &Value) -> anyhow::Result<f64> {
    measured["step_seconds"].as_f64().context("a measurement has step_seconds")
}
