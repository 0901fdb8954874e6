//! A cache of an object store's bytes on a local disk, under their digests.
//!
//! A file's name is the digest of its contents, so readers can check them, and jobs of several datasets can share a
//! folder. Contents are written aside and renamed, so a name never belongs to an incomplete file. A job changes the
//! folder under a lock of the operating system, which a kill releases. It does not wait for the lock for long, since
//! caching is optional.
//!
//! Others may write into the folder, too: no link is followed there, and no pipe blocks a reader.

use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

use super::{Digest, StorageError};

/// How long a change waits for another job that is changing the folder.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// The pause of all changes after one that failed.
const PAUSE: Duration = Duration::from_secs(30);
/// An unknown entry that no job has used for this long may be removed.
const IDLE: Duration = Duration::from_secs(3600);
/// The lock, and the folder of incomplete files.
const LOCK: &str = "lock";
const UNFINISHED: &str = "unfinished";

/// A folder of limited size, with files under their digests.
#[derive(Debug)]
pub struct BlobCache {
    folder: PathBuf,
    limit: u64,
    /// The end of the pause after a failure.
    paused: Mutex<Option<Instant>>,
}

/// Whether bytes were kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// They are in the cache.
    Yes,
    /// All other entries are needed sooner.
    NoRoom,
    /// The folder cannot be changed now.
    NotNow,
}

/// A file of the folder.
struct Entry {
    digest: Digest,
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

impl BlobCache {
    /// Opens or makes the folder; all jobs that share it must pass the same `limit` in bytes.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn open(folder: &Path, limit: u64) -> Result<Self, StorageError> {
        let cache = Self { folder: folder.to_owned(), limit, paused: Mutex::new(None) };
        std::fs::create_dir_all(folder.join(UNFINISHED)).map_err(|source| StorageError::Failed {
            operation: "write",
            location: folder.display().to_string(),
            local: true,
            source: Box::new(source),
        })?;
        Ok(cache)
    }

