//! The images that a Dockerfile begins from or copies from, found before anything is built.

use super::{BuildError, BuildLog};
use dormouse_image::{BaseImages, BaseReference, DockerfileError, ImageConfig};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// An image, ready to be built on.
#[derive(Debug, Clone)]
pub(super) struct Base {
    /// Its root disk, never written again: raw, or qcow2 when its name says so.
    pub(super) disk: PathBuf,
    /// Equal digests mean equal disks.
    pub(super) digest: String,
    /// How its process starts.
    pub(super) config: ImageConfig,
}

/// Finds every image of `references`, pulling what is not on this host; the answer is by reference, as written.
pub(super) async fn resolve(
    images: &BaseImages,
    references: Vec<BaseReference>,
    log: &BuildLog,
) -> Result<BTreeMap<String, Base>, BuildError> {
    let mut bases = BTreeMap::new();
    for BaseReference { reference, line } in references {
        let found = images
            .resolve(&reference, &|text: &str| log.line(text))
            .await;
        let image = found.map_err(|source| DockerfileError::Base {
            line,
            reference: reference.clone(),
            source: Box::new(source),
        })?;
        let base = Base {
            disk: image.disk,
            digest: image.digest,
            config: image.config,
        };
        bases.insert(reference, base);
    }
    Ok(bases)
}
