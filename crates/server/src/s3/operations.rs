//! S3's operations, each a few lines over [`Storage`].

use super::StorageError;
use super::access::caller;
use super::convert::{
    Encoding, ReadConditions, attributes, check_metadata, claims, condition, etag, is_shared_acl,
    page_limit, page_token, parse_page_token, size, timestamp, unsupported,
};
use super::index::{Attributes, Checksums, Object};
use super::list::{ListPage, ListQuery};
use super::storage::{Incoming, Storage};
use bytes::Bytes;
use dormouse_core::{AccountId, limits};
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use http_body_util::StreamBody;
use hyper::body::Frame;
use s3s::dto::{self, StreamingBlob};
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};

pub(super) type Answer<T> = S3Result<S3Response<T>>;
type StdError = Box<dyn std::error::Error + Send + Sync>;

/// The operations that are implemented.
#[derive(Debug)]
pub(super) struct Operations {
    pub(super) storage: Storage,
    pub(super) region: String,
}

#[async_trait::async_trait]
impl S3 for Operations {
    async fn create_bucket(
        &self,
        request: S3Request<dto::CreateBucketInput>,
    ) -> Answer<dto::CreateBucketOutput> {
        let input = request.input;
        unsupported(&[(
            "x-amz-bucket-object-lock-enabled",
            input.object_lock_enabled_for_bucket == Some(true),
        )])?;
        let account = caller(&request.extensions)?;
        let new = self
            .storage
            .create_bucket(input.bucket.clone(), account)
            .await?;
        // Only S3's oldest region lets an owner create a bucket twice.
        if !new && self.region != "us-east-1" {
            return Err(s3_error!(
                BucketAlreadyOwnedByYou,
                "You already own this bucket"
            ));
        }
        Ok(S3Response::new(dto::CreateBucketOutput {
            location: Some(format!("/{}", input.bucket)),
        }))
    }

    async fn head_bucket(
        &self,
        request: S3Request<dto::HeadBucketInput>,
    ) -> Answer<dto::HeadBucketOutput> {
        self.storage.require_bucket(request.input.bucket).await?;
        Ok(S3Response::new(dto::HeadBucketOutput {
            bucket_region: Some(self.region.clone()),
            ..Default::default()
        }))
    }

    async fn get_bucket_location(
        &self,
        request: S3Request<dto::GetBucketLocationInput>,
    ) -> Answer<dto::GetBucketLocationOutput> {
        self.storage.require_bucket(request.input.bucket).await?;
        // S3's oldest region is shown as no region at all.
        let region = (self.region != "us-east-1").then(|| self.region.clone().into());
        Ok(S3Response::new(dto::GetBucketLocationOutput {
            location_constraint: region,
        }))
    }

    async fn list_buckets(
        &self,
        request: S3Request<dto::ListBucketsInput>,
    ) -> Answer<dto::ListBucketsOutput> {
        let account = caller(&request.extensions)?;
        let buckets = self.storage.buckets(account).await?.into_iter();
        let buckets = buckets.map(|(name, created_at)| dto::Bucket {
            creation_date: Some(timestamp(created_at)),
            name: Some(name),
            ..Default::default()
        });
        Ok(S3Response::new(dto::ListBucketsOutput {
            buckets: Some(buckets.collect()),
            ..Default::default()
        }))
    }

    async fn delete_bucket(
        &self,
        request: S3Request<dto::DeleteBucketInput>,
    ) -> Answer<dto::DeleteBucketOutput> {
        self.storage.delete_bucket(request.input.bucket).await?;
        Ok(S3Response::new(dto::DeleteBucketOutput {}))
    }

    async fn put_object(
        &self,
        request: S3Request<dto::PutObjectInput>,
    ) -> Answer<dto::PutObjectOutput> {
        let mut input = request.input;
        unsupported(&[
            ("x-amz-acl", is_shared_acl(input.acl.as_ref())),
            ("x-amz-object-lock-mode", input.object_lock_mode.is_some()),
            (
                "x-amz-server-side-encryption",
                input.server_side_encryption.is_some(),
            ),
            (
                "x-amz-server-side-encryption-customer-algorithm",
                input.sse_customer_algorithm.is_some(),
            ),
            ("x-amz-tagging", input.tagging.is_some()),
            (
                "x-amz-website-redirect-location",
                input.website_redirect_location.is_some(),
            ),
            (
                "x-amz-write-offset-bytes",
                input.write_offset_bytes.is_some(),
            ),
        ])?;
        let attributes = attributes!(input);
        check_metadata(&attributes)?;
        let condition = condition(input.if_none_match.take(), input.if_match.take())?;
        let incoming = Incoming {
            claims: claims!(input, &request.headers),
            body: body(input.body),
            trailing: request.trailing_headers,
        };
        let object = self
            .storage
            .put(&input.bucket, &input.key, attributes, condition, incoming)
            .await?;
        let checksums = object.attributes.checksums;
        Ok(S3Response::new(dto::PutObjectOutput {
            e_tag: Some(etag(&object.blob.etag)),
            checksum_crc32: checksums.crc32,
            checksum_crc32c: checksums.crc32c,
            checksum_crc64nvme: checksums.crc64nvme,
            checksum_sha1: checksums.sha1,
            checksum_sha256: checksums.sha256,
            ..Default::default()
        }))
    }

