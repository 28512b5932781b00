//! What is in the cache's folder, and which of it something lies over.

use super::{disk_path, read_entry};
use crate::disk;
use crate::layout::Layout;
use dormouse_core::limits;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use uuid::Uuid;

/// How deep below a build's or MicroVM's folder disks lie.
const DEPTH_MAX: usize = 3;

/// A folder or file of the data directory cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("read {path}")]
pub struct ScanError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The cache's folder.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Every disk with its size.
    pub(super) disks: BTreeMap<Uuid, Disk>,
    /// Names of disks that are not there any more.
    pub(super) stale_names: Vec<PathBuf>,
    /// Entries that were being written, and the disks that they would name.
    pub(super) unfinished_names: Vec<(Uuid, PathBuf)>,
    /// Disks that something outside the cache lies over.
    roots: HashSet<Uuid>,
    /// Names of the files that a disk of the cache or outside of it lies over.
    lain_over: HashSet<OsString>,
}

/// One disk of the cache.
#[derive(Debug, Default)]
pub(super) struct Disk {
    /// Bytes that it takes on the host.
    pub(super) bytes: u64,
    /// The layer that it lies over, when it is one.
    pub(super) parent: Option<Uuid>,
    /// The entries that name it; none for what a build left behind or is writing.
    pub(super) names: Vec<PathBuf>,
    /// When a build last used it.
    pub(super) used_at: Option<SystemTime>,
}

impl Scan {
    pub(super) fn read(cache: &Path, layout: &Layout) -> Result<Self, ScanError> {
        let mut scan = Self::default();
        let mut names = Vec::new();
        for path in children(cache)? {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("qcow2") => scan.add_disk(cache, &path)?,
                Some("json") => names.push(path),
                Some("tmp") => scan
                    .unfinished_names
                    .extend(layer_id(&path).zip(Some(path))),
                _ => {}
            }
        }
        for name in names {
            scan.add_name(cache, name)?;
        }
        scan.cut_endless_chains();
        for folder in [layout.builds(), layout.vms(), layout.images()] {
            scan.add_roots(cache, &folder, 0)?;
        }
        Ok(scan)
    }

    /// Layers in a circle, as a VMM that was taken over may write it, or over more others than a machine can open lie over
    /// nothing that matters. As they are, those in a circle would never come up to be deleted.
    fn cut_endless_chains(&mut self) {
        let parent = |id: &Uuid| self.disks.get(id).and_then(|disk| disk.parent);
        let is_endless = |id: &&Uuid| {
            let mut below = std::iter::successors(parent(id), parent);
            below.nth(limits::DISK_CHAIN_MAX).is_some()
        };
        let endless: Vec<Uuid> = self.disks.keys().filter(is_endless).copied().collect();
        for id in endless {
            self.disks.entry(id).or_default().parent = None;
        }
    }

    fn add_disk(&mut self, cache: &Path, path: &Path) -> Result<(), ScanError> {
        let Some(id) = layer_id(path) else {
            return Ok(());
        };
        let Some(metadata) = present(path, path.metadata())? else {
            return Ok(());
        };
        let parent = self.layer_below(path, cache)?;
        let entry = self.disks.entry(id).or_default();
        entry.bytes = disk::allocated(&metadata);
        entry.parent = parent;
        Ok(())
    }

    fn add_name(&mut self, cache: &Path, path: PathBuf) -> Result<(), ScanError> {
        let id = read_entry(&path);
        if let Some(disk) = id.and_then(|id| self.disks.get_mut(&id)) {
            let used_at = path.metadata().and_then(|metadata| metadata.modified());
            disk.used_at = disk.used_at.max(used_at.ok());
            disk.names.push(path);
            return Ok(());
        }
        // A disk made since the folder was listed is no reason to take its name away.
        let disk = id.map(|id| disk_path(cache, id));
        let disk = disk
            .map(|disk| present(&disk, disk.metadata()))
            .transpose()?;
        if disk.flatten().is_none() {
            self.stale_names.push(path);
        }
        Ok(())
    }

    /// Finds the disks below a folder, and the layers that they lie over.
    fn add_roots(&mut self, cache: &Path, folder: &Path, depth: usize) -> Result<(), ScanError> {
        for path in children(folder)? {
            let Some(metadata) = present(&path, path.symlink_metadata())? else {
                continue;
            };
            if metadata.is_dir() && depth < DEPTH_MAX {
                self.add_roots(cache, &path, depth + 1)?;
            }
            let is_disk = path
                .extension()
                .is_some_and(|extension| extension == "qcow2");
            if !metadata.is_file() || !is_disk {
                continue;
            }
            let below = self.layer_below(&path, cache)?;
            self.roots.extend(below);
        }
        Ok(())
    }

    /// The layer of the cache that a disk lies over, if it is one; what it lies over is noted, whatever it is.
    fn layer_below(&mut self, path: &Path, cache: &Path) -> Result<Option<Uuid>, ScanError> {
        let Some(below) = backing(path)? else {
            return Ok(None);
        };
        self.lain_over
            .extend(below.file_name().map(OsStr::to_owned));
        let is_layer = below.parent() == Some(cache);
        Ok(is_layer.then(|| layer_id(&below)).flatten())
    }

    /// Whether any disk lies over the one of this name.
    pub(super) fn is_lain_over(&self, disk: &Path) -> bool {
        disk.file_name()
            .is_some_and(|name| self.lain_over.contains(name))
    }

    /// The layers that must stay: those that something outside lies over, and `pinned`, each with all
    /// below it.
    pub(super) fn held(&self, pinned: &HashSet<Uuid>) -> HashSet<Uuid> {
        let mut held = HashSet::new();
        for start in self.roots.iter().chain(pinned) {
            let mut next = Some(*start);
            while let Some(id) = next {
                if !held.insert(id) {
                    break;
                }
                next = self.disks.get(&id).and_then(|disk| disk.parent);
            }
        }
        held
    }

    /// How many layers lie directly over each.
    pub(super) fn children(&self) -> HashMap<Uuid, usize> {
        let mut children = HashMap::new();
        for parent in self.disks.values().filter_map(|disk| disk.parent) {
            *children.entry(parent).or_default() += 1;
        }
        children
    }
}

/// What a disk lies over. One whose header is torn lies over nothing that matters: no machine can open
/// it. One that is just being made is some build's, which has pinned what is below.
fn backing(path: &Path) -> Result<Option<PathBuf>, ScanError> {
    match disk::backing_blocking(path) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            Ok(None)
        }
        backing => Ok(present(path, backing)?.flatten()),
    }
}

fn layer_id(path: &Path) -> Option<Uuid> {
    Uuid::parse_str(path.file_stem()?.to_str()?).ok()
}

/// The paths in a folder; none when there is no such folder (any more).
fn children(folder: &Path) -> Result<Vec<PathBuf>, ScanError> {
    let Some(entries) = present(folder, std::fs::read_dir(folder))? else {
        return Ok(Vec::new());
    };
    let paths: io::Result<_> = entries.map(|entry| Ok(entry?.path())).collect();
    paths.map_err(|source| read_error(folder, source))
}

/// None for what has gone away since it was listed.
fn present<T>(path: &Path, result: io::Result<T>) -> Result<Option<T>, ScanError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(read_error(path, source)),
    }
}

fn read_error(path: &Path, source: io::Error) -> ScanError {
    ScanError {
        path: path.to_owned(),
        source,
    }
}
