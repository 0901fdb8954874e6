//! Attempts beyond those of the object_store crate.
//!
//! The crate tries a request again on 5xx, 429 and lost connections, and resumes a broken body of a read.
//! It gives up at once where an answer to a list, an upload or a conditional write breaks: those are tried
//! again here, within the same limits.

use std::collections::hash_map::RandomState;
use std::error::Error;
use std::hash::{BuildHasher, Hasher};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt;
use object_store::ObjectStore;
use object_store::client::{HttpError, HttpErrorKind};
use object_store::retry::{RetryContext, RetryFailure, RetryPolicy};

use super::counted::{failed_tries, operation};
use crate::storage::store::{LAST_PATIENCE, Remote, RetryLimits, SIGNATURE_LIFE};
use crate::storage::{Location, StorageError};

/// The first pause; each further one is about twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Bits that differ from call to call and from process to process.
pub(in crate::storage) fn random_bits() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A pause before the attempt after `attempt`, so that many processes do not come back at the same moment.
fn pause(attempt: usize) -> Duration {
    let full = FIRST_PAUSE.saturating_mul(1 << attempt.min(10) as u32).min(LONGEST_PAUSE);
    let part = (random_bits() >> 11) as f64 / (1_u64 << 53) as f64;
    full.mul_f64(0.5 + 0.5 * part)
}

/// The attempts of one operation.
#[derive(Debug)]
pub(in crate::storage) struct Attempts {
    limits: RetryLimits,
    started: Instant,
    /// When the last attempt began.
    last: Instant,
    made: usize,
}

impl Attempts {
    pub(in crate::storage) fn new(limits: RetryLimits) -> Self {
        let now = Instant::now();
        Self { limits, started: now, last: now, made: 1 }
    }

    /// Waits before another attempt; `false` where the limits allow none.
    pub(in crate::storage) async fn again(&mut self) -> bool {
        if self.tries() > self.limits.tries || self.are_over() {
            return false;
        }
        tokio::time::sleep(pause(self.made)).await;
        self.made += 1;
        self.last = Instant::now();
        true
    }

    /// Whether the time is over.
    pub(in crate::storage) fn are_over(&self) -> bool {
        self.started.elapsed() >= self.limits.time
    }

    /// Whether the last attempt ended for its signature's age alone.
    fn grew_old(&self) -> bool {
        self.last.elapsed() >= SIGNATURE_LIFE
    }

    /// Tries that failed, those within an attempt too.
    fn tries(&self) -> usize {
        failed_tries().max(self.made)
    }

    /// Says how many there were, where it was more than one.
    pub(in crate::storage) fn tell(&self, error: object_store::Error) -> object_store::Error {
        let tries = self.tries();
        // That nothing is there, or something, is an answer at any try.
        if tries == 1 || !matches!(error, object_store::Error::Generic { .. }) {
            return error;
        }
        let seconds = self.started.elapsed().as_secs_f64();
        let source = Box::new(GaveUp { tries, seconds, source: error });
        object_store::Error::Generic { store: "object store", source }
    }
}

/// An error after several attempts.
#[derive(Debug, thiserror::Error)]
#[error("given up after {tries} tries in {seconds:.1} s: {source}")]
struct GaveUp {
    tries: usize,
    seconds: f64,
    source: object_store::Error,
}

/// An operation that was cut short.
#[derive(Debug, thiserror::Error)]
#[error("no answer in {} s, after the store was given up", LAST_PATIENCE.as_secs())]
struct CutShort;

/// Whether the request or its answer was lost on the way, as opposed to being refused.
pub(in crate::storage) fn is_lost(error: &object_store::Error) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> =
        matches!(error, object_store::Error::Generic { .. }).then_some(error);
    while let Some(error) = cause {
        if error.is::<HttpError>() {
            // A request that cannot be made, as with http:// where it is not allowed, was not lost.
            return !error.to_string().contains("builder error");
        }
        cause = error.source();
    }
    false
}

/// The operation whose answer has no text.
const LOOK_UP: &str = "look up";

/// Whether an answer 400 refused a request, as S3 refuses a token that has expired.
fn is_bare_refusal(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::Generic { .. }) && error.to_string().contains("400 Bad Request")
}

impl Location {
    /// The limits of attempts; there are no further ones on this machine.
    pub(in crate::storage) fn retry_limits(&self) -> RetryLimits {
        let none = RetryLimits { time: Duration::ZERO, tries: 0 };
        self.remote().map_or(none, |remote| remote.retry)
    }

    /// Notes that the store answers, or that it was given up.
    pub(in crate::storage) fn note_answers(&self, answers: bool) {
        if let Some(remote) = self.remote() {
            remote.note(answers);
        }
    }

    /// Notes that the store has done an operation for this process.
    pub(in crate::storage) fn note_done(&self, operation: &'static str) {
        if let Some(remote) = self.remote() {
            remote.note_done(operation);
        }
    }

    /// Whether the store was given up a short time ago.
    pub(in crate::storage) fn is_gone(&self) -> bool {
        self.remote().is_some_and(Remote::is_gone)
    }

