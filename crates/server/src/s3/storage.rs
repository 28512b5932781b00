//! Buckets and objects on disk: an index of names, and one immutable file for the bytes of each object.
//!
//! ```text
//! s3/index.db       names, sizes, ETags, attributes: SQLite
//! s3/blobs/UUID     bytes; written aside, synced, renamed, and only then named by the index
//! ```
//! A key never becomes a path, so no key can lead out of the folder and any two keys can live side by side.
//! A crash leaves at most blobs that the index does not name; the next start removes them, and whatever else is left
//! behind goes with a sweep now and then.

use super::StorageError;
use super::digest::{Claims, Digests};
use super::index::{self, Attributes, Blob, Condition, Index, Object};
use super::list::{self, ListPage, ListQuery};
use super::uploads::{self, Part, Upload};
use crate::headroom::Headroom;
use bytes::Bytes;
use dormouse_core::{AccountId, Timestamp, limits};
use dormouse_secrets::file::create_private_folder;
use futures_util::{Stream, StreamExt, TryStreamExt, pin_mut, stream};
use object_store::local::LocalFileSystem;
use object_store::path::Path as BlobPath;
use object_store::{
    GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload,
};
use rusqlite::Transaction;
use s3s::TrailingHeaders;
use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use uuid::Uuid;

/// Bytes that are collected before they are handed to the disk.
const WRITE_BYTES: usize = 1 << 20;

type StdError = Box<dyn std::error::Error + Send + Sync>;

/// Buckets and objects on disk; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Storage {
    index: Arc<Index>,
    folder: Arc<Path>,
    blobs: Arc<LocalFileSystem>,
    headroom: Arc<Headroom>,
}

impl Storage {
    /// Opens the storage in `dir`, making it where there is none, and removes what a crash left behind. Buckets
    /// of before there were accounts become `owner`'s.
    pub(super) async fn open(
        dir: &Path,
        owner: &AccountId,
        headroom: Headroom,
    ) -> Result<Self, StorageError> {
        let (dir, owner) = (dir.to_owned(), owner.clone());
        blocking(move || {
            let folder = dir.join("blobs");
            create_private_folder(&folder).map_err(folder_error("create", &folder))?;
            let index = Index::open(&dir.join("index.db"), &owner)?;
            let storage = Self {
                blobs: Arc::new(LocalFileSystem::new_with_prefix(&folder)?.with_fsync(true)),
                index: Arc::new(index),
                folder: folder.into(),
                headroom: Arc::new(headroom),
            };
            // Nothing is on its way yet.
            storage.remove_leftovers(Duration::ZERO)?;
            Ok(storage)
        })
        .await
    }

    /// Forgets uploads that nobody will complete any more, and removes files that nothing names.
    pub(super) async fn sweep(&self) -> Result<(), StorageError> {
        let storage = self.clone();
        blocking(move || storage.remove_leftovers(limits::S3_LEFTOVER_AGE)).await
    }

    /// What is on its way is named by nothing yet: files that were written to within `spared` stay.
    fn remove_leftovers(&self, spared: Duration) -> Result<(), StorageError> {
        let (expired, used) = self
            .index
            .with(|index| Ok((uploads::expire(index, now())?, index::blobs(index)?)))?;
        let removed = remove_unused(&self.folder, &used, spared)?;
        if removed + expired > 0 {
            tracing::info!(files = removed, uploads = expired, "s3 leftovers removed");
        }
        Ok(())
    }

    /// Makes a bucket of this account; says whether it is new.
    pub(super) async fn create_bucket(
        &self,
        name: String,
        account: AccountId,
    ) -> Result<bool, StorageError> {
        self.index(move |index| index::create_bucket(index, &name, &account, now()))
            .await
    }

    /// Fails unless there is such a bucket and it is this account's.
    pub(super) async fn require_own(
        &self,
        name: &str,
        account: &AccountId,
    ) -> Result<(), StorageError> {
        let (name, account) = (name.to_owned(), account.clone());
        self.index(move |index| index::require_own(index, &name, &account))
            .await
    }

