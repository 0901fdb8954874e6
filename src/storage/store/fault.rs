//! Faults that no retry cures, recognised by what a store answers.

use object_store::Error;
use object_store::path::Error as PathError;

use super::secrets::one_line;

/// A fault of the settings, or of what the store holds.
pub(in crate::storage) enum Fault {
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
    pub(in crate::storage) fn of(error: &Error) -> Option<Self> {
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

/// Whether an error of the file system means that a path continues below a file.
pub(in crate::storage) fn is_below_a_file(error: &Error) -> bool {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    causes
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|io| io.kind() == std::io::ErrorKind::NotADirectory)
}
