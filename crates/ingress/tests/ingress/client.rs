//! Clients: raw bytes over TLS, and hyper over HTTP/1.1 or HTTP/2.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::fixture::{ENDPOINT, Fixture, SUFFIX, soon};

pub(crate) fn host(endpoint: &str) -> String {
    format!("{endpoint}.{SUFFIX}")
}

/// A TLS connection that names `server` and offers `alpn`.
pub(crate) async fn connect(fixture: &Fixture, server: &str, alpn: &str) -> TlsStream<TcpStream> {
    connect_by(&rustls::version::TLS13, fixture, server, alpn).await
}

/// The same, by this version of TLS alone.
pub(crate) async fn connect_by(
    version: &'static rustls::SupportedProtocolVersion,
    fixture: &Fixture,
    server: &str,
    alpn: &str,
) -> TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    let pem = fixture.authority.certificate_pem().as_bytes();
    roots
        .add(CertificateDer::from_pem_slice(pem).expect("PEM"))
        .expect("root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("version")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let tcp = TcpStream::connect(fixture.address).await.expect("connect");
    let name = ServerName::try_from(server.to_owned()).expect("name");
    let connector = TlsConnector::from(Arc::new(config));
    soon(connector.connect(name, tcp)).await.expect("handshake")
}

pub(crate) async fn raw(fixture: &Fixture) -> TlsStream<TcpStream> {
    connect(fixture, &host(ENDPOINT), "http/1.1").await
}

/// A head with host and token, open for more headers.
pub(crate) fn head(fixture: &Fixture, request_line: &str) -> String {
    let (host, token) = (host(ENDPOINT), fixture.token());
    format!("{request_line} HTTP/1.1\r\nhost: {host}\r\nx-aws-proxy-auth: {token}\r\n")
}

/// Sends `text` and reads until the proxy closes. A reset ends the answer like a close.
pub(crate) async fn raw_exchange(fixture: &Fixture, text: &str) -> String {
    let mut stream = raw(fixture).await;
    stream.write_all(text.as_bytes()).await.expect("write");
    read_to_close(&mut stream).await
}

pub(crate) async fn read_to_close(stream: &mut TlsStream<TcpStream>) -> String {
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = soon(stream.read(&mut buffer)).await {
        answer.extend_from_slice(&buffer[..length]);
    }
    String::from_utf8(answer).expect("text")
}

/// The answer with what differs from run to run replaced.
pub(crate) fn normalized(answer: &str) -> String {
    let line = |line: &str| match line.split_once(": ") {
        Some((name @ ("x-amzn-requestid" | "date"), _)) => format!("{name}: …"),
        _ => line.to_owned(),
    };
    answer
        .split("\r\n")
        .map(line)
        .collect::<Vec<_>>()
        .join("\n")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Http {
    One,
    Two,
}

pub(crate) const BOTH: [Http; 2] = [Http::One, Http::Two];

/// A body that the test feeds piece by piece.
pub(crate) struct Fed(mpsc::Receiver<Result<Frame<Bytes>, &'static str>>);

pub(crate) type Feed = mpsc::Sender<Result<Frame<Bytes>, &'static str>>;

pub(crate) fn fed() -> (Feed, Fed) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, Fed(receiver))
}

/// A body that is whole from the beginning.
pub(crate) fn whole(bytes: impl Into<Bytes>) -> Fed {
    let (sender, body) = fed();
    let bytes = bytes.into();
    if !bytes.is_empty() {
        sender.try_send(Ok(Frame::data(bytes))).expect("room");
    }
    body
}

impl Body for Fed {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        self.0.poll_recv(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_closed() && self.0.is_empty()
    }
}

pub(crate) enum Client {
    One(http1::SendRequest<Fed>),
    Two(http2::SendRequest<Fed>),
}

impl Client {
    pub(crate) async fn new(fixture: &Fixture, http: Http) -> Self {
        Self::to(fixture, ENDPOINT, http).await
    }

    pub(crate) fn is_closed(&self) -> bool {
        match self {
            Self::One(sender) => sender.is_closed(),
            Self::Two(sender) => sender.is_closed(),
        }
    }

    pub(crate) async fn to(fixture: &Fixture, endpoint: &str, http: Http) -> Self {
        match http {
            Http::One => {
                let stream = connect(fixture, &host(endpoint), "http/1.1").await;
                let io = TokioIo::new(stream);
                let (sender, connection) = http1::handshake(io).await.expect("h1");
                tokio::spawn(connection.with_upgrades());
                Self::One(sender)
            }
            Http::Two => {
                let stream = connect(fixture, &host(endpoint), "h2").await;
                assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
                let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                    .initial_stream_window_size(1 << 20)
                    .initial_connection_window_size(1 << 20)
                    .handshake(TokioIo::new(stream))
                    .await
                    .expect("h2");
                tokio::spawn(connection);
                Self::Two(sender)
            }
        }
    }

    pub(crate) async fn send(
        &mut self,
        request: Request<Fed>,
    ) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::One(sender) => {
                sender.ready().await?;
                let (mut parts, body) = request.into_parts();
                if let Some(authority) = parts.uri.authority() {
                    let value = authority.as_str().parse().expect("host");
                    parts.headers.insert(http::header::HOST, value);
                    let path = parts.uri.path_and_query().expect("path").as_str();
                    parts.uri = path.parse().expect("path");
                }
                soon(sender.send_request(Request::from_parts(parts, body))).await
            }
            Self::Two(sender) => {
                sender.ready().await?;
                soon(sender.clone().send_request(request)).await
            }
        }
    }
}

/// A request to the fixture's endpoint with its token.
pub(crate) fn request(fixture: &Fixture, method: &str, path: &str) -> http::request::Builder {
    request_to(fixture, ENDPOINT, method, path)
}

/// A request to this endpoint with its token.
pub(crate) fn request_to(
    fixture: &Fixture,
    endpoint: &str,
    method: &str,
    path: &str,
) -> http::request::Builder {
    Request::builder()
        .method(method)
        .uri(format!("https://{}{path}", host(endpoint)))
        .header("x-aws-proxy-auth", fixture.token_for(endpoint, 60))
}

pub(crate) async fn text(response: Response<Incoming>) -> String {
    let bytes = soon(response.into_body().collect()).await.expect("body");
    String::from_utf8(bytes.to_bytes().to_vec()).expect("text")
}
