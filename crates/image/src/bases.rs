//! Finds the image that a Dockerfile begins from: on this host, by an alias, or in a registry.

use crate::local::{LocalImage, LocalImageError, LocalImages, Origin};
use crate::oci::{ImageRef, Progress, PullError, ReferenceError, Registry};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where base images come from.
#[derive(Debug, Clone)]
pub struct BaseImages {
    store: LocalImages,
    registry: Arc<Registry>,
    aliases: Arc<Aliases>,
    disk_bytes: u64,
}

/// Images that stand in for others. Keys are canonical references, as [`ImageRef`] prints them.
#[derive(Debug, Clone, Default)]
pub struct Aliases {
    /// Taken without asking a registry.
    pub always: BTreeMap<String, String>,
    /// Taken when the registry is out of reach.
    pub fallbacks: BTreeMap<String, String>,
}

/// Why there is no such base image.
#[derive(Debug, thiserror::Error)]
pub enum BaseImageError {
    /// The reference is none.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The local store does not have it, and no registry can.
    #[error(transparent)]
    Local(#[from] LocalImageError),
    /// It could not be pulled.
    #[error("cannot pull {reference}")]
    Pull {
        /// Its full name.
        reference: String,
        /// Why.
        #[source]
        source: PullError,
    },
    /// The daemon is stopping.
    #[error("the daemon stopped while it looked for an image")]
    Stopped,
}

impl BaseImages {
    /// Images of `store`, and those that `registry` has; new disks are of `disk_bytes`.
    #[must_use]
    pub fn new(store: LocalImages, registry: Registry, aliases: Aliases, disk_bytes: u64) -> Self {
        Self {
            store,
            registry: Arc::new(registry),
            aliases: Arc::new(aliases),
            disk_bytes,
        }
    }

    /// The store of this host.
    #[must_use]
    pub fn store(&self) -> &LocalImages {
        &self.store
    }

    /// Finds an image, and tells of a pull, an alias or a stale copy in `progress`.
    ///
    /// # Errors
    /// See [`BaseImageError`].
    pub async fn resolve(
        &self,
        reference: &str,
        progress: &dyn Progress,
    ) -> Result<LocalImage, BaseImageError> {
        let wanted = ImageRef::parse(reference)?;
        if let Some(image) = self.imported(&wanted).await? {
            return Ok(image);
        }
        // What is pinned by its digest is that image and no other.
        let alias = |map: &BTreeMap<String, String>| match wanted.digest() {
            None => map.get(&wanted.to_string()).cloned(),
            Some(_) => None,
        };
        if let Some(target) = alias(&self.aliases.always) {
            progress.line(&format!("{reference} is an alias of {target} on this host"));
            return self.without_aliases(&target, progress).await;
        }
        match self.pull(&wanted, progress).await {
            Err(BaseImageError::Pull { source, .. }) if source.is_unreachable() => {
                if let Some(copy) = self.pulled_before(&wanted).await? {
                    let digest = &copy.digest;
                    progress.line(&format!(
                        "{source}: using the copy of {wanted} that was pulled before ({digest})"
                    ));
                    return Ok(copy);
                }
                if let Some(target) = alias(&self.aliases.fallbacks) {
                    progress.line(&format!(
                        "{source}: using {target} in place of {reference} (registry.fallbacks)"
                    ));
                    return self.without_aliases(&target, progress).await;
                }
                let reference = wanted.to_string();
                Err(BaseImageError::Pull { reference, source })
            }
            result => result,
        }
    }

    async fn without_aliases(
        &self,
        target: &str,
        progress: &dyn Progress,
    ) -> Result<LocalImage, BaseImageError> {
        let target = ImageRef::parse(target)?;
        match self.imported(&target).await? {
            Some(image) => Ok(image),
            None => self.pull(&target, progress).await,
        }
    }

    async fn pull(
        &self,
        wanted: &ImageRef,
        progress: &dyn Progress,
    ) -> Result<LocalImage, BaseImageError> {
        if wanted.is_of_this_host() {
            let reference = wanted.to_string();
            return Err(LocalImageError::Unknown { reference }.into());
        }
        let pulled = self
            .registry
            .pull(&self.store, wanted, self.disk_bytes, progress);
        pulled.await.map_err(|source| BaseImageError::Pull {
            reference: wanted.to_string(),
            source,
        })
    }

    /// An image that was imported under any of the names that mean it.
    async fn imported(&self, wanted: &ImageRef) -> Result<Option<LocalImage>, BaseImageError> {
        if wanted.digest().is_some() {
            return Ok(None);
        }
        let (store, spellings) = (self.store.clone(), wanted.spellings());
        blocking(move || {
            for spelling in spellings {
                match store.resolve(&spelling) {
                    // Names that a registry may have are not all names that the store may have.
                    Err(LocalImageError::Unknown { .. } | LocalImageError::Reference { .. }) => {}
                    other => return other.map(Some),
                }
            }
            Ok(None)
        })
        .await
    }

    async fn pulled_before(&self, wanted: &ImageRef) -> Result<Option<LocalImage>, BaseImageError> {
        let (store, canonical) = (self.store.clone(), wanted.to_string());
        blocking(move || match store.find_pulled(&canonical) {
            Ok(image) => Ok(matches!(image.origin, Origin::Pulled { .. }).then_some(image)),
            Err(LocalImageError::Unknown { .. }) => Ok(None),
            Err(error) => Err(error),
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LocalImageError> + Send + 'static,
) -> Result<T, BaseImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(BaseImageError::Stopped),
    }
}
