//! Why a probe cannot be trained.

use crate::checkpoint::CheckpointError;
use crate::dataset::DatasetError;
use crate::eval::{EmbedError, EvalError};
use crate::failure::Failure;
use crate::loader::LoaderError;

/// A probe cannot be trained.
#[derive(Debug, thiserror::Error)]
pub enum LinearError {
    /// Options or tables.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// The encoder.
    #[error(transparent)]
    Embed(#[from] EmbedError),
}

impl LinearError {
    /// The kind of failure, for the exit code.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Eval(error) => error.failure(),
            Self::Embed(error) => error.failure(),
        }
    }
}

macro_rules! from_parts {
    ($($part:ty),*) => {
        $(impl From<$part> for LinearError {
            fn from(error: $part) -> Self {
                Self::Embed(error.into())
            }
        })*
    };
}

from_parts!(CheckpointError, DatasetError, LoaderError);
