//! The data plane: the TLS proxy that stands in front of every MicroVM endpoint.
//!
//! A request passes four phases. *Admit* (`request`) is pure: which endpoint does the host name
//! name, does the token open it, does the grant cover the port. *Enter* asks [`Upstreams`] to let the
//! request in, which wakes a sleeping MicroVM and holds the request until then. *Exchange* (`upstream`)
//! speaks HTTP with the app, over a tunnel that waited from the last request (`pool`) or a new one. *Copy*
//! streams both bodies, in constant memory.
//!
//! ```text
//! listen -> proxy -> request::admit -> Upstreams::enter -> upstream::exchange -> copy
//!                        |                  |                    |
//!                        +------ Refusal ---+--------------------+--> 4xx, 502
//! ```
//!
//! The crate knows neither the store nor the VMM: it sees MicroVMs only through [`Upstreams`].

mod acme;
mod app_tls;
mod authority;
mod certificate;
mod connections;
mod exchange;
mod frames;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod h2c;
mod headers;
mod http1;
mod listen;
mod metrics;
mod names;
mod pace;
mod pool;
mod proxy;
mod rate;
mod refusal;
mod request;
mod request_body;
mod request_id;
mod resolver;
mod shell;
mod stall;
mod switch;
mod tasks;
mod token;
mod token_cache;
mod token_keys;
mod traffic;
mod tunnel;
mod upstream;
mod websocket;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dormouse_core::guest::ShellSpec;
use dormouse_core::{EndpointId, MicrovmId, limits};
use tokio::io::{AsyncRead, AsyncWrite};

pub use acme::{Acme, AcmeConfig, Challenges};
pub use authority::{Authority, AuthorityError};
pub use certificate::{CertificateError, CertificateFiles, Followed};
pub use exchange::ACCESS_LOG;
pub use listen::{serve, serve_plain};
pub use metrics::{Metrics, VmMetrics};
pub use names::{Domains, Names};
pub use resolver::{Certificates, Given};
pub use stall::{BodyError, Stall};
pub use token::{Claims, PortRange, TokenError, TokenKind};
pub use token_keys::{TokenKeys, TokenKeysError};
pub use traffic::VmLimits;

use metrics::Sums;
use traffic::Traffic;

/// A raw byte tunnel to one port inside a MicroVM.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A MicroVM as the proxy meets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name in the API.
    pub microvm: MicrovmId,
    /// What its endpoint may carry; it keeps those that it had when its first request came.
    pub limits: VmLimits,
    /// Whether a request would be let in now, without a wait.
    pub awake: bool,
}

/// Where requests go: the one seam between the proxy and the MicroVMs.
#[async_trait]
pub trait Upstreams: Send + Sync + 'static {
    /// What there is to know of the MicroVM behind `endpoint` before a request is let in; none when it
    /// is over. Without it a MicroVM has no limits and no counts of its own.
    fn target(&self, endpoint: &EndpointId) -> Option<Target> {
        let _ = endpoint;
        None
    }

    /// Lets a request in to the MicroVM behind `endpoint`.
    ///
    /// A sleeping MicroVM is woken first, once for all that wait, and the call lasts until it is awake.
    /// Dropping the future gives up the wait.
    async fn enter(&self, endpoint: &EndpointId) -> Result<Arc<dyn Visit>, OpenError>;
}

/// A stay with a MicroVM that runs: while it lasts the MicroVM has a request in flight.
#[async_trait]
pub trait Visit: Send + Sync {
    /// Tells one run of the MicroVM's machine from those before and after a sleep. What was opened in one
    /// leads nowhere in the next.
    fn run(&self) -> u64;

    /// Opens a tunnel to `127.0.0.1:port` inside the MicroVM.
    ///
    /// The tunnel may outlive the stay. Each byte that crosses it, either way, sets the MicroVM's idle clock
    /// back. Its end is an end of file only where the app itself closed its side; a MicroVM that dies or a
    /// tunnel that breaks is a read error, so that half a response is never taken for a whole one. Dropping
    /// the stream closes the tunnel.
    async fn connect(&self, port: u16) -> Result<Box<dyn Stream>, OpenError>;

