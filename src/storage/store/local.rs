//! The file system of this machine, with workarounds for object_store's local store.
//!
//! object_store stages a file and links it to its name, which fails if a file of that name exists. On a file system
//! without hard links, such as SMB and many FUSE ones, [`Local`] renames the staged file without replacing another. If
//! the file system does not support that either, an empty file claims the name, and the staged one is renamed over it.
//! A kill between these two steps leaves the empty file, which is reported as damaged.
//!
//! object_store leaves a staged upload behind if the last step fails, as on a full disk; [`StagedUpload`] removes it.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path as LocalPath, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::io_causes;
use super::retried::random_bits;

/// Number of attempts to create a folder that vanishes.
const TRIES: usize = 10;

/// The local file system; writes are durable.
#[derive(Debug)]
pub(super) struct Local(LocalFileSystem);

impl fmt::Display for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Local {
    pub(super) fn new() -> Self {
        Self(LocalFileSystem::new().with_fsync(true))
    }
}

#[async_trait]
impl ObjectStore for Local {
    async fn put_opts(&self, key: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let creates = options.mode == PutMode::Create;
        match self.0.put_opts(key, payload.clone(), options).await {
            Err(error) if creates && has_no_links(&error) => {
                let path = self.0.path_to_filesystem(key)?;
                blocking(move || create_by(&path, &Bytes::from(payload), rename_new)).await?;
                Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
            }
            put => put,
        }
    }

    async fn put_multipart_opts(
        &self,
        key: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let path = self.0.path_to_filesystem(key)?;
        let upload = blocking(move || StagedUpload::start(path)).await?;
        Ok(Box::new(upload))
    }

    async fn get_opts(&self, key: &Path, options: GetOptions) -> Result<GetResult> {
        self.0.get_opts(key, options).await
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}

/// Runs blocking calls of the file system on a thread for them.
async fn blocking<T: Send + 'static>(call: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(call).await? {
        Ok(done) => Ok(done),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            Err(Error::AlreadyExists { path: String::new(), source: Box::new(error) })
        }
        Err(error) => Err(Error::Generic { store: "LocalFileSystem", source: Box::new(error) }),
    }
}

/// A staged file, removed when it is dropped before it is published.
#[derive(Debug)]
struct Staged {
    file: File,
    /// Path of the staged file, named as object_store does, so that one clean-up serves both.
    staged: PathBuf,
    path: PathBuf,
    is_published: bool,
}

impl Staged {
    /// Creates an empty file beside the path, and the folders above it.
    fn start(path: PathBuf) -> io::Result<Self> {
        let mut staged = path.as_os_str().to_owned();
        staged.push(format!("#{}", random_bits()));
        let staged = PathBuf::from(staged);
        let mut tries = 0;
        loop {
            let folder = path.parent().map_or(Ok(()), create_folders);
            match folder.and_then(|()| create_new(&staged)) {
                // A job that ended has just removed the folder.
                Err(error) if error.kind() == ErrorKind::NotFound && tries < TRIES => tries += 1,
                Err(error) => return Err(error),
                Ok(file) => return Ok(Self { file, staged, path, is_published: false }),
            }
        }
    }

    /// Gives the file its final name; durable when this returns.
    fn publish(&mut self, rename: impl FnOnce(&LocalPath, &LocalPath) -> io::Result<()>) -> io::Result<()> {
        self.file.sync_all()?;
        rename(&self.staged, &self.path)?;
        self.is_published = true;
        self.path.parent().map_or(Ok(()), sync_folder)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.is_published {
            // The first error counts; a resumed job removes leftovers.
            let _ = std::fs::remove_file(&self.staged);
        }
    }
}

/// An upload as a staged file; a failed or dropped one leaves nothing.
#[derive(Debug)]
struct StagedUpload {
    /// `None` once published or aborted.
    staged: Option<Arc<Staged>>,
    bytes: u64,
}

impl StagedUpload {
    fn start(path: PathBuf) -> io::Result<Self> {
        Ok(Self { staged: Some(Arc::new(Staged::start(path)?)), bytes: 0 })
    }

    fn ended() -> Error {
        Error::Generic { store: "LocalFileSystem", source: "the upload has ended".into() }
    }
}

