//! Which addresses may be asked: a Dockerfile names registries, and it is the daemon, as root and from the host's
//! own network, that asks them.
//!
//! Hosts that the configuration names may be anywhere. All others are reached at public addresses only, whether they
//! are written as one, resolve to one, or come of a registry's redirect or token server.

use super::RegistryConfig;
use super::endpoint::is_loopback;
use dormouse_core::cidr::Cidr;
use dormouse_core::egress::NOT_PUBLIC;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

/// The hosts that the configuration names, each with its port where it has one.
pub(super) fn named(config: &RegistryConfig) -> BTreeSet<String> {
    let mirrors = config.mirrors.iter();
    let mirrors = mirrors.flat_map(|(host, mirrors)| {
        let addresses = mirrors.iter().map(super::Mirror::authority);
        addresses.chain([host.clone()])
    });
    let listed = config.private.iter().chain(&config.plain_http);
    let known = listed.chain(config.credentials.keys()).cloned();
    known.chain(mirrors).collect()
}

/// Whether a host, perhaps with a port, is no public address by its spelling alone.
pub(super) fn is_private(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    let address = host.parse::<IpAddr>();
    is_loopback(authority) || address.is_ok_and(|address| !is_public(address))
}

/// Whether anybody on the internet could be asked there.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let address = Cidr::literal(address.octets(), 32);
            !NOT_PUBLIC.iter().any(|range| range.contains(address))
        }
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(mapped) => is_public(mapped.into()),
            None => is_public_v6(address),
        },
    }
}

/// Global unicast, without the ranges that lead to an IPv4 address.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    let is_teredo = first == 0x2001 && second == 0;
    let is_6to4 = first == 0x2002;
    first >> 13 == 1 && !is_teredo && !is_6to4
}

/// A name has no public address.
#[derive(Debug, thiserror::Error)]
#[error("it has no public address")]
pub(super) struct NotPublic;

/// Finds the public addresses of a name.
#[derive(Debug)]
pub(super) struct PublicResolver {
    /// Names of the environment's proxies: what lies behind them is theirs to decide.
    proxies: BTreeSet<String>,
}

impl PublicResolver {
    pub(super) fn new() -> Self {
        const VARIABLES: [&str; 6] = [
            "HTTP_PROXY",
            "http_proxy",
            "HTTPS_PROXY",
            "https_proxy",
            "ALL_PROXY",
            "all_proxy",
        ];
        let texts = VARIABLES.iter().filter_map(|name| std::env::var(name).ok());
        let proxies = texts.filter_map(|text| proxy_host(&text)).collect();
        Self { proxies }
    }
}

impl Resolve for PublicResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let is_proxy = self.proxies.contains(name.as_str());
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let found: Vec<_> = found
                .filter(|address| is_proxy || is_public(address.ip()))
                .collect();
            if found.is_empty() {
                return Err(NotPublic.into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// The host of a proxy's address, whose scheme may be left out.
fn proxy_host(text: &str) -> Option<String> {
    let host = |url: Url| url.host_str().map(str::to_owned);
    let written = Url::parse(text).ok().and_then(host);
    written.or_else(|| host(Url::parse(&format!("http://{text}")).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Credentials;

    #[test]
    fn private_addresses_are_known_in_every_spelling() {
        for private in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.9.9.9",
            "0.0.0.0",
            "10.1.2.3",
            "172.31.0.1:80",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "255.255.255.255",
            "[::1]:5000",
            "[::]",
            "[fe80::1]",
            "[fd00::1]:443",
            "[::ffff:127.0.0.1]",
            "[::ffff:10.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
            "[2001::1]",
            "[ff02::1]",
        ] {
            assert!(is_private(private), "{private}");
        }
        for public in [
            "registry.example.com",
            "9.9.9.9:5000",
            "172.32.0.1",
            "[2620:fe::fe]:443",
        ] {
            assert!(!is_private(public), "{public}");
        }
        // What an address can also be written as, the URL makes plain.
        for written in ["http://2130706433/", "http://0x7f.1/", "http://127.1:5000/"] {
            let url = Url::parse(written).unwrap();
            assert!(
                is_private(&super::super::endpoint::authority(&url)),
                "{written}"
            );
        }
    }

    #[test]
    fn the_configuration_names_hosts_in_several_ways() {
        let mut config = RegistryConfig::default();
        config.private.insert("a".to_owned());
        config.plain_http.insert("b:80".to_owned());
        let mirror = "https://c:5000/hub".parse().unwrap();
        config.mirrors.insert("d".to_owned(), vec![mirror]);
        let credentials = Credentials {
            username: String::new(),
            password_file: "/x".into(),
        };
        config.credentials.insert("e".to_owned(), credentials);
        let named: Vec<_> = named(&config).into_iter().collect();
        assert_eq!(named, ["a", "b:80", "c:5000", "d", "e"]);
    }

    #[tokio::test]
    async fn names_resolve_to_public_addresses_only() {
        let resolve = |proxies: BTreeSet<String>| {
            let name = "localhost".parse().unwrap();
            PublicResolver { proxies }.resolve(name)
        };
        let error = resolve(BTreeSet::new()).await.map(|_| ()).unwrap_err();
        assert!(error.is::<NotPublic>(), "{error}");
        let proxies = BTreeSet::from(["localhost".to_owned()]);
        assert!(resolve(proxies).await.is_ok_and(|found| found.count() > 0));
    }

    #[test]
    fn proxies_are_found_however_they_are_written() {
        for text in [
            "http://proxy.lan:3128",
            "proxy.lan:3128",
            "proxy.lan",
            "http://u:p@proxy.lan/",
        ] {
            assert_eq!(proxy_host(text).as_deref(), Some("proxy.lan"), "{text}");
        }
        assert_eq!(proxy_host(""), None);
    }
}
