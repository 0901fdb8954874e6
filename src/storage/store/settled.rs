//! Conditional creates that give a definite answer.
//!
//! The store decides which of several writers wins, by a put that fails if the key exists (`If-None-Match: *`). Its
//! answer can be lost after it acted; the next attempt then finds the writer's own file. Therefore every file is marked
//! with its writer's id, and a doubtful answer is settled by reading the file back.

use bytes::Bytes;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, Error, GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    PutResult, Result,
};

use super::retried::{Attempts, Store, random_bits};
use super::{is_lost, is_outage};

/// Attribute that names the file's writer; letters only, since Azure requires a C# identifier.
const WRITER: &str = "instdiscwriter";

/// Operation that [`Error::NotImplemented`] names for a store without conditional creates.
pub(crate) const CONDITIONAL_CREATE: &str = "conditional create";

/// Returns an id that is unique to one write of one process.
pub(crate) fn writer_id() -> String {
    format!("{:016x}{:016x}", random_bits(), random_bits())
}

pub(super) fn attributes(writer: &str) -> Attributes {
    Attributes::from_iter([(Attribute::Metadata(WRITER.into()), writer.to_owned())])
}

/// Returns the writer that a file's attributes name.
pub(super) fn writer(attributes: &Attributes) -> Option<&str> {
    attributes.get(&Attribute::Metadata(WRITER.into())).map(AsRef::as_ref)
}

pub(super) fn look_up() -> GetOptions {
    GetOptions::new().with_head(true)
}

/// Writer of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Nobody,
    Us,
    Another,
}

impl Store {
    /// Creates a file where other processes may create it, too.
    pub(super) async fn create(
        &self,
        key: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let writer = writer_id();
        let options = PutOptions { attributes: attributes(&writer), ..options };
        let mut attempts = Attempts::new(self.limits);
        loop {
            let error = match self.put_once(key, payload.clone(), options.clone()).await {
                Err(error) if matches!(error, Error::AlreadyExists { .. }) || is_lost(&error) => error,
                Err(error) => {
                    self.health.note_answers(!is_outage(&error));
                    return Err(error);
                }
                settled => return settled,
            };
            // Once the time is over, the look-up must not take the full time again.
            self.health.note_answers(!(is_lost(&error) && attempts.are_over()));
            match self.owner(key, &writer, &payload).await? {
                Owner::Us => {
                    tracing::debug!("{self}/{key}: the answer to a create was lost; the file is there");
                    return Ok(written());
                }
                Owner::Another => return Err(exists(key)),
                Owner::Nobody if attempts.again().await => {}
                Owner::Nobody => return Err(attempts.explain(error)),
            }
        }
    }

    /// Creates a file where no other process writes, for a store without conditional creates.
    pub(super) async fn create_alone(
        &self,
        key: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        match self.head(key).await {
            Ok(_) => Err(exists(key)),
            Err(Error::NotFound { .. }) => {
                let options = PutOptions { mode: PutMode::Overwrite, ..options };
                self.put_opts(key, payload, options).await
            }
            Err(error) => Err(error),
        }
    }

    async fn owner(&self, key: &Path, ours: &str, payload: &PutPayload) -> Result<Owner> {
        let of = |is_ours| if is_ours { Owner::Us } else { Owner::Another };
        let found = match self.get_opts(key, look_up()).await {
            Err(Error::NotFound { .. }) => return Ok(Owner::Nobody),
            other => other?,
        };
        if let Some(writer) = writer(&found.attributes) {
            return Ok(of(writer == ours));
        }
        // For a store without attributes, equal contents are as good as our own file.
        match self.get(key).await {
            Ok(there) => Ok(of(there.bytes().await? == Bytes::from(payload.clone()))),
            Err(Error::NotFound { .. }) => Ok(Owner::Nobody),
            Err(error) => Err(error),
        }
    }

