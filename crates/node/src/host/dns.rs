//! Forwards a slot's DNS queries to the host's resolvers.
//!
//! The sockets that face the guest live in its namespace, those that face the resolvers in the host's, so
//! resolvers on the host's loopback work too. Each query goes out from a fresh socket under a random id,
//! and only an answer to that very question comes back. A guest has a bounded number of queries in
//! flight, and of connections; beyond it datagrams are dropped and connections wait.

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
            let mut served = Served::default();
            tokio::select! {
                () = served.serve(&udp, &tcp, &resolvers) => {}
                () = stopping.cancelled() => {}
            }
            served.queries.shutdown().await;
            served.streams.shutdown().await;
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

/// What a guest has asked and is not answered yet.
#[derive(Default)]
struct Served {
    /// Datagrams.
    queries: JoinSet<Reply>,
    /// Connections, each with one query at a time.
    streams: JoinSet<()>,
}

impl Served {
    async fn serve(&mut self, udp: &UdpSocket, tcp: &TcpListener, resolvers: &Arc<Resolvers>) {
        // One byte more than a query may have, so that a longer one is seen to be longer.
        let mut datagram = vec![0; limits::DNS_QUERY_BYTES_MAX + 1];
        loop {
            let Self { queries, streams } = self;
            tokio::select! {
                Some(done) = queries.join_next() => send_reply(udp, done).await,
                Some(done) = streams.join_next() => {
                    if let Err(error) = done {
                        tracing::error!(%error, "dns connection failed");
                    }
                }
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
                    if queries.len() < limits::DNS_IN_FLIGHT_MAX {
                        let resolvers = resolvers.clone();
                        queries.spawn(async move {
                            (resolvers.resolve(&query, resolvers::Transport::Udp).await, peer)
                        });
                    }
                }
                accepted = tcp.accept(), if streams.len() < limits::DNS_STREAMS_MAX => match accepted {
                    Ok((stream, _)) => {
                        let resolvers = resolvers.clone();
                        streams.spawn(async move {
                            if let Err(error) = serve_stream(stream, &resolvers).await {
                                tracing::debug!(%error, "dns connection of a guest broke");
                            }
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
}

async fn send_reply(udp: &UdpSocket, done: Result<Reply, tokio::task::JoinError>) {
    match done {
        Ok((answer, peer)) => {
            if let Err(error) = udp.send_to(&answer, peer).await {
                tracing::debug!(%error, "dns answer not sent");
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A query for `a.`, as it goes over a connection.
    const QUERY: &[u8] = b"\0\x13\0\x07\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01";

    #[tokio::test]
    async fn connections_beyond_the_limit_wait_for_one_to_end() {
        let loopback = (std::net::Ipv4Addr::LOCALHOST, 0);
        let udp = UdpSocket::bind(loopback).await.unwrap();
        let tcp = TcpListener::bind(loopback).await.unwrap();
        let addr = tcp.local_addr().unwrap();
        // Nobody answers there, so the forwarder does at once.
        let closed = TcpListener::bind(loopback).await.unwrap().local_addr();
        let resolvers = Arc::new(Resolvers::new(vec![closed.unwrap()]));
        let forwarder = tokio::spawn(async move {
            Served::default().serve(&udp, &tcp, &resolvers).await;
        });

        let mut idle = Vec::new();
        for _ in 0..limits::DNS_STREAMS_MAX {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            stream.write_all(QUERY).await.unwrap();
            read_message(&mut stream, QUERY.len()).await.unwrap();
            idle.push(stream);
        }
        let mut late = TcpStream::connect(addr).await.unwrap();
        late.write_all(QUERY).await.unwrap();
        let short = Duration::from_millis(200);
        let early = timeout(short, read_message(&mut late, QUERY.len())).await;
        assert!(early.is_err(), "one too many is served");
        idle.pop();
        let answer = read_message(&mut late, QUERY.len()).await.unwrap();
        assert_eq!(answer.unwrap()[..2], [0, 7]);
        forwarder.abort();
    }
}
