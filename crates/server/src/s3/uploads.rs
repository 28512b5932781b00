//! Multipart uploads in the index: parts that wait to become one object.

use super::StorageError;
use super::index::{Attributes, Blob, Checksums, from_json, require_bucket, to_json};
use dormouse_core::{Timestamp, limits};
use rusqlite::{Connection, OptionalExtension, Row};

/// A multipart upload that has been begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Upload {
    /// Its name, given out by us.
    pub(super) id: String,
    /// Where the object will be.
    pub(super) bucket: String,
    /// Which object it will be.
    pub(super) key: String,
    /// When it was begun.
    pub(super) created_at: Timestamp,
    /// What the object's writer said of it.
    pub(super) attributes: Attributes,
}

/// A part of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// Its place among the parts, from 1.
    pub(super) number: u32,
    /// Its bytes.
    pub(super) blob: Blob,
    /// When it was written.
    pub(super) modified_at: Timestamp,
    /// As far as its writer wanted them.
    pub(super) checksums: Checksums,
}

/// Begins an upload.
pub(super) fn create(index: &Connection, upload: &Upload) -> Result<(), StorageError> {
    require_bucket(index, &upload.bucket)?;
    index.execute(
        "INSERT INTO uploads (id, bucket, key, created_ms, attributes) VALUES (?1, ?2, ?3, ?4, ?5)",
        (
            &upload.id,
            &upload.bucket,
            &upload.key,
            upload.created_at.0,
            to_json(&upload.attributes),
        ),
    )?;
    Ok(())
}

/// Finds an upload; its id alone does not do, it must be for this object.
pub(super) fn find(
    index: &Connection,
    bucket: &str,
    key: &str,
    id: &str,
) -> Result<Upload, StorageError> {
    require_bucket(index, bucket)?;
    index
        .query_row(
            "SELECT id, bucket, key, created_ms, attributes FROM uploads
             WHERE id = ?1 AND bucket = ?2 AND key = ?3",
            (id, bucket, key),
            upload_row,
        )
        .optional()?
        .ok_or(StorageError::NoSuchUpload)
}

/// The uploads of a bucket that are under way, by key.
pub(super) fn list(
    index: &Connection,
    bucket: &str,
    limit: usize,
) -> Result<Vec<Upload>, StorageError> {
    require_bucket(index, bucket)?;
    let mut select = index.prepare(
        "SELECT id, bucket, key, created_ms, attributes FROM uploads
         WHERE bucket = ?1 ORDER BY key, created_ms, id LIMIT ?2",
    )?;
    let rows = select.query_map((bucket, limit), upload_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Puts a part in its place; returns the blob that was there before.
pub(super) fn put_part(
    index: &Connection,
    upload: &Upload,
    part: &Part,
) -> Result<Option<String>, StorageError> {
    // It may have been completed or aborted while the part was on its way.
    find(index, &upload.bucket, &upload.key, &upload.id)?;
    let old = index
        .query_row(
            "SELECT blob FROM parts WHERE upload = ?1 AND number = ?2",
            (&upload.id, part.number),
            |row| row.get(0),
        )
        .optional()?;
    index.execute(
        "INSERT OR REPLACE INTO parts (upload, number, blob, size, etag, modified_ms, checksums)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        (
            &upload.id,
            part.number,
            &part.blob.name,
            part.blob.size,
            &part.blob.etag,
            part.modified_at.0,
            to_json(&part.checksums),
        ),
    )?;
    Ok(old)
}

/// The parts of an upload whose numbers are beyond `after`, in their order.
pub(super) fn parts(
    index: &Connection,
    upload: &Upload,
    after: u32,
    limit: usize,
) -> Result<Vec<Part>, StorageError> {
    let mut select = index.prepare_cached(
        "SELECT number, blob, size, etag, modified_ms, checksums FROM parts
         WHERE upload = ?1 AND number > ?2 ORDER BY number LIMIT ?3",
    )?;
    let rows = select.query_map((&upload.id, after, limit), part_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Forgets an upload; returns the blobs of its parts.
pub(super) fn remove(index: &Connection, upload: &Upload) -> Result<Vec<String>, StorageError> {
    let mut delete = index.prepare("DELETE FROM parts WHERE upload = ?1 RETURNING blob")?;
    let blobs = delete
        .query_map([&upload.id], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let removed = index.execute("DELETE FROM uploads WHERE id = ?1", [&upload.id])?;
    match removed {
        0 => Err(StorageError::NoSuchUpload),
        _ => Ok(blobs),
    }
}

/// Forgets uploads that nobody will complete any more.
pub(super) fn expire(index: &Connection, now: Timestamp) -> Result<usize, StorageError> {
    let ttl = u64::try_from(limits::S3_UPLOAD_TTL.as_millis()).expect("days fit");
    let oldest = now.0.saturating_sub(ttl);
    index.execute(
        "DELETE FROM parts WHERE upload IN (SELECT id FROM uploads WHERE created_ms < ?1)",
        [oldest],
    )?;
    Ok(index.execute("DELETE FROM uploads WHERE created_ms < ?1", [oldest])?)
}

fn upload_row(row: &Row<'_>) -> Result<Upload, rusqlite::Error> {
    Ok(Upload {
        id: row.get(0)?,
        bucket: row.get(1)?,
        key: row.get(2)?,
        created_at: Timestamp(row.get(3)?),
        attributes: from_json(row, 4)?,
    })
}

fn part_row(row: &Row<'_>) -> Result<Part, rusqlite::Error> {
    Ok(Part {
        number: row.get(0)?,
        blob: Blob {
            name: row.get(1)?,
            size: row.get(2)?,
            etag: row.get(3)?,
        },
        modified_at: Timestamp(row.get(4)?),
        checksums: from_json(row, 5)?,
    })
}
