//! Files beside the root file system, for the steps of a build: disks of other stages and images, parts of
//! the build context in memory, and the disk of cache mounts.
//!
//! They lie below a file system in memory of their own, which no layer holds and which no command sees:
//! [`crate::isolation`] takes it away. A source disk is mounted read-only, and nothing on it is ever
//! executed with other rights or opened as a device.

use crate::copy;
use dormouse_core::guest::{CACHE_SERIAL, DISK_TREE};
use rustix::fs::{CWD, Mode, OFlags, openat, syncfs};
use rustix::mount::{MountFlags, mount};
use std::fs::{self, DirBuilder};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

/// Where all of it lies. `/dev` is no part of an image.
pub(crate) const AREA: &str = "/dev/.dormouse";
/// Share of the VM's memory that may hold trees.
const AREA_OPTIONS: &std::ffi::CStr = c"mode=0700,size=75%";
/// Links followed for one path before it counts as a loop, as in Linux.
const LINKS_MAX: u32 = 40;
const NAME_BYTES_MAX: usize = 64;

/// Why a tree cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TreeError {
    /// No tree can have this name.
    #[error("{0:?} is no tree's name")]
    Name(String),
    /// There is no such tree.
    #[error("there is no tree {0:?}")]
    Unknown(String),
    /// A path leads to nothing in the tree.
    #[error("{0:?}: not found")]
    NotFound(String),
    /// A disk cannot be mounted, or memory cannot hold a tree.
    #[error("{action}")]
    Host {
        /// What was being done.
        action: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The tree's files cannot be written.
    #[error(transparent)]
    Copy(#[from] copy::CopyError),
}

impl TreeError {
    fn host<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host {
            action,
            source: source.into(),
        }
    }
}

/// Makes a tree of a tar. This blocks.
pub(crate) fn put(name: &str, tar: impl Read) -> Result<(), TreeError> {
    let tree = place(name)?;
    delete(name)?;
    make_folder(&tree)?;
    Ok(copy::unpack_tree(&tree, tar)?)
}

/// Forgets a tree. None of that name is fine. This blocks.
pub(crate) fn delete(name: &str) -> Result<(), TreeError> {
    match fs::remove_dir_all(place(name)?) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(TreeError::host("delete a tree")(error))
        }
        _ => Ok(()),
    }
}

/// The root of a tree; one that is a disk is mounted now. This blocks.
pub(crate) fn open(name: &str) -> Result<PathBuf, TreeError> {
    let path = place(name)?;
    if let Some(serial) = name.strip_prefix(DISK_TREE) {
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        mount_disk(serial, &path, flags | MountFlags::NOATIME)?;
    }
    if path.is_dir() {
        Ok(path)
    } else {
        Err(TreeError::Unknown(name.to_owned()))
    }
}

/// The root of the cache disk, mounted now. This blocks.
pub(crate) fn open_cache() -> Result<PathBuf, TreeError> {
    let path = Path::new(AREA).join(CACHE_SERIAL);
    let flags = MountFlags::NODEV | MountFlags::NOATIME;
    mount_disk(CACHE_SERIAL, &path, flags)?;
    Ok(path)
}

/// A folder for the files that one command sees. This blocks.
pub(crate) fn make_scratch(name: &str) -> Result<PathBuf, TreeError> {
    let path = area()?.join(format!("files-{name}"));
    make_folder(&path)?;
    Ok(path)
}

