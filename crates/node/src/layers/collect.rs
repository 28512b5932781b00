//! Garbage collection of the build cache.
//!
//! What goes, the least recently used first and never before what lies over it: disks that no key names,
//! and layers beyond the given bounds. What stays whatever its age: all that a golden snapshot, a MicroVM
//! or a build under way lies over. Base images that were pulled go when they are idle and nothing lies over them.

use super::scan::{Disk, Scan, ScanError};
use super::{LayerCache, State};
use crate::layout::Layout;
use dormouse_image::{LocalImageError, LocalImages};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};
use uuid::Uuid;

/// What a collection may take of the layers that nothing needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// As long as they take more than this many bytes together.
    pub keep_bytes: u64,
    /// Only those that no build has used for this long.
    pub older_than: Duration,
}

/// What a collection has deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Disks.
    pub disks: usize,
    /// Bytes that they took on the host.
    pub bytes: u64,
}

/// What the cache takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Its disks.
    pub disks: usize,
    /// Bytes that they take on the host.
    pub bytes: u64,
    /// Bytes of those that nothing lies over.
    pub reclaimable_bytes: u64,
}

/// Why a collection stopped. What it had deleted by then is whole: names and disks both gone.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The data directory cannot be read.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// A file cannot be deleted.
    #[error("delete {path}")]
    Delete {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The store of base images cannot be read, or a disk of it not be deleted.
    #[error(transparent)]
    Images(#[from] LocalImageError),
    /// The daemon is stopping.
    #[error("the collection was given up")]
    Stopped,
}

impl LayerCache {
    /// Deletes what nothing needs, within bounds.
    ///
    /// # Errors
    /// See [`CollectError`].
    pub async fn collect(
        self: &Arc<Self>,
        layout: &Layout,
        bounds: Bounds,
    ) -> Result<Collected, CollectError> {
        let (cache, layout) = (Arc::clone(self), layout.clone());
        tokio::task::spawn_blocking(move || cache.collect_blocking(&layout, bounds))
            .await
            .unwrap_or(Err(CollectError::Stopped))
    }

    /// Deletes pulled base images that no build has used for as long and nothing lies over.
    ///
    /// # Errors
    /// See [`CollectError`].
    pub async fn collect_bases(
        self: &Arc<Self>,
        layout: &Layout,
        unused_for: Duration,
    ) -> Result<Collected, CollectError> {
        let (cache, layout) = (Arc::clone(self), layout.clone());
        tokio::task::spawn_blocking(move || cache.collect_bases_blocking(&layout, unused_for))
            .await
            .unwrap_or(Err(CollectError::Stopped))
    }

    /// What the cache takes now.
    ///
    /// # Errors
    /// See [`CollectError`].
    pub async fn usage(self: &Arc<Self>, layout: &Layout) -> Result<Usage, CollectError> {
        let (cache, layout) = (Arc::clone(self), layout.clone());
        tokio::task::spawn_blocking(move || cache.usage_blocking(&layout))
            .await
            .unwrap_or(Err(CollectError::Stopped))
    }

    fn usage_blocking(&self, layout: &Layout) -> Result<Usage, CollectError> {
        let pinned = self.state().pins.keys().copied().collect();
        let scan = Scan::read(&self.dir, layout)?;
        let held = scan.held(&pinned);
        let mut usage = Usage::default();
        for (id, disk) in &scan.disks {
            usage.disks += 1;
            usage.bytes += disk.bytes;
            if !held.contains(id) {
                usage.reclaimable_bytes += disk.bytes;
            }
        }
        Ok(usage)
    }

    fn collect_blocking(&self, layout: &Layout, bounds: Bounds) -> Result<Collected, CollectError> {
        let _turn = self
            .collecting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let watch = Watch::begin(self);
        let scan = Scan::read(&self.dir, layout)?;
        for name in &scan.stale_names {
            delete(name)?;
        }
        let unused = |id: &Uuid| !watch.pinned.contains(id) && !self.is_touched(*id);
        for (_, name) in scan.unfinished_names.iter().filter(|(id, _)| unused(id)) {
            delete(name)?;
        }
        let mut collected = Collected::default();
        let held = scan.held(&watch.pinned);
        let mut queue = Queue::new(&scan, &held, bounds);
        while let Some(id) = queue.next() {
            let disk = &scan.disks[&id];
            if !self.delete_layer(id, disk)? {
                continue;
            }
            queue.gone(id);
            collected.disks += 1;
            collected.bytes += disk.bytes;
        }
        Ok(collected)
    }

    /// No pins are needed: a build notes its use of an image before it lays anything over it, and no build takes as
    /// long as an image is kept.
    fn collect_bases_blocking(
        &self,
        layout: &Layout,
        unused_for: Duration,
    ) -> Result<Collected, CollectError> {
        let mut collected = Collected::default();
        let Some(used_before) = SystemTime::now().checked_sub(unused_for) else {
            return Ok(collected);
        };
        let images = LocalImages::open(&layout.images())?;
        let idle = images.idle_disks(used_before)?;
        if idle.is_empty() {
            return Ok(collected);
        }
        let scan = Scan::read(&self.dir, layout)?;
        for disk in idle.iter().filter(|disk| !scan.is_lain_over(&disk.path)) {
            if images.remove_idle(disk, used_before)? {
                collected.disks += 1;
                collected.bytes += disk.allocated;
            }
        }
        Ok(collected)
    }

    fn is_touched(&self, id: Uuid) -> bool {
        let state = self.state();
        state
            .touched
            .as_ref()
            .is_some_and(|touched| touched.contains(&id))
    }

    /// Deletes a layer, its names first; answers false when a build has come to use it.
    fn delete_layer(&self, id: Uuid, disk: &Disk) -> Result<bool, CollectError> {
        if !self.state().condemn(id) {
            return Ok(false);
        }
        let delete_files = || {
            for name in &disk.names {
                delete(name)?;
            }
            if !disk.names.is_empty() {
                // No crash may bring a name back whose disk is gone.
                let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
                synced.map_err(|source| CollectError::Delete {
                    path: self.dir.clone(),
                    source,
                })?;
            }
            delete(&self.disk(id))
        };
        let deleted = delete_files();
        self.state().condemned.remove(&id);
        deleted.map(|()| true)
    }
}

impl State {
    /// Marks a disk as lost to builds, unless one uses it or has used it since the scan.
    fn condemn(&mut self, id: Uuid) -> bool {
        let touched = self
            .touched
            .as_ref()
            .is_some_and(|touched| touched.contains(&id));
        if touched || self.pins.contains_key(&id) {
            return false;
        }
        self.condemned.insert(id)
    }
}

/// While it lives, what builds touch is remembered.
struct Watch<'a> {
    cache: &'a LayerCache,
    /// What was in use when it began.
    pinned: HashSet<Uuid>,
}

