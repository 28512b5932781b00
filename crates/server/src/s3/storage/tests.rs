//! What must hold when a body breaks off, the daemon crashes or the disk is full.

use super::*;
use crate::config::CapacityConfig;
use std::process::Command;

fn sent(
    chunks: Vec<Result<Bytes, StdError>>,
) -> Incoming<impl Stream<Item = Result<Bytes, StdError>> + Send> {
    Incoming::unclaimed(stream::iter(chunks))
}

async fn put(
    storage: &Storage,
    key: &str,
    chunks: Vec<Result<Bytes, StdError>>,
) -> Result<Object, StorageError> {
    let attributes = Attributes::default();
    storage
        .put("bucket", key, attributes, Condition::None, sent(chunks))
        .await
}

async fn content(storage: &Storage, object: &Object) -> Vec<u8> {
    let body = storage.read(object, 0..object.blob.size).await.unwrap();
    let chunks: Vec<Bytes> = body.try_collect().await.unwrap();
    chunks.concat()
}

fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("blobs")).unwrap().count()
}

/// A host that has to keep so much of its disk free.
fn headroom(dir: &Path, disk_free_min_bytes: u64) -> Headroom {
    let least = CapacityConfig {
        disk_free_min_bytes,
        memory_free_min_bytes: 0,
    };
    Headroom::new(dir, least)
}

async fn open(dir: &Path) -> Storage {
    open_keeping(dir, 0).await
}

async fn open_keeping(dir: &Path, disk_free_min_bytes: u64) -> Storage {
    let owner = AccountId::parse("000000000000").unwrap();
    let headroom = headroom(dir, disk_free_min_bytes);
    let storage = Storage::open(dir, &owner, headroom).await.unwrap();
    storage
        .create_bucket("bucket".to_owned(), owner)
        .await
        .unwrap();
    storage
}

#[tokio::test]
async fn a_body_that_breaks_off_leaves_the_old_object_and_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path()).await;
    put(&storage, "a", vec![Ok("old".into())]).await.unwrap();
    let cut = vec![Ok(vec![0; 3 << 20].into()), Err("connection reset".into())];
    let error = put(&storage, "a", cut).await.unwrap_err();
    assert!(matches!(error, StorageError::Body(_)), "{error:?}");
    let kept = storage.head("bucket", "a").await.unwrap();
    assert_eq!(content(&storage, &kept).await, b"old");
    assert_eq!(files(dir.path()), 1);
}

#[tokio::test]
async fn objects_survive_a_reopen_and_a_crashs_leftovers_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path()).await;
    let written = put(&storage, "a", vec![Ok("kept".into())]).await.unwrap();
    drop(storage);
    std::fs::write(dir.path().join("blobs/0123456789abcdef"), "unnamed").unwrap();
    std::fs::write(dir.path().join("blobs/0123456789abcdef#1"), "half written").unwrap();

    let storage = open(dir.path()).await;
    assert_eq!(files(dir.path()), 1);
    let found = storage.head("bucket", "a").await.unwrap();
    assert_eq!(found, written);
    assert_eq!(content(&storage, &found).await, b"kept");
}

#[tokio::test]
async fn an_object_that_is_replaced_while_it_is_read_is_read_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path()).await;
    let old = put(&storage, "a", vec![Ok(vec![1; 1 << 20].into())])
        .await
        .unwrap();
    let body = storage.read(&old, 0..old.blob.size).await.unwrap();
    put(&storage, "a", vec![Ok("new".into())]).await.unwrap();
    let chunks: Vec<Bytes> = body.try_collect().await.unwrap();
    assert_eq!(chunks.concat(), vec![1; 1 << 20]);
    assert_eq!(files(dir.path()), 1);
}

