//! Whether two locations hold each other.

use std::path::{Path, PathBuf};

use crate::ingest::{IngestError, IngestOptions};
use crate::storage::Location;

/// Checks that no source holds the destination or is within it: an ingest would read what it writes, or write among
/// files that are not its own.
///
/// # Errors
/// [`IngestError::Overlap`].
pub(in crate::ingest) fn check_overlap(options: &IngestOptions) -> Result<(), IngestError> {
    match options.sources.iter().find(|source| overlap(source, &options.dest)) {
        None => Ok(()),
        Some(source) => {
            Err(IngestError::Overlap { source_location: source.to_string(), dest: options.dest.to_string() })
        }
    }
}

/// Whether the locations are the same or one is within the other; links of this machine are followed.
pub(in crate::ingest) fn overlap(one: &Location, other: &Location) -> bool {
    match (one.local_path(), other.local_path()) {
        (Some(one), Some(other)) => {
            let (one, other) = (canonical(one), canonical(other));
            one.starts_with(&other) || other.starts_with(&one)
        }
        (None, None) => {
            // Scheme, bucket, and the parts of the key.
            let (one, other) = (one.to_string(), other.to_string());
            let parts = |text: &str| {
                text.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect::<Vec<_>>()
            };
            let (one, other) = (parts(&one), parts(&other));
            one.starts_with(&other) || other.starts_with(&one)
        }
        _ => false,
    }
}

/// The path without links, as far as it exists.
fn canonical(path: &Path) -> PathBuf {
    let above = path.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)));
    match above {
        Some((above, canonical)) => match path.strip_prefix(above) {
            Ok(rest) if rest.as_os_str().is_empty() => canonical,
            Ok(rest) => canonical.join(rest),
            Err(_) => path.to_owned(),
        },
        None => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::StorageOptions;

    #[test]
    fn locations_overlap_where_one_is_within_the_other() {
        let overlap = |one: &str, other: &str| {
            let location = |text| Location::parse(text, &StorageOptions::default()).expect("a location");
            assert_eq!(overlap(&location(one), &location(other)), overlap(&location(other), &location(one)));
            overlap(&location(one), &location(other))
        };
        assert!(overlap("/nowhere/a", "/nowhere/a"));
        assert!(overlap("/nowhere/a", "file:///nowhere/a/b/c"));
        assert!(overlap("/nowhere/a/../b", "/nowhere/b/"));
        assert!(!overlap("/nowhere/a", "/nowhere/ab"));
        assert!(overlap("s3://bucket/a", "s3://bucket/a/"));
        assert!(overlap("s3://bucket", "s3://bucket/a/b"));
        assert!(!overlap("s3://bucket/a", "s3://bucket/ab"));
        assert!(!overlap("s3://bucket/a", "s3://other/a"));
        assert!(!overlap("s3://bucket/a", "gs://bucket/a"));
        assert!(!overlap("s3://bucket/a", "/bucket/a"));
    }

    #[test]
    #[cfg(unix)]
    fn links_are_followed_also_where_the_end_of_the_path_does_not_exist() {
        let dir = tempfile::tempdir().expect("a folder");
        let source = dir.path().join("source");
        std::fs::create_dir(&source).expect("a folder");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&source, &link).expect("a link");
        let location = |path: &Path| Location::from_path(path).expect("a location");
        assert!(overlap(&location(&source), &location(&link.join("new/dataset"))));
        assert!(!overlap(&location(&source), &location(&dir.path().join("new"))));
    }
}