    /// Checks, once, that the store refuses to create a file twice.
    ///
    /// # Errors
    /// [`Error::NotImplemented`] of [`CONDITIONAL_CREATE`] if the store overwrites; else if a request fails.
    pub(super) async fn require_creates(&self, key: &Path) -> Result<()> {
        if self.creates.get().is_some() {
            return Ok(());
        }
        let mut folder: Vec<_> = key.parts().collect();
        folder.pop();
        let probe = Path::from_iter(folder).join(format!(".instdisc-probe-{}", writer_id()));
        self.put(&probe, PutPayload::from("first")).await?;
        let second = self.creates_again(&probe).await;
        self.delete(&probe).await?;
        if second? {
            let operation = CONDITIONAL_CREATE.to_owned();
            return Err(Error::NotImplemented { operation, implementer: self.to_string() });
        }
        self.creates.get_or_init(|| ());
        Ok(())
    }

    /// Returns whether the store creates a file that already exists.
    async fn creates_again(&self, key: &Path) -> Result<bool> {
        let mut attempts = Attempts::new(self.limits);
        loop {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            match self.put_once(key, PutPayload::from("second"), options).await {
                Ok(_) | Err(Error::NotImplemented { .. }) => return Ok(true),
                Err(Error::AlreadyExists { .. }) => return Ok(false),
                Err(error) if is_lost(&error) && attempts.again().await => {}
                Err(error) => {
                    self.health.note_answers(!is_outage(&error));
                    return Err(attempts.explain(error));
                }
            }
        }
    }
}

fn exists(key: &Path) -> Error {
    Error::AlreadyExists { path: key.to_string(), source: "another writer created it".into() }
}

