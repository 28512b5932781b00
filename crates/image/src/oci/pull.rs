//! Pulls an image of a registry into the local store.
//!
//! Whoever wants an image that another is fetching waits for it; who comes after a failure tries by himself.

use super::RegistryConfig;
use super::credentials::{CredentialsError, Identity};
use super::document::{Configuration, Document, DocumentError, Manifest};
use super::endpoint::{Endpoint, endpoints};
use super::fetch::{self, Source};
use super::http::{Http, HttpError};
use super::progress::{LayerProgress, Progress, mebibytes};
use super::reference::ImageRef;
use super::token::Tokens;
use crate::digest::Digest;
use crate::local::{LocalImage, LocalImageError, LocalImages, NewImage, Origin, Scratch};
use crate::rootfs::LayerSource;
use dormouse_core::limits;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt};
use reqwest::StatusCode;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Instant;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Why an image was not pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// A request came to nothing.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// There is no such image.
    #[error("{server} has no `{reference}`")]
    NotFound {
        /// The registry.
        server: String,
        /// The image.
        reference: String,
    },
    /// The registry, or its token server, does not let us.
    #[error(
        "{server} denies access: the image is private or does not exist, or the credentials are wrong"
    )]
    Denied {
        /// The registry.
        server: String,
    },
    /// The registry answers what no registry should.
    #[error("{server} answers {status}{said}")]
    Refused {
        /// The registry.
        server: String,
        /// Its answer.
        status: StatusCode,
        /// What it says of it, with a colon in front; may be empty.
        said: String,
    },
    /// What came is not what was asked for.
    #[error("{server} has {found} in place of {expected}")]
    Digest {
        /// The registry.
        server: String,
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// Content is shorter or longer than its manifest says.
    #[error("{server} has {found} bytes of {digest}, which has {expected}")]
    Length {
        /// The registry.
        server: String,
        /// The content.
        digest: Digest,
        /// By the manifest.
        expected: u64,
        /// What came, or where it was given up.
        found: u64,
    },
    /// A document cannot be used.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// Our credentials cannot be read.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The image does not become a disk.
    #[error(transparent)]
    Store(#[from] LocalImageError),
    /// The host failed.
    #[error("cannot {action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// It takes too long.
    #[error("the image did not come within {} s", limits::REGISTRY_PULL_TIMEOUT.as_secs())]
    TimedOut,
    /// The daemon is stopping.
    #[error("the daemon stopped during the pull")]
    Stopped,
}

impl PullError {
    /// Whether the registry is out of reach, so that a copy or another image may stand in for it.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Http(HttpError::Unreachable { .. } | HttpError::Busy { .. }) | Self::TimedOut => {
                true
            }
            // What proxies say of a server that they do not let anybody reach.
            Self::Refused { status, .. } => {
                status.is_server_error() || *status == StatusCode::PROXY_AUTHENTICATION_REQUIRED
            }
            _ => false,
        }
    }

    /// Whether another server of the same image may do better.
    fn is_servers(&self) -> bool {
        !matches!(
            self,
            Self::Document(_) | Self::Store(_) | Self::Io { .. } | Self::TimedOut | Self::Stopped
        )
    }
}

/// The way to all registries.
#[derive(Debug)]
pub struct Registry {
    config: RegistryConfig,
    /// Made at the first pull: it reads the system's authorities.
    http: OnceLock<Http>,
    tokens: Tokens,
    /// One permit for each image that is being pulled.
    turns: Mutex<HashMap<Digest, Weak<Semaphore>>>,
    at_once: Arc<Semaphore>,
}

/// An image that a registry has.
struct Found {
    /// What the reference stands for: the manifest or an index above it.
    resolved: Digest,
    digest: Digest,
    manifest: Manifest,
}

impl Registry {
    /// Reaches nothing yet.
    #[must_use]
    pub fn new(config: RegistryConfig) -> Self {
        Self {
            config,
            http: OnceLock::new(),
            tokens: Tokens::default(),
            turns: Mutex::default(),
            at_once: Arc::new(Semaphore::new(limits::REGISTRY_PULLS_AT_ONCE)),
        }
    }

    /// Makes sure that the store has the image, and that a tag is the one that the registry has now.
    ///
    /// # Errors
    /// See [`PullError`]; the store is then as it was.
    pub async fn pull(
        &self,
        store: &LocalImages,
        reference: &ImageRef,
        disk_bytes: u64,
        progress: &dyn Progress,
    ) -> Result<LocalImage, PullError> {
        let pulled = self.pull_in_time(store, reference, disk_bytes, progress);
        let pulled = tokio::time::timeout(limits::REGISTRY_PULL_TIMEOUT, pulled).await;
        pulled.unwrap_or(Err(PullError::TimedOut))
    }

