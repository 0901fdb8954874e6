//! What is wrong with a store, by its errors, and whether it still answers.

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use object_store::Error;
use object_store::client::HttpError;
use object_store::path::Error as PathError;

use super::redacted::one_line;

/// A fault that no retry cures: of the settings, or of what the store holds.
pub(crate) enum Fault {
    /// What to set.
    Setting(&'static str),
    NoBucket,
    NoCredentials,
    Denied,
    /// Credentials that were valid for a time.
    Expired,
    /// A key without a name here, and why.
    Key(String),
}

impl Fault {
    /// The fault behind an error of a store.
    ///
    /// # Source
    /// The error codes of S3, of Azure Blob Storage and of Cloud Storage; the texts of object_store and reqwest.
    pub(crate) fn of(error: &Error) -> Option<Self> {
        if let Error::InvalidPath { source } = error {
            return Some(Self::Key(unsupported_key(source)));
        }
        let text = one_line(error);
        let says = |marks: &[&str]| marks.iter().any(|mark| text.contains(mark));
        if says(&["URL scheme is not allowed"]) {
            return Some(Self::Setting(
                "the endpoint is an http URL; set AWS_ALLOW_HTTP=true, AZURE_ALLOW_HTTP=true or \
                 GOOGLE_ALLOW_HTTP=true, or use an https URL",
            ));
        }
        let bucket = [
            "NoSuchBucket",
            "InvalidBucketName",
            "The specified bucket does not exist",
            "ContainerNotFound",
            "InvalidResourceName",
            "incorrectly configured region",
            "AuthorizationHeaderMalformed",
            "PermanentRedirect",
        ];
        if says(&bucket) {
            return Some(Self::NoBucket);
        }
        if says(&["169.254.169.254", "169.254.170.2", "metadata.google.internal"]) {
            return Some(Self::NoCredentials);
        }
        if says(&["ExpiredToken", "TokenRefreshRequired", "RequestTimeTooSkewed"]) {
            return Some(Self::Expired);
        }
        let denied = matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. });
        (denied || says(&["InvalidToken", "InvalidAccessKeyId"])).then_some(Self::Denied)
    }

    /// Whether other credentials may help.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Denied | Self::Expired)
    }
}

/// Why a key of a store has no name here, with control characters escaped.
fn unsupported_key(error: &PathError) -> String {
    let (path, reason) = match error {
        PathError::EmptySegment { path } => (path, "empty segment (`//`)"),
        PathError::BadSegment { path, .. } => {
            let dots = path.split('/').any(|part| part == "." || part == "..");
            (path, if dots { "segment `.` or `..`" } else { "control character" })
        }
        other => return other.to_string(),
    };
    format!("unsupported key `{}`: {reason}", path.escape_debug())
}

/// Whether the request or its answer was lost on the way, as opposed to being refused.
pub(super) fn is_lost(error: &Error) -> bool {
    let error: Option<&(dyn StdError + 'static)> = matches!(error, Error::Generic { .. }).then_some(error);
    // A request that cannot be built, as with http:// where it is not allowed, was not lost.
    std::iter::successors(error, |&error| error.source())
        .find(|error| error.is::<HttpError>())
        .is_some_and(|error| !error.to_string().contains("builder error"))
}

/// Whether the store is not at work: the request was lost, or each answer was 5xx or 429 until the crate gave up.
pub(super) fn is_outage(error: &Error) -> bool {
    // The crate hides the status. 501 says that the store lacks the operation.
    let says = |text: &str, status: &str| text.contains(&format!("non-2xx status code: {status}"));
    let is_refused = |text: &str| (says(text, "5") && !says(text, "501")) || says(text, "429");
    is_lost(error) || (matches!(error, Error::Generic { .. }) && is_refused(&one_line(error)))
}

/// Whether an answer 400 refused a request, as S3 refuses a token that has expired.
pub(super) fn is_bare_refusal(error: &Error) -> bool {
    matches!(error, Error::Generic { .. }) && error.to_string().contains("400 Bad Request")
}

/// The errors of the operating system among the causes of an error.
pub(super) fn io_causes(error: &Error) -> impl Iterator<Item = &io::Error> {
    let causes = std::iter::successors(Some(error as &(dyn StdError + 'static)), |&error| error.source());
    causes.filter_map(|cause| cause.downcast_ref::<io::Error>())
}

/// Whether an error of the file system means that a path continues below a file.
pub(crate) fn is_below_a_file(error: &Error) -> bool {
    io_causes(error).any(|io| io.kind() == io::ErrorKind::NotADirectory)
}

/// A store that was given up may be back after this time, for a job that continued without it.
const GONE: Duration = Duration::from_secs(60);

/// The record of one store, shared by its decorators.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// The operations that succeeded.
    worked: Mutex<BTreeSet<&'static str>>,
    /// When an operation was given up; `None` once the store has answered again.
    given_up: Mutex<Option<Instant>>,
}

impl Health {
    /// Records that an operation succeeded.
    pub(super) fn note_done(&self, operation: &'static str) {
        self.worked.lock().unwrap_or_else(PoisonError::into_inner).insert(operation);
    }

    /// Whether an operation, or any for `None`, has succeeded.
    pub(crate) fn has_worked(&self, operation: Option<&'static str>) -> bool {
        let worked = self.worked.lock().unwrap_or_else(PoisonError::into_inner);
        operation.map_or(!worked.is_empty(), |operation| worked.contains(operation))
    }

    /// Records that the store answers, or that it was given up.
    pub(super) fn note_answers(&self, answers: bool) {
        let given_up = (!answers).then(Instant::now);
        *self.given_up.lock().unwrap_or_else(PoisonError::into_inner) = given_up;
    }

    /// Whether the store was given up a short time ago.
    pub(crate) fn is_gone(&self) -> bool {
        let given_up = *self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        given_up.is_some_and(|at| at.elapsed() < GONE)
    }
}