/// Puts what caches hold on their disk. This blocks.
pub(crate) fn sync_cache() -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let cache = Path::new(AREA).join(CACHE_SERIAL);
    match openat(CWD, &cache, flags, Mode::empty()) {
        Ok(cache) => Ok(syncfs(&cache)?),
        Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether there is anything that commands must not see.
pub(crate) fn in_use() -> bool {
    Path::new(AREA).is_dir()
}

/// Follows a path inside a tree to where it leads, never out of it.
pub(crate) fn resolve(root: &Path, path: &str) -> Result<PathBuf, TreeError> {
    let not_found = || TreeError::NotFound(path.to_owned());
    let mut todo: Vec<std::ffi::OsString> = parts(Path::new(path));
    let mut real = PathBuf::new();
    let mut links = 0;
    while let Some(part) = todo.pop() {
        if part == ".." {
            real.pop();
            continue;
        }
        real.push(part);
        let full = root.join(&real);
        let found = fs::symlink_metadata(&full).map_err(|_| not_found())?;
        if found.is_symlink() {
            links += 1;
            let target = fs::read_link(&full).map_err(|_| not_found())?;
            if links > LINKS_MAX {
                return Err(not_found());
            }
            real.pop();
            if target.is_absolute() {
                real.clear();
            }
            todo.extend(parts(&target));
        } else if !found.is_dir() && !todo.is_empty() {
            return Err(not_found());
        }
    }
    Ok(root.join(real))
}

/// A path's parts, the last first.
fn parts(path: &Path) -> Vec<std::ffi::OsString> {
    let parts = path.components().rev().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    parts.collect()
}

fn place(name: &str) -> Result<PathBuf, TreeError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(plain) {
        return Err(TreeError::Name(name.chars().take(NAME_BYTES_MAX).collect()));
    }
    Ok(area()?.join(format!("tree-{name}")))
}

/// The folder of all trees, made at first need.
fn area() -> Result<&'static Path, TreeError> {
    static MADE: std::sync::Mutex<bool> = std::sync::Mutex::new(false);
    let mut made = MADE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if !*made {
        make_folder(Path::new(AREA))?;
        let flags = MountFlags::NODEV | MountFlags::NOSUID;
        mount("tmpfs", AREA, "tmpfs", flags, AREA_OPTIONS)
            .map_err(TreeError::host("mount the folder of trees"))?;
        *made = true;
    }
    Ok(Path::new(AREA))
}

fn make_folder(path: &Path) -> Result<(), TreeError> {
    const MODE: u32 = 0o700;
    let made = DirBuilder::new().recursive(true).mode(MODE).create(path);
    made.map_err(TreeError::host("make a folder for a tree"))
}

/// Mounts the disk of this serial number, unless it is mounted.
fn mount_disk(serial: &str, path: &Path, flags: MountFlags) -> Result<(), TreeError> {
    static MOUNTING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    area()?;
    let _one_at_a_time = MOUNTING
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if path.is_dir() {
        return Ok(());
    }
    let disk = disk_of_serial(serial).ok_or_else(|| TreeError::Unknown(serial.to_owned()))?;
    make_folder(path)?;
    let mounted = mount(&disk, path, "ext4", flags, c"noinit_itable");
    if mounted.is_err() {
        // The folder stands for a mounted disk.
        let _ = fs::remove_dir(path);
    }
    mounted.map_err(TreeError::host("mount a disk"))
}

/// The device of a virtio disk with this serial number; the root disk has an empty one.
pub(crate) fn disk_of_serial(serial: &str) -> Option<PathBuf> {
    let disks = fs::read_dir("/sys/block").ok()?.flatten();
    let mut disks = disks.filter(|disk| disk.file_name().as_encoded_bytes().starts_with(b"vd"));
    disks.find_map(|disk| {
        let found = fs::read_to_string(disk.path().join("serial")).ok()?;
        (found.trim() == serial).then(|| Path::new("/dev").join(disk.file_name()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_path_never_leads_out_of_its_tree() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let root = dir.path();
        fs::create_dir_all(root.join("a/b")).expect("folders");
        fs::write(root.join("a/file"), "x").expect("write");
        symlink("/a/file", root.join("absolute")).expect("link");
        symlink("../../../../a", root.join("a/up")).expect("link");
        symlink("loop", root.join("loop")).expect("link");
        for (path, expected) in [
            ("/", Some("")),
            ("/a/./b/../file", Some("a/file")),
            ("../../../a/file", Some("a/file")),
            ("/absolute", Some("a/file")),
            ("/a/up/b", Some("a/b")),
            ("/loop", None),
            ("/a/file/x", None),
            ("/etc/passwd", None),
        ] {
            let found = resolve(root, path).ok();
            assert_eq!(found, expected.map(|inside| root.join(inside)), "{path}");
        }
    }

    #[test]
    fn names_of_trees_are_plain() {
        for bad in ["", "..", "a/b", "A", "a b", &"x".repeat(NAME_BYTES_MAX + 1)] {
            assert!(matches!(place(bad), Err(TreeError::Name(_))), "{bad}");
        }
    }
}
