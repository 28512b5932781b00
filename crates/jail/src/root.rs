//! The files that a jailed program sees: what it is made of, what it was shown, and nothing else.

use crate::JailError;
use dormouse_jail::{Shown, Spec};
use rustix::fs::{FileType, Mode, OFlags, chown, mknodat, open};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change,
    mount_remount, unmount,
};
use rustix::process::{Gid, Uid, pivot_root};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

/// Room for the mount points in the new root, which is all that it holds itself.
const ROOT_OPTIONS: &std::ffi::CStr = c"size=1m,nr_inodes=4k,mode=755";
const KVM: &str = "/dev/kvm";

/// Opens a folder to look up names in.
pub(crate) fn open_folder(path: &str) -> rustix::io::Result<OwnedFd> {
    open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Makes a root from what the spec names and moves this process there.
pub(crate) fn enter(spec: &Spec) -> Result<(), JailError> {
    let root = Root(&spec.mount_point);
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(JailError::io("part from the host's mounts"))?;
    let bare = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", root.0, "tmpfs", bare, ROOT_OPTIONS)
        .map_err(JailError::io("mount the new root"))?;
    root.plant(&spec.tree)?;
    for shown in &spec.shown {
        root.show(shown)?;
    }
    if spec.kvm {
        root.add_kvm(spec.uid)?;
    }
    mount_remount(root.0, bare | MountFlags::RDONLY, ROOT_OPTIONS)
        .map_err(JailError::io("make the new root read-only"))?;
    let moved = || -> io::Result<()> {
        std::env::set_current_dir(root.0)?;
        // The old root comes to lie on the new one, from where it is taken away.
        pivot_root(".", ".")?;
        unmount(".", UnmountFlags::DETACH)?;
        std::env::set_current_dir("/")
    };
    moved().map_err(JailError::io("move to the new root"))
}

/// The new root while it is being made.
struct Root<'a>(&'a Path);

impl Root<'_> {
    fn inside(&self, path: &Path) -> PathBuf {
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Shows the tree's folders and repeats its links, as in `/lib` to `usr/lib`.
    fn plant(&self, tree: &Path) -> Result<(), JailError> {
        let plant = |entry: &fs::DirEntry| -> io::Result<()> {
            let target = self.0.join(entry.file_name());
            if entry.file_type()?.is_symlink() {
                return symlink(fs::read_link(entry.path())?, target);
            }
            fs::create_dir(&target)?;
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::RDONLY;
            bind(&entry.path(), &target, flags)
        };
        let entries = fs::read_dir(tree).map_err(JailError::io("read the program's files"))?;
        for entry in entries {
            let entry = entry.map_err(JailError::io("read the program's files"))?;
            plant(&entry).map_err(JailError::io(format!("show {}", entry.path().display())))?;
        }
        Ok(())
    }

    fn show(&self, shown: &Shown) -> Result<(), JailError> {
        let show = || -> io::Result<()> {
            let target = self.inside(&shown.path);
            let is_dir = fs::metadata(&shown.path)?.is_dir();
            let folder = if is_dir {
                Some(target.as_path())
            } else {
                target.parent()
            };
            if let Some(folder) = folder {
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o755)
                    .create(folder)?;
            }
            if !is_dir {
                // It may lie in a folder that is shown: then it is the host's, and must stay as it is.
                fs::File::options()
                    .create(true)
                    .append(true)
                    .open(&target)?;
            }
            let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            if !shown.writable {
                flags |= MountFlags::RDONLY;
            }
            bind(&shown.path, &target, flags)
        };
        show().map_err(JailError::io(format!("show {}", shown.path.display())))
    }

    /// Makes `/dev` with the one device in it.
    fn add_kvm(&self, uid: u32) -> Result<(), JailError> {
        let add = || -> io::Result<()> {
            let host = fs::metadata(KVM)?;
            let folder = self.inside(Path::new("/dev"));
            fs::create_dir(&folder)?;
            let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
            let options = c"size=4k,nr_inodes=4,mode=755";
            mount("tmpfs", &folder, "tmpfs", flags, options)?;
            let device = self.inside(Path::new(KVM));
            let mode = Mode::RUSR | Mode::WUSR;
            mknodat(
                rustix::fs::CWD,
                &device,
                FileType::CharacterDevice,
                mode,
                host.rdev(),
            )?;
            chown(&device, Some(Uid::from_raw(uid)), Some(Gid::from_raw(uid)))?;
            Ok(mount_remount(&folder, flags | MountFlags::RDONLY, options)?)
        };
        add().map_err(JailError::io(format!("show {KVM}")))
    }
}

/// A bind mount takes its flags only when it is mounted once more.
fn bind(source: &Path, target: &Path, flags: MountFlags) -> io::Result<()> {
    mount_bind(source, target)?;
    Ok(mount_remount(target, MountFlags::BIND | flags, c"")?)
}
