//! The way to a MicroVM's endpoint: TLS with the daemon's CA, then a WebSocket.

use super::super::client::Endpoint;
use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

const HTTPS: u16 = 443;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// A microVM that sleeps wakes before the answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);
/// Most of a refusal that is read, in bytes.
const REFUSAL_BYTES_MAX: usize = 4096;

pub(super) type WebSocket = WebSocketStream<TokioIo<Upgraded>>;

/// Opens connections to the endpoints of one daemon.
pub(super) struct Gateway {
    tls: TlsConnector,
    /// Where the ingress is, if that is known better than by the endpoint's name.
    address: Option<SocketAddr>,
}

impl Gateway {
    /// Trusts the system's CAs and the daemon's own.
    pub(super) fn new(endpoint: &Endpoint) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(file) = &endpoint.ca_file {
            let read = || format!("read {}", file.display());
            for certificate in CertificateDer::pem_file_iter(file).with_context(read)? {
                roots
                    .add(certificate.with_context(read)?)
                    .with_context(read)?;
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("set up TLS")?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            tls: TlsConnector::from(Arc::new(config)),
            address: endpoint.ingress,
        })
    }

    /// Opens a WebSocket to `target` of `endpoint`, a host with or without a port.
    pub(super) async fn open(
        &self,
        endpoint: &str,
        target: &str,
        token: &str,
    ) -> Result<WebSocket> {
        let (host, port) = match endpoint.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().context("the endpoint's port")?),
            None => (endpoint, HTTPS),
        };
        let connect = async {
            let tcp = match self.address {
                Some(address) => TcpStream::connect(address).await?,
                // Means this machine (RFC 6761), which not every resolver knows.
                None if host.ends_with(".localhost") => {
                    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?
                }
                None => TcpStream::connect((host, port)).await?,
            };
            tcp.set_nodelay(true)?;
            let name = ServerName::try_from(host.to_owned())?;
            Ok::<_, anyhow::Error>(self.tls.connect(name, tcp).await?)
        };
        let reach = || format!("reach {endpoint}");
        let tls = timeout(CONNECT_TIMEOUT, connect).await;
        let tls = tls.with_context(reach)?.with_context(reach)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
        tokio::spawn(connection.with_upgrades());
        let answer = sender.send_request(request(endpoint, target, token)?);
        let answer = timeout(ANSWER_TIMEOUT, answer).await;
        let answer = answer.with_context(reach)?.with_context(reach)?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status = answer.status();
            let body = Limited::new(answer.into_body(), REFUSAL_BYTES_MAX);
            let body = body.collect().await.map(|body| body.to_bytes());
            let text = String::from_utf8_lossy(&body.unwrap_or_default()).into_owned();
            bail!("{}", refusal(status, &text));
        }
        let upgraded = hyper::upgrade::on(answer).await.with_context(reach)?;
        let io = TokioIo::new(upgraded);
        Ok(WebSocketStream::from_raw_socket(io, Role::Client, None).await)
    }
}

fn request(endpoint: &str, target: &str, token: &str) -> Result<Request<Empty<Bytes>>> {
    let mut token = http::HeaderValue::try_from(token).context("the token")?;
    token.set_sensitive(true);
    let key = STANDARD.encode(uuid::Uuid::new_v4().as_bytes());
    let request = Request::get(target)
        .header(header::HOST, endpoint)
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, key)
        .header(header::SEC_WEBSOCKET_PROTOCOL, "lambda-microvms")
        .header("x-aws-proxy-auth", token);
    request.body(Empty::new()).context("the request")
}

fn refusal(status: StatusCode, text: &str) -> String {
    match (status, text) {
        (StatusCode::BAD_GATEWAY, "") => {
            "the microVM has ended, sleeps without waking by itself, or does not answer".to_owned()
        }
        (StatusCode::TOO_MANY_REQUESTS, _) => "too many shells are open in the microVM".to_owned(),
        (status, "") => format!("the endpoint answers {status}"),
        (_, text) => text.to_owned(),
    }
}
