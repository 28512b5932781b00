//! From a listening socket to requests: accepting, the TLS handshake, HTTP by ALPN. Without TLS, the
//! first bytes tell HTTP/2 from HTTP/1.1.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use dormouse_core::limits;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::connections::{Connections, Seat};
use crate::proxy::Client;
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
        drain_timeout,
        ..
    } = ingress.config;
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
        () = connections.sweep(head_timeout, idle_timeout) => {}
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
        Transport::Plain => {
            let protocol = protocol(&client);
            requests(tcp, protocol, Order::AsWoken, client, stop).await;
        }
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
    let protocol = protocol(&client);
    let (protocol, order) = match session.alpn_protocol() {
        Some(b"h2") => (protocol.http2_only(), Order::Last),
        _ => (protocol.http1_only(), Order::AsWoken),
    };
    requests(tls, protocol, order, client, stop).await;
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

/// Serves the requests of one connection until it ends.
async fn requests(
    stream: impl Stream + 'static,
    protocol: auto::Builder<Tasks>,
    order: Order,
    client: Client,
    stop: CancellationToken,
) {
    let seat = Arc::clone(&client.seat);
    let client = Arc::new(client);
    let service = service_fn(move |request| {
        let client = Arc::clone(&client);
        async move { Ok::<_, Infallible>(client.answer(request).await) }
    });
    let mut connection =
        pin!(protocol.serve_connection_with_upgrades(TokioIo::new(stream), service));
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
                // HTTP/2 has no time limit of its own for a client that says nothing at all.
                if leaving && !seat.is_used() {
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
    let Config { head_timeout, .. } = client.ingress.config;
    let mut builder = auto::Builder::new(client.tasks.clone());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
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
