//! A folder of images, on this machine or in an object store.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rayon::prelude::*;

use super::super::archive::{Extent, failed};
use super::super::names::is_image;
use super::super::records::{Fault, ImageBytes, Records};
use crate::ingest::IngestError;
use crate::storage::{Location, Stamp, StorageError};

/// Files below a folder.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Files with their paths, sorted by path.
    pub files: Vec<(String, ListedFile)>,
    /// Entries that cannot be taken, with the reason.
    pub faults: Vec<(String, Fault)>,
}

/// Size of a file in bytes, and a stamp that reveals changes.
pub(super) type ListedFile = (u64, Option<Stamp>);

/// Lists a folder.
///
/// # Errors
/// If the folder does not exist, or the store fails.
pub(crate) fn list(root: &Location) -> Result<Listing, IngestError> {
    let Some(path) = root.local_path() else {
        let files = root.list()?.into_iter().map(|entry| (entry.name, (entry.bytes, entry.stamp))).collect();
        return Ok(Listing { files, faults: Vec::new() });
    };
    let chain = vec![identity(path).map_err(|error| failed("list", root.to_string(), error))?];
    let mut listing = list_local(path, "", &chain)?;
    listing.files.sort_unstable();
    listing.faults.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(listing)
}

/// Returns device and inode, which identify a folder of this machine.
fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    std::fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// An entry of a folder.
enum Found {
    File(ListedFile),
    /// A folder that is not above itself, by its [`identity`].
    Folder((u64, u64)),
    Fault(Fault),
}

/// Lists a folder of this machine, its subfolders concurrently; links are followed, as in torchvision. `chain` has the
/// folders above, to detect cycles of links.
fn list_local(folder: &Path, below: &str, chain: &[(u64, u64)]) -> Result<Listing, StorageError> {
    let fail = |error| failed("list", folder.display().to_string(), error);
    let entries: Vec<std::fs::DirEntry> =
        std::fs::read_dir(folder).and_then(Iterator::collect).map_err(fail)?;
    let look = |entry: &std::fs::DirEntry| -> Result<Found, StorageError> {
        let path = entry.path();
        // One look-up for each file, which follows links.
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if path.is_symlink() && leads_nowhere(&error) => {
                return Ok(Found::Fault(Fault::BrokenLink));
            }
            Err(error) => return Err(failed("look up", path.display().to_string(), error)),
        };
        let id = (metadata.dev(), metadata.ino());
        Ok(match () {
            () if metadata.is_dir() && chain.contains(&id) => Found::Fault(Fault::LinkAbove),
            () if metadata.is_dir() => Found::Folder(id),
            () if entry.file_name().to_str().is_none() => Found::Fault(Fault::NotUtf8),
            () if metadata.is_file() => Found::File((metadata.len(), Stamp::of_time(&metadata))),
            () => Found::Fault(Fault::NotAFile),
        })
    };
    let found: Vec<Found> = entries.par_iter().with_min_len(64).map(look).collect::<Result<_, _>>()?;
    let mut listing = Listing::default();
    let mut folders = Vec::new();
    for (entry, found) in entries.iter().zip(found) {
        let shown = format!("{below}{}", entry.file_name().to_string_lossy());
        match found {
            Found::File(listed) => listing.files.push((shown, listed)),
            Found::Folder(id) => folders.push((entry, shown + "/", id)),
            Found::Fault(fault) => listing.faults.push((shown, fault)),
        }
    }
    let inside = |(entry, below, id): &(&std::fs::DirEntry, String, (u64, u64))| {
        let chain: Vec<(u64, u64)> = chain.iter().chain([id]).copied().collect();
        let mut inside = list_local(&entry.path(), below, &chain)?;
        if entry.file_name().to_str().is_none() {
            // The folder's name is not UTF-8, so no file in it has a path.
            let files = std::mem::take(&mut inside.files);
            inside.faults.extend(files.into_iter().map(|(path, _)| (path, Fault::NotUtf8)));
        }
        Ok(inside)
    };
    let inside: Vec<Listing> = folders.par_iter().map(inside).collect::<Result<_, _>>()?;
    for Listing { files, faults } in inside {
        listing.files.extend(files);
        listing.faults.extend(faults);
    }
    Ok(listing)
}

/// Returns whether a link itself cannot be followed, rather than the file system failing.
fn leads_nowhere(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    let is_circle = error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
    is_circle || matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Adds the images of the folder.
pub(crate) fn collect(records: &mut Records<'_>, root: &Location, listing: Listing) {
    let origin = records.add_origin("");
    let container = records.containers.add_folder(root.clone());
    records.folder = Some((container, root.clone()));
    for (path, fault) in listing.faults {
        records.push_fault(origin, &path, fault);
    }
    for (path, (bytes, stamp)) in listing.files {
        if is_image(&path) {
            records.stamps.add(&path, stamp);
        }
        let place = ImageBytes { container, extent: Extent::Range { offset: 0 }, bytes };
        records.push_file(origin, path, None, place);
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests make foreign files by hand")]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn links_are_followed_once_and_broken_ones_are_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let root = dir.path();
        std::fs::create_dir(root.join("a")).expect("a folder");
        std::fs::write(root.join("a/1.jpg"), b"x").expect("a file");
        let link = |target: &Path, name: &str| {
            std::os::unix::fs::symlink(target, root.join(name)).expect("a link");
        };
        link(root, "a/up");
        link(Path::new("1.jpg"), "a/2.jpg");
        link(Path::new("nowhere"), "a/3.jpg");
        link(&root.join("a"), "b");
        let nameless = root.join(std::ffi::OsStr::from_bytes(b"\xC4pfel"));
        std::fs::create_dir(&nameless).expect("a folder");
        std::fs::write(nameless.join("1.jpg"), b"x").expect("a file");
        let listing = list(&Location::from_path(root).expect("a location")).expect("listed");
        let files: Vec<&str> = listing.files.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(files, ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"]);
        let faults: Vec<(&str, Fault)> =
            listing.faults.iter().map(|(path, fault)| (path.as_str(), *fault)).collect();
        let (broken, above) = (|path| (path, Fault::BrokenLink), |path| (path, Fault::LinkAbove));
        let nameless = ("\u{FFFD}pfel/1.jpg", Fault::NotUtf8);
        assert_eq!(faults, [broken("a/3.jpg"), above("a/up"), broken("b/3.jpg"), above("b/up"), nameless]);
    }
}
