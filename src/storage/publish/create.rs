//! Creating a file that must not be there yet: of several writers one wins.
//!
//! The store decides, by a put that fails where the key exists (`If-None-Match: *`). Its answer can be lost
//! after it acted; the next attempt then meets the writer's own file. So every file carries its writer's id,
//! and a doubtful answer is settled by reading it back.

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use object_store::{
    Attribute, Attributes, Error, GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};

use crate::storage::store::counted::operation;
use crate::storage::store::retried::{Attempts, is_lost, random_bits};
use crate::storage::{Location, StorageError, unlinked};

/// The file's attribute that names its writer; letters alone, since Azure takes only names of C#'s identifiers.
const WRITER: &str = "instdiscwriter";

/// An id that no other write of any process has.
pub(in crate::storage) fn writer_id() -> String {
    static PROCESS: OnceLock<String> = OnceLock::new();
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let process = PROCESS.get_or_init(|| format!("{:016x}{:016x}", random_bits(), random_bits()));
    format!("{process}-{}", WRITES.fetch_add(1, Ordering::Relaxed))
}

/// The attributes of a file of this writer.
pub(in crate::storage) fn attributes(writer: &str) -> Attributes {
    Attributes::from_iter([(Attribute::Metadata(WRITER.into()), writer.to_owned())])
}

/// Whose file lies at a location.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Nobody,
    Us,
    Another,
}

impl Location {
    /// Creates a file.
    ///
    /// # Errors
    /// [`StorageError::AlreadyExists`] where another writer's file lies there; else if the store fails.
    pub(in crate::storage) async fn create(&self, contents: Bytes) -> Result<(), StorageError> {
        if let Some(path) = self.local_path() {
            return self.create_locally(path, contents).await;
        }
        if self.remote().is_some_and(|remote| remote.single_writer) {
            return self.create_alone(contents).await;
        }
        self.require_creates().await?;
        operation(self.create_shared(contents)).await
    }

    /// On this machine.
    async fn create_locally(&self, path: &Path, contents: Bytes) -> Result<(), StorageError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let put = self.store().put_opts(self.key(), PutPayload::from(contents.clone()), options).await;
        match put {
            Ok(_) => Ok(()),
            Err(error) if unlinked::has_no_links(&error) => match unlinked::create(path, &contents) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    Err(StorageError::AlreadyExists { location: self.to_string() })
                }
                created => created.map_err(|error| self.failed_locally("write", error)),
            },
            Err(error) => Err(self.failed("write", error)),
        }
    }

    /// For a store that creates.
    async fn create_shared(&self, contents: Bytes) -> Result<(), StorageError> {
        let writer = writer_id();
        let mut attempts = Attempts::new(self.retry_limits());
        loop {
            let mode = PutMode::Create;
            let options = PutOptions { mode, attributes: attributes(&writer), ..PutOptions::default() };
            let generation = self.generation();
            let store = self.store();
            let put = store.put_opts(self.key(), PutPayload::from(contents.clone()), options);
            let error = match put.await {
                Ok(_) => {
                    self.note_done("write");
                    return Ok(());
                }
                Err(error) => error,
            };
            if self.has_new_credentials(&error, generation) {
                continue;
            }
            if !matches!(error, Error::AlreadyExists { .. }) && !is_lost(&error) {
                return Err(self.failed("write", error));
            }
            // Not for the whole time once more.
            self.note_answers(!(is_lost(&error) && attempts.are_over()));
            match self.owner(&writer, &contents).await? {
                Owner::Us => {
                    tracing::debug!("{self}: the answer was lost, the file is there: {}", self.told(&error));
                    return Ok(());
                }
                Owner::Another => {
                    return Err(StorageError::AlreadyExists { location: self.to_string() });
                }
                Owner::Nobody if attempts.again().await => {}
                Owner::Nobody => return Err(self.failed("write", attempts.tell(error))),
            }
        }
    }

    /// For a store that cannot create, where nobody else writes.
    async fn create_alone(&self, contents: Bytes) -> Result<(), StorageError> {
        let there = self.attempt("look up", || async { self.store().head(self.key()).await }).await;
        match there {
            Ok(_) => Err(StorageError::AlreadyExists { location: self.to_string() }),
            Err(error) if error.is_not_found() => self.replace(contents).await,
            Err(error) => Err(error),
        }
    }

    /// Writes a file over what is there.
    pub(in crate::storage) async fn replace(&self, contents: Bytes) -> Result<(), StorageError> {
        let put = || async { self.store().put(self.key(), PutPayload::from(contents.clone())).await };
        self.attempt("write", put).await.map(drop)
    }

    /// Whether the file that lies here is that of a writer.
    pub(in crate::storage) async fn is_of(&self, writer: &str) -> Result<bool, StorageError> {
        match self.attempt("look up", || self.look_up()).await {
            Ok(found) => Ok(found.as_deref() == Some(writer)),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn owner(&self, writer: &str, contents: &Bytes) -> Result<Owner, StorageError> {
        let of = |ours| if ours { Owner::Us } else { Owner::Another };
        let found = match self.attempt("look up", || self.look_up()).await {
            Err(error) if error.is_not_found() => return Ok(Owner::Nobody),
            other => other?,
        };
        match found {
            Some(found) => Ok(of(found == writer)),
            // A store that keeps no attributes: equal contents are as good as our own.
            None => match self
                .attempt("read", || async { self.store().get(self.key()).await?.bytes().await })
                .await
            {
                Ok(there) => Ok(of(there == *contents)),
                Err(error) if error.is_not_found() => Ok(Owner::Nobody),
                Err(error) => Err(error),
            },
        }
    }

    /// The writer of the file, where it has the attribute.
    async fn look_up(&self) -> object_store::Result<Option<String>> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        let found = self.store().get_opts(self.key(), options).await?;
        Ok(found.attributes.get(&Attribute::Metadata(WRITER.into())).map(|writer| writer.to_string()))
    }

    /// Makes sure, once, that the store refuses to create a file twice.
    ///
    /// # Errors
    /// [`StorageError::NoCreate`] where it overwrites; else if it fails.
    pub(in crate::storage) async fn require_creates(&self) -> Result<(), StorageError> {
        let Some(remote) = self.remote() else { return Ok(()) };
        if remote.single_writer || remote.creates.get().is_some() {
            return Ok(());
        }
        let name = format!(".instdisc-probe-{}", writer_id());
        let probe = self.with_file_name(&name).unwrap_or_else(|| self.join(&name));
        probe.replace(Bytes::from_static(b"first")).await?;
        let second = probe.create_again().await;
        probe.attempt("delete", || async { probe.store().delete(probe.key()).await }).await?;
        if second? {
            return Err(StorageError::NoCreate { location: self.to_string() });
        }
        remote.creates.get_or_init(|| ());
        Ok(())
    }

    /// Whether a file that is there can be created again.
    async fn create_again(&self) -> Result<bool, StorageError> {
        let put = || async {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            match self.store().put_opts(self.key(), PutPayload::from("second"), options).await {
                Ok(_) | Err(Error::NotImplemented { .. }) => Ok(true),
                Err(Error::AlreadyExists { .. }) => Ok(false),
                Err(error) => Err(error),
            }
        };
        self.attempt("write", put).await
    }
}

#[cfg(test)]
mod tests;
