//! What can be wrong with a dataset.

use parquet::errors::ParquetError;

use crate::failure::Failure;
use crate::storage::StorageError;

/// A dataset cannot be used or written.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The folder has no manifest.
    #[error("{dataset}: no dataset is there (it has no manifest.json); `instdisc ingest` makes one")]
    NotThere {
        /// The folder.
        dataset: String,
    },
    /// The manifest does not say what it should.
    #[error("{file}: its contents are not understood: {reason}")]
    Manifest {
        /// The manifest.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// The dataset has no such split.
    #[error("{dataset}: there is no split `{split}`; there are {}", quoted(known))]
    NoSplit {
        /// The folder.
        dataset: String,
        /// The split asked for.
        split: String,
        /// The splits that it has.
        known: Vec<String>,
    },
    /// No split is there to evaluate on.
    #[error(
        "{dataset}: there is no split to evaluate on ({}), there are {}; `knn --split {} --leave-one-out` \
         compares the images of a split with each other, and `ingest --hold-out test=10%` sets a share of them apart",
        super::EVALUATION_SPLITS.join(", "), quoted(known), known.first().map_or("NAME", String::as_str)
    )]
    NoEvaluationSplit {
        /// The folder.
        dataset: String,
        /// The splits that it has.
        known: Vec<String>,
    },
    /// A shard's file is missing, or of another size or digest than the manifest says.
    #[error("{shard}: damaged: {reason}")]
    Damaged {
        /// The shard.
        shard: String,
        /// What differs.
        reason: String,
    },
    /// A row group cannot be read.
    #[error("{shard} row group {row_group}: {reason}")]
    RowGroup {
        /// The shard.
        shard: String,
        /// The row group, from 0.
        row_group: usize,
        /// What is wrong.
        reason: String,
    },
    /// A shard cannot be written.
    #[error("{shard}: cannot be written")]
    Write {
        /// The shard.
        shard: String,
        /// The cause.
        #[source]
        source: ParquetError,
    },
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

impl DatasetError {
    /// The kind of failure, for the exit code.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Storage(error) => error.failure(),
            Self::Write { source, .. } => failure_of_write(source),
            Self::NoSplit { .. } | Self::NoEvaluationSplit { .. } => Failure::Config,
            _ => Failure::Data,
        }
    }
}

/// The store's kind of failure, where an upload failed below the Parquet writer.
fn failure_of_write(error: &ParquetError) -> Failure {
    let ParquetError::External(cause) = error else { return Failure::Io };
    let io = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    io.and_then(|cause| cause.downcast_ref::<StorageError>()).map_or(Failure::Io, StorageError::failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_fails_while_a_shard_is_written_is_no_failure_of_this_machine() {
        let of = |source: std::io::Error| {
            DatasetError::Write { shard: "train/shard-00000.parquet".into(), source: source.into() }.failure()
        };
        let failed = |local| {
            let source = "503".into();
            StorageError::Failed { operation: "write", location: "x".into(), local, source }
        };
        assert_eq!(of(std::io::Error::other(failed(false))), Failure::Unavailable);
        assert_eq!(of(std::io::Error::other(failed(true))), Failure::Io);
        assert_eq!(of(std::io::Error::other("no space")), Failure::Io);
        let general = ParquetError::General("too long".into());
        let error = DatasetError::Write { shard: "x".into(), source: general };
        assert_eq!(error.failure(), Failure::Io);
    }
}
