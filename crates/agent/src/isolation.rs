//! What one command sees that others do not: mounts over the root file system, and a network without links.
//!
//! A thread of its own makes the namespaces, where errors can still be told in words; the command's
//! process enters them between fork and exec, which takes no more than two system calls. They are gone
//! when the last process in them is.

use crate::network;
use crate::process::{Plan, Rights, StartError};
use crate::trees::{self, TreeError};
use dormouse_core::guest::{ExecSpec, Mount, Mounted};
use rustix::fs::{AtFlags, CWD, Gid, Uid, chownat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change,
    mount_remount, unmount,
};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Why a command cannot have what it is to see.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IsolationError {
    /// A tree cannot be used.
    #[error("mount at {target}")]
    Tree {
        /// Where it was to be.
        target: String,
        /// Why not.
        #[source]
        source: TreeError,
    },
    /// A mount's target makes no sense.
    #[error("{0:?} is no path for a mount")]
    Target(String),
    /// A file's content is damaged.
    #[error("a file's content is not hex")]
    Content,
    /// The kernel refused.
    #[error("mount at {target}: {action}")]
    Mount {
        /// Where.
        target: String,
        /// What was being done.
        action: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The namespaces cannot be made.
    #[error("{action}")]
    Host {
        /// What was being done.
        action: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The process cannot be prepared.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Namespaces for one command.
#[derive(Debug)]
pub(crate) struct Isolation {
    mounts: OwnedFd,
    network: Option<OwnedFd>,
}

impl Isolation {
    /// Enters the namespaces. It makes system calls only, so that it may run between fork and exec.
    pub(crate) fn enter(&self) -> io::Result<()> {
        for namespace in self.network.iter().chain([&self.mounts]) {
            // SAFETY: setns takes a descriptor, which is open, and touches no memory.
            if unsafe { libc::setns(namespace.as_raw_fd(), 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

/// What a command leaves behind that must go before its step's disk is cut off.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    /// Paths that were made for mounts, outermost first.
    stubs: Vec<PathBuf>,
    /// Files in memory.
    scratch: Option<PathBuf>,
    uses_cache: bool,
}

impl Leftovers {
    /// Removes what is still as it was made. This blocks.
    pub(crate) fn clear(&self) -> io::Result<()> {
        for stub in self.stubs.iter().rev() {
            // What a command has filled is its own work; a file that was made is empty until then.
            match fs::symlink_metadata(stub) {
                Ok(found) if found.is_dir() => drop(fs::remove_dir(stub)),
                Ok(found) if found.is_file() && found.len() == 0 => fs::remove_file(stub)?,
                _ => {}
            }
        }
        if let Some(scratch) = &self.scratch {
            fs::remove_dir_all(scratch)?;
        }
        if self.uses_cache {
            trees::sync_cache()?;
        }
        Ok(())
    }
}

/// Prepares a command with what it is to see. `name` is nobody else's. This blocks.
pub(crate) fn prepare(spec: ExecSpec, name: &str) -> Result<(Plan, Leftovers), IsolationError> {
    if spec.mounts.is_empty() && !spec.offline && !trees::in_use() {
        return Ok((
            Plan::new(spec.process, Rights::Command)?,
            Leftovers::default(),
        ));
    }
    let mut leftovers = Leftovers::default();
    for mount in &spec.mounts {
        let target = checked_target(&mount.target)?;
        leftovers.stubs.extend(missing(target));
        leftovers.uses_cache |= matches!(mount.what, Mounted::Cache { .. });
        // Disks are mounted for all commands, so not in the namespace of this one.
        let opened = match &mount.what {
            Mounted::Tree { tree, .. } => trees::open(tree).map(drop),
            Mounted::Cache { .. } => trees::open_cache().map(drop),
            Mounted::Tmpfs { .. } | Mounted::File { .. } => Ok(()),
        };
        opened.map_err(|source| IsolationError::Tree {
            target: mount.target.clone(),
            source,
        })?;
    }
    if spec
        .mounts
        .iter()
        .any(|mount| matches!(mount.what, Mounted::File { .. }))
    {
        let scratch = trees::make_scratch(name);
        let scratch = scratch.map_err(|source| IsolationError::Tree {
            target: String::new(),
            source,
        })?;
        leftovers.scratch = Some(scratch);
    }
    let scratch = leftovers.scratch.clone();
    // A thread that has left its namespaces is of no other use.
    let made = std::thread::spawn(move || isolate(spec, scratch.as_deref()));
    let made = made.join().unwrap_or_else(|_| {
        Err(IsolationError::Host {
            action: "make namespaces",
            source: io::Error::other("the thread ended"),
        })
    });
    match made {
        Ok(plan) => Ok((plan, leftovers)),
        Err(error) => {
            // The error is the one to report.
            let _ = leftovers.clear();
            Err(error)
        }
    }
}

fn isolate(spec: ExecSpec, scratch: Option<&Path>) -> Result<Plan, IsolationError> {
    let host = |action| move |source| IsolationError::Host { action, source };
    let network = if spec.offline {
        unshare(libc::CLONE_NEWNET).map_err(host("make a network namespace"))?;
        network::bring_up_loopback().map_err(host("bring up loopback"))?;
        Some(namespace("net").map_err(host("open the network namespace"))?)
    } else {
        None
    };
    unshare(libc::CLONE_NEWNS).map_err(host("make a mount namespace"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(|error| host("make mounts private")(error.into()))?;
    for (number, mount) in spec.mounts.iter().enumerate() {
        attach(mount, number, scratch)?;
    }
    if trees::in_use() {
        unmount(trees::AREA, UnmountFlags::DETACH)
            .map_err(|error| host("hide the trees")(error.into()))?;
    }
    let mounts = namespace("mnt").map_err(host("open the mount namespace"))?;
    let isolation = Isolation { mounts, network };
    let plan = Plan::new(spec.process, Rights::Command)?;
    Ok(plan.isolated(isolation))
}

fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: unshare takes flags only; it changes what this thread sees, which does nothing else.
    match unsafe { libc::unshare(flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// This thread's namespace of a kind.
fn namespace(kind: &str) -> io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/thread-self/ns/{kind}"))?.into())
}

/// Puts one mount into place in this thread's namespace.
fn attach(spec: &Mount, number: usize, scratch: Option<&Path>) -> Result<(), IsolationError> {
    let target = checked_target(&spec.target)?;
    let failed = |action| {
        move |source: io::Error| IsolationError::Mount {
            target: spec.target.clone(),
            action,
            source,
        }
    };
    let in_tree = |source| IsolationError::Tree {
        target: spec.target.clone(),
        source,
    };
    let (source, writable) = match &spec.what {
        Mounted::Tmpfs { bytes } => {
            make_folder(target).map_err(failed("make the folder"))?;
            let size = bytes.map_or_else(String::new, |bytes| format!(",size={bytes}"));
            let options = std::ffi::CString::new(format!("mode=1777{size}"));
            let options = options.map_err(|error| failed("set its size")(error.into()))?;
            let flags = MountFlags::NODEV | MountFlags::NOSUID;
            return mount("tmpfs", target, "tmpfs", flags, options.as_c_str())
                .map_err(|error| failed("mount memory")(error.into()));
        }
        Mounted::Tree {
            tree,
            path,
            writable,
        } => {
            let root = trees::open(tree).map_err(in_tree)?;
            (trees::resolve(&root, path).map_err(in_tree)?, *writable)
        }
        Mounted::Cache {
            name,
            writable,
            mode,
            uid,
            gid,
        } => {
            let plain = name.bytes().all(|b| b.is_ascii_alphanumeric());
            if name.is_empty() || !plain {
                return Err(in_tree(TreeError::Name(name.clone())));
            }
            let folder = trees::open_cache().map_err(in_tree)?.join(name);
            if !folder.is_dir() {
                let made = fs::create_dir(&folder);
                made.and_then(|()| dress(&folder, *mode, *uid, *gid))
                    .map_err(failed("make a cache"))?;
            }
            (folder, *writable)
        }
        Mounted::File {
            content_hex,
            mode,
            uid,
            gid,
        } => {
            let content = hex::decode(content_hex).map_err(|_| IsolationError::Content)?;
            let scratch = scratch.ok_or_else(|| IsolationError::Target(spec.target.clone()))?;
            let file = scratch.join(number.to_string());
            let made = fs::write(&file, content);
            made.and_then(|()| dress(&file, *mode, *uid, *gid))
                .map_err(failed("make a file"))?;
            (file, false)
        }
    };
    let made = if source.is_dir() {
        make_folder(target)
    } else {
        make_file(target)
    };
    made.map_err(failed("make its place"))?;
    mount_bind(&source, target).map_err(|error| failed("bind")(error.into()))?;
    if !writable {
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NODEV;
        mount_remount(target, flags, c"")
            .map_err(|error| failed("make it read-only")(error.into()))?;
    }
    Ok(())
}

fn dress(path: &Path, mode: u32, uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    fs::set_permissions(path, Permissions::from_mode(mode))
}

fn make_folder(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)
}

fn make_file(path: &Path) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    File::create_new(path).map(drop)
}

fn checked_target(target: &str) -> Result<&Path, IsolationError> {
    let path = Path::new(target);
    let climbs = path
        .components()
        .any(|part| part == std::path::Component::ParentDir);
    if !path.is_absolute() || climbs || path.parent().is_none() {
        return Err(IsolationError::Target(target.to_owned()));
    }
    Ok(path)
}

/// The parts of a path that are missing, outermost first.
fn missing(path: &Path) -> Vec<PathBuf> {
    let missing = path
        .ancestors()
        .take_while(|path| fs::symlink_metadata(path).is_err());
    let mut missing: Vec<_> = missing.map(Path::to_owned).collect();
    missing.reverse();
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_for_mounts_goes_and_what_was_filled_stays() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let [kept, gone] = ["kept/a", "gone/b/c"].map(|path| dir.path().join(path));
        let mut leftovers = Leftovers::default();
        for path in [&kept, &gone] {
            leftovers.stubs.extend(missing(path));
        }
        make_file(&kept).expect("made");
        make_folder(&gone).expect("made");
        fs::write(&kept, "filled").expect("write");
        leftovers.clear().expect("clears");
        assert!(kept.exists());
        assert!(!dir.path().join("gone").exists());
    }

    #[test]
    fn targets_are_absolute_and_not_the_root() {
        for bad in ["", "/", "x", "/a/../b"] {
            assert!(checked_target(bad).is_err(), "{bad}");
        }
        assert!(checked_target("/a/b").is_ok());
    }
}
