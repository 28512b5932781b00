//! From a listening socket to requests: accepting, the TLS handshake, HTTP by ALPN. Without TLS, the
//! first bytes tell HTTP/2 from HTTP/1.1.

use std::convert::Infallible;
use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use dormouse_core::limits;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulConnection;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::io::InspectReader;
use tokio_util::sync::CancellationToken;

use crate::connections::{Connections, Patience, Seat};
use crate::exchange::Measured;
use crate::proxy::{Client, ResponseBody};
use crate::tasks::Tasks;
use crate::token_cache::TokenCache;
use crate::upstream::Upstream;
use crate::{Config, Ingress, Stream};

/// Pause after the system refused a connection, for instance for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A client that vanished is noticed by these probes, also where HTTP has no say any more.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Serves `ingress` on `listener` until `stop`; then takes no more connections, lets the requests
/// in flight finish for the configured time, and returns when nothing is left.
pub async fn serve(listener: TcpListener, ingress: Arc<Ingress>, stop: CancellationToken) {
    serve_over(Transport::Tls, listener, ingress, stop).await;
}

/// Serves `ingress` as [`serve`] does, to clients that speak HTTP without TLS.
pub async fn serve_plain(listener: TcpListener, ingress: Arc<Ingress>, stop: CancellationToken) {
    serve_over(Transport::Plain, listener, ingress, stop).await;
}

/// What is between TCP and HTTP.
#[derive(Debug, Clone, Copy)]
enum Transport {
    Tls,
    Plain,
}

async fn serve_over(
    transport: Transport,
    listener: TcpListener,
    ingress: Arc<Ingress>,
    stop: CancellationToken,
) {
    let tasks = Tasks::default();
    let upstream = Upstream::new(&ingress, tasks.clone());
    let Config {
        connections_max,
        head_timeout,
        idle_timeout,
        unread_timeout,
        drain_timeout,
        ..
    } = ingress.config;
    let patience = Patience {
        head: head_timeout,
        idle: idle_timeout,
        unread: unread_timeout,
    };
    let connections = Connections::new(connections_max, stop.clone(), Arc::clone(&ingress.sums));
    let accepting = async {
        loop {
            let (tcp, seat) = accept(&listener, &connections).await;
            let client = Client {
                ingress: Arc::clone(&ingress),
                sni: None,
                token_cache: TokenCache::default(),
                upstream: upstream.clone(),
                tasks: tasks.clone(),
                seat: Arc::new(seat),
            };
            tasks.spawn(connection(transport, tcp, client, stop.clone()));
        }
    };
    tokio::select! {
        () = accepting => {}
        () = connections.sweep(patience) => {}
        () = stop.cancelled() => {}
    }
    drop(listener);
    upstream.close();
    tasks.finish(drain_timeout).await;
}

