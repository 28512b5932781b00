//! What the daemon tells `dormouse-jail`, the program that builds a wall around a VMM and starts it behind it.
//!
//! A guest that breaks out of its virtual machine finds itself in its VMM's process. What that process can see and do is
//! all that such a guest has won, so it is next to nothing: see `main.rs` for the walls, in the order in which they go
//! up.

pub mod tree;

use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::PathBuf;

/// A program, and what it is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// User and group id that the program runs as; nobody else's on this host.
    pub uid: u32,
    /// Control groups to join, by their folders.
    pub cgroups: Vec<PathBuf>,
    /// A folder with all files that the program is made of, see [`tree`].
    pub tree: PathBuf,
    /// An empty folder to put the new root on. The mount is seen by the jail alone.
    pub mount_point: PathBuf,
    /// Files and folders of the host that the program sees, at the paths that they have there.
    pub shown: Vec<Shown>,
    /// Bytes of the largest file that it may write; a write beyond them fails.
    pub file_bytes_max: u64,
    /// Whether it may use `/dev/kvm`.
    pub kvm: bool,
    /// Descriptors besides the standard streams that it inherits.
    pub descriptors: Vec<i32>,
    /// The program, a path within `tree`.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// A file or folder that a jailed program sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// Where it is, outside and inside.
    pub path: PathBuf,
    /// Whether it is mounted for writing. Whose files are in it decides what may be written all the same.
    pub writable: bool,
}
