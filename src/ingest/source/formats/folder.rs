//! A folder of images, on this machine or in an object store.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::super::archive::{Extent, failed};
use super::super::names::is_image;
use super::super::records::{Evidence, Fault, ImageBytes, Record, Records};
use crate::ingest::IngestError;
use crate::storage::{Entry, Location, Stamp, StorageError};

/// What is below a folder.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Each file by its path, sorted by path.
    pub files: Vec<(String, ListedFile)>,
    /// What cannot be taken, with the reason.
    pub faults: Vec<(String, Fault)>,
}

/// A file of a listing: its size in bytes, and what tells whether it changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ListedFile {
    bytes: u64,
    stamp: Option<Stamp>,
}

/// Lists a folder.
///
/// # Errors
/// If it is not there, or the store fails.
pub(crate) fn list(root: &Location) -> Result<Listing, IngestError> {
    let Some(path) = root.local_path() else {
        let listed = |entry: Entry| (entry.name, ListedFile { bytes: entry.bytes, stamp: entry.stamp });
        let files = root.list()?.into_iter().map(listed).collect();
        return Ok(Listing { files, faults: Vec::new() });
    };
    let chain = vec![identity(path).map_err(|error| failed("list", root.to_string(), error))?];
    let mut listing = list_local(path, "", &chain)?;
    listing.files.sort_unstable();
    listing.faults.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(listing)
}

/// What tells a folder from any other of this machine.
fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Something in a folder.
enum Found {
    File(String, ListedFile),
    Folder(PathBuf, String, (u64, u64)),
    /// A folder whose name is not UTF-8: nothing in it has a path.
    NamelessFolder(PathBuf, String, (u64, u64)),
    Fault(String, Fault),
}

/// Lists a folder of this machine, its subfolders at the same time; links are followed, as torchvision does.
/// `chain` is the folders above, so that a circle of links ends.
fn list_local(folder: &Path, below: &str, chain: &[(u64, u64)]) -> Result<Listing, StorageError> {
    let fail = |error| failed("list", folder.display().to_string(), error);
    let entries: Vec<std::fs::DirEntry> =
        std::fs::read_dir(folder).and_then(Iterator::collect).map_err(fail)?;
    let look = |entry: &std::fs::DirEntry| -> Result<Found, StorageError> {
        use std::os::unix::fs::MetadataExt;
        let (path, name) = (entry.path(), entry.file_name());
        let shown = format!("{below}{}", name.to_string_lossy());
        // One look-up a file: it follows links.
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if path.is_symlink() && leads_nowhere(&error) => {
                return Ok(Found::Fault(shown, Fault::BrokenLink));
            }
            Err(error) => return Err(failed("look up", path.display().to_string(), error)),
        };
        let id = (metadata.dev(), metadata.ino());
        Ok(match () {
            () if metadata.is_dir() && chain.contains(&id) => Found::Fault(shown, Fault::LinkAbove),
            () if metadata.is_dir() && name.to_str().is_none() => {
                Found::NamelessFolder(path, shown + "/", id)
            }
            () if name.to_str().is_none() => Found::Fault(shown, Fault::NotUtf8),
            () if metadata.is_dir() => Found::Folder(path, shown + "/", id),
            () if metadata.is_file() => {
                let listed = ListedFile { bytes: metadata.len(), stamp: Stamp::of_time(&metadata) };
                Found::File(shown, listed)
            }
            () => Found::Fault(shown, Fault::NotAFile),
        })
    };
    let found: Vec<Found> = entries.par_iter().with_min_len(64).map(look).collect::<Result<_, _>>()?;
    let mut listing = Listing::default();
    let mut folders = Vec::new();
    for found in found {
        match found {
            Found::File(path, listed) => listing.files.push((path, listed)),
            Found::Fault(path, fault) => listing.faults.push((path, fault)),
            Found::Folder(path, below, id) => folders.push((path, below, id, true)),
            Found::NamelessFolder(path, below, id) => folders.push((path, below, id, false)),
        }
    }
    let inside = |(path, below, id, has_name): &(PathBuf, String, (u64, u64), bool)| {
        let chain: Vec<(u64, u64)> = chain.iter().chain([id]).copied().collect();
        let mut inside = list_local(path, below, &chain)?;
        if !has_name {
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

/// Whether a link cannot be followed because of what it is, rather than because of the file system.
fn leads_nowhere(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    let is_circle = error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
    is_circle || matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Adds the folder's images.
pub(crate) fn collect(records: &mut Records<'_>, root: &Location, listing: Listing) {
    let origin = records.add_origin("");
    let container = records.containers.add_folder(root.clone());
    records.folder = Some((container, root.clone()));
    for (path, fault) in listing.faults {
        // What a broken link was to be is not known: it may have been a class.
        if is_image(&path) || fault == Fault::BrokenLink {
            push(records, origin, path, ImageBytes::NONE, Some(fault));
        } else {
            records.pass_over(fault.reason(), &path);
        }
    }
    for (path, ListedFile { bytes, stamp }) in listing.files {
        if is_image(&path) {
            records.stamps.add(&path, stamp);
            push(
                records,
                origin,
                path,
                ImageBytes { container, extent: Extent::Range { offset: 0 }, bytes },
                None,
            );
        } else {
            records.pass_over("not an image by its name", &path);
        }
    }
}

fn push(records: &mut Records<'_>, origin: u32, path: String, place: ImageBytes, fault: Option<Fault>) {
    let path = path.into_boxed_str();
    records.push(Record { origin, path, evidence: Evidence::Folders, split: None, place, fault });
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
