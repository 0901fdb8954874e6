//! The lock of a folder in an object store, or where there are no file locks, of files that are created and never changed.
//!
//! Whoever created the file with the highest number holds the lock, and writes signs of life into a file of
//! its own. A holder that shows none for long is overtaken by creating the next number, which one process
//! can. A holder that was overtaken, because it paused for long, finds the higher number before it publishes.
//! Needed of the store: creates that fail where a key exists, and lists that show what was written before.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::storage::store::writer_id;
use crate::storage::{Location, PublishMode, StorageError, block_on, handle};

/// When the holder shows life, and after how long without a sign the lock is free.
#[derive(Clone, Copy)]
pub(in crate::storage) struct Pace {
    pub(in crate::storage) beat: Duration,
    pub(in crate::storage) patience: Duration,
}

/// The pace of jobs.
pub(in crate::storage) const PACE: Pace =
    Pace { beat: Duration::from_secs(10), patience: Duration::from_secs(45) };

/// A lock that is held.
pub(in crate::storage) struct Lease {
    term: Term,
    lost: Arc<AtomicBool>,
    heart: JoinHandle<()>,
}

/// One holder's turn.
#[derive(Clone)]
struct Term {
    lock: Location,
    number: u64,
    writer: String,
    holder: String,
}

/// The lock's files: who took which number, and the signs of life by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Files {
    terms: BTreeMap<u64, String>,
    signs: BTreeMap<String, String>,
}

impl Lease {
    /// Takes the lock, from a holder that is dead if need be.
    ///
    /// # Errors
    /// [`StorageError::Locked`] where another process holds it; else if the store fails.
    pub(in crate::storage) fn take(lock: &Location, holder: &str, pace: Pace) -> Result<Self, StorageError> {
        let term = block_on(take(lock, holder, pace))?;
        let lost = Arc::new(AtomicBool::new(false));
        let heart = handle().spawn(beat(term.clone(), pace, Arc::clone(&lost)));
        Ok(Self { term, lost, heart })
    }

    /// Where it lies.
    pub(in crate::storage) fn location(&self) -> &Location {
        &self.term.lock
    }

    /// Asks the store whether the lock is still held.
    ///
    /// # Errors
    /// [`StorageError::Locked`] where another process took it over.
    pub(in crate::storage) fn check(&self) -> Result<(), StorageError> {
        if self.lost.load(Ordering::Acquire) || !block_on(self.term.is_held())? {
            return Err(self.term.locked("it took over while this process paused"));
        }
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.heart.abort();
        let lost = self.lost.load(Ordering::Acquire);
        if let Err(error) = block_on(self.term.give_back(lost)) {
            tracing::warn!("the lock could not be given back: {error}");
        }
        if let Some(folder) = self.term.lock.local_path().and_then(std::path::Path::parent) {
            // Kept where it still holds something.
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

    /// Whether this is the highest term, and still there.
    async fn is_held(&self) -> Result<bool, StorageError> {
        let files = files(&self.lock).await?;
        let highest = files.terms.last_key_value();
        Ok(highest.is_some_and(|(number, text)| *number == self.number && *text == self.text()))
    }

    /// Removes what is this holder's, and dead holders' terms below.
    async fn give_back(&self, lost: bool) -> Result<(), StorageError> {
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
        // The own one last: until then the lock is held.
        for number in files.terms.keys().filter(|number| **number <= self.number) {
            if let Some(file) = self.file(*number) {
                file.remove().await?;
            }
        }
        Ok(())
    }
}

/// Reads the lock's files; one that vanishes meanwhile is not there.
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
        let Some(file) = term.file(number) else { return Err(term.locked("a bucket has no lock")) };
        match file.put(term.text().into(), PublishMode::Create).await {
            Ok(()) => {}
            // Of several that found it free or dead, another one was first.
            Err(StorageError::AlreadyExists { .. }) => continue,
            Err(error) => return Err(error),
        }
        // A term that was not seen before means that the lock was given back and taken meanwhile.
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

/// Waits for a sign of life: `true` if there is none, `false` if the terms have changed.
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

/// Shows signs of life until the lock is lost.
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
            // The store may be back for the next one.
            tracing::warn!("{}: no sign of life could be written: {error}", term.lock);
        }
    }
}
