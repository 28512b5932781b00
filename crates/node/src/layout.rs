//! Where everything lies in the data directory.
//!
//! ```text
//! boot/HASH/{vmlinuz,initramfs}      what machines boot from; snapshots refer to it by hash
//! images/disks/HEX.raw               root disks of base images, beside the store's own bookkeeping
//! layers/{KEY.json,UUID.qcow2}       build cache: the disk after each step
//! caches/{empty.raw,ACCOUNT/N.raw}   what an empty stage begins with; disks of cache mounts
//! builds/BUILD/{memory,state,disk.qcow2,working-set,manifest.json,log,times.json}
//! vms/MICROVM/{disk.qcow2,machine.json,qmp.sock,suspended/{state,memory}}
//! ```
//! Names in the last two come from [`BuildId`] and [`MicrovmId`], which hold nothing but a UUID.

use dormouse_core::{BuildId, MicrovmId};
use std::path::{Path, PathBuf};

/// The data directory.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Uses `root`, which must be absolute: disk images refer to each other by path.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Makes the folders that everything else relies on.
    pub fn create(&self) -> std::io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        for dir in [
            "", "boot", "jail", "images", "layers", "caches", "builds", "vms",
        ] {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(self.root.join(dir))?;
        }
        Ok(())
    }

    /// What machines boot from.
    #[must_use]
    pub fn boot(&self) -> PathBuf {
        self.root.join("boot")
    }

    /// What VMMs' jails are made of.
    #[must_use]
    pub fn jail(&self) -> PathBuf {
        self.root.join("jail")
    }

    /// Local base images.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// The folders of the disks that others may lie over: layers, base images, the empty disk. The daemon alone makes
    /// what lies right in them.
    #[must_use]
    pub fn foundations(&self) -> Vec<PathBuf> {
        vec![self.layers(), self.images().join("disks"), self.caches()]
    }

    /// The build cache.
    #[must_use]
    pub fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// The folders of all builds.
    #[must_use]
    pub fn builds(&self) -> PathBuf {
        self.root.join("builds")
    }

    /// The folders of all MicroVMs.
    #[must_use]
    pub fn vms(&self) -> PathBuf {
        self.root.join("vms")
    }

    /// Disks of cache mounts, and the empty disk.
    #[must_use]
    pub fn caches(&self) -> PathBuf {
        self.root.join("caches")
    }

    /// One build.
    #[must_use]
    pub fn build(&self, id: &BuildId) -> BuildDir {
        BuildDir(self.root.join("builds").join(id.as_str()))
    }

    /// The folders of all MicroVMs.
    pub fn vm_dirs(&self) -> std::io::Result<Vec<PathBuf>> {
        std::fs::read_dir(self.root.join("vms"))?
            .map(|entry| Ok(entry?.path()))
            .collect()
    }

    /// One MicroVM.
    #[must_use]
    pub fn vm(&self, id: &MicrovmId) -> VmDir {
        VmDir(self.root.join("vms").join(id.as_str()))
    }
}

/// The folder of one build: its log, and once it has succeeded its golden snapshot.
#[derive(Debug, Clone)]
pub struct BuildDir(PathBuf);

impl BuildDir {
    /// The build whose folder this is.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What the build printed.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// How long its parts took.
    #[must_use]
    pub fn times(&self) -> PathBuf {
        self.0.join("times.json")
    }

    /// Scratch space that is gone when the build ends.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.0.join("scratch")
    }

    /// Memory of the golden snapshot.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.0.join("memory")
    }

    /// Device state of the golden snapshot.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.0.join("state")
    }

    /// Disk of the golden snapshot; never written once it is made.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.0.join("disk.qcow2")
    }

    /// Pages of the golden memory that a launch needs first; only where a validate hook told.
    #[must_use]
    pub fn working_set(&self) -> PathBuf {
        self.0.join("working-set")
    }

    /// In which boot of the host the snapshot was compared with its checksums.
    #[must_use]
    pub fn verified(&self) -> PathBuf {
        self.0.join("verified")
    }

    /// Everything of the golden snapshot, in an order to delete it in: without its manifest it is none.
    #[must_use]
    pub fn golden_files(&self) -> [PathBuf; 6] {
        [
            self.manifest(),
            self.memory(),
            self.state(),
            self.disk(),
            self.working_set(),
            self.verified(),
        ]
    }

    /// What a restore needs to know; written last, so that it exists only for a whole snapshot.
    #[must_use]
    pub fn manifest(&self) -> PathBuf {
        self.0.join("manifest.json")
    }
}

/// The folder of one MicroVM.
#[derive(Debug, Clone)]
pub struct VmDir(PathBuf);

impl VmDir {
    /// The MicroVM whose folder this is.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// The folder; also the machine's run folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The disk that the MicroVM writes to.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.0.join("disk.qcow2")
    }

    /// Snapshot of a suspended MicroVM. It appears whole, by a rename, and disappears the same way just
    /// before the MicroVM runs again: while it is there, nothing has run since it was made.
    #[must_use]
    pub fn suspended(&self) -> PathBuf {
        self.0.join("suspended")
    }

    /// The snapshot while it is being written.
    #[must_use]
    pub fn suspending(&self) -> PathBuf {
        self.0.join("suspending.tmp")
    }

    /// The snapshot once the MicroVM runs on from it.
    #[must_use]
    pub fn consumed(&self) -> PathBuf {
        self.0.join("consumed.tmp")
    }
}
