//! A lock on a folder, which one process holds at a time.
//!
//! On this machine it is the operating system's file lock, which a kill releases. In an object store, and on a file
//! system without such locks, it is a lease: files that are created and never changed. The creator of the file with the
//! highest number holds the lease, and writes signs of life into another file. If none appear for long, one process
//! takes over by creating the next number. A holder that was overtaken while it paused finds the higher number before
//! it publishes. The store must offer conditional creates and consistent lists. Under `--single-writer` a store has no
//! lock, since it may lack conditional creates.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::store::writer_id;
use super::{Location, PublishMode, StorageError, block_on, handle};

/// Longest time that a holder takes to write its name.
const NAMING: Duration = Duration::from_secs(1);

/// A held lock, which is released when dropped.
#[derive(Debug)]
pub struct Lock(Held);

#[derive(Debug)]
enum Held {
    Local { _file: File, location: Location },
    Lease(Lease),
    Nothing,
}

impl Lock {
    /// Takes the lock whose file is `location`. In an object store this takes over the lock of a killed process after
    /// less than a minute.
    ///
    /// # Errors
    /// [`StorageError::Locked`] if another process holds it; else if the store fails.
    pub fn take(location: &Location) -> Result<Self, StorageError> {
        let holder = format!("process {} on {}", std::process::id(), host());
        if let Some(path) = location.local_path() {
            if let Some(lock) = take_file(location, path, &holder, File::try_lock)? {
                return Ok(lock);
            }
            tracing::info!(
                "{location}: the file system has no locks (flock); taking a lease of files instead"
            );
        } else if location.has_single_writer() {
            return Ok(Self(Held::Nothing));
        }
        Ok(Self(Held::Lease(Lease::take(location, &holder, PACE)?)))
    }

    /// Checks that the lock is still held. Call this before a step that two processes must not both take.
    ///
    /// # Errors
    /// [`StorageError::Locked`] if another process took it over after this one paused; or if the store fails.
    pub fn check(&self) -> Result<(), StorageError> {
        match &self.0 {
            Held::Lease(lease) => lease.check(),
            Held::Local { .. } | Held::Nothing => Ok(()),
        }
    }
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "an unknown machine".into() } else { name.trim().to_owned() }
}

/// Takes the operating system's lock of a file; `None` if the file system has none.
#[expect(clippy::disallowed_methods, reason = "a lock file holds no result")]
fn take_file(
    location: &Location,
    path: &Path,
    holder: &str,
    try_lock: fn(&File) -> Result<(), TryLockError>,
) -> Result<Option<Lock>, StorageError> {
    let failed = |error: std::io::Error| location.failed_by("lock", error);
    let asked = Instant::now();
    loop {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let mut options = OpenOptions::new();
        let mut file = match options.read(true).write(true).create(true).truncate(false).open(path) {
            // The last holder removed the folder just now.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.map_err(failed)?,
        };
        match try_lock(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder).map_err(failed)?;
                if holder.is_empty() && asked.elapsed() < NAMING {
                    // The holder took the lock just now.
                    std::thread::sleep(NAMING / 100);
                    continue;
                }
                return Err(locked(location, &holder));
            }
            Err(TryLockError::Error(error)) if has_no_locks(&error) => {
                // The file is useless here, and blocks the removal of the folder.
                let _ = std::fs::remove_file(path);
                return Ok(None);
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // The last holder may have removed the file between opening and locking.
        if !is_the_file_at(&file, path).map_err(failed)? {
            continue;
        }
        let named = file.set_len(0).and_then(|()| file.write_all(holder.as_bytes()));
        // Dropped, and so removed, if the disk is full.
        let lock = Lock(Held::Local { _file: file, location: location.clone() });
        return named.map(|()| Some(lock)).map_err(failed);
    }
}

/// Returns whether an error means that the file system has no locks: Lustre mounted without `flock`, some FUSE file
/// systems, NFS without its lock manager.
fn has_no_locks(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let codes = [Errno::NOSYS, Errno::NOTSUP, Errno::OPNOTSUPP, Errno::NOLCK];
    error.raw_os_error().is_some_and(|code| codes.iter().any(|known| known.raw_os_error() == code))
}

#[cfg(unix)]
fn is_the_file_at(file: &File, path: &Path) -> std::io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let held = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(there) => Ok((held.dev(), held.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Held::Local { location, .. } = &self.0
            && let Some(path) = location.local_path()
        {
            // Removed while locked: a process that opened the file meanwhile sees that it is gone.
            if let Err(error) = std::fs::remove_file(path) {
                tracing::warn!("{location}: cannot remove the lock's file: {error}");
            }
            remove_empty_folder_of(path);
        }
    }
}

/// Removes the folder of a file, if it is empty.
fn remove_empty_folder_of(path: &Path) {
    if let Some(folder) = path.parent() {
        let _ = std::fs::remove_dir(folder);
    }
}

