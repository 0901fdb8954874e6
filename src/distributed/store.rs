//! Small values that all ranks see.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::watch::Watch;
use super::{DistributedError, ffi};

/// A handle to the group's store of keys and values.
///
/// Its connection is not the one that collectives use, so that any thread may use it while another is in a
/// collective. With one rank it is a map in memory. The store lives as long as rank 0's group.
#[derive(Clone, Debug)]
pub struct Store {
    backing: Arc<Backing>,
}

#[derive(Debug)]
enum Backing {
    Memory(Mutex<BTreeMap<String, Vec<u8>>>),
    Client { client: ffi::Store, prefix: String, watch: Weak<Watch> },
}

/// Between two looks for a key.
const LOOK: Duration = Duration::from_millis(10);

impl Store {
    pub(super) fn in_memory() -> Self {
        Self { backing: Arc::new(Backing::Memory(Mutex::default())) }
    }

    pub(super) fn of_client(client: ffi::Store, prefix: &str, watch: &Arc<Watch>) -> Self {
        let prefix = format!("{prefix}user/");
        Self { backing: Arc::new(Backing::Client { client, prefix, watch: Arc::downgrade(watch) }) }
    }

    /// Gives the key this value.
    ///
    /// # Errors
    /// If rank 0 is lost.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<(), DistributedError> {
        match &*self.backing {
            Backing::Memory(map) => {
                locked(map).insert(key.to_owned(), value.to_owned());
                Ok(())
            }
            Backing::Client { client, prefix, .. } => {
                client.set(&(prefix.clone() + key), value).map_err(|message| self.failed(key, &message))
            }
        }
    }

    /// Whether ranks are known to be lost, without waiting.
    ///
    /// # Errors
    /// If ranks are lost.
    pub fn check(&self) -> Result<(), DistributedError> {
        match &*self.backing {
            Backing::Client { watch, .. } => watch.upgrade().map_or(Ok(()), |watch| watch.check()),
            Backing::Memory(_) => Ok(()),
        }
    }

    /// The key's value as soon as it has one, however long that takes: what another rank does may take its time,
    /// and the watcher finds out if it is lost.
    ///
    /// # Errors
    /// If ranks are lost meanwhile.
    pub fn wait_for(&self, key: &str) -> Result<Vec<u8>, DistributedError> {
        loop {
            if let Some(value) = self.try_get(key)? {
                return Ok(value);
            }
            self.check()?;
            // Not within the client, whose lock would keep other threads out.
            std::thread::sleep(LOOK);
        }
    }

    /// The key's value, if it has one.
    ///
    /// # Errors
    /// If rank 0 is lost.
    pub fn try_get(&self, key: &str) -> Result<Option<Vec<u8>>, DistributedError> {
        match &*self.backing {
            Backing::Memory(map) => Ok(locked(map).get(key).cloned()),
            Backing::Client { client, prefix, .. } => {
                client.try_get(&(prefix.clone() + key)).map_err(|message| self.failed(key, &message))
            }
        }
    }

    fn failed(&self, key: &str, message: &str) -> DistributedError {
        let what = format!("the store's key {key:?}");
        if let Backing::Client { watch, .. } = &*self.backing
            && let Some(watch) = watch.upgrade()
        {
            return watch.explain(&what, 0, message);
        }
        DistributedError::Backend { what, message: message.to_owned() }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
