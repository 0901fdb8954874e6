//! Errors of a store without secrets.
//!
//! Stores repeat a refused request in their answer, with its session token, and the object_store crate puts answers
//! into its errors. [`Redacted`] leaves the cause, without such answers and without the value of any secret setting.

use std::error::Error as StdError;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryFutureExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};

use super::Provider;

/// Removes secrets from the errors of a store.
#[derive(Debug)]
pub(super) struct Redacted<S> {
    inner: S,
    provider: Arc<Provider>,
}

impl<S: fmt::Display> fmt::Display for Redacted<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl<S> Redacted<S> {
    pub(super) fn new(inner: S, provider: Arc<Provider>) -> Self {
        Self { inner, provider }
    }

    fn redact(&self) -> impl Fn(Error) -> Error + Send + 'static {
        let provider = Arc::clone(&self.provider);
        move |error| provider.with_secrets(|secrets| secrets.redact(error))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<S: ObjectStore> ObjectStore for Redacted<S> {
    async fn put_opts(&self, key: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(key, payload, options).await.map_err(self.redact())
    }

    async fn put_multipart_opts(
        &self,
        key: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(key, options).await.map_err(self.redact())?;
        Ok(Box::new(Redacted { inner, provider: Arc::clone(&self.provider) }))
    }

    async fn get_opts(&self, key: &Path, options: GetOptions) -> Result<GetResult> {
        let mut got = self.inner.get_opts(key, options).await.map_err(self.redact())?;
        if let GetResultPayload::Stream(body) = got.payload {
            got.payload = GetResultPayload::Stream(body.map_err(self.redact()).boxed());
        }
        Ok(got)
    }

    async fn get_ranges(&self, key: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(key, ranges).await.map_err(self.redact())
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(keys).map_err(self.redact()).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix).map_err(self.redact()).boxed()
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset).map_err(self.redact()).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await.map_err(self.redact())
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await.map_err(self.redact())
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await.map_err(self.redact())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl MultipartUpload for Redacted<Box<dyn MultipartUpload>> {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.inner.put_part(data).map_err(self.redact()).boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.inner.complete().await.map_err(self.redact())
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await.map_err(self.redact())
    }
}

type BoxedError = Box<dyn StdError + Send + Sync>;

/// Environment variables of these families hold settings of stores.
const FAMILIES: [&str; 4] = ["AWS_", "AZURE_", "GOOGLE_", "GCP_"];
/// Shorter values are not replaced: they would blot out plain words.
const SHORTEST: usize = 8;

