//! The kernel's random generator: two clones of a snapshot must never draw the same numbers.

use rustix::fs::{Mode, OFlags, open};
use rustix::ioctl::{NoArg, Opcode, Setter, ioctl, opcode};
use rustix::rand::{GetRandomFlags, getrandom};
use std::ffi::c_int;
use std::io;

/// Shortest and longest seed that a host may give, in bytes.
pub(crate) const SEED_BYTES: std::ops::RangeInclusive<usize> = 32..=512;

const ADD_ENTROPY: Opcode = opcode::write::<[c_int; 2]>(b'R', 3);
const RESEED: Opcode = opcode::none(b'R', 7);
const PORTION_BYTES: usize = 64;

/// `struct rand_pool_info` with room for one portion of the seed.
#[repr(C)]
struct Portion {
    entropy_bits: c_int,
    bytes: c_int,
    buffer: [u8; PORTION_BYTES],
}

/// Mixes a seed into the generator and makes every reader draw from it at once.
pub(crate) fn reseed(seed: &[u8]) -> io::Result<()> {
    let device = open(
        c"/dev/urandom",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    for piece in seed.chunks(PORTION_BYTES) {
        let mut buffer = [0; PORTION_BYTES];
        buffer[..piece.len()].copy_from_slice(piece);
        let bytes = c_int::try_from(piece.len()).expect("a portion is short");
        let portion = Portion {
            entropy_bits: bytes * 8,
            bytes,
            buffer,
        };
        // SAFETY: RNDADDENTROPY reads a `rand_pool_info`, which `Portion` is laid out as; `bytes` is at
        // most the length of its buffer.
        unsafe { ioctl(&device, Setter::<ADD_ENTROPY, Portion>::new(portion))? };
    }
    // SAFETY: RNDRESEEDCRNG takes no argument.
    unsafe { ioctl(&device, NoArg::<RESEED>::new())? };
    Ok(())
}

/// Random bytes for a name that everybody may know.
pub(crate) fn public_id() -> io::Result<[u8; 16]> {
    let mut id = [0; 16];
    // The kernel gives as many bytes as this in one go.
    getrandom(&mut id, GetRandomFlags::empty())?;
    Ok(id)
}
