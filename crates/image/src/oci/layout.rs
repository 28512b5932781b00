//! Images in files: `docker save` archives and OCI layouts, as a folder or a tar.
//!
//! An archive is read where it lies: what it holds is listed once, and each part is then a piece of the file. A packed
//! one is unpacked first, to a folder of ours. No name in it becomes a path on this host.

use super::document::{Configuration, Document, DocumentError, Manifest};
use super::reference::ImageRef;
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::local::{LocalImage, LocalImageError, LocalImages, NewImage, Scratch};
use crate::rootfs::{LayerSource, Member, Members, members};
use dormouse_core::limits;
use serde::Deserialize;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Why a file was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A document in it cannot be used.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// It speaks of what it does not have.
    #[error("the archive has no `{0}`")]
    Missing(String),
    /// It holds several images, and none is the one that is asked for.
    #[error("the archive holds several images ({0}): give --name one of them")]
    Several(String),
    /// A document in it is not what its digest says.
    #[error("the archive has {found} in place of {expected}")]
    Digest {
        /// What should be there.
        expected: Digest,
        /// What is there.
        found: Digest,
    },
    /// The image does not become a disk.
    #[error(transparent)]
    Store(#[from] LocalImageError),
    /// The host failed.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Makes a base image of whatever `path` is: an OCI layout, a `docker save` archive, or the tar of a root file system.
/// Blocking; needs root.
///
/// # Errors
/// See [`ImportError`]; the store is then as it was.
pub fn import(
    store: &LocalImages,
    reference: &str,
    path: &Path,
    disk_bytes: u64,
) -> Result<LocalImage, ImportError> {
    let read = |source| ImportError::Read {
        path: path.to_owned(),
        source,
    };
    if std::fs::metadata(path).map_err(read)?.is_dir() {
        return import_parts(
            store,
            reference,
            &Parts::Folder(path.to_owned()),
            disk_bytes,
        );
    }
    let Some(found) = members(path).map_err(read)? else {
        let config = ImageConfig::bare();
        return Ok(store.import_rootfs_tar(reference, path, config, disk_bytes)?);
    };
    if !found.packed {
        let parts = Parts::Archive(path.to_owned(), found.members);
        return import_parts(store, reference, &parts, disk_bytes);
    }
    let scratch = Scratch::make(store, &uuid::Uuid::new_v4().to_string())?;
    let plain = scratch.path().join("archive");
    crate::rootfs::unpack_file(path, &plain, limits::REGISTRY_IMAGE_BYTES_MAX).map_err(read)?;
    let found = members(&plain).map_err(read)?;
    let found = found.ok_or_else(|| ImportError::Missing(MANIFEST.to_owned()))?;
    import_parts(
        store,
        reference,
        &Parts::Archive(plain, found.members),
        disk_bytes,
    )
}

const MANIFEST: &str = "manifest.json";
const INDEX: &str = "index.json";
/// Where an index says what an image is called.
const NAME: &str = "org.opencontainers.image.ref.name";
const FULL_NAME: &str = "io.containerd.image.name";

/// The named parts of an archive.
enum Parts {
    Folder(PathBuf),
    Archive(PathBuf, Members),
}

impl Parts {
    fn find(&self, name: &str) -> Result<LayerSource, ImportError> {
        let missing =
            || ImportError::Missing(name.chars().filter(|c| !c.is_control()).take(200).collect());
        match self {
            Self::Folder(root) => {
                // Names come from documents in the folder: digests and our own constants, nothing else.
                let path = root.join(name);
                let metadata = std::fs::symlink_metadata(&path).map_err(|_| missing())?;
                let start = 0;
                metadata
                    .is_file()
                    .then_some(LayerSource {
                        start,
                        len: metadata.len(),
                        path,
                    })
                    .ok_or_else(missing)
            }
            Self::Archive(path, members) => {
                let mut name = name.to_owned();
                // Older archives have a layer once, and links to it.
                for _ in 0..limits::ROOTFS_LINKS_MAX {
                    match members.get(&name).ok_or_else(missing)? {
                        Member::File { start, len } => {
                            let (path, start, len) = (path.clone(), *start, *len);
                            return Ok(LayerSource { path, start, len });
                        }
                        Member::Link(target) => name = target.clone(),
                    }
                }
                Err(missing())
            }
        }
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, ImportError> {
        let part = self.find(name)?;
        let failed = |source| ImportError::Read {
            path: part.path.clone(),
            source,
        };
        let limit = limits::REGISTRY_DOCUMENT_BYTES_MAX as u64;
        if part.len > limit {
            let what = "bytes in a document";
            return Err(DocumentError::TooLarge { limit, what }.into());
        }
        let mut file = File::open(&part.path).map_err(failed)?;
        file.seek(SeekFrom::Start(part.start)).map_err(failed)?;
        let mut content = Vec::new();
        file.take(part.len)
            .read_to_end(&mut content)
            .map_err(failed)?;
        Ok(content)
    }

    fn read_blob(&self, expected: Digest) -> Result<Vec<u8>, ImportError> {
        let content = self.read(&blob_name(expected))?;
        let found = Digest::of(&content);
        match found == expected {
            true => Ok(content),
            false => Err(ImportError::Digest { expected, found }),
        }
    }
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A newer `docker save` writes both forms; the OCI one has the digests of a registry.
fn import_parts(
    store: &LocalImages,
    reference: &str,
    parts: &Parts,
    disk_bytes: u64,
) -> Result<LocalImage, ImportError> {
    let image = match parts.find(INDEX) {
        Ok(_) => of_layout(parts, reference, disk_bytes)?,
        Err(_) => of_docker(parts, reference, disk_bytes)?,
    };
    Ok(store.add_imported(reference, image)?)
}

fn of_layout(parts: &Parts, reference: &str, disk_bytes: u64) -> Result<NewImage, ImportError> {
    let Document::Index(index) = Document::parse(&parts.read(INDEX)?)? else {
        return Err(DocumentError::Unsupported("layouts without an index").into());
    };
    let names: Vec<Vec<&str>> = index
        .manifests
        .iter()
        .map(|image| {
            let notes = image.annotations.iter().flatten();
            notes
                .filter(|(key, _)| [NAME, FULL_NAME].contains(&key.as_str()))
                .map(|(_, name)| name.as_str())
                .collect()
        })
        .collect();
    let chosen = match index.of_this_host() {
        Ok(image) if index.manifests.len() > 1 && names.iter().all(Vec::is_empty) => image,
        _ => &index.manifests[choose(&names, reference)?],
    };
    let mut digest = chosen.digest;
    let mut document = Document::parse(&parts.read_blob(digest)?)?;
    if let Document::Index(index) = &document {
        digest = index.of_this_host()?.digest;
        document = Document::parse(&parts.read_blob(digest)?)?;
    }
    let Document::Manifest(Manifest { config, layers }) = document else {
        return Err(DocumentError::Unsupported("indexes of indexes").into());
    };
    let config = Configuration::parse(&parts.read_blob(config.digest)?)?;
    let layers = layers
        .iter()
        .map(|layer| parts.find(&blob_name(layer.digest)));
    Ok(NewImage {
        digest: digest.to_string(),
        layers: layers.collect::<Result<_, _>>()?,
        diff_ids: Some(config.diff_ids),
        config: config.config,
        disk_bytes,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn of_docker(parts: &Parts, reference: &str, disk_bytes: u64) -> Result<NewImage, ImportError> {
    let text = parts.read(MANIFEST)?;
    let saved: Vec<Saved> =
        serde_json::from_slice(&text).map_err(|error| DocumentError::Damaged {
            what: "archive's manifest.json",
            problem: error.to_string(),
        })?;
    let tags = saved.iter().map(|image| {
        image
            .repo_tags
            .iter()
            .flatten()
            .map(String::as_str)
            .collect()
    });
    let image = &saved[choose(&tags.collect::<Vec<_>>(), reference)?];
    if image.layers.len() > limits::REGISTRY_LAYERS_MAX {
        let limit = limits::REGISTRY_LAYERS_MAX as u64;
        return Err(DocumentError::TooLarge {
            limit,
            what: "layers",
        }
        .into());
    }
    let bytes = parts.read(&image.config)?;
    let config = Configuration::parse(&bytes)?;
    let layers = image.layers.iter().map(|name| parts.find(name));
    Ok(NewImage {
        // Docker's own identifier of an image: its configuration has the digest of each layer's content.
        digest: Digest::of(&bytes).to_string(),
        layers: layers.collect::<Result<_, _>>()?,
        diff_ids: Some(config.diff_ids),
        config: config.config,
        disk_bytes,
    })
}

/// Which of several images is meant: the only one, or the one of this name.
fn choose(images: &[Vec<&str>], reference: &str) -> Result<usize, ImportError> {
    if images.len() == 1 {
        return Ok(0);
    }
    let wanted = ImageRef::parse(reference).ok();
    let named = |names: &Vec<&str>| {
        names.iter().any(|name| {
            *name == reference || (wanted.is_some() && ImageRef::parse(name).ok() == wanted)
        })
    };
    images.iter().position(named).ok_or_else(|| {
        let all: Vec<_> = images.iter().flatten().take(20).copied().collect();
        ImportError::Several(
            all.join(", ")
                .chars()
                .filter(|c| !c.is_control())
                .take(1000)
                .collect(),
        )
    })
}
