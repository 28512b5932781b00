//! Lays the entries of layers over each other.

use super::archive::{Archive, ArchiveError, Entry, EntryKind};
use super::compression::Unpacked;
use super::name::{self, Asks, WHITEOUT, refused};
use super::tree::{Content, Folder, Kind, Meta, Tree};
use super::{Bounds, RootfsError};
use crate::digest::{Digest, Hasher};
use dormouse_core::limits;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;

/// The bytes of one layer: a part of a file, packed or not.
#[derive(Debug, Clone)]
pub(crate) struct LayerSource {
    pub(crate) path: PathBuf,
    /// Where it begins in the file.
    pub(crate) start: u64,
    /// Its length in bytes.
    pub(crate) len: u64,
}

impl LayerSource {
    pub(super) fn open(&self, unpacked_max: u64) -> Result<Unpacked, RootfsError> {
        let open = || {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(self.start))?;
            Unpacked::new(file, self.len, unpacked_max)
        };
        open().map_err(|source| RootfsError::Io {
            action: "read the layer",
            path: self.path.clone(),
            source,
        })
    }
}

/// Reads all layers, the lowest first. With `diff_ids` each must unpack to what its digest says.
pub(crate) fn flatten(
    layers: &[LayerSource],
    diff_ids: Option<&[Digest]>,
    bounds: Bounds,
) -> Result<Tree, RootfsError> {
    if let Some(ids) = diff_ids
        && ids.len() != layers.len()
    {
        let (layers, configured) = (layers.len(), ids.len());
        return Err(RootfsError::LayerCount { layers, configured });
    }
    let mut tree = Tree::new(bounds);
    let mut entries_left = limits::ROOTFS_ENTRIES_MAX;
    let mut bytes_left = unpacked_bytes_max(bounds);
    for (number, layer) in layers.iter().enumerate() {
        tree.begin_layer(number);
        let hashed = Hashed {
            inner: layer.open(bytes_left)?,
            hasher: Hasher::default(),
        };
        let mut archive = Archive::new(hashed, entries_left);
        let failed = |error| layer_error(number, bounds, error);
        let mut index = 0;
        while let Some(entry) = archive.next().map_err(failed)? {
            lay(&mut tree, number, index, &entry)?;
            index += 1;
        }
        entries_left = archive.entries_left();
        let hashed = archive.finish().map_err(failed)?;
        bytes_left = hashed.inner.left();
        let found = hashed.hasher.finish();
        if let Some(&expected) = diff_ids.and_then(|ids| ids.get(number))
            && expected != found
        {
            let layer = number + 1;
            return Err(RootfsError::DiffId {
                layer,
                expected,
                found,
            });
        }
    }
    tree.check(bounds)?;
    Ok(tree)
}

/// What all layers together may unpack to, in bytes: upper ones replace files of lower ones.
pub(super) fn unpacked_bytes_max(bounds: Bounds) -> u64 {
    bounds
        .disk_bytes
        .saturating_mul(limits::ROOTFS_UNPACKED_FACTOR)
}

pub(super) fn layer_error(number: usize, bounds: Bounds, error: ArchiveError) -> RootfsError {
    let layer = number + 1;
    match error {
        ArchiveError::Damaged(problem) => RootfsError::Archive { layer, problem },
        ArchiveError::TooMany => RootfsError::TooLarge {
            limit: limits::ROOTFS_ENTRIES_MAX as u64,
            what: "entries in its layers",
        },
        ArchiveError::Read(source) if source.kind() == io::ErrorKind::FileTooLarge => {
            RootfsError::TooLarge {
                limit: unpacked_bytes_max(bounds),
                what: "bytes in its layers",
            }
        }
        ArchiveError::Read(source) | ArchiveError::Write(source) => {
            RootfsError::Read { layer, source }
        }
    }
}

/// Carries out one entry: entry `index` of layer `layer`, both from 0.
fn lay(tree: &mut Tree, layer: usize, index: usize, entry: &Entry) -> Result<(), RootfsError> {
    let mut names = name::names(&entry.path)?;
    if let Some((last, parents)) = names.split_last() {
        if parents.iter().any(|name| name.starts_with(WHITEOUT)) {
            return Err(refused(&entry.path, "a file in a whiteout"));
        }
        match name::asks(&entry.path, last)? {
            Asks::Entry(_) => {}
            Asks::Whiteout(hidden) => return tree.hide(entry, parents, hidden),
            Asks::Opaque => return tree.hide_content(entry, parents),
            Asks::Nothing => return Ok(()),
        }
    }
    check_xattr_names(entry)?;
    let meta = Meta {
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        xattrs: entry.xattrs.clone(),
    };
    match &entry.kind {
        EntryKind::Special => Ok(()),
        EntryKind::Dir => tree.put(entry, &names, meta, Kind::Dir(Folder::default())),
        EntryKind::File { size, .. } => {
            let content = Content {
                layer,
                entry: index,
                size: *size,
            };
            tree.put(entry, &names, meta, Kind::File(content))
        }
        EntryKind::Symlink(target) => {
            if target.is_empty()
                || target.contains(&0)
                || target.len() > limits::ROOTFS_PATH_BYTES_MAX
            {
                return Err(refused(&entry.path, "a symbolic link to no path"));
            }
            tree.put(entry, &names, meta, Kind::Symlink(target.clone()))
        }
        EntryKind::HardLink(target) => {
            let target = name::names(target)?;
            names.retain(|name| !name.is_empty());
            tree.put_hard_link(entry, &names, &target)
        }
    }
}

fn check_xattr_names(entry: &Entry) -> Result<(), RootfsError> {
    let name_bad = |name: &[u8]| name.len() > 255 || name.contains(&0) || name == b"user.";
    if entry.xattrs.iter().any(|(name, _)| name_bad(name)) {
        return Err(refused(&entry.path, "an extended attribute's name is none"));
    }
    Ok(())
}

/// Takes the digest of what is read through it.
struct Hashed<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}
