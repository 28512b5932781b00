//! From a listening socket to requests: accepting, the TLS handshake, HTTP by ALPN.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dormouse_core::limits;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::proxy::Client;
use crate::tasks::Tasks;
use crate::token_cache::TokenCache;
use crate::upstream::Upstream;
use crate::{Config, Ingress};

/// Pause after the system refused a connection, for instance for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A client that vanished is noticed by these probes, also where HTTP has no say any more.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Serves `ingress` on `listener` until `stop`; then takes no more connections, lets the requests
/// in flight finish for the configured time, and returns when nothing is left.
pub async fn serve(listener: TcpListener, ingress: Arc<Ingress>, stop: CancellationToken) {
    let tasks = Tasks::default();
    let upstream = Upstream::new(
        Arc::clone(&ingress.upstreams),
        ingress.config.upstream_keep,
        tasks.clone(),
    );
    let places = Arc::new(Semaphore::new(ingress.config.connections_max));
    while let Some((tcp, place)) = stop
        .run_until_cancelled(accept(&listener, Arc::clone(&places)))
        .await
    {
        let client = Client {
            ingress: Arc::clone(&ingress),
            sni: None,
            token_cache: TokenCache::default(),
            upstream: upstream.clone(),
            tasks: tasks.clone(),
            place: Arc::new(place),
        };
        tasks.spawn(connection(tcp, client, stop.clone()));
    }
    drop(listener);
    upstream.close();
    tasks.finish(ingress.config.drain_timeout).await;
}

/// The next connection, as soon as there is a place for it.
async fn accept(
    listener: &TcpListener,
    places: Arc<Semaphore>,
) -> (TcpStream, OwnedSemaphorePermit) {
    let place = places
        .acquire_owned()
        .await
        .expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((tcp, _)) => return (tcp, place),
            Err(error) => {
                tracing::warn!(%error, "no connection accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(tcp: TcpStream, mut client: Client, stop: CancellationToken) {
    if let Err(error) = tune(&tcp) {
        tracing::debug!(%error, "a connection ended before its handshake");
        return;
    }
    let acceptor = TlsAcceptor::from(Arc::clone(&client.ingress.tls));
    let handshake = timeout(
        client.ingress.config.handshake_timeout,
        acceptor.accept(tcp),
    );
    let tls = match stop.run_until_cancelled(handshake).await {
        Some(Ok(Ok(tls))) => tls,
        Some(Ok(Err(error))) => {
            tracing::debug!(%error, "TLS handshake failed");
            return;
        }
        Some(Err(_)) | None => return,
    };
    client.sni = tls.get_ref().1.server_name().map(str::to_owned);
    requests(tls, client, stop).await;
}

fn tune(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    sockopt::set_socket_keepalive(tcp, true)?;
    sockopt::set_tcp_keepidle(tcp, KEEPALIVE)?;
    Ok(())
}

/// Serves the requests of one connection until it ends.
async fn requests(tls: TlsStream<TcpStream>, client: Client, stop: CancellationToken) {
    let protocol = protocol(&tls, &client);
    let head_timeout = client.ingress.config.head_timeout;
    let client = Arc::new(client);
    let begun = Arc::new(AtomicBool::new(false));
    let service = service_fn({
        let begun = Arc::clone(&begun);
        move |request| {
            begun.store(true, Ordering::Relaxed);
            let client = Arc::clone(&client);
            async move { Ok::<_, Infallible>(client.answer(request).await) }
        }
    });
    let mut connection = pin!(protocol.serve_connection_with_upgrades(TokioIo::new(tls), service));
    let mut first_head = pin!(sleep(head_timeout));
    let (mut waiting, mut stopping) = (true, false);
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection broke");
                }
                return;
            }
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
            // HTTP/2 has no time limit of its own for a client that says nothing at all.
            () = first_head.as_mut(), if waiting => {
                waiting = false;
                if !begun.load(Ordering::Relaxed) {
                    return;
                }
            }
        }
    }
}

/// HTTP/1 or HTTP/2, as ALPN settled it, within the product's limits.
fn protocol(tls: &TlsStream<TcpStream>, client: &Client) -> auto::Builder<Tasks> {
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
    if tls.get_ref().1.alpn_protocol() == Some(b"h2") {
        builder.http2_only()
    } else {
        builder.http1_only()
    }
}
