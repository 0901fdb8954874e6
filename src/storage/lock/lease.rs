//! A lease: the lock of a folder without file locks, made of files that are created and never changed.
//!
//! The creator of the file with the highest number holds the lease, and writes signs of life into another file. If none
//! appear for long, one process takes over by creating the next number. A holder that was overtaken while it paused
//! finds the higher number before it publishes. The store must offer conditional creates and consistent lists.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::storage::store::writer_id;
use crate::storage::{Location, PublishMode, StorageError, block_on, handle};

/// How often the holder shows a sign of life, and after how long without one the lease is free.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    pub(super) beat: Duration,
    pub(super) patience: Duration,
}

/// The pace of jobs.
pub(super) const PACE: Pace = Pace { beat: Duration::from_secs(10), patience: Duration::from_secs(45) };

/// A lease that is held; dropping it releases it.
pub(super) struct Lease {
    term: Term,
    lost: Arc<AtomicBool>,
    heart: JoinHandle<()>,
}

/// One holder's term.
#[derive(Clone)]
struct Term {
    lock: Location,
    number: u64,
    writer: String,
    holder: String,
}

/// The lease's files: terms by number, and signs of life by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Files {
    terms: BTreeMap<u64, String>,
    signs: BTreeMap<String, String>,
}

impl Lease {
    /// Takes the lease, from a dead holder if need be.
    ///
    /// # Errors
    /// [`StorageError::Locked`] where another process holds it; else if the store fails.
    pub(super) fn take(lock: &Location, holder: &str, pace: Pace) -> Result<Self, StorageError> {
        let term = block_on(take(lock, holder, pace))?;
        let lost = Arc::new(AtomicBool::new(false));
        let heart = handle().spawn(beat(term.clone(), pace, Arc::clone(&lost)));
        Ok(Self { term, lost, heart })
    }

    /// The location of the lock.
    pub(super) fn location(&self) -> &Location {
        &self.term.lock
    }

    /// Checks with the store that the lease is still held.
    ///
    /// # Errors
    /// [`StorageError::Locked`] where another process took it over.
    pub(super) fn check(&self) -> Result<(), StorageError> {
        if self.lost.load(Ordering::Acquire) || !block_on(self.term.is_held())? {
            return Err(self.term.locked("took over while this process paused"));
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
        if let Some(folder) = self.term.lock.local_path().and_then(std::path::Path::parent) {
            // Fails where the folder is not empty.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

impl Term {
    fn file(&self, number: u64) -> Option<Location> {
        self.lock.with_file_name(&format!("{}.{number:08}", self.lock.file_name()))
    }

    fn sign(&self) -> Option<Location> {
        self.lock.with_file_name(&format!("{}.{:08}.{}", self.lock.file_name(), self.number, self.writer))
    }

    fn text(&self) -> String {
        format!("{}\n{}", self.holder, self.writer)
    }

    fn locked(&self, holder: &str) -> StorageError {
        StorageError::Locked { location: self.lock.to_string(), holder: holder.to_owned() }
    }

    /// Whether this is the highest term and its file still exists.
    async fn is_held(&self) -> Result<bool, StorageError> {
        let files = files(&self.lock).await?;
        let highest = files.terms.last_key_value();
        Ok(highest.is_some_and(|(number, text)| *number == self.number && *text == self.text()))
    }

    /// Removes this holder's files, and those of dead holders below.
    async fn release(&self, lost: bool) -> Result<(), StorageError> {
        if let Some(sign) = self.sign() {
            sign.remove().await?;
        }
        if lost || !self.is_held().await? {
            return Ok(());
        }
        let files = files(&self.lock).await?;
        for name in files.signs.keys() {
            if let Some(sign) = self.lock.with_file_name(name) {
                sign.remove().await?;
            }
        }
        // This term last: until then the lease is held.
        for number in files.terms.keys().filter(|number| **number <= self.number) {
            if let Some(file) = self.file(*number) {
                file.remove().await?;
            }
        }
        Ok(())
    }
}

/// Reads the lease's files, except those that vanish meanwhile.
async fn files(lock: &Location) -> Result<Files, StorageError> {
    let mut files = Files::default();
    let Some(folder) = lock.folder() else { return Ok(files) };
    let prefix = format!("{}.", lock.file_name());
    for name in folder.list_names().await? {
        let Some(rest) = name.strip_prefix(&prefix) else { continue };
        let Some(file) = lock.with_file_name(&name) else { continue };
        let text = match file.read_part(None).await {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.is_not_found() => continue,
            Err(error) => return Err(error),
        };
        match rest.parse() {
            Ok(number) => {
                files.terms.insert(number, text);
            }
            Err(_) => {
                files.signs.insert(name, text);
            }
        }
    }
    Ok(files)
}

async fn take(lock: &Location, holder: &str, pace: Pace) -> Result<Term, StorageError> {
    loop {
        let before = files(lock).await?;
        let number = match before.terms.last_key_value() {
            None => 0,
            Some((number, _)) => {
                if !is_dead(lock, &before, pace).await? {
                    continue;
                }
                number + 1
            }
        };
        let (holder, writer) = (holder.to_owned(), writer_id());
        let term = Term { lock: lock.clone(), number, writer, holder };
        let Some(file) = term.file(number) else {
            return Err(term.locked("a bucket itself cannot be locked"));
        };
        match file.put(term.text().into(), PublishMode::Create).await {
            Ok(()) => {}
            // Another process was first.
            Err(StorageError::AlreadyExists { .. }) => continue,
            Err(error) => return Err(error),
        }
        // A new term means that the lease was released and taken meanwhile.
        let mut after = files(lock).await?.terms;
        let own = after.remove(&number).is_some_and(|text| text == term.text());
        if own && after.iter().all(|(number, text)| before.terms.get(number) == Some(text)) {
            if number > 0 {
                tracing::warn!("{lock}: its holder is gone; taken over");
            }
            return Ok(term);
        }
        file.remove().await?;
    }
}

/// Waits for a sign of life: `true` if none appears, `false` if the terms changed.
async fn is_dead(lock: &Location, before: &Files, pace: Pace) -> Result<bool, StorageError> {
    let holder = before.terms.last_key_value().map_or("", |(_, text)| text.lines().next().unwrap_or(""));
    tracing::info!("{lock}: held by {holder}; waiting for a sign of life");
    let deadline = Instant::now() + pace.patience;
    while Instant::now() < deadline {
        sleep(pace.beat / 4).await;
        let now = files(lock).await?;
        if now.terms != before.terms {
            return Ok(false);
        }
        if let Some((_, sign)) = now.signs.iter().find(|(name, text)| before.signs.get(*name) != Some(text)) {
            let holder = format!("{holder}, {sign}");
            return Err(StorageError::Locked { location: lock.to_string(), holder });
        }
    }
    Ok(true)
}

/// Shows signs of life until the lease is lost.
async fn beat(term: Term, pace: Pace, lost: Arc<AtomicBool>) {
    let Some(sign) = term.sign() else { return };
    for number in 1.. {
        sleep(pace.beat).await;
        let shown = match term.is_held().await {
            Ok(true) => sign.put(format!("sign of life {number}").into(), PublishMode::Overwrite).await,
            Ok(false) => {
                lost.store(true, Ordering::Release);
                return;
            }
            Err(error) => Err(error),
        };
        if let Err(error) = shown {
            // The next one may succeed.
            tracing::warn!("{}: cannot write a sign of life: {error}", term.lock);
        }
    }
}
