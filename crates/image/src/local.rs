//! The local image store: base images that were made on this host.
//!
//! ```text
//! DIR/references/localhost+debian:12.json   what a reference names, replaced atomically
//! DIR/disks/DIGEST.raw                      its disk: written once, then read-only forever
//! DIR/importing/                            work in progress; whatever is here without the lock is stale
//! DIR/lock                                  held by the one import that runs
//! ```
//! A disk is kept when its reference moves on, because snapshots and cached layers may lie over it.

mod reference;
mod rootfs;

use crate::config::ImageConfig;
use aws_lc_rs::digest;
use reference::Reference;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A folder of images.
#[derive(Debug, Clone)]
pub struct LocalImages {
    root: PathBuf,
}

/// An image of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalImage {
    /// Its canonical reference, as in `localhost/debian:12`.
    pub reference: String,
    /// Raw, sparse ext4 disk. Never written once it is here.
    pub disk: PathBuf,
    /// `sha256:` and a hex digest over the tar and the disk's size: equal digests, equal content.
    pub digest: String,
    /// How its process starts.
    pub config: ImageConfig,
    /// When it was imported, in milliseconds since the Unix epoch.
    pub created_ms: i64,
}

/// Why the store cannot answer.
#[derive(Debug, thiserror::Error)]
pub enum LocalImageError {
    /// There is no such image.
    #[error("no image `{reference}` in the local store")]
    Unknown {
        /// The image that was asked for.
        reference: String,
    },
    /// The reference is not one.
    #[error("`{reference}` is no image reference, as in localhost/debian:12: {problem}")]
    Reference {
        /// The reference as given.
        reference: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The record of an image cannot be read.
    #[error("the local store's record `{}` is damaged", path.display())]
    Damaged {
        /// The record.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A root file system's tar has an entry that cannot be unpacked safely.
    #[error("the root file system's entry `{entry}` leads out of it")]
    Escape {
        /// The entry.
        entry: String,
    },
    /// A root file system is larger than its disk, or has too many files.
    #[error("the root file system holds more than {bytes} bytes or {entries} files")]
    TooLarge {
        /// The disk's size.
        bytes: u64,
        /// The limit on files.
        entries: usize,
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

/// What is written of an image.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    digest: String,
    created_ms: i64,
    config: ImageConfig,
}

impl LocalImages {
    /// Opens the store in `dir`, making what is missing of it.
    ///
    /// # Errors
    /// The host cannot make the folders.
    pub fn open(dir: &Path) -> Result<Self, LocalImageError> {
        let store = Self {
            root: dir.to_owned(),
        };
        for folder in [store.references(), store.disks(), store.importing()] {
            fs::create_dir_all(&folder).map_err(io_error("make the folder", &folder))?;
        }
        Ok(store)
    }

    /// Finds an image. A reference without a tag means `latest`.
    ///
    /// # Errors
    /// [`LocalImageError::Unknown`] when there is none, [`LocalImageError::Reference`] when the
    /// reference is none, else the store is damaged.
    pub fn resolve(&self, reference: &str) -> Result<LocalImage, LocalImageError> {
        self.read(&Reference::parse(reference)?)
    }

    /// Every image, by reference.
    ///
    /// # Errors
    /// The store is damaged or unreadable.
    pub fn list(&self) -> Result<Vec<LocalImage>, LocalImageError> {
        let folder = self.references();
        let mut images = Vec::new();
        for entry in fs::read_dir(&folder).map_err(io_error("list the folder", &folder))? {
            let name = entry
                .map_err(io_error("list the folder", &folder))?
                .file_name();
            if let Some(reference) = name.to_str().and_then(Reference::from_file_name) {
                images.push(self.read(&reference)?);
            }
        }
        images.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(images)
    }

    /// Makes an image from the tar of a root file system; the reference is moved when it exists.
    /// Needs root, because files keep their owners. One import runs at a time; others wait.
    ///
    /// # Errors
    /// See [`LocalImageError`]. On an error the store is as it was.
    pub fn import_rootfs_tar(
        &self,
        reference: &str,
        tar: &Path,
        config: ImageConfig,
        disk_bytes: u64,
    ) -> Result<LocalImage, LocalImageError> {
        let reference = Reference::parse(reference)?;
        let digest = content_digest(tar, disk_bytes).map_err(io_error("read", tar))?;
        let _lock = self.lock().map_err(io_error("lock", &self.root))?;
        let disk = self.disk(&digest);
        let exists = disk.try_exists().map_err(io_error("look for", &disk))?;
        if !exists {
            self.make_disk(tar, disk_bytes, &digest, &disk)?;
        }
        let record = Record {
            digest,
            created_ms: now_ms(),
            config,
        };
        self.write(&reference, &record)?;
        tracing::info!(reference = %reference, digest = record.digest, "local image imported");
        self.read(&reference)
    }

    fn make_disk(
        &self,
        tar: &Path,
        disk_bytes: u64,
        digest: &str,
        disk: &Path,
    ) -> Result<(), LocalImageError> {
        let folder = self.importing();
        fs::remove_dir_all(&folder).map_err(io_error("clear", &folder))?;
        let files = folder.join("rootfs");
        fs::create_dir_all(&files).map_err(io_error("make the folder", &files))?;
        let draft = folder.join("disk");
        let made = rootfs::extract(tar, &files, disk_bytes)
            .and_then(|()| rootfs::make_ext4(&files, &draft, disk_bytes, digest))
            .and_then(|()| persist(&draft, disk).map_err(io_error("put in place", disk)));
        // What remains is removed by the next import, so a failure here is none of this one.
        for result in [fs::remove_dir_all(&files), fs::remove_file(&draft)] {
            match result {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(folder = %folder.display(), %error, "cannot remove an import's files");
                }
                _ => {}
            }
        }
        made
    }

    fn read(&self, reference: &Reference) -> Result<LocalImage, LocalImageError> {
        let unknown = || LocalImageError::Unknown {
            reference: reference.to_string(),
        };
        let path = self.references().join(reference.file_name());
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(unknown()),
            other => other.map_err(io_error("read", &path))?,
        };
        let record: Record = serde_json::from_slice(&text)
            .map_err(|source| LocalImageError::Damaged { path, source })?;
        let disk = self.disk(&record.digest);
        fs::metadata(&disk).map_err(io_error("find the disk", &disk))?;
        Ok(LocalImage {
            reference: reference.to_string(),
            disk,
            digest: record.digest,
            config: record.config,
            created_ms: record.created_ms,
        })
    }

    fn write(&self, reference: &Reference, record: &Record) -> Result<(), LocalImageError> {
        let path = self.references().join(reference.file_name());
        let draft = self.importing().join("record");
        let text =
            serde_json::to_vec_pretty(record).map_err(|source| LocalImageError::Damaged {
                path: path.clone(),
                source,
            })?;
        File::create(&draft)
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| persist(&draft, &path))
            .map_err(io_error("write", &path))
    }

