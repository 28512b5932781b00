//! The root file system: filling its disk, and holding it still while the host swaps the disk under it.

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, open, syncfs};
use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};
use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::path::Path;

const FREEZE: Opcode = opcode::read_write::<c_int>(b'X', 119);
/// The kernel's `BLKGETSIZE64`, whose size is that of a pointer.
const BLOCK_DEVICE_BYTES: Opcode = opcode::read::<usize>(0x12, 114);
/// The kernel's `EXT4_IOC_RESIZE_FS`.
const RESIZE: Opcode = opcode::write::<u64>(b'f', 16);
const THAW: Opcode = opcode::read_write::<c_int>(b'X', 120);

/// Makes the root file system as large as its disk: an image may ask for a larger one than it was built on.
/// Large enough already is fine. This blocks.
pub(crate) fn grow(device: &Path) -> io::Result<()> {
    let device = File::open(device)?;
    // SAFETY: BLKGETSIZE64 writes a 64-bit number of bytes.
    let bytes = unsafe { ioctl(&device, Getter::<BLOCK_DEVICE_BYTES, u64>::new()) }?;
    let root = open_root()?;
    let blocks = bytes / rustix::fs::fstatfs(&root)?.f_bsize.cast_unsigned();
    // SAFETY: EXT4_IOC_RESIZE_FS reads a 64-bit number of blocks.
    Ok(unsafe { ioctl(&root, Setter::<RESIZE, u64>::new(blocks)) }?)
}

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
