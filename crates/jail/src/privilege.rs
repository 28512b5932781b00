//! Giving up all rights.

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::{Errno, write};
use rustix::process::{DumpableBehavior, Gid, Uid, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    unshare_unsafe,
};
use std::io;
use std::os::fd::OwnedFd;

/// Becomes the user `uid`, without any capability and without a way to win one.
pub(crate) fn drop(uid: u32, proc: &OwnedFd) -> io::Result<()> {
    drop_bounding_set()?;
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)?;
    if enter_user_namespace(uid, proc)? {
        // There it has all capabilities once more, if only over that namespace.
        drop_bounding_set()?;
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none)?;
    set_no_new_privs(true)?;
    Ok(())
}

/// Goes where no other user exists, not even root; false where the host forbids that to users: the walls besides it
/// stand alone then.
fn enter_user_namespace(uid: u32, proc: &OwnedFd) -> io::Result<bool> {
    // SAFETY: this process has one thread, see `main.rs`.
    match unsafe { unshare_unsafe(UnshareFlags::NEWUSER) } {
        Ok(()) => {}
        Err(Errno::PERM | Errno::NOSPC | Errno::INVAL | Errno::USERS) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    // Its files in /proc are root's since it changed its user. That ends with the program's start.
    set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    let itself = format!("{uid} {uid} 1");
    for (file, content) in [
        ("self/setgroups", "deny"),
        ("self/uid_map", itself.as_str()),
        ("self/gid_map", itself.as_str()),
    ] {
        let file = openat(proc, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        write(&file, content.as_bytes())?;
    }
    Ok(true)
}

/// Takes away what running a program could win.
fn drop_bounding_set() -> io::Result<()> {
    for capability in CapabilitySet::all().iter() {
        match remove_capability_from_bounding_set(capability) {
            // This kernel has no such capability.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
