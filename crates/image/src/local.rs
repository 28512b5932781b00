//! The store of base images: those made on this host and those pulled from registries.
//!
//! ```text
//! DIR/references/localhost+debian:12.json   what a reference names, replaced atomically
//! DIR/pulled/HEX.json                       the same for what came from a registry; HEX is the reference's digest
//! DIR/disks/HEX.raw                         the disk of this digest: written once, then read-only forever
//! DIR/pulling/UUID/                         layers that are being fetched; stale when nobody has its lock
//! DIR/importing/                            work in progress; whatever is here without the lock is stale
//! DIR/lock                                  held by the one import that runs
//! ```
//! A disk is kept when its reference moves on, because snapshots and cached layers may lie over it. Its time of
//! modification is when a build last used it: [`LocalImages::remove_idle`] takes what was pulled and is idle.

mod disk;
mod record;
mod reference;
mod scratch;

pub(crate) use disk::NewImage;
pub(crate) use scratch::Scratch;

use crate::config::ImageConfig;
use crate::rootfs::{LayerSource, RootfsError};
use aws_lc_rs::digest;
use record::Record;
use reference::Reference;
use rustix::fs::FlockOperation;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
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
    /// Raw, sparse ext4 disk. Its content is never written once it is here.
    pub disk: PathBuf,
    /// `sha256:` and a hex digest: equal digests, equal content. Of a pulled image that of its manifest; of an
    /// imported one that of its configuration, or that of its tar and the disk's size.
    pub digest: String,
    /// How its process starts.
    pub config: ImageConfig,
    /// When it was imported or pulled, in milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// Where it is from.
    pub origin: Origin,
}

/// Where an image is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// It was imported on this host.
    Imported,
    /// It was pulled from a registry.
    Pulled {
        /// The digest that the registry had for the reference: the manifest's, or that of the index above it.
        resolved: String,
    },
}

/// A disk that no imported image has: what a registry gave can be had again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdleDisk {
    /// The disk.
    pub path: PathBuf,
    /// `sha256:` and a hex digest, as in [`LocalImage::digest`].
    pub digest: String,
    /// Bytes that it takes on the host.
    pub allocated: u64,
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
    /// The layers make no root file system.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
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