    /// Opens a shell in the MicroVM. The stream carries frames of the guest protocol, both ways; dropping it
    /// hangs up.
    async fn shell(&self, spec: &ShellSpec) -> Result<Box<dyn Stream>, OpenError>;
}

/// Why there is no tunnel, or no shell. The client sees 502 for all but the last three.
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
    /// The machine went before the tunnel stood: nothing has been seen of the request.
    #[error("the MicroVM's machine is gone")]
    Gone,
    /// Too many requests wait already.
    #[error("too many requests wait for the MicroVM")]
    Overloaded,
    /// The MicroVM has no shell that could start.
    #[error("no shell starts in the MicroVM")]
    NoShell,
    /// The MicroVM's image was built before there were shells.
    #[error("the MicroVM's image was built before there were shells")]
    AgentTooOld,
}

/// What an [`Ingress`] can be told; [`Config::new`] fills in the limits of the product.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where each MicroVM has its name: `<endpoint id>.<suffix>`, or a custom domain.
    pub names: Names,
    /// A client must finish its TLS handshake within this.
    pub handshake_timeout: Duration,
    /// A client must finish sending a request's head within this.
    pub head_timeout: Duration,
    /// A client connection that has had a request and has none in flight is closed after this.
    pub idle_timeout: Duration,
    /// A client that takes nothing of what it is sent for this long is given up.
    pub unread_timeout: Duration,
    /// A request body of a stated length must go on within this, while somebody wants to read it.
    pub body_timeout: Duration,
    /// An app that has answered is sent the rest of the request as long as it takes some of it within this.
    pub unread_body_timeout: Duration,
    /// An app must send the head of its answer within this; none for no limit.
    pub response_timeout: Option<Duration>,
    /// A request to a MicroVM that is awake waits this long for its turn under the MicroVM's limits.
    pub turn_patience: Duration,
    /// Most client connections at once. For those beyond it idle ones make room, or they wait in the
    /// kernel's queue.
    pub connections_max: usize,
    /// How long a graceful stop waits for requests in flight.
    pub drain_timeout: Duration,
    /// How long a connection to an app waits for the next request; zero for none at all.
    pub upstream_keep: Duration,
}

impl Config {
    /// The product's own limits, for the endpoints below `suffix`.
    #[must_use]
    pub fn new(suffix: &str) -> Self {
        Self {
            names: Names::new(&[suffix], Arc::default()),
            handshake_timeout: limits::TLS_HANDSHAKE_TIMEOUT,
            head_timeout: limits::HTTP_HEAD_TIMEOUT,
            idle_timeout: limits::IDLE_CONNECTION_TIMEOUT,
            unread_timeout: limits::CLIENT_UNREAD_TIMEOUT,
            body_timeout: limits::BODY_STALL_TIMEOUT,
            unread_body_timeout: limits::UNREAD_BODY_TIMEOUT,
            response_timeout: None,
            turn_patience: limits::TURN_PATIENCE,
            connections_max: limits::CONNECTIONS_MAX,
            drain_timeout: limits::INGRESS_DRAIN_TIMEOUT,
            upstream_keep: limits::UPSTREAM_KEEP,
        }
    }
}

/// The proxy in front of the MicroVMs; [`serve`] runs it on a listener.
pub struct Ingress {
    config: Config,
    tls: Arc<rustls::ServerConfig>,
    keys: Arc<TokenKeys>,
    upstreams: Arc<dyn Upstreams>,
    sums: Arc<Sums>,
    traffic: Arc<Traffic>,
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
        let sums = Arc::new(Sums::default());
        let traffic = Traffic::new(config.turn_patience, Arc::clone(&sums));
        Self {
            config,
            tls,
            keys,
            upstreams,
            sums,
            traffic: Arc::new(traffic),
        }
    }

    /// What it counts.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        Metrics::new(
            Arc::clone(&self.sums),
            Arc::clone(&self.traffic),
            Arc::clone(&self.upstreams),
        )
    }
}

impl fmt::Debug for Ingress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ingress")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
