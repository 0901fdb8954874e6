//! `instdisc knn --run` in the build without libtorch.

use super::{GlobalArgs, KnnArgs};
use crate::eval::EvalError;
use crate::storage::Location;

pub(super) fn judge_run(_global: &GlobalArgs, args: &KnnArgs, _run: &Location) -> anyhow::Result<()> {
    let flag = if args.watch { "--watch" } else { "--run" };
    let reason = format!("{flag} needs a build with libtorch; use --bank and --queries");
    Err(EvalError::Options { reason }.into())
}
