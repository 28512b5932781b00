//! Writes a tree to an empty folder, with owners, modes, times and extended attributes. Needs root.
//!
//! Every name is written relative to the open folder that it is in, and symbolic links come last: there is none
//! that a write could follow.

use super::archive::{Archive, EntryKind};
use super::layers::{LayerSource, layer_error, unpacked_bytes_max};
use super::name::shown;
use super::tree::{Content, Inode, Kind, Meta, ROOT, Tree};
use super::{Bounds, RootfsError};
use dormouse_core::limits;
use rustix::fs::{self, AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Where a name is: the folder's index and the name in it.
type Place<'a> = (Inode, &'a [u8]);

/// What is written after the folders, by what it is.
#[derive(Default)]
struct Found<'a> {
    /// Each folder's place, the root excepted.
    dirs: HashMap<Inode, Place<'a>>,
    /// By where its content is: the file and its first name.
    files: HashMap<(usize, usize), (Inode, Place<'a>)>,
    symlinks: Vec<(Inode, Place<'a>)>,
    /// Further names: the first one and the other.
    links: Vec<(Place<'a>, Place<'a>)>,
}

/// Writes `tree` to `dest`; the content comes from the `layers` that it was made of.
pub(crate) fn write(
    tree: &Tree,
    layers: &[LayerSource],
    bounds: Bounds,
    dest: &Path,
) -> Result<(), RootfsError> {
    let root = fs::open(dest, DIR_FLAGS, Mode::empty()).map_err(failed("open", dest))?;
    let mut found = Found::default();
    let mut first_names = HashMap::new();
    make_dirs(tree, ROOT, root.as_fd(), &mut found, &mut first_names)?;
    let mut folders = Folders {
        root,
        places: std::mem::take(&mut found.dirs),
        last: None,
    };
    for (number, layer) in layers.iter().enumerate() {
        write_files(tree, number, layer, bounds, &found, &mut folders)?;
    }
    for (inode, (dir, name)) in &found.symlinks {
        let (Kind::Symlink(target), meta) = (&tree.node(*inode).kind, &tree.node(*inode).meta)
        else {
            continue;
        };
        let dir = folders.open(*dir)?;
        make_symlink(target, meta, dir, name).map_err(failed("write", name_path(name)))?;
    }
    for ((from_dir, from), (dir, name)) in &found.links {
        let from_dir = folders.open(*from_dir)?.try_clone_to_owned();
        let from_dir = from_dir.map_err(io_failed("open a folder for", name))?;
        let dir = folders.open(*dir)?;
        fs::linkat(from_dir, *from, dir, *name, AtFlags::empty())
            .map_err(failed("link", name_path(name)))?;
    }
    // Last, since what is made in a folder changes its time.
    finish_dirs(tree, ROOT, folders.root.as_fd())
}

const DIR_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Makes all folders below one, for root alone until all is done, and notes what belongs into them.
fn make_dirs<'a>(
    tree: &'a Tree,
    inode: Inode,
    dir: BorrowedFd<'_>,
    found: &mut Found<'a>,
    first_names: &mut HashMap<Inode, Place<'a>>,
) -> Result<(), RootfsError> {
    let Kind::Dir(folder) = &tree.node(inode).kind else {
        return Ok(());
    };
    for (name, child) in &folder.children {
        let place = (inode, name.as_slice());
        match &tree.node(child.inode).kind {
            Kind::Dir(_) => {
                let made = fs::mkdirat(dir, name.as_slice(), Mode::RWXU)
                    .and_then(|()| fs::openat(dir, name.as_slice(), DIR_FLAGS, Mode::empty()));
                let made = made.map_err(failed("make the folder", name_path(name)))?;
                found.dirs.insert(child.inode, place);
                make_dirs(tree, child.inode, made.as_fd(), found, first_names)?;
            }
            kind => match first_names.get(&child.inode) {
                Some(first) => found.links.push((*first, place)),
                None => {
                    first_names.insert(child.inode, place);
                    match kind {
                        Kind::File(Content { layer, entry, .. }) => {
                            found.files.insert((*layer, *entry), (child.inode, place));
                        }
                        _ => found.symlinks.push((child.inode, place)),
                    }
                }
            },
        }
    }
    Ok(())
}

