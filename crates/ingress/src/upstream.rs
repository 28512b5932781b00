//! HTTP exchanges with apps, over connections through tunnels.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use dormouse_core::guest::ShellSpec;
use dormouse_core::{EndpointId, limits};
use http::{Method, Request, Response, Uri, Version, uri};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tracing::Instrument;

use crate::app_tls::{AppTls, Reopen};
use crate::exchange::Exchange;
use crate::h2c::H2c;
use crate::http1::Http1;
use crate::pace::Paced;
use crate::pool::{Pool, Target};
use crate::request::Route;
use crate::request_body::RequestBody;
use crate::tasks::Tasks;
use crate::traffic::{Held, Vm};
use crate::tunnel::{Taken, Tunnel};
use crate::{Ingress, OpenError, Stream, Upstreams, Visit};

/// What the app speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Protocol {
    Http1,
    /// HTTP/2 without TLS, with prior knowledge.
    H2c,
}

/// Why an app gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the exchange with the app broke")]
    Http(#[source] hyper::Error),
    #[error("no TLS with an app that had it before")]
    Tls(#[source] io::Error),
    #[error("no answer in time")]
    TimedOut,
}

pub(crate) type Sent = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>;

/// An HTTP connection to an app, through a tunnel of its own. When it is dropped, what is under way over it ends.
pub(crate) struct Connection {
    http: Http,
    taken: Taken,
}

enum Http {
    One(Http1),
    H2c(H2c),
}

impl Connection {
    async fn open(
        visit: &Arc<dyn Visit>,
        route: &Route,
        vm: Option<&Arc<Vm>>,
        app_tls: &Arc<AppTls>,
        tasks: &Tasks,
    ) -> Result<Self, ExchangeError> {
        let port = route.port;
        let stream = paced(visit.connect(port).await?, vm);
        let reopen: Reopen = {
            let (visit, vm) = (Arc::clone(visit), vm.cloned());
            Box::new(move || {
                Box::pin(async move { Ok(paced(visit.connect(port).await?, vm.as_ref())) })
            })
        };
        let stream = app_tls
            .settle(stream, route, reopen)
            .await
            .map_err(ExchangeError::Tls)?;
        let tunnel = Tunnel::new(stream);
        let (taken, tunnel) = (tunnel.taken(), TokioIo::new(tunnel));
        // How a connection ends is told to whoever reads or writes the bodies.
        let http = match route.protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::Builder::new()
                    .max_buf_size(limits::HTTP_HEAD_BYTES_MAX)
                    .handshake(tunnel)
                    .await
                    .map_err(ExchangeError::Http)?;
                Http::One(Http1::new(sender, connection))
            }
            Protocol::H2c => {
                let own = tasks.part();
                let (sender, connection) = http2::Builder::new(own.clone())
                    .timer(TokioTimer::new())
                    .initial_stream_window_size(limits::H2_STREAM_WINDOW_BYTES)
                    .initial_connection_window_size(limits::H2_CONNECTION_WINDOW_BYTES)
                    .max_header_list_size(limits::HTTP_HEAD_BYTES_MAX as u32)
                    .max_send_buf_size(limits::H2_SEND_BUFFER_BYTES)
                    .handshake(tunnel)
                    .await
                    .map_err(ExchangeError::Http)?;
                own.spawn(connection);
                Http::H2c(H2c::new(sender, own))
            }
        };
        Ok(Self { http, taken })
    }

    async fn send(&mut self, request: Request<RequestBody>, tasks: &Tasks) -> Sent {
        match &mut self.http {
            Http::One(http1) => http1.send(request, tasks).await,
            Http::H2c(h2c) => h2c.send(request).await,
        }
    }

    /// Goes on with what nobody else drives.
    fn poll(&mut self, context: &mut Context<'_>) {
        if let Http::One(http1) = &mut self.http {
            http1.poll(context);
        }
    }

    /// Whether it can take a request.
    pub(crate) fn is_ready(&mut self) -> bool {
        match &mut self.http {
            Http::One(http1) => http1.is_ready(),
            Http::H2c(h2c) => h2c.is_ready(),
        }
    }

    /// Waits until the connection can take a request; false when it never will, or its app takes nothing of what it is
    /// sent for `patience`.
    pub(crate) async fn ready(&mut self, patience: Duration) -> bool {
        loop {
            let before = self.taken.bytes();
            let ready = async {
                match &mut self.http {
                    Http::One(http1) => http1.ready().await,
                    Http::H2c(h2c) => h2c.ready().await,
                }
            };
            match timeout(patience, ready).await {
                Ok(ready) => return ready,
                Err(_) if self.taken.bytes() == before => return false,
                Err(_) => {}
            }
        }
    }
}

