//! A root file system in memory: names and metadata, no content.
//!
//! Layers are laid over each other here. A path is looked up in the tree and nowhere else: a symbolic link is a name
//! to go on from, an absolute one starts at the root, and `..` of the root is the root.

use super::archive::Entry;
use super::name::{refused, shown};
use super::{Bounds, RootfsError};
use dormouse_core::limits;
use std::collections::BTreeMap;

/// Index of a file, folder or link.
pub(super) type Inode = usize;

pub(super) const ROOT: Inode = 0;

#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    /// The layer that is being laid on.
    layer: usize,
    /// Bytes that names and the like may still take.
    names_bytes_left: usize,
    /// Steps of paths that may still be gone.
    lookups_left: u64,
}

/// What is under one or more names.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) meta: Meta,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Meta {
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug)]
pub(super) enum Kind {
    Dir(Folder),
    File(Content),
    Symlink(Vec<u8>),
}

#[derive(Debug, Default)]
pub(super) struct Folder {
    pub(super) children: BTreeMap<Vec<u8>, Child>,
    /// The layer that last hid what lower ones have here: once is enough.
    cleared_by: Option<usize>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Child {
    pub(super) inode: Inode,
    /// The last layer that has something at this name or below it.
    layer: usize,
}

/// Where a file's content is: layer and entry, from 0, and its size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) layer: usize,
    pub(super) entry: usize,
    pub(super) size: u64,
}

/// How a look-up treats folders that are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Leave,
}

