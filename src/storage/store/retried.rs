//! Attempts beyond those of the object_store crate.
//!
//! The crate repeats a request on 5xx, 429 and lost connections, and resumes a broken body of a read. It gives up at
//! once if an answer to a list, an upload or a conditional write breaks. [`Store`] repeats those within the same
//! limits, and repeats refused requests once there are new credentials.

use std::collections::hash_map::RandomState;
use std::error::Error as StdError;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt, TryFutureExt, TryStreamExt};
use object_store::client::HttpErrorKind;
use object_store::path::Path;
use object_store::retry::{RetryContext, RetryFailure, RetryPolicy};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    UploadPart,
};

use super::counted::{failed_tries, operation};
use super::settled::{attributes, look_up, writer, writer_id, written};
use super::{
    Fault, Health, OpenError, Provider, RetryLimits, SIGNATURE_LIFE, StorageOptions, is_bare_refusal,
    is_lost, is_outage,
};

/// First pause; each further one is about twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Time limit of each request after an operation was given up: the job ends and cleans up, and must not spend the full
/// retry time on each step.
const LAST_PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });

/// Names of operations in error messages.
const READ: &str = "read";
const LOOK_UP: &str = "look up";
const LIST: &str = "list";
const WRITE: &str = "write";
const DELETE: &str = "delete";

/// Returns bits that differ from call to call and from process to process.
pub(super) fn random_bits() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Returns the pause after a number of attempts; random, so that processes do not return at the same moment.
fn pause(attempts: usize) -> Duration {
    let full = FIRST_PAUSE.saturating_mul(1 << attempts.min(10) as u32).min(LONGEST_PAUSE);
    let part = (random_bits() >> 11) as f64 / (1_u64 << 53) as f64;
    full.mul_f64(0.5 + 0.5 * part)
}

#[derive(Debug)]
pub(super) struct Attempts {
    limits: RetryLimits,
    started: Instant,
    /// Start of the last attempt.
    last: Instant,
    made: usize,
}

impl Attempts {
    pub(super) fn new(limits: RetryLimits) -> Self {
        let now = Instant::now();
        Self { limits, started: now, last: now, made: 1 }
    }

    /// Waits before another attempt; returns `false` if the limits allow none.
    pub(super) async fn again(&mut self) -> bool {
        if self.tries() > self.limits.tries || self.are_over() {
            return false;
        }
        let left = self.limits.time.saturating_sub(self.started.elapsed());
        tokio::time::sleep(pause(self.made).min(left)).await;
        self.made += 1;
        self.last = Instant::now();
        true
    }

    pub(super) fn are_over(&self) -> bool {
        self.started.elapsed() >= self.limits.time
    }

    fn outlived_signature(&self) -> bool {
        self.last.elapsed() >= SIGNATURE_LIFE
    }

    /// Returns the number of failed tries, including those within an attempt.
    fn tries(&self) -> usize {
        failed_tries().max(self.made)
    }

    /// Adds the number of tries to an error, if there were several.
    pub(super) fn explain(&self, error: Error) -> Error {
        let tries = self.tries();
        // Whether an object exists is a valid answer after any number of tries.
        if tries == 1 || !matches!(error, Error::Generic { .. }) {
            return error;
        }
        let seconds = self.started.elapsed().as_secs_f64();
        failed(GaveUp { tries, seconds, source: error })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("gave up after {tries} tries in {seconds:.1} s: {source}")]
struct GaveUp {
    tries: usize,
    seconds: f64,
    source: Error,
}

#[derive(Debug, thiserror::Error)]
#[error("no answer in {} s, after the store was given up", LAST_PATIENCE.as_secs())]
struct CutShort;

fn failed(source: impl StdError + Send + Sync + 'static) -> Error {
    Error::Generic { store: "object store", source: Box::new(source) }
}

/// Store of a bucket, which repeats lost requests and settles the lost answers of creates and uploads.
#[derive(Clone, Debug)]
pub(in crate::storage) struct Store {
    provider: Arc<Provider>,
    pub(in crate::storage) health: Arc<Health>,
    pub(super) limits: RetryLimits,
    /// Whether the user asserts that no other process writes.
    pub(in crate::storage) single_writer: bool,
    /// Set once a probe found that the store creates conditionally.
    pub(super) creates: Arc<OnceLock<()>>,
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.provider.fmt(f)
    }
}

