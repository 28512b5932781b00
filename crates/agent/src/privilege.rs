//! What a VM is for an app with all capabilities: a privileged container, whose kernel settings and control
//! groups are its own to change.
//!
//! It stays inside its control group all the same, or it would escape the freeze: it gets a namespace in which
//! that group is the root of all, and the kernel does not look for the programs of its settings (`core_pattern`) in the
//! image ([`crate::boot`]).

use crate::boot::PROTECTED;
use crate::cgroup::Cgroup;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::ffi::CStr;
use std::io;

/// Where processes look for their control groups.
const CGROUPS: &CStr = c"/sys/fs/cgroup";
/// Controllers that the app may use in groups of its own.
const CONTROLLERS: &str = "+cpu +io +memory +pids";

/// Takes back what the boot has made read-only. Done already is fine. This blocks.
pub(crate) fn open_up(guest: &Cgroup) -> io::Result<()> {
    // The kernel mounts no file system over itself, so the read-only view of the control groups goes first.
    for path in PROTECTED.into_iter().chain([CGROUPS]) {
        match unmount(path, UnmountFlags::DETACH) {
            // It was not protected, or is not there.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_remount("/sys", plain, c"")?;
    guest.delegate(CONTROLLERS)
}

/// Makes the group of the calling process the root that it sees, writable. Called between fork and exec: it
/// makes system calls only.
pub(crate) fn own_cgroup() -> io::Result<()> {
    leave_cgroups()?;
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(c"cgroup2", CGROUPS, c"cgroup2", plain, None)?;
    Ok(())
}

/// Makes the group of the calling process the root of all that it may mount; what is mounted stays as the app
/// sees it. Called between fork and exec: it makes system calls only.
pub(crate) fn leave_cgroups() -> io::Result<()> {
    // SAFETY: only descriptor tables are dangerous to take apart, and this leaves them alone.
    unsafe { unshare_unsafe(UnshareFlags::NEWCGROUP)? };
    Ok(())
}
