//! One HTTP exchange with a guest's agent: requests, bounds of time and size, and answers that are refusals.

use super::error::{GuestError, nonsense, quoted};
use crate::vmm::Stream;
use bytes::Bytes;
use dormouse_core::guest::{AGENT_PORT, AgentError};
use dormouse_core::limits;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::BoxBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::io::ReaderStream;

pub(super) type RequestBody = BoxBody<Bytes, std::io::Error>;

/// Begins to speak HTTP on a connection.
pub(super) async fn open(
    stream: Box<dyn Stream>,
    what: &'static str,
) -> Result<SendRequest<RequestBody>, GuestError> {
    let (sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(limits::HTTP_HEAD_BYTES_MAX)
        .max_headers(limits::HTTP_HEADERS_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(http_error(what))?;
    // Ends by itself with the last exchange, or with the tunnel that it turns into.
    tokio::spawn(async move {
        let _ = connection.with_upgrades().await;
    });
    Ok(sender)
}

pub(super) fn http_error(request: &'static str) -> impl FnOnce(hyper::Error) -> GuestError {
    move |source| GuestError::Http { request, source }
}

/// Sends one request; an answer of 400 or above becomes an error.
pub(super) async fn ask(
    connection: &mut SendRequest<RequestBody>,
    what: &'static str,
    request: Request<RequestBody>,
) -> Result<Response<Incoming>, GuestError> {
    let response = async {
        // The exchange before may not have ended quite yet.
        connection.ready().await?;
        connection.send_request(request).await
    };
    let response = response.await.map_err(http_error(what))?;
    if response.status().as_u16() < 400 {
        return Ok(response);
    }
    let status = response.status();
    let body = collect(what, response, limits::AGENT_JSON_BYTES_MAX).await?;
    let message = match serde_json::from_slice::<AgentError>(&body) {
        Ok(error) => quoted(&error.message),
        Err(_) => format!("{what} refused by guest agent with status {status}"),
    };
    Err(GuestError::Refused { status, message })
}

pub(super) fn get(path: &str) -> Request<RequestBody> {
    request(Method::GET, path, empty())
}

pub(super) fn post(path: &str, body: RequestBody) -> Request<RequestBody> {
    request(Method::POST, path, body)
}

pub(super) fn request(method: Method, path: &str, body: RequestBody) -> Request<RequestBody> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, format!("agent:{AGENT_PORT}"))
        .body(body)
        .expect("the agent's paths are valid URIs")
}

pub(super) fn stream_body(bytes: impl tokio::io::AsyncRead + Send + Sync + 'static) -> RequestBody {
    use futures_util::TryStreamExt;
    let stream = ReaderStream::with_capacity(bytes, 64 << 10).map_ok(Frame::data);
    BoxBody::new(StreamBody::new(stream))
}

pub(super) fn empty() -> RequestBody {
    bytes_body(Bytes::new())
}

pub(super) fn json_body(value: &impl serde::Serialize) -> RequestBody {
    bytes_body(serde_json::to_vec(value).expect("protocol types serialize"))
}

pub(super) fn bytes_body(bytes: impl Into<Bytes>) -> RequestBody {
    BoxBody::new(Full::from(bytes.into()).map_err(|never| match never {}))
}

pub(super) async fn within<T>(
    what: &'static str,
    exchange: impl Future<Output = Result<T, GuestError>>,
) -> Result<T, GuestError> {
    at_most(limits::AGENT_REQUEST_TIMEOUT, what, exchange).await
}

pub(super) async fn at_most<T>(
    limit: Duration,
    what: &'static str,
    exchange: impl Future<Output = Result<T, GuestError>>,
) -> Result<T, GuestError> {
    timeout(limit, exchange)
        .await
        .unwrap_or(Err(GuestError::TimedOut(what)))
}

pub(super) async fn collect<B>(
    what: &'static str,
    response: Response<B>,
    bytes_max: usize,
) -> Result<Bytes, GuestError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    Limited::new(response.into_body(), bytes_max)
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .map_err(|error| nonsense(what, &error.to_string()))
}

pub(super) async fn read_json<T: DeserializeOwned>(
    what: &'static str,
    response: Response<Incoming>,
) -> Result<T, GuestError> {
    let body = collect(what, response, limits::AGENT_JSON_BYTES_MAX).await?;
    parse(what, &body)
}

pub(super) fn parse<T: DeserializeOwned>(what: &'static str, body: &[u8]) -> Result<T, GuestError> {
    serde_json::from_slice(body).map_err(|error| nonsense(what, &error.to_string()))
}
