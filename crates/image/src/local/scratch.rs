//! A folder to fetch layers into: deleted when it is dropped, and after a crash by whoever comes next.

use super::{LocalImageError, LocalImages, io_error};
use rustix::fs::FlockOperation;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// A folder of its holder's alone. Its lock tells others that it is in use.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    _lock: File,
}

const LOCK: &str = "lock";

impl Scratch {
    /// Makes a folder, and deletes those that nobody holds any more.
    pub(crate) fn make(store: &LocalImages, name: &str) -> Result<Self, LocalImageError> {
        let folder = store.pulling();
        sweep(&folder)?;
        let path = folder.join(name);
        fs::create_dir(&path).map_err(io_error("make the folder", &path))?;
        let lock = || {
            let file = File::create(path.join(LOCK))?;
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            Ok(file)
        };
        let lock = lock().map_err(io_error("lock", &path))?;
        Ok(Self { path, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(folder = %self.path.display(), %error, "cannot remove a pull's files");
        }
    }
}

/// Deletes folders whose holder is gone. One without a lock is just being made.
fn sweep(folder: &Path) -> Result<(), LocalImageError> {
    let failed = io_error("clear", folder);
    for entry in fs::read_dir(folder).map_err(&failed)? {
        let path = entry.map_err(&failed)?.path();
        let Ok(lock) = File::open(path.join(LOCK)) else {
            continue;
        };
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
            && let Err(error) = fs::remove_dir_all(&path)
        {
            tracing::warn!(folder = %path.display(), %error, "cannot remove a stale pull's files");
        }
    }
    Ok(())
}
