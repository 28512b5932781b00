//! An ingress on a loopback port, and the far ends of the tunnels that it opens.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};
use std::{fmt, io};

use async_trait::async_trait;
use dormouse_core::EndpointId;
use dormouse_ingress::{
    Authority, Claims, Config, Ingress, OpenError, PortRange, Stream, TokenKeys, TokenKind,
    Upstreams, Visit,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub(crate) const SUFFIX: &str = "lambda-microvm.us-east-1.localhost";
pub(crate) const ENDPOINT: &str = "30d00336-db07-f4f5-79c1-8571c22bef9e";
pub(crate) const OTHER_ENDPOINT: &str = "11111111-2222-4333-8444-555555555555";
/// Nothing in these tests takes this long unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Bounds a wait, so that a hang is a failure.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("in time")
}

/// Waits until `condition` holds.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    soon(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// The far end of one tunnel.
pub(crate) struct App {
    pub(crate) endpoint: EndpointId,
    pub(crate) port: u16,
    pub(crate) stream: DuplexStream,
    /// Whether the tunnel ends with an error.
    broken: Arc<AtomicBool>,
}

impl App {
    /// Breaks the tunnel off, as the end of its MicroVM does.
    pub(crate) fn vanish(self) {
        self.broken.store(true, Ordering::SeqCst);
    }

    /// Reads up to the end of a request's head.
    pub(crate) async fn head(&mut self) -> String {
        read_until(&mut self.stream, "\r\n\r\n").await
    }

    /// Reads the rest, until the proxy closes the tunnel.
    pub(crate) async fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        soon(self.stream.read_to_end(&mut rest)).await?;
        Ok(rest)
    }
}

/// Reads text up to and with `end`.
pub(crate) async fn read_until(stream: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        let byte = soon(stream.read_u8()).await;
        text.push(
            byte.unwrap_or_else(|error| {
                panic!("{error} after {:?}", String::from_utf8_lossy(&text))
            }),
        );
    }
    String::from_utf8(text).expect("text")
}

/// What the stub does with the next tunnels; the tests turn these knobs.
pub(crate) struct Stub {
    apps: mpsc::UnboundedSender<App>,
    /// Each tunnel waits for a permit: none to begin with in a "sleeping" fixture.
    pub(crate) awake: Semaphore,
    pub(crate) refuse: Mutex<Option<OpenError>>,
    /// Calls of `enter` that are waiting.
    pub(crate) waiting: AtomicUsize,
    /// Calls of `enter` so far.
    pub(crate) opens: AtomicUsize,
    /// Requests in flight.
    pub(crate) visits: Arc<AtomicUsize>,
    /// How often the machine has slept.
    pub(crate) run: AtomicU64,
    /// Tunnels that are open now.
    pub(crate) live: Arc<AtomicUsize>,
}

#[async_trait]
impl Upstreams for Stub {
    async fn enter(&self, endpoint: &EndpointId) -> Result<Box<dyn Visit>, OpenError> {
        self.opens.fetch_add(1, Ordering::SeqCst);
        let waiting = Counted::new(&WaitCount(self));
        let permit = self.awake.acquire().await.expect("open");
        permit.forget();
        self.awake.add_permits(1);
        drop(waiting);
        if let Some(error) = *self.refuse.lock().expect("lock") {
            return Err(error);
        }
        self.visits.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Stay {
            endpoint: endpoint.clone(),
            run: self.run.load(Ordering::SeqCst),
            apps: self.apps.clone(),
            live: Arc::clone(&self.live),
            visits: Arc::clone(&self.visits),
        }))
    }
}

struct Stay {
    endpoint: EndpointId,
    run: u64,
    apps: mpsc::UnboundedSender<App>,
    live: Arc<AtomicUsize>,
    visits: Arc<AtomicUsize>,
}

#[async_trait]
impl Visit for Stay {
    fn run(&self) -> u64 {
        self.run
    }

    async fn connect(&self, port: u16) -> Result<Box<dyn Stream>, OpenError> {
        let (near, far) = tokio::io::duplex(64 << 10);
        let broken = Arc::new(AtomicBool::new(false));
        let app = App {
            endpoint: self.endpoint.clone(),
            port,
            stream: far,
            broken: Arc::clone(&broken),
        };
        self.apps.send(app).map_err(|_| OpenError::Ended)?;
        Ok(Box::new(Tunnel::new(near, broken, Arc::clone(&self.live))))
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.visits.fetch_sub(1, Ordering::SeqCst);
    }
}

struct WaitCount<'a>(&'a Stub);