    /// Removes an empty bucket.
    pub(super) async fn delete_bucket(&self, name: String) -> Result<(), StorageError> {
        self.index(move |index| index::delete_bucket(index, &name))
            .await
    }

    /// Fails unless there is such a bucket.
    pub(super) async fn require_bucket(&self, name: String) -> Result<(), StorageError> {
        self.index(move |index| index::require_bucket(index, &name))
            .await
    }

    /// Every bucket of an account with the time of its making, by name.
    pub(super) async fn buckets(
        &self,
        account: AccountId,
    ) -> Result<Vec<(String, Timestamp)>, StorageError> {
        self.index(move |index| index::buckets(index, &account))
            .await
    }

    /// Lists objects.
    pub(super) async fn list(
        &self,
        bucket: String,
        query: ListQuery,
    ) -> Result<ListPage, StorageError> {
        self.index(move |index| list::page(index, &bucket, &query))
            .await
    }

    /// Reads what is known of an object.
    pub(super) async fn head(&self, bucket: &str, key: &str) -> Result<Object, StorageError> {
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        self.index(move |index| index::object(index, &bucket, &key))
            .await
    }

    /// Reads bytes of an object as [`Storage::head`] found it.
    pub(super) async fn read(
        &self,
        object: &Object,
        range: Range<u64>,
    ) -> Result<impl Stream<Item = object_store::Result<Bytes>> + Send + 'static, StorageError>
    {
        let options = GetOptions {
            range: Some(GetRange::Bounded(range.clone())),
            ..GetOptions::default()
        };
        if range.is_empty() {
            return Ok(stream::empty().left_stream());
        }
        let found = self
            .blobs
            .get_opts(&blob_path(&object.blob.name), options)
            .await?;
        Ok(found.into_stream().right_stream())
    }

    /// The file of an object, for readers of whole objects.
    pub(super) fn file(&self, object: &Object) -> (Arc<dyn ObjectStore>, BlobPath) {
        (self.blobs.clone(), blob_path(&object.blob.name))
    }

    /// Writes an object: all of it is there afterwards, or nothing has changed.
    pub(super) async fn put(
        &self,
        bucket: &str,
        key: &str,
        attributes: Attributes,
        condition: Condition,
        body: Incoming<impl Stream<Item = Result<Bytes, StdError>> + Send>,
    ) -> Result<Object, StorageError> {
        self.require_bucket(bucket.to_owned()).await?;
        let (blob, digests) = self.receive(body, limits::S3_PUT_BYTES_MAX).await?;
        let attributes = Attributes {
            checksums: digests.checksums,
            ..attributes
        };
        self.name_blob(bucket, Object::new(key, blob, attributes), condition, None)
            .await
    }

    /// Removes an object, if it is there.
    pub(super) async fn delete(&self, bucket: &str, key: &str) -> Result<(), StorageError> {
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        let old = self
            .index(move |index| index::delete_object(index, &bucket, &key))
            .await?;
        self.discard(old).await;
        Ok(())
    }

    /// Begins a multipart upload.
    pub(super) async fn create_upload(
        &self,
        bucket: &str,
        key: &str,
        attributes: Attributes,
    ) -> Result<Upload, StorageError> {
        let upload = Upload {
            id: Uuid::new_v4().simple().to_string(),
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            created_at: now(),
            attributes,
        };
        let created = upload.clone();
        self.index(move |index| uploads::create(index, &upload))
            .await?;
        Ok(created)
    }

    /// Finds a multipart upload.
    pub(super) async fn upload(
        &self,
        bucket: &str,
        key: &str,
        id: &str,
    ) -> Result<Upload, StorageError> {
        let (bucket, key, id) = (bucket.to_owned(), key.to_owned(), id.to_owned());
        self.index(move |index| uploads::find(index, &bucket, &key, &id))
            .await
    }

