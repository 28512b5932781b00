//! From the layers of an image to a root file system on a disk.
//!
//! ```text
//! layer tars ──archive──▶ entries ──layers──▶ Tree (names and metadata, in memory) ──write──▶ folder ──ext4──▶ disk
//! ```
//! Layers come from strangers. They are read twice: first all of them into a [`Tree`], in which a path is looked
//! up as data and `..` stops at the root; then again for the content of those files that are still in the tree.
//! The folder is new, holds only what we made, and gets its symbolic links last, so nothing that is written to it
//! can follow one. Nothing is ever mounted.
//!
//! Device nodes, pipes and sockets are left out: the guest's kernel brings its own /dev. Of the extended attributes
//! `user.*` and `security.capability` are kept.

mod archive;
mod compression;
mod ext4;
mod layers;
mod members;
mod name;
mod pax;
mod tree;
mod write;

pub(crate) use ext4::make_ext4;
pub(crate) use layers::{LayerSource, flatten};
pub(crate) use members::{Member, Members, members, unpack_file};
pub(crate) use write::write;

use crate::digest::Digest;
use dormouse_core::limits;
use std::io;
use std::path::PathBuf;

/// What a root file system may be at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Size of the disk that it goes to, in bytes.
    pub(crate) disk_bytes: u64,
    /// Names that all paths in the layers together may lead through.
    pub(crate) lookups: u64,
    /// Bytes that names, link targets and extended attributes may take in memory.
    pub(crate) names_bytes: usize,
}

impl Bounds {
    /// For a disk of this size.
    pub(crate) fn of_disk(disk_bytes: u64) -> Self {
        Self {
            disk_bytes,
            lookups: limits::ROOTFS_LOOKUPS_MAX,
            names_bytes: limits::ROOTFS_NAMES_BYTES_MAX,
        }
    }
}

/// Why layers do not make a root file system.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// An entry's path leads out of the root file system.
    #[error("entry `{entry}` leads out of the root file system")]
    Escape {
        /// The entry.
        entry: String,
    },
    /// An entry cannot be carried out.
    #[error("entry `{entry}`: {problem}")]
    Entry {
        /// The entry.
        entry: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// There is more of something than there may be.
    #[error("the root file system has more than {limit} {what}")]
    TooLarge {
        /// The limit.
        limit: u64,
        /// Of what.
        what: &'static str,
    },
    /// A layer is no tar, or a damaged one.
    #[error("layer {layer}: {problem}")]
    Archive {
        /// The layer, from 1.
        layer: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A layer cannot be read: cut off, or its compression is damaged.
    #[error("layer {layer} cannot be read")]
    Read {
        /// The layer, from 1.
        layer: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A layer's content is not what the image's configuration says.
    #[error("layer {layer} unpacks to {found}, but the image's configuration says {expected}")]
    DiffId {
        /// The layer, from 1.
        layer: usize,
        /// What the configuration says.
        expected: Digest,
        /// What the layer's content has.
        found: Digest,
    },
    /// The image's configuration and manifest speak of different numbers of layers.
    #[error("the image has {layers} layers, but its configuration speaks of {configured}")]
    LayerCount {
        /// Of the manifest.
        layers: usize,
        /// Of the configuration.
        configured: usize,
    },
    /// `mke2fs` could not make the disk.
    #[error("mke2fs failed ({status}): {message}")]
    MakeFileSystem {
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The end of what it said.
        message: String,
    },
    /// The host failed.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

#[cfg(test)]
mod tests;