/// The next connection, as soon as there is a place for it.
async fn accept(listener: &TcpListener, connections: &Arc<Connections>) -> (TcpStream, Seat) {
    loop {
        match listener.accept().await {
            Ok((tcp, _)) => return (tcp, connections.seat().await),
            Err(error) => {
                tracing::warn!(%error, "no connection accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(transport: Transport, tcp: TcpStream, client: Client, stop: CancellationToken) {
    if let Err(error) = tune(&tcp) {
        tracing::debug!(%error, "a connection ended before its handshake");
        return;
    }
    match transport {
        Transport::Tls => secured(tcp, client, stop).await,
        Transport::Plain => either(tcp, client, stop).await,
    }
}

/// Shakes hands, then serves what was agreed on.
async fn secured(tcp: TcpStream, mut client: Client, stop: CancellationToken) {
    let acceptor = TlsAcceptor::from(Arc::clone(&client.ingress.tls));
    let handshake = timeout(
        client.ingress.config.handshake_timeout,
        acceptor.accept(tcp),
    );
    let done = tokio::select! {
        done = handshake => done,
        () = client.seat.told_to_leave() => return,
    };
    let tls = match done {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let (_, session) = tls.get_ref();
    client.sni = session.server_name().map(str::to_owned);
    match session.alpn_protocol() {
        Some(b"h2") => http2(tls, client, stop).await,
        _ => either(tls, client, stop).await,
    }
}

async fn http2(stream: impl Stream + 'static, client: Client, stop: CancellationToken) {
    let (seat, protocol) = (Arc::clone(&client.seat), protocol(&client).http2_only());
    let stream = heard(stream, Arc::clone(&seat));
    let connection = protocol.serve_connection(stream, service(client));
    requests(connection, Order::Last, &seat, stop).await;
}

/// Serves HTTP/1.1, or HTTP/2 to a client that begins with its preface.
async fn either(stream: impl Stream + 'static, client: Client, stop: CancellationToken) {
    let (seat, protocol) = (Arc::clone(&client.seat), protocol(&client));
    let stream = heard(stream, Arc::clone(&seat));
    let connection = protocol.serve_connection_with_upgrades(stream, service(client));
    requests(connection, Order::AsWoken, &seat, stop).await;
}

fn tune(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    sockopt::set_socket_keepalive(tcp, true)?;
    sockopt::set_tcp_keepidle(tcp, KEEPALIVE)?;
    // As keep-alive finds out who vanished while silent, this finds out who takes nothing any more.
    let unread_ms = limits::CLIENT_UNREAD_TIMEOUT.as_millis();
    sockopt::set_tcp_user_timeout(tcp, u32::try_from(unread_ms).unwrap_or(u32::MAX))?;
    Ok(())
}

/// The stream of a connection that is to know when something has come.
fn heard<S: Stream>(stream: S, seat: Arc<Seat>) -> TokioIo<InspectReader<S, impl FnMut(&[u8])>> {
    TokioIo::new(InspectReader::new(stream, move |_| seat.heard()))
}

fn service(
    client: Client,
) -> impl Service<
    Request<Incoming>,
    Response = Response<Measured<ResponseBody>>,
    Error = Infallible,
    Future: Send + 'static,
> {
    let client = Arc::new(client);
    service_fn(move |request| {
        let client = Arc::clone(&client);
        async move { Ok::<_, Infallible>(client.answer(request).await) }
    })
}

/// Serves the requests of one connection until it ends.
async fn requests(
    connection: impl GracefulConnection<Error: Display>,
    order: Order,
    seat: &Arc<Seat>,
    stop: CancellationToken,
) {
    let mut connection = pin!(connection);
    let mut told = pin!(seat.told_to_leave());
    let mut left = pin!(seat.left(limits::SHED_GRACE));
    let (mut staying, mut leaving) = (true, false);
    loop {
        tokio::select! {
            ended = in_order(order, connection.as_mut()) => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection broke");
                }
                return;
            }
            () = told.as_mut(), if staying => {
                // A stop of the listener waits for what is in flight by itself.
                leaving = !stop.is_cancelled();
                // Neither HTTP stops waiting for a head by itself.
                if leaving && seat.is_head_due() {
                    return;
                }
                staying = false;
                connection.as_mut().graceful_shutdown();
            }
            // A client may have sent a request before it was told to go, or take its time to.
            () = left.as_mut(), if leaving => return,
        }
    }
}

/// When a connection goes on, after it was woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    AsWoken,
    /// After all tasks that are ready by then. The answers of many streams come at about the same time, and each wakes
    /// the connection: so it sends them all at once, and not each by itself.
    Last,
}

async fn in_order<F: Future>(order: Order, mut connection: Pin<&mut F>) -> F::Output {
    let mut waits = false;
    poll_fn(|context| {
        waits = order == Order::Last && !waits;
        if waits {
            // To the end of the line.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        connection.as_mut().poll(context)
    })
    .await
}

/// HTTP/1 or HTTP/2, as the client's first bytes have it, within the product's limits.
fn protocol(client: &Client) -> auto::Builder<Tasks> {
    let mut builder = auto::Builder::new(client.tasks.clone());
    builder
        .http1()
        // One sweep looks after all connections, in place of a timer for each request.
        .header_read_timeout(None)
        .max_buf_size(limits::HTTP_HEAD_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .max_concurrent_streams(limits::H2_STREAMS_MAX)
        .initial_stream_window_size(limits::H2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::H2_CONNECTION_WINDOW_BYTES)
        .max_header_list_size(limits::HTTP_HEAD_BYTES_MAX as u32)
        .max_send_buf_size(limits::H2_SEND_BUFFER_BYTES)
        .keep_alive_interval(limits::H2_PING_INTERVAL)
        .keep_alive_timeout(limits::H2_PING_TIMEOUT);
    builder
}
