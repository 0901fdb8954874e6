//! What `instdisc knn` has in the build without libtorch: one process, and no encoder.

use rayon::ThreadPool;

use super::{GlobalArgs, KnnArgs, Pair};
use crate::eval::{EvalError, KnnOptions, KnnReport, Neighbours, evaluate_with_neighbours};
use crate::storage::Location;

/// The one process.
pub(super) struct Peers;

impl Peers {
    pub(super) fn join(_args: &KnnArgs) -> anyhow::Result<Self> {
        Ok(Self)
    }

    pub(super) fn is_first(&self) -> bool {
        true
    }

    pub(super) fn leave(&self) {}

    pub(super) fn evaluate(
        &self,
        pair: &Pair,
        options: &KnnOptions,
        pool: &ThreadPool,
    ) -> Result<(KnnReport, Neighbours), EvalError> {
        pool.install(|| evaluate_with_neighbours(&*pair.bank, &pair.queries, options))
    }
}

pub(super) fn judge_run(
    _global: &GlobalArgs,
    args: &KnnArgs,
    _run: &Location,
    _peers: &Peers,
) -> anyhow::Result<()> {
    let flag = if args.watch { "--watch" } else { "--run" };
    let reason = format!("{flag} needs a build with libtorch; use --bank and --queries");
    Err(EvalError::Options { reason }.into())
}