    /// Does what can be done twice, again where it was lost.
    pub(in crate::storage) async fn attempt<T, F>(
        &self,
        name: &'static str,
        action: impl Fn() -> F,
    ) -> Result<T, StorageError>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        // A bucket itself is no file; some stores answer with a list of it.
        if self.remote().is_some() && self.key().as_ref().is_empty() && ["read", LOOK_UP].contains(&name) {
            return Err(StorageError::NotFound { location: self.to_string(), local: false });
        }
        let attempts = operation(self.attempts(name, action));
        if !self.is_gone() {
            return attempts.await;
        }
        tokio::time::timeout(LAST_PATIENCE, attempts).await.unwrap_or_else(|_| {
            let source = Box::new(CutShort);
            Err(self.failed(name, object_store::Error::Generic { store: "object store", source }))
        })
    }

    /// What a list says of the error of a look-up (HEAD), whose answer has a status and no text: that it is the bucket
    /// that is absent, or the credentials that are refused.
    async fn explained(&self, error: object_store::Error) -> object_store::Error {
        let Some(remote) = self.remote() else { return error };
        let is_absent = matches!(error, object_store::Error::NotFound { .. });
        // What was listed or read before lies in a bucket.
        let is_known = is_absent && ["list", "read"].iter().any(|name| remote.has_worked(Some(name)));
        if is_known || !(is_absent || is_bare_refusal(&error)) {
            return error;
        }
        match self.store().list(Some(self.key())).next().await {
            Some(Err(other)) if self.explains(&other, is_absent) => other,
            Some(Err(_)) => error,
            Some(Ok(_)) | None => {
                self.note_done("list");
                error
            }
        }
    }

    async fn attempts<T, F>(&self, name: &'static str, action: impl Fn() -> F) -> Result<T, StorageError>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let mut attempts = Attempts::new(self.retry_limits());
        loop {
            let generation = self.generation();
            let error = match action().await {
                Ok(done) => {
                    self.note_answers(true);
                    self.note_done(name);
                    return Ok(done);
                }
                Err(error) => error,
            };
            let error = if name == LOOK_UP { self.explained(error).await } else { error };
            if matches!(error, object_store::Error::NotFound { .. }) {
                self.note_done(name);
            }
            if self.has_new_credentials(&error, generation) {
                continue;
            }
            let was_lost = is_lost(&error) || attempts.grew_old();
            if !was_lost || !attempts.again().await {
                self.note_answers(!was_lost);
                return Err(self.failed(name, attempts.tell(error)));
            }
            let told = self.told(&error);
            tracing::info!("{self}: {name} was lost on the way and is tried again: {told}");
        }
    }
}

/// Tries a part of an upload again, with a new signature.
#[derive(Debug)]
pub(in crate::storage) struct PartPatience(pub(in crate::storage) RetryLimits);

#[async_trait]
impl RetryPolicy for PartPatience {
    async fn retry(&self, context: RetryContext) -> bool {
        // Other failures were tried again within the attempt, as long as its signature lived.
        let lost = RetryFailure::Transport(HttpErrorKind::Unknown);
        let cut = RetryFailure::Transport(HttpErrorKind::Decode);
        let grew_old = context.elapsed >= SIGNATURE_LIFE * context.attempt as u32;
        let open = [lost, cut].contains(&context.failure) || grew_old;
        if !open || context.attempt > self.0.tries || context.elapsed >= self.0.time {
            return false;
        }
        tokio::time::sleep(pause(context.attempt)).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::storage::block_on;

    fn lost() -> object_store::Error {
        let error = HttpError::new(HttpErrorKind::Interrupted, io::Error::other("cut"));
        object_store::Error::Generic { store: "test", source: Box::new(error) }
    }

    #[test]
    fn what_was_lost_is_tried_again_within_the_limits_and_the_error_says_how_often() {
        let limits = RetryLimits { time: Duration::from_secs(60), tries: 2 };
        let location = Location::in_memory_within(limits).join("file");
        let calls = AtomicUsize::new(0);
        let action = || {
            calls.fetch_add(1, Ordering::Relaxed);
            async { Err::<(), _>(lost()) }
        };
        let error = block_on(location.attempt("list", action)).expect_err("always lost");
        assert_eq!(calls.load(Ordering::Relaxed), 3);
        let text = format!("{error}: {}", error.source().expect("a cause"));
        assert!(text.contains("file: list failed") && text.contains("after 3 tries"), "{text}");
        assert!(text.contains("cut"), "{text}");
    }

    #[test]
    fn once_the_store_was_given_up_what_is_still_asked_takes_no_time() {
        let limits = RetryLimits { time: Duration::ZERO, tries: 0 };
        let location = Location::in_memory_within(limits);
        let began = Instant::now();
        block_on(location.attempt("list", || async { Err::<(), _>(lost()) })).expect_err("lost");
        let hangs = || futures::future::pending::<object_store::Result<()>>();
        let error = block_on(location.attempt("delete", hangs)).expect_err("hangs");
        assert!(error.source().expect("a cause").to_string().contains("given up"), "{error:?}");
        assert!(began.elapsed() < LAST_PATIENCE * 10, "{:?}", began.elapsed());
        assert!(location.is_gone());
        block_on(location.attempt("list", || async { Ok(()) })).expect("it is back");
        assert!(!location.is_gone());
    }

    #[test]
    fn that_nothing_is_there_is_an_answer_also_after_a_lost_one() {
        let location = Location::in_memory().join("file");
        let calls = AtomicUsize::new(0);
        let action = || {
            let first = calls.fetch_add(1, Ordering::Relaxed) == 0;
            let location = &location;
            async move {
                if first {
                    Err(lost())
                } else {
                    location.store().get_opts(location.key(), Default::default()).await
                }
            }
        };
        let error = block_on(location.attempt("read", action)).expect_err("nothing there");
        assert!(error.is_not_found(), "{error}");
    }

    #[test]
    fn what_was_refused_is_not_tried_again() {
        let calls = AtomicUsize::new(0);
        let refused = || {
            calls.fetch_add(1, Ordering::Relaxed);
            async {
                Err::<(), _>(object_store::Error::NotImplemented {
                    operation: "x".into(),
                    implementer: "y".into(),
                })
            }
        };
        block_on(Location::in_memory().attempt("write", refused)).expect_err("refused");
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }
}