/// Counts the waiting calls also where their future is dropped.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(stub: &WaitCount<'a>) -> Self {
        stub.0.waiting.fetch_add(1, Ordering::SeqCst);
        Self(&stub.0.waiting)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Tunnel {
    near: DuplexStream,
    broken: Arc<AtomicBool>,
    live: Arc<AtomicUsize>,
}

impl Tunnel {
    fn new(near: DuplexStream, broken: Arc<AtomicBool>, live: Arc<AtomicUsize>) -> Self {
        live.fetch_add(1, Ordering::SeqCst);
        Self { near, broken, live }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::SeqCst);
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let begin = buffer.filled().len();
        ready!(Pin::new(&mut self.near).poll_read(context, buffer))?;
        if buffer.filled().len() == begin && self.broken.load(Ordering::SeqCst) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.near).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.near).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.near).poll_shutdown(context)
    }
}

pub(crate) struct Fixture {
    pub(crate) address: SocketAddr,
    pub(crate) authority: Arc<Authority>,
    pub(crate) keys: Arc<TokenKeys>,
    pub(crate) stub: Arc<Stub>,
    pub(crate) stop: CancellationToken,
    pub(crate) served: JoinHandle<()>,
    apps: tokio::sync::Mutex<mpsc::UnboundedReceiver<App>>,
    _folder: tempfile::TempDir,
}

impl fmt::Debug for Fixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fixture")
    }
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// An ingress whose MicroVMs sleep until [`Fixture::wake`].
    pub(crate) async fn asleep() -> Self {
        let fixture = Self::new().await;
        soon(fixture.stub.awake.acquire())
            .await
            .expect("permit")
            .forget();
        fixture
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let authority = Authority::load_or_create(folder.path()).expect("CA");
        let authority = Arc::new(authority);
        let tls = authority
            .server_config(SUFFIX, &["127.0.0.1".to_owned()])
            .expect("TLS");
        let keys = TokenKeys::load_or_create(&folder.path().join("keys")).expect("keys");
        let keys = Arc::new(keys);
        let (sender, apps) = mpsc::unbounded_channel();
        let stub = Arc::new(Stub {
            apps: sender,
            awake: Semaphore::new(1),
            refuse: Mutex::new(None),
            waiting: AtomicUsize::new(0),
            opens: AtomicUsize::new(0),
            visits: Arc::default(),
            run: AtomicU64::new(0),
            live: Arc::default(),
        });
        let mut config = Config::new(SUFFIX);
        // Most tests are about one request and its tunnel.
        config.upstream_keep = Duration::ZERO;
        change(&mut config);
        let upstreams: Arc<dyn Upstreams> = Arc::clone(&stub) as _;
        let ingress = Ingress::new(config, Arc::new(tls), Arc::clone(&keys), upstreams);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let stop = CancellationToken::new();
        let served = tokio::spawn(dormouse_ingress::serve(
            listener,
            Arc::new(ingress),
            stop.clone(),
        ));
        Self {
            address,
            authority,
            keys,
            stub,
            stop,
            served,
            apps: tokio::sync::Mutex::new(apps),
            _folder: folder,
        }
    }

    /// The far end of the next tunnel.
    pub(crate) async fn app(&self) -> App {
        let mut apps = self.apps.lock().await;
        soon(apps.recv()).await.expect("a tunnel")
    }

    /// The far ends of tunnels that nobody has taken yet.
    pub(crate) async fn apps_so_far(&self) -> Vec<App> {
        let mut apps = self.apps.lock().await;
        std::iter::from_fn(|| apps.try_recv().ok()).collect()
    }

    pub(crate) fn wake(&self) {
        self.stub.awake.add_permits(1);
    }

    pub(crate) fn refuse(&self, error: OpenError) {
        *self.stub.refuse.lock().expect("lock") = Some(error);
    }

    pub(crate) fn opens(&self) -> usize {
        self.stub.opens.load(Ordering::SeqCst)
    }

    pub(crate) fn live(&self) -> usize {
        self.stub.live.load(Ordering::SeqCst)
    }

    pub(crate) fn waiting(&self) -> usize {
        self.stub.waiting.load(Ordering::SeqCst)
    }

    /// A token for [`ENDPOINT`], ports 8080 and 9000 to 9010.
    pub(crate) fn token(&self) -> String {
        self.token_for(ENDPOINT, 60)
    }

    pub(crate) fn token_for(&self, endpoint: &str, expires_in_s: i64) -> String {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .expect("after 1970");
        self.keys.mint(&Claims {
            endpoint: EndpointId::parse(endpoint).expect("endpoint"),
            ports: vec![PortRange::single(8080), PortRange::from((9000, 9010))],
            expires_s: now.as_secs().saturating_add_signed(expires_in_s),
            kind: TokenKind::Http,
        })
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.served.abort();
    }
}