/// Values that no error shows.
pub(super) struct Secrets(Vec<String>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

impl Secrets {
    /// The secrets of the environment, and `more`.
    pub(super) fn new(more: impl IntoIterator<Item = String>) -> Self {
        let of_stores = |name: &str| FAMILIES.iter().any(|family| name.starts_with(family));
        let environment = variables().filter(|(name, _)| of_stores(name) && is_secret(name));
        let values = environment.map(|(_, value)| value).chain(more);
        Self(values.filter(|value| value.len() >= SHORTEST).collect())
    }

    /// A text without the secrets.
    pub(super) fn redact_text(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| text.replace(secret, "…"))
    }

    /// An error and its causes on one line, without the secrets.
    pub(super) fn describe(&self, error: &(dyn StdError + 'static)) -> String {
        self.redact_text(&one_line(error))
    }

    /// An error of the same kind without the secrets.
    fn redact(&self, error: Error) -> Error {
        let source = |source: BoxedError| -> BoxedError { self.describe(&*source).into() };
        let path = |path: String| self.redact_text(&path);
        match error {
            Error::Generic { store, source: cause } => Error::Generic { store, source: source(cause) },
            Error::NotFound { path: at, source: cause } => {
                Error::NotFound { path: path(at), source: source(cause) }
            }
            Error::NotSupported { source: cause } => Error::NotSupported { source: source(cause) },
            Error::AlreadyExists { path: at, source: cause } => {
                Error::AlreadyExists { path: path(at), source: source(cause) }
            }
            Error::Precondition { path: at, source: cause } => {
                Error::Precondition { path: path(at), source: source(cause) }
            }
            Error::NotModified { path: at, source: cause } => {
                Error::NotModified { path: path(at), source: source(cause) }
            }
            Error::PermissionDenied { path: at, source: cause } => {
                Error::PermissionDenied { path: path(at), source: source(cause) }
            }
            Error::Unauthenticated { path: at, source: cause } => {
                Error::Unauthenticated { path: path(at), source: source(cause) }
            }
            // These hold names of ours and keys.
            error @ (Error::InvalidPath { .. } | Error::NotImplemented { .. } | Error::JoinError { .. }) => {
                error
            }
            other => Error::Generic { store: "object store", source: source(Box::new(other)) },
        }
    }
}

/// The environment's variables, but for those that are not text: no setting of a store is one.
pub(super) fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Whether the setting of this name holds a secret.
pub(super) fn is_secret(name: &str) -> bool {
    let name = name.to_lowercase();
    let marks = [
        "secret",
        "token",
        "password",
        "account_key",
        "access_key",
        "master_key",
        "customer_key",
        "encryption_key",
        "sas",
    ];
    // These name a file, an address or a key.
    let public =
        ["_file", "_uri", "_url", "_path", "access_key_id"].iter().any(|ending| name.ends_with(ending));
    !public && marks.iter().any(|mark| name.contains(mark))
}

/// An error and its causes on one line, without the store's answer except its code and message.
pub(crate) fn one_line(error: &(dyn StdError + 'static)) -> String {
    let mut line = String::new();
    let causes = std::iter::successors(Some(error), |&error| error.source());
    for cause in causes.map(ToString::to_string) {
        if line.contains(&cause) {
            continue;
        }
        if !line.is_empty() {
            line += ": ";
        }
        line += &cause;
    }
    without_answer(&line)
}

/// Reduces a store's XML to its code and message.
fn without_answer(text: &str) -> String {
    let (Some(start), Some(end)) = (text.find('<'), text.rfind('>')) else { return text.to_owned() };
    if end < start {
        return text.to_owned();
    }
    let answer = &text[start..=end];
    let said: Vec<_> = ["Code", "Message"].iter().filter_map(|tag| element(answer, tag)).collect();
    format!("{}{}{}", &text[..start], said.join(", "), &text[end + 1..])
}

fn element<'a>(xml: &'a str, tag: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{tag}>"))?;
    rest.split_once(&format!("</{tag}>")).map(|(value, _)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_reduced_to_its_code_and_message() {
        let answer = "refused: 403 Forbidden: <Error><Code>SignatureDoesNotMatch</Code><Message>No.</Message>\
                      <CanonicalRequest>x-amz-security-token:hunter22</CanonicalRequest></Error> at last";
        assert_eq!(without_answer(answer), "refused: 403 Forbidden: SignatureDoesNotMatch, No. at last");
        assert_eq!(without_answer("3 > 2 < 4"), "3 > 2 < 4");
    }

    #[test]
    fn a_cause_appears_once_and_a_secret_never() {
        let cause = std::io::Error::other("no route for hunter2hunter2");
        let outer = Error::Generic { store: "S3", source: Box::new(cause) };
        let secrets = Secrets::new(["hunter2hunter2".to_owned()]);
        assert_eq!(secrets.describe(&outer), "Generic S3 error: no route for …");
        let redacted = secrets.redact(outer);
        assert_eq!(one_line(&redacted), "Generic S3 error: no route for …");
        assert!(!format!("{redacted:?} {secrets:?}").contains("hunter2"));
    }

    #[test]
    fn names_of_files_are_not_secrets() {
        let secret = [
            "AWS_SECRET_ACCESS_KEY",
            "aws_session_token",
            "azure_storage_access_key",
            "access_key",
            "azure_storage_account_key",
            "aws_sse_customer_key_base64",
            "encryption_key",
            "google_service_account_key",
            "azure_storage_sas_key",
        ];
        assert!(secret.into_iter().all(is_secret));
        assert!(!is_secret("AWS_ACCESS_KEY_ID") && !is_secret("access_key_id"));
        assert!(!is_secret("AWS_WEB_IDENTITY_TOKEN_FILE") && !is_secret("AWS_ENDPOINT"));
    }
}
