//! An ImageFolder, here or in an object store.

use std::collections::BTreeMap;
use std::path::Path;

use super::archive::{Extent, failed};
use super::collect::{Collector, Place};
use super::layout::{self, Found};
use crate::ingest::IngestError;
use crate::storage::{Location, StorageError};

/// What lies below a folder.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Path and size in bytes of each file.
    pub(super) files: Vec<(String, u64)>,
    /// What is no file that can be named, with the reason.
    pub(super) others: Vec<(String, &'static str)>,
}

/// The files below a folder, sorted by path.
pub(super) fn list(root: &Location) -> Result<Listing, IngestError> {
    match root.local_path() {
        Some(path) => local_files(root, path),
        None => {
            let files = root.list()?.into_iter().map(|entry| (entry.name, entry.bytes)).collect();
            Ok(Listing { files, others: Vec::new() })
        }
    }
}

/// Adds the folder's pictures.
pub(super) fn collect(
    collector: &mut Collector<'_>,
    root: &Location,
    listing: Listing,
) -> Result<(), IngestError> {
    for (path, reason) in &listing.others {
        collector.pass_over(path, *reason);
    }
    let found = |(path, bytes)| Found {
        path,
        place: Place { container: 0, extent: Extent::Range { offset: 0 }, bytes },
    };
    let found: Vec<Found> = listing.files.into_iter().map(found).collect();
    let mut parts: BTreeMap<String, u32> = BTreeMap::new();
    layout::collect(collector, &found, |collector, split| {
        let part = parts.entry(split.to_owned());
        Some(*part.or_insert_with(|| collector.containers.add_folder(root.join(split))))
    })
}

/// The files below a folder of this machine, links followed as torchvision does.
fn local_files(location: &Location, root: &Path) -> Result<Listing, IngestError> {
    let mut listing = Listing::default();
    if !root.exists() {
        return Err(StorageError::NotFound { location: location.to_string(), local: true }.into());
    }
    let relative = |path: &Path| path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned();
    for entry in walkdir::WalkDir::new(root).follow_links(true) {
        let entry = match entry {
            Ok(entry) => entry,
            // torchvision's walk does not stop at these either.
            Err(error) if error.loop_ancestor().is_some() || is_broken_link(&error) => {
                let path = error.path().map(relative).unwrap_or_default();
                listing.others.push((path, "a link that leads nowhere or in a circle"));
                continue;
            }
            Err(error) => return Err(failed("list", root.display().to_string(), error).into()),
        };
        if entry.file_type().is_dir() {
            continue;
        }
        let path = relative(entry.path());
        if !entry.file_type().is_file() {
            listing.others.push((path, "not a file"));
        } else if entry.path().to_str().is_none() {
            listing.others.push((path, "its name is not UTF-8"));
        } else {
            let looked_up = entry.metadata();
            let bytes = looked_up
                .map_err(|error| failed("look up", entry.path().display().to_string(), error))?
                .len();
            listing.files.push((path, bytes));
        }
    }
    listing.files.sort();
    Ok(listing)
}

fn is_broken_link(error: &walkdir::Error) -> bool {
    error.path().is_some_and(Path::is_symlink)
        && error.io_error().is_some_and(|io| io.kind() == std::io::ErrorKind::NotFound)
}
