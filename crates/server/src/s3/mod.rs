//! The embedded S3: what `aws s3 cp app.zip s3://bucket/` talks to when there is no other S3.
//!
//! The daemon answers S3 on the control API's address, path-style (`/bucket/key`), with the same access keys; at
//! AWS's own host names the bucket may be in the name.
//! The protocol is s3s's, the storage ours. What is not implemented answers `NotImplemented`.

mod access;
mod convert;
mod digest;
mod error;
mod host;
mod index;
mod list;
mod multipart;
mod operations;
mod storage;
mod uploads;

pub(crate) use error::StorageError;

use crate::config::{Config, S3Source};
use crate::headroom::Headroom;
use crate::keys::Keys;
use access::Access;
use bytes::Bytes;
use dormouse_core::{AccountId, chain, limits};
use host::Hosts;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;
use s3s::auth::{S3Auth, SecretKey};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3Result, s3_error};
use secrecy::ExposeSecret;
use std::sync::Arc;
use storage::Storage;
use tokio_util::sync::CancellationToken;

/// s3s logs each refused request as an error; with this directive in its filter, the daemon's log has
/// only what the daemon says itself.
pub(crate) const LOG_DIRECTIVE: &str = "s3s=off";

/// The body of a response.
pub(crate) type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// The embedded S3; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    s3: S3Service,
    storage: Storage,
    hosts: Hosts,
}

impl Service {
    /// Opens the buckets in `DATA/s3`, making the folder where there is none. Buckets of before there were
    /// accounts become the daemon's own account's.
    pub(crate) async fn open(config: &Config, keys: Arc<Keys>) -> Result<Self, StorageError> {
        let Config {
            data_dir, region, ..
        } = config;
        let headroom = Headroom::new(data_dir, config.capacity);
        let storage = Storage::open(&data_dir.join("s3"), &config.account, headroom).await?;
        let mut service = S3ServiceBuilder::new(operations::Operations {
            storage: storage.clone(),
            region: region.clone(),
        });
        service.set_access(Access {
            keys: Arc::clone(&keys),
            storage: storage.clone(),
            is_replaced: matches!(config.s3, S3Source::Outside(_)),
        });
        service.set_auth(Auth(keys));
        let hosts = Hosts::new(region);
        service.set_host(hosts.clone());
        Ok(Self {
            s3: service.build(),
            storage,
            hosts,
        })
    }

    /// Removes what is left behind, now and then, until `stop`.
    pub(crate) async fn sweep(self, stop: CancellationToken) {
        let pause = || tokio::time::sleep(limits::S3_SWEEP_INTERVAL);
        while stop.run_until_cancelled(pause()).await.is_some() {
            if let Err(error) = self.storage.sweep().await {
                tracing::warn!(error = chain(&error), "s3 leftovers were not removed");
            }
        }
    }

    /// Whether a host is S3's own, or a bucket's.
    pub(crate) fn is_named_by(&self, host: &str) -> bool {
        self.hosts.bucket(host).is_some()
    }

    /// Answers a request. An error of the protocol is an answer too: this does not fail.
    pub(crate) async fn call<B: Into<s3s::Body>>(&self, request: Request<B>) -> Response<Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let body_awaits_leave =
            request.version() == Version::HTTP_11 && request.headers().contains_key(header::EXPECT);
        let answer = self.s3.call(request.map(Into::into)).await;
        let mut response = answer.unwrap_or_else(|error| {
            let error: Box<dyn std::error::Error + Send + Sync> = error.into();
            tracing::error!(error, %method, path, "s3 request failed");
            let mut response = Response::new(s3s::Body::empty());
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        });
        if body_awaits_leave && !response.status().is_success() {
            // The client may skip the body that it was not asked for, and the start of its next request
            // would be taken for it.
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        tracing::debug!(%method, path, status = response.status().as_u16(), "s3 request");
        response.map(BodyExt::boxed_unsync)
    }

    /// Makes a bucket, where there is none of this name.
    #[cfg(test)]
    pub(crate) async fn create_bucket(
        &self,
        name: &str,
        account: &AccountId,
    ) -> Result<bool, StorageError> {
        let account = account.clone();
        self.storage.create_bucket(name.to_owned(), account).await
    }

    /// Writes an object.
    #[cfg(test)]
    pub(crate) async fn put(&self, bucket: &str, key: &str, content: Bytes) {
        let body = storage::Incoming::unclaimed(futures_util::stream::iter([Ok(content)]));
        let (attributes, condition) = (Default::default(), index::Condition::None);
        let put = self.storage.put(bucket, key, attributes, condition, body);
        put.await.expect("the storage works");
    }

    /// Where the bytes of an account's object are, for the daemon's own reading.
    pub(crate) async fn locate(
        &self,
        account: &AccountId,
        bucket: &str,
        key: &str,
    ) -> Result<(Arc<dyn ObjectStore>, ObjectPath), StorageError> {
        self.storage.require_own(bucket, account).await?;
        let object = self.storage.head(bucket, key).await?;
        Ok(self.storage.file(&object))
    }
}

struct Auth(Arc<Keys>);

#[async_trait::async_trait]
impl S3Auth for Auth {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        match self.0.get(access_key) {
            Some(key) => Ok(key.secret.expose_secret().into()),
            None => Err(s3_error!(
                InvalidAccessKeyId,
                "The AWS Access Key Id you provided does not exist in our records."
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_secrets::Sealer;
    use http_body_util::BodyExt;

    async fn answer(request: http::request::Builder) -> Response<Body> {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::of_data_dir(folder.path());
        let sealer = Arc::new(Sealer::random());
        let keys = Keys::open_or_create(folder.path(), &config.account, sealer).unwrap();
        let s3 = Service::open(&config, Arc::new(keys)).await.unwrap();
        s3.call(request.body(Bytes::from_static(b"x")).unwrap())
            .await
    }

    #[tokio::test]
    async fn nobody_is_let_in_without_a_signature() {
        for (method, path) in [
            ("GET", "/"),
            ("PUT", "/bucket"),
            ("PUT", "/bucket/key"),
            ("GET", "/bucket/key"),
        ] {
            let response = answer(Request::builder().method(method).uri(path)).await;
            assert_eq!(response.status(), StatusCode::FORBIDDEN, "{method} {path}");
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let body = String::from_utf8(body.to_vec()).unwrap();
            assert!(body.contains("<Code>AccessDenied</Code>"), "{body}");
        }
    }

    #[tokio::test]
    async fn a_connection_ends_with_the_refusal_of_a_body_that_was_not_asked_for() {
        let put = || Request::builder().method("PUT").uri("/bucket/key");
        let response = answer(put().header("expect", "100-continue")).await;
        assert_eq!(response.headers().get("connection").unwrap(), "close");
        let response = answer(put()).await;
        assert!(!response.headers().contains_key("connection"));
    }
}
