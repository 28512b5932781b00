//! The agent's only door: an HTTP/1.1 listener on the link to the host.
//!
//! The app lives on the same kernel and must not get in: the listener is bound to the link, so that
//! loopback does not lead to it, and any peer but the host is hung up on unheard.

use crate::cgroup::Cgroup;
use crate::network::LINK;
use crate::routes::Agent;
use crate::{console, routes};
use dormouse_core::guest::{AGENT_PORT, HOST_ADDR};
use dormouse_core::limits;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;

/// Most connections of the host at once, tunnels included.
pub(crate) const CONNECTIONS_MAX: usize = 512;
const BACKLOG: u32 = 1024;
/// A host that was left behind by a snapshot is noticed within about half a minute.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
/// When the kernel runs out of something, accepting goes on after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Answers the host for as long as the VM runs.
pub(crate) async fn serve(root: Cgroup) -> io::Result<()> {
    let agent = Arc::new(Agent::new(&root)?);
    let listener = listen()?;
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    console::say(format_args!("ready on port {AGENT_PORT}"));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                console::say(format_args!("cannot accept a connection: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if peer.ip() != IpAddr::V4(HOST_ADDR) {
            continue;
        }
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            continue;
        };
        let agent = agent.clone();
        tokio::spawn(async move {
            // Errors are the host's hang-ups: nothing to be done about.
            let _ = answer(stream, agent).await;
            drop(slot);
        });
    }
}

fn listen() -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind_device(Some(LINK.as_bytes()))?;
    socket.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, AGENT_PORT)))?;
    socket.listen(BACKLOG)
}

async fn answer(stream: TcpStream, agent: Arc<Agent>) -> Result<(), Box<dyn std::error::Error>> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_RETRIES)?;
    let service = service_fn(move |request| {
        let agent = agent.clone();
        async move { Ok::<_, std::convert::Infallible>(routes::answer(agent, request).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HTTP_HEAD_TIMEOUT)
        .max_headers(limits::HTTP_HEADERS_MAX)
        .max_buf_size(limits::HTTP_HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await?;
    Ok(())
}