    /// The multipart uploads of a bucket that are under way, one page of them at most.
    pub(super) async fn uploads(
        &self,
        bucket: String,
        limit: usize,
    ) -> Result<Vec<Upload>, StorageError> {
        self.index(move |index| uploads::list(index, &bucket, limit))
            .await
    }

    /// Writes a part.
    pub(super) async fn put_part(
        &self,
        upload: &Upload,
        number: u32,
        body: Incoming<impl Stream<Item = Result<Bytes, StdError>> + Send>,
    ) -> Result<Part, StorageError> {
        let (blob, digests) = self.receive(body, limits::S3_PUT_BYTES_MAX).await?;
        let part = Part {
            number,
            blob,
            modified_at: now(),
            checksums: digests.checksums,
        };
        let (written, upload) = (part.clone(), upload.clone());
        let put = self
            .index(move |index| uploads::put_part(index, &upload, &written))
            .await;
        match put {
            Ok(old) => {
                self.discard(old).await;
                Ok(part)
            }
            Err(error) => {
                self.discard([part.blob.name]).await;
                Err(error)
            }
        }
    }

    /// Writes a part from bytes of an object.
    pub(super) async fn copy_part(
        &self,
        from: &Object,
        range: Range<u64>,
        upload: &Upload,
        number: u32,
    ) -> Result<Part, StorageError> {
        let body = self.read(from, range.clone()).await?;
        let body = body.map_err(StdError::from);
        let body = Incoming::sized(range.end - range.start, body);
        self.put_part(upload, number, body).await
    }

    /// The parts of an upload whose numbers are beyond `after`.
    pub(super) async fn parts(
        &self,
        upload: &Upload,
        after: u32,
        limit: usize,
    ) -> Result<Vec<Part>, StorageError> {
        let upload = upload.clone();
        self.index(move |index| uploads::parts(index, &upload, after, limit))
            .await
    }

    /// Puts parts together to an object. `named` are the numbers and ETags of the parts to use.
    pub(super) async fn complete(
        &self,
        upload: &Upload,
        named: &[(u32, String)],
        condition: Condition,
    ) -> Result<Object, StorageError> {
        let stored = self.parts(upload, 0, limits::S3_PARTS_MAX).await?;
        let parts = choose(&stored, named)?;
        let bytes = parts.iter().map(|part| part.blob.size).sum();
        let bodies = Incoming::sized(bytes, self.concatenation(&parts));
        let (blob, _) = self.receive(bodies, limits::S3_OBJECT_BYTES_MAX).await?;
        let blob = Blob {
            etag: multipart_etag(&parts),
            ..blob
        };
        let attributes = upload.attributes.clone();
        let object = Object::new(&upload.key, blob, attributes);
        self.name_blob(&upload.bucket, object, condition, Some(upload.clone()))
            .await
    }

    /// Forgets an upload and its parts.
    pub(super) async fn abort(&self, upload: &Upload) -> Result<(), StorageError> {
        let upload = upload.clone();
        let blobs = self
            .index(move |index| uploads::remove(index, &upload))
            .await?;
        self.discard(blobs).await;
        Ok(())
    }

    /// Copies an object's bytes to another key.
    pub(super) async fn copy(
        &self,
        from: &Object,
        bucket: &str,
        key: &str,
        attributes: Attributes,
    ) -> Result<Object, StorageError> {
        self.require_bucket(bucket.to_owned()).await?;
        let body = self
            .read(from, 0..from.blob.size)
            .await?
            .map_err(StdError::from);
        let body = Incoming::sized(from.blob.size, body);
        let (blob, _) = self.receive(body, limits::S3_OBJECT_BYTES_MAX).await?;
        self.name_blob(
            bucket,
            Object::new(key, blob, attributes),
            Condition::None,
            None,
        )
        .await
    }

    fn concatenation(
        &self,
        parts: &[Part],
    ) -> impl Stream<Item = Result<Bytes, StdError>> + Send + use<> {
        let blobs = self.blobs.clone();
        let paths: Vec<BlobPath> = parts
            .iter()
            .map(|part| blob_path(&part.blob.name))
            .collect();
        stream::iter(paths)
            .then(move |path| {
                let blobs = blobs.clone();
                async move {
                    blobs
                        .get(&path)
                        .await
                        .map(object_store::GetResult::into_stream)
                }
            })
            .try_flatten()
            .map_err(StdError::from)
    }

