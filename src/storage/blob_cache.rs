//! A cache of an object store's bytes on a local disk, under their digests.
//!
//! A file's name is the digest of its contents, so readers can check the contents, and jobs of several datasets can
//! share a folder. Contents are written aside and renamed, so a name never belongs to an incomplete file. A job changes
//! the folder under a lock of the operating system, which a kill releases. It waits only briefly for the lock, since
//! caching is optional.
//!
//! Other users may write into the folder too: the cache follows no link there, and no pipe blocks a reader.

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use rustix::fs::OFlags;

use super::{Digest, StorageError};

/// Longest wait of a change for another job that is changing the folder.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// Pause of all changes after one that failed.
const PAUSE: Duration = Duration::from_secs(30);
/// Age after which an unknown entry that no job has used may be removed.
const IDLE: Duration = Duration::from_secs(3600);
/// Names of the lock, and of the file that its holder writes.
const LOCK: &str = "lock";
const UNFINISHED: &str = "unfinished.blob";

/// A folder of limited size, with files under their digests.
#[derive(Debug)]
pub struct BlobCache {
    folder: PathBuf,
    limit: u64,
    /// End of the pause after a failure.
    paused: Mutex<Option<Instant>>,
}

/// A file of the folder.
struct Entry {
    digest: Digest,
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
        std::fs::create_dir_all(folder).map_err(|source| StorageError::Failed {
            operation: "write",
            location: folder.display().to_string(),
            local: true,
            source: Box::new(source),
        })?;
        Ok(cache)
    }

    /// Returns the size limit in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Returns the contents under a digest; the caller checks them.
    pub fn get(&self, digest: Digest) -> Option<Bytes> {
        let mut file = open_file(&self.path(digest)).ok()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).ok()?;
        // Marks the file as used; otherwise other jobs may remove it.
        let _ = file.set_modified(SystemTime::now());
        Some(bytes.into())
    }

    /// Returns a range of the contents under a digest; the caller checks them.
    pub fn read(&self, digest: Digest, range: Range<u64>) -> Option<Bytes> {
        let file = open_file(&self.path(digest)).ok()?;
        let mut bytes = vec![0; range.end.checked_sub(range.start)? as usize];
        file.read_exact_at(&mut bytes, range.start).ok()?;
        Some(bytes.into())
    }

    /// Removes damaged contents.
    pub fn remove(&self, digest: Digest) {
        // If that fails, the next reader finds the damage again and reads from the store.
        let _ = std::fs::remove_file(self.path(digest));
    }

    /// Stores bytes under their digest, if necessary in place of entries that are needed later.
    ///
    /// `next_use` gives the time of the next use, in any unit; `None` for unknown entries, which are removed only if no
    /// job has used them for an hour. Returns `false` if all other entries are needed sooner, or if the folder cannot
    /// be changed now.
    pub fn put(&self, digest: Digest, contents: &[u8], next_use: &dyn Fn(Digest) -> Option<u64>) -> bool {
        let mut paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        if paused.is_some_and(|until| Instant::now() < until) {
            return false;
        }
        self.put_locked(digest, contents, next_use).unwrap_or_else(|error| {
            tracing::warn!("{}: pausing the cache for 30 s: {error}", self.folder.display());
            *paused = Some(Instant::now() + PAUSE);
            false
        })
    }

    fn put_locked(
        &self,
        digest: Digest,
        contents: &[u8],
        next_use: &dyn Fn(Digest) -> Option<u64>,
    ) -> std::io::Result<bool> {
        let _lock = self.lock()?;
        let unfinished = self.folder.join(UNFINISHED);
        // A killed job may have left an unfinished entry.
        remove_if_there(&unfinished)?;
        let path = self.path(digest);
        if std::fs::symlink_metadata(&path).is_ok_and(|there| there.is_file()) {
            return Ok(true);
        }
        if !self.make_room(contents.len() as u64, next_use(digest), next_use)? {
            return Ok(false);
        }
        let written = create(&unfinished)
            .and_then(|mut file| file.write_all(contents))
            .and_then(|()| std::fs::rename(&unfinished, &path));
        if written.is_err() {
            // On a full disk the file would only take space; the first error counts.
            let _ = remove_if_there(&unfinished);
        }
        written.map(|()| true)
    }

    /// Takes the lock of the folder, released when the file is dropped.
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

    /// Returns whether `bytes` fit, after removing entries needed later than `own_use`, latest first.
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
            std::fs::remove_file(self.path(entry.digest))?;
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
            entries.push(Entry { digest, bytes: metadata.len(), used: metadata.modified()? });
        }
        Ok(entries)
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.folder.join(digest.to_string())
    }
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[expect(clippy::disallowed_methods, reason = "it gets its name once it is whole")]
fn create(path: &Path) -> std::io::Result<File> {
    File::options().write(true).create_new(true).open(path)
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
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn blob(number: u8) -> (Digest, Vec<u8>) {
        let contents = vec![number; 100];
        (Digest::of(&contents), contents)
    }

    fn opened(limit: u64) -> (tempfile::TempDir, BlobCache) {
        let dir = tempfile::tempdir().expect("a folder");
        let cache = BlobCache::open(&dir.path().join("cache"), limit).expect("opened");
        (dir, cache)
    }

    /// Returns the next uses of the blobs `0..uses.len()`, as a function of their digests.
    fn known(uses: &[u64]) -> impl Fn(Digest) -> Option<u64> {
        move |digest| (0..).zip(uses).find(|(number, _)| blob(*number).0 == digest).map(|(_, &at)| at)
    }

    fn put(cache: &BlobCache, number: u8, uses: &[u64]) -> bool {
        let (digest, contents) = blob(number);
        cache.put(digest, &contents, &known(uses))
    }

    fn held(cache: &BlobCache) -> Vec<u8> {
        (0..10).filter(|&number| cache.get(blob(number).0).is_some()).collect()
    }

    #[test]
    fn what_is_kept_comes_back_whole_and_in_parts() {
        let (_dir, cache) = opened(1000);
        let (digest, contents) = blob(1);
        assert_eq!(cache.get(digest), None);
        assert!(put(&cache, 1, &[]));
        assert_eq!(cache.get(digest).as_deref(), Some(contents.as_slice()));
        assert_eq!(cache.read(digest, 3..5).as_deref(), Some([1, 1].as_slice()));
        assert_eq!(cache.read(digest, 90..101), None);
        cache.remove(digest);
        assert_eq!(cache.get(digest), None);
    }

    #[test]
    fn what_is_needed_latest_goes_first_and_never_for_what_is_needed_later() {
        let (_dir, cache) = opened(250);
        let uses = [10, 30, 20, 40];
        assert!(put(&cache, 0, &uses) && put(&cache, 1, &uses));
        assert!(!put(&cache, 3, &uses));
        assert_eq!(held(&cache), [0, 1]);
        assert!(put(&cache, 2, &uses));
        assert_eq!(held(&cache), [0, 2]);
    }

    #[test]
    fn what_another_job_used_lately_stays() {
        let (_dir, cache) = opened(150);
        assert!(put(&cache, 7, &[]));
        assert!(!put(&cache, 0, &[1]));
        let long_ago = SystemTime::now() - 2 * IDLE;
        File::open(cache.path(blob(7).0)).and_then(|file| file.set_modified(long_ago)).expect("aged");
        assert!(put(&cache, 0, &[1]));
        assert_eq!(held(&cache), [0]);
    }

    #[test]
    fn a_lock_that_is_held_delays_nobody_for_long_and_loses_nothing() {
        let (_dir, cache) = opened(1000);
        let lock = cache.lock().expect("free");
        let asked = Instant::now();
        assert!(!put(&cache, 1, &[]));
        assert!(!put(&cache, 2, &[]));
        assert!(asked.elapsed() < 3 * LOCK_PATIENCE);
        drop(lock);
        let again = BlobCache::open(&cache.folder, 1000).expect("opened");
        assert!(put(&again, 1, &[]));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_error() {
        let (dir, cache) = opened(1000);
        std::fs::remove_dir_all(dir.path()).expect("removed");
        assert!(!put(&cache, 1, &[]));
        assert_eq!(cache.get(blob(1).0), None);
    }

    #[test]
    fn a_write_that_fails_leaves_nothing() {
        let (_dir, cache) = opened(1 << 20);
        std::fs::create_dir_all(cache.path(blob(1).0).join("full")).expect("a folder of that name");
        assert!(!put(&cache, 1, &[]));
        assert!(!cache.folder.join(UNFINISHED).exists());
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a file of somebody else")]
    fn links_that_others_put_there_are_not_followed() {
        let (dir, cache) = opened(1000);
        let (digest, contents) = blob(1);
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "precious").expect("a file");
        std::os::unix::fs::symlink(&victim, cache.folder.join(UNFINISHED)).expect("a link");
        assert!(put(&cache, 1, &[]));
        assert_eq!(cache.get(digest).as_deref(), Some(contents.as_slice()));
        assert_eq!(std::fs::read(&victim).expect("there"), b"precious");
        // A link under a digest's name counts as no entry and is replaced.
        cache.remove(digest);
        std::os::unix::fs::symlink(&victim, cache.path(digest)).expect("a link");
        assert_eq!(cache.get(digest), None);
        assert!(put(&cache, 1, &[]));
        assert_eq!(cache.get(digest).as_deref(), Some(contents.as_slice()));
    }

    #[test]
    fn a_pipe_under_a_digest_s_name_hangs_no_reader() {
        let (_dir, cache) = opened(1000);
        let (digest, contents) = blob(1);
        let made = Command::new("mkfifo").arg(cache.path(digest)).status().expect("mkfifo");
        assert!(made.success());
        assert_eq!((cache.get(digest), cache.read(digest, 0..1)), (None, None));
        assert!(put(&cache, 1, &[]));
        assert_eq!(cache.get(digest).as_deref(), Some(contents.as_slice()));
    }

    /// Body of the child that `a_kill_while_writing_leaves_only_whole_files_and_no_lock` kills; no test by itself.
    #[test]
    #[ignore = "started by another test"]
    fn child_that_writes_until_it_is_killed() {
        let Some(folder) = std::env::var_os("INSTDISC_TEST_CACHE") else { return };
        let cache = BlobCache::open(Path::new(&folder), 3 << 20).expect("opened");
        for number in 0_u64.. {
            let contents = number.to_le_bytes().repeat(40_000);
            let digest = Digest::of(&contents);
            // The newest entry is needed soonest, so every write removes an older one.
            cache.put(digest, &contents, &|other| Some(u64::from(other != digest)));
        }
    }

    fn listed(cache: &BlobCache) -> Vec<(Digest, u64)> {
        let entries = cache.entries().unwrap_or_default();
        let mut held: Vec<_> = entries.into_iter().map(|entry| (entry.digest, entry.bytes)).collect();
        held.sort_unstable();
        held
    }

    #[test]
    fn a_kill_while_writing_leaves_only_whole_files_and_no_lock() {
        let (_dir, cache) = opened(3 << 20);
        for round in 0..8 {
            let mut child = Command::new(std::env::current_exe().expect("this test"))
                .args([
                    "--ignored",
                    "--exact",
                    "storage::blob_cache::tests::child_that_writes_until_it_is_killed",
                ])
                .env("INSTDISC_TEST_CACHE", &cache.folder)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("started");
            let started = Instant::now();
            let before = listed(&cache);
            while listed(&cache) == before && started.elapsed() < Duration::from_secs(30) {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(13 * round));
            assert!(child.try_wait().expect("asked").is_none(), "the child still writes");
            child.kill().expect("killed");
            child.wait().expect("ended");
            let entries = cache.entries().expect("listed");
            assert!(!entries.is_empty());
            assert!(entries.iter().map(|entry| entry.bytes).sum::<u64>() <= 3 << 20);
            for entry in entries {
                assert_eq!(Digest::of(&cache.get(entry.digest).expect("readable")), entry.digest);
            }
            // The lock of the killed process is free.
            assert!(put(&cache, round as u8, &[]));
            assert!(!cache.folder.join(UNFINISHED).exists());
        }
    }
}
