//! The build context: what COPY and ADD may read, and the tar that each of them sends.
//!
//! The folder is listed once, through its `.dockerignore` or `Dockerfile.dockerignore`; sources are found in that listing, links
//! included, so that no link ever leads the host out of the folder. Files are opened beneath the
//! folder and without following links, whatever has happened to it since.

mod archive;
mod ignore;
mod listing;

use crate::dockerfile::{CopySource, CopyStep};
use archive::Archive;
use dormouse_core::glob::{Dialect, Fuel, Glob, OutOfFuel};
use dormouse_core::guest::CopySpec;
use dormouse_core::limits;
use ignore::Ignore;
use listing::Listing;
pub(crate) use listing::Node;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

/// Where the patterns of what a build does not see are: the first of them that is there, as in Docker.
pub(crate) const IGNORE_FILES: [&str; 2] = ["Dockerfile.dockerignore", ".dockerignore"];

/// An unpacked artifact, seen through its `.dockerignore`.
#[derive(Debug)]
pub struct Context {
    root: OwnedFd,
    /// What is not ignored.
    listing: Listing,
}

/// What a copy step sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyOutput {
    /// Where the tar goes inside the guest.
    pub spec: CopySpec,
    /// SHA-256 over what is copied and where to (paths, modes, contents, link targets, not times),
    /// in hex.
    pub digest: String,
    /// Length of the tar, in bytes.
    pub bytes: u64,
    /// How many entries the tar has.
    pub entries: usize,
    /// Paths in the context of files that look like archives, which the tar leaves out: the guest
    /// unpacks them. The digest covers them.
    pub archives: Vec<String>,
}

/// A part of the context that a command sees while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeOutput {
    /// SHA-256 over its files, in hex.
    pub digest: String,
    /// The name of the one file that it is; none for a folder, whose contents it holds.
    pub file: Option<String>,
}

