//! The control API, STS and, for every path that is not its own, the embedded S3: on the plain listener, and
//! on connections that `connect` has taken TLS off.
//!
//! A request that names S3's own host is S3's, whatever its path.

use crate::api::extension::{self, is_extension_path};
use crate::api::{self, sts};
use crate::app::App;
use crate::audit::{self, Peer};
use crate::keys::Keys;
use crate::privileges;
use crate::request_body::RequestBody;
use crate::s3;
use crate::unread::{Answer, Unread};
use dormouse_api::route::is_control_path;
use dormouse_core::limits;
use dormouse_node::clock;
use http::header::HOST;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustix::net::sockopt;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinError;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Pause after the system refused a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the listener serves.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) app: Arc<App>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) s3: s3::Service,
}

/// Whose connection it is, and what is held until its last request is answered.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) peer: Peer,
    /// Its place under the limit of connections.
    pub(crate) place: Arc<OwnedSemaphorePermit>,
    /// What a stop of the listener waits for.
    pub(crate) tasks: TaskTracker,
}

/// What a request of the control API is for.
#[derive(Debug, Clone, Copy)]
enum Api {
    Sts,
    Extension,
    MicroVms,
}

impl Service {
    /// None for a request that is S3's.
    fn api_of(&self, parts: &Parts) -> Option<Api> {
        let path = parts.uri.path();
        if self.s3.is_named_by(host(parts)) {
            None
        } else if sts::is_for_sts(parts) {
            Some(Api::Sts)
        } else if is_extension_path(path) {
            Some(Api::Extension)
        } else {
            is_control_path(path).then_some(Api::MicroVms)
        }
    }
}

/// Serves control API, STS and S3 until `stop`, then lets requests under way end.
pub(crate) async fn serve(listener: TcpListener, service: Arc<Service>, stop: CancellationToken) {
    accept(listener, &stop, |stream, client| {
        connection(stream, client, Arc::clone(&service), stop.clone())
    })
    .await;
}

/// Accepts clients until `stop`, each served in a task, then lets what is under way end.
pub(crate) async fn accept<F>(
    listener: TcpListener,
    stop: &CancellationToken,
    serve: impl Fn(TcpStream, Client) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(privileges::connections_max()));
    let tasks = TaskTracker::new();
    while let Some(Ok(place)) = stop
        .run_until_cancelled(Arc::clone(&places).acquire_owned())
        .await
    {
        let (stream, from) = match stop.run_until_cancelled(listener.accept()).await {
            None => break,
            Some(Ok(accepted)) => accepted,
            Some(Err(error)) => {
                // Out of descriptors, mostly: others must close theirs first.
                tracing::warn!(%error, "connection was not accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if let Err(error) = bound_unread(&stream) {
            tracing::debug!(%error, "a connection ended before its first request");
            continue;
        }
        let client = Client {
            peer: Peer(from.ip()),
            place: Arc::new(place),
            tasks: tasks.clone(),
        };
        tasks.spawn(serve(stream, client));
    }
    tasks.close();
    let _ = timeout(limits::INGRESS_DRAIN_TIMEOUT, tasks.wait()).await;
}

/// Ends a connection whose client's kernel takes nothing of what it is sent: HTTP has no limit for that.
fn bound_unread(stream: &TcpStream) -> io::Result<()> {
    let unread_ms = limits::CLIENT_UNREAD_TIMEOUT.as_millis();
    let unread_ms = u32::try_from(unread_ms).unwrap_or(u32::MAX);
    Ok(sockopt::set_tcp_user_timeout(stream, unread_ms)?)
}

/// Serves the requests of one connection until it ends.
pub(crate) async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    client: Client,
    service: Arc<Service>,
    stop: CancellationToken,
) {
    // HTTP forgets a stream that its client resets, but the request is answered all the same: it counts here.
    let turns = Arc::new(Semaphore::new(limits::H2_STREAMS_MAX as usize));
    let (under_way, requests) = watch::channel(0);
    let unread = Arc::new(Unread::default());
    let counted = Arc::clone(&unread);
    let service = service_fn(move |request| {
        let (service, client) = (Arc::clone(&service), client.clone());
        let (turns, busy) = (Arc::clone(&turns), Busy::new(&under_way));
        let unread = Arc::clone(&counted);
        async move {
            let response = answer_apart(service, client, turns, request).await?;
            drop(busy);
            Ok::<Response<Answer>, JoinError>(response.map(|body| unread.count(body)))
        }
    });
    let http = protocol();
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    let mut stands_still = pin!(unread.stands_still());
    tokio::select! {
        _ = connection.as_mut() => return,
        () = stands_still.as_mut() => return,
        () = stop.cancelled() => {}
        () = outstayed(requests) => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        _ = connection => {}
        () = stands_still => {}
    }
}

