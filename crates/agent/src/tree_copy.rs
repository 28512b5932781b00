//! Copying from a tree into the root file system: Docker's `COPY --from`.
//!
//! What is copied keeps its owner, mode, times, extended attributes and hard links. As in Docker a file
//! replaces a file, and a folder that exists keeps what it is.

use crate::account::{AccountError, Accounts, Owner};
use crate::trees::{self, TreeError};
use dormouse_core::glob::{Dialect, Fuel, Glob, OutOfFuel};
use dormouse_core::guest::TreeCopySpec;
use dormouse_core::limits;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chownat, lgetxattr,
    llistxattr, lsetxattr, mknodat, utimensat,
};
use std::collections::HashMap;
use std::ffi::{CStr, OsString};
use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

const MODE_MASK: u32 = 0o7777;
const FOLDER_MODE: u32 = 0o755;
/// Largest list of names and largest value of an extended attribute, as in Linux.
const XATTR_BYTES_MAX: usize = 64 << 10;

/// Why a copy failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TreeCopyError {
    /// The tree cannot be used, or a source is not in it.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The destination is not an absolute path, or climbs.
    #[error("{0:?} is no destination")]
    Dest(String),
    /// A pattern is wrong.
    #[error("the pattern {pattern:?} {problem}")]
    Pattern {
        /// As given.
        pattern: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The patterns take too long to match.
    #[error("the patterns take too long to match")]
    TooCostly,
    /// There are too many files.
    #[error("more than {max} files are copied")]
    TooMany {
        /// The limit.
        max: usize,
    },
    /// Several files would become one.
    #[error("several files match, so the destination {0:?} must end in /")]
    NeedsFolder(String),
    /// A file cannot replace a folder.
    #[error("cannot replace the folder {0:?} with a file")]
    FolderInTheWay(PathBuf),
    /// The owner does not exist.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// A file cannot be read, or not be written.
    #[error("cannot {action} {path:?}")]
    File {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl From<OutOfFuel> for TreeCopyError {
    fn from(_: OutOfFuel) -> Self {
        Self::TooCostly
    }
}

impl TreeCopyError {
    fn file<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self::File {
            action,
            path: path.to_owned(),
            source: source.into(),
        }
    }

    /// Whether the disk is full.
    pub(crate) fn is_disk_full(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }
}

/// Copies as told. This blocks.
pub(crate) fn copy(tree: &str, spec: &TreeCopySpec) -> Result<(), TreeCopyError> {
    let root = trees::open(tree)?;
    let owner = match spec.owner.as_str() {
        "" => None,
        name => {
            let accounts = Accounts::load();
            let path = Path::new("/etc/passwd");
            Some(
                accounts
                    .map_err(TreeCopyError::file("read", path))?
                    .owner(name)?,
            )
        }
    };
    let mut copy = Copy::new(spec, owner)?;
    let climbs = spec.dest.split('/').any(|part| part == "..");
    if !spec.dest.starts_with('/') || climbs {
        return Err(TreeCopyError::Dest(spec.dest.clone()));
    }
    copy.all(&root, Path::new("/"), spec)
}

/// A source: where it is, and its path from the tree's root as it was named.
struct Found {
    path: PathBuf,
    name: String,
}

struct Copy {
    owner: Option<Owner>,
    mode: Option<u32>,
    excludes: Vec<(Glob, bool)>,
    fuel: Fuel,
    copied: usize,
    /// Where the first copy of a file with several links went, by its device and number.
    links: HashMap<(u64, u64), PathBuf>,
    /// Folders made, with what they are to be at the end: new entries change a folder's times.
    folders: Vec<(PathBuf, Metadata)>,
}

impl Copy {
    fn new(spec: &TreeCopySpec, owner: Option<Owner>) -> Result<Self, TreeCopyError> {
        let mut excludes = Vec::new();
        for pattern in &spec.excludes {
            let (bare, exception) = match pattern.strip_prefix('!') {
                Some(rest) => (rest, true),
                None => (pattern.as_str(), false),
            };
            let clean = bare.trim_start_matches("./").trim_matches('/');
            let glob = Glob::new(clean, Dialect::Ignore);
            let glob = glob.map_err(|problem| TreeCopyError::Pattern {
                pattern: pattern.clone(),
                problem,
            })?;
            excludes.push((glob, exception));
        }
        Ok(Self {
            owner,
            mode: spec.mode,
            excludes,
            fuel: Fuel::new(limits::GLOB_STEPS_MAX),
            copied: 0,
            links: HashMap::new(),
            folders: Vec::new(),
        })
    }

    /// Copies what the sources name in the tree at `from` into the file system at `to`.
    fn all(&mut self, from: &Path, to: &Path, spec: &TreeCopySpec) -> Result<(), TreeCopyError> {
        let mut found = Vec::new();
        for pattern in &spec.sources {
            self.find(from, pattern, spec.parents, &mut found)?;
        }
        let dest = to.join(spec.dest.trim_matches('/'));
        let into_folder = spec.dest.ends_with('/') || spec.parents || dest.is_dir();
        if found.len() > 1 && !into_folder {
            return Err(TreeCopyError::NeedsFolder(spec.dest.clone()));
        }
        for source in found {
            let metadata = read_metadata(&source.path)?;
            let last = source.name.rsplit('/').next().unwrap_or_default();
            let target = match (spec.parents, metadata.is_dir()) {
                (true, _) => dest.join(&source.name),
                (false, true) => dest.clone(),
                (false, false) if into_folder => dest.join(last),
                (false, false) => dest.clone(),
            };
            let name = match (spec.parents, metadata.is_dir()) {
                (true, _) => source.name.clone(),
                (false, true) => String::new(),
                (false, false) => last.to_owned(),
            };
            self.make_parents(&target)?;
            self.entry(&source.path, &target, &name)?;
        }
        for (path, metadata) in std::mem::take(&mut self.folders).iter().rev() {
            set_times(path, metadata)?;
        }
        Ok(())
    }

    /// Finds what a pattern names. Up to its first part with a wildcard links are followed, then no more.
    fn find(
        &mut self,
        root: &Path,
        pattern: &str,
        parents: bool,
        found: &mut Vec<Found>,
    ) -> Result<(), TreeCopyError> {
        let bad = |problem| TreeCopyError::Pattern {
            pattern: pattern.to_owned(),
            problem,
        };
        let mut names = vec![String::new()];
        let mut is_wild = false;
        for part in pattern.split('/').filter(|part| !matches!(*part, "" | ".")) {
            let glob = Glob::new(part, Dialect::Copy).map_err(bad)?;
            let mut next = Vec::new();
            if is_wild {
                let leads_on = |name: &String| {
                    let found = fs::symlink_metadata(root.join(name));
                    found.is_ok_and(|found| found.is_dir())
                };
                names.retain(leads_on);
            }
            is_wild |= glob.literal().is_none();
            for name in names {
                match glob.literal() {
                    Some(literal) if literal == ".." => {
                        let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
                        next.push(parent.to_owned());
                    }
                    Some(literal) => next.push(join(&name, &literal)),
                    None => self.matching(root, &name, &glob, &mut next)?,
                }
            }
            if next.len() > limits::ROOTFS_ENTRIES_MAX {
                let max = limits::ROOTFS_ENTRIES_MAX;
                return Err(TreeCopyError::TooMany { max });
            }
            names = next;
        }
        // `a/./b/c` keeps `b` with --parents, and drops `a`.
        let pivot = pattern.split_once("/./").filter(|_| parents);
        let pivot = pivot.map_or("", |(before, _)| before.trim_matches('/'));
        let before = found.len();
        for name in names {
            let path = trees::resolve(root, &name)?;
            let name = name
                .strip_prefix(pivot)
                .unwrap_or(&name)
                .trim_start_matches('/');
            found.push(Found {
                path,
                name: name.to_owned(),
            });
        }
        if found.len() == before {
            return Err(TreeError::NotFound(pattern.to_owned()).into());
        }
        Ok(())
    }

    /// The names in a folder that a part of a pattern matches, in order.
    fn matching(
        &self,
        root: &Path,
        folder: &str,
        glob: &Glob,
        matching: &mut Vec<String>,
    ) -> Result<(), TreeCopyError> {
        let path = trees::resolve(root, folder)?;
        if !path.is_dir() {
            return Ok(());
        }
        for entry in names(&path)? {
            // A name that is not UTF-8 matches no pattern.
            if let Some(name) = entry.to_str()
                && glob.matches(name, &self.fuel)?
            {
                matching.push(join(folder, name));
            }
        }
        Ok(())
    }

    /// Copies one thing and what is below it. `name` is its path as the excludes see it.
    fn entry(&mut self, from: &Path, to: &Path, name: &str) -> Result<(), TreeCopyError> {
        let mut todo = vec![(from.to_owned(), to.to_owned(), name.to_owned())];
        while let Some((from, to, name)) = todo.pop() {
            if self.is_excluded(&name)? {
                continue;
            }
            self.copied += 1;
            if self.copied > limits::ROOTFS_ENTRIES_MAX {
                let max = limits::ROOTFS_ENTRIES_MAX;
                return Err(TreeCopyError::TooMany { max });
            }
            let metadata = read_metadata(&from)?;
            if !metadata.is_dir() {
                self.leaf(&from, &to, &metadata)?;
                continue;
            }
            self.folder(&from, &to, &metadata)?;
            let below = names(&from)?;
            todo.extend(below.into_iter().rev().map(|entry| {
                let below = join(&name, &entry.to_string_lossy());
                (from.join(&entry), to.join(&entry), below)
            }));
        }
        Ok(())
    }

    fn folder(&mut self, from: &Path, to: &Path, metadata: &Metadata) -> Result<(), TreeCopyError> {
        if to.is_dir() {
            return Ok(());
        }
        make_way(to)?;
        fs::create_dir(to).map_err(TreeCopyError::file("make the folder", to))?;
        self.dress(from, to, metadata)?;
        self.folders.push((to.to_owned(), metadata.clone()));
        Ok(())
    }

    fn leaf(&mut self, from: &Path, to: &Path, metadata: &Metadata) -> Result<(), TreeCopyError> {
        make_way(to)?;
        let write = TreeCopyError::file("write", to);
        let identity = (metadata.dev(), metadata.ino());
        if metadata.nlink() > 1 {
            if let Some(first) = self.links.get(&identity) {
                return fs::hard_link(first, to).map_err(write);
            }
            self.links.insert(identity, to.to_owned());
        }
        if metadata.is_symlink() {
            let target = fs::read_link(from).map_err(TreeCopyError::file("read", from))?;
            std::os::unix::fs::symlink(target, to).map_err(write)?;
        } else if metadata.is_file() {
            let mut source = fs::File::open(from).map_err(TreeCopyError::file("read", from))?;
            let mut file = fs::File::create_new(to).map_err(TreeCopyError::file("write", to))?;
            io::copy(&mut source, &mut file).map_err(write)?;
        } else {
            let kind = FileType::from_raw_mode(metadata.mode());
            let mode = Mode::from_bits_truncate(metadata.mode() & MODE_MASK);
            mknodat(CWD, to, kind, mode, metadata.rdev())
                .map_err(TreeCopyError::file("write", to))?;
        }
        self.dress(from, to, metadata)?;
        set_times(to, metadata)
    }

    /// Gives a copy its owner, its extended attributes and its mode, in this order: a new owner takes
    /// away capabilities and the set-user bit.
    fn dress(&self, from: &Path, to: &Path, metadata: &Metadata) -> Result<(), TreeCopyError> {
        let owner = self.owner.unwrap_or_else(|| Owner {
            uid: metadata.uid(),
            gid: metadata.gid(),
        });
        chown(to, owner)?;
        copy_xattrs(from, to)?;
        if metadata.is_symlink() {
            return Ok(());
        }
        set_mode(to, self.mode.unwrap_or_else(|| metadata.mode()))
    }

    /// Makes the folders above a path where they are missing.
    fn make_parents(&self, path: &Path) -> Result<(), TreeCopyError> {
        let Some(parent) = path.parent().filter(|parent| !parent.is_dir()) else {
            return Ok(());
        };
        self.make_parents(parent)?;
        fs::create_dir(parent).map_err(TreeCopyError::file("make the folder", parent))?;
        if let Some(owner) = self.owner {
            chown(parent, owner)?;
        }
        set_mode(parent, FOLDER_MODE)
    }

    fn is_excluded(&self, name: &str) -> Result<bool, TreeCopyError> {
        if self.excludes.is_empty() || name.is_empty() {
            return Ok(false);
        }
        let ends = name.match_indices('/').map(|(slash, _)| slash);
        let prefixes: Vec<_> = ends.chain([name.len()]).map(|end| &name[..end]).collect();
        let mut excluded = false;
        for (glob, exception) in &self.excludes {
            for prefix in &prefixes {
                if glob.matches(prefix, &self.fuel)? {
                    excluded = !exception;
                }
            }
        }
        Ok(excluded)
    }
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() {
        name.to_owned()
    } else {
        format!("{folder}/{name}")
    }
}

fn read_metadata(path: &Path) -> Result<Metadata, TreeCopyError> {
    fs::symlink_metadata(path).map_err(TreeCopyError::file("read", path))
}

/// The names in a folder, in order.
fn names(folder: &Path) -> Result<Vec<OsString>, TreeCopyError> {
    let listed = fs::read_dir(folder).and_then(|entries| {
        let names = entries.map(|entry| Ok(entry?.file_name()));
        names.collect::<io::Result<Vec<_>>>()
    });
    let mut names = listed.map_err(TreeCopyError::file("list", folder))?;
    names.sort_unstable();
    Ok(names)
}

/// Removes what has a copy's name, unless it is a folder.
fn make_way(path: &Path) -> Result<(), TreeCopyError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => Err(TreeCopyError::FolderInTheWay(path.to_owned())),
        Ok(_) => fs::remove_file(path).map_err(TreeCopyError::file("replace", path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(TreeCopyError::file("replace", path)(error)),
    }
}

fn chown(path: &Path, owner: Owner) -> Result<(), TreeCopyError> {
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(TreeCopyError::file("set the owner of", path))
}

fn set_mode(path: &Path, mode: u32) -> Result<(), TreeCopyError> {
    fs::set_permissions(path, Permissions::from_mode(mode & MODE_MASK))
        .map_err(TreeCopyError::file("set the mode of", path))
}

fn set_times(path: &Path, metadata: &Metadata) -> Result<(), TreeCopyError> {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: metadata.atime(),
            tv_nsec: metadata.atime_nsec(),
        },
        last_modification: Timespec {
            tv_sec: metadata.mtime(),
            tv_nsec: metadata.mtime_nsec(),
        },
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(TreeCopyError::file("set the times of", path))
}

fn copy_xattrs(from: &Path, to: &Path) -> Result<(), TreeCopyError> {
    let mut names = vec![0; XATTR_BYTES_MAX];
    let length = match llistxattr(from, &mut names) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => return Ok(()),
        Err(error) => return Err(TreeCopyError::file("read the attributes of", from)(error)),
    };
    let mut rest = &names[..length];
    let mut value = vec![0; XATTR_BYTES_MAX];
    while let Ok(name) = CStr::from_bytes_until_nul(rest) {
        rest = &rest[name.to_bytes_with_nul().len()..];
        let length = lgetxattr(from, name, &mut value)
            .map_err(TreeCopyError::file("read the attributes of", from))?;
        match lsetxattr(to, name, &value[..length], XattrFlags::empty()) {
            // What the destination cannot have is left out, as `cp -a` does.
            Ok(()) | Err(rustix::io::Errno::NOTSUP) => {}
            Err(error) => return Err(TreeCopyError::file("set the attributes of", to)(error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
