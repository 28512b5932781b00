//! An ingress on a loopback port, and the far ends of the tunnels that it opens.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};
use std::{fmt, io};

use async_trait::async_trait;
use dormouse_core::guest::{FRAME_HEADER_LEN, FrameKind, ShellSpec, put_frame};
use dormouse_core::{EndpointId, MicrovmId};
use dormouse_ingress::{
    Authority, Claims, Config, Ingress, Metrics, OpenError, PortRange, Stream, Target, TokenKeys,
    TokenKind, Upstreams, Visit, VmLimits,
};
use dormouse_secrets::Sealer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
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

/// The far end of one shell.
pub(crate) struct Shell {
    pub(crate) spec: ShellSpec,
    pub(crate) stream: DuplexStream,
}

impl Shell {
    pub(crate) async fn send(&mut self, kind: FrameKind, payload: &[u8]) {
        let mut frame = Vec::new();
        put_frame(&mut frame, kind, payload);
        soon(self.stream.write_all(&frame)).await.expect("write");
    }

    /// The client's next frame; none once it has hung up.
    pub(crate) async fn frame(&mut self) -> Option<(FrameKind, Vec<u8>)> {
        let mut header = [0; FRAME_HEADER_LEN];
        soon(self.stream.read_exact(&mut header)).await.ok()?;
        let kind = FrameKind::from_byte(header[0]).expect("a kind");
        let [_, length @ ..] = header;
        let mut payload = vec![0; u32::from_be_bytes(length) as usize];
        soon(self.stream.read_exact(&mut payload))
            .await
            .expect("a payload");
        Some((kind, payload))
    }
}

/// What the stub does with the next tunnels; the tests turn these knobs.
pub(crate) struct Stub {
    apps: mpsc::UnboundedSender<App>,
    shells: mpsc::UnboundedSender<Shell>,
    /// Each tunnel waits for a permit: none to begin with in a "sleeping" fixture.
    pub(crate) awake: Semaphore,
    pub(crate) refuse: Mutex<Option<OpenError>>,
    /// Of each MicroVM, from its first request on.
    pub(crate) limits: Mutex<VmLimits>,
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
    fn target(&self, endpoint: &EndpointId) -> Option<Target> {
        Some(Target {
            microvm: microvm(&endpoint.to_string()),
            limits: *self.limits.lock().expect("lock"),
            awake: self.awake.available_permits() > 0,
        })
    }

    async fn enter(&self, endpoint: &EndpointId) -> Result<Arc<dyn Visit>, OpenError> {
        self.opens.fetch_add(1, Ordering::SeqCst);
        self.refusal()?;
        let waiting = Counted::new(&WaitCount(self));
        let permit = self.awake.acquire().await.expect("open");
        permit.forget();
        self.awake.add_permits(1);
        drop(waiting);
        self.refusal()?;
        self.visits.fetch_add(1, Ordering::SeqCst);
        Ok(Arc::new(Stay {
            endpoint: *endpoint,
            run: self.run.load(Ordering::SeqCst),
            apps: self.apps.clone(),
            shells: self.shells.clone(),
            live: Arc::clone(&self.live),
            visits: Arc::clone(&self.visits),
        }))
    }
}

impl Stub {
    fn refusal(&self) -> Result<(), OpenError> {
        self.refuse.lock().expect("lock").map_or(Ok(()), Err)
    }
}

