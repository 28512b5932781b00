//! Checks of the network: slots, names, ports.

use super::Finding;
use crate::config::Config;
use crate::daemon::{DaemonError, DataLock};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;
use tokio::net::lookup_host;

/// A name that takes longer than this is as good as unknown.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// A name that every build of a Debian image needs.
const PUBLIC_NAME: &str = "deb.debian.org";

/// Looks at slots, names and ports.
pub(super) async fn check(config: &Config) -> Vec<Finding> {
    let mut findings = slots().await;
    findings.push(dns(config).await);
    findings.push(endpoint_names(config).await);
    let running = is_running(config);
    findings.push(port("api port", "api_addr", config.api_addr, running));
    findings.push(port(
        "ingress port",
        "ingress_addr",
        config.ingress_addr,
        running,
    ));
    findings
}

async fn slots() -> Vec<Finding> {
    let checks = dormouse_node::host::check::check().await;
    let finding = |check: dormouse_node::host::check::Check| match check.ok {
        true => Finding::good(check.name, check.detail),
        false => Finding::failure(
            check.name,
            check.detail,
            "run as root, and `apt install iproute2 nftables`; in a container, with `--privileged`",
        ),
    };
    checks.into_iter().map(finding).collect()
}

async fn dns(config: &Config) -> Finding {
    match resolve(PUBLIC_NAME).await {
        Ok(address) => Finding::good("dns", format!("{PUBLIC_NAME} is {address}")),
        Err(_) if !config.network.dns.is_empty() => Finding::note(
            "dns",
            format!("the host does not resolve {PUBLIC_NAME}; guests ask the configured resolvers"),
            "nothing, if those are reachable",
        ),
        Err(problem) => Finding::note(
            "dns",
            format!("{PUBLIC_NAME}: {problem}: builds that install packages will fail"),
            "name resolvers in /etc/resolv.conf, or in the configuration as network.dns",
        ),
    }
}

async fn endpoint_names(config: &Config) -> Finding {
    let name = format!("doctor.{}", config.endpoint_domain);
    let local = config.endpoint_domain.ends_with(".localhost");
    let own = config.ingress_addr.ip();
    match resolve(&name).await {
        Ok(address) if !local || address.is_loopback() || address == own => {
            Finding::good("endpoint names", format!("{name} is {address}"))
        }
        Ok(address) => Finding::note(
            "endpoint names",
            format!("{name} is {address}, which is not this host"),
            "look at the host's resolver: names under localhost must be the loopback",
        ),
        // curl and browsers know these names by themselves.
        Err(_) if local => Finding::note(
            "endpoint names",
            format!(
                "the host's resolver does not know *.{}; curl and browsers do",
                config.endpoint_domain
            ),
            "for other clients: `apt install libnss-myhostname`",
        ),
        Err(problem) => Finding::note(
            "endpoint names",
            format!("{name}: {problem}"),
            format!(
                "make a wildcard record *.{} that points at this host",
                config.endpoint_domain
            ),
        ),
    }
}

async fn resolve(name: &str) -> Result<IpAddr, String> {
    let found = tokio::time::timeout(LOOKUP_TIMEOUT, lookup_host((name, 443))).await;
    match found {
        Err(_) => Err("no answer in time".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(mut addresses)) => match addresses.next() {
            Some(address) => Ok(address.ip()),
            None => Err("no address".to_owned()),
        },
    }
}

fn is_running(config: &Config) -> bool {
    config.data_dir.is_dir()
        && matches!(
            DataLock::acquire(&config.data_dir),
            Err(DaemonError::Locked(_))
        )
}

fn port(name: &'static str, key: &str, address: SocketAddr, running: bool) -> Finding {
    match TcpListener::bind(address) {
        Ok(_) => Finding::good(name, format!("{address} is free")),
        Err(_) if running => Finding::good(name, format!("{address} is in use: the daemon runs")),
        Err(error) => Finding::failure(
            name,
            format!("{address}: {error}"),
            format!("end what listens there, or choose another {key}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_port_that_is_taken_fails_unless_the_daemon_has_it() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        assert_eq!(
            port("p", "api_addr", address, false).verdict,
            Verdict::Failure
        );
        assert_eq!(port("p", "api_addr", address, true).verdict, Verdict::Good);
        drop(taken);
        assert_eq!(port("p", "api_addr", address, false).verdict, Verdict::Good);
    }
}
