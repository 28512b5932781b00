//! Between S3's request and response types and the storage's own.

use super::StorageError;
use super::digest::Claims;
use super::index::{Attributes, Checksums, Condition, Object};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use dormouse_core::{Timestamp, chain, limits};
use http::{HeaderMap, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::dto::{self, ETag, ETagCondition};
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};
use std::time::{Duration, SystemTime};

impl From<StorageError> for S3Error {
    fn from(error: StorageError) -> Self {
        let code = match &error {
            StorageError::NoSuchBucket => S3ErrorCode::NoSuchBucket,
            StorageError::AccessDenied => S3ErrorCode::AccessDenied,
            StorageError::BucketTaken => S3ErrorCode::BucketAlreadyExists,
            StorageError::NoSuchKey => S3ErrorCode::NoSuchKey,
            StorageError::NoSuchUpload => S3ErrorCode::NoSuchUpload,
            StorageError::InvalidPart => S3ErrorCode::InvalidPart,
            StorageError::InvalidPartOrder => S3ErrorCode::InvalidPartOrder,
            StorageError::PartTooSmall => S3ErrorCode::EntityTooSmall,
            StorageError::BucketNotEmpty => S3ErrorCode::BucketNotEmpty,
            StorageError::PreconditionFailed => S3ErrorCode::PreconditionFailed,
            StorageError::BadDigest => S3ErrorCode::BadDigest,
            StorageError::IncompleteBody | StorageError::Body(_) => S3ErrorCode::IncompleteBody,
            StorageError::TooLarge => S3ErrorCode::EntityTooLarge,
            StorageError::Shortage(_) => {
                tracing::warn!(
                    reason = chain(&error),
                    "s3 write refused for lack of room on the host"
                );
                return full();
            }
            StorageError::Schema { .. }
            | StorageError::Index(_)
            | StorageError::Blob(_)
            | StorageError::Folder { .. }
            | StorageError::Panicked => return internal(&error),
        };
        Self::with_message(code, error.to_string())
    }
}

fn internal(error: &StorageError) -> S3Error {
    if error.is_disk_full() {
        tracing::error!(
            error = error as &dyn std::error::Error,
            "s3 storage is full"
        );
        return full();
    }
    tracing::error!(error = error as &dyn std::error::Error, "s3 storage failed");
    s3_error!(
        InternalError,
        "We encountered an internal error. Please try again."
    )
}

/// S3 itself is never full; clients do not retry this status.
fn full() -> S3Error {
    let code = S3ErrorCode::Custom("StorageFull".into());
    let mut full =
        S3Error::with_message(code, "The disk of the server is full: nothing was stored.");
    full.set_status_code(StatusCode::INSUFFICIENT_STORAGE);
    full
}

/// Refuses what a request asks for and we do not do, instead of doing something else.
pub(super) fn unsupported(asked: &[(&str, bool)]) -> S3Result<()> {
    match asked.iter().find(|(_, asked)| *asked) {
        None => Ok(()),
        Some((name, _)) => Err(S3Error::with_message(
            S3ErrorCode::NotImplemented,
            format!("A header you provided implies functionality that is not implemented: {name}"),
        )),
    }
}

/// Whether an ACL asks for more than what every object has: its owner may do everything.
pub(super) fn is_shared_acl(acl: Option<&dto::ObjectCannedACL>) -> bool {
    acl.is_some_and(|acl| {
        ![
            dto::ObjectCannedACL::PRIVATE,
            dto::ObjectCannedACL::BUCKET_OWNER_FULL_CONTROL,
        ]
        .contains(&acl.as_str())
    })
}

/// What a write demands of the object that is there.
pub(super) fn condition(
    if_none_match: Option<ETagCondition>,
    if_match: Option<ETagCondition>,
) -> S3Result<Condition> {
    match (if_none_match, if_match) {
        (None, None) => Ok(Condition::None),
        (Some(condition), None) if condition.is_any() => Ok(Condition::Absent),
        (None, Some(condition)) => match condition.into_etag() {
            Some(etag) => Ok(Condition::Matches(etag.into_value())),
            None => Err(s3_error!(NotImplemented, "If-Match takes one ETag")),
        },
        _ => Err(s3_error!(
            NotImplemented,
            "If-None-Match takes * and goes with no other condition"
        )),
    }
}

/// What a reader demands, as far as times and ETags go.
pub(super) struct ReadConditions<'a> {
    pub(super) if_match: Option<&'a ETagCondition>,
    pub(super) if_none_match: Option<&'a ETagCondition>,
    pub(super) if_modified_since: Option<&'a dto::Timestamp>,
    pub(super) if_unmodified_since: Option<&'a dto::Timestamp>,
}

impl ReadConditions<'_> {
    /// For a reader: what has not changed is not sent again.
    pub(super) fn check(&self, object: &Object) -> S3Result<()> {
        self.require(object)?;
        if self.is_unchanged(object) {
            let mut not_modified = S3Error::new(S3ErrorCode::NotModified);
            not_modified.set_status_code(StatusCode::NOT_MODIFIED);
            return Err(not_modified);
        }
        Ok(())
    }

    /// For a copy: it is made, or a condition does not hold.
    pub(super) fn check_copy(&self, object: &Object) -> S3Result<()> {
        self.require(object)?;
        match self.is_unchanged(object) {
            true => Err(precondition_failed()),
            false => Ok(()),
        }
    }

    // Both in RFC 9110's order of precedence: an ETag says more than a time.
    fn require(&self, object: &Object) -> S3Result<()> {
        let failed = match (self.if_match, self.if_unmodified_since) {
            (Some(condition), _) => !names(condition, object),
            (None, Some(since)) => modified_at(object) > *since,
            (None, None) => false,
        };
        match failed {
            true => Err(precondition_failed()),
            false => Ok(()),
        }
    }

    fn is_unchanged(&self, object: &Object) -> bool {
        match (self.if_none_match, self.if_modified_since) {
            (Some(condition), _) => names(condition, object),
            (None, Some(since)) => modified_at(object) <= *since,
            (None, None) => false,
        }
    }
}