/// HTTP/1 or HTTP/2, as the client's first bytes have it, within the product's limits.
fn protocol() -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HTTP_HEAD_TIMEOUT)
        .max_headers(limits::HTTP_HEADERS_MAX)
        .max_buf_size(limits::HTTP_HEAD_BYTES_MAX);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::H2_STREAMS_MAX)
        .max_header_list_size(limits::HTTP_HEAD_BYTES_MAX as u32)
        .keep_alive_interval(limits::H2_PING_INTERVAL)
        .keep_alive_timeout(limits::H2_PING_TIMEOUT);
    http
}

/// A request under way on a connection, as long as its client waits for the answer.
struct Busy(watch::Sender<usize>);

impl Busy {
    fn new(under_way: &watch::Sender<usize>) -> Self {
        under_way.send_modify(|number| *number += 1);
        Self(under_way.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.send_modify(|number| *number -= 1);
    }
}

/// Returns when a connection has been without its first request, or idle after one, for too long.
async fn outstayed(mut under_way: watch::Receiver<usize>) {
    let mut limit = limits::HTTP_HEAD_TIMEOUT;
    loop {
        let idle = *under_way.borrow_and_update() == 0;
        match timeout(limit, under_way.changed()).await {
            Ok(Ok(())) => limit = limits::IDLE_CONNECTION_TIMEOUT,
            Err(_) if !idle => {}
            // The service is gone only with its connection.
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// Answers in a task of its own, which goes on when the client hangs up: what is stored by then may be stored for
/// good, and whatever must follow it follows. Only a panic is an error, and ends the connection.
async fn answer_apart(
    service: Arc<Service>,
    client: Client,
    turns: Arc<Semaphore>,
    mut request: Request<Incoming>,
) -> Result<Response<s3::Body>, JoinError> {
    let turn = turns.acquire_owned().await;
    request.extensions_mut().insert(client.peer);
    let Client { peer, place, tasks } = client;
    let answered = tasks.spawn(async move {
        let response = answer(&service, peer, request).await;
        drop((turn, place));
        response
    });
    answered.await
}

/// Answers a request; one for the control API has a line in the audit log.
async fn answer(service: &Service, peer: Peer, request: Request<Incoming>) -> Response<s3::Body> {
    let (parts, body) = request.into_parts();
    let body = RequestBody::from(body);
    service.keys.meet(&parts).await;
    let Some(api) = service.api_of(&parts) else {
        let response = service.s3.call(Request::from_parts(parts, body)).await;
        return bounded(service, peer, response);
    };
    let response = control(service, api, &parts, body).await;
    let response = bounded(service, peer, whole(response));
    audit::record(&parts, &response);
    response
}

/// A refusal only as long as whoever sent the request is not refused too often: they learn no more.
fn bounded(service: &Service, peer: Peer, response: Response<s3::Body>) -> Response<s3::Body> {
    if response.status() != StatusCode::FORBIDDEN {
        return response;
    }
    match service.app.refusals.admit(peer.0, clock::now()) {
        Ok(()) => response,
        Err(delay) => {
            let mut instead = whole(api::refused_too_often(delay));
            *instead.extensions_mut() = response.extensions().clone();
            instead
        }
    }
}

async fn control(service: &Service, api: Api, parts: &Parts, body: RequestBody) -> Response<Bytes> {
    let (app, keys) = (&service.app, &service.keys);
    let body = Limited::new(body, limits::API_BODY_BYTES_MAX).collect();
    let body = match body.await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => return api::body_too_large(),
        // The client stands still, is gone or has broken HTTP: hardly anybody reads this.
        Err(_) => return api::body_unread(),
    };
    match api {
        Api::Sts => sts::handle(app, keys, parts, &body),
        Api::Extension => extension::handle(app, keys, parts, &body).await,
        Api::MicroVms => api::handle(app, keys, parts, &body).await,
    }
}

fn whole(response: Response<Bytes>) -> Response<s3::Body> {
    response.map(|body| {
        Full::new(body)
            .map_err(|never| match never {})
            .boxed_unsync()
    })
}

/// The host that a request names, as it is; empty where there is none.
fn host(parts: &Parts) -> &str {
    let field = parts.headers.get(HOST).map(HeaderValue::to_str);
    let field = field.and_then(Result::ok);
    let target = parts.uri.authority().map(|authority| authority.as_str());
    target.or(field).unwrap_or_default()
}