impl Store {
    /// Opens the store of a bucket; nothing is contacted yet.
    ///
    /// # Errors
    /// If an option or a setting is wrong.
    pub(in crate::storage) fn open(
        scheme: &str,
        bucket: &str,
        options: &StorageOptions,
    ) -> std::result::Result<Self, OpenError> {
        Ok(Self::over(Provider::open(scheme, bucket, options)?, options))
    }

    fn over(provider: Provider, options: &StorageOptions) -> Self {
        let StorageOptions { retry: limits, single_writer, .. } = *options;
        let (provider, health, creates) = (Arc::new(provider), Arc::default(), Arc::default());
        Self { provider, health, limits, single_writer, creates }
    }

    /// Wraps a store of a test.
    #[cfg(test)]
    pub(in crate::storage) fn of_test(store: Arc<dyn ObjectStore>, options: &StorageOptions) -> Self {
        Self::over(Provider::of_store(store), options)
    }

    /// Describes an error and its causes on one line, without secrets.
    pub(in crate::storage) fn describe(&self, error: &Error) -> String {
        self.provider.describe(error)
    }

    /// Puts once: only the caller knows what a lost answer to a conditional put means.
    pub(super) async fn put_once(
        &self,
        key: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.attempt_once(WRITE, key, putting(key, payload, options)).await
    }

    /// Runs an operation that may run twice, and repeats it if a request was lost.
    async fn attempt<T, F>(
        &self,
        name: &'static str,
        key: &Path,
        action: impl Fn(Arc<dyn ObjectStore>) -> F + Send + Sync,
    ) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>> + Send,
    {
        let attempts = operation(async {
            let mut attempts = Attempts::new(self.limits);
            loop {
                let done = self.attempt_once(name, key, &action).await;
                let Err(error) = done else {
                    self.health.note_answers(true);
                    return done;
                };
                let was_lost = is_lost(&error) || attempts.outlived_signature();
                if !was_lost || !attempts.again().await {
                    self.health.note_answers(!(was_lost || is_outage(&error)));
                    return Err(attempts.explain(error));
                }
                let reason = self.provider.describe(&error);
                tracing::info!("{self}/{key}: retrying to {name}, which was lost on the way: {reason}");
            }
        });
        if !self.health.is_gone() {
            return attempts.await;
        }
        tokio::time::timeout(LAST_PATIENCE, attempts).await.unwrap_or_else(|_| Err(failed(CutShort)))
    }

    /// Runs an operation, and repeats it only if it was refused and there are new credentials.
    async fn attempt_once<T, F>(
        &self,
        name: &'static str,
        key: &Path,
        action: impl Fn(Arc<dyn ObjectStore>) -> F + Send + Sync,
    ) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>> + Send,
    {
        loop {
            let (store, generation) = self.provider.current();
            let error = match action(Arc::clone(&store)).await {
                Ok(done) => {
                    self.health.note_done(name);
                    return Ok(done);
                }
                Err(error) if name == LOOK_UP => self.explain_look_up(&*store, key, error).await,
                Err(error) => error,
            };
            if matches!(error, Error::NotFound { .. }) {
                self.health.note_done(name);
            }
            let is_refused = Fault::of(&error).is_some_and(|fault| fault.is_refusal());
            if !(is_refused && self.provider.has_new_credentials(generation)) {
                return Err(error);
            }
        }
    }

    /// Finds the reason of a failed look-up (HEAD) with a list request, since the answer to a HEAD has a status but no
    /// text: an absent bucket or refused credentials.
    async fn explain_look_up(&self, store: &dyn ObjectStore, key: &Path, error: Error) -> Error {
        let is_absent = matches!(error, Error::NotFound { .. });
        // A bucket from which something was listed or read exists.
        let is_known = is_absent && [LIST, READ].iter().any(|name| self.health.has_worked(Some(name)));
        if is_known || !(is_absent || is_bare_refusal(&error)) {
            return error;
        }
        match store.list(Some(key)).next().await {
            Some(Err(reason)) => match Fault::of(&reason) {
                Some(Fault::NoBucket) => reason,
                Some(fault) if fault.is_refusal() && !is_absent => reason,
                _ => error,
            },
            Some(Ok(_)) | None => {
                self.health.note_done(LIST);
                error
            }
        }
    }
}