impl Tree {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            nodes: vec![implied_dir()],
            layer: 0,
            names_bytes_left: bounds.names_bytes,
            lookups_left: bounds.lookups,
        }
    }

    /// What comes next is of this layer.
    pub(super) fn begin_layer(&mut self, layer: usize) {
        self.layer = layer;
    }

    pub(super) fn node(&self, inode: Inode) -> &Node {
        &self.nodes[inode]
    }

    /// Puts something at a path, over what was there; a folder over a folder keeps what is in it.
    pub(super) fn put(
        &mut self,
        entry: &Entry,
        names: &[&[u8]],
        meta: Meta,
        kind: Kind,
    ) -> Result<(), RootfsError> {
        self.count(xattrs_bytes(&meta))?;
        let is_dir = matches!(kind, Kind::Dir(_));
        let Some((last, parents)) = names.split_last() else {
            return match is_dir {
                true => {
                    self.nodes[ROOT].meta = meta;
                    Ok(())
                }
                false => Err(refused(&entry.path, "the root must be a folder")),
            };
        };
        let parent = self.parent(entry, parents, Missing::Make)?;
        let parent = parent.ok_or_else(|| refused(&entry.path, "its folder is missing"))?;
        if is_dir
            && let Some(child) = self.child(parent, last)
            && matches!(self.nodes[child.inode].kind, Kind::Dir(_))
        {
            self.nodes[child.inode].meta = meta;
            return self.link(entry, parent, last, child.inode);
        }
        let inode = self.add(entry, Node { meta, kind })?;
        self.link(entry, parent, last, inode)
    }

    /// Gives a file another name.
    pub(super) fn put_hard_link(
        &mut self,
        entry: &Entry,
        names: &[&[u8]],
        target: &[&[u8]],
    ) -> Result<(), RootfsError> {
        let missing = || refused(&entry.path, "a hard link to a file that is not there");
        let (target, target_parents) = target.split_last().ok_or_else(missing)?;
        let found = self.parent(entry, target_parents, Missing::Leave)?;
        let found = found.and_then(|parent| self.child(parent, target));
        let inode = found.ok_or_else(missing)?.inode;
        if matches!(self.nodes[inode].kind, Kind::Dir(_)) {
            return Err(refused(&entry.path, "a hard link to a folder"));
        }
        let (last, parents) = names.split_last().ok_or_else(missing)?;
        let parent = self.parent(entry, parents, Missing::Make)?;
        self.link(entry, parent.ok_or_else(missing)?, last, inode)
    }

    /// Takes away what lower layers have at a path; what this layer has there stays.
    pub(super) fn hide(
        &mut self,
        entry: &Entry,
        parents: &[&[u8]],
        name: &[u8],
    ) -> Result<(), RootfsError> {
        let Some(parent) = self.parent(entry, parents, Missing::Leave)? else {
            return Ok(());
        };
        let Some(child) = self.child(parent, name) else {
            return Ok(());
        };
        if child.layer == self.layer {
            self.clear(child.inode);
        } else if let Kind::Dir(folder) = &mut self.nodes[parent].kind {
            folder.children.remove(name);
        }
        Ok(())
    }

    /// Takes away what lower layers have in a folder.
    pub(super) fn hide_content(
        &mut self,
        entry: &Entry,
        folder: &[&[u8]],
    ) -> Result<(), RootfsError> {
        if let Some(inode) = self.parent(entry, folder, Missing::Leave)? {
            self.clear(inode);
        }
        Ok(())
    }

    /// Counts what may be on the disk, and refuses what does not fit it.
    pub(super) fn check(&self, bounds: Bounds) -> Result<(), RootfsError> {
        let (mut files, mut bytes) = (0_u64, 0_u64);
        let mut seen = vec![false; self.nodes.len()];
        let mut waiting = vec![ROOT];
        while let Some(inode) = waiting.pop() {
            if std::mem::replace(&mut seen[inode], true) {
                continue;
            }
            files += 1;
            match &self.nodes[inode].kind {
                Kind::Dir(folder) => waiting.extend(folder.children.values().map(|c| c.inode)),
                Kind::File(content) => bytes = bytes.saturating_add(content.size),
                Kind::Symlink(_) => {}
            }
        }
        // As many as mke2fs makes room for.
        const BYTES_PER_INODE: u64 = 16 << 10;
        let files_max = bounds.disk_bytes / BYTES_PER_INODE;
        if bytes > bounds.disk_bytes {
            return Err(too_large(bounds.disk_bytes, "bytes"));
        }
        if files > files_max {
            return Err(too_large(files_max, "files"));
        }
        Ok(())
    }

    fn child(&self, parent: Inode, name: &[u8]) -> Option<Child> {
        match &self.nodes[parent].kind {
            Kind::Dir(folder) => folder.children.get(name).copied(),
            _ => None,
        }
    }

    fn add(&mut self, entry: &Entry, node: Node) -> Result<Inode, RootfsError> {
        let link = match &node.kind {
            Kind::Symlink(target) => target.len(),
            _ => 0,
        };
        self.count(link)?;
        if self.nodes.len() > limits::ROOTFS_ENTRIES_MAX {
            tracing::debug!(entry = shown(&entry.path), "too many files");
            return Err(too_large(limits::ROOTFS_ENTRIES_MAX as u64, "files"));
        }
        self.nodes.push(node);
        Ok(self.nodes.len() - 1)
    }

    fn link(
        &mut self,
        entry: &Entry,
        parent: Inode,
        name: &[u8],
        inode: Inode,
    ) -> Result<(), RootfsError> {
        let layer = self.layer;
        let Kind::Dir(folder) = &mut self.nodes[parent].kind else {
            return Err(refused(&entry.path, "its folder is none"));
        };
        let replaced = folder
            .children
            .insert(name.to_vec(), Child { inode, layer });
        match replaced {
            Some(_) => Ok(()),
            None => self.count(name.len()),
        }
    }

    fn count(&mut self, bytes: usize) -> Result<(), RootfsError> {
        const WHAT: &str = "bytes of names, links and extended attributes";
        let left = self.names_bytes_left.checked_sub(bytes);
        let limit = limits::ROOTFS_NAMES_BYTES_MAX as u64;
        self.names_bytes_left = left.ok_or_else(|| too_large(limit, WHAT))?;
        Ok(())
    }

    /// Removes what is not of this layer below a folder.
    fn clear(&mut self, inode: Inode) {
        let layer = self.layer;
        let mut waiting = vec![inode];
        while let Some(inode) = waiting.pop() {
            let Kind::Dir(folder) = &mut self.nodes[inode].kind else {
                continue;
            };
            if folder.cleared_by.replace(layer) != Some(layer) {
                folder.children.retain(|_, child| child.layer == layer);
                waiting.extend(folder.children.values().map(|child| child.inode));
            }
        }
    }

    /// The folder that these names lead to. Symbolic links on the way are followed within the tree.
    fn parent(
        &mut self,
        entry: &Entry,
        names: &[&[u8]],
        missing: Missing,
    ) -> Result<Option<Inode>, RootfsError> {
        let mut links = 0;
        let mut stack = vec![ROOT];
        let mut ahead: Vec<Vec<u8>> = names.iter().rev().map(|name| name.to_vec()).collect();
        while let Some(name) = ahead.pop() {
            self.lookups_left = self
                .lookups_left
                .checked_sub(1)
                .ok_or_else(|| too_large(limits::ROOTFS_LOOKUPS_MAX, "steps of paths"))?;
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    stack.truncate(stack.len().saturating_sub(1).max(1));
                    continue;
                }
                _ => {}
            }
            let here = *stack.last().unwrap_or(&ROOT);
            let inode = match self.child(here, &name) {
                Some(child) => child.inode,
                None if missing == Missing::Leave => return Ok(None),
                None => self.add(entry, implied_dir())?,
            };
            match &self.nodes[inode].kind {
                Kind::Dir(_) => stack.push(inode),
                Kind::Symlink(target) => {
                    links += 1;
                    if links > limits::ROOTFS_LINKS_MAX {
                        return Err(refused(&entry.path, "too many symbolic links on its way"));
                    }
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    ahead.extend(target.split(|b| *b == b'/').rev().map(<[u8]>::to_vec));
                }
                Kind::File(_) if missing == Missing::Leave => return Ok(None),
                Kind::File(_) => {
                    return Err(refused(&entry.path, "a file is where its folder should be"));
                }
            }
            // Whatever this layer puts below a folder keeps the folder from being hidden by the same layer.
            if missing == Missing::Make {
                self.link(entry, here, &name, inode)?;
            }
            if stack.len() > limits::ROOTFS_DEPTH_MAX {
                return Err(refused(&entry.path, "it lies too deep"));
            }
        }
        Ok(stack.pop())
    }
}

/// What extended attributes take in memory: of each also two vectors, and what the allocator adds to both.
fn xattrs_bytes(meta: &Meta) -> usize {
    const EACH: usize = 2 * (size_of::<Vec<u8>>() + 32);
    let bytes = |(name, value): &(Vec<u8>, Vec<u8>)| EACH + name.len() + value.len();
    meta.xattrs.iter().map(bytes).sum()
}

fn implied_dir() -> Node {
    Node {
        meta: Meta {
            mode: 0o755,
            ..Meta::default()
        },
        kind: Kind::Dir(Folder::default()),
    }
}

fn too_large(limit: u64, what: &'static str) -> RootfsError {
    RootfsError::TooLarge { limit, what }
}
