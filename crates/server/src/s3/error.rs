//! Why the embedded S3 did not do what was asked.

use crate::headroom::Shortage;
use std::io;
use std::path::PathBuf;

/// Why the storage did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StorageError {
    /// There is no such bucket.
    #[error("there is no such bucket")]
    NoSuchBucket,
    /// The bucket is another account's.
    #[error("access denied")]
    AccessDenied,
    /// Another account has a bucket of this name; names are unique over all accounts, as in S3.
    #[error("another account has a bucket of this name")]
    BucketTaken,
    /// There is no such object.
    #[error("there is no such object")]
    NoSuchKey,
    /// There is no such multipart upload.
    #[error("there is no such multipart upload")]
    NoSuchUpload,
    /// A part that is to be put together is not there, or is another.
    #[error("a part is missing or is not the one that was named")]
    InvalidPart,
    /// Parts are not named in their order.
    #[error("the parts are not named in ascending order")]
    InvalidPartOrder,
    /// A part that is not the last is smaller than S3 allows.
    #[error("a part is smaller than the allowed minimum")]
    PartTooSmall,
    /// The bucket holds objects or uploads.
    #[error("the bucket is not empty")]
    BucketNotEmpty,
    /// What the caller demanded does not hold.
    #[error("a precondition does not hold")]
    PreconditionFailed,
    /// The body is not what its checksum says.
    #[error("the body does not match its checksum")]
    BadDigest,
    /// The body ended too early.
    #[error("the body is shorter than was said")]
    IncompleteBody,
    /// The body is too large.
    #[error("the body is larger than the allowed maximum")]
    TooLarge,
    /// The client's connection or its signature of the body failed.
    #[error("the body could not be read")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The index was made by another version of Dormouse.
    #[error(
        "{path} has schema {found}, which this version of dormouse does not know: use a newer one"
    )]
    Schema {
        /// The database.
        path: PathBuf,
        /// What it says of itself.
        found: u32,
    },
    /// The index failed.
    #[error("s3 index")]
    Index(#[from] rusqlite::Error),
    /// A file failed.
    #[error("s3 object file")]
    Blob(#[from] object_store::Error),
    /// A folder failed.
    #[error("{action} {path}")]
    Folder {
        /// What was being done.
        action: &'static str,
        /// The folder.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// The host has too little disk left.
    #[error("the host is short of disk")]
    Shortage(#[from] Shortage),
    /// A thread of ours panicked.
    #[error("s3 index thread panicked")]
    Panicked,
}

impl StorageError {
    /// Whether the cause is a full disk.
    pub(crate) fn is_disk_full(&self) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            let full = |error: &io::Error| {
                matches!(
                    error.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                )
            };
            if error.downcast_ref::<io::Error>().is_some_and(full) {
                return true;
            }
            if let Some(error) = error.downcast_ref::<rusqlite::Error>() {
                return error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull);
            }
            cause = error.source();
        }
        false
    }
}