/// Interval between signs of life, and the time without one after which the lease is free.
#[derive(Clone, Copy)]
struct Pace {
    beat: Duration,
    patience: Duration,
}

const PACE: Pace = Pace { beat: Duration::from_secs(10), patience: Duration::from_secs(45) };

/// A held lease, which is released when dropped.
#[derive(Debug)]
struct Lease {
    term: Term,
    lost: Arc<AtomicBool>,
    heart: JoinHandle<()>,
}

#[derive(Clone, Debug)]
struct Term {
    lock: Location,
    folder: Location,
    number: u64,
    writer: String,
    holder: String,
}

/// Files of the lease: terms by number, and signs of life by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Files {
    terms: BTreeMap<u64, String>,
    signs: BTreeMap<String, String>,
}

impl Lease {
    /// Takes the lease, if necessary from a dead holder.
    fn take(lock: &Location, holder: &str, pace: Pace) -> Result<Self, StorageError> {
        let term = block_on(Term::take(lock, holder, pace))?;
        let lost = Arc::new(AtomicBool::new(false));
        let heart = handle().spawn(term.clone().beat(pace, Arc::clone(&lost)));
        Ok(Self { term, lost, heart })
    }

    fn check(&self) -> Result<(), StorageError> {
        if self.lost.load(Ordering::Acquire) || !block_on(self.term.is_held())? {
            return Err(locked(&self.term.lock, "took over while this process paused"));
        }
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.heart.abort();
        let lost = self.lost.load(Ordering::Acquire);
        if let Err(error) = block_on(self.term.release(lost)) {
            tracing::warn!("cannot release the lock: {error}");
        }
        if let Some(path) = self.term.lock.local_path() {
            remove_empty_folder_of(path);
        }
    }
}

fn locked(lock: &Location, holder: &str) -> StorageError {
    StorageError::Locked { location: lock.to_string(), holder: holder.to_owned() }
}

impl Term {
    /// Takes the lease by creating the next term, once no process holds the last one.
    async fn take(lock: &Location, holder: &str, pace: Pace) -> Result<Self, StorageError> {
        let folder = lock.folder().ok_or_else(|| locked(lock, "a bucket itself cannot be locked"))?;
        let (lock, holder, writer) = (lock.clone(), holder.to_owned(), String::new());
        let mut term = Self { lock, folder, number: 0, writer, holder };
        loop {
            let before = term.files().await?;
            term.number = match before.terms.last_key_value() {
                None => 0,
                Some(_) if !before.holder_is_dead(&term, pace).await? => continue,
                Some((number, _)) => number + 1,
            };
            term.writer = writer_id();
            let file = term.file(term.number);
            match file.put(term.text().into(), PublishMode::Create).await {
                Ok(()) => {}
                // Another process was first.
                Err(StorageError::AlreadyExists { .. }) => continue,
                Err(error) => return Err(error),
            }
            // A new term means that the lease was released and taken meanwhile.
            let mut after = term.files().await?.terms;
            let own = after.remove(&term.number).is_some_and(|text| text == term.text());
            if own && after.iter().all(|(number, text)| before.terms.get(number) == Some(text)) {
                if term.number > 0 {
                    tracing::warn!("{}: its holder is gone; taken over", term.lock);
                }
                return Ok(term);
            }
            file.remove().await?;
        }
    }

    /// Reads the lease's files, except those that vanish meanwhile.
    async fn files(&self) -> Result<Files, StorageError> {
        let mut files = Files::default();
        let prefix = format!("{}.", self.lock.file_name());
        for name in self.folder.list_names().await? {
            let Some(rest) = name.strip_prefix(&prefix) else { continue };
            let text = match self.folder.join(&name).read_part(None).await {
                Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error),
            };
            match rest.parse() {
                Ok(number) => files.terms.insert(number, text),
                Err(_) => files.signs.insert(name, text),
            };
        }
        Ok(files)
    }

    fn file(&self, number: u64) -> Location {
        self.folder.join(&format!("{}.{number:08}", self.lock.file_name()))
    }

    fn sign(&self) -> Location {
        self.folder.join(&format!("{}.{:08}.{}", self.lock.file_name(), self.number, self.writer))
    }

    fn text(&self) -> String {
        format!("{}\n{}", self.holder, self.writer)
    }

    /// Returns whether this is the highest term and its file still exists.
    async fn is_held(&self) -> Result<bool, StorageError> {
        let files = self.files().await?;
        let highest = files.terms.last_key_value();
        Ok(highest.is_some_and(|(number, text)| *number == self.number && *text == self.text()))
    }

    /// Removes this holder's files, and those of dead holders with lower numbers.
    async fn release(&self, lost: bool) -> Result<(), StorageError> {
        self.sign().remove().await?;
        if lost || !self.is_held().await? {
            return Ok(());
        }
        let files = self.files().await?;
        for name in files.signs.keys() {
            self.folder.join(name).remove().await?;
        }
        // The own term is removed last: until then the lease is held.
        for number in files.terms.keys().filter(|number| **number <= self.number) {
            self.file(*number).remove().await?;
        }
        Ok(())
    }

    /// Writes signs of life until the lease is lost.
    async fn beat(self, pace: Pace, lost: Arc<AtomicBool>) {
        let sign = self.sign();
        for number in 1.. {
            tokio::time::sleep(pace.beat).await;
            let shown = match self.is_held().await {
                Ok(true) => sign.put(format!("sign of life {number}").into(), PublishMode::Overwrite).await,
                Ok(false) => {
                    lost.store(true, Ordering::Release);
                    return;
                }
                Err(error) => Err(error),
            };
            if let Err(error) = shown {
                // The next sign may succeed.
                tracing::warn!("{}: cannot write a sign of life: {error}", self.lock);
            }
        }
    }
}

