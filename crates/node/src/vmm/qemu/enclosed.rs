//! What a machine's jail shows of the host: its disks, what they lie over, and what it starts from.

use super::create;
use crate::disk;
use crate::host::jail::{read_only, readable_already, writable};
use crate::vmm::{BootSpec, RestoreSpec};
use dormouse_core::limits;
use dormouse_jail::Shown;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// QEMU maps memory without a reservation only where it can read that here.
const OVERCOMMIT: &str = "/proc/sys/vm/overcommit_memory";

/// Files that a machine sees.
#[derive(Debug, Default)]
pub(super) struct Enclosed {
    pub(super) shown: Vec<Shown>,
    /// Those among them that it writes to.
    pub(super) lent: Vec<PathBuf>,
    /// Bytes of the largest file that it may write.
    pub(super) file_bytes_max: u64,
}

impl Enclosed {
    /// `foundations` are the folders of the disks that others may lie over.
    pub(super) fn to_restore(spec: &RestoreSpec, foundations: &[PathBuf]) -> io::Result<Self> {
        let mut enclosed = Self::default();
        // Not by the header of `disk`, which the machine could have written: neither its size nor what lies below.
        enclosed.lend(&spec.disk, disk::virtual_size(&spec.golden_disk)?)?;
        enclosed.show(&spec.golden_memory)?;
        enclosed.show(Path::new(OVERCOMMIT))?;
        enclosed.show_disk(&spec.golden_disk, foundations)?;
        Ok(enclosed)
    }

    /// `foundations` are as for [`Self::to_restore`].
    pub(super) fn to_boot(spec: &BootSpec, foundations: &[PathBuf]) -> io::Result<Self> {
        let mut enclosed = Self::default();
        enclosed.show(&spec.kernel)?;
        enclosed.show(&spec.initramfs)?;
        if let Some(memory) = &spec.golden_memory {
            let bytes = u64::from(spec.memory_mib) << 20;
            create(memory)?.set_len(bytes)?;
            enclosed.lend(memory, bytes)?;
        }
        enclosed.lend(&spec.disk, disk::virtual_size(&spec.disk)?)?;
        enclosed.show_backing_of(&spec.disk, foundations)?;
        // Where the disks will be that it is switched to.
        if let Some(folder) = spec.disk.parent() {
            make_passable(folder)?;
            enclosed.shown.push(writable(folder)?);
        }
        for disk in &spec.disks {
            if disk.writable {
                enclosed.lend(&disk.path, limits::DISK_BYTES_MAX)?;
                enclosed.show_backing_of(&disk.path, foundations)?;
            } else {
                enclosed.show_disk(&disk.path, foundations)?;
            }
        }
        Ok(enclosed)
    }

    /// Lends a file with `bytes` of memory or disk in it.
    fn lend(&mut self, file: &Path, bytes: u64) -> io::Result<()> {
        self.shown.push(writable(file)?);
        self.lent.push(file.to_owned());
        let most = 2 * bytes + limits::VMM_FILE_SPARE_BYTES;
        self.file_bytes_max = self.file_bytes_max.max(most);
        Ok(())
    }

    fn show(&mut self, file: &Path) -> io::Result<()> {
        self.shown.push(read_only(file)?);
        Ok(())
    }

    fn show_disk(&mut self, disk: &Path, foundations: &[PathBuf]) -> io::Result<()> {
        self.show(disk)?;
        self.show_backing_of(disk, foundations)
    }

    /// Shows what `disk` lies over, by the headers. A machine that was taken over has written any name there, so it counts
    /// only if it is that of a finished disk of ours.
    fn show_backing_of(&mut self, disk: &Path, foundations: &[PathBuf]) -> io::Result<()> {
        let mut top = disk.to_owned();
        for _ in 0..limits::DISK_CHAIN_MAX {
            let Some(backing) = disk::backing_of(&top)? else {
                return Ok(());
            };
            if !lies_in(&backing, foundations) {
                let problem = format!("{} lies over {}", top.display(), backing.display());
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
            }
            // While a machine still writes to a disk, it is its own alone.
            self.shown.push(readable_already(&backing)?);
            top = backing;
        }
        let problem = format!(
            "more than {} disks lie over each other",
            limits::DISK_CHAIN_MAX
        );
        Err(io::Error::new(io::ErrorKind::InvalidData, problem))
    }
}

/// Whether a path is right in one of the folders, by its name alone: one that leaves a folder again lies elsewhere.
fn lies_in(path: &Path, folders: &[PathBuf]) -> bool {
    let parent = path.parent();
    folders.iter().any(|folder| parent == Some(folder))
}