    /// Writes a body to a file of its own, if the host has room for it.
    async fn receive(
        &self,
        incoming: Incoming<impl Stream<Item = Result<Bytes, StdError>> + Send>,
        bytes_max: u64,
    ) -> Result<(Blob, Digests), StorageError> {
        let bytes = incoming.claims.length.unwrap_or_default();
        if bytes > bytes_max {
            return Err(StorageError::TooLarge);
        }
        self.headroom.check_disk(bytes).await?;
        let name = Uuid::new_v4().simple().to_string();
        let mut file = self.blobs.put_multipart(&blob_path(&name)).await?;
        match write(file.as_mut(), incoming, bytes_max, &self.headroom).await {
            Ok(digests) => {
                file.complete().await?;
                let blob = Blob {
                    name,
                    size: digests.length,
                    etag: hex::encode(digests.md5),
                };
                Ok((blob, digests))
            }
            Err(error) => {
                if let Err(abort) = file.abort().await {
                    tracing::warn!(error = %abort, "s3 partial file not removed; a later sweep does it");
                }
                Err(error)
            }
        }
    }

    /// Puts an object whose blob is written in its place, and ends the upload that it came from; removes
    /// the blob when that fails.
    async fn name_blob(
        &self,
        bucket: &str,
        object: Object,
        condition: Condition,
        finished: Option<Upload>,
    ) -> Result<Object, StorageError> {
        let (written, bucket) = (object.clone(), bucket.to_owned());
        let put = self
            .index(move |index| {
                let mut unused = match finished {
                    Some(upload) => uploads::remove(index, &upload)?,
                    None => Vec::new(),
                };
                unused.extend(index::put_object(index, &bucket, &written, &condition)?);
                Ok(unused)
            })
            .await;
        match put {
            Ok(unused) => {
                self.discard(unused).await;
                Ok(object)
            }
            Err(error) => {
                self.discard([object.blob.name]).await;
                Err(error)
            }
        }
    }

    /// Removes blobs that the index no longer names. A reader that has one open reads on.
    async fn discard(&self, blobs: impl IntoIterator<Item = String>) {
        for blob in blobs {
            if let Err(error) = self.blobs.delete(&blob_path(&blob)).await {
                tracing::warn!(blob, %error, "s3 object file not removed; a later sweep does it");
            }
        }
    }

    async fn index<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let index = self.index.clone();
        blocking(move || index.with(work)).await
    }
}

impl Object {
    fn new(key: &str, blob: Blob, attributes: Attributes) -> Self {
        Self {
            key: key.to_owned(),
            blob,
            modified_at: now(),
            attributes,
        }
    }
}

/// A body on its way in, and what the client says of it.
pub(super) struct Incoming<S> {
    /// Its bytes.
    pub(super) body: S,
    /// What it must be.
    pub(super) claims: Claims,
    /// Filled once the body has been read to its end.
    pub(super) trailing: Option<TrailingHeaders>,
}

impl<S> Incoming<S> {
    /// A body of this length, of which nothing else is said.
    pub(super) fn sized(bytes: u64, body: S) -> Self {
        let claims = Claims {
            length: Some(bytes),
            ..Claims::default()
        };
        Self {
            body,
            claims,
            trailing: None,
        }
    }

    #[cfg(test)]
    pub(super) fn unclaimed(body: S) -> Self {
        Self {
            body,
            claims: Claims::default(),
            trailing: None,
        }
    }
}

