//! One HTTP exchange with an app, over a tunnel that is its own.

use dormouse_core::limits;
use http::{Request, Response, Uri, Version, uri};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};

use crate::Stream;
use crate::request_body::RequestBody;
use crate::tasks::Tasks;
use crate::tunnel::Tunnel;

/// What the app speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    /// HTTP/2 without TLS, with prior knowledge.
    H2c,
}

/// Sends `request` and returns the head of the answer, its body still to come.
///
/// The tunnel closes when both bodies have ended, or either is dropped or broken.
pub(crate) async fn exchange(
    stream: Box<dyn Stream>,
    protocol: Protocol,
    request: Request<RequestBody>,
    tasks: &Tasks,
) -> hyper::Result<Response<Incoming>> {
    match protocol {
        Protocol::Http1 => exchange_http1(stream, request, tasks).await,
        Protocol::H2c => exchange_h2c(stream, request, tasks).await,
    }
}

async fn exchange_http1(
    stream: Box<dyn Stream>,
    mut request: Request<RequestBody>,
    tasks: &Tasks,
) -> hyper::Result<Response<Incoming>> {
    *request.version_mut() = Version::HTTP_11;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(limits::HTTP_HEAD_BYTES_MAX)
        .handshake(TokioIo::new(Tunnel::new(stream)))
        .await?;
    // How the connection ends is told to whoever reads or writes the bodies.
    tasks.spawn(connection.with_upgrades());
    sender.send_request(request).await
}

async fn exchange_h2c(
    stream: Box<dyn Stream>,
    mut request: Request<RequestBody>,
    tasks: &Tasks,
) -> hyper::Result<Response<Incoming>> {
    *request.version_mut() = Version::HTTP_2;
    if let Some(host) = request.headers_mut().remove(http::header::HOST) {
        *request.uri_mut() = absolute(request.uri(), host.as_bytes());
    }
    let (mut sender, connection) = http2::Builder::new(tasks.clone())
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits::H2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::H2_CONNECTION_WINDOW_BYTES)
        .max_header_list_size(limits::HTTP_HEAD_BYTES_MAX as u32)
        .max_send_buf_size(limits::H2_SEND_BUFFER_BYTES)
        .handshake(TokioIo::new(Tunnel::new(stream)))
        .await?;
    tasks.spawn(connection);
    sender.send_request(request).await
}

/// HTTP/2 carries the host in the target.
fn absolute(target: &Uri, host: &[u8]) -> Uri {
    let mut parts = target.clone().into_parts();
    parts.scheme = Some(uri::Scheme::HTTP);
    parts.authority = uri::Authority::try_from(host).ok();
    Uri::from_parts(parts).unwrap_or_else(|_| target.clone())
}