/// Reads a layer again for the content of the files that are still there.
fn write_files(
    tree: &Tree,
    number: usize,
    layer: &LayerSource,
    bounds: Bounds,
    found: &Found<'_>,
    folders: &mut Folders<'_>,
) -> Result<(), RootfsError> {
    let mut left = found
        .files
        .keys()
        .filter(|(layer, _)| *layer == number)
        .count();
    let layer = layer.open(unpacked_bytes_max(bounds))?;
    let mut archive = Archive::new(layer, limits::ROOTFS_ENTRIES_MAX);
    let mut index = 0;
    while left > 0 {
        let entry = archive
            .next()
            .map_err(|error| layer_error(number, bounds, error))?;
        let Some(entry) = entry else {
            // Only if somebody changes the layer while we read it.
            let problem = "it is not what it was a moment ago";
            return Err(RootfsError::Archive {
                layer: number + 1,
                problem,
            });
        };
        if let EntryKind::File { size, segments } = &entry.kind
            && let Some((inode, (dir, name))) = found.files.get(&(number, index))
        {
            let flags =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = fs::openat(folders.open(*dir)?, *name, flags, Mode::RUSR | Mode::WUSR);
            let file = File::from(file.map_err(failed("write", name_path(name)))?);
            archive
                .copy_data(*size, segments, &file)
                .map_err(|error| layer_error(number, bounds, error))?;
            dress(file.as_fd(), &tree.node(*inode).meta)
                .map_err(failed("set up", name_path(name)))?;
            left -= 1;
        }
        index += 1;
    }
    Ok(())
}

/// Owner first: giving a file away clears its set-user-ID bit and its capabilities.
fn dress(file: BorrowedFd<'_>, meta: &Meta) -> rustix::io::Result<()> {
    fs::fchown(
        file,
        Some(Uid::from_raw(meta.uid)),
        Some(Gid::from_raw(meta.gid)),
    )?;
    fs::fchmod(file, Mode::from_raw_mode(meta.mode.into()))?;
    for (name, value) in &meta.xattrs {
        fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty())?;
    }
    fs::futimens(file, &times(meta))
}

fn make_symlink(
    target: &[u8],
    meta: &Meta,
    dir: BorrowedFd<'_>,
    name: &[u8],
) -> rustix::io::Result<()> {
    fs::symlinkat(target, dir, name)?;
    let owner = (Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)));
    fs::chownat(dir, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
    fs::utimensat(dir, name, &times(meta), AtFlags::SYMLINK_NOFOLLOW)
}

fn finish_dirs(tree: &Tree, inode: Inode, dir: BorrowedFd<'_>) -> Result<(), RootfsError> {
    let node = tree.node(inode);
    let Kind::Dir(folder) = &node.kind else {
        return Ok(());
    };
    for (name, child) in &folder.children {
        if matches!(tree.node(child.inode).kind, Kind::Dir(_)) {
            let open = fs::openat(dir, name.as_slice(), DIR_FLAGS, Mode::empty());
            let open = open.map_err(failed("open the folder", name_path(name)))?;
            finish_dirs(tree, child.inode, open.as_fd())?;
        }
    }
    let mut meta = node.meta.clone();
    if inode == ROOT {
        // Nobody but root could do anything in a root folder that is closed to others.
        meta.mode |= 0o755;
    }
    dress(dir, &meta).map_err(failed("set up", name_path(b"/")))
}

/// The kernel takes times of its own range only; any other is no time at all.
fn times(meta: &Meta) -> Timestamps {
    const LAST: i64 = 1 << 34;
    let (seconds, nanos) = meta.mtime;
    let time = Timespec {
        tv_sec: seconds.clamp(0, LAST - 1),
        tv_nsec: nanos.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Opens folders by their place; the last one is kept, since a tar lists a folder's files together.
struct Folders<'a> {
    root: OwnedFd,
    places: HashMap<Inode, Place<'a>>,
    last: Option<(Inode, OwnedFd)>,
}

impl Folders<'_> {
    fn open(&mut self, inode: Inode) -> Result<BorrowedFd<'_>, RootfsError> {
        if inode == ROOT {
            return Ok(self.root.as_fd());
        }
        if self.last.as_ref().is_none_or(|(last, _)| *last != inode) {
            let mut names = Vec::new();
            let mut at = inode;
            while let Some((parent, name)) = self.places.get(&at) {
                names.push(*name);
                at = *parent;
            }
            let mut fd = None::<OwnedFd>;
            for name in names.into_iter().rev() {
                let parent = fd.as_ref().map_or_else(|| self.root.as_fd(), AsFd::as_fd);
                let next = fs::openat(parent, name, DIR_FLAGS, Mode::empty());
                fd = Some(next.map_err(failed("open the folder", name_path(name)))?);
            }
            self.last = fd.map(|fd| (inode, fd));
        }
        Ok(self
            .last
            .as_ref()
            .map_or_else(|| self.root.as_fd(), |(_, fd)| fd.as_fd()))
    }
}

fn name_path(name: &[u8]) -> PathBuf {
    shown(name).into()
}

fn failed(
    action: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(rustix::io::Errno) -> RootfsError {
    let path = path.into();
    move |error| RootfsError::Io {
        action,
        path,
        source: error.into(),
    }
}

fn io_failed(action: &'static str, name: &[u8]) -> impl FnOnce(io::Error) -> RootfsError {
    let path = name_path(name);
    move |source| RootfsError::Io {
        action,
        path,
        source,
    }
}