    fn lock(&self) -> io::Result<File> {
        let file = File::create(self.root.join("lock"))?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }

    fn references(&self) -> PathBuf {
        self.root.join("references")
    }

    fn disks(&self) -> PathBuf {
        self.root.join("disks")
    }

    fn importing(&self) -> PathBuf {
        self.root.join("importing")
    }

    /// Where the disk of this digest is. A record that was tampered with names no path but this.
    fn disk(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let hex: String = hex.chars().filter(char::is_ascii_alphanumeric).collect();
        self.disks().join(format!("{hex}.raw"))
    }
}

/// Moves a finished file to its name so that a crash leaves either nothing or all of it.
fn persist(draft: &Path, path: &Path) -> io::Result<()> {
    File::open(draft)?.sync_all()?;
    fs::rename(draft, path)?;
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    File::open(folder)?.sync_all()
}

/// Digest of a tar and of the size of the disk that it becomes.
fn content_digest(tar: &Path, disk_bytes: u64) -> io::Result<String> {
    let mut file = File::open(tar)?;
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(b"dormouse rootfs 1");
    hash.update(&disk_bytes.to_be_bytes());
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(format!("sha256:{}", hex::encode(hash.finish()))),
            Ok(count) => hash.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn io_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> LocalImageError {
    move |source| LocalImageError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;
