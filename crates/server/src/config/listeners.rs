//! Listeners that are off unless configured: plain HTTP for endpoints, DNS, CONNECT.

use super::ConfigError;
use serde::Deserialize;
use std::net::{IpAddr, SocketAddr};

/// Most addresses of the endpoint domain: an answer with all of them fits the smallest DNS packet.
const ADDRESSES_MAX: usize = 8;

/// What the DNS answerer says, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DnsConfig {
    /// Where it listens, by UDP and TCP.
    pub(crate) addr: SocketAddr,
    /// Addresses of the endpoint domain and all names below it.
    pub(crate) addresses: Vec<IpAddr>,
}

/// `[dns]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawDns {
    addr: Option<SocketAddr>,
    addresses: Vec<IpAddr>,
}

/// `[connect]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawConnect {
    pub(super) addr: Option<SocketAddr>,
}

/// Checks `[dns]`; endpoints are at the ingress unless it says otherwise.
pub(super) fn dns(raw: RawDns, ingress: SocketAddr) -> Result<Option<DnsConfig>, ConfigError> {
    let Some(addr) = raw.addr else {
        if raw.addresses.is_empty() {
            return Ok(None);
        }
        return Err(ConfigError::Value {
            key: "dns.addr",
            problem: "it is missing".to_owned(),
            remedy: "write where to answer, as in \"127.0.0.1:5353\"",
        });
    };
    let addresses = match raw.addresses.is_empty() {
        true => vec![ingress.ip()],
        false => raw.addresses,
    };
    if addresses.len() > ADDRESSES_MAX || addresses.iter().any(IpAddr::is_unspecified) {
        return Err(ConfigError::Value {
            key: "dns.addresses",
            problem: format!("{addresses:?} are not addresses that clients could connect to"),
            remedy: "write up to 8 addresses of this host, as in [\"192.0.2.1\"]",
        });
    }
    Ok(Some(DnsConfig { addr, addresses }))
}

/// Lets a listener without TLS, or one that lends the daemon's names to whoever connects, be on loopback only.
pub(super) fn on_loopback(
    key: &'static str,
    addr: Option<SocketAddr>,
) -> Result<Option<SocketAddr>, ConfigError> {
    match addr {
        Some(addr) if !addr.ip().is_loopback() => Err(ConfigError::Value {
            key,
            problem: format!("{addr} is not on loopback, and what is sent there is not encrypted"),
            remedy: "write a loopback address, as in \"127.0.0.1:9080\"",
        }),
        addr => Ok(addr),
    }
}
