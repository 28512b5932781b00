//! The machine that carries out the steps of one stage.

use super::disks::CacheDisk;
use super::stages::Build;
use super::{BuildError, create_dirs, remove, steps};
use crate::disk;
use crate::guest::Guest;
use crate::layers::{LayerDisk, Layers};
use crate::vmm::{AttachedDisk, BootSpec, Instance};
use dormouse_core::guest::{CACHE_SERIAL, DISK_TREE};
use dormouse_core::limits;
use dormouse_image::Source;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The disks of a build VM besides its root disk.
#[derive(Debug, Default)]
pub(super) struct Disks {
    /// By what the Dockerfile calls them.
    sources: BTreeMap<Source, PathBuf>,
    cache: Option<CacheDisk>,
}

impl Disks {
    pub(super) fn add_source(&mut self, source: &Source, disk: PathBuf) {
        self.sources.insert(source.clone(), disk);
    }

    pub(super) fn add_cache(&mut self, cache: CacheDisk) {
        self.cache = Some(cache);
    }

    fn attached(&self) -> Vec<AttachedDisk> {
        let sources = self.sources.values().enumerate();
        let sources = sources.map(|(number, path)| AttachedDisk {
            serial: serial(number),
            path: path.clone(),
            writable: false,
        });
        let cache = self.cache.as_ref().map(|cache| AttachedDisk {
            serial: CACHE_SERIAL.to_owned(),
            path: cache.path.clone(),
            writable: true,
        });
        sources.chain(cache).collect()
    }
}

fn serial(number: usize) -> String {
    format!("s{number}")
}

/// A build VM, and the disk that it writes to now: the layer of the step under way.
#[derive(Debug)]
pub(super) struct BuildVm {
    machine: Box<dyn Instance>,
    layer: LayerDisk,
    /// Held for as long as the machine may write to the cache.
    disks: Disks,
}

/// Starts a machine from `root`, which stays as it is.
pub(super) async fn start(
    build: Build<'_>,
    root: &Path,
    disks: Disks,
) -> Result<BuildVm, BuildError> {
    let layer = build.layers.new_disk();
    disk::create_overlay(root, &layer.path).await?;
    let run_dir = steps::run_dir(build.dir);
    create_dirs(&run_dir).await?;
    let spec = BootSpec {
        run_dir,
        kernel: build.host.boot.kernel.clone(),
        initramfs: build.host.boot.initramfs.clone(),
        disk: layer.path.clone(),
        memory_mib: limits::BUILD_VM_MEMORY_MIB,
        vcpus: super::host_cpus(),
        golden_memory: None,
        disks: disks.attached(),
    };
    let machine = build.host.vmm.boot(&spec).await?;
    Ok(BuildVm {
        machine,
        layer,
        disks,
    })
}

impl BuildVm {
    pub(super) fn guest(&self) -> Guest<'_> {
        Guest::new(&*self.machine)
    }

    /// The name of the tree that a source's disk is.
    pub(super) fn tree_of(&self, source: &Source) -> Option<String> {
        let number = self.disks.sources.keys().position(|known| known == source);
        number.map(|number| format!("{DISK_TREE}{}", serial(number)))
    }

    /// Cuts the disk off after a step: what was written becomes the layer `key`, whose disk is answered,
    /// and a new one lies on top of it.
    pub(super) async fn seal(&mut self, layers: &Layers, key: &str) -> Result<PathBuf, BuildError> {
        let next = layers.new_disk();
        self.guest().freeze_disk().await?;
        self.machine.switch_disk(&next.path).await?;
        self.guest().thaw_disk().await?;
        let done = std::mem::replace(&mut self.layer, next);
        let published = layers.publish(key, &done).await;
        published.map_err(BuildError::io("write cache entry"))?;
        Ok(done.path)
    }

    /// Ends the machine after its last step, or after one that failed. Only then may others have its caches.
    pub(super) async fn end(self) -> Result<(), BuildError> {
        self.machine.kill().await?;
        // Nothing that is wanted was written to the layer after the last step that succeeded.
        remove(&self.layer.path).await
    }
}