impl<'a> Watch<'a> {
    fn begin(cache: &'a LayerCache) -> Self {
        let mut state = cache.state();
        state.touched = Some(HashSet::new());
        let pinned = state.pins.keys().copied().collect();
        Self { cache, pinned }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.cache.state().touched = None;
    }
}

/// The disks to delete, in order: a layer comes up once nothing lies over it.
struct Queue<'a> {
    scan: &'a Scan,
    held: &'a HashSet<Uuid>,
    children: HashMap<Uuid, usize>,
    ready: BTreeSet<(Option<SystemTime>, Uuid)>,
    /// Bytes of the named layers that nothing needs.
    spare_bytes: u64,
    keep_bytes: u64,
    used_before: Option<SystemTime>,
}

impl<'a> Queue<'a> {
    fn new(scan: &'a Scan, held: &'a HashSet<Uuid>, bounds: Bounds) -> Self {
        let spare = scan.disks.iter().filter(|(id, _)| !held.contains(id));
        let mut queue = Self {
            scan,
            held,
            children: scan.children(),
            ready: BTreeSet::new(),
            spare_bytes: spare.map(|(_, disk)| disk.bytes).sum(),
            keep_bytes: bounds.keep_bytes,
            used_before: SystemTime::now().checked_sub(bounds.older_than),
        };
        for id in scan.disks.keys() {
            queue.offer(*id);
        }
        queue
    }

    /// Puts a disk in line if it may go and nothing lies over it.
    fn offer(&mut self, id: Uuid) {
        let Some(disk) = self.scan.disks.get(&id) else {
            return;
        };
        let is_leaf = self.children.get(&id).is_none_or(|children| *children == 0);
        let is_old = disk.names.is_empty() || disk.used_at <= self.used_before;
        if is_leaf && is_old && !self.held.contains(&id) {
            self.ready.insert((disk.used_at, id));
        }
    }

    /// The next to go. What no key names is of no use to anybody, so bounds do not save it.
    fn next(&mut self) -> Option<Uuid> {
        let (used_at, id) = self.ready.pop_first()?;
        let wanted = self.spare_bytes <= self.keep_bytes;
        (used_at.is_none() || !wanted).then_some(id)
    }

    fn gone(&mut self, id: Uuid) {
        let disk = &self.scan.disks[&id];
        self.spare_bytes = self.spare_bytes.saturating_sub(disk.bytes);
        if let Some(parent) = disk.parent {
            if let Some(children) = self.children.get_mut(&parent) {
                *children -= 1;
            }
            self.offer(parent);
        }
    }
}

fn delete(path: &std::path::Path) -> Result<(), CollectError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(CollectError::Delete {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}
