//! S3's operations on multipart uploads.

use super::StorageError;
use super::access::caller;
use super::convert::{
    Encoding, ReadConditions, attributes, check_metadata, claims, condition, etag, is_shared_acl,
    page_limit, size, timestamp, unsupported,
};
use super::operations::{Answer, Operations, body};
use super::storage::Incoming;
use super::uploads::{Part, Upload};
use dormouse_core::limits;
use s3s::dto;
use s3s::{S3Request, S3Response, S3Result, s3_error};

impl Operations {
    /// CreateMultipartUpload.
    pub(super) async fn create_upload(
        &self,
        request: S3Request<dto::CreateMultipartUploadInput>,
    ) -> Answer<dto::CreateMultipartUploadOutput> {
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
        ])?;
        let attributes = attributes!(input);
        check_metadata(&attributes)?;
        let upload = self
            .storage
            .create_upload(&input.bucket, &input.key, attributes)
            .await?;
        Ok(S3Response::new(dto::CreateMultipartUploadOutput {
            upload_id: Some(upload.id),
            bucket: Some(input.bucket),
            key: Some(input.key),
            checksum_algorithm: input.checksum_algorithm,
            ..Default::default()
        }))
    }

    /// UploadPart.
    pub(super) async fn put_part(
        &self,
        request: S3Request<dto::UploadPartInput>,
    ) -> Answer<dto::UploadPartOutput> {
        let mut input = request.input;
        unsupported(&[(
            "x-amz-server-side-encryption-customer-algorithm",
            input.sse_customer_algorithm.is_some(),
        )])?;
        let number = part_number(input.part_number)?;
        let upload = self
            .storage
            .upload(&input.bucket, &input.key, &input.upload_id)
            .await?;
        let incoming = Incoming {
            claims: claims!(input, &request.headers),
            body: body(input.body),
            trailing: request.trailing_headers,
        };
        let part = self.storage.put_part(&upload, number, incoming).await?;
        Ok(S3Response::new(dto::UploadPartOutput {
            e_tag: Some(etag(&part.blob.etag)),
            checksum_crc32: part.checksums.crc32,
            checksum_crc32c: part.checksums.crc32c,
            checksum_crc64nvme: part.checksums.crc64nvme,
            checksum_sha1: part.checksums.sha1,
            checksum_sha256: part.checksums.sha256,
            ..Default::default()
        }))
    }

    /// UploadPartCopy.
    pub(super) async fn copy_part(
        &self,
        request: S3Request<dto::UploadPartCopyInput>,
    ) -> Answer<dto::UploadPartCopyOutput> {
        let input = request.input;
        let number = part_number(input.part_number)?;
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
        let range = match &input.copy_source_range {
            None => 0..from.blob.size,
            Some(text) => dto::Range::parse(text)
                .ok()
                .and_then(|range| range.check(from.blob.size).ok())
                .ok_or_else(|| s3_error!(InvalidArgument, "The copy source range is not valid"))?,
        };
        let upload = self
            .storage
            .upload(&input.bucket, &input.key, &input.upload_id)
            .await?;
        let part = self
            .storage
            .copy_part(&from, range, &upload, number)
            .await?;
        Ok(S3Response::new(dto::UploadPartCopyOutput {
            copy_part_result: Some(dto::CopyPartResult {
                e_tag: Some(etag(&part.blob.etag)),
                last_modified: Some(timestamp(part.modified_at)),
                ..Default::default()
            }),
            ..Default::default()
        }))
    }

    /// ListParts.
    pub(super) async fn parts(
        &self,
        request: S3Request<dto::ListPartsInput>,
    ) -> Answer<dto::ListPartsOutput> {
        let input = request.input;
        let limit = page_limit(input.max_parts)?;
        let after = input.part_number_marker.unwrap_or_default();
        let upload = self
            .storage
            .upload(&input.bucket, &input.key, &input.upload_id)
            .await?;
        let after = u32::try_from(after).unwrap_or_default();
        let mut parts = self.storage.parts(&upload, after, limit + 1).await?;
        let truncated = parts.len() > limit;
        parts.truncate(limit);
        let last = parts.last().map(|part| part.number);
        Ok(S3Response::new(dto::ListPartsOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            is_truncated: Some(truncated),
            max_parts: Some(input.max_parts.unwrap_or(1000)),
            part_number_marker: input.part_number_marker,
            next_part_number_marker: last.and_then(|number| i32::try_from(number).ok()),
            parts: Some(parts.into_iter().map(part).collect()),
            ..Default::default()
        }))
    }

    /// ListMultipartUploads.
    pub(super) async fn uploads(
        &self,
        request: S3Request<dto::ListMultipartUploadsInput>,
    ) -> Answer<dto::ListMultipartUploadsOutput> {
        let input = request.input;
        unsupported(&[
            ("delimiter", input.delimiter.is_some()),
            (
                "prefix",
                input
                    .prefix
                    .as_ref()
                    .is_some_and(|prefix| !prefix.is_empty()),
            ),
            (
                "key-marker",
                input
                    .key_marker
                    .as_ref()
                    .is_some_and(|marker| !marker.is_empty()),
            ),
        ])?;
        let limit = page_limit(input.max_uploads)?;
        let mut uploads = self
            .storage
            .uploads(input.bucket.clone(), limit + 1)
            .await?;
        let truncated = uploads.len() > limit;
        uploads.truncate(limit);
        let encoding = Encoding::of(input.encoding_type.as_ref());
        Ok(S3Response::new(dto::ListMultipartUploadsOutput {
            bucket: Some(input.bucket),
            is_truncated: Some(truncated),
            encoding_type: input.encoding_type,
            uploads: Some(
                uploads
                    .into_iter()
                    .map(|upload| shown_upload(upload, encoding))
                    .collect(),
            ),
            ..Default::default()
        }))
    }

    /// CompleteMultipartUpload.
    pub(super) async fn complete_upload(
        &self,
        request: S3Request<dto::CompleteMultipartUploadInput>,
    ) -> Answer<dto::CompleteMultipartUploadOutput> {
        let mut input = request.input;
        let condition = condition(input.if_none_match.take(), input.if_match.take())?;
        let upload = self
            .storage
            .upload(&input.bucket, &input.key, &input.upload_id)
            .await?;
        let named = input
            .multipart_upload
            .and_then(|upload| upload.parts)
            .unwrap_or_default();
        let named = named
            .into_iter()
            .map(|part| {
                let number = part_number(part.part_number.unwrap_or_default())?;
                let etag = part.e_tag.ok_or(StorageError::InvalidPart)?;
                Ok((number, etag.into_value()))
            })
            .collect::<S3Result<Vec<_>>>()?;
        let object = self.storage.complete(&upload, &named, condition).await?;
        Ok(S3Response::new(dto::CompleteMultipartUploadOutput {
            location: Some(format!("/{}/{}", input.bucket, input.key)),
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(etag(&object.blob.etag)),
            ..Default::default()
        }))
    }

    /// AbortMultipartUpload.
    pub(super) async fn abort_upload(
        &self,
        request: S3Request<dto::AbortMultipartUploadInput>,
    ) -> Answer<dto::AbortMultipartUploadOutput> {
        let input = request.input;
        let upload = self
            .storage
            .upload(&input.bucket, &input.key, &input.upload_id)
            .await?;
        self.storage.abort(&upload).await?;
        Ok(S3Response::new(dto::AbortMultipartUploadOutput::default()))
    }
}

fn part_number(number: i32) -> S3Result<u32> {
    let most = limits::S3_PARTS_MAX;
    u32::try_from(number)
        .ok()
        .filter(|number| (1..=most).contains(&(*number as usize)))
        .ok_or_else(|| {
            s3_error!(
                InvalidArgument,
                "Part number must be an integer between 1 and 10000"
            )
        })
}

fn part(part: Part) -> dto::Part {
    dto::Part {
        part_number: i32::try_from(part.number).ok(),
        e_tag: Some(etag(&part.blob.etag)),
        last_modified: Some(timestamp(part.modified_at)),
        size: Some(size(part.blob.size)),
        checksum_crc32: part.checksums.crc32,
        checksum_crc32c: part.checksums.crc32c,
        checksum_crc64nvme: part.checksums.crc64nvme,
        checksum_sha1: part.checksums.sha1,
        checksum_sha256: part.checksums.sha256,
    }
}

fn shown_upload(upload: Upload, encoding: Encoding) -> dto::MultipartUpload {
    dto::MultipartUpload {
        key: Some(encoding.apply(&upload.key)),
        upload_id: Some(upload.id),
        initiated: Some(timestamp(upload.created_at)),
        ..Default::default()
    }
}