pub(super) fn written() -> PutResult {
    PutResult { e_tag: None, version: None, extensions: Default::default() }
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use async_trait::async_trait;
    use futures::stream::BoxStream;
    use object_store::client::{HttpError, HttpErrorKind};
    use object_store::memory::InMemory;
    use object_store::{
        CopyOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions, UploadPart,
    };

    use super::*;
    use crate::failure::Failure;
    use crate::storage::{Location, PublishMode, RetryLimits, StorageError, StorageOptions, Upload};

    /// A store with faults of real stores.
    #[derive(Debug, Default)]
    struct Vicious {
        inner: InMemory,
        /// A create overwrites.
        overwrites: bool,
        /// Every other answer to a create, and every answer to the end of an upload, is lost after the store acted.
        loses: bool,
        lose_now: AtomicBool,
        /// Attributes are dropped.
        forgets: bool,
    }

    impl fmt::Display for Vicious {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a vicious store")
        }
    }

    #[async_trait]
    impl ObjectStore for Vicious {
        async fn put_opts(&self, key: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
            let creates = options.mode == PutMode::Create;
            let mode = if self.overwrites { PutMode::Overwrite } else { options.mode.clone() };
            let attributes = if self.forgets { Attributes::new() } else { options.attributes.clone() };
            let put = self.inner.put_opts(key, payload, PutOptions { mode, attributes, ..options }).await;
            if self.loses && creates && !self.lose_now.fetch_xor(true, Ordering::Relaxed) {
                return Err(lost());
            }
            put
        }

        async fn put_multipart_opts(
            &self,
            key: &Path,
            options: PutMultipartOptions,
        ) -> Result<Box<dyn MultipartUpload>> {
            let upload = self.inner.put_multipart_opts(key, options).await?;
            Ok(if self.loses { Box::new(Losing(upload)) } else { upload })
        }

        async fn get_opts(&self, key: &Path, options: GetOptions) -> Result<GetResult> {
            self.inner.get_opts(key, options).await
        }

        fn delete_stream(&self, keys: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
            self.inner.delete_stream(keys)
        }

        fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
            self.inner.list(prefix)
        }

        async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
            self.inner.list_with_delimiter(prefix).await
        }

        async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
            self.inner.copy_opts(from, to, options).await
        }
    }

    fn lost() -> Error {
        let source = HttpError::new(HttpErrorKind::Interrupted, std::io::Error::other("reset"));
        Error::Generic { store: "vicious", source: Box::new(source) }
    }

    /// An upload whose last answer is lost.
    #[derive(Debug)]
    struct Losing(Box<dyn MultipartUpload>);

    #[async_trait]
    impl MultipartUpload for Losing {
        fn put_part(&mut self, data: PutPayload) -> UploadPart {
            self.0.put_part(data)
        }

        async fn complete(&mut self) -> Result<PutResult> {
            self.0.complete().await?;
            Err(lost())
        }

        async fn abort(&mut self) -> Result<()> {
            self.0.abort().await
        }
    }

    fn folder(store: Vicious, options: &StorageOptions) -> Location {
        Location::on_store(Arc::new(store), options)
    }

    /// Makes a folder in a store that loses answers.
    fn losing(forgets: bool) -> Location {
        folder(Vicious { loses: true, forgets, ..Vicious::default() }, &StorageOptions::default())
    }

    #[test]
    fn a_sole_writer_whose_answers_are_lost_is_never_told_that_another_wrote() {
        for forgets in [false, true] {
            let folder = losing(forgets);
            for number in 0..40 {
                let file = folder.join(&format!("file-{number}"));
                file.publish(format!("contents {number}"), PublishMode::Create).expect("we are alone");
                assert_eq!(file.read().expect("there"), format!("contents {number}"));
            }
        }
    }

    #[test]
    fn of_many_creators_whose_answers_are_lost_one_wins() {
        let folder = losing(false);
        for round in 0..10 {
            let file = folder.join(&format!("file-{round}"));
            // Equal contents from all writers: only the writer's id distinguishes them.
            let create = |_| file.publish("claim", PublishMode::Create);
            let results: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8).map(|number| scope.spawn(move || create(number))).collect();
                threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
            });
            assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
            let lost =
                results.iter().filter(|result| matches!(result, Err(StorageError::AlreadyExists { .. })));
            assert_eq!(lost.count(), 7);
        }
    }

    #[test]
    fn a_store_that_overwrites_silently_is_refused_unless_there_is_one_writer() {
        let bad = || Vicious { overwrites: true, ..Vicious::default() };
        let shared = folder(bad(), &StorageOptions::default());
        let error = shared.join("file").publish("x", PublishMode::Create).expect_err("refused");
        assert!(matches!(error, StorageError::Refused { failure: Failure::Config, .. }), "{error}");
        assert!(error.to_string().contains("--single-writer"), "{error}");
        assert!(shared.list().expect("a list").is_empty(), "the probe leaves nothing");
        let alone = StorageOptions { single_writer: true, ..StorageOptions::default() };
        let own = folder(bad(), &alone).join("file");
        own.publish("x", PublishMode::Create).expect("no other writer");
        let again = own.publish("y", PublishMode::Create).expect_err("it is there");
        assert!(matches!(again, StorageError::AlreadyExists { .. }));
        assert_eq!(own.read().expect("there"), "x");
    }

    #[test]
    fn without_retries_a_lost_answer_is_still_settled() {
        let retry = RetryLimits { time: std::time::Duration::ZERO, tries: 0 };
        let options = StorageOptions { retry, ..StorageOptions::default() };
        let folder = folder(Vicious { loses: true, ..Vicious::default() }, &options);
        // The probe's create is the first whose answer is lost, and without retries that is an error.
        folder.join("a").publish("x", PublishMode::Create).expect_err("the probe's answer was lost");
        folder.join("b").publish("x", PublishMode::Create).expect("settled");
    }

    #[test]
    fn an_upload_whose_last_answer_was_lost_is_settled_by_its_writer() {
        let file = losing(false).join("file");
        let mut upload = Upload::start(&file).expect("started");
        std::io::Write::write_all(&mut upload, b"contents").expect("written");
        assert_eq!(upload.finish().expect("the file is there").bytes, 8);
        assert_eq!(file.read().expect("there"), "contents");
    }
}
