use std::sync::atomic::{AtomicBool, Ordering};

use object_store::client::{HttpError, HttpErrorKind};
use object_store::memory::InMemory;

use super::*;
use crate::storage::{Location, PublishMode, RetryLimits, StorageError, StorageOptions, Upload};

/// A store with the vices of some.
#[derive(Debug, Default)]
struct Vicious {
    inner: InMemory,
    /// A create overwrites.
    overwrites: bool,
    /// Every other answer to a create, and each to the end of an upload, is lost after the store acted.
    loses: bool,
    lose_now: AtomicBool,
    /// No attributes are kept.
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

#[test]
fn a_sole_writer_whose_answers_are_lost_is_never_told_that_another_wrote() {
    for forgets in [false, true] {
        let folder =
            folder(Vicious { loses: true, forgets, ..Vicious::default() }, &StorageOptions::default());
        for number in 0..40 {
            let file = folder.join(&format!("file-{number}"));
            file.publish(format!("contents {number}"), PublishMode::Create).expect("we are alone");
            assert_eq!(file.read().expect("there"), format!("contents {number}"));
        }
    }
}

#[test]
fn of_many_creators_whose_answers_are_lost_one_wins() {
    let folder = folder(Vicious { loses: true, ..Vicious::default() }, &StorageOptions::default());
    for round in 0..10 {
        let file = folder.join(&format!("file-{round}"));
        // The same contents from all: the writer's id alone tells them apart.
        let create = |_| file.publish("claim", PublishMode::Create);
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|number| scope.spawn(move || create(number))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
        let lost = results.iter().filter(|result| matches!(result, Err(StorageError::AlreadyExists { .. })));
        assert_eq!(lost.count(), 7);
    }
}

#[test]
fn a_store_that_overwrites_silently_is_refused_unless_there_is_one_writer() {
    let bad = || Vicious { overwrites: true, ..Vicious::default() };
    let shared = folder(bad(), &StorageOptions::default());
    let error = shared.join("file").publish("x", PublishMode::Create).expect_err("refused");
    assert!(matches!(error, StorageError::NoCreate { .. }), "{error}");
    assert!(error.to_string().contains("--single-writer"), "{error}");
    assert!(shared.list().expect("a list").is_empty(), "the probe leaves nothing");
    let mut alone = StorageOptions::new(Vec::new());
    alone.single_writer = true;
    let own = folder(bad(), &alone).join("file");
    own.publish("x", PublishMode::Create).expect("no other writer");
    let again = own.publish("y", PublishMode::Create).expect_err("it is there");
    assert!(matches!(again, StorageError::AlreadyExists { .. }));
    assert_eq!(own.read().expect("there"), "x");
}

#[test]
fn without_retries_a_lost_answer_is_still_settled() {
    let retry = RetryLimits { time: std::time::Duration::ZERO, tries: 0 };
    let mut options = StorageOptions::new(Vec::new());
    options.retry = retry;
    let folder = folder(Vicious { loses: true, ..Vicious::default() }, &options);
    // The probe's create is the first whose answer is lost, and without retries that is an error.
    folder.join("a").publish("x", PublishMode::Create).expect_err("the probe's answer was lost");
    folder.join("b").publish("x", PublishMode::Create).expect("settled");
}

#[test]
fn an_upload_whose_last_answer_was_lost_is_settled_by_its_writer() {
    let file = folder(Vicious { loses: true, ..Vicious::default() }, &StorageOptions::default()).join("file");
    let mut upload = Upload::start(&file).expect("started");
    std::io::Write::write_all(&mut upload, b"contents").expect("written");
    assert_eq!(upload.finish().expect("the file is there").bytes, 8);
    assert_eq!(file.read().expect("there"), "contents");
}
