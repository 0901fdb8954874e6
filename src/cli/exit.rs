//! Exit codes and texts of errors.

use crate::checkpoint::CheckpointError;
use crate::commands::CommandError;
use crate::dataset::DatasetError;
use crate::failure::{Failure, chain};
use crate::feature_table::TableError;
use crate::run_config::ConfigError;
use crate::storage::StorageError;

/// The program is not installed correctly.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct WrongConfig(pub(super) String);

/// Returns a usage error with this reason.
pub(super) fn usage(reason: impl Into<String>) -> CommandError {
    CommandError::Usage(reason.into())
}

/// Returns the kind of failure of an error: that of the outermost error of this program in its chain.
pub(super) fn failure(error: &anyhow::Error) -> Failure {
    error.chain().find_map(known).unwrap_or(Failure::Other)
}

/// Formats the error and its causes on one line, without causes that earlier text repeats. A syntax error
/// also shows the place in the file, on further lines.
pub(super) fn text(error: &anyhow::Error) -> String {
    let line = chain(error.as_ref());
    let shows_a_place = |cause: &(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref(), Some(ConfigError::Syntax { .. }))
    };
    if error.chain().any(shows_a_place) { line } else { line.replace('\n', " ") }
}

/// Returns whether the reader of our output has gone, which is not an error.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

fn known(cause: &(dyn std::error::Error + 'static)) -> Option<Failure> {
    macro_rules! first_of {
        ($($error:ty),* $(,)?) => {
            $(if let Some(error) = cause.downcast_ref::<$error>() { return Some(error.failure()); })*
        };
    }
    first_of!(CommandError, StorageError, DatasetError, TableError, CheckpointError);
    first_of!(crate::loader::LoaderError, crate::ingest::IngestError, crate::ingest::SynthError);
    first_of!(crate::eval::EvalError);
    #[cfg(feature = "torch")]
    first_of!(crate::train::TrainError, crate::eval::EmbedError);
    #[cfg(feature = "torch")]
    first_of!(crate::distributed::DistributedError);
    if cause.is::<ConfigError>() || cause.is::<WrongConfig>() {
        return Some(Failure::Config);
    }
    if cause.is::<crate::units::OutOfRange>() {
        return Some(Failure::Usage);
    }
    cause.is::<std::io::Error>().then_some(Failure::Io)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_cause_that_was_said_is_not_said_again() {
        let error = anyhow::anyhow!("the disk is full").context("write: the disk is full").context("a");
        assert_eq!(text(&error), "a: write: the disk is full");
    }

    #[test]
    fn a_place_in_a_file_keeps_its_lines_and_all_else_is_one_line() {
        let reason = "line 2\n2 | lr = \n  |      ^";
        let error = anyhow::Error::from(ConfigError::Syntax { file: "a.toml".into(), reason: reason.into() });
        assert_eq!(text(&error), format!("a.toml: {reason}"));
        assert_eq!(text(&anyhow::anyhow!("two\nlines")), "two lines");
    }

    #[test]
    fn context_does_not_hide_the_kind_of_failure() {
        let error = StorageError::NotFound { location: "x".into(), local: true };
        let wrapped = Err::<(), _>(error).context("reading the dataset").expect_err("an error");
        assert_eq!(failure(&wrapped), Failure::Data);
        assert_eq!(failure(&anyhow::anyhow!("anything")), Failure::Other);
    }
}
