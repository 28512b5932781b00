//! The build cache: the disk after each step, found by what made it.
//!
//! A layer is `UUID.qcow2`, an overlay over its parent's disk; `KEY.json` names it once its step has
//! succeeded. A build that dies leaves a disk that no key names, never a key without its disk.

use super::BuildError;
use crate::snapshot::write_whole;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// The folder of the cache.
#[derive(Debug)]
pub(super) struct Layers {
    dir: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    disk: Uuid,
}

impl Layers {
    pub(super) fn open(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// The disk that this key names.
    pub(super) async fn find(&self, key: &str) -> Option<PathBuf> {
        let text = tokio::fs::read(self.entry(key)).await.ok()?;
        let entry: Entry = serde_json::from_slice(&text).ok()?;
        let disk = self.disk(entry.disk);
        tokio::fs::try_exists(&disk).await.ok()?.then_some(disk)
    }

    /// A name for a disk that no key names yet.
    pub(super) fn new_disk(&self) -> LayerDisk {
        let id = Uuid::new_v4();
        LayerDisk {
            id,
            path: self.disk(id),
        }
    }

    /// Lets `key` name a disk that is complete and will never be written again.
    pub(super) async fn publish(&self, key: &str, disk: &LayerDisk) -> Result<(), BuildError> {
        let entry = serde_json::to_vec(&Entry { disk: disk.id }).expect("a UUID serializes");
        write_whole(&self.entry(key), &entry)
            .await
            .map_err(BuildError::io("write cache entry"))
    }

    fn entry(&self, key: &str) -> PathBuf {
        self.dir.join(format!("{key}.json"))
    }

    fn disk(&self, id: Uuid) -> PathBuf {
        self.dir.join(format!("{id}.qcow2"))
    }
}

/// A disk of the cache.
#[derive(Debug)]
pub(super) struct LayerDisk {
    id: Uuid,
    pub(super) path: PathBuf,
}
