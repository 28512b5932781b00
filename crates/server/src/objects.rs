//! Reading `s3://` artifacts, from the embedded S3 or from another, through one interface.

use crate::config::{OutsideS3, S3Source};
use crate::s3;
use dormouse_api::checks::{self, S3Location};
use dormouse_core::{AccountId, limits};
use futures_util::StreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path as ObjectPath;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt};
use secrecy::ExposeSecret;
use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

/// Where artifacts are read from.
#[derive(Debug, Clone)]
pub(crate) enum Objects {
    /// The daemon's own S3.
    Embedded(s3::Service),
    /// Another S3.
    Outside(OutsideS3),
}

/// Why an artifact could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ObjectError {
    /// Not `s3://bucket/key`. The text is AWS's own.
    #[error("CodeArtifact URI must be a valid S3 URI in the format: s3://<bucket>/<key>")]
    Uri,
    /// There is no such bucket.
    #[error("the bucket does not exist")]
    NoSuchBucket,
    /// There is no such object.
    #[error("the object does not exist")]
    NoSuchKey,
    /// The S3 refuses.
    #[error("access to the object is denied")]
    AccessDenied,
    /// The bucket of another S3 is another account's.
    #[error(
        "access to the object is denied: [s3.buckets] does not give bucket {0} to this account"
    )]
    NotOwned(String),
    /// The object is in another region than the configured one.
    #[error("the bucket is in another region than the configured one")]
    CrossRegion,
    /// The object is larger than an artifact may be.
    #[error("the object is larger than {} bytes", limits::ARTIFACT_BYTES_MAX)]
    TooLarge,
    /// The S3 cannot be reached or answers nonsense.
    #[error("the object could not be read")]
    Read(#[source] Box<dyn Error + Send + Sync>),
    /// The local file could not be written.
    #[error("the object could not be stored")]
    Write(#[source] io::Error),
}

impl ObjectError {
    /// AWS's code for a build that fails because of this.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Uri | Self::TooLarge => "S3_INVALID_OBJECT",
            Self::NoSuchBucket => "S3_NO_SUCH_BUCKET",
            Self::NoSuchKey => "S3_NO_SUCH_KEY",
            Self::AccessDenied | Self::NotOwned(_) => "S3_ACCESS_DENIED",
            Self::CrossRegion => "S3_CROSS_REGION_ACCESS_DENIED",
            Self::Write(error) if error.kind() == io::ErrorKind::StorageFull => "DISK_STORAGE_FULL",
            Self::Read(_) | Self::Write(_) => "INTERNAL_PLATFORM_ERROR",
        }
    }
}

impl Objects {
    /// Reads artifacts from where the configuration says.
    pub(crate) fn new(source: &S3Source, embedded: s3::Service) -> Self {
        match source {
            S3Source::Embedded => Self::Embedded(embedded),
            S3Source::Outside(outside) => Self::Outside(outside.clone()),
        }
    }

    /// Copies the account's object at `uri` to the file `to`; returns its size in bytes. The file is complete
    /// or, after an error, gone.
    pub(crate) async fn fetch(
        &self,
        account: &AccountId,
        uri: &str,
        to: &Path,
    ) -> Result<u64, ObjectError> {
        let at = checks::artifact_uri(uri).map_err(|_| ObjectError::Uri)?;
        let (store, path) = self.locate(account, at).await?;
        let fetched = download(store.as_ref(), &path, to).await;
        if fetched.is_err()
            && let Err(error) = tokio::fs::remove_file(to).await
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, file = %to.display(), "partial artifact not removed");
        }
        fetched
    }

    async fn locate(
        &self,
        account: &AccountId,
        at: S3Location<'_>,
    ) -> Result<(Arc<dyn ObjectStore>, ObjectPath), ObjectError> {
        match self {
            Self::Embedded(s3) => s3
                .locate(account, at.bucket, at.key)
                .await
                .map_err(embedded_error),
            Self::Outside(outside) if outside.owner(at.bucket) != account => {
                Err(ObjectError::NotOwned(at.bucket.to_owned()))
            }
            Self::Outside(outside) => {
                // A key that a path cannot express (`a//b`) must not become another key.
                let path =
                    ObjectPath::parse(at.key).map_err(|error| ObjectError::Read(error.into()))?;
                Ok((connect(outside, at.bucket)?, path))
            }
        }
    }
}

fn connect(outside: &OutsideS3, bucket: &str) -> Result<Arc<dyn ObjectStore>, ObjectError> {
    let store = builder(outside, bucket).build();
    Ok(Arc::new(
        store.map_err(|error| ObjectError::Read(error.into()))?,
    ))
}

fn builder(outside: &OutsideS3, bucket: &str) -> AmazonS3Builder {
    let (key, secret) = &outside.access_key;
    let plain = outside
        .endpoint
        .as_ref()
        .is_some_and(|endpoint| endpoint.starts_with("http://"));
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(&outside.region)
        .with_access_key_id(key)
        .with_secret_access_key(secret.expose_secret())
        .with_client_options(ClientOptions::new().with_connect_timeout(limits::S3_CONNECT_TIMEOUT))
        .with_allow_http(plain);
    if let Some(endpoint) = &outside.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    builder
}