    async fn pull_in_time(
        &self,
        store: &LocalImages,
        reference: &ImageRef,
        disk_bytes: u64,
        progress: &dyn Progress,
    ) -> Result<LocalImage, PullError> {
        let known = find(store, reference.to_string()).await?;
        if let Some(known) = &known
            && reference.digest().is_some()
        {
            return Ok(known.clone());
        }
        let sources = self.sources(reference, progress).await?;
        if let Some(known) = known
            && self.is_current(&sources, reference, &known).await
        {
            return Ok(known);
        }
        let (first, found) = self.resolve(&sources, reference).await?;
        let _turn = self.turn(found.digest, progress).await?;
        if let Some(image) = find(store, reference.pinned(found.digest).to_string()).await? {
            return name(store, reference, &found, image).await;
        }
        let sources = &sources[first..];
        let config = self.configuration(sources, reference, &found).await?;
        let scratch = self
            .fetch_layers(store, sources, reference, &found, progress)
            .await?;
        self.unpack(
            store, reference, &found, config, scratch, disk_bytes, progress,
        )
        .await
    }

    /// The servers to ask, with who we are there.
    async fn sources<'a>(
        &'a self,
        reference: &ImageRef,
        progress: &'a dyn Progress,
    ) -> Result<Vec<Source<'a>>, PullError> {
        let (config, wanted) = (self.config.clone(), reference.clone());
        let http_missing = self.http.get().is_none();
        type Identities = Vec<(Endpoint, Identity)>;
        let (http, identities) = blocking(move || {
            let http = http_missing.then(|| Http::new(&config)).transpose()?;
            let identities = endpoints(&config, &wanted)
                .into_iter()
                .map(|endpoint| Ok((config.identity(&endpoint.account)?, endpoint)))
                .map(|found: Result<_, CredentialsError>| {
                    found.map(|(identity, endpoint)| (endpoint, identity))
                })
                .collect::<Result<Identities, _>>()?;
            Ok((http, identities))
        })
        .await?;
        if let Some(http) = http {
            // Another pull may have been faster; one is as good as the other.
            let _ = self.http.set(http);
        }
        let http = self.http.get().ok_or(PullError::Stopped)?;
        let source = |(endpoint, identity)| Source {
            http,
            tokens: &self.tokens,
            endpoint,
            identity,
            progress,
        };
        Ok(identities.into_iter().map(source).collect())
    }

    /// Whether a tag still stands for what we have. Costs nothing of what registries count.
    async fn is_current(
        &self,
        sources: &[Source<'_>],
        reference: &ImageRef,
        known: &LocalImage,
    ) -> bool {
        let Origin::Pulled { resolved } = &known.origin else {
            return false;
        };
        for source in sources {
            if let Ok(Some(digest)) = source.digest_of(reference).await {
                return digest.to_string() == *resolved;
            }
        }
        false
    }

    /// The manifest for this host, from the first server that has it.
    async fn resolve(
        &self,
        sources: &[Source<'_>],
        reference: &ImageRef,
    ) -> Result<(usize, Found), PullError> {
        let mut last = PullError::Stopped;
        for (index, source) in sources.iter().enumerate() {
            match resolve_at(source, reference).await {
                Ok(found) => return Ok((index, found)),
                Err(error) if error.is_servers() && index + 1 < sources.len() => {
                    source.tell_next(&error);
                    last = error;
                }
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    async fn configuration(
        &self,
        sources: &[Source<'_>],
        reference: &ImageRef,
        found: &Found,
    ) -> Result<Configuration, PullError> {
        let descriptor = &found.manifest.config;
        for (index, source) in sources.iter().enumerate() {
            match source.document(reference.repository(), descriptor).await {
                Ok(bytes) => return Ok(Configuration::parse(&bytes)?),
                Err(error) if error.is_servers() && index + 1 < sources.len() => {
                    source.tell_next(&error)
                }
                Err(error) => return Err(error),
            }
        }
        Err(PullError::Stopped)
    }

    async fn fetch_layers(
        &self,
        store: &LocalImages,
        sources: &[Source<'_>],
        reference: &ImageRef,
        found: &Found,
        progress: &dyn Progress,
    ) -> Result<Scratch, PullError> {
        let layers = &found.manifest.layers;
        let size = mebibytes(found.manifest.bytes());
        progress.line(&format!(
            "pulling {reference} ({}): {} layers, {size} MiB",
            found.digest,
            layers.len()
        ));
        let (in_store, folder) = (store.clone(), uuid::Uuid::new_v4().to_string());
        let scratch = blocking(move || Ok(Scratch::make(&in_store, &folder)?)).await?;
        let mut fetches: Vec<BoxFuture<'_, Result<(), PullError>>> = Vec::new();
        for (index, layer) in layers.iter().enumerate() {
            let path = layer_path(&scratch, index);
            let told = LayerProgress::new(progress, index + 1, layers.len(), layer.size);
            let repository = reference.repository();
            fetches.push(Box::pin(fetch::layer(
                sources, repository, layer, path, told,
            )));
        }
        futures_util::stream::iter(fetches)
            .buffer_unordered(limits::REGISTRY_FETCHES_AT_ONCE)
            .try_collect::<()>()
            .await?;
        Ok(scratch)
    }

    #[expect(clippy::too_many_arguments, reason = "each is one part of an image")]
    async fn unpack(
        &self,
        store: &LocalImages,
        reference: &ImageRef,
        found: &Found,
        config: Configuration,
        scratch: Scratch,
        disk_bytes: u64,
        progress: &dyn Progress,
    ) -> Result<LocalImage, PullError> {
        let began = Instant::now();
        progress.line("unpacking");
        let layers = found
            .manifest
            .layers
            .iter()
            .enumerate()
            .map(|(index, layer)| LayerSource {
                path: layer_path(&scratch, index),
                start: 0,
                len: layer.size,
            });
        let image = NewImage {
            digest: found.digest.to_string(),
            layers: layers.collect(),
            diff_ids: Some(config.diff_ids),
            config: config.config,
            disk_bytes,
        };
        let mut names = vec![reference.to_string()];
        for digest in [found.resolved, found.digest] {
            let pinned = reference.pinned(digest).to_string();
            if !names.contains(&pinned) {
                names.push(pinned);
            }
        }
        let (store, resolved) = (store.clone(), found.resolved.to_string());
        let image = blocking(move || {
            // The layers stay until they are read, even when nobody waits for it any more.
            let _scratch = scratch;
            store.add_pulled(&names, &resolved, image)?;
            Ok(store.find_pulled(&names[0])?)
        })
        .await?;
        progress.line(&format!(
            "unpacked in {:.1} s",
            began.elapsed().as_secs_f64()
        ));
        Ok(image)
    }

    /// The right to pull an image: one at a time has it, and so many at once for all images.
    async fn turn(
        &self,
        digest: Digest,
        progress: &dyn Progress,
    ) -> Result<(OwnedSemaphorePermit, OwnedSemaphorePermit, Arc<Semaphore>), PullError> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            match turns.get(&digest).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    let turn = Arc::new(Semaphore::new(1));
                    turns.insert(digest, Arc::downgrade(&turn));
                    turn
                }
            }
        };
        if turn.available_permits() == 0 {
            progress.line(&format!("{digest} is being pulled already; waiting"));
        }
        let own = Arc::clone(&turn)
            .acquire_owned()
            .await
            .map_err(|_| PullError::Stopped)?;
        let place = Arc::clone(&self.at_once)
            .acquire_owned()
            .await
            .map_err(|_| PullError::Stopped)?;
        Ok((own, place, turn))
    }
}

async fn resolve_at(source: &Source<'_>, reference: &ImageRef) -> Result<Found, PullError> {
    let (resolved, bytes) = source.manifest(reference).await?;
    let (digest, document) = match Document::parse(&bytes)? {
        Document::Index(index) => {
            let chosen = index.of_this_host()?.digest;
            let (digest, bytes) = source.manifest(&reference.pinned(chosen)).await?;
            (digest, Document::parse(&bytes)?)
        }
        manifest @ Document::Manifest(_) => (resolved, manifest),
    };
    match document {
        Document::Manifest(manifest) => Ok(Found {
            resolved,
            digest,
            manifest,
        }),
        Document::Index(_) => Err(DocumentError::Unsupported("indexes of indexes").into()),
    }
}

async fn find(store: &LocalImages, canonical: String) -> Result<Option<LocalImage>, PullError> {
    let store = store.clone();
    blocking(move || match store.find_pulled(&canonical) {
        Ok(image) => Ok(Some(image)),
        Err(LocalImageError::Unknown { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    })
    .await
}

/// Lets the reference name an image that is here by its digest.
async fn name(
    store: &LocalImages,
    reference: &ImageRef,
    found: &Found,
    image: LocalImage,
) -> Result<LocalImage, PullError> {
    let (store, canonical, resolved) = (
        store.clone(),
        reference.to_string(),
        found.resolved.to_string(),
    );
    blocking(move || {
        store.name_pulled(&canonical, &resolved, &image)?;
        Ok(store.find_pulled(&canonical)?)
    })
    .await
}

fn layer_path(scratch: &Scratch, index: usize) -> PathBuf {
    scratch.path().join(format!("layer-{index}"))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PullError> + Send + 'static,
) -> Result<T, PullError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(PullError::Stopped),
    }
}