/// Writes a body as it comes, as long as there is room: others write meanwhile, and not each body says how long it is.
async fn write(
    file: &mut dyn MultipartUpload,
    incoming: Incoming<impl Stream<Item = Result<Bytes, StdError>> + Send>,
    bytes_max: u64,
    headroom: &Headroom,
) -> Result<Digests, StorageError> {
    let Incoming {
        body,
        claims,
        trailing,
    } = incoming;
    let mut digest = claims.digest();
    let mut pending: Vec<Bytes> = Vec::new();
    let mut pending_bytes = 0;
    pin_mut!(body);
    while let Some(bytes) = body.next().await {
        let bytes = bytes.map_err(StorageError::Body)?;
        digest.update(&bytes);
        if digest.length() > bytes_max {
            return Err(StorageError::TooLarge);
        }
        pending_bytes += bytes.len();
        pending.push(bytes);
        if pending_bytes >= WRITE_BYTES {
            headroom.check_disk(pending_bytes as u64).await?;
            pending_bytes = 0;
            file.put_part(PutPayload::from_iter(pending.drain(..)))
                .await?;
        }
    }
    if pending_bytes > 0 {
        file.put_part(PutPayload::from_iter(pending)).await?;
    }
    let digests = digest.finish();
    let trailing = trailing.and_then(|trailing| trailing.take());
    claims.verify(&digests, trailing.as_ref())?;
    Ok(digests)
}

/// The parts that were named, checked against those that are there.
fn choose(stored: &[Part], named: &[(u32, String)]) -> Result<Vec<Part>, StorageError> {
    if named.is_empty() {
        return Err(StorageError::InvalidPart);
    }
    if !named.is_sorted_by(|(a, _), (b, _)| a < b) {
        return Err(StorageError::InvalidPartOrder);
    }
    let mut parts = Vec::with_capacity(named.len());
    for (number, etag) in named {
        let part = stored
            .binary_search_by_key(number, |part| part.number)
            .ok()
            .map(|at| &stored[at])
            .filter(|part| part.blob.etag == *etag)
            .ok_or(StorageError::InvalidPart)?;
        parts.push(part.clone());
    }
    let (_, all_but_last) = parts.split_last().expect("at least one part is named");
    if all_but_last
        .iter()
        .any(|part| part.blob.size < limits::S3_PART_BYTES_MIN)
    {
        return Err(StorageError::PartTooSmall);
    }
    Ok(parts)
}

/// As S3 does it: the MD5 of the parts' MD5s, and their number.
fn multipart_etag(parts: &[Part]) -> String {
    use s3s::crypto::{Checksum, Md5};
    let mut md5 = Md5::new();
    for part in parts {
        md5.update(&hex::decode(&part.blob.etag).expect("a part's ETag is the MD5 that we wrote"));
    }
    format!("{}-{}", hex::encode(md5.finalize()), parts.len())
}

fn blob_path(name: &str) -> BlobPath {
    BlobPath::from(name)
}

/// Removes files that are not used and were not written to within `spared`; says how many.
fn remove_unused(
    dir: &Path,
    used: &HashSet<String>,
    spared: Duration,
) -> Result<usize, StorageError> {
    let mut removed = 0;
    for entry in std::fs::read_dir(dir).map_err(folder_error("read", dir))? {
        let entry = entry.map_err(folder_error("read", dir))?;
        if entry
            .file_name()
            .to_str()
            .is_some_and(|name| used.contains(name))
        {
            continue;
        }
        match remove_aged(&entry.path(), spared) {
            Ok(true) => removed += 1,
            Ok(false) => {}
            // It has its last name now, or none any more.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(folder_error("clean", dir)(error)),
        }
    }
    Ok(removed)
}

fn remove_aged(file: &Path, spared: Duration) -> io::Result<bool> {
    let written = std::fs::metadata(file)?.modified()?;
    let aged = spared.is_zero() || written.elapsed().is_ok_and(|age| age > spared);
    if aged {
        std::fs::remove_file(file)?;
    }
    Ok(aged)
}

fn folder_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    let path = path.to_owned();
    move |source| StorageError::Folder {
        action,
        path,
        source,
    }
}

fn now() -> Timestamp {
    let since_epoch = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    Timestamp(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| StorageError::Panicked)?
}

#[cfg(test)]
mod tests;