/// The stream, no faster than the MicroVM's bandwidth.
fn paced(stream: Box<dyn Stream>, vm: Option<&Arc<Vm>>) -> Box<dyn Stream> {
    match vm {
        Some(vm) => Box::new(Paced::new(stream, Arc::clone(vm))),
        None => stream,
    }
}

/// A request that has its turn.
pub(crate) struct Passage {
    pub(crate) exchange: Arc<Exchange>,
    /// The MicroVM, as far as it is known.
    pub(crate) vm: Option<Arc<Vm>>,
    /// Whether the MicroVM slept when the request came.
    pub(crate) asleep: bool,
    /// Counts the request as waiting until it is let in.
    pub(crate) held: Option<Held>,
}

/// The way to the apps: lets requests in and keeps connections between them. Clones share the connections.
#[derive(Clone)]
pub(crate) struct Upstream {
    upstreams: Arc<dyn Upstreams>,
    pool: Pool,
    app_tls: Arc<AppTls>,
    tasks: Tasks,
    /// An app must send the head of its answer within this.
    response_timeout: Option<Duration>,
}

impl Upstream {
    pub(crate) fn new(ingress: &Ingress, tasks: Tasks) -> Self {
        Self {
            upstreams: Arc::clone(&ingress.upstreams),
            pool: Pool::new(&ingress.config, tasks.clone()),
            app_tls: Arc::new(AppTls::new()),
            tasks,
            response_timeout: ingress.config.response_timeout,
        }
    }

    /// Closes idle connections, and keeps none from now on.
    pub(crate) fn close(&self) {
        self.pool.close();
    }

    /// Sends `request` where `route` leads and returns the head of the answer, its body still to come.
    pub(crate) async fn exchange(
        &self,
        route: &Route,
        mut passage: Passage,
        request: Request<RequestBody>,
    ) -> Result<Response<AppBody>, ExchangeError> {
        let mut request = prepared(request, route.protocol);
        let mut take_kept = true;
        let mut failed = ExchangeError::Open(OpenError::WakeFailed);
        // What has seen nothing of the request has done no harm: once more.
        for _ in 0..limits::OPEN_ATTEMPTS {
            let visit = self.enter(&route.endpoint, &mut passage).await?;
            let target = target(route, &*visit);
            let kept = self.pool.take(&target).filter(|_| take_kept);
            let spare = kept.as_ref().and_then(|_| spare(&request));
            let mut connection = match kept {
                Some(connection) => connection,
                None => match self.connect(route, &visit, &passage).await {
                    Err(error @ ExchangeError::Open(OpenError::Gone)) => {
                        failed = error;
                        continue;
                    }
                    opened => opened?,
                },
            };
            let mut error = match self.send(&mut connection, &passage, request).await? {
                Ok(response) => {
                    let back = (self.pool.clone(), target, connection);
                    return Ok(response.map(|body| AppBody::new(body, back)));
                }
                Err(error) => error,
            };
            // The app may have closed a kept connection just now, having seen the request or not.
            let again = error.take_message().or(spare);
            failed = ExchangeError::Http(error.into_error());
            take_kept = false;
            match again {
                Some(again) => request = again,
                None => break,
            }
        }
        Err(failed)
    }

    /// Opens a shell in the MicroVM behind `endpoint`.
    pub(crate) async fn shell(
        &self,
        endpoint: &EndpointId,
        mut passage: Passage,
        spec: &ShellSpec,
    ) -> Result<Box<dyn Stream>, OpenError> {
        for _ in 0..limits::OPEN_ATTEMPTS {
            let visit = self.enter(endpoint, &mut passage).await?;
            match visit.shell(spec).await {
                Err(OpenError::Gone) => {}
                shell => return Ok(paced(shell?, passage.vm.as_ref())),
            }
        }
        Err(OpenError::WakeFailed)
    }

    async fn enter(
        &self,
        endpoint: &EndpointId,
        passage: &mut Passage,
    ) -> Result<Arc<dyn Visit>, OpenError> {
        let exchange = &passage.exchange;
        let entered = self.upstreams.enter(endpoint);
        let visit = entered.instrument(exchange.step("wake")).await?;
        exchange.visits(Arc::clone(&visit));
        if std::mem::take(&mut passage.asleep) {
            exchange.woken();
        }
        if let Some(held) = passage.held.take() {
            held.let_in().await?;
        }
        Ok(visit)
    }

