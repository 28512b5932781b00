//! Where an image is asked for: the mirrors of its registry, then the registry itself.

use super::RegistryConfig;
use super::reference::{ImageRef, is_host};
use reqwest::Url;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::str::FromStr;

/// Where Docker Hub's API is.
const HUB_API: &str = "registry-1.docker.io";

/// The address of a mirror: scheme, host, and a path where it is not at the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror(Url);

/// Why a text is no mirror's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MirrorError {
    /// It is no address of a server.
    #[error("it is no address, as in https://mirror.example.com")]
    Address,
    /// It has a user name, a query or a fragment.
    #[error("it may have a host and a path, and no more")]
    TooMuch,
}

impl FromStr for Mirror {
    type Err = MirrorError;

    fn from_str(text: &str) -> Result<Self, MirrorError> {
        let url = Url::parse(text).map_err(|_| MirrorError::Address)?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return Err(MirrorError::Address);
        }
        let bare = url.username().is_empty() && url.password().is_none();
        if !bare || url.query().is_some() || url.fragment().is_some() {
            return Err(MirrorError::TooMuch);
        }
        Ok(Self(url))
    }
}

impl Mirror {
    /// Its host, with its port where it has one.
    pub(super) fn authority(&self) -> String {
        authority(&self.0)
    }

    /// Whether it is spoken to over plain HTTP although its host may not be.
    #[must_use]
    pub fn is_forbidden_plain(&self, plain_http: &BTreeSet<String>) -> bool {
        self.0.scheme() == "http" && !may_be_plain(&self.0, plain_http)
    }
}

/// One server that may have an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Endpoint {
    /// Scheme, host and path, without a `/` at the end.
    base: String,
    /// What its credentials are found by.
    pub(super) account: String,
}

impl Endpoint {
    /// The address of something in a repository.
    pub(super) fn url(&self, repository: &str, rest: &str) -> String {
        format!("{}/v2/{repository}/{rest}", self.base)
    }

    /// Its address, for people.
    pub(super) fn name(&self) -> &str {
        &self.base
    }
}

/// The servers to ask for an image, in order; the last one is the registry itself.
pub(super) fn endpoints(config: &RegistryConfig, reference: &ImageRef) -> Vec<Endpoint> {
    let mirrors = config.mirrors.get(reference.host()).into_iter().flatten();
    let mut endpoints: Vec<_> = mirrors
        .filter(|mirror| !mirror.is_forbidden_plain(&config.plain_http))
        .map(|mirror| Endpoint {
            base: mirror.0.as_str().trim_end_matches('/').to_owned(),
            account: mirror.authority(),
        })
        .collect();
    let host = match reference.host() {
        "docker.io" => HUB_API,
        host => host,
    };
    let plain = is_loopback(host) || names(&config.plain_http, "http", host);
    let scheme = if plain { "http" } else { "https" };
    endpoints.push(Endpoint {
        base: format!("{scheme}://{host}"),
        account: reference.host().to_owned(),
    });
    endpoints
}

/// Whether this address may be spoken to without TLS.
pub(super) fn may_be_plain(url: &Url, plain_http: &BTreeSet<String>) -> bool {
    let authority = authority(url);
    is_loopback(&authority) || names(plain_http, "http", &authority)
}

/// Whether a host is among these where this scheme is spoken: people write capitals, and ports that go without saying.
pub(super) fn names(hosts: &BTreeSet<String>, scheme: &str, host: &str) -> bool {
    let plainly = |host: &str| {
        let url = Url::parse(&format!("{scheme}://{host}"));
        url.map_or_else(|_| host.to_owned(), |url| authority(&url))
    };
    let wanted = plainly(host);
    hosts.iter().any(|host| plainly(host) == wanted)
}

/// Host, and the port where it is not the scheme's own.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Whether a host, perhaps with a port, is this machine.
pub(super) fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whether a text can be the host name of a registry, with a port where it has one.
#[must_use]
pub fn is_registry_host(text: &str) -> bool {
    is_host(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(config: &RegistryConfig, reference: &str) -> Vec<String> {
        let reference = ImageRef::parse(reference).unwrap();
        let found = endpoints(config, &reference);
        found
            .iter()
            .map(|endpoint| endpoint.url(reference.repository(), "x"))
            .collect()
    }

    #[test]
    fn a_host_is_known_however_it_is_written() {
        let hosts = ["10.0.0.7:443", "Registry.lan", "[fd00:0::7]:5000"];
        let hosts = BTreeSet::from(hosts.map(str::to_owned));
        assert!(names(&hosts, "https", "10.0.0.7"));
        assert!(!names(&hosts, "http", "10.0.0.7"));
        assert!(names(&hosts, "https", "registry.LAN:443"));
        assert!(!names(&hosts, "https", "registry.lan:5000"));
        assert!(names(&hosts, "https", "[fd00::7]:5000"));
    }

    #[test]
    fn mirrors_come_first_and_plain_http_is_for_loopback_and_the_listed() {
        let mirror = |text: &str| text.parse::<Mirror>().unwrap();
        let mut config = RegistryConfig::default();
        config.mirrors.insert(
            "docker.io".to_owned(),
            vec![
                mirror("http://127.0.0.1:5000"),
                mirror("http://mirror.lan"),
                mirror("https://mirror.example.com/hub/"),
            ],
        );
        assert_eq!(
            addresses(&config, "debian"),
            [
                "http://127.0.0.1:5000/v2/library/debian/x",
                "https://mirror.example.com/hub/v2/library/debian/x",
                "https://registry-1.docker.io/v2/library/debian/x",
            ]
        );
        assert!(mirror("http://mirror.lan").is_forbidden_plain(&config.plain_http));
        assert_eq!(
            addresses(&config, "ghcr.io/a/b"),
            ["https://ghcr.io/v2/a/b/x"]
        );
        assert_eq!(
            addresses(&config, "localhost:5000/a"),
            ["http://localhost:5000/v2/a/x"]
        );
        assert_eq!(
            addresses(&config, "[::1]:5000/a"),
            ["http://[::1]:5000/v2/a/x"]
        );
        assert_eq!(
            addresses(&config, "127.0.0.1.evil.com/a"),
            ["https://127.0.0.1.evil.com/v2/a/x"]
        );
        assert_eq!(
            addresses(&config, "registry.lan:5000/a"),
            ["https://registry.lan:5000/v2/a/x"]
        );
        config.plain_http.insert("registry.lan:5000".to_owned());
        assert_eq!(
            addresses(&config, "registry.lan:5000/a"),
            ["http://registry.lan:5000/v2/a/x"]
        );
        config.plain_http.insert("Other.lan:80".to_owned());
        assert_eq!(
            addresses(&config, "other.lan/a"),
            ["http://other.lan/v2/a/x"]
        );
    }

    #[test]
    fn what_is_no_mirror_is_refused() {
        for bad in [
            "",
            "mirror.lan",
            "ftp://x",
            "https://",
            "https://u:p@x",
            "https://x/?q",
            "https://x/#f",
        ] {
            assert!(bad.parse::<Mirror>().is_err(), "{bad}");
        }
    }
}
