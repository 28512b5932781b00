//! The host's resolvers, and the asking of them.

use super::message::Query;
use super::{PORT, read_message, write_message};
use aws_lc_rs::rand;
use dormouse_core::limits;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout};

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// A changed file is noticed after this: laptops change networks.
const REREAD_AFTER: Duration = Duration::from_secs(10);
/// Resolvers that are used, as in the C library.
const RESOLVERS_MAX: usize = 3;
/// Largest message that DNS can carry.
const MESSAGE_BYTES_MAX: usize = 65_535;

/// How a query travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// Where queries go.
#[derive(Debug)]
pub(crate) enum Resolvers {
    /// To these.
    Fixed(Vec<SocketAddr>),
    /// To those of the host's own configuration, as last read.
    Host(Mutex<Option<(Instant, Vec<SocketAddr>)>>),
}

impl Resolvers {
    /// These, or the host's own when none is given.
    pub(crate) fn new(fixed: Vec<SocketAddr>) -> Self {
        if fixed.is_empty() {
            Self::Host(Mutex::default())
        } else {
            Self::Fixed(fixed.into_iter().take(RESOLVERS_MAX).collect())
        }
    }

    /// A resolver's answer, under the query's id; "server failure" when none answers in time.
    pub(super) async fn resolve(&self, query: &Query, transport: Transport) -> Vec<u8> {
        let servers = self.current().await;
        let share = limits::DNS_TIMEOUT / u32::try_from(servers.len().max(1)).unwrap_or(1);
        for server in servers {
            let asked = async {
                match transport {
                    Transport::Udp => ask_by_datagram(server, query).await,
                    Transport::Tcp => ask_by_stream(server, query).await,
                }
            };
            match timeout(share, asked).await {
                Ok(Ok(answer)) => return answer,
                Ok(Err(error)) => tracing::debug!(%server, %error, "resolver failed"),
                Err(_) => tracing::debug!(%server, "resolver did not answer in time"),
            }
        }
        query.server_failure()
    }

    async fn current(&self) -> Vec<SocketAddr> {
        let cache = match self {
            Self::Fixed(servers) => return servers.clone(),
            Self::Host(cache) => cache,
        };
        let cached = cache.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((read, servers)) = cached
            && read.elapsed() < REREAD_AFTER
        {
            return servers;
        }
        let text = tokio::fs::read_to_string(RESOLV_CONF).await;
        let text = text.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read {RESOLV_CONF}");
            String::new()
        });
        let servers = parse_resolv_conf(&text);
        let fresh = Some((Instant::now(), servers.clone()));
        *cache.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        servers
    }
}

/// The name servers of a `resolv.conf`; the local one when it names none, as resolv.conf(5) has it.
fn parse_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let servers: Vec<SocketAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let addr = (words.next()? == "nameserver").then(|| words.next())??;
            // An address with a zone, as in fe80::1%eth0, is not supported.
            Some(SocketAddr::new(addr.parse().ok()?, PORT))
        })
        .take(RESOLVERS_MAX)
        .collect();
    if servers.is_empty() {
        return vec![SocketAddr::from((Ipv4Addr::LOCALHOST, PORT))];
    }
    servers
}

async fn ask_by_datagram(server: SocketAddr, query: &Query) -> io::Result<Vec<u8>> {
    // Port 0: a fresh random port for each query. Connected: the kernel drops other senders' datagrams.
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let id = random_id()?;
    socket.send(&query.with_id(id)).await?;
    let mut datagram = vec![0; MESSAGE_BYTES_MAX];
    loop {
        let len = socket.recv(&mut datagram).await?;
        if let Some(answer) = query.match_answer(id, datagram[..len].to_vec()) {
            return Ok(answer);
        }
    }
}

async fn ask_by_stream(server: SocketAddr, query: &Query) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let id = random_id()?;
    write_message(&mut stream, &query.with_id(id)).await?;
    let answer = read_message(&mut stream, MESSAGE_BYTES_MAX).await?;
    answer
        .and_then(|answer| query.match_answer(id, answer))
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn random_id() -> io::Result<[u8; 2]> {
    let mut id = [0; 2];
    rand::fill(&mut id).map_err(|_| io::Error::other("no randomness"))?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_name_servers_of_a_resolv_conf() {
        let text = "# comment\nsearch example.org\nnameserver 192.0.2.53\n nameserver\t2001:db8::53 # x\n\
            nameserver fe80::1%eth0\nnameserver\nnameserver 127.0.0.53\nnameserver 192.0.2.54\n";
        let servers: Vec<String> = parse_resolv_conf(text)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            servers,
            ["192.0.2.53:53", "[2001:db8::53]:53", "127.0.0.53:53"]
        );
    }

    #[test]
    fn without_name_servers_the_local_one_is_asked() {
        assert_eq!(parse_resolv_conf(""), ["127.0.0.1:53".parse().unwrap()]);
    }
}