impl Files {
    /// Waits for a sign of life: `true` if none appears, `false` if the terms changed.
    async fn holder_is_dead(&self, term: &Term, pace: Pace) -> Result<bool, StorageError> {
        let holder = self.terms.last_key_value().map_or("", |(_, text)| text.lines().next().unwrap_or(""));
        tracing::info!("{}: held by {holder}; waiting for a sign of life", term.lock);
        let deadline = Instant::now() + pace.patience;
        while Instant::now() < deadline {
            tokio::time::sleep(pace.beat / 4).await;
            let now = term.files().await?;
            if now.terms != self.terms {
                return Ok(false);
            }
            if let Some((_, sign)) = now.signs.iter().find(|(name, text)| self.signs.get(*name) != Some(text))
            {
                return Err(locked(&term.lock, &format!("{holder}, {sign}")));
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_lease(location: &Location, holder: &str, pace: Pace) -> Result<Lock, StorageError> {
        Ok(Lock(Held::Lease(Lease::take(location, holder, pace)?)))
    }

    const QUICK: Pace = Pace { beat: Duration::from_millis(40), patience: Duration::from_secs(3) };
    /// Pace of a process that died.
    const SILENT: Pace = Pace { beat: Duration::from_secs(3600), patience: Duration::from_secs(3600) };

    #[test]
    fn a_folder_is_locked_once_and_again_after_its_release() {
        let dir = tempfile::tempdir().expect("a folder");
        let location = Location::from_path(&dir.path().join(".work/lock")).expect("a location");
        let lock = Lock::take(&location).expect("free");
        let error = Lock::take(&location).expect_err("held");
        assert!(error.to_string().contains("another process works here (process "), "{error}");
        drop(lock);
        assert!(!dir.path().join(".work").exists());
        Lock::take(&location).expect("free again").check().expect("held");
    }

    fn no_locks(_: &File) -> Result<(), TryLockError> {
        Err(TryLockError::Error(rustix::io::Errno::NOSYS.into()))
    }

    #[test]
    fn a_file_system_without_locks_is_told_from_a_lock_that_is_held() {
        let dir = tempfile::tempdir().expect("a folder");
        let location = Location::from_path(&dir.path().join(".work/lock")).expect("a location");
        let path = location.local_path().expect("a path");
        assert!(take_file(&location, path, "nobody", no_locks).expect("no error").is_none());
    }

    /// Returns the location of a lock in a store, and of one in a temporary folder.
    fn both() -> (tempfile::TempDir, [Location; 2]) {
        let dir = tempfile::tempdir().expect("a folder");
        let local = Location::from_path(&dir.path().join(".work/lock")).expect("a location");
        (dir, [Location::in_memory().join("lock"), local])
    }

    #[test]
    fn a_lease_is_held_while_its_holder_lives() {
        let (dir, locations) = both();
        for location in &locations {
            let lock = take_lease(location, "first", QUICK).expect("free");
            let error = take_lease(location, "second", QUICK).expect_err("held");
            assert!(error.to_string().contains("(first, sign of life"), "{error}");
            lock.check().expect("still held");
            drop(lock);
            take_lease(location, "second", QUICK).expect("free again");
        }
        assert!(!dir.path().join(".work").exists());
    }

    #[test]
    fn the_lease_of_a_dead_holder_is_taken_over_and_the_dead_one_knows() {
        let (_dir, locations) = both();
        for location in &locations {
            let dead = take_lease(location, "dead", SILENT).expect("free");
            let lock = take_lease(location, "second", QUICK).expect("taken over");
            assert!(matches!(dead.check(), Err(StorageError::Locked { .. })));
            drop(dead);
            lock.check().expect("still held");
            drop(lock);
            assert!(location.folder().expect("a folder").list().expect("a list").is_empty());
        }
    }

    #[test]
    fn of_many_that_find_the_holder_dead_one_takes_over() {
        let location = Location::in_memory().join("lock");
        let dead = take_lease(&location, "dead", SILENT).expect("free");
        let take = |number: usize| take_lease(&location, &format!("heir {number}"), QUICK);
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..6).map(|number| scope.spawn(move || take(number))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
        assert!(matches!(dead.check(), Err(StorageError::Locked { .. })));
    }
}
