//! Ranks as threads of one process, each with connections of its own.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tch::{Device, Kind, Tensor};

use super::*;
use crate::failure::Failure;

mod collectives;
mod joining;
mod lost;
mod reducer;

const LONG: Duration = Duration::from_secs(60);

/// What each rank's thread gives, by rank.
fn each_of<T: Send>(world: usize, timeout: Duration, body: impl Fn(ProcessGroup) -> T + Sync) -> Vec<T> {
    let listener = listener();
    let run = |rank: usize| {
        let group = ProcessGroup::join(&Rendezvous::at(&listener, rank, world), Device::Cpu, timeout);
        body(group.expect("all come"))
    };
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..world).map(|rank| scope.spawn(move || run(rank))).collect();
        ranks.into_iter().map(|rank| rank.join().expect("no panic")).collect()
    })
}

/// Returns when all ranks have called it.
fn barrier(group: &ProcessGroup) -> Result<(), DistributedError> {
    group.all_reduce(&Tensor::zeros([1], (Kind::Int, Device::Cpu)), Reduce::Sum)
}

fn listener() -> Arc<TcpListener> {
    Arc::new(TcpListener::bind("127.0.0.1:0").expect("a free port"))
}

/// A port that is free now, below those that the system gives away.
fn free_port() -> u16 {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id() as u16 % 8000;
    loop {
        let port = 15000 + (first + TRIED.fetch_add(1, Ordering::Relaxed)) % 16000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double).contiguous().view([-1])).expect("numbers")
}

/// Six small numbers that differ between ranks and are exact in every kind.
fn sample(rank: usize, kind: Kind) -> Tensor {
    let values: Vec<i64> = (0..6).map(|i| (i * (rank as i64 + 1) + 3 * rank as i64) % 11).collect();
    Tensor::from_slice(&values).to_kind(kind)
}