fn putting<'a>(
    key: &'a Path,
    payload: PutPayload,
    options: PutOptions,
) -> impl Fn(Arc<dyn ObjectStore>) -> BoxFuture<'a, Result<PutResult>> {
    move |store| {
        let (payload, options) = (payload.clone(), options.clone());
        async move { store.put_opts(key, payload, options).await }.boxed()
    }
}

/// Reads the whole body, so that a broken one fails the attempt.
async fn read_whole(mut got: GetResult) -> Result<GetResult> {
    let (meta, range) = (got.meta.clone(), got.range.clone());
    let (attributes, extensions) = (std::mem::take(&mut got.attributes), std::mem::take(&mut got.extensions));
    let body = got.bytes().await?;
    let payload = GetResultPayload::Stream(stream::once(async { Ok(body) }).boxed());
    Ok(GetResult { payload, meta, range, attributes, extensions })
}

#[async_trait]
impl ObjectStore for Store {
    async fn put_opts(&self, key: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        match options.mode {
            PutMode::Overwrite => self.attempt(WRITE, key, putting(key, payload, options)).await,
            PutMode::Create if self.single_writer => self.create_alone(key, payload, options).await,
            PutMode::Create => {
                operation(self.require_creates(key)).await?;
                operation(self.create(key, payload, options)).await
            }
            PutMode::Update(_) => self.put_once(key, payload, options).await,
        }
    }

    async fn put_multipart_opts(
        &self,
        key: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let writer = writer_id();
        let options = PutMultipartOptions { attributes: attributes(&writer), ..options };
        let options = options.with_retry_policy(Arc::new(PartRetries(self.limits)));
        let start = |store: Arc<dyn ObjectStore>| {
            let options = options.clone();
            async move { store.put_multipart_opts(key, options).await }
        };
        let upload = self.attempt(WRITE, key, start).await?;
        Ok(Box::new(RetriedUpload { upload, store: self.clone(), key: key.clone(), writer }))
    }

    async fn get_opts(&self, key: &Path, options: GetOptions) -> Result<GetResult> {
        // A bucket itself is not a file; some stores answer such a read with a list.
        if key.as_ref().is_empty() {
            return Err(Error::NotFound { path: String::new(), source: "a bucket is not a file".into() });
        }
        let is_look_up = options.head;
        let get = |store: Arc<dyn ObjectStore>| {
            let options = options.clone();
            async move {
                let got = store.get_opts(key, options).await?;
                if is_look_up { Ok(got) } else { read_whole(got).await }
            }
        };
        self.attempt(if is_look_up { LOOK_UP } else { READ }, key, get).await
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        let delete = move |key: Path| {
            let this = this.clone();
            async move {
                let key_of = &key;
                let delete = |store: Arc<dyn ObjectStore>| async move { store.delete(key_of).await };
                this.attempt(DELETE, &key, delete).await?;
                Ok(key)
            }
        };
        keys.and_then(delete).boxed()
    }

    /// Collects a whole list as one attempt.
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix) = (self.clone(), prefix.cloned());
        let listed = async move {
            let list = |store: Arc<dyn ObjectStore>| store.list(prefix.as_ref()).try_collect::<Vec<_>>();
            let found = this.attempt(LIST, &prefix.clone().unwrap_or_default(), list).await?;
            Ok(stream::iter(found).map(Ok))
        };
        listed.try_flatten_stream().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let list = |store: Arc<dyn ObjectStore>| async move { store.list_with_delimiter(prefix).await };
        self.attempt(LIST, &prefix.cloned().unwrap_or_default(), list).await
    }

    // Copies may be conditional, like puts; no job needs them yet.
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.provider.current().0.copy_opts(from, to, options).await
    }
}

/// An upload whose completion succeeds although its answer was lost, if the file exists. Its removal, after a failure,
/// neither hides the failure nor takes the time of all retries again.
#[derive(Debug)]
struct RetriedUpload {
    upload: Box<dyn MultipartUpload>,
    store: Store,
    key: Path,
    writer: String,
}

