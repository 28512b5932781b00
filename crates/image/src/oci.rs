//! Images of OCI and Docker registries.
//!
//! ```text
//! reference ──registry──▶ index ──document──▶ manifest ──▶ configuration, layers ──pull──▶ local store
//! ```
//! The client is our own, on reqwest: the one that is there, `oci-client`, reads manifests and tokens of any length
//! into memory, panics on a token that is no header value, and sends credentials wherever a registry points it.
//!
//! Of a registry nothing is believed: documents and layers are bounded and checked against their digests, a token
//! server is asked only over TLS or where plain HTTP is allowed, a redirect never leads from TLS to plain HTTP, and
//! none of them leads to this host or a private network that the configuration does not name.

mod challenge;
mod credentials;
mod document;
mod endpoint;
mod fetch;
mod http;
mod layout;
mod progress;
mod pull;
mod reach;
pub(crate) mod reference;
mod token;

pub use credentials::{Credentials, CredentialsError};
pub use document::DocumentError;
pub use endpoint::{Mirror, MirrorError, is_registry_host};
pub use http::HttpError;
pub use layout::{ImportError, import};
pub use progress::Progress;
pub use pull::{PullError, Registry};
pub use reference::{ImageRef, ReferenceError};

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// How registries are reached.
#[derive(Debug, Clone, Default)]
pub struct RegistryConfig {
    /// Tried in order before the registry of this host name, as in `docker.io`.
    pub mirrors: BTreeMap<String, Vec<Mirror>>,
    /// Hosts, with their port where they have one, that are spoken to over plain HTTP. Loopback always is.
    pub plain_http: BTreeSet<String>,
    /// Hosts, with their port where they have one, that may have addresses of this host or of a private network, as
    /// those may that are named elsewhere here.
    pub private: BTreeSet<String>,
    /// Who we are at a registry, by its host name.
    pub credentials: BTreeMap<String, Credentials>,
    /// A `config.json` as `docker login` writes it, for registries without credentials above.
    pub docker_config: Option<PathBuf>,
    /// PEM file of authorities that are trusted besides the system's.
    pub extra_ca_file: Option<PathBuf>,
}
