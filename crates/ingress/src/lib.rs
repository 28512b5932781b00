//! The data plane: the TLS proxy that stands in front of every MicroVM endpoint.
//!
//! A request passes four phases. *Admit* (`request`) is pure: which endpoint does the host name
//! name, does the token open it, does the grant cover the port. *Open* asks [`Upstreams`] for a byte
//! tunnel to that port, which wakes a sleeping MicroVM and holds the request until then. *Exchange*
//! (`upstream`) speaks HTTP over the tunnel. *Copy* streams both bodies, in constant memory.
//!
//! ```text
//! listen -> proxy -> request::admit -> Upstreams::open -> upstream::exchange -> copy
//!                        |                  |                    |
//!                        +------ Refusal ---+--------------------+--> 4xx, 502
//! ```
//!
//! The crate knows neither the store nor the VMM: it sees MicroVMs only through [`Upstreams`].

mod acme;
mod authority;
mod certificate;
mod chain;
mod file;
mod headers;
mod listen;
mod names;
mod proxy;
mod refusal;
mod request;
mod request_body;
mod resolver;
mod tasks;
mod token;
mod token_keys;
mod tunnel;
mod upstream;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dormouse_core::{EndpointId, limits};
use tokio::io::{AsyncRead, AsyncWrite};

pub use acme::{Acme, AcmeConfig, Challenges};
pub use authority::{Authority, AuthorityError};
pub use certificate::{CertificateError, CertificateFiles, Followed};
pub use listen::{serve, serve_plain};
pub use names::{Domains, Names};
pub use resolver::{Certificates, Given};
pub use token::{Claims, PortRange, TokenError, TokenKind};
pub use token_keys::{TokenKeys, TokenKeysError};

/// A raw byte tunnel to one port inside a MicroVM.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Where requests go: the one seam between the proxy and the MicroVMs.
#[async_trait]
pub trait Upstreams: Send + Sync + 'static {
    /// Opens a tunnel to `127.0.0.1:port` inside the MicroVM behind `endpoint`.
    ///
    /// A sleeping MicroVM is woken first, once for all that wait, and the call lasts until it is
    /// awake. While the stream lives the MicroVM has a request in flight, and each byte that
    /// crosses the stream, either way, sets its idle clock back. The end of the tunnel is an end of
    /// file only where the app itself closed its side; a MicroVM that dies or a tunnel that breaks
    /// is a read error, so that half a response is never taken for a whole one.
    ///
    /// Dropping the future gives up the wait; dropping the stream closes the tunnel.
    async fn open(&self, endpoint: &EndpointId, port: u16) -> Result<Box<dyn Stream>, OpenError>;
}

/// Why there is no tunnel. The client sees 502 for all but [`OpenError::Overloaded`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The MicroVM has ended, or there is none behind this endpoint.
    #[error("the MicroVM has ended")]
    Ended,
    /// The MicroVM sleeps and its policy does not let a request wake it.
    #[error("the MicroVM is suspended and does not resume by itself")]
    Asleep,
    /// The MicroVM did not wake, or not in time.
    #[error("the MicroVM did not resume")]
    WakeFailed,
    /// Nothing listens on the port.
    #[error("nothing listens on the port")]
    NotListening,
    /// Too many requests wait already.
    #[error("too many requests wait for the MicroVM")]
    Overloaded,
}

/// What an [`Ingress`] can be told; [`Config::new`] fills in the limits of the product.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where each MicroVM has its name: `<endpoint id>.<suffix>`, or a custom domain.
    pub names: Names,
    /// A client must finish its TLS handshake within this.
    pub handshake_timeout: Duration,
    /// A client must finish sending a request's head within this. An idle HTTP/1 connection is
    /// closed after it as well.
    pub head_timeout: Duration,
    /// Most client connections at once; those beyond it wait in the kernel's queue.
    pub connections_max: usize,
    /// How long a graceful stop waits for requests in flight.
    pub drain_timeout: Duration,
}

impl Config {
    /// The product's own limits, for the endpoints below `suffix`.
    #[must_use]
    pub fn new(suffix: &str) -> Self {
        Self {
            names: Names::new(&[suffix], Arc::default()),
            handshake_timeout: limits::TLS_HANDSHAKE_TIMEOUT,
            head_timeout: limits::HTTP_HEAD_TIMEOUT,
            connections_max: limits::CONNECTIONS_MAX,
            drain_timeout: limits::INGRESS_DRAIN_TIMEOUT,
        }
    }
}

/// The proxy in front of the MicroVMs; [`serve`] runs it on a listener.
pub struct Ingress {
    config: Config,
    tls: Arc<rustls::ServerConfig>,
    keys: Arc<TokenKeys>,
    upstreams: Arc<dyn Upstreams>,
}

impl Ingress {
    /// A proxy that terminates `tls`, believes tokens of `keys` and forwards to `upstreams`.
    #[must_use]
    pub fn new(
        config: Config,
        tls: Arc<rustls::ServerConfig>,
        keys: Arc<TokenKeys>,
        upstreams: Arc<dyn Upstreams>,
    ) -> Self {
        Self {
            config,
            tls,
            keys,
            upstreams,
        }
    }
}

impl fmt::Debug for Ingress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ingress")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
