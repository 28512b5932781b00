//! What the things in the data directory take on the host's disk.

use crate::disk;
use crate::layout::{BuildDir, Layout, VmDir};
use std::io;
use std::path::{Path, PathBuf};

/// Folders below one thing; what lies deeper is not ours.
const DEPTH_MAX: usize = 32;

/// Things of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kind {
    /// How many there are.
    pub count: usize,
    /// Bytes that they take: holes and what they share with others left out.
    pub bytes: u64,
}

/// What images and MicroVMs take. The build cache has its own account: `layers::LayerCache::usage`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Golden snapshots with their logs.
    pub golden_snapshots: Kind,
    /// Builds that have no snapshot: under way, or failed with a log left.
    pub other_builds: Kind,
    /// MicroVMs that run or change their state: what their disks have of their own.
    pub awake: Kind,
    /// MicroVMs that sleep: memory and disk of their own.
    pub suspended: Kind,
}

impl Usage {
    /// Measures. Blocks.
    ///
    /// # Errors
    /// A folder cannot be read. What goes away meanwhile is no error.
    pub fn measure(layout: &Layout) -> io::Result<Self> {
        let mut usage = Self::default();
        for path in folders(&layout.builds())? {
            let whole = BuildDir::at(path.clone()).manifest().try_exists()?;
            let kind = match whole {
                true => &mut usage.golden_snapshots,
                false => &mut usage.other_builds,
            };
            kind.add(allocated(&path)?);
        }
        for path in folders(&layout.vms())? {
            let asleep = VmDir::at(path.clone()).suspended().try_exists()?;
            let kind = match asleep {
                true => &mut usage.suspended,
                false => &mut usage.awake,
            };
            kind.add(allocated(&path)?);
        }
        Ok(usage)
    }
}

impl Kind {
    fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}

/// Bytes that a folder with all below it takes. Blocks.
///
/// # Errors
/// A folder cannot be read. What goes away meanwhile is no error.
pub fn allocated(folder: &Path) -> io::Result<u64> {
    below(folder, 0)
}

fn below(folder: &Path, depth: usize) -> io::Result<u64> {
    let mut bytes = 0;
    for path in children(folder)? {
        let metadata = match path.symlink_metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        bytes += disk::allocated(&metadata);
        if metadata.is_dir() && depth < DEPTH_MAX {
            bytes += below(&path, depth + 1)?;
        }
    }
    Ok(bytes)
}

/// The folders right below one, if there is any.
pub(crate) fn folders(parent: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = children(parent)?;
    paths.retain(|path| path.is_dir());
    Ok(paths)
}

/// What is right in a folder, if there is any.
pub(crate) fn children(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_core::{BuildId, MicrovmId};
    use uuid::Uuid;

    #[test]
    fn things_are_told_apart_and_holes_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        layout.create().unwrap();
        let build = || {
            let build = layout.build(&BuildId::new(Uuid::new_v4()));
            std::fs::create_dir_all(build.scratch()).unwrap();
            std::fs::write(build.log(), vec![1; 8192]).unwrap();
            build
        };
        let (golden, _failed) = (build(), build());
        std::fs::write(golden.manifest(), "{}").unwrap();
        let memory = std::fs::File::create(golden.memory()).unwrap();
        memory.set_len(1 << 40).unwrap();
        let (awake, asleep) = (Uuid::new_v4(), Uuid::new_v4());
        for id in [awake, asleep] {
            let vm = layout.vm(&MicrovmId::new(id));
            std::fs::create_dir_all(vm.path()).unwrap();
            std::fs::write(vm.disk(), vec![1; 16384]).unwrap();
        }
        let asleep = layout.vm(&MicrovmId::new(asleep)).suspended();
        std::fs::create_dir(&asleep).unwrap();
        std::fs::write(asleep.join("memory"), vec![1; 32768]).unwrap();

        let usage = Usage::measure(&layout).unwrap();
        let counts = [
            usage.golden_snapshots.count,
            usage.other_builds.count,
            usage.awake.count,
            usage.suspended.count,
        ];
        assert_eq!(counts, [1; 4]);
        assert!(
            (8192..1 << 20).contains(&usage.golden_snapshots.bytes),
            "{usage:?}"
        );
        assert!(
            usage.suspended.bytes >= usage.awake.bytes + 32768,
            "{usage:?}"
        );
    }
}
