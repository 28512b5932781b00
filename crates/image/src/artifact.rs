//! The code artifact: a customer's zip, unpacked within bounds.
//!
//! Nothing that the archive says of itself is believed. What is written is counted as it is written,
//! names are checked before they are used, and while files are written the destination holds no
//! symbolic link at all: links are made last, and each must stay inside.

mod entry;

use dormouse_core::limits;
pub(crate) use entry::checked_link_target;
use entry::{Kind, checked_path};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

type Archive = ZipArchive<Metered<BufReader<File>>>;

/// Why an artifact cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The file is not a zip archive, or a damaged one.
    #[error("the code artifact is not a valid zip archive")]
    NotAZip(#[source] ZipError),
    /// The file is larger than allowed.
    #[error("the code artifact is larger than {max} bytes")]
    TooBig {
        /// The limit.
        max: u64,
    },
    /// It makes more files and folders than allowed.
    #[error("the code artifact holds more than {max} files and folders")]
    TooManyEntries {
        /// The limit.
        max: usize,
    },
    /// The listing alone is larger than allowed.
    #[error("the code artifact's listing is larger than {max} bytes")]
    ListingTooLarge {
        /// The limit.
        max: u64,
    },
    /// Two entries have one name, so that readers may disagree on what is in the archive.
    #[error("the code artifact holds two entries of one name")]
    DuplicateNames,
    /// It unpacks to more bytes than allowed.
    #[error("the code artifact unpacks to more than {max} bytes; it passed the limit in `{entry}`")]
    TooLarge {
        /// Entry in which the limit was passed.
        entry: String,
        /// The limit.
        max: u64,
    },
    /// It unpacks to suspiciously more bytes than it has.
    #[error("the code artifact unpacks to more than {ratio} times its size in `{entry}`")]
    Bomb {
        /// Entry in which the limit was passed.
        entry: String,
        /// The limit.
        ratio: u64,
    },
    /// An entry is not acceptable.
    #[error("the code artifact's entry `{entry}` {problem}")]
    Entry {
        /// The entry's name, made printable.
        entry: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An entry cannot be decompressed.
    #[error("the code artifact's entry `{entry}` is damaged")]
    Damaged {
        /// The entry's name, made printable.
        entry: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is no Dockerfile at the archive's root.
    #[error("the code artifact has no file `Dockerfile` at its root")]
    NoDockerfile,
    /// The host's disk is full.
    #[error("the disk is full; the code artifact could not be unpacked")]
    DiskFull(#[source] std::io::Error),
    /// The host failed otherwise.
    #[error("cannot unpack the code artifact: {action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

impl ArtifactError {
    /// AWS's code for this failure.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoDockerfile => "ARCHIVE_DOCKERFILE_NOT_FOUND",
            Self::DiskFull(_) => "DISK_STORAGE_FULL",
            Self::Io { .. } => "INTERNAL_PLATFORM_ERROR",
            Self::NotAZip(_)
            | Self::TooBig { .. }
            | Self::ListingTooLarge { .. }
            | Self::DuplicateNames
            | Self::TooManyEntries { .. }
            | Self::TooLarge { .. }
            | Self::Bomb { .. }
            | Self::Entry { .. }
            | Self::Damaged { .. } => "ARCHIVE_INVALID",
        }
    }
}

/// Unpacks `zip` into `dest`, a folder that is made when it is missing and must be empty. On an error
/// the caller removes `dest`.
///
/// # Errors
/// See [`ArtifactError`].
pub fn unpack(zip: &Path, dest: &Path) -> Result<(), ArtifactError> {
    unpack_within(zip, dest, &BOUNDS)
}

/// What an archive may cost.
struct Bounds {
    file_bytes: u64,
    listing_bytes: u64,
    entries: usize,
    unpacked_bytes: u64,
    ratio: u64,
    ratio_free_bytes: u64,
}

const BOUNDS: Bounds = Bounds {
    file_bytes: limits::ARTIFACT_BYTES_MAX,
    listing_bytes: limits::ARTIFACT_LISTING_BYTES_MAX,
    entries: limits::ARTIFACT_ENTRIES_MAX,
    unpacked_bytes: limits::ARTIFACT_UNPACKED_BYTES_MAX,
    ratio: limits::ARTIFACT_RATIO_MAX,
    ratio_free_bytes: limits::ARTIFACT_RATIO_FREE_BYTES,
};

fn unpack_within(zip: &Path, dest: &Path, bounds: &Bounds) -> Result<(), ArtifactError> {
    let (mut archive, packed_bytes) = open(zip, bounds)?;
    let mut unpacker = Unpacker::new(dest, packed_bytes, bounds)?;
    for index in 0..archive.len() {
        unpacker.entry(&mut archive, index)?;
    }
    unpacker.finish()
}

/// Reads the archive's listing; also answers the file's length.
fn open(zip: &Path, bounds: &Bounds) -> Result<(Archive, u64), ArtifactError> {
    let file = File::open(zip).map_err(io("open the file"))?;
    let packed_bytes = file.metadata().map_err(io("read the file's length"))?.len();
    if packed_bytes > bounds.file_bytes {
        return Err(ArtifactError::TooBig {
            max: bounds.file_bytes,
        });
    }
    let left = Rc::new(Cell::new(bounds.listing_bytes));
    let reader = Metered {
        inner: BufReader::new(file),
        left: Rc::clone(&left),
    };
    let archive = ZipArchive::new(reader).map_err(|error| match left.get() {
        0 => ArtifactError::ListingTooLarge {
            max: bounds.listing_bytes,
        },
        _ => ArtifactError::NotAZip(error),
    })?;
    left.set(u64::MAX);
    if archive.has_duplicate_names() {
        return Err(ArtifactError::DuplicateNames);
    }
    if archive.len() > bounds.entries {
        return Err(ArtifactError::TooManyEntries {
            max: bounds.entries,
        });
    }
    Ok((archive, packed_bytes))
}

/// A reader that fails once `left` bytes have been read: the listing is kept in memory.
struct Metered<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.left.get();
        if left == 0 && !buffer.is_empty() {
            return Err(std::io::Error::other("more was read than allowed"));
        }
        let room = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = self.inner.read(&mut buffer[..room])?;
        self.left.set(left - count as u64);
        Ok(count)
    }
}

