//! A lock on a folder: of several processes one works there.
//!
//! On this machine it is the operating system's file lock, which a kill releases. In an object store it is a
//! small object that its holder writes again and again; one that no longer changes is taken over. All
//! changes are conditional, so of several takers one wins.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion};

use super::{Location, StorageError, block_on, handle};

/// When the holder writes, and after how long without a change the lock is free.
#[derive(Clone, Copy)]
struct Pace {
    beat: Duration,
    patience: Duration,
}

const PACE: Pace = Pace { beat: Duration::from_secs(10), patience: Duration::from_secs(45) };

/// The lock, held; dropping it gives it back.
pub struct Lock(Held);

enum Held {
    Local { file: Option<File>, location: Location },
    Lease { location: Location, lost: Arc<AtomicBool>, heart: tokio::task::JoinHandle<()> },
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Held::Local { location, .. } | Held::Lease { location, .. }) = &self.0;
        write!(f, "Lock({location})")
    }
}

impl Lock {
    /// Takes the lock whose file is `location`. In an object store, one left behind by a killed process is
    /// taken over after less than a minute of waiting.
    ///
    /// # Errors
    /// [`StorageError::Locked`] where another process holds it; else if the store fails.
    pub fn take(location: &Location) -> Result<Self, StorageError> {
        let holder = format!("process {} on {}", std::process::id(), host());
        match location.local_path() {
            Some(path) => take_file(location, path, &holder),
            None => take_lease(location, &holder, PACE),
        }
    }

    /// Whether the lock is still held: call it before a step that must not be done by two.
    ///
    /// # Errors
    /// [`StorageError::Locked`] if another process took it over, which happens after a pause of this one.
    pub fn check(&self) -> Result<(), StorageError> {
        match &self.0 {
            Held::Lease { location, lost, .. } if lost.load(Ordering::Acquire) => {
                let holder = "it took over while this process paused".into();
                Err(StorageError::Locked { location: location.to_string(), holder })
            }
            _ => Ok(()),
        }
    }
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "an unknown machine".into() } else { name.trim().to_owned() }
}

#[expect(clippy::disallowed_methods, reason = "a lock file holds no result")]
fn take_file(location: &Location, path: &std::path::Path, holder: &str) -> Result<Lock, StorageError> {
    let failed = |error| location.failed_locally("lock", error);
    loop {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let mut options = OpenOptions::new();
        let mut file = match options.read(true).write(true).create(true).truncate(false).open(path) {
            // Its last holder removed the folder just now.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.map_err(failed)?,
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder).map_err(failed)?;
                return Err(StorageError::Locked { location: location.to_string(), holder });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // Its last holder may have removed the file between opening and locking.
        if !is_the_file_at(&file, path).map_err(failed)? {
            continue;
        }
        file.set_len(0).and_then(|()| file.write_all(holder.as_bytes())).map_err(failed)?;
        return Ok(Lock(Held::Local { file: Some(file), location: location.clone() }));
    }
}