#[async_trait]
impl MultipartUpload for RetriedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (part, health) = (self.upload.put_part(data), Arc::clone(&self.store.health));
        Box::pin(async move {
            let put = part.await;
            // [`PartRetries`] has used up the time.
            if put.as_ref().is_err_and(is_outage) {
                health.note_answers(false);
            }
            put
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let began = Instant::now();
        let Err(error) = self.upload.complete().await else { return Ok(written()) };
        // A lost answer counts as an outage only once the time is over.
        let gave_up = !is_lost(&error) || began.elapsed() >= self.store.limits.time;
        if is_outage(&error) && gave_up {
            self.store.health.note_answers(false);
        }
        match self.store.get_opts(&self.key, look_up()).await {
            Ok(found) if writer(&found.attributes) == Some(&self.writer) => {
                tracing::info!("{}/{}: the last answer was lost; the file is there", self.store, self.key);
                Ok(written())
            }
            _ => Err(error),
        }
    }

    async fn abort(&mut self) -> Result<()> {
        let Self { upload, store, key, .. } = self;
        let more = if store.health.is_gone() { Duration::ZERO } else { store.limits.time };
        let reason = match tokio::time::timeout(LAST_PATIENCE + more, upload.abort()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => store.provider.describe(&error),
            Err(_) => "no answer".to_owned(),
        };
        tracing::warn!("{store}/{key}: cannot remove the unfinished upload: {reason}");
        Ok(())
    }
}

/// Policy that repeats a part of an upload with a new signature.
#[derive(Debug)]
struct PartRetries(RetryLimits);