impl<R: Seek> Seek for Metered<R> {
    fn seek(&mut self, position: SeekFrom) -> std::io::Result<u64> {
        self.inner.seek(position)
    }
}

/// Writes entries below one folder.
struct Unpacker<'a> {
    root: OwnedFd,
    bounds: &'a Bounds,
    packed_bytes: u64,
    unpacked_bytes: u64,
    /// Everything that has been made or promised, by its path.
    made: HashMap<String, Kind>,
    /// Links to make at the end: path and target.
    links: Vec<(String, String)>,
    /// Folders' modes to set at the end, so that none keeps its own files from being written.
    folder_modes: Vec<(String, u32)>,
    buffer: Vec<u8>,
}

impl<'a> Unpacker<'a> {
    fn new(dest: &Path, packed_bytes: u64, bounds: &'a Bounds) -> Result<Self, ArtifactError> {
        std::fs::create_dir_all(dest).map_err(io("make the folder"))?;
        let mut listing = std::fs::read_dir(dest).map_err(io("list the folder"))?;
        if listing.next().is_some() {
            let error = std::io::Error::from(std::io::ErrorKind::DirectoryNotEmpty);
            return Err(io("unpack into the folder")(error));
        }
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, dest, flags, Mode::empty());
        Ok(Self {
            root: root.map_err(|errno| io("open the folder")(errno.into()))?,
            bounds,
            packed_bytes,
            unpacked_bytes: 0,
            made: HashMap::new(),
            links: Vec::new(),
            folder_modes: Vec::new(),
            buffer: vec![0; 64 << 10],
        })
    }

    fn entry(&mut self, archive: &mut Archive, index: usize) -> Result<(), ArtifactError> {
        let listed = archive
            .by_index_data(index)
            .map_err(ArtifactError::NotAZip)?;
        let shown = entry::printable(listed.name_raw());
        let refuse = |problem| ArtifactError::Entry {
            entry: shown.clone(),
            problem,
        };
        if listed.encrypted() {
            return Err(refuse("is encrypted; make the archive without a password"));
        }
        if !matches!(
            listed.compression(),
            CompressionMethod::Stored | CompressionMethod::Deflated
        ) {
            return Err(refuse("is compressed by a method other than deflate"));
        }
        let name = entry::name(&listed).map_err(refuse)?;
        let kind = Kind::of(&listed).map_err(refuse)?;
        let mode = entry::mode(&listed).map(|mode| mode & 0o7777);
        let path = checked_path(&name).map_err(refuse)?;
        if path.is_empty() {
            return if kind == Kind::Folder {
                Ok(())
            } else {
                Err(refuse("has no name"))
            };
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.make_folder(parent, &shown)?;
        }
        match kind {
            Kind::Folder => {
                self.make_folder(&path, &shown)?;
                self.folder_modes.push((path, mode.unwrap_or(0o755)));
                Ok(())
            }
            Kind::File => {
                self.promise(&path, kind, &shown)?;
                let mut reader = archive
                    .by_index(index)
                    .map_err(|error| damaged(&shown, error))?;
                self.write_file(&path, &shown, &mut reader, mode.unwrap_or(0o644))
            }
            Kind::Link => {
                self.promise(&path, kind, &shown)?;
                let reader = archive
                    .by_index(index)
                    .map_err(|error| damaged(&shown, error))?;
                let target =
                    checked_link_target(&path, reader).map_err(|problem| ArtifactError::Entry {
                        entry: shown.clone(),
                        problem,
                    })?;
                self.links.push((path, target));
                Ok(())
            }
        }
    }

    /// Notes that `path` is taken; fails when it already is.
    fn promise(&mut self, path: &str, kind: Kind, shown: &str) -> Result<(), ArtifactError> {
        if self.made.insert(path.to_owned(), kind).is_some() {
            let problem = "collides with another entry";
            return Err(ArtifactError::Entry {
                entry: shown.to_owned(),
                problem,
            });
        }
        if self.made.len() > self.bounds.entries {
            return Err(ArtifactError::TooManyEntries {
                max: self.bounds.entries,
            });
        }
        Ok(())
    }

    /// Makes a folder and its parents where they are missing.
    fn make_folder(&mut self, path: &str, shown: &str) -> Result<(), ArtifactError> {
        if self.made.get(path) == Some(&Kind::Folder) {
            return Ok(());
        }
        let ends = path
            .match_indices('/')
            .map(|(end, _)| end)
            .chain([path.len()]);
        for end in ends {
            let folder = &path[..end];
            match self.made.get(folder) {
                Some(Kind::Folder) => continue,
                Some(Kind::File | Kind::Link) => {
                    let problem = "lies below another entry that is no folder";
                    return Err(ArtifactError::Entry {
                        entry: shown.to_owned(),
                        problem,
                    });
                }
                None => {}
            }
            self.promise(folder, Kind::Folder, shown)?;
            let mode = Mode::from_raw_mode(0o755);
            rustix::fs::mkdirat(&self.root, folder, mode)
                .map_err(|errno| io("make a folder")(errno.into()))?;
        }
        Ok(())
    }

    fn write_file(
        &mut self,
        path: &str,
        shown: &str,
        reader: &mut impl Read,
        mode: u32,
    ) -> Result<(), ArtifactError> {
        let mut file = self
            .create(path)
            .map_err(|errno| io("make a file")(errno.into()))?;
        loop {
            let count = match reader.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    return Err(ArtifactError::Damaged {
                        entry: shown.to_owned(),
                        source,
                    });
                }
            };
            self.count(count as u64, shown)?;
            file.write_all(&self.buffer[..count])
                .map_err(io("write a file"))?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))
            .map_err(|errno| io("set a file's mode")(errno.into()))
    }

    fn create(&self, path: &str) -> Result<File, Errno> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::openat2(&self.root, path, flags, mode, within).map(File::from)
    }

    fn count(&mut self, bytes: u64, shown: &str) -> Result<(), ArtifactError> {
        self.unpacked_bytes += bytes;
        let entry = || shown.to_owned();
        if self.unpacked_bytes > self.bounds.unpacked_bytes {
            return Err(ArtifactError::TooLarge {
                entry: entry(),
                max: self.bounds.unpacked_bytes,
            });
        }
        let allowed = self.packed_bytes.saturating_mul(self.bounds.ratio);
        if self.unpacked_bytes > allowed.max(self.bounds.ratio_free_bytes) {
            return Err(ArtifactError::Bomb {
                entry: entry(),
                ratio: self.bounds.ratio,
            });
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), ArtifactError> {
        for (path, target) in &self.links {
            rustix::fs::symlinkat(target.as_str(), &self.root, path.as_str())
                .map_err(|errno| io("make a link")(errno.into()))?;
        }
        // Deepest first: a parent may become unreadable.
        self.folder_modes.sort_unstable_by(|a, b| b.cmp(a));
        for (path, mode) in &self.folder_modes {
            self.set_folder_mode(path, *mode)
                .map_err(|errno| io("set a folder's mode")(errno.into()))?;
        }
        match self.made.get("Dockerfile") {
            Some(Kind::File) => Ok(()),
            Some(Kind::Folder | Kind::Link) | None => Err(ArtifactError::NoDockerfile),
        }
    }

    fn set_folder_mode(&self, path: &str, mode: u32) -> Result<(), Errno> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let folder = rustix::fs::openat2(&self.root, path, flags, Mode::empty(), within)?;
        rustix::fs::fchmod(folder, Mode::from_raw_mode(mode))
    }
}

/// Why an entry's content cannot be read.
fn damaged(shown: &str, error: ZipError) -> ArtifactError {
    let entry = shown.to_owned();
    match error {
        ZipError::CompressionMethodNotSupported(_) => {
            let problem = "is compressed by a method other than deflate";
            ArtifactError::Entry { entry, problem }
        }
        ZipError::Io(source) => ArtifactError::Damaged { entry, source },
        other => ArtifactError::Damaged {
            entry,
            source: other.into(),
        },
    }
}

/// Tells a full disk from other failures of the host.
fn io(action: &'static str) -> impl Fn(std::io::Error) -> ArtifactError {
    move |source| match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            ArtifactError::DiskFull(source)
        }
        _ => ArtifactError::Io { action, source },
    }
}

#[cfg(test)]
mod tests;
