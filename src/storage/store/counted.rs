//! Counts this process's requests to object stores, and their faults.
//!
//! [`Counted`] decorates the HTTP client, below the retries of object_store and of `retried`: it counts each attempt.

use std::cell::Cell;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    ReqwestConnector,
};

static TOTAL: Mutex<Traffic> =
    Mutex::new(Traffic { get: 0, put: 0, other: 0, received: 0, refused: 0, broken: 0, cut: 0 });

tokio::task_local! {
    static FAILED_TRIES: Cell<usize>;
}

/// Runs an operation whose failed requests [`failed_tries`] counts.
pub(super) async fn operation<F: Future>(operation: F) -> F::Output {
    FAILED_TRIES.scope(Cell::new(0), operation).await
}

/// Returns the number of failed requests of the current operation, including those that object_store repeats.
pub(super) fn failed_tries() -> usize {
    FAILED_TRIES.try_with(Cell::get).unwrap_or(0)
}

fn count(add: impl FnOnce(&mut Traffic)) {
    add(&mut TOTAL.lock().unwrap_or_else(PoisonError::into_inner));
}

fn count_fault(add: impl FnOnce(&mut Traffic)) {
    count(add);
    // Parts of an upload run in other tasks, outside any operation.
    let _ = FAILED_TRIES.try_with(|tries| tries.set(tries.get() + 1));
}

/// Status 429, by which a store asks its client to slow down.
const TOO_MANY_REQUESTS: u16 = 429;

/// Requests of this process to object stores so far, counting every attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// GET requests: reads and lists.
    pub get: u64,
    /// PUT requests: files and parts of files.
    pub put: u64,
    /// HEAD, POST and DELETE requests.
    pub other: u64,
    /// Bytes of bodies received.
    pub received: u64,
    /// Answers with status 5xx or 429.
    pub refused: u64,
    /// Requests without an answer: no connection, a reset, a time-out.
    pub broken: u64,
    /// Answers whose body broke off or stalled.
    pub cut: u64,
}

impl Traffic {
    /// Returns the counts of this process so far.
    pub fn of_this_process() -> Self {
        *TOTAL.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of all requests.
    pub fn requests(&self) -> u64 {
        self.get + self.put + self.other
    }

    /// Returns the number of faults of all kinds, each of which needs another attempt.
    pub fn faults(&self) -> u64 {
        self.refused + self.broken + self.cut
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self { get, put, other, received, .. }, requests) = (self, self.requests());
        write!(
            f,
            "object store: {requests} requests ({get} GET, {put} PUT, {other} others), {received} B received"
        )?;
        if self.faults() > 0 {
            let Self { refused, broken, cut, .. } = self;
            let faults = self.faults();
            write!(
                f,
                "; {faults} faults met by retries: {refused} answers 5xx or 429, {broken} broken \
                 connections, {cut} cut bodies"
            )?;
        }
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct CountedConnector;

impl HttpConnector for CountedConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        // Crypto provider of the whole process; an installed one is kept.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(HttpClient::new(Counted(ReqwestConnector::default().connect(options)?)))
    }
}

#[derive(Debug)]
struct Counted(HttpClient);

#[async_trait]
impl HttpService for Counted {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        count(|total| match request.method().as_str() {
            "GET" => total.get += 1,
            "PUT" => total.put += 1,
            _ => total.other += 1,
        });
        let answer = self.0.execute(request).await;
        let answer = answer.inspect_err(|_| count_fault(|total| total.broken += 1))?;
        let status = answer.status();
        if status.is_server_error() || status.as_u16() == TOO_MANY_REQUESTS {
            count_fault(|total| total.refused += 1);
        }
        let (head, body) = answer.into_parts();
        let mut is_cut = false;
        let body = body
            .map_frame(|frame| {
                count(|total| total.received += frame.data_ref().map_or(0, |bytes| bytes.len() as u64));
                frame
            })
            .map_err(move |error| {
                // A body may report its end more than once.
                if !std::mem::replace(&mut is_cut, true) {
                    count_fault(|total| total.cut += 1);
                }
                error
            });
        Ok(HttpResponse::from_parts(head, HttpResponseBody::new(body)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_shown_only_where_there_were_some() {
        let quiet = Traffic { get: 2, put: 1, received: 10, ..Traffic::default() };
        assert_eq!(quiet.to_string(), "object store: 3 requests (2 GET, 1 PUT, 0 others), 10 B received");
        let noisy = Traffic { refused: 2, cut: 1, ..quiet };
        assert!(noisy.to_string().ends_with(
            "; 3 faults met by retries: 2 answers 5xx or 429, 0 broken connections, 1 cut bodies"
        ));
    }
}