async fn download(
    store: &dyn ObjectStore,
    path: &ObjectPath,
    to: &Path,
) -> Result<u64, ObjectError> {
    let found = store.get(path).await.map_err(read_error)?;
    if found.meta.size > limits::ARTIFACT_BYTES_MAX {
        return Err(ObjectError::TooLarge);
    }
    let mut file = File::create(to).await.map_err(ObjectError::Write)?;
    let mut bytes_read = 0;
    let mut body = found.into_stream();
    while let Some(bytes) = body.next().await {
        let bytes = bytes.map_err(read_error)?;
        bytes_read += bytes.len() as u64;
        if bytes_read > limits::ARTIFACT_BYTES_MAX {
            return Err(ObjectError::TooLarge);
        }
        file.write_all(&bytes).await.map_err(ObjectError::Write)?;
    }
    file.flush().await.map_err(ObjectError::Write)?;
    Ok(bytes_read)
}

fn embedded_error(error: s3::StorageError) -> ObjectError {
    match error {
        s3::StorageError::NoSuchBucket => ObjectError::NoSuchBucket,
        s3::StorageError::NoSuchKey => ObjectError::NoSuchKey,
        s3::StorageError::AccessDenied => ObjectError::AccessDenied,
        error => ObjectError::Read(error.into()),
    }
}

fn read_error(error: object_store::Error) -> ObjectError {
    use object_store::Error as Outside;
    match error {
        // What was not found stands in the answer's body, which the error's text carries.
        Outside::NotFound { source, .. } if says(source.as_ref(), "NoSuchBucket") => {
            ObjectError::NoSuchBucket
        }
        Outside::NotFound { .. } => ObjectError::NoSuchKey,
        Outside::PermissionDenied { .. } | Outside::Unauthenticated { .. } => {
            ObjectError::AccessDenied
        }
        error if says(&error, "redirect") || says(&error, "PermanentRedirect") => {
            ObjectError::CrossRegion
        }
        error => ObjectError::Read(error.into()),
    }
}