    /// The size limit in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// The contents under a digest; the caller checks them.
    pub fn get(&self, digest: Digest) -> Option<Bytes> {
        let mut file = open_file(&self.path(digest)).ok()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).ok()?;
        // Marks it as used; otherwise other jobs may remove it.
        let _ = file.set_modified(SystemTime::now());
        Some(bytes.into())
    }

    /// A part of the contents under a digest.
    pub fn read(&self, digest: Digest, range: Range<u64>) -> Option<Bytes> {
        let file = open_file(&self.path(digest)).ok()?;
        let mut bytes = vec![0; range.end.checked_sub(range.start)? as usize];
        file.read_exact_at(&mut bytes, range.start).ok()?;
        Some(bytes.into())
    }

    /// Removes damaged contents.
    pub fn remove(&self, digest: Digest) {
        // If that fails, the next reader finds it damaged again and reads from the store.
        let _ = std::fs::remove_file(self.path(digest));
    }

    /// Keeps bytes under their digest, if need be in place of others that are needed later.
    ///
    /// `next_use` gives the time of the next use, in any unit; `None` for unknown entries, which are removed only if
    /// no job has used them for an hour.
    pub fn put(&self, digest: Digest, contents: &[u8], next_use: &dyn Fn(Digest) -> Option<u64>) -> Kept {
        let mut paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        if paused.is_some_and(|until| Instant::now() < until) {
            return Kept::NotNow;
        }
        match self.put_locked(digest, contents, next_use) {
            Ok(kept) => kept,
            Err(error) => {
                tracing::warn!("{}: pausing the cache for 30 s: {error}", self.folder.display());
                *paused = Some(Instant::now() + PAUSE);
                Kept::NotNow
            }
        }
    }

    fn put_locked(
        &self,
        digest: Digest,
        contents: &[u8],
        next_use: &dyn Fn(Digest) -> Option<u64>,
    ) -> std::io::Result<Kept> {
        let _lock = self.lock()?;
        let unfinished = self.unfinished()?;
        remove_all(&unfinished)?;
        let path = self.path(digest);
        if std::fs::symlink_metadata(&path).is_ok_and(|there| there.is_file()) {
            return Ok(Kept::Yes);
        }
        if !self.make_room(contents.len() as u64, next_use(digest), next_use)? {
            return Ok(Kept::NoRoom);
        }
        let name = digest.to_string();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let written = File::from(openat(&unfinished, &name, flags, Mode::from_raw_mode(0o666))?)
            .write_all(contents)
            .and_then(|()| Ok(renameat(&unfinished, &name, CWD, &path)?));
        if let Err(error) = written {
            // On a full disk it would only take space; the first error counts.
            let _ = unlinkat(&unfinished, &name, AtFlags::empty());
            return Err(error);
        }
        Ok(Kept::Yes)
    }

    /// The lock of the folder, released when the file is dropped.
    fn lock(&self) -> std::io::Result<File> {
        let file = open_lock(&self.folder.join(LOCK))?;
        let asked = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if asked.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The folder of incomplete files; a link to another folder is an error.
    fn unfinished(&self) -> std::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(CWD, self.folder.join(UNFINISHED), flags, Mode::empty())?)
    }

    /// Whether `bytes` fit, after removing entries needed later than `own_use`, the latest first.
    fn make_room(
        &self,
        bytes: u64,
        own_use: Option<u64>,
        next_use: &dyn Fn(Digest) -> Option<u64>,
    ) -> std::io::Result<bool> {
        let entries = self.entries()?;
        let mut total: u64 = entries.iter().map(|entry| entry.bytes).sum();
        let now = SystemTime::now();
        let own_use = own_use.unwrap_or(u64::MAX);
        let mut victims: Vec<_> = entries
            .into_iter()
            .filter_map(|entry| {
                let idle = now.duration_since(entry.used).unwrap_or_default();
                let use_of = next_use(entry.digest).or((idle > IDLE).then_some(u64::MAX))?;
                let may_go = use_of > own_use || (use_of == u64::MAX && idle > IDLE);
                may_go.then_some((use_of, idle, entry))
            })
            .collect();
        victims.sort_by_key(|(use_of, idle, _)| (*use_of, *idle));
        let possible: u64 = victims.iter().map(|(.., entry)| entry.bytes).sum();
        if (total - possible).saturating_add(bytes) > self.limit {
            return Ok(false);
        }
        while total.saturating_add(bytes) > self.limit {
            let Some((.., entry)) = victims.pop() else { return Ok(false) };
            std::fs::remove_file(&entry.path)?;
            total -= entry.bytes;
        }
        Ok(true)
    }

    fn entries(&self) -> std::io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for found in std::fs::read_dir(&self.folder)? {
            let found = found?;
            let digest = found.file_name().to_str().and_then(|name| Digest::try_from(name.to_owned()).ok());
            let (Some(digest), Ok(metadata)) = (digest, found.metadata()) else { continue };
            let used = metadata.modified()?;
            entries.push(Entry { digest, path: found.path(), bytes: metadata.len(), used });
        }
        Ok(entries)
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.folder.join(digest.to_string())
    }
}

/// Removes what a killed job left in a folder; only the holder of the lock writes there.
fn remove_all(folder: &OwnedFd) -> std::io::Result<()> {
    for entry in Dir::read_from(folder)? {
        match unlinkat(folder, entry?.file_name(), AtFlags::empty()) {
            // `.`, `..` and folders of others.
            Err(Errno::ISDIR | Errno::PERM) => {}
            removed => removed?,
        }
    }
    Ok(())
}

/// Opens a file for reading; a link, a pipe or another kind is an error at once.
#[expect(clippy::disallowed_methods, reason = "it is only read")]
fn open_file(path: &Path) -> std::io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits() as i32).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(std::io::ErrorKind::InvalidInput.into()),
    }
}

#[expect(clippy::disallowed_methods, reason = "a lock file holds no result")]
fn open_lock(path: &Path) -> std::io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).custom_flags(flags.bits() as i32).open(path)
}

#[cfg(test)]
mod tests;
