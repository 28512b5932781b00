//! What a machine's jail shows of the host: its disks, what they lie over, and what it starts from.

use super::create;
use crate::disk;
use crate::host::jail::{read_only, writable};
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
}

impl Enclosed {
    pub(super) fn to_restore(spec: &RestoreSpec) -> io::Result<Self> {
        let mut enclosed = Self::default();
        enclosed.lend(&spec.disk)?;
        enclosed.show(&spec.golden_memory)?;
        enclosed.show(Path::new(OVERCOMMIT))?;
        // Not by the header of `disk`, which the machine could have written.
        enclosed.show_disk(&spec.golden_disk)?;
        Ok(enclosed)
    }

    pub(super) fn to_boot(spec: &BootSpec) -> io::Result<Self> {
        let mut enclosed = Self::default();
        enclosed.show(&spec.kernel)?;
        enclosed.show(&spec.initramfs)?;
        if let Some(memory) = &spec.golden_memory {
            create(memory)?.set_len(u64::from(spec.memory_mib) << 20)?;
            enclosed.lend(memory)?;
        }
        enclosed.lend(&spec.disk)?;
        enclosed.show_backing_of(&spec.disk)?;
        // Where the disks will be that it is switched to.
        if let Some(folder) = spec.disk.parent() {
            make_passable(folder)?;
            enclosed.shown.push(writable(folder)?);
        }
        for disk in &spec.disks {
            if disk.writable {
                enclosed.lend(&disk.path)?;
                enclosed.show_backing_of(&disk.path)?;
            } else {
                enclosed.show_disk(&disk.path)?;
            }
        }
        Ok(enclosed)
    }

    fn lend(&mut self, file: &Path) -> io::Result<()> {
        self.shown.push(writable(file)?);
        self.lent.push(file.to_owned());
        Ok(())
    }

    fn show(&mut self, file: &Path) -> io::Result<()> {
        self.shown.push(read_only(file)?);
        Ok(())
    }

    fn show_disk(&mut self, disk: &Path) -> io::Result<()> {
        self.show(disk)?;
        self.show_backing_of(disk)
    }

    fn show_backing_of(&mut self, disk: &Path) -> io::Result<()> {
        let mut top = disk.to_owned();
        for _ in 0..limits::DISK_CHAIN_MAX {
            let Some(backing) = disk::backing_of(&top)? else {
                return Ok(());
            };
            self.show(&backing)?;
            top = backing;
        }
        let problem = format!(
            "more than {} disks lie over each other",
            limits::DISK_CHAIN_MAX
        );
        Err(io::Error::new(io::ErrorKind::InvalidData, problem))
    }
}

/// Lets others go through a folder to files whose names they know, without telling them any.
fn make_passable(folder: &Path) -> io::Result<()> {
    let mode = fs::metadata(folder)?.permissions().mode();
    if mode & 0o001 == 0 {
        fs::set_permissions(folder, fs::Permissions::from_mode(mode | 0o111))?;
    }
    Ok(())
}