/// Lets others go through a folder to files whose names they know, without telling them any.
fn make_passable(folder: &Path) -> io::Result<()> {
    let mode = fs::metadata(folder)?.permissions().mode();
    if mode & 0o001 == 0 {
        fs::set_permissions(folder, fs::Permissions::from_mode(mode | 0o111))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;
    use std::fs::File;
    use std::os::unix::fs::symlink;

    /// A data directory with a base disk, a layer over it and a build's disk over that.
    struct Lab {
        _dir: tempfile::TempDir,
        layout: Layout,
        base: PathBuf,
        layer: PathBuf,
        top: PathBuf,
    }

    impl Lab {
        async fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let layout = Layout::new(dir.path());
            layout.create().unwrap();
            dormouse_image::LocalImages::open(&layout.images()).unwrap();
            let base = layout.images().join("disks/0a.raw");
            File::create(&base).unwrap().set_len(1 << 20).unwrap();
            chmod(&base, 0o600);
            let layer = layout.layers().join("a.qcow2");
            disk::create_overlay(&base, &layer).await.unwrap();
            let top = layout.builds().join("top.qcow2");
            disk::create_overlay(&layer, &top).await.unwrap();
            Self {
                _dir: dir,
                layout,
                base,
                layer,
                top,
            }
        }

        fn shown(&self) -> io::Result<Vec<PathBuf>> {
            let mut enclosed = Enclosed::default();
            enclosed.show_backing_of(&self.top, &self.layout.foundations())?;
            let shown = enclosed.shown.into_iter();
            Ok(shown.map(|shown| shown.path).collect())
        }

        /// Has the layer say that it lies over something else.
        fn forge(&self, name: &Path) {
            fs::write(&self.layer, disk::head_that_says(name)).unwrap();
        }
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn finished_disks_below_a_disk_are_shown() {
        let lab = Lab::new().await;
        assert_eq!(lab.shown().unwrap(), [lab.layer.clone(), lab.base.clone()]);
        lab.forge(&lab.layout.caches().join("empty.raw"));
        lab.shown().unwrap_err();
        fs::write(lab.layout.caches().join("empty.raw"), "").unwrap();
        assert_eq!(lab.shown().unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_forged_name_shows_nothing_and_changes_no_permissions() {
        let lab = Lab::new().await;
        let key = lab.layout.vms().join("../sealing.key");
        let entry = lab.layout.layers().join("0-key.json");
        let lent = lab.layout.layers().join("b.qcow2");
        let cache = lab.layout.caches().join("000000000000");
        fs::create_dir(&cache).unwrap();
        let secrets = [key, entry, lent, cache.join("0.raw")];
        for path in &secrets {
            fs::write(path, "secret").unwrap();
            chmod(path, 0o600);
        }
        let link = lab.layout.layers().join("link.qcow2");
        symlink("../sealing.key", &link).unwrap();
        let open = lab.layout.boot().join("open.raw");
        fs::write(&open, "").unwrap();
        chmod(&open, 0o644);
        let names = [
            link,
            open,
            lab.layout.layers().join("../boot/open.raw"),
            lab.layout.layers().join(".."),
            PathBuf::from("../sealing.key"),
            PathBuf::from("json:{}"),
            PathBuf::from("/etc/passwd"),
        ];
        for name in secrets.iter().chain(&names) {
            lab.forge(name);
            assert!(lab.shown().is_err(), "{}", name.display());
        }
        for path in &secrets {
            assert_eq!(mode(path), 0o600, "{}", path.display());
        }
    }

    #[tokio::test]
    async fn a_restored_machine_writes_no_more_than_its_golden_disk_allows() {
        let lab = Lab::new().await;
        let own = lab.layout.vms().join("disk.qcow2");
        disk::create_larger_overlay(&lab.top, &own, limits::DISK_BYTES_MAX)
            .await
            .unwrap();
        let memory = lab.layout.builds().join("memory");
        fs::write(&memory, "").unwrap();
        let spec = RestoreSpec {
            run_dir: lab.layout.vms(),
            disk: own,
            memory_mib: 512,
            vcpus: 1,
            golden_memory: memory,
            golden_disk: lab.top.clone(),
            state: crate::vmm::StateSource::Golden(lab.layout.builds().join("state")),
            egress: dormouse_core::egress::Egress::NONE,
        };
        let enclosed = Enclosed::to_restore(&spec, &lab.layout.foundations()).unwrap();
        let most = (2 << 20) + limits::VMM_FILE_SPARE_BYTES;
        assert_eq!(enclosed.file_bytes_max, most);
    }

    #[tokio::test]
    async fn a_disk_that_lies_over_itself_is_refused() {
        let lab = Lab::new().await;
        lab.forge(&lab.layer);
        lab.shown().unwrap_err();
    }
}