#[tokio::test]
async fn what_is_left_behind_goes_and_what_is_on_its_way_stays() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path()).await;
    put(&storage, "a", vec![Ok("kept".into())]).await.unwrap();
    let attributes = Attributes::default();
    let upload = storage.create_upload("bucket", "b", attributes);
    let upload = upload.await.unwrap();
    let part = storage.put_part(&upload, 1, sent(vec![Ok("part".into())]));
    part.await.unwrap();
    let blobs = dir.path().join("blobs");
    std::fs::write(blobs.join("0123456789abcdef#1"), "on its way").unwrap();
    std::fs::write(blobs.join("0123456789abcdef"), "left behind").unwrap();
    let long_ago = |name: &std::ffi::OsStr| {
        let file = std::fs::File::open(blobs.join(name)).unwrap();
        let age = limits::S3_LEFTOVER_AGE + Duration::from_secs(1);
        file.set_modified(SystemTime::now() - age).unwrap();
    };
    for file in std::fs::read_dir(&blobs).unwrap() {
        let name = file.unwrap().file_name();
        if name != "0123456789abcdef#1" {
            long_ago(&name);
        }
    }
    storage.sweep().await.unwrap();
    assert_eq!(files(dir.path()), 3, "object, part and what is on its way");

    let ttl = u64::try_from(limits::S3_UPLOAD_TTL.as_millis()).unwrap();
    let aged = storage.index(move |index| {
        let sql = "UPDATE uploads SET created_ms = created_ms - ?1 - 1";
        Ok(index.execute(sql, [ttl])?)
    });
    assert_eq!(aged.await.unwrap(), 1);
    storage.sweep().await.unwrap();
    assert_eq!(files(dir.path()), 2, "object and what is on its way");
    let gone = storage.upload("bucket", "b", &upload.id).await;
    assert!(matches!(gone, Err(StorageError::NoSuchUpload)), "{gone:?}");
}

#[tokio::test]
async fn nothing_is_stored_where_the_host_is_short_of_disk() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path()).await;
    let object = put(&storage, "a", vec![Ok("old".into())]).await.unwrap();
    let upload = storage.create_upload("bucket", "b", Attributes::default());
    let upload = upload.await.unwrap();
    let part = storage.put_part(&upload, 1, sent(vec![Ok("part".into())]));
    let part = part.await.unwrap();
    drop(storage);

    let owner = AccountId::parse("000000000000").unwrap();
    let short = headroom(dir.path(), u64::MAX);
    let storage = Storage::open(dir.path(), &owner, short).await.unwrap();
    let named = [(1, part.blob.etag)];
    let attributes = Attributes::default();
    for refused in [
        put(&storage, "a", vec![Ok("new".into())]).await.map(drop),
        storage
            .put_part(&upload, 2, sent(vec![Ok("more".into())]))
            .await
            .map(drop),
        storage
            .copy(&object, "bucket", "c", attributes)
            .await
            .map(drop),
        storage
            .complete(&upload, &named, Condition::None)
            .await
            .map(drop),
    ] {
        assert!(
            matches!(refused, Err(StorageError::Shortage(_))),
            "{refused:?}"
        );
    }
    assert_eq!(files(dir.path()), 2);
    storage.delete("bucket", "a").await.unwrap();
}

/// A file system of its own, unmounted at the end.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Only root may mount; the tests of whole microVMs need root as well.
    fn mount() -> Option<Self> {
        let mounted = Self::try_mount();
        assert!(
            mounted.is_some() || !rustix::process::geteuid().is_root(),
            "root cannot mount a tmpfs"
        );
        mounted
    }

    fn try_mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"])
            .arg(dir.path());
        mount
            .status()
            .is_ok_and(|status| status.success())
            .then_some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(
            unmounted.is_ok_and(|status| status.success()),
            "{:?} stays mounted",
            self.0
        );
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_changes_nothing() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let dir = disk.0.path().join("s3");
    let storage = open(&dir).await;
    put(&storage, "a", vec![Ok("old".into())]).await.unwrap();
    let large = (0..64).map(|_| Ok(vec![7; 1 << 20].into())).collect();
    let error = put(&storage, "a", large).await.unwrap_err();
    assert!(error.is_disk_full(), "{error:?}");
    let kept = storage.head("bucket", "a").await.unwrap();
    assert_eq!(content(&storage, &kept).await, b"old");
    assert_eq!(files(&dir), 1);
    put(&storage, "b", vec![Ok("fits".into())]).await.unwrap();
}

#[tokio::test]
async fn what_the_host_keeps_free_stays_free_whatever_a_body_says_of_its_length() {
    const KEPT: u64 = 4 << 20;
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let storage = open_keeping(disk.0.path(), KEPT).await;
    let body = || sent((0..64).map(|_| Ok(vec![7; 1 << 20].into())).collect());
    let unsaid = storage.put(
        "bucket",
        "a",
        Attributes::default(),
        Condition::None,
        body(),
    );
    let mut said = body();
    said.claims.length = Some(1 << 62);
    let said = storage.put("bucket", "b", Attributes::default(), Condition::None, said);
    let (unsaid, said) = (unsaid.await.unwrap_err(), said.await.unwrap_err());
    assert!(matches!(unsaid, StorageError::Shortage(_)), "{unsaid:?}");
    assert!(matches!(said, StorageError::TooLarge), "{said:?}");
    assert_eq!(files(disk.0.path()), 0);
}