fn says(error: &(dyn Error + 'static), word: &str) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.to_string().contains(word) {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::keys::Keys;
    use dormouse_secrets::Sealer;
    use hyper::service::service_fn;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use hyper_util::server::conn::auto;
    use object_store::RetryConfig;
    use secrecy::SecretString;
    use std::collections::BTreeMap;
    use std::convert::Infallible;
    use std::net::SocketAddr;
    use tempfile::TempDir;
    use tokio::net::TcpListener;

    /// The embedded S3 behind a port, to be another S3 to the code under test.
    struct Served {
        folder: TempDir,
        config: Config,
        keys: Arc<Keys>,
        s3: s3::Service,
        outside: OutsideS3,
    }

    impl Served {
        async fn start() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let config = Config::of_data_dir(folder.path());
            let account = owner();
            let sealer = Arc::new(Sealer::random());
            let keys = Keys::open_or_create(folder.path(), &account, sealer).unwrap();
            let keys = Arc::new(keys);
            let key = keys.first_of(&account).unwrap();
            let s3 = s3::Service::open(&config, Arc::clone(&keys)).await.unwrap();
            let address = serve(s3.clone()).await;
            let outside = OutsideS3 {
                endpoint: Some(format!("http://{address}")),
                region: "us-east-1".to_owned(),
                access_key: (key.id, key.secret),
                buckets: BTreeMap::new(),
                account: account.clone(),
            };
            Self {
                folder,
                config,
                keys,
                s3,
                outside,
            }
        }

        async fn put(&self, key: &str, content: &'static [u8]) {
            let store = connect(&self.outside, "bucket").unwrap();
            store
                .put(&ObjectPath::parse(key).unwrap(), content.into())
                .await
                .unwrap();
        }

        async fn fetch(&self, objects: &Objects, uri: &str) -> Result<Vec<u8>, ObjectError> {
            let to = self.folder.path().join("fetched");
            let fetched = objects.fetch(&owner(), uri, &to).await;
            assert_eq!(fetched.is_ok(), to.exists(), "{uri}");
            let size = fetched?;
            let content = std::fs::read(&to).unwrap();
            std::fs::remove_file(&to).unwrap();
            assert_eq!(content.len() as u64, size);
            Ok(content)
        }
    }

    fn owner() -> AccountId {
        AccountId::parse("000000000000").unwrap()
    }

    async fn serve(s3: s3::Service) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let s3 = s3.clone();
                let service = service_fn(move |request| {
                    let s3 = s3.clone();
                    async move { Ok::<_, Infallible>(s3.call(request).await) }
                });
                tokio::spawn(async move {
                    let http = auto::Builder::new(TokioExecutor::new());
                    drop(http.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn an_artifact_is_read_alike_from_the_embedded_and_from_another_s3() {
        let served = Served::start().await;
        served.s3.create_bucket("bucket", &owner()).await.unwrap();
        served.put("path/to app.zip", b"content").await;
        served.put("empty", b"").await;
        for source in [
            S3Source::Embedded,
            S3Source::Outside(served.outside.clone()),
        ] {
            let objects = Objects::new(&source, served.s3.clone());
            let fetched = served.fetch(&objects, "s3://bucket/path/to app.zip").await;
            assert_eq!(fetched.unwrap(), b"content");
            assert_eq!(
                served.fetch(&objects, "s3://bucket/empty").await.unwrap(),
                b""
            );
            for (uri, code) in [
                ("s3://bucket/other", "S3_NO_SUCH_KEY"),
                ("s3://no-bucket/other", "S3_NO_SUCH_BUCKET"),
                ("s3://bucket", "S3_INVALID_OBJECT"),
                ("s3://bucket/", "S3_INVALID_OBJECT"),
                ("s3://Bucket/key", "S3_INVALID_OBJECT"),
                ("s3://../etc/passwd", "S3_INVALID_OBJECT"),
                ("https://bucket/key", "S3_INVALID_OBJECT"),
            ] {
                let error = served.fetch(&objects, uri).await.unwrap_err();
                assert_eq!(error.code(), code, "{uri}: {error:?}");
            }
        }
    }

    #[tokio::test]
    async fn an_artifact_of_another_account_is_not_read() {
        let served = Served::start().await;
        served.s3.create_bucket("bucket", &owner()).await.unwrap();
        served.put("app.zip", b"content").await;
        let other = AccountId::parse("111111111111").unwrap();
        let to = served.folder.path().join("fetched");
        let objects = Objects::new(&S3Source::Embedded, served.s3.clone());
        for key in ["app.zip", "none"] {
            let uri = format!("s3://bucket/{key}");
            let error = objects.fetch(&other, &uri, &to).await.unwrap_err();
            assert_eq!(error.code(), "S3_ACCESS_DENIED", "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_bucket_of_another_s3_is_one_accounts() {
        let served = Served::start().await;
        let other = AccountId::parse("111111111111").unwrap();
        let mut outside = served.outside.clone();
        for name in ["bucket", "theirs"] {
            served.s3.create_bucket(name, &owner()).await.unwrap();
            let store = connect(&outside, name).unwrap();
            let path = ObjectPath::from("app.zip");
            store.put(&path, "content".into()).await.unwrap();
        }
        outside.buckets.insert("theirs".to_owned(), other.clone());
        let objects = Objects::Outside(outside);
        let to = served.folder.path().join("fetched");
        for (account, own, foreign) in [(owner(), "bucket", "theirs"), (other, "theirs", "bucket")]
        {
            let uri = |bucket| format!("s3://{bucket}/app.zip");
            objects.fetch(&account, &uri(own), &to).await.unwrap();
            let error = objects.fetch(&account, &uri(foreign), &to).await;
            let error = error.unwrap_err();
            assert_eq!(error.code(), "S3_ACCESS_DENIED", "{error:?}");
            assert!(error.to_string().contains("[s3.buckets]"), "{error}");
        }
    }

    #[tokio::test]
    async fn the_embedded_s3_names_another_that_stands_in_its_place() {
        let mut served = Served::start().await;
        served.config.s3 = S3Source::Outside(served.outside.clone());
        let replaced = s3::Service::open(&served.config, Arc::clone(&served.keys));
        let address = serve(replaced.await.unwrap()).await;
        served.outside.endpoint = Some(format!("http://{address}"));
        let store = connect(&served.outside, "bucket").unwrap();
        let path = ObjectPath::from("app.zip");
        let error = store.put(&path, "content".into()).await.unwrap_err();
        assert!(says(&error, "NotImplemented"), "{error:?}");
        assert!(says(&error, "[s3]"), "{error:?}");
    }

    #[tokio::test]
    async fn another_s3_that_refuses_is_told_from_one_that_is_not_there() {
        let served = Served::start().await;
        let refused = OutsideS3 {
            access_key: (
                served.outside.access_key.0.clone(),
                SecretString::from("wrong"),
            ),
            ..served.outside.clone()
        };
        let objects = Objects::Outside(refused);
        let error = served.fetch(&objects, "s3://bucket/key").await.unwrap_err();
        assert_eq!(error.code(), "S3_ACCESS_DENIED", "{error:?}");

        let retry = RetryConfig {
            max_retries: 0,
            ..RetryConfig::default()
        };
        let nobody = OutsideS3 {
            endpoint: Some("http://127.0.0.1:1".to_owned()),
            ..served.outside.clone()
        };
        let store = builder(&nobody, "bucket")
            .with_retry(retry)
            .build()
            .unwrap();
        let to = served.folder.path().join("fetched");
        let error = download(&store, &ObjectPath::from("key"), &to)
            .await
            .unwrap_err();
        assert_eq!(error.code(), "INTERNAL_PLATFORM_ERROR", "{error:?}");
    }
}
