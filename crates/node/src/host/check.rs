//! Whether this host can make network slots, explained for people.

use super::cidr::Cidr;
use super::netns;
use super::plumbing::{self, TAP};
use super::rules::Policy;
use super::slot::SlotError;
use dormouse_core::egress::Egress;
use serde::Deserialize;

/// One thing that slots need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// Whether it is as it must be.
    pub ok: bool,
    /// What was found, or what to do about it.
    pub detail: String,
}

/// Looks at everything that slots need. Changes nothing.
pub async fn check() -> Vec<Check> {
    let checks = || {
        vec![
            outcome("ip", version("ip", "-V")),
            outcome("nft", version("nft", "--version")),
            outcome("netns, tun, packet filter", probe_slot()),
            outcome("ip_forward", ip_forward()),
            outcome("forward chains", forward_chains()),
        ]
    };
    let checked = tokio::task::spawn_blocking(checks).await;
    checked.unwrap_or_else(|error| {
        vec![Check {
            name: "network",
            ok: false,
            detail: error.to_string(),
        }]
    })
}

fn outcome(name: &'static str, found: Result<String, String>) -> Check {
    let ok = found.is_ok();
    let (Ok(detail) | Err(detail)) = found;
    Check { name, ok, detail }
}

fn version(tool: &'static str, flag: &str) -> Result<String, String> {
    let version = plumbing::output(tool, &[flag], "").map_err(|error| explain(&error))?;
    Ok(version.trim().to_owned())
}

/// Makes a namespace with a tap and a slot's rules, all of which vanish again.
fn probe_slot() -> Result<String, String> {
    let probe = || {
        plumbing::run("ip", &["tuntap", "add", "dev", TAP, "mode", "tap"], "")?;
        let rules = Policy::new(Cidr::literal([198, 18, 0, 0], 15), vec![], vec![], vec![]);
        plumbing::run("nft", &["-f", "-"], &rules.slot_rules(&Egress::internet()))?;
        plumbing::run("nft", &["-f", "-"], &rules.host_rules("probe"))
    };
    netns::in_new_namespace(probe)
        .map_err(|error| format!("cannot make a network namespace ({error}); run as root"))?
        .map_err(|error| explain(&error))?;
    Ok("a namespace with a tap and both packet filters works".to_owned())
}

fn ip_forward() -> Result<String, String> {
    let path = "/proc/sys/net/ipv4/ip_forward";
    let value = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    Ok(match value.trim() {
        "1" => "on".to_owned(),
        _ => "off; the daemon turns it on".to_owned(),
    })
}

/// Finds chains that may drop what slots send. Rules before their policy may still accept it, so this
/// informs and never fails.
fn forward_chains() -> Result<String, String> {
    let listed =
        plumbing::output("nft", &["-j", "list", "chains"], "").map_err(|error| explain(&error))?;
    let dropping = dropping_chains(&listed).map_err(|error| error.to_string())?;
    if dropping.is_empty() {
        return Ok("none drops by default".to_owned());
    }
    Ok(format!(
        "{} drop forwarded packets by default: if guests reach nothing outside, accept interfaces dm* \
         there (Docker: iptables -I DOCKER-USER -i dm+ -j ACCEPT, and the same with -o)",
        dropping.join(", ")
    ))
}

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    chain: Option<Chain>,
}

#[derive(Deserialize)]
struct Chain {
    family: String,
    table: String,
    name: String,
    hook: Option<String>,
    policy: Option<String>,
}

fn dropping_chains(listing: &str) -> Result<Vec<String>, serde_json::Error> {
    let listing: Listing = serde_json::from_str(listing)?;
    let drops = |chain: &Chain| {
        chain.hook.as_deref() == Some("forward") && chain.policy.as_deref() == Some("drop")
    };
    Ok(listing
        .nftables
        .into_iter()
        .filter_map(|item| item.chain)
        .filter(drops)
        .map(|chain| format!("{} {} {}", chain.family, chain.table, chain.name))
        .collect())
}

fn explain(error: &SlotError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_chains_that_drop_forwarded_packets() {
        let listing = r#"{"nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "handle": 2,
                       "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "ip", "table": "filter", "name": "INPUT", "handle": 1,
                       "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "ip", "table": "filter", "name": "DOCKER", "handle": 3}}
        ]}"#;
        assert_eq!(dropping_chains(listing).unwrap(), ["ip filter FORWARD"]);
    }
}