    async fn get_object(
        &self,
        request: S3Request<dto::GetObjectInput>,
    ) -> Answer<dto::GetObjectOutput> {
        let input = request.input;
        refuse_versions(input.version_id.as_deref(), input.part_number)?;
        let (object, range, body) = self.open(&input).await?;
        let whole = input.range.is_none();
        let content_range = (!whole).then(|| {
            format!(
                "bytes {}-{}/{}",
                range.start,
                range.end.saturating_sub(1),
                object.blob.size
            )
        });
        let attributes = object.attributes;
        // A checksum of the whole says nothing of a part.
        let checksums = shown_checksums(attributes.checksums, whole, input.checksum_mode.as_ref());
        Ok(S3Response::new(dto::GetObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            body: Some(body),
            content_length: Some(size(range.end - range.start)),
            content_range,
            e_tag: Some(etag(&object.blob.etag)),
            last_modified: Some(timestamp(object.modified_at)),
            cache_control: attributes.cache_control,
            content_disposition: attributes.content_disposition,
            content_encoding: attributes.content_encoding,
            content_language: attributes.content_language,
            content_type: attributes.content_type.or_else(default_content_type),
            metadata: Some(attributes.metadata.into_iter().collect()),
            checksum_crc32: checksums.crc32,
            checksum_crc32c: checksums.crc32c,
            checksum_crc64nvme: checksums.crc64nvme,
            checksum_sha1: checksums.sha1,
            checksum_sha256: checksums.sha256,
            ..Default::default()
        }))
    }

    async fn head_object(
        &self,
        request: S3Request<dto::HeadObjectInput>,
    ) -> Answer<dto::HeadObjectOutput> {
        let input = request.input;
        refuse_versions(input.version_id.as_deref(), input.part_number)?;
        let object = self.storage.head(&input.bucket, &input.key).await?;
        let conditions = ReadConditions {
            if_match: input.if_match.as_ref(),
            if_none_match: input.if_none_match.as_ref(),
            if_modified_since: input.if_modified_since.as_ref(),
            if_unmodified_since: input.if_unmodified_since.as_ref(),
        };
        conditions.check(&object)?;
        let attributes = object.attributes;
        let checksums = shown_checksums(attributes.checksums, true, input.checksum_mode.as_ref());
        Ok(S3Response::new(dto::HeadObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(size(object.blob.size)),
            e_tag: Some(etag(&object.blob.etag)),
            last_modified: Some(timestamp(object.modified_at)),
            cache_control: attributes.cache_control,
            content_disposition: attributes.content_disposition,
            content_encoding: attributes.content_encoding,
            content_language: attributes.content_language,
            content_type: attributes.content_type.or_else(default_content_type),
            metadata: Some(attributes.metadata.into_iter().collect()),
            checksum_crc32: checksums.crc32,
            checksum_crc32c: checksums.crc32c,
            checksum_crc64nvme: checksums.crc64nvme,
            checksum_sha1: checksums.sha1,
            checksum_sha256: checksums.sha256,
            ..Default::default()
        }))
    }

    async fn delete_object(
        &self,
        request: S3Request<dto::DeleteObjectInput>,
    ) -> Answer<dto::DeleteObjectOutput> {
        let input = request.input;
        refuse_versions(input.version_id.as_deref(), None)?;
        unsupported(&[("if-match", input.if_match.is_some())])?;
        self.storage.delete(&input.bucket, &input.key).await?;
        Ok(S3Response::new(dto::DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        request: S3Request<dto::DeleteObjectsInput>,
    ) -> Answer<dto::DeleteObjectsOutput> {
        let input = request.input;
        if input.delete.objects.len() > limits::S3_DELETE_OBJECTS_MAX {
            return Err(s3_error!(
                MalformedXML,
                "No more than 1000 objects can be deleted at once"
            ));
        }
        self.storage.require_bucket(input.bucket.clone()).await?;
        let quiet = input.delete.quiet == Some(true);
        let mut deleted = Vec::new();
        for object in input.delete.objects {
            refuse_versions(object.version_id.as_deref(), None)?;
            self.storage.delete(&input.bucket, &object.key).await?;
            if !quiet {
                deleted.push(dto::DeletedObject {
                    key: Some(object.key),
                    ..Default::default()
                });
            }
        }
        Ok(S3Response::new(dto::DeleteObjectsOutput {
            deleted: Some(deleted),
            ..Default::default()
        }))
    }

    async fn copy_object(
        &self,
        request: S3Request<dto::CopyObjectInput>,
    ) -> Answer<dto::CopyObjectOutput> {
        let mut input = request.input;
        unsupported(&[
            ("x-amz-acl", is_shared_acl(input.acl.as_ref())),
            (
                "x-amz-server-side-encryption",
                input.server_side_encryption.is_some(),
            ),
            ("x-amz-tagging", input.tagging.is_some()),
        ])?;
        let conditions = ReadConditions {
            if_match: input.copy_source_if_match.as_ref(),
            if_none_match: input.copy_source_if_none_match.as_ref(),
            if_modified_since: input.copy_source_if_modified_since.as_ref(),
            if_unmodified_since: input.copy_source_if_unmodified_since.as_ref(),
        };
        let account = caller(&request.extensions)?;
        let from = self
            .copy_source(&input.copy_source, &conditions, &account)
            .await?;
        let replace = input
            .metadata_directive
            .as_ref()
            .is_some_and(|directive| directive.as_str() == dto::MetadataDirective::REPLACE);
        let attributes = match replace {
            true => Attributes {
                checksums: from.attributes.checksums.clone(),
                ..attributes!(input)
            },
            false => from.attributes.clone(),
        };
        check_metadata(&attributes)?;
        let object = self
            .storage
            .copy(&from, &input.bucket, &input.key, attributes)
            .await?;
        Ok(S3Response::new(dto::CopyObjectOutput {
            copy_object_result: Some(dto::CopyObjectResult {
                e_tag: Some(etag(&object.blob.etag)),
                last_modified: Some(timestamp(object.modified_at)),
                ..Default::default()
            }),
            ..Default::default()
        }))
    }

    async fn list_objects(
        &self,
        request: S3Request<dto::ListObjectsInput>,
    ) -> Answer<dto::ListObjectsOutput> {
        let input = request.input;
        let query = ListQuery {
            prefix: input.prefix.clone().unwrap_or_default(),
            delimiter: input.delimiter.clone().unwrap_or_default(),
            after: input.marker.clone().unwrap_or_default(),
            limit: page_limit(input.max_keys)?,
        };
        let page = self.storage.list(input.bucket.clone(), query).await?;
        let encoding = Encoding::of(input.encoding_type.as_ref());
        let encoded = |name: Option<String>| name.map(|name| encoding.apply(&name));
        Ok(S3Response::new(dto::ListObjectsOutput {
            is_truncated: Some(page.next.is_some()),
            contents: Some(contents(&page, encoding)),
            common_prefixes: Some(common_prefixes(&page, encoding)),
            next_marker: encoded(page.next),
            name: Some(input.bucket),
            prefix: Some(encoding.apply(&input.prefix.unwrap_or_default())),
            marker: Some(encoding.apply(&input.marker.unwrap_or_default())),
            delimiter: encoded(input.delimiter),
            max_keys: Some(input.max_keys.unwrap_or(1000)),
            encoding_type: input.encoding_type,
            ..Default::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<dto::ListObjectsV2Input>,
    ) -> Answer<dto::ListObjectsV2Output> {
        let input = request.input;
        let after = match &input.continuation_token {
            Some(token) => parse_page_token(token)?,
            None => input.start_after.clone().unwrap_or_default(),
        };
        let query = ListQuery {
            prefix: input.prefix.clone().unwrap_or_default(),
            delimiter: input.delimiter.clone().unwrap_or_default(),
            after,
            limit: page_limit(input.max_keys)?,
        };
        let page = self.storage.list(input.bucket.clone(), query).await?;
        let encoding = Encoding::of(input.encoding_type.as_ref());
        let encoded = |name: Option<String>| name.map(|name| encoding.apply(&name));
        let entries = page.objects.len() + page.prefixes.len();
        Ok(S3Response::new(dto::ListObjectsV2Output {
            is_truncated: Some(page.next.is_some()),
            contents: Some(contents(&page, encoding)),
            common_prefixes: Some(common_prefixes(&page, encoding)),
            key_count: Some(i32::try_from(entries).unwrap_or(i32::MAX)),
            next_continuation_token: page.next.as_deref().map(page_token),
            continuation_token: input.continuation_token,
            name: Some(input.bucket),
            prefix: Some(encoding.apply(&input.prefix.unwrap_or_default())),
            start_after: encoded(input.start_after),
            delimiter: encoded(input.delimiter),
            max_keys: Some(input.max_keys.unwrap_or(1000)),
            encoding_type: input.encoding_type,
            ..Default::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<dto::CreateMultipartUploadInput>,
    ) -> Answer<dto::CreateMultipartUploadOutput> {
        self.create_upload(request).await
    }

    async fn upload_part(
        &self,
        request: S3Request<dto::UploadPartInput>,
    ) -> Answer<dto::UploadPartOutput> {
        self.put_part(request).await
    }

    async fn upload_part_copy(
        &self,
        request: S3Request<dto::UploadPartCopyInput>,
    ) -> Answer<dto::UploadPartCopyOutput> {
        self.copy_part(request).await
    }

    async fn list_parts(
        &self,
        request: S3Request<dto::ListPartsInput>,
    ) -> Answer<dto::ListPartsOutput> {
        self.parts(request).await
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<dto::ListMultipartUploadsInput>,
    ) -> Answer<dto::ListMultipartUploadsOutput> {
        self.uploads(request).await
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<dto::CompleteMultipartUploadInput>,
    ) -> Answer<dto::CompleteMultipartUploadOutput> {
        self.complete_upload(request).await
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<dto::AbortMultipartUploadInput>,
    ) -> Answer<dto::AbortMultipartUploadOutput> {
        self.abort_upload(request).await
    }
}

impl Operations {
    /// The object that a copy is made from.
    pub(super) async fn copy_source(
        &self,
        source: &dto::CopySource,
        conditions: &ReadConditions<'_>,
        account: &AccountId,
    ) -> S3Result<Object> {
        let dto::CopySource::Bucket {
            bucket,
            key,
            version_id,
        } = source
        else {
            return Err(s3_error!(
                NotImplemented,
                "The copy source must be a bucket and a key"
            ));
        };
        refuse_versions(version_id.as_deref(), None)?;
        // Access is checked for the bucket in the path alone, which is where the copy goes.
        self.storage.require_own(bucket, account).await?;
        let object = self.storage.head(bucket, key).await?;
        conditions.check_copy(&object)?;
        Ok(object)
    }

    /// Opens an object's bytes. An object that is replaced between the look into the index and the
    /// opening of its file is looked up again.
    async fn open(
        &self,
        input: &dto::GetObjectInput,
    ) -> S3Result<(Object, std::ops::Range<u64>, StreamingBlob)> {
        let conditions = ReadConditions {
            if_match: input.if_match.as_ref(),
            if_none_match: input.if_none_match.as_ref(),
            if_modified_since: input.if_modified_since.as_ref(),
            if_unmodified_since: input.if_unmodified_since.as_ref(),
        };
        let mut tries = 0..3;
        loop {
            let object = self.storage.head(&input.bucket, &input.key).await?;
            conditions.check(&object)?;
            let range = match &input.range {
                Some(range) => range.check(object.blob.size)?,
                None => 0..object.blob.size,
            };
            match self.storage.read(&object, range.clone()).await {
                Ok(body) => {
                    let frames = StreamBody::new(body.map_ok(Frame::data));
                    let body = s3s::Body::http_body_unsync(frames);
                    return Ok((object, range, body.into()));
                }
                Err(StorageError::Blob(object_store::Error::NotFound { .. }))
                    if tries.next().is_some() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A request's body; none is an empty one.
pub(super) fn body(
    blob: Option<StreamingBlob>,
) -> impl Stream<Item = Result<Bytes, StdError>> + Send {
    match blob {
        Some(blob) => blob.left_stream(),
        None => stream::empty().right_stream(),
    }
}

fn refuse_versions(version: Option<&str>, part_number: Option<i32>) -> S3Result<()> {
    unsupported(&[
        (
            "versionId",
            version.is_some_and(|version| version != "null"),
        ),
        ("partNumber", part_number.is_some()),
    ])
}

fn default_content_type() -> Option<String> {
    Some("binary/octet-stream".to_owned())
}

fn shown_checksums(
    checksums: Checksums,
    whole: bool,
    mode: Option<&dto::ChecksumMode>,
) -> Checksums {
    let wanted = mode.is_some_and(|mode| mode.as_str() == dto::ChecksumMode::ENABLED);
    match whole && wanted {
        true => checksums,
        false => Checksums::default(),
    }
}

fn contents(page: &ListPage, encoding: Encoding) -> Vec<dto::Object> {
    let shown = |object: &Object| dto::Object {
        key: Some(encoding.apply(&object.key)),
        e_tag: Some(etag(&object.blob.etag)),
        last_modified: Some(timestamp(object.modified_at)),
        size: Some(size(object.blob.size)),
        storage_class: Some(dto::ObjectStorageClass::STANDARD.to_owned().into()),
        ..Default::default()
    };
    page.objects.iter().map(shown).collect()
}

fn common_prefixes(page: &ListPage, encoding: Encoding) -> Vec<dto::CommonPrefix> {
    let shown = |prefix: &String| dto::CommonPrefix {
        prefix: Some(encoding.apply(prefix)),
    };
    page.prefixes.iter().map(shown).collect()
}