fn names(condition: &ETagCondition, object: &Object) -> bool {
    let etag = condition.as_etag();
    condition.is_any() || etag.is_some_and(|etag| etag.value() == object.blob.etag)
}

/// HTTP dates have whole seconds.
fn modified_at(object: &Object) -> dto::Timestamp {
    timestamp(Timestamp(object.modified_at.0 / 1000 * 1000))
}

fn precondition_failed() -> S3Error {
    s3_error!(
        PreconditionFailed,
        "At least one of the pre-conditions you specified did not hold"
    )
}

/// The parts of a request that say what its body must be.
macro_rules! claims {
    ($input:expr, $headers:expr) => {
        crate::s3::convert::claims_of(
            crate::s3::index::Checksums {
                crc32: $input.checksum_crc32.take(),
                crc32c: $input.checksum_crc32c.take(),
                crc64nvme: $input.checksum_crc64nvme.take(),
                sha1: $input.checksum_sha1.take(),
                sha256: $input.checksum_sha256.take(),
            },
            $input.content_md5.take(),
            $input.content_length,
            $input.checksum_algorithm.as_ref(),
            $headers,
        )
    };
}
pub(super) use claims;

pub(super) fn claims_of(
    checksums: Checksums,
    md5: Option<String>,
    length: Option<i64>,
    algorithm: Option<&dto::ChecksumAlgorithm>,
    headers: &HeaderMap,
) -> Claims {
    let trailers = headers.get_all("x-amz-trailer").iter();
    let trailers = trailers
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .filter(|name| name.starts_with("x-amz-checksum-"));
    Claims {
        length: length.and_then(|length| u64::try_from(length).ok()),
        md5,
        checksums,
        trailers: trailers.collect(),
        algorithm: algorithm.map(|algorithm| algorithm.as_str().to_owned()),
    }
}

/// What a request says of the object that it writes. S3 allows 2 KiB of metadata.
macro_rules! attributes {
    ($input:expr) => {
        crate::s3::index::Attributes {
            cache_control: $input.cache_control.take(),
            content_disposition: $input.content_disposition.take(),
            content_encoding: $input.content_encoding.take(),
            content_language: $input.content_language.take(),
            content_type: $input.content_type.take(),
            metadata: $input
                .metadata
                .take()
                .unwrap_or_default()
                .into_iter()
                .collect(),
            checksums: crate::s3::index::Checksums::default(),
        }
    };
}
pub(super) use attributes;

/// Fails when there is more metadata than S3 allows.
pub(super) fn check_metadata(attributes: &Attributes) -> S3Result<()> {
    let bytes: usize = attributes
        .metadata
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if bytes > limits::S3_METADATA_BYTES_MAX {
        return Err(s3_error!(
            MetadataTooLarge,
            "Your metadata headers exceed the maximum allowed metadata size"
        ));
    }
    Ok(())
}

/// An ETag as S3 shows it.
pub(super) fn etag(object_etag: &str) -> ETag {
    ETag::Strong(object_etag.to_owned())
}

/// A time as S3 shows it.
pub(super) fn timestamp(at: Timestamp) -> dto::Timestamp {
    (SystemTime::UNIX_EPOCH + Duration::from_millis(at.0)).into()
}

/// A number of bytes as S3's types have it.
pub(super) fn size(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Encodes names in a list's answer as its asker wants it: XML cannot hold every character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    /// As they are.
    Plain,
    /// Percent-encoded.
    Url,
}

impl Encoding {
    /// S3's own: everything but these and the slash.
    const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'_')
        .remove(b'.')
        .remove(b'*')
        .remove(b'/');

    pub(super) fn of(asked: Option<&dto::EncodingType>) -> Self {
        match asked {
            Some(asked) if asked.as_str() == dto::EncodingType::URL => Self::Url,
            _ => Self::Plain,
        }
    }

    pub(super) fn apply(self, name: &str) -> String {
        match self {
            Self::Plain => name.to_owned(),
            Self::Url => utf8_percent_encode(name, Self::ESCAPED).to_string(),
        }
    }
}

/// An opaque token for the next page.
pub(super) fn page_token(after: &str) -> String {
    URL_SAFE_NO_PAD.encode(after)
}

/// Reads what [`page_token`] made.
pub(super) fn parse_page_token(token: &str) -> S3Result<String> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok();
    bytes
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| {
            s3_error!(
                InvalidArgument,
                "The continuation token provided is incorrect"
            )
        })
}

/// How many entries a page may have; S3 allows a thousand.
pub(super) fn page_limit(asked: Option<i32>) -> S3Result<usize> {
    const MOST: usize = 1000;
    match asked.map(usize::try_from) {
        None => Ok(MOST),
        Some(Ok(asked)) => Ok(asked.min(MOST)),
        Some(Err(_)) => Err(s3_error!(
            InvalidArgument,
            "Argument max-keys must not be negative"
        )),
    }
}