#[cfg(unix)]
fn is_the_file_at(file: &File, path: &std::path::Path) -> std::io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let held = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(there) => Ok((held.dev(), held.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn take_lease(location: &Location, holder: &str, pace: Pace) -> Result<Lock, StorageError> {
    let failed = |error| location.failed("lock", error);
    let created = block_on(put(location, holder, 0, PutMode::Create));
    let version = match created {
        Ok(version) => version,
        Err(object_store::Error::AlreadyExists { .. }) => {
            let old = match block_on(watch(location, pace)).map_err(failed)? {
                Watched::Unchanged(version) => version,
                Watched::Changed(holder) => {
                    return Err(StorageError::Locked { location: location.to_string(), holder });
                }
                Watched::Gone => return take_lease(location, holder, pace),
            };
            tracing::warn!("{location}: its holder is gone; taken over");
            match block_on(put(location, holder, 0, PutMode::Update(old))) {
                Err(object_store::Error::Precondition { .. }) => {
                    let holder = "another process took over first".into();
                    return Err(StorageError::Locked { location: location.to_string(), holder });
                }
                other => other.map_err(failed)?,
            }
        }
        Err(error) => return Err(failed(error)),
    };
    let lost = Arc::new(AtomicBool::new(false));
    let heart = handle().spawn(beat(location.clone(), holder.to_owned(), version, pace, Arc::clone(&lost)));
    Ok(Lock(Held::Lease { location: location.clone(), lost, heart }))
}

async fn put(
    location: &Location,
    holder: &str,
    beat: u64,
    mode: PutMode,
) -> Result<UpdateVersion, object_store::Error> {
    let payload = PutPayload::from(format!("{holder}, sign of life {beat}"));
    let options = PutOptions { mode, ..PutOptions::default() };
    Ok(location.store().put_opts(location.key(), payload, options).await?.into())
}

enum Watched {
    Unchanged(UpdateVersion),
    Changed(String),
    Gone,
}

/// Looks whether the holder is alive.
async fn watch(location: &Location, pace: Pace) -> Result<Watched, object_store::Error> {
    let look = || async {
        let found = match location.store().get(location.key()).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            other => other?,
        };
        let version = UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
        let text = String::from_utf8_lossy(&found.bytes().await?).into_owned();
        Ok::<_, object_store::Error>(Some((version, text)))
    };
    let Some((first, text)) = look().await? else { return Ok(Watched::Gone) };
    tracing::info!("{location}: held by {text}; waiting for a sign of life");
    let deadline = tokio::time::Instant::now() + pace.patience;
    while tokio::time::Instant::now() < deadline {
        tokio::time::sleep(pace.beat / 4).await;
        match look().await? {
            None => return Ok(Watched::Gone),
            Some((_, now)) if now != text => return Ok(Watched::Changed(now)),
            Some(_) => {}
        }
    }
    Ok(Watched::Unchanged(first))
}

/// Writes signs of life until the lock is lost.
async fn beat(
    location: Location,
    holder: String,
    mut version: UpdateVersion,
    pace: Pace,
    lost: Arc<AtomicBool>,
) {
    for number in 1.. {
        tokio::time::sleep(pace.beat).await;
        match put(&location, &holder, number, PutMode::Update(version.clone())).await {
            Ok(next) => version = next,
            Err(object_store::Error::Precondition { .. } | object_store::Error::NotFound { .. }) => {
                lost.store(true, Ordering::Release);
                return;
            }
            // The store may be back for the next one.
            Err(error) => tracing::warn!("{location}: no sign of life could be written: {error}"),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        match &mut self.0 {
            Held::Local { file, location } => {
                let Some(path) = location.local_path() else { return };
                // Removed while it is locked: whoever opened it meanwhile sees that it is gone.
                if let Err(error) = std::fs::remove_file(path) {
                    tracing::warn!("{location}: the lock's file could not be removed: {error}");
                }
                if let Some(folder) = path.parent() {
                    // Kept where it still holds something.
                    let _ = std::fs::remove_dir(folder);
                }
                file.take();
            }
            Held::Lease { location, lost, heart } => {
                heart.abort();
                if !lost.load(Ordering::Acquire)
                    && let Err(error) = location.delete()
                {
                    tracing::warn!("the lock could not be given back: {error}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Pace = Pace { beat: Duration::from_millis(40), patience: Duration::from_millis(400) };

    #[test]
    fn a_folder_is_locked_once_and_again_when_it_was_given_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let location = Location::from_path(&dir.path().join(".work/lock")).expect("a location");
        let lock = Lock::take(&location).expect("free");
        let error = Lock::take(&location).expect_err("held");
        assert!(error.to_string().contains("another process works here (process "), "{error}");
        drop(lock);
        assert!(!dir.path().join(".work").exists());
        Lock::take(&location).expect("free again").check().expect("held");
    }

    #[test]
    fn a_lease_is_held_while_its_holder_lives() {
        let location = Location::in_memory().join("lock");
        let lock = take_lease(&location, "first", QUICK).expect("free");
        let error = take_lease(&location, "second", QUICK).expect_err("held");
        assert!(error.to_string().contains("(first, sign of life"), "{error}");
        lock.check().expect("still held");
        drop(lock);
        take_lease(&location, "second", QUICK).expect("free again");
    }

    #[test]
    fn the_lease_of_a_dead_holder_is_taken_over_and_the_dead_one_knows() {
        let location = Location::in_memory().join("lock");
        let slow = Pace { beat: Duration::from_secs(1), patience: Duration::from_millis(400) };
        let dead = take_lease(&location, "dead", slow).expect("free");
        let lock = take_lease(&location, "second", QUICK).expect("taken over");
        std::thread::sleep(Duration::from_millis(1200));
        assert!(matches!(dead.check(), Err(StorageError::Locked { .. })));
        drop(dead);
        lock.check().expect("still held");
        assert!(location.exists().expect("a look"));
    }
}
