//! Errors of a store without secrets.
//!
//! Stores repeat a refused request in their answer, with its session token, and the object_store crate puts answers
//! into its errors. [`Redacted`] leaves the cause, without such answers and without the value of any secret setting.

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

use super::provider::Provider;

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
