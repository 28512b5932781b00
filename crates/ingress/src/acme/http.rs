//! HTTPS as ACME needs it: a connection a request, answers that are small, all of it within a time.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use dormouse_core::limits;
use http::header::HOST;
use http::{HeaderValue, Request, Response, Uri, uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

type AnyError = Box<dyn std::error::Error + Send + Sync>;
type Answer = Result<BytesResponse, instant_acme::Error>;

const HTTPS_PORT: u16 = 443;

/// A client that believes some CAs.
pub(super) struct Https {
    tls: TlsConnector,
}

impl Https {
    /// Believes the CAs in `ca_file`, or those of the system; the file is the error when it holds none.
    pub(super) fn new(ca_file: Option<&Path>) -> Result<Self, PathBuf> {
        let mut roots = RootCertStore::empty();
        match ca_file {
            None => {
                let system = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(system.certs);
            }
            Some(path) => {
                let unusable = || path.to_owned();
                let certificates = CertificateDer::pem_file_iter(path).map_err(|_| unusable())?;
                roots.add_parsable_certificates(certificates.flatten());
                if roots.is_empty() {
                    return Err(unusable());
                }
            }
        }
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has the ciphers of both versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            tls: TlsConnector::from(Arc::new(config)),
        })
    }
}

impl HttpClient for Https {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        let tls = self.tls.clone();
        Box::pin(async move {
            let exchanged = timeout(limits::ACME_REQUEST_TIMEOUT, exchange(tls, request)).await;
            let answer =
                exchanged.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()));
            answer
                .map(BytesResponse::from)
                .map_err(instant_acme::Error::Other)
        })
    }
}

async fn exchange(
    tls: TlsConnector,
    request: Request<BodyWrapper<Bytes>>,
) -> Result<Response<Full<Bytes>>, AnyError> {
    let (mut parts, body) = request.into_parts();
    let authority = parts
        .uri
        .authority()
        .cloned()
        .ok_or("a URL without a host")?;
    if parts.uri.scheme() != Some(&uri::Scheme::HTTPS) {
        return Err(format!("{} is not an https:// URL", parts.uri).into());
    }
    parts
        .headers
        .insert(HOST, HeaderValue::from_str(authority.as_str())?);
    let target = parts.uri.into_parts().path_and_query;
    parts.uri = target.map_or_else(|| Uri::from_static("/"), Uri::from);

    let host = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']');
    let port = authority.port_u16().unwrap_or(HTTPS_PORT);
    let tcp = TcpStream::connect((host, port)).await;
    let tcp = tcp.map_err(|error| format!("connect to {authority}: {error}"))?;
    let name = ServerName::try_from(host.to_owned())?;
    let stream = TokioIo::new(tls.connect(name, tcp).await?);
    let (mut sender, connection) = http1::handshake::<_, BodyWrapper<Bytes>>(stream).await?;
    let driver = tokio::spawn(connection);
    let answer = sender
        .send_request(Request::from_parts(parts, body))
        .await?;
    let (parts, body) = answer.into_parts();
    let body = Limited::new(body, limits::ACME_ANSWER_BYTES_MAX)
        .collect()
        .await?;
    driver.abort();
    Ok(Response::from_parts(parts, Full::new(body.to_bytes())))
}
