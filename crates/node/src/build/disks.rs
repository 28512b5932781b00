//! Disks that are made by the host: the empty one, and those of cache mounts.
//!
//! A cache disk outlives builds and belongs to one account. One build at a time has it; a second one
//! takes the account's next. What it holds is never part of an image, and no build may rely on it.

use super::{BuildError, blocking, create_dirs, remove};
use crate::disk;
use crate::layout::Layout;
use dormouse_core::{AccountId, limits};
use rustix::fs::FlockOperation;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::Command;

/// What stands in a cache key for the empty disk.
pub(super) const EMPTY_DIGEST: &str = "empty ext4 disk 1";

/// A cache disk, this build's until it is dropped.
#[derive(Debug)]
pub(super) struct CacheDisk {
    pub(super) path: PathBuf,
    _lock: File,
}

/// The disk of a stage that begins with nothing. It is made once.
pub(super) async fn empty(layout: &Layout) -> Result<PathBuf, BuildError> {
    let path = layout.caches().join("empty.raw");
    make(&path, limits::BUILD_EMPTY_DISK_BYTES).await?;
    Ok(path)
}

/// A cache disk of the account that no build has now.
pub(super) async fn take_cache(
    layout: &Layout,
    account: &AccountId,
) -> Result<CacheDisk, BuildError> {
    let dir = layout.caches().join(account.as_str());
    create_dirs(&dir).await?;
    let locking = dir.clone();
    let (number, lock) = blocking(move || lock_one(&locking)).await?;
    let path = dir.join(format!("{number}.raw"));
    let taken = disk::allocated_bytes(&path).await.unwrap_or_default();
    if taken > limits::BUILD_CACHE_BYTES_MAX {
        tracing::info!(disk = %path.display(), bytes = taken, "cache disk is emptied");
        remove(&path).await?;
    }
    make(&path, limits::BUILD_CACHE_DISK_BYTES).await?;
    Ok(CacheDisk { path, _lock: lock })
}

/// Locks the first disk that is free.
fn lock_one(dir: &Path) -> Result<(usize, File), BuildError> {
    for number in 0..limits::BUILD_CACHE_DISKS_MAX {
        let lock = File::create(dir.join(format!("{number}.lock")))
            .map_err(BuildError::io("make lock of cache disk"))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok((number, lock)),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(BuildError::io("lock cache disk")(error.into())),
        }
    }
    let busy = std::io::Error::new(
        std::io::ErrorKind::ResourceBusy,
        "every cache disk is in use",
    );
    Err(BuildError::io("lock cache disk")(busy))
}

/// Makes a sparse disk with an empty ext4 file system, unless it is there.
async fn make(path: &Path, bytes: u64) -> Result<(), BuildError> {
    let exists = tokio::fs::try_exists(path).await;
    if exists.map_err(BuildError::io("look for disk"))? {
        return Ok(());
    }
    // Another build may make the same one: whichever comes last is as good.
    let draft = path.with_extension(format!("{}.tmp", uuid::Uuid::new_v4()));
    let made = format(&draft, bytes).await;
    let made = match made {
        Ok(()) => tokio::fs::rename(&draft, path)
            .await
            .map_err(BuildError::io("put disk in place")),
        Err(error) => Err(error),
    };
    if made.is_err() {
        // The first error is the one to report.
        let _ = tokio::fs::remove_file(&draft).await;
    }
    made
}

async fn format(draft: &Path, bytes: u64) -> Result<(), BuildError> {
    let file = tokio::fs::File::create(draft)
        .await
        .map_err(BuildError::io("make disk"))?;
    file.set_len(bytes)
        .await
        .map_err(BuildError::io("size disk"))?;
    drop(file);
    let path = std::env::var("PATH").unwrap_or_default();
    let options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard";
    let output = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-E", options])
        .arg(draft)
        // Its usual folder is in root's PATH only.
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(BuildError::io("run mke2fs"))?;
    if output.status.success() {
        return Ok(());
    }
    let words: String = String::from_utf8_lossy(&output.stderr)
        .chars()
        .take(500)
        .collect();
    let failed = std::io::Error::other(format!("{}: {}", output.status, words.trim()));
    Err(BuildError::io("make file system")(failed))
}