struct Stay {
    endpoint: EndpointId,
    run: u64,
    apps: mpsc::UnboundedSender<App>,
    shells: mpsc::UnboundedSender<Shell>,
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
            endpoint: self.endpoint,
            port,
            stream: far,
            broken: Arc::clone(&broken),
        };
        self.apps.send(app).map_err(|_| OpenError::Ended)?;
        Ok(Box::new(Tunnel::new(near, broken, Arc::clone(&self.live))))
    }

    async fn shell(&self, spec: &ShellSpec) -> Result<Box<dyn Stream>, OpenError> {
        let (near, stream) = tokio::io::duplex(64 << 10);
        let broken = Arc::new(AtomicBool::new(false));
        let spec = spec.clone();
        let shell = Shell { spec, stream };
        self.shells.send(shell).map_err(|_| OpenError::Ended)?;
        Ok(Box::new(Tunnel::new(near, broken, Arc::clone(&self.live))))
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.visits.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The MicroVM behind an endpoint, in these tests.
pub(crate) fn microvm(endpoint: &str) -> MicrovmId {
    MicrovmId::parse(&format!("microvm-{endpoint}")).expect("a UUID")
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
    /// The same ingress without TLS.
    pub(crate) plain_address: SocketAddr,
    pub(crate) authority: Arc<Authority>,
    pub(crate) keys: Arc<TokenKeys>,
    pub(crate) stub: Arc<Stub>,
    pub(crate) metrics: Metrics,
    pub(crate) stop: CancellationToken,
    pub(crate) served: JoinHandle<()>,
    apps: tokio::sync::Mutex<mpsc::UnboundedReceiver<App>>,
    shells: tokio::sync::Mutex<mpsc::UnboundedReceiver<Shell>>,
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
        let sealer = Arc::new(Sealer::random());
        let authority = Authority::load_or_create(folder.path(), &sealer).expect("CA");
        let authority = Arc::new(authority);
        let tls = authority
            .server_config(SUFFIX, &["127.0.0.1".to_owned()])
            .expect("TLS");
        let keys = TokenKeys::load_or_create(&folder.path().join("keys"), sealer).expect("keys");
        let keys = Arc::new(keys);
        let (sender, apps) = mpsc::unbounded_channel();
        let (shell_sender, shells) = mpsc::unbounded_channel();
        let stub = Arc::new(Stub {
            apps: sender,
            shells: shell_sender,
            awake: Semaphore::new(1),
            refuse: Mutex::new(None),
            limits: Mutex::default(),
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
        let metrics = ingress.metrics();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let plain = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let plain_address = plain.local_addr().expect("address");
        let stop = CancellationToken::new();
        let ingress = Arc::new(ingress);
        let without_tls = dormouse_ingress::serve_plain(plain, Arc::clone(&ingress), stop.clone());
        let with_tls = dormouse_ingress::serve(listener, ingress, stop.clone());
        let served = tokio::spawn(async {
            tokio::join!(with_tls, without_tls);
        });
        Self {
            address,
            plain_address,
            authority,
            keys,
            stub,
            metrics,
            stop,
            served,
            apps: tokio::sync::Mutex::new(apps),
            shells: tokio::sync::Mutex::new(shells),
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

    /// Sets the limits of MicroVMs that have had no request yet.
    pub(crate) fn limit(&self, limits: VmLimits) {
        *self.stub.limits.lock().expect("lock") = limits;
    }

    /// The far end of the next shell.
    pub(crate) async fn shell(&self) -> Shell {
        let mut shells = self.shells.lock().await;
        soon(shells.recv()).await.expect("a shell")
    }

    pub(crate) fn wake(&self) {
        self.stub.awake.add_permits(1);
    }

    pub(crate) fn refuse(&self, error: OpenError) {
        *self.stub.refuse.lock().expect("lock") = Some(error);
    }

    /// Lets requests in again.
    pub(crate) fn refuse_no_more(&self) {
        *self.stub.refuse.lock().expect("lock") = None;
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
        let ports = vec![PortRange::single(8080), PortRange::from((9000, 9010))];
        self.mint(endpoint, ports, expires_in_s, TokenKind::Http)
    }

    /// A token for a shell in [`ENDPOINT`].
    pub(crate) fn shell_token(&self) -> String {
        self.mint(ENDPOINT, Vec::new(), 60, TokenKind::Shell)
    }

    fn mint(
        &self,
        endpoint: &str,
        ports: Vec<PortRange>,
        expires_in_s: i64,
        kind: TokenKind,
    ) -> String {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .expect("after 1970");
        self.keys.mint(&Claims {
            endpoint: EndpointId::parse(endpoint).expect("endpoint"),
            ports,
            expires_s: now.as_secs().saturating_add_signed(expires_in_s),
            kind,
        })
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.served.abort();
    }
}
