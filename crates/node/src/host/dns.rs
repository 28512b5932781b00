//! Forwards a slot's DNS queries to the host's resolvers.
//!
//! The sockets that face the guest live in its namespace, those that face the resolvers in the host's, so
//! resolvers on the host's loopback work too. Each query goes out from a fresh socket under a random id,
//! and only an answer to that very question comes back. A guest has a bounded number of queries in
//! flight; beyond it datagrams are dropped and connections wait.

mod message;
mod resolvers;

use super::netns::NetnsThread;
use dormouse_core::{guest, limits};
use message::Query;
pub(crate) use resolvers::Resolvers;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

const PORT: u16 = 53;
/// A slot's sockets may be closing still when it is opened again.
const BIND_TRIES: u32 = 40;
const BIND_PAUSE: Duration = Duration::from_millis(50);
/// Pause after the kernel refuses a datagram or connection, as when descriptors run out.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);

/// The forwarder of one slot. Dropping it ends it soon, [`Self::stop`] at once.
#[derive(Debug)]
pub(crate) struct Forwarder {
    task: JoinHandle<()>,
    stop: DropGuard,
}

impl Forwarder {
    /// Opens the sockets in the namespace and serves them.
    pub(crate) async fn start(
        thread: &NetnsThread,
        netns: &Arc<OwnedFd>,
        resolvers: Arc<Resolvers>,
    ) -> io::Result<Self> {
        let (udp, tcp) = open_sockets(thread, netns).await?;
        let stopping = CancellationToken::new();
        let stop = stopping.clone().drop_guard();
        let task = tokio::spawn(async move {
            let mut queries = JoinSet::new();
            tokio::select! {
                () = serve(&udp, &tcp, &resolvers, &mut queries) => {}
                () = stopping.cancelled() => {}
            }
            queries.shutdown().await;
        });
        Ok(Self { task, stop })
    }

    /// Ends the forwarder. Its sockets are closed when this returns.
    pub(crate) async fn stop(self) {
        drop(self.stop);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "dns forwarder failed");
        }
    }
}

async fn open_sockets(
    thread: &NetnsThread,
    netns: &Arc<OwnedFd>,
) -> io::Result<(UdpSocket, TcpListener)> {
    let mut tries = 0;
    let (udp, tcp) = loop {
        let opened: io::Result<_> = thread.run(netns, bind).await;
        match opened {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < BIND_TRIES => {
                tries += 1;
                sleep(BIND_PAUSE).await;
            }
            opened => break opened?,
        }
    };
    Ok((UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?))
}

fn bind() -> io::Result<(std::net::UdpSocket, std::net::TcpListener)> {
    let udp = std::net::UdpSocket::bind((guest::DNS_ADDR, PORT))?;
    let tcp = std::net::TcpListener::bind((guest::DNS_ADDR, PORT))?;
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    Ok((udp, tcp))
}

/// An answer to send as a datagram.
type Reply = (Vec<u8>, SocketAddr);

async fn serve(
    udp: &UdpSocket,
    tcp: &TcpListener,
    resolvers: &Arc<Resolvers>,
    queries: &mut JoinSet<Option<Reply>>,
) {
    // One byte more than a query may have, so that a longer one is seen to be longer.
    let mut datagram = vec![0; limits::DNS_QUERY_BYTES_MAX + 1];
    loop {
        let has_room = queries.len() < limits::DNS_IN_FLIGHT_MAX;
        tokio::select! {
            Some(done) = queries.join_next() => send_reply(udp, done).await,
            received = udp.recv_from(&mut datagram) => {
                let (len, peer) = match received {
                    Ok(received) => received,
                    Err(error) => {
                        tracing::warn!(%error, "dns query not received");
                        sleep(FAILURE_PAUSE).await;
                        continue;
                    }
                };
                let Some(query) = Query::parse(&datagram[..len]) else { continue };
                if has_room {
                    let resolvers = resolvers.clone();
                    queries.spawn(async move {
                        let answer = resolvers.resolve(&query, resolvers::Transport::Udp).await;
                        Some((answer, peer))
                    });
                }
            }
            accepted = tcp.accept(), if has_room => match accepted {
                Ok((stream, _)) => {
                    let resolvers = resolvers.clone();
                    queries.spawn(async move {
                        if let Err(error) = serve_stream(stream, &resolvers).await {
                            tracing::debug!(%error, "dns connection of a guest broke");
                        }
                        None
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "dns connection not accepted");
                    sleep(FAILURE_PAUSE).await;
                }
            },
        }
    }
}

async fn send_reply(udp: &UdpSocket, done: Result<Option<Reply>, tokio::task::JoinError>) {
    match done {
        Ok(Some((answer, peer))) => {
            if let Err(error) = udp.send_to(&answer, peer).await {
                tracing::debug!(%error, "dns answer not sent");
            }
        }
        Ok(None) => {}
        Err(error) => tracing::error!(%error, "dns query failed"),
    }
}

/// Answers the queries of one connection, one after the other, until the guest falls silent.
async fn serve_stream(mut stream: TcpStream, resolvers: &Resolvers) -> io::Result<()> {
    loop {
        let read = timeout(
            limits::DNS_TIMEOUT,
            read_message(&mut stream, limits::DNS_QUERY_BYTES_MAX),
        );
        let Ok(message) = read.await else {
            return Ok(());
        };
        let Some(query) = message?.and_then(|message| Query::parse(&message)) else {
            return Ok(());
        };
        let answer = resolvers.resolve(&query, resolvers::Transport::Tcp).await;
        timeout(limits::DNS_TIMEOUT, write_message(&mut stream, &answer)).await??;
    }
}

/// Reads a message with its length before it; none at the end of the stream.
async fn read_message(stream: &mut TcpStream, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
    let len = match stream.read_u16().await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        len => usize::from(len?),
    };
    if len > bytes_max {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; len];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let len = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut framed = Vec::with_capacity(2 + message.len());
    framed.extend(len.to_be_bytes());
    framed.extend(message);
    // One write, so that the length never travels alone.
    stream.write_all(&framed).await
}
