//! The disks of `RUN --mount=type=cache`, as what they take and what can be given back. A build that uses one
//! has the lock beside it, so whoever holds the lock may delete the disk.

use crate::disk;
use crate::layout::Layout;
use crate::usage::{children, folders};
use rustix::fs::FlockOperation;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// What cache disks take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// How many there are.
    pub disks: usize,
    /// Bytes that they take on the host.
    pub bytes: u64,
    /// Bytes of those that no build uses now.
    pub reclaimable_bytes: u64,
}

/// Measures all accounts' cache disks. Blocks.
///
/// # Errors
/// A folder or lock cannot be read.
pub fn usage(layout: &Layout) -> io::Result<Usage> {
    let mut usage = Usage::default();
    for (disk, bytes) in disks(layout)? {
        usage.disks += 1;
        usage.bytes += bytes;
        if lock(&disk)?.is_some() {
            usage.reclaimable_bytes += bytes;
        }
    }
    Ok(usage)
}

/// Deletes the cache disks that no build uses now; answers what they were. Blocks.
///
/// # Errors
/// A disk cannot be locked or deleted.
pub fn prune(layout: &Layout) -> io::Result<Usage> {
    let mut deleted = Usage::default();
    for (disk, bytes) in disks(layout)? {
        let Some(_lock) = lock(&disk)? else {
            continue;
        };
        std::fs::remove_file(&disk)?;
        deleted.disks += 1;
        deleted.bytes += bytes;
        deleted.reclaimable_bytes += bytes;
    }
    Ok(deleted)
}

/// Every `caches/ACCOUNT/N.raw` with its size on the host.
fn disks(layout: &Layout) -> io::Result<Vec<(PathBuf, u64)>> {
    let mut disks = Vec::new();
    for account in folders(&layout.caches())? {
        for path in children(&account)? {
            if path.extension().is_some_and(|extension| extension == "raw") {
                let bytes = disk::allocated(&path.metadata()?);
                disks.push((path, bytes));
            }
        }
    }
    Ok(disks)
}

/// The lock of a disk; none while a build has it.
fn lock(disk: &Path) -> io::Result<Option<File>> {
    let lock = File::create(disk.with_extension("lock"))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(lock)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_a_build_has_stays() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        layout.create().unwrap();
        let account = layout.caches().join("000000000000");
        std::fs::create_dir_all(&account).unwrap();
        let empty = layout.caches().join("empty.raw");
        for path in [empty.clone(), account.join("0.raw"), account.join("1.raw")] {
            std::fs::write(path, vec![1; 8192]).unwrap();
        }
        let held = lock(&account.join("1.raw")).unwrap().unwrap();
        let before = usage(&layout).unwrap();
        assert_eq!(
            (before.disks, before.reclaimable_bytes),
            (2, before.bytes / 2)
        );
        assert_eq!(prune(&layout).unwrap().disks, 1);
        assert!(empty.exists() && account.join("1.raw").exists());
        drop(held);
        assert_eq!(prune(&layout).unwrap().disks, 1);
        assert_eq!(usage(&layout).unwrap(), Usage::default());
    }
}
