//! The build context: what COPY and ADD may read, and the tar that each of them sends.
//!
//! The folder is listed once, through its `.dockerignore`; sources are found in that listing, links
//! included, so that no link ever leads the host out of the folder. Files are opened beneath the
//! folder and without following links, whatever has happened to it since.

mod archive;
mod ignore;
mod listing;

use crate::dockerfile::CopyStep;
use crate::glob::{Dialect, Fuel, Glob, OutOfFuel};
use archive::Archive;
use dormouse_core::guest::CopySpec;
use dormouse_core::limits;
use ignore::Ignore;
use listing::{Listing, Node};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

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
    /// ADD names an archive, which Docker would unpack.
    #[error(
        "ADD does not unpack archives such as `{path}` here: COPY it and RUN tar, or unpack it \
         before making the code artifact"
    )]
    Archive {
        /// Path in the context.
        path: String,
    },
    /// `.dockerignore` cannot be used.
    #[error("line {line} of .dockerignore {problem}")]
    Ignore {
        /// Where, from 1.
        line: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// `.dockerignore` is not text.
    #[error(".dockerignore is not valid UTF-8")]
    IgnoreNotText,
    /// `.dockerignore` is too large.
    #[error(".dockerignore is larger than {max} bytes")]
    IgnoreTooLarge {
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
struct Item<'a> {
    name: &'a str,
    path: &'a str,
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
        let ignore = match open_beneath(&folder, ".dockerignore") {
            Ok(file) => Ignore::read(file)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ignore::default(),
            Err(error) => return Err(read_error(".dockerignore", error)),
        };
        let listing = Listing::read(root, &ignore, &fuel)?;
        Ok(Self {
            root: folder,
            listing,
        })
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

    /// Writes the tar of a copy step to `out`, the same bytes each time.
    ///
    /// # Errors
    /// See [`ContextError`]; [`ContextError::Send`] when `out` fails.
    pub fn copy_tar(&self, copy: &CopyStep, out: impl Write) -> Result<CopyOutput, ContextError> {
        let sources = self.sources(copy)?;
        let is_folder = copy.dest.ends_with('/');
        let as_file = match sources.as_slice() {
            [(_, _, Node::File { .. })] => !is_folder,
            [_] => false,
            _ if is_folder => false,
            _ => {
                return Err(ContextError::NeedsFolder {
                    dest: copy.dest.clone(),
                });
            }
        };
        let dest = match copy.dest.trim_end_matches('/') {
            "" => "/",
            dest => dest,
        };
        let spec = CopySpec {
            dest: dest.to_owned(),
            as_file,
            owner: copy.owner.clone(),
        };
        let mut archive = Archive::new(out, &spec, copy.chmod);
        for (name, path, node) in &sources {
            match node {
                Node::Folder { .. } => {
                    for (name, path, node) in self.listing.below(path) {
                        self.append(&mut archive, &Item { name, path, node })?;
                    }
                }
                Node::File { .. } => {
                    if copy.is_add && is_archive(&self.open_file(path)?, path)? {
                        return Err(ContextError::Archive { path: path.clone() });
                    }
                    self.append(&mut archive, &Item { name, path, node })?;
                }
                Node::Link { .. } => {
                    return Err(ContextError::Missing {
                        pattern: path.clone(),
                    });
                }
            }
        }
        let (digest, bytes) = archive.finish()?;
        Ok(CopyOutput {
            spec,
            digest,
            bytes,
        })
    }

    /// What [`Self::copy_tar`] would answer, without writing anything.
    ///
    /// # Errors
    /// See [`ContextError`].
    pub fn copy_output(&self, copy: &CopyStep) -> Result<CopyOutput, ContextError> {
        self.copy_tar(copy, std::io::sink())
    }

    fn append<W: Write>(
        &self,
        archive: &mut Archive<W>,
        item: &Item<'_>,
    ) -> Result<(), ContextError> {
        match item.node {
            Node::Folder { mode } => archive.folder(item.name, *mode),
            Node::Link { target } => archive.link(item.name, target),
            Node::File { mode, bytes } => {
                let file = self.open_file(item.path)?;
                archive.file(item.name, item.path, *mode, *bytes, file)
            }
        }
    }

    /// What a copy step's sources name: the name to copy to, the path, and what is there.
    fn sources(&self, copy: &CopyStep) -> Result<Vec<(String, String, &Node)>, ContextError> {
        let fuel = Fuel::new(limits::GLOB_STEPS_MAX);
        let mut found = Vec::new();
        for pattern in &copy.sources {
            let clean = relative(pattern).ok_or_else(|| ContextError::Outside {
                pattern: pattern.clone(),
            })?;
            let glob =
                Glob::new(&clean, Dialect::Copy).map_err(|problem| ContextError::Pattern {
                    pattern: pattern.clone(),
                    problem,
                })?;
            let before = found.len();
            if let Some(path) = glob.literal() {
                found.extend(self.source(&path));
            } else {
                for path in self.listing.paths() {
                    if glob.matches(path, &fuel)? {
                        let source = self.source(path);
                        found.push(source.ok_or_else(|| self.missing(path, path))?);
                    }
                }
            }
            if found.len() > limits::ARTIFACT_ENTRIES_MAX {
                return Err(ContextError::CopiesTooMuch);
            }
            if found.len() == before {
                return Err(self.missing(pattern, &clean));
            }
        }
        Ok(found)
    }

    /// A source by its path. A link that is itself a source is followed, as Docker does.
    fn source(&self, path: &str) -> Option<(String, String, &Node)> {
        let (real, node) = self.listing.resolve(path)?;
        let name = path.rsplit('/').next().unwrap_or(path);
        Some((name.to_owned(), real, node))
    }

    fn missing(&self, pattern: &str, path: &str) -> ContextError {
        let pattern = pattern.to_owned();
        match open_beneath(&self.root, path) {
            Ok(_) if !self.listing.has(path) => ContextError::Ignored { pattern },
            _ => ContextError::Missing { pattern },
        }
    }

    fn open_file(&self, path: &str) -> Result<File, ContextError> {
        open_beneath(&self.root, path).map_err(|error| read_error(path, error))
    }
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

/// Whether Docker's ADD would unpack this file: a tar, or a compressed file.
fn is_archive(file: &File, path: &str) -> Result<bool, ContextError> {
    const COMPRESSED: [&[u8]; 4] = [b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
    let mut start = Vec::new();
    file.take(512)
        .read_to_end(&mut start)
        .map_err(|error| read_error(path, error))?;
    let is_tar = start.get(257..262) == Some(b"ustar");
    Ok(is_tar || COMPRESSED.iter().any(|magic| start.starts_with(magic)))
}

#[cfg(test)]
mod tests;
