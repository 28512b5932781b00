//! TLS to servers that ADD names: the host's CAs and those that the operator adds.

use super::FetchError;
use crate::vmm::Stream;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;
use tokio_rustls::TlsConnector;

pub(super) struct Connector(TlsConnector);

impl Connector {
    /// Trusts the host's CAs and those in `extra`, as PEM.
    pub(super) async fn new(extra: Option<String>) -> Self {
        let roots = tokio::task::spawn_blocking(move || roots(extra.as_deref())).await;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has the default protocol versions")
            .with_root_certificates(roots.unwrap_or_else(|_| RootCertStore::empty()))
            .with_no_client_auth();
        Self(TlsConnector::from(Arc::new(config)))
    }

    pub(super) async fn connect(
        &self,
        host: &str,
        stream: Box<dyn Stream>,
    ) -> Result<Box<dyn Stream>, FetchError> {
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|_| FetchError::Url(host.to_owned()))?;
        let connected = self.0.connect(name, stream).await;
        let stream = connected.map_err(|source| FetchError::Tls {
            host: host.to_owned(),
            source,
        })?;
        Ok(Box::new(stream))
    }
}

/// CAs that cannot be read are left out: a server that needs one then does not verify.
fn roots(extra: Option<&str>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(pem) = extra {
        let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).flatten();
        roots.add_parsable_certificates(certificates);
    }
    roots
}