    async fn connect(
        &self,
        route: &Route,
        visit: &Arc<dyn Visit>,
        passage: &Passage,
    ) -> Result<Connection, ExchangeError> {
        let begun = Instant::now();
        let vm = passage.vm.as_ref();
        let connection = Connection::open(visit, route, vm, &self.app_tls, &self.tasks)
            .instrument(passage.exchange.step("connect"))
            .await?;
        passage.exchange.connected(begun.elapsed());
        Ok(connection)
    }

    async fn send(
        &self,
        connection: &mut Connection,
        passage: &Passage,
        request: Request<RequestBody>,
    ) -> Result<Sent, ExchangeError> {
        let begun = Instant::now();
        let exchange = &passage.exchange;
        let sent = connection
            .send(request, &self.tasks)
            .instrument(exchange.step("first_byte"));
        let sent = match self.response_timeout {
            Some(limit) => timeout(limit, sent)
                .await
                .map_err(|_| ExchangeError::TimedOut)?,
            None => sent.await,
        };
        if sent.is_ok() {
            exchange.first_byte(begun.elapsed());
        }
        Ok(sent)
    }
}

fn target(route: &Route, visit: &dyn Visit) -> Target {
    Target {
        endpoint: route.endpoint,
        run: visit.run(),
        port: route.port,
        protocol: route.protocol,
    }
}

/// The request in the form that the app's protocol wants.
fn prepared(mut request: Request<RequestBody>, protocol: Protocol) -> Request<RequestBody> {
    match protocol {
        Protocol::Http1 => *request.version_mut() = Version::HTTP_11,
        Protocol::H2c => {
            *request.version_mut() = Version::HTTP_2;
            if let Some(host) = request.headers_mut().remove(http::header::HOST) {
                *request.uri_mut() = absolute(request.uri(), host.as_bytes());
            }
        }
    }
    request
}

/// HTTP/2 carries the host in the target.
fn absolute(target: &Uri, host: &[u8]) -> Uri {
    let mut parts = target.clone().into_parts();
    parts.scheme = Some(uri::Scheme::HTTP);
    parts.authority = uri::Authority::try_from(host).ok();
    Uri::from_parts(parts).unwrap_or_else(|_| target.clone())
}

/// The same request once more, where sending it twice is the same as sending it once.
fn spare(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let harmless = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS
    );
    if !harmless || !request.body().is_end_stream() {
        return None;
    }
    let mut spare = Request::new(request.body().emptied());
    *spare.method_mut() = request.method().clone();
    *spare.uri_mut() = request.uri().clone();
    *spare.version_mut() = request.version();
    *spare.headers_mut() = request.headers().clone();
    Some(spare)
}

/// The app's answer as it comes. When it has come to its end, its connection waits for the next request; when nobody
/// wants the rest of it, the connection ends with it.
pub(crate) struct AppBody {
    body: Incoming,
    ended: bool,
    /// Why it broke off, and when that is told.
    broken: Option<(hyper::Error, Pin<Box<Sleep>>)>,
    back: Option<(Pool, Target, Connection)>,
}

impl AppBody {
    fn new(body: Incoming, back: (Pool, Target, Connection)) -> Self {
        Self {
            body,
            ended: false,
            broken: None,
            back: Some(back),
        }
    }

    /// The connection, for whoever looks after it from here on.
    pub(crate) fn into_connection(mut self) -> Option<Connection> {
        self.back.take().map(|(_, _, connection)| connection)
    }
}

impl Body for AppBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some((_, grace)) = &mut self.broken {
            ready!(grace.as_mut().poll(context));
            return Poll::Ready(self.broken.take().map(|(error, _)| Err(error)));
        }
        let mut polled = Pin::new(&mut self.body).poll_frame(context);
        if polled.is_pending()
            && let Some((_, _, connection)) = &mut self.back
        {
            connection.poll(context);
            polled = Pin::new(&mut self.body).poll_frame(context);
        }
        self.ended = matches!(polled, Poll::Ready(None));
        if let Poll::Ready(Some(Err(error))) = polled {
            // The client's side drops what it has not sent by then, and so it gets the time to send.
            self.broken = Some((error, Box::pin(sleep(limits::BROKEN_ANSWER_GRACE))));
            return self.poll_frame(context);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.broken.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for AppBody {
    fn drop(&mut self) {
        if let Some((pool, target, connection)) = self.back.take()
            && (self.ended || self.is_end_stream())
        {
            pool.give_back(target, connection);
        }
    }
}
