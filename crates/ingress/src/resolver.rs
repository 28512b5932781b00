//! Which certificate a TLS handshake is answered with, by the name that the client asks for.
//!
//! The internal CA has one for every name that is served. What a file or an ACME server [`Given`] takes
//! its place for the names that it covers, from the moment that it is there.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use dormouse_core::limits;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::authority::{Authority, AuthorityError, Leaves};
use crate::names::{Domains, covers, normal};

/// Every certificate of one listener.
pub struct Certificates {
    authority: Arc<Authority>,
    own: Leaves,
    given: Vec<Arc<Given>>,
    domains: Arc<Domains>,
    /// What the CA has issued for custom domains.
    issued: RwLock<HashMap<String, Arc<Leaves>>>,
}

/// A place for a certificate from outside, for one name or for all directly below one.
pub struct Given {
    name: String,
    current: RwLock<Option<Arc<CertifiedKey>>>,
}

impl Given {
    /// A place for a certificate that covers `name`, as in `*.vm.example.com`; nothing is in it yet.
    #[must_use]
    pub fn new(name: &str) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_ascii_lowercase(),
            current: RwLock::default(),
        })
    }

    /// What the certificate must cover.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Answers handshakes with `key` from now on.
    pub(crate) fn put(&self, key: Arc<CertifiedKey>) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = Some(key);
    }

    fn current(&self) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.clone()
    }
}

impl Certificates {
    /// Certificates of `authority` for `names`, which may begin with a star, and for `domains`; those of
    /// `given` before them.
    pub fn new(
        authority: Arc<Authority>,
        names: Vec<String>,
        given: Vec<Arc<Given>>,
        domains: Arc<Domains>,
    ) -> Result<Self, AuthorityError> {
        let own = Leaves::new(Arc::clone(&authority), names)?;
        Ok(Self {
            authority,
            own,
            given,
            domains,
            issued: RwLock::default(),
        })
    }

    /// TLS 1.2 and 1.3 with these certificates; HTTP/2 is preferred to HTTP/1.1.
    pub fn server_config(self) -> Result<rustls::ServerConfig, AuthorityError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(AuthorityError::Serve)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(self));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    fn at(&self, name: Option<&str>, now: SystemTime) -> Arc<CertifiedKey> {
        let name = name.map(normal);
        let outside = name.as_deref().and_then(|name| {
            let fits = |given: &&Arc<Given>| covers(given.name(), name);
            let key = self.given.iter().filter(fits).find_map(|g| g.current());
            key.or_else(|| self.of_domain(name, now))
        });
        outside.unwrap_or_else(|| self.own.at(now))
    }

    /// The CA's certificate for a custom domain, issued when it is first asked for.
    fn of_domain(&self, name: &str, now: SystemTime) -> Option<Arc<CertifiedKey>> {
        self.domains.endpoint(name)?;
        let issued = self.issued.read().unwrap_or_else(PoisonError::into_inner);
        let known = issued.get(name).cloned();
        drop(issued);
        if let Some(leaves) = known {
            return Some(leaves.at(now));
        }
        let leaves = match Leaves::new(Arc::clone(&self.authority), vec![name.to_owned()]) {
            Ok(leaves) => Arc::new(leaves),
            Err(error) => {
                tracing::error!(%error, name, "no certificate for a custom domain");
                return None;
            }
        };
        let mut issued = self.issued.write().unwrap_or_else(PoisonError::into_inner);
        if issued.len() >= limits::DOMAIN_CERTIFICATES_MAX {
            issued.retain(|name, _| self.domains.endpoint(name).is_some());
        }
        if issued.len() < limits::DOMAIN_CERTIFICATES_MAX {
            issued.insert(name.to_owned(), Arc::clone(&leaves));
        }
        Some(leaves.at(now))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.at(hello.server_name(), SystemTime::now()))
    }
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Given")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates")
            .field("own", &self.own)
            .field("given", &self.given)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_core::EndpointId;
    use dormouse_secrets::Sealer;
    use uuid::Uuid;

    #[test]
    fn a_name_gets_the_certificate_that_was_given_for_it_then_its_own_then_the_wildcard() {
        let folder = tempfile::tempdir().expect("folder");
        let authority = Authority::load_or_create(folder.path(), &Sealer::random());
        let authority = Arc::new(authority.expect("CA"));
        let domains = Arc::new(Domains::default());
        let (all, one) = (
            Given::new("*.vm.example.com"),
            Given::new("app.example.org"),
        );
        let names = vec!["*.vm.example.com".to_owned()];
        let given = vec![Arc::clone(&all), Arc::clone(&one)];
        let certificates = Certificates::new(Arc::clone(&authority), names, given, domains.clone());
        let certificates = certificates.expect("certificates");
        let now = SystemTime::now();
        let at = |name: Option<&str>| certificates.at(name, now).cert[0].clone();
        let own = at(None);
        for name in ["x.vm.example.com", "app.example.org", "elsewhere.org"] {
            assert_eq!(at(Some(name)), own, "{name}");
        }

        domains.point(
            "app.example.org".to_owned(),
            EndpointId::new(Uuid::new_v4()),
        );
        let issued = at(Some("App.Example.Org."));
        assert_ne!(issued, own);
        assert_eq!(at(Some("app.example.org")), issued, "issued once");

        let key = |name: &str| Arc::new(authority.issue(&[name.to_owned()], now).expect("key"));
        let (wildcard, single) = (key("*.vm.example.com"), key("app.example.org"));
        all.put(Arc::clone(&wildcard));
        one.put(Arc::clone(&single));
        assert_eq!(at(Some("x.vm.example.com")), wildcard.cert[0]);
        assert_eq!(at(Some("app.example.org")), single.cert[0]);
        assert_eq!(at(Some("x.y.vm.example.com")), own);
        assert_eq!(at(None), own);
    }
}