impl LocalImages {
    /// Opens the store in `dir`, making what is missing of it.
    ///
    /// # Errors
    /// The host cannot make the folders.
    pub fn open(dir: &Path) -> Result<Self, LocalImageError> {
        let store = Self {
            root: dir.to_owned(),
        };
        for folder in [store.references(), store.pulled(), store.disks()] {
            fs::create_dir_all(&folder).map_err(io_error("make the folder", &folder))?;
        }
        for folder in [store.importing(), store.pulling()] {
            // Files of strangers lie here with their owners and set-user-ID bits.
            let made = fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&folder);
            made.map_err(io_error("make the folder", &folder))?;
        }
        Ok(store)
    }

    /// Finds an image that was imported, to use it. A reference without a tag means `latest`.
    ///
    /// # Errors
    /// [`LocalImageError::Unknown`] when there is none, [`LocalImageError::Reference`] when the
    /// reference is none, else the store is damaged.
    pub fn resolve(&self, reference: &str) -> Result<LocalImage, LocalImageError> {
        let reference = Reference::parse(reference)?;
        let record = self.references().join(reference.file_name());
        let image = self.read(&reference.to_string(), &record)?;
        note_use(&image.disk).map_err(io_error("find the disk", &image.disk))?;
        Ok(image)
    }

    /// Finds an image that was pulled, by its canonical reference, as in `docker.io/library/debian:12`, to use it.
    ///
    /// # Errors
    /// [`LocalImageError::Unknown`] when there is none, else the store is damaged.
    pub fn find_pulled(&self, canonical: &str) -> Result<LocalImage, LocalImageError> {
        let path = self.pulled_record(canonical);
        let unknown = || LocalImageError::Unknown {
            reference: canonical.to_owned(),
        };
        let record = record::read(&path)?.ok_or_else(unknown)?;
        let disk = self.disk(&record.digest);
        // It may be deleted now, and can be pulled again.
        match note_use(&disk) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(unknown()),
            noted => {
                noted.map_err(io_error("find the disk", &disk))?;
                Ok(self.image(canonical, record))
            }
        }
    }

    /// Every image, by reference: those that were imported, then those that were pulled.
    ///
    /// # Errors
    /// The store is damaged or unreadable.
    pub fn list(&self) -> Result<Vec<LocalImage>, LocalImageError> {
        let mut images = Vec::new();
        for name in file_names(&self.references())? {
            if let Some(reference) = Reference::from_file_name(&name) {
                let record = self.references().join(name);
                images.push(self.read(&reference.to_string(), &record)?);
            }
        }
        images.sort_by(|a, b| a.reference.cmp(&b.reference));
        let mut pulled = Vec::new();
        for path in self.pulled_records()? {
            if let Some(record) = record::read(&path)?
                && let Some(reference) = record.reference.clone()
            {
                pulled.push(self.image(&reference, record));
            }
        }
        pulled.sort_by(|a, b| a.reference.cmp(&b.reference));
        images.extend(pulled);
        Ok(images)
    }

    /// The disks that no imported image has and no build has used since `used_before`, by digest.
    ///
    /// # Errors
    /// The store is damaged or unreadable.
    pub fn idle_disks(&self, used_before: SystemTime) -> Result<Vec<IdleDisk>, LocalImageError> {
        let imported = self.imported_disks()?;
        let mut idle = Vec::new();
        for name in file_names(&self.disks())? {
            let path = self.disks().join(&name);
            let Some(hex) = name.strip_suffix(DISK_EXTENSION) else {
                continue;
            };
            let metadata = fs::metadata(&path).map_err(io_error("look at", &path))?;
            if imported.contains(&path) || !is_older(&metadata, used_before) {
                continue;
            }
            idle.push(IdleDisk {
                digest: format!("sha256:{hex}"),
                allocated: metadata.blocks() * 512,
                path,
            });
        }
        idle.sort_by(|a, b| a.digest.cmp(&b.digest));
        Ok(idle)
    }

    /// Deletes such a disk and all that names it. Whether anything lies over it is for the caller to know.
    /// Answers false when an import or a build has come to use it.
    ///
    /// # Errors
    /// The store is damaged, or the host cannot delete it.
    pub fn remove_idle(
        &self,
        disk: &IdleDisk,
        used_before: SystemTime,
    ) -> Result<bool, LocalImageError> {
        let _lock = self.lock()?;
        let path = &disk.path;
        if self.imported_disks()?.contains(path) {
            return Ok(false);
        }
        for record in self.pulled_records()? {
            if record::read(&record)?.is_some_and(|found| found.digest == disk.digest) {
                fs::remove_file(&record).map_err(io_error("delete", &record))?;
            }
        }
        // Whoever uses a disk says so before it looks whether the disk is there: here that is either seen, or the
        // disk is not found there.
        let aside = self.importing().join("idle");
        fs::rename(path, &aside).map_err(io_error("move away", path))?;
        let metadata = fs::metadata(&aside).map_err(io_error("look at", &aside))?;
        if !is_older(&metadata, used_before) {
            fs::rename(&aside, path).map_err(io_error("move back", path))?;
            return Ok(false);
        }
        fs::remove_file(&aside).map_err(io_error("delete", &aside))?;
        Ok(true)
    }

    fn imported_disks(&self) -> Result<Vec<PathBuf>, LocalImageError> {
        let mut disks = Vec::new();
        for name in file_names(&self.references())? {
            let record = record::read(&self.references().join(name))?;
            disks.extend(record.map(|record| self.disk(&record.digest)));
        }
        Ok(disks)
    }

    fn pulled_records(&self) -> Result<Vec<PathBuf>, LocalImageError> {
        let names = file_names(&self.pulled())?.into_iter();
        Ok(names.map(|name| self.pulled().join(name)).collect())
    }

    /// Makes an image from the tar of a root file system, packed or not; the reference is moved when it exists.
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
        let digest = content_digest(tar, disk_bytes).map_err(io_error("read", tar))?;
        let layer = LayerSource {
            path: tar.to_owned(),
            start: 0,
            len: u64::MAX,
        };
        let image = NewImage {
            digest,
            layers: vec![layer],
            diff_ids: None,
            config,
            disk_bytes,
        };
        self.add_imported(reference, image)
    }

    /// Makes an image and lets an imported reference name it.
    pub(crate) fn add_imported(
        &self,
        reference: &str,
        image: NewImage,
    ) -> Result<LocalImage, LocalImageError> {
        let reference = Reference::parse(reference)?;
        let path = self.references().join(reference.file_name());
        let record = Record::new(&image, None, None);
        self.add(&image, &[(path.clone(), record)])?;
        tracing::info!(reference = %reference, digest = image.digest, "local image imported");
        self.read(&reference.to_string(), &path)
    }

    /// Makes an image and lets references name it that a registry `resolved` to a digest.
    pub(crate) fn add_pulled(
        &self,
        references: &[String],
        resolved: &str,
        image: NewImage,
    ) -> Result<(), LocalImageError> {
        let records: Vec<_> = references
            .iter()
            .map(|reference| {
                let record = Record::new(&image, Some(reference), Some(resolved));
                (self.pulled_record(reference), record)
            })
            .collect();
        self.add(&image, &records)?;
        tracing::info!(
            reference = references.first(),
            digest = image.digest,
            "image pulled"
        );
        Ok(())
    }

    /// Lets a further pulled reference name an image that is here.
    pub(crate) fn name_pulled(
        &self,
        reference: &str,
        resolved: &str,
        image: &LocalImage,
    ) -> Result<(), LocalImageError> {
        let _lock = self.lock()?;
        let record = Record {
            reference: Some(reference.to_owned()),
            resolved: Some(resolved.to_owned()),
            digest: image.digest.clone(),
            created_ms: now_ms(),
            config: image.config.clone(),
        };
        fs::metadata(&image.disk).map_err(io_error("find the disk", &image.disk))?;
        self.write(&self.pulled_record(reference), &record)
    }

    /// Makes the disk when it is not there, and then lets the records name it.
    fn add(&self, image: &NewImage, records: &[(PathBuf, Record)]) -> Result<(), LocalImageError> {
        let _lock = self.lock()?;
        let disk = self.disk(&image.digest);
        match note_use(&disk) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                disk::make(image, &self.importing(), &disk)?;
            }
            // Idle until now, it would be deleted as soon as the lock is free.
            noted => noted.map_err(io_error("look for", &disk))?,
        }
        for (path, record) in records {
            self.write(path, record)?;
        }
        Ok(())
    }

    fn read(&self, reference: &str, path: &Path) -> Result<LocalImage, LocalImageError> {
        let record = record::read(path)?.ok_or_else(|| LocalImageError::Unknown {
            reference: reference.to_owned(),
        })?;
        let disk = self.disk(&record.digest);
        fs::metadata(&disk).map_err(io_error("find the disk", &disk))?;
        Ok(self.image(reference, record))
    }

    fn image(&self, reference: &str, record: Record) -> LocalImage {
        LocalImage {
            reference: reference.to_owned(),
            disk: self.disk(&record.digest),
            digest: record.digest,
            config: record.config,
            created_ms: record.created_ms,
            origin: match record.resolved {
                Some(resolved) => Origin::Pulled { resolved },
                None => Origin::Imported,
            },
        }
    }

    fn write(&self, path: &Path, record: &Record) -> Result<(), LocalImageError> {
        record::write(path, &self.importing().join("record"), record)
    }

    fn lock(&self) -> Result<File, LocalImageError> {
        let path = self.root.join("lock");
        let lock = || {
            let file = File::create(&path)?;
            rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
            Ok(file)
        };
        lock().map_err(io_error("lock", &path))
    }

    fn references(&self) -> PathBuf {
        self.root.join("references")
    }

    fn pulled(&self) -> PathBuf {
        self.root.join("pulled")
    }

    fn pulled_record(&self, canonical: &str) -> PathBuf {
        let hex = crate::digest::Digest::of(canonical.as_bytes()).hex();
        self.pulled().join(format!("{hex}.json"))
    }

    fn disks(&self) -> PathBuf {
        self.root.join("disks")
    }

    fn importing(&self) -> PathBuf {
        self.root.join("importing")
    }

    /// Where layers are fetched to.
    pub(crate) fn pulling(&self) -> PathBuf {
        self.root.join("pulling")
    }

    /// Where the disk of this digest is. A record that was tampered with names no path but this.
    fn disk(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let hex: String = hex.chars().filter(char::is_ascii_alphanumeric).collect();
        self.disks().join(format!("{hex}{DISK_EXTENSION}"))
    }
}

const DISK_EXTENSION: &str = ".raw";

/// Marks a disk as used now, by its time of modification, and then looks whether it is there.
fn note_use(disk: &Path) -> io::Result<()> {
    File::open(disk)?.set_modified(SystemTime::now())?;
    fs::metadata(disk).map(drop)
}

fn is_older(metadata: &fs::Metadata, than: SystemTime) -> bool {
    metadata.modified().is_ok_and(|modified| modified < than)
}

fn file_names(folder: &Path) -> Result<Vec<String>, LocalImageError> {
    let failed = io_error("list the folder", folder);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(&failed)? {
        let name = entry.map_err(&failed)?.file_name();
        names.extend(name.into_string().ok());
    }
    Ok(names)
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