#[async_trait]
impl RetryPolicy for PartRetries {
    async fn retry(&self, context: RetryContext) -> bool {
        // Other failures were retried within the attempt, while its signature was valid.
        let lost = RetryFailure::Transport(HttpErrorKind::Unknown);
        let cut = RetryFailure::Transport(HttpErrorKind::Decode);
        let outlived_signature = context.elapsed >= SIGNATURE_LIFE * context.attempt as u32;
        let may_help = [lost, cut].contains(&context.failure) || outlived_signature;
        if !may_help || context.attempt > self.0.tries || context.elapsed >= self.0.time {
            return false;
        }
        tokio::time::sleep(pause(context.attempt).min(self.0.time - context.elapsed)).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use object_store::client::HttpError;
    use object_store::memory::InMemory;

    use super::*;
    use crate::storage::block_on;

    fn lost() -> Error {
        let error = HttpError::new(HttpErrorKind::Interrupted, io::Error::other("cut"));
        Error::Generic { store: "test", source: Box::new(error) }
    }

    fn retried(seconds: u64, tries: usize) -> Store {
        let retry = RetryLimits { time: Duration::from_secs(seconds), tries };
        Store::of_test(Arc::new(InMemory::new()), &StorageOptions { retry, ..StorageOptions::default() })
    }

    #[test]
    fn a_lost_operation_is_repeated_within_the_limits_and_the_error_says_how_often() {
        let store = retried(60, 2);
        let calls = AtomicUsize::new(0);
        let action = |_| {
            calls.fetch_add(1, Ordering::Relaxed);
            async { Err::<(), _>(lost()) }
        };
        let error = block_on(store.attempt(LIST, &Path::from("file"), action)).expect_err("always lost");
        assert_eq!(calls.load(Ordering::Relaxed), 3);
        let text = error.to_string();
        assert!(text.contains("gave up after 3 tries") && text.contains("cut"), "{text}");
    }

    #[test]
    fn attempts_are_made_for_the_time_of_retries_and_not_longer() {
        let store = retried(1, 100);
        let began = Instant::now();
        let last = Mutex::new(Duration::ZERO);
        let action = |_| {
            *last.lock().expect("one thread") = began.elapsed();
            async { Err::<(), _>(lost()) }
        };
        block_on(store.attempt(LIST, &Path::from("file"), action)).expect_err("always lost");
        let last = *last.lock().expect("one thread");
        // The pauses alone would end after 0.2 to 0.4, 0.6 to 1.2 and 1.4 to 2.8 s.
        assert!((900..1400).contains(&last.as_millis()), "{last:?}");
    }

    #[test]
    fn after_the_store_was_given_up_further_requests_end_soon() {
        let store = retried(0, 0);
        let (began, key) = (Instant::now(), Path::from("file"));
        block_on(store.attempt(LIST, &key, |_| async { Err::<(), _>(lost()) })).expect_err("lost");
        let hangs = |_| futures::future::pending::<Result<()>>();
        let error = block_on(store.attempt(DELETE, &key, hangs)).expect_err("hangs");
        assert!(error.to_string().contains("given up"), "{error:?}");
        assert!(began.elapsed() < LAST_PATIENCE * 10, "{:?}", began.elapsed());
        assert!(store.health.is_gone());
        block_on(store.attempt(LIST, &key, |_| async { Ok(()) })).expect("it is back");
        assert!(!store.health.is_gone());
    }

    /// Starts a server that answers each request with 503.
    fn refusing_server() -> String {
        use std::io::{BufRead, BufReader, Write};

        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let head = BufReader::new(stream.try_clone().expect("a stream"));
                head.lines().map_while(io::Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
                let answer = "HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                // The client may have gone away.
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        format!("http://{address}")
    }

    #[test]
    fn a_store_that_only_answers_503_is_given_up() {
        let pairs = [
            ("aws_endpoint", refusing_server().as_str()),
            ("aws_allow_http", "true"),
            ("aws_region", "us-east-1"),
            ("aws_skip_signature", "true"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
        let mut options = StorageOptions::new(pairs.into());
        options.retry = RetryLimits { time: Duration::from_secs(60), tries: 1 };
        let key = Path::from("file");
        let given_up = |ask: &dyn Fn(&Store)| {
            let store = Store::open("s3", "bucket", &options).expect("opened");
            ask(&store);
            store.health.is_gone()
        };
        assert!(given_up(&|store| {
            block_on(store.get_opts(&key, GetOptions::default())).expect_err("503");
        }));
        assert!(given_up(&|store| {
            block_on(store.put_multipart_opts(&key, PutMultipartOptions::default())).expect_err("503");
        }));
        // A part and the last step of an upload that was started before.
        for finish in [false, true] {
            assert!(given_up(&|store| {
                let asked = block_on(store.provider.current().0.get_opts(&key, GetOptions::default()));
                let upload = Box::new(Failing(Some(asked.expect_err("503"))));
                let mut upload =
                    RetriedUpload { upload, store: store.clone(), key: key.clone(), writer: String::new() };
                if finish {
                    block_on(upload.complete()).expect_err("503");
                } else {
                    block_on(upload.put_part(PutPayload::new())).expect_err("503");
                }
            }));
        }
    }

    /// An upload whose first step fails with this error and whose other steps are lost; its removal is never answered.
    #[derive(Debug)]
    struct Failing(Option<Error>);

    impl Failing {
        fn fail<T>(&mut self) -> Result<T> {
            Err(self.0.take().unwrap_or_else(lost))
        }
    }

    #[async_trait]
    impl MultipartUpload for Failing {
        fn put_part(&mut self, _: PutPayload) -> UploadPart {
            let failed = self.fail();
            Box::pin(async move { failed })
        }

        async fn complete(&mut self) -> Result<PutResult> {
            self.fail()
        }

        async fn abort(&mut self) -> Result<()> {
            std::future::pending().await
        }
    }

    #[test]
    fn that_a_file_does_not_exist_is_an_answer_also_after_a_lost_one() {
        let (store, key) = (retried(60, 2), &Path::from("file"));
        let calls = AtomicUsize::new(0);
        let action = |inner: Arc<dyn ObjectStore>| {
            let first = calls.fetch_add(1, Ordering::Relaxed) == 0;
            async move { if first { Err(lost()) } else { inner.get_opts(key, GetOptions::default()).await } }
        };
        let error = block_on(store.attempt(READ, key, action)).expect_err("nothing there");
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    }

    #[test]
    fn a_refused_operation_is_not_repeated() {
        let calls = AtomicUsize::new(0);
        let refused = |_| {
            calls.fetch_add(1, Ordering::Relaxed);
            async { Err::<(), _>(Error::NotImplemented { operation: "x".into(), implementer: "y".into() }) }
        };
        block_on(retried(60, 2).attempt(WRITE, &Path::from("file"), refused)).expect_err("refused");
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn an_upload_to_a_store_that_is_gone_ends_soon_and_with_its_cause() {
        for bytes in [0, 1] {
            let (store, key) = (retried(0, 0), Path::from("file"));
            let silent = Box::new(RetriedUpload {
                upload: Box::new(Failing(None)),
                store,
                key,
                writer: String::new(),
            });
            let began = Instant::now();
            let error = block_on(async move {
                let mut writer = object_store::WriteMultipart::new(silent);
                writer.write(&vec![7; bytes]);
                writer.finish().await.expect_err("the store is gone")
            });
            assert!(began.elapsed() < LAST_PATIENCE * 10, "{:?}", began.elapsed());
            assert!(error.to_string().contains("cut"), "{error}");
        }
    }
}
