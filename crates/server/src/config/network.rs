//! `[network]`: what guests may reach.

use super::ConfigError;
use dormouse_core::limits;
use dormouse_node::host::cidr::Cidr;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

const DNS_PORT: u16 = 53;

/// What guests may reach and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkConfig {
    /// Addresses of the links between host and slots; none for the default.
    pub(crate) slots: Option<Cidr>,
    /// Slots that are kept made ahead of need.
    pub(crate) warm_slots: usize,
    /// Resolvers for the guests' queries; empty for the host's own.
    pub(crate) dns: Vec<SocketAddr>,
    /// Ranges to block besides those that always are.
    pub(crate) block: Vec<Cidr>,
    /// Ranges to let through although they are blocked.
    pub(crate) allow: Vec<Cidr>,
    /// Ranges that network connectors open, by the name of their subnet.
    pub(crate) subnets: Arc<Subnets>,
}

/// Ranges by the name of a subnet, as in `subnet-db`.
pub(crate) type Subnets = BTreeMap<String, Vec<Cidr>>;

/// `[network]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawNetwork {
    slots: Option<String>,
    warm_slots: Option<usize>,
    dns: Vec<String>,
    block: Vec<String>,
    allow: Vec<String>,
    subnets: BTreeMap<String, Vec<String>>,
}

/// Checks `[network]`.
pub(super) fn network(raw: &RawNetwork) -> Result<NetworkConfig, ConfigError> {
    let warm_slots = raw.warm_slots.unwrap_or(limits::SLOTS_WARM);
    if warm_slots > usize::from(limits::SLOTS_MAX) {
        return Err(ConfigError::Value {
            key: "network.warm_slots",
            problem: format!("{warm_slots} is more than a host can have"),
            remedy: "write a small number, as in 4",
        });
    }
    Ok(NetworkConfig {
        slots: raw
            .slots
            .as_deref()
            .map(|text| cidr("network.slots", text))
            .transpose()?,
        warm_slots,
        dns: raw
            .dns
            .iter()
            .map(|text| resolver(text))
            .collect::<Result<_, _>>()?,
        block: cidrs("network.block", &raw.block)?,
        allow: cidrs("network.allow", &raw.allow)?,
        subnets: Arc::new(subnets(&raw.subnets)?),
    })
}

fn subnets(raw: &BTreeMap<String, Vec<String>>) -> Result<Subnets, ConfigError> {
    const KEY: &str = "network.subnets";
    let refuse = |problem: String| ConfigError::Value {
        key: KEY,
        problem,
        remedy: "write up to 64 names with up to 64 ranges each, as in subnet-db = [\"10.1.0.0/16\"]",
    };
    if raw.len() > limits::SUBNETS_MAX {
        return Err(refuse(format!("{} subnets are too many", raw.len())));
    }
    let entry = |(name, texts): (&String, &Vec<String>)| {
        if !is_subnet(name) {
            return Err(refuse(format!("{name:?} is not the name of a subnet")));
        }
        if texts.is_empty() || texts.len() > limits::SUBNET_RANGES_MAX {
            return Err(refuse(format!("{name} has {} ranges", texts.len())));
        }
        Ok((name.clone(), cidrs(KEY, texts)?))
    };
    raw.iter().map(entry).collect()
}

/// A subnet has the form of AWS's, since that is what clients may ask for.
fn is_subnet(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.strip_prefix("subnet-")
        .is_some_and(|rest| (1..=64).contains(&rest.len()) && rest.bytes().all(allowed))
}

fn cidrs(key: &'static str, texts: &[String]) -> Result<Vec<Cidr>, ConfigError> {
    texts.iter().map(|text| cidr(key, text)).collect()
}

fn cidr(key: &'static str, text: &str) -> Result<Cidr, ConfigError> {
    text.parse().map_err(|error| ConfigError::Value {
        key,
        problem: format!("{error}"),
        remedy: "write ranges as in \"10.1.0.0/16\", with no bits set after the prefix",
    })
}

fn resolver(text: &str) -> Result<SocketAddr, ConfigError> {
    let address = text
        .parse::<IpAddr>()
        .map(|ip| SocketAddr::new(ip, DNS_PORT));
    address
        .or_else(|_| text.parse::<SocketAddr>())
        .map_err(|_| ConfigError::Value {
            key: "network.dns",
            problem: format!("{text:?} is not a resolver"),
            remedy: "write addresses, as in [\"9.9.9.9\", \"192.0.2.1:5353\"]",
        })
}
