//! Creating a file on a file system without hard links, such as SMB's and many of FUSE.
//!
//! The object_store crate stages a file and links it to its name, which fails where a file of that name exists.
//! Without links the staged file is renamed in a way that fails likewise; where the file system does not know that
//! either, the name is claimed by an empty file, over which the staged one is renamed. A kill between these two steps
//! leaves the empty file, which is reported as damaged.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::storage::store::retried::random_bits;

/// How often a folder that vanishes is made again.
const TRIES: usize = 10;

/// Renames a file, unless one of the new name exists.
type RenameNew = fn(&Path, &Path) -> io::Result<()>;

/// Whether an error says that the file system has no hard links.
pub(super) fn has_no_links(error: &object_store::Error) -> bool {
    std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source())
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(is_unsupported)
}

/// Whether an error says that the file system does not know an operation.
fn is_unsupported(error: &io::Error) -> bool {
    let unsupported =
        [Errno::PERM, Errno::NOTSUP, Errno::OPNOTSUPP, Errno::NOSYS, Errno::INVAL, Errno::MLINK];
    error.raw_os_error().is_some_and(|code| unsupported.iter().any(|known| known.raw_os_error() == code))
}

/// Creates a file with its contents, durable when this returns.
///
/// # Errors
/// Of kind [`ErrorKind::AlreadyExists`] where a file of this name exists.
pub(super) fn create(path: &Path, contents: &[u8]) -> io::Result<()> {
    create_by(path, contents, |from, to| Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?))
}

fn create_by(path: &Path, contents: &[u8], rename_new: RenameNew) -> io::Result<()> {
    // As the object_store crate names what it stages, so that both are tidied up alike.
    let mut staged = path.as_os_str().to_owned();
    staged.push(format!("#{}", random_bits()));
    let staged = PathBuf::from(staged);
    let mut tries = 0;
    let published = loop {
        let folder = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let staging = folder.and_then(|()| stage(&staged, contents));
        match staging.and_then(|()| publish(&staged, path, rename_new)) {
            // A job that ended removed the folder, with what was staged there, just now.
            Err(error) if error.kind() == ErrorKind::NotFound && tries < TRIES => tries += 1,
            done => break done,
        }
    };
    if published.is_err() {
        // The first error counts; what is left is removed when the job goes on.
        let _ = std::fs::remove_file(&staged);
    }
    published
}

fn stage(staged: &Path, contents: &[u8]) -> io::Result<()> {
    let mut file = create_new(staged)?;
    file.write_all(contents)?;
    file.sync_all()
}

fn publish(staged: &Path, path: &Path, rename_new: RenameNew) -> io::Result<()> {
    match rename_new(staged, path) {
        Err(error) if is_unsupported(&error) => {
            drop(create_new(path)?);
            std::fs::rename(staged, path).inspect_err(|_| {
                // The claim alone is worth nothing.
                let _ = std::fs::remove_file(path);
            })?;
        }
        renamed => renamed?,
    }
    match path.parent().map(|folder| File::open(folder).and_then(|folder| folder.sync_all())) {
        // Some file systems sync no folders.
        Some(Err(error)) if !is_unsupported(&error) && error.kind() != ErrorKind::PermissionDenied => {
            Err(error)
        }
        _ => Ok(()),
    }
}

#[expect(clippy::disallowed_methods, reason = "a file is staged here, and then published")]
fn create_new(path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn not_known(_: &Path, _: &Path) -> io::Result<()> {
        Err(Errno::INVAL.into())
    }

    #[test]
    fn of_many_creators_one_wins_and_its_file_is_whole() {
        let dir = tempfile::tempdir().expect("a folder");
        let known: RenameNew = |from, to| Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?);
        for (name, rename_new) in [("known", known), ("unknown", not_known as RenameNew)] {
            for round in 0..20 {
                let path = dir.path().join(format!("{name}-{round}/file"));
                let create = |number: u8| create_by(&path, &vec![number; 10_000], rename_new);
                let results: Vec<_> = std::thread::scope(|scope| {
                    let threads: Vec<_> = (1..8).map(|number| scope.spawn(move || create(number))).collect();
                    threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
                });
                let won = results.iter().position(Result::is_ok).expect("one wins") as u8 + 1;
                assert_eq!(std::fs::read(&path).expect("there"), vec![won; 10_000]);
                let lost = |result: &&io::Result<()>| {
                    result.as_ref().is_err_and(|error| error.kind() == ErrorKind::AlreadyExists)
                };
                assert_eq!(results.iter().filter(lost).count(), 6, "{results:?}");
                assert_eq!(std::fs::read_dir(path.parent().expect("a folder")).expect("listed").count(), 1);
            }
        }
    }

    #[test]
    fn a_file_system_without_links_is_told_from_a_full_one() {
        let error = |errno: Errno| object_store::Error::Generic {
            store: "test",
            source: Box::new(io::Error::from(errno)),
        };
        assert!(
            [Errno::PERM, Errno::OPNOTSUPP, Errno::NOSYS]
                .into_iter()
                .all(|errno| has_no_links(&error(errno)))
        );
        assert!(
            [Errno::NOSPC, Errno::ACCESS, Errno::ROFS].into_iter().all(|errno| !has_no_links(&error(errno)))
        );
    }
}
