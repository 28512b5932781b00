//! Holding the root file system still while the host swaps the disk under it.

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, open, syncfs};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};
use std::ffi::c_int;
use std::io;

const FREEZE: Opcode = opcode::read_write::<c_int>(b'X', 119);
const THAW: Opcode = opcode::read_write::<c_int>(b'X', 120);

/// Writes everything to the disk and makes further writes wait. Frozen already is fine. This blocks.
pub(crate) fn freeze() -> io::Result<()> {
    let root = open_root()?;
    syncfs(&root)?;
    // SAFETY: FIFREEZE takes an int, which it ignores.
    match unsafe { ioctl(&root, Setter::<FREEZE, c_int>::new(0)) } {
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Lets writes go on. Not frozen is fine.
pub(crate) fn thaw() -> io::Result<()> {
    // SAFETY: FITHAW takes an int, which it ignores.
    match unsafe { ioctl(&open_root()?, Setter::<THAW, c_int>::new(0)) } {
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Writes everything to the disk. This blocks.
pub(crate) fn sync() -> io::Result<()> {
    Ok(syncfs(&open_root()?)?)
}

fn open_root() -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(open(c"/", flags, Mode::empty())?)
}
