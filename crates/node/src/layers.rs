//! The build cache: the disk after each step, found by what made it.
//!
//! A layer is `UUID.qcow2`, an overlay over its parent's disk; `ACCOUNT-KEY.json` names it once its step
//! has succeeded, and its time of modification is when a build last used it. A build that dies leaves a
//! disk that no key names; a layer loses its names before it loses its disk.
//!
//! Golden snapshots, and so MicroVMs, lie over layers. [`collect`] deletes only what nothing lies over.
//! Between the moment that a build finds a layer and the moment that something on disk lies over it, the
//! build's pin keeps it.

mod collect;
mod scan;

pub use collect::{Bounds, CollectError, Collected, Usage};
pub use scan::ScanError;

use dormouse_core::AccountId;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use tokio::sync::Notify;
use uuid::Uuid;

/// The cache of one data directory.
#[derive(Debug)]
pub struct LayerCache {
    dir: PathBuf,
    state: Mutex<State>,
    /// One collection at a time. Held by blocking threads only.
    collecting: Mutex<()>,
    /// Told when a build lets go of its layers.
    released: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// How many builds use a disk.
    pins: HashMap<Uuid, usize>,
    /// Disks that were pinned at any time since the collection under way began: what it saw on disk may
    /// be older than what such a build has laid over them.
    touched: Option<HashSet<Uuid>>,
    /// Disks that are being deleted.
    condemned: HashSet<Uuid>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    disk: Uuid,
}

impl LayerCache {
    /// The cache in this folder.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            state: Mutex::default(),
            collecting: Mutex::default(),
            released: Notify::new(),
        }
    }

    /// The layers of an account's images, for one build: until it is dropped, none that the build has
    /// found or made goes away.
    #[must_use]
    pub fn for_build(self: &Arc<Self>, account: &AccountId) -> Layers {
        Layers {
            cache: Arc::clone(self),
            account: account.clone(),
            pinned: Mutex::default(),
        }
    }

    /// Waits until a build has let go of its layers.
    pub async fn released(&self) {
        self.released.notified().await;
    }

    fn pin(&self, disk: Uuid) -> bool {
        let mut state = self.state();
        if state.condemned.contains(&disk) {
            return false;
        }
        *state.pins.entry(disk).or_default() += 1;
        if let Some(touched) = &mut state.touched {
            touched.insert(disk);
        }
        true
    }

    fn unpin(&self, disks: &[Uuid]) {
        let mut state = self.state();
        for disk in disks {
            if let Some(pins) = state.pins.get_mut(disk) {
                *pins -= 1;
                if *pins == 0 {
                    state.pins.remove(disk);
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disk(&self, id: Uuid) -> PathBuf {
        disk_path(&self.dir, id)
    }
}

/// What one build sees of the cache.
#[derive(Debug)]
pub struct Layers {
    cache: Arc<LayerCache>,
    account: AccountId,
    pinned: Mutex<Vec<Uuid>>,
}

impl Layers {
    /// The disk that this key names, and from now on keeps.
    pub async fn find(&self, key: &str) -> Option<PathBuf> {
        let entry = self.entry(key);
        let id = tokio::task::spawn_blocking(move || use_entry(&entry));
        let id = id.await.ok()??;
        self.pin(id).then_some(())?;
        let disk = self.cache.disk(id);
        tokio::fs::try_exists(&disk).await.ok()?.then_some(disk)
    }

    /// A name for a disk that no key names yet.
    pub fn new_disk(&self) -> LayerDisk {
        let id = Uuid::new_v4();
        // A name that nobody has heard of is not condemned.
        self.pin(id);
        LayerDisk {
            id,
            path: self.cache.disk(id),
        }
    }

    /// Lets `key` name a disk that is complete and will never be written again.
    ///
    /// # Errors
    /// The disk or the name could not be made durable.
    pub async fn publish(&self, key: &str, disk: &LayerDisk) -> io::Result<()> {
        let (entry, id, path) = (self.entry(key), disk.id, disk.path.clone());
        let published = tokio::task::spawn_blocking(move || publish(&entry, id, &path));
        published.await.map_err(io::Error::other)?
    }

    fn pin(&self, disk: Uuid) -> bool {
        let pinned = self.cache.pin(disk);
        if pinned {
            let mut own = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
            own.push(disk);
        }
        pinned
    }

    fn entry(&self, key: &str) -> PathBuf {
        self.cache.dir.join(format!("{}-{key}.json", self.account))
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        let pinned = self
            .pinned
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        self.cache.unpin(pinned);
        self.cache.released.notify_one();
    }
}

/// A disk of the cache.
#[derive(Debug)]
pub struct LayerDisk {
    id: Uuid,
    /// Where it is, or will be.
    pub path: PathBuf,
}

fn disk_path(dir: &Path, id: Uuid) -> PathBuf {
    dir.join(format!("{id}.qcow2"))
}

/// Reads which disk an entry names, and marks it as used now.
fn use_entry(path: &Path) -> Option<Uuid> {
    let id = read_entry(path)?;
    let touched = File::options()
        .write(true)
        .open(path)
        .and_then(|file| file.set_modified(SystemTime::now()));
    if let Err(error) = touched {
        tracing::warn!(%error, entry = %path.display(), "use of a layer was not noted");
    }
    Some(id)
}

fn read_entry(path: &Path) -> Option<Uuid> {
    let entry: Entry = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    Some(entry.disk)
}

/// Golden snapshots are as durable as the layers below them: the disk comes first.
fn publish(entry: &Path, id: Uuid, disk: &Path) -> io::Result<()> {
    File::open(disk)?.sync_all()?;
    let dir = entry.parent().ok_or(io::ErrorKind::InvalidInput)?;
    // Another build may publish the same key at the same time.
    let temporary = dir.join(format!("{id}.tmp"));
    let text = serde_json::to_vec(&Entry { disk: id }).expect("a UUID serializes");
    let mut file = File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(&text)?;
    file.sync_all()?;
    std::fs::rename(&temporary, entry)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests;