#[async_trait]
impl MultipartUpload for StagedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (staged, mut offset) = (self.staged.clone(), self.bytes);
        self.bytes += data.content_length() as u64;
        Box::pin(async move {
            let staged = staged.ok_or_else(Self::ended)?;
            blocking(move || {
                data.iter().try_for_each(|bytes| {
                    staged.file.write_all_at(bytes, offset)?;
                    offset += bytes.len() as u64;
                    Ok(())
                })
            })
            .await
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let staged = self.staged.take().and_then(Arc::into_inner);
        let mut staged = staged.ok_or_else(Self::ended)?;
        blocking(move || staged.publish(|from, to| std::fs::rename(from, to))).await?;
        Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
    }

    async fn abort(&mut self) -> Result<()> {
        let Some(staged) = self.staged.take() else { return Ok(()) };
        blocking(move || std::fs::remove_file(&staged.staged)).await
    }
}

/// Returns whether an error says that the file system has no hard links.
fn has_no_links(error: &Error) -> bool {
    io_causes(error).any(is_unsupported)
}

/// Returns whether an error says that the file system does not support an operation.
fn is_unsupported(error: &io::Error) -> bool {
    let unsupported =
        [Errno::PERM, Errno::NOTSUP, Errno::OPNOTSUPP, Errno::NOSYS, Errno::INVAL, Errno::MLINK];
    error.raw_os_error().is_some_and(|code| unsupported.iter().any(|known| known.raw_os_error() == code))
}

/// A function that renames a file unless one of the new name exists.
type RenameNew = fn(&LocalPath, &LocalPath) -> io::Result<()>;

fn rename_new(from: &LocalPath, to: &LocalPath) -> io::Result<()> {
    Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

/// Creates a file with its contents, durable when this returns.
///
/// # Errors
/// Of kind [`ErrorKind::AlreadyExists`] if a file of this name exists.
fn create_by(path: &LocalPath, contents: &[u8], rename_new: RenameNew) -> io::Result<()> {
    let mut tries = 0;
    loop {
        let mut staged = Staged::start(path.to_owned())?;
        staged.file.write_all(contents)?;
        match staged.publish(|from, to| rename_or_claim(from, to, rename_new)) {
            // A job that ended has just removed the folder and the files staged there.
            Err(error) if error.kind() == ErrorKind::NotFound && tries < TRIES => tries += 1,
            done => return done,
        }
    }
}

fn rename_or_claim(from: &LocalPath, to: &LocalPath, rename_new: RenameNew) -> io::Result<()> {
    match rename_new(from, to) {
        Err(error) if is_unsupported(&error) => {
            drop(create_new(to)?);
            std::fs::rename(from, to).inspect_err(|_| {
                // The empty file that claims the name is useless alone.
                let _ = std::fs::remove_file(to);
            })
        }
        renamed => renamed,
    }
}

/// Creates a folder and those above it, durably.
fn create_folders(folder: &LocalPath) -> io::Result<()> {
    let Some(above) = folder.parent().filter(|_| !folder.is_dir()) else { return Ok(()) };
    create_folders(above)?;
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => sync_folder(above),
    }
}

fn sync_folder(folder: &LocalPath) -> io::Result<()> {
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // Some file systems cannot sync folders.
        Err(error) if !is_unsupported(&error) && error.kind() != ErrorKind::PermissionDenied => Err(error),
        _ => Ok(()),
    }
}

#[expect(clippy::disallowed_methods, reason = "a file is staged here, and then published")]
fn create_new(path: &LocalPath) -> io::Result<File> {
    File::options().write(true).create_new(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unknown(_: &LocalPath, _: &LocalPath) -> io::Result<()> {
        Err(Errno::INVAL.into())
    }

    #[test]
    fn of_many_creators_one_wins_and_its_file_is_whole() {
        let dir = tempfile::tempdir().expect("a folder");
        for (name, rename_new) in [("known", rename_new as RenameNew), ("unknown", unknown)] {
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
    fn a_file_system_without_links_differs_from_a_full_one() {
        let error = |errno: Errno| Error::Generic { store: "test", source: Box::new(io::Error::from(errno)) };
        let without_links = [Errno::PERM, Errno::OPNOTSUPP, Errno::NOSYS];
        assert!(without_links.into_iter().all(|errno| has_no_links(&error(errno))));
        let other = [Errno::NOSPC, Errno::ACCESS, Errno::ROFS];
        assert!(other.into_iter().all(|errno| !has_no_links(&error(errno))));
    }
}