/// Why the context or a copy step cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// A source names nothing.
    #[error("`{pattern}` is not in the archive")]
    Missing {
        /// The source as written.
        pattern: String,
    },
    /// A source names something that the build may not see.
    #[error("`{pattern}` is in the archive, but .dockerignore leaves it out")]
    Ignored {
        /// The source as written.
        pattern: String,
    },
    /// A source lies elsewhere.
    #[error("`{pattern}` leads out of the archive")]
    Outside {
        /// The source as written.
        pattern: String,
    },
    /// A source is no valid pattern.
    #[error("the pattern `{pattern}` {problem}")]
    Pattern {
        /// The source as written.
        pattern: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Several files would become one.
    #[error("several files match, so the destination `{dest}` must end in `/`")]
    NeedsFolder {
        /// The destination.
        dest: String,
    },
    /// An ignore file cannot be used.
    #[error("line {line} of {file} {problem}")]
    Ignore {
        /// Its name.
        file: &'static str,
        /// Where, from 1.
        line: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// An ignore file is not text.
    #[error("{file} is not valid UTF-8")]
    IgnoreNotText {
        /// Its name.
        file: &'static str,
    },
    /// An ignore file is too large.
    #[error("{file} is larger than {max} bytes")]
    IgnoreTooLarge {
        /// Its name.
        file: &'static str,
        /// The limit.
        max: u64,
    },
    /// The patterns take too long to match.
    #[error("the patterns of .dockerignore or of the Dockerfile take too long to match")]
    TooCostly,
    /// There are too many files, or one's path is too long.
    #[error("the archive holds more than {max} files and folders, or too deep a folder")]
    TooLarge {
        /// The limit.
        max: usize,
    },
    /// A copy step names the same files over and over.
    #[error("the step copies more than the archive may hold")]
    CopiesTooMuch,
    /// Something in the context is no file, folder or link, or its name is not UTF-8.
    #[error("`{path}` is not a file, folder or link with a name in UTF-8")]
    Unusable {
        /// Path in the context.
        path: String,
    },
    /// There is no Dockerfile, or it is no file.
    #[error("there is no file `Dockerfile` at the archive's root")]
    NoDockerfile,
    /// The host cannot read the context.
    #[error("cannot read `{path}` in the build context")]
    Read {
        /// Path in the context.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The tar cannot be written to where it goes.
    #[error("cannot send the files to copy")]
    Send(#[source] std::io::Error),
}

impl From<OutOfFuel> for ContextError {
    fn from(_: OutOfFuel) -> Self {
        Self::TooCostly
    }
}

/// Something to copy: the path inside the tar, and where it is in the context.
#[derive(Debug)]
struct Item<'a> {
    name: String,
    path: String,
    node: &'a Node,
}

impl Context {
    /// Lists the folder through its `.dockerignore`.
    ///
    /// # Errors
    /// See [`ContextError`]; the causes are a bad `.dockerignore`, its cost, or the host.
    pub fn open(root: &Path) -> Result<Self, ContextError> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(CWD, root, flags, Mode::empty())
            .map_err(|errno| read_error("", errno.into()))?;
        let fuel = Fuel::new(limits::GLOB_STEPS_MAX);
        let ignore = ignore(&folder)?;
        let listing = Listing::read(root, &ignore, &fuel)?;
        Ok(Self {
            root: folder,
            listing,
        })
    }

    /// Everything that is not ignored, by its path, parents first.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, &Node)> {
        let below = self.listing.below("");
        below.map(|(_, path, node)| (path, node))
    }

    /// Whether there is something of this path that is not ignored.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.listing.has(path)
    }

    /// The Dockerfile's bytes, whether or not it is ignored. What passes the limit on a Dockerfile's
    /// length is cut off after one byte too many, so that planning refuses it.
    ///
    /// # Errors
    /// [`ContextError::NoDockerfile`], or the host cannot read it.
    pub fn dockerfile(&self) -> Result<Vec<u8>, ContextError> {
        let name = "Dockerfile";
        let file = open_beneath(&self.root, name).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => ContextError::NoDockerfile,
            _ => read_error(name, error),
        })?;
        if !file
            .metadata()
            .map_err(|error| read_error(name, error))?
            .is_file()
        {
            return Err(ContextError::NoDockerfile);
        }
        let mut bytes = Vec::new();
        let mut file = file.take(limits::DOCKERFILE_BYTES_MAX + 1);
        file.read_to_end(&mut bytes)
            .map_err(|error| read_error(name, error))?;
        Ok(bytes)
    }

    /// Writes the tar of a copy step to `out`, the same bytes each time. URLs are not for it.
    ///
    /// # Errors
    /// See [`ContextError`]; [`ContextError::Send`] when `out` fails.
    pub fn copy_tar(&self, copy: &CopyStep, out: impl Write) -> Result<CopyOutput, ContextError> {
        let fuel = Fuel::new(limits::GLOB_STEPS_MAX);
        let items = self.items(copy, &fuel)?;
        let texts = copy.sources.iter().filter_map(|source| match source {
            CopySource::Text { name, content } => Some((name, content)),
            CopySource::Path(_) | CopySource::Url { .. } => None,
        });
        let texts: Vec<_> = texts.collect();
        let as_file = self.is_one_file(copy, &items, texts.len())?;
        let spec = copy_spec(copy, as_file);
        let mut archive = Archive::new(out, &spec, copy.chmod);
        let mut archives = Vec::new();
        let excludes = Ignore::of_patterns(&copy.excludes)?;
        let mut folders = BTreeSet::new();
        for item in &items {
            if copy.unpack_files && self.is_archive(item)? {
                let Node::File { mode, bytes } = item.node else {
                    continue;
                };
                if excludes.ignores(&item.name, &fuel)? {
                    continue;
                }
                let file = self.open_file(&item.path)?;
                archive.digest_only(&item.path, *mode, *bytes, file)?;
                archives.push(item.path.clone());
                continue;
            }
            if copy.parents {
                self.parents(&mut archive, item, &mut folders)?;
            }
            self.append_source(&mut archive, item, copy.parents, &|name| {
                Ok(excludes.ignores(name, &fuel)?)
            })?;
        }
        for (name, content) in texts {
            archive.text(name, content)?;
        }
        let entries = archive.entries() - archives.len();
        let (digest, bytes) = archive.finish()?;
        Ok(CopyOutput {
            spec,
            digest,
            bytes,
            entries,
            archives,
        })
    }

    /// Writes the tar of one file of the context, an archive that proved to be none.
    ///
    /// # Errors
    /// See [`ContextError`].
    pub fn file_tar(
        &self,
        copy: &CopyStep,
        path: &str,
        out: impl Write,
    ) -> Result<CopySpec, ContextError> {
        let missing = || ContextError::Missing {
            pattern: path.to_owned(),
        };
        let (path, node) = self.listing.resolve(path).ok_or_else(missing)?;
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        let spec = copy_spec(copy, !copy.dest.ends_with('/'));
        let mut archive = Archive::new(out, &spec, copy.chmod);
        self.append(&mut archive, &name, &path, node)?;
        archive.finish()?;
        Ok(spec)
    }

    /// Opens a file of the context for reading, without following links.
    ///
    /// # Errors
    /// [`ContextError::Read`]
    pub fn open_file(&self, path: &str) -> Result<File, ContextError> {
        open_beneath(&self.root, path).map_err(|error| read_error(path, error))
    }

    /// Writes the tar of a file or of a folder's contents to `out`: what a command sees of the context.
    ///
    /// # Errors
    /// See [`ContextError`].
    pub fn tree_tar(&self, path: &str, out: impl Write) -> Result<TreeOutput, ContextError> {
        let missing = || ContextError::Missing {
            pattern: path.to_owned(),
        };
        let clean = relative(path).ok_or_else(|| ContextError::Outside {
            pattern: path.to_owned(),
        })?;
        let item = self.item(&clean).ok_or_else(missing)?;
        let spec = CopySpec {
            dest: "/".to_owned(),
            as_file: false,
            owner: String::new(),
        };
        let mut archive = Archive::new(out, &spec, None);
        self.append_source(&mut archive, &item, false, &|_| Ok(false))?;
        let (digest, _) = archive.finish()?;
        let is_file = matches!(item.node, Node::File { .. });
        Ok(TreeOutput {
            digest,
            file: is_file.then_some(item.name),
        })
    }

    /// What [`Self::copy_tar`] would answer, without writing anything.
    ///
    /// # Errors
    /// See [`ContextError`].
    pub fn copy_output(&self, copy: &CopyStep) -> Result<CopyOutput, ContextError> {
        self.copy_tar(copy, std::io::sink())
    }

    /// Whether one file is copied to a path that is no folder by its spelling.
    fn is_one_file(
        &self,
        copy: &CopyStep,
        items: &[Item<'_>],
        texts: usize,
    ) -> Result<bool, ContextError> {
        let is_folder = copy.dest.ends_with('/') || copy.parents;
        match (items, texts) {
            ([item], 0) => Ok(!is_folder && matches!(item.node, Node::File { .. })),
            ([], 1) => Ok(!is_folder),
            _ if is_folder => Ok(false),
            ([], 0) => Ok(false),
            _ => Err(ContextError::NeedsFolder {
                dest: copy.dest.clone(),
            }),
        }
    }

    /// Appends a source: a file, or what a folder holds. With `whole` the folder itself too.
    fn append_source<W: Write>(
        &self,
        archive: &mut Archive<W>,
        item: &Item<'_>,
        whole: bool,
        excluded: &dyn Fn(&str) -> Result<bool, ContextError>,
    ) -> Result<(), ContextError> {
        let Node::Folder { .. } = item.node else {
            if excluded(&item.name)? {
                return Ok(());
            }
            return self.append(archive, &item.name, &item.path, item.node);
        };
        if whole && !item.name.is_empty() {
            if excluded(&item.name)? {
                return Ok(());
            }
            self.append(archive, &item.name, &item.path, item.node)?;
        }
        for (name, path, node) in self.listing.below(&item.path) {
            let name = match whole && !item.name.is_empty() {
                true => format!("{}/{name}", item.name),
                false => name.to_owned(),
            };
            if !excluded(&name)? {
                self.append(archive, &name, path, node)?;
            }
        }
        Ok(())
    }

    /// Appends the folders that lead to an item, as `--parents` wants it.
    fn parents<W: Write>(
        &self,
        archive: &mut Archive<W>,
        item: &Item<'_>,
        made: &mut BTreeSet<String>,
    ) -> Result<(), ContextError> {
        const MODE: u32 = 0o755;
        for (slash, _) in item.name.match_indices('/') {
            let folder = &item.name[..slash];
            if made.insert(folder.to_owned()) {
                let below = item.name.len() - slash;
                let path = item
                    .path
                    .len()
                    .checked_sub(below)
                    .map(|end| &item.path[..end]);
                let mode = match path.and_then(|path| self.listing.resolve(path)) {
                    Some((_, Node::Folder { mode })) => *mode,
                    _ => MODE,
                };
                archive.folder(folder, mode)?;
            }
        }
        Ok(())
    }

    fn append<W: Write>(
        &self,
        archive: &mut Archive<W>,
        name: &str,
        path: &str,
        node: &Node,
    ) -> Result<(), ContextError> {
        match node {
            Node::Folder { mode } => archive.folder(name, *mode),
            Node::Link { target } => archive.link(name, target),
            Node::File { mode, bytes } => {
                let file = self.open_file(path)?;
                archive.file(name, path, *mode, *bytes, file)
            }
        }
    }

    /// What a copy step's paths name.
    fn items(&self, copy: &CopyStep, fuel: &Fuel) -> Result<Vec<Item<'_>>, ContextError> {
        let mut found = Vec::new();
        for source in &copy.sources {
            if let CopySource::Path(pattern) = source {
                self.find(pattern, copy.parents, fuel, &mut found)?;
            }
            if found.len() > limits::ARTIFACT_ENTRIES_MAX {
                return Err(ContextError::CopiesTooMuch);
            }
        }
        Ok(found)
    }

    fn find<'a>(
        &'a self,
        pattern: &str,
        parents: bool,
        fuel: &Fuel,
        found: &mut Vec<Item<'a>>,
    ) -> Result<(), ContextError> {
        let outside = || ContextError::Outside {
            pattern: pattern.to_owned(),
        };
        let clean = relative(pattern).ok_or_else(outside)?;
        // `a/./b/c` keeps `b` with --parents, and drops `a`.
        let pivot = match pattern.split_once("/./").filter(|_| parents) {
            Some((before, _)) => relative(before).ok_or_else(outside)?,
            None => String::new(),
        };
        let dialect = if parents {
            Dialect::Ignore
        } else {
            Dialect::Copy
        };
        let glob = Glob::new(&clean, dialect).map_err(|problem| ContextError::Pattern {
            pattern: pattern.to_owned(),
            problem,
        })?;
        let before = found.len();
        let mut add = |path: &str| {
            let Some(mut item) = self.item(path) else {
                return false;
            };
            if parents {
                let rest = path.strip_prefix(pivot.as_str()).unwrap_or(path);
                item.name = rest.trim_start_matches('/').to_owned();
            }
            found.push(item);
            true
        };
        if let Some(path) = glob.literal() {
            add(&path);
        } else {
            for path in self.listing.paths() {
                if glob.matches(path, fuel)? && !add(path) {
                    return Err(self.missing(path, path));
                }
            }
        }
        if found.len() == before {
            return Err(self.missing(pattern, &clean));
        }
        Ok(())
    }

    /// A source by its path. A link that is itself a source is followed, as Docker does.
    fn item(&self, path: &str) -> Option<Item<'_>> {
        let (real, node) = self.listing.resolve(path)?;
        let name = path.rsplit('/').next().unwrap_or(path).to_owned();
        Some(Item {
            name,
            path: real,
            node,
        })
    }

    /// Whether an item is what ADD would unpack: a tar, or a compressed file.
    fn is_archive(&self, item: &Item<'_>) -> Result<bool, ContextError> {
        const COMPRESSED: [&[u8]; 4] = [b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
        if !matches!(item.node, Node::File { .. }) {
            return Ok(false);
        }
        let mut start = Vec::new();
        self.open_file(&item.path)?
            .take(512)
            .read_to_end(&mut start)
            .map_err(|error| read_error(&item.path, error))?;
        let is_tar = start.get(257..262) == Some(b"ustar");
        Ok(is_tar || COMPRESSED.iter().any(|magic| start.starts_with(magic)))
    }

    fn missing(&self, pattern: &str, path: &str) -> ContextError {
        let pattern = pattern.to_owned();
        match open_beneath(&self.root, path) {
            Ok(_) if !self.listing.has(path) => ContextError::Ignored { pattern },
            _ => ContextError::Missing { pattern },
        }
    }
}

/// What the context's ignore file says; nothing when there is none.
fn ignore(folder: &OwnedFd) -> Result<Ignore, ContextError> {
    for name in IGNORE_FILES {
        match open_beneath(folder, name) {
            Ok(file) => return Ignore::read(name, file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(read_error(name, error)),
        }
    }
    Ok(Ignore::default())
}

/// Opens for reading without leaving `root` and without following any link.
fn open_beneath(root: &OwnedFd, path: &str) -> std::io::Result<File> {
    // Without NONBLOCK, opening a named pipe would wait for its writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    Ok(rustix::fs::openat2(root, path, flags, Mode::empty(), within)?.into())
}

fn read_error(path: &str, source: std::io::Error) -> ContextError {
    ContextError::Read {
        path: path.to_owned(),
        source,
    }
}

/// A source's path from the context's root, without empty parts; none when it leads out.
fn relative(source: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in source.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

fn copy_spec(copy: &CopyStep, as_file: bool) -> CopySpec {
    let dest = match copy.dest.trim_end_matches('/') {
        "" => "/",
        dest => dest,
    };
    CopySpec {
        dest: dest.to_owned(),
        as_file,
        owner: copy.owner.clone(),
    }
}

#[cfg(test)]
mod tests;
