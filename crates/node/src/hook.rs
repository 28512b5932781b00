//! Calls of an app's hooks, each on a connection of its own: one that was kept over a suspend would be half
//! open, and the hook would fail for it.

use crate::guest::{Guest, GuestError};
use crate::vmm::Instance;
use bytes::Bytes;
use dormouse_core::hook::{HookCall, HookFailure};
use dormouse_core::limits;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use std::pin::pin;
use std::time::Duration;
use tokio::time::timeout;

/// One request to a hook, without a time limit; answers its status.
pub(crate) async fn ask(
    guest: Guest<'_>,
    call: HookCall,
    json: Option<String>,
) -> Result<StatusCode, HookFailure> {
    let stream = guest.tunnel(call.port).await.map_err(|error| match error {
        GuestError::Refused {
            status: StatusCode::BAD_GATEWAY,
            ..
        } => HookFailure::Refused,
        _ => HookFailure::Broken,
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(limits::HTTP_HEAD_BYTES_MAX)
        .max_headers(limits::HTTP_HEADERS_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|_| HookFailure::Broken)?;
    let request = request(call, json);
    let exchange = async move {
        let response = sender.send_request(request).await;
        let response = response.map_err(|_| HookFailure::Broken)?;
        let status = response.status();
        // An app whose answer is cut off would log an error: take the body, and make nothing of it.
        let body = Limited::new(response.into_body(), limits::HOOK_BODY_BYTES_MAX).collect();
        let _ = timeout(limits::HOOK_BODY_TIMEOUT, body).await;
        Ok(status)
    };
    let mut exchange = pin!(exchange);
    tokio::select! {
        biased;
        status = &mut exchange => status,
        // Its end may have come right behind the answer.
        _ = connection => exchange.await,
    }
}

/// Calls a hook of a MicroVM that runs; anything but an answer of 200 in time is a failure.
pub(crate) async fn tell(
    machine: &dyn Instance,
    call: HookCall,
    json: Option<String>,
) -> Result<(), HookFailure> {
    let limit = Duration::from_secs(call.timeout_s);
    let answer = tokio::select! {
        biased;
        answer = timeout(limit, ask(Guest::new(machine), call, json)) => answer,
        // The network of a machine that is gone is silent.
        _ = machine.exited() => Ok(Err(HookFailure::Broken)),
    };
    match answer {
        Ok(Ok(StatusCode::OK)) => Ok(()),
        Ok(Ok(status)) => Err(HookFailure::Status(status.as_u16())),
        Ok(Err(failure)) => Err(failure),
        Err(_) => Err(HookFailure::TimedOut),
    }
}

fn request(call: HookCall, json: Option<String>) -> Request<Full<Bytes>> {
    let mut request = Request::post(call.hook.path())
        .header(header::HOST, format!("localhost:{}", call.port))
        .header(header::CONTENT_LENGTH, json.as_ref().map_or(0, String::len));
    if json.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    request
        .body(Full::from(json.unwrap_or_default()))
        .expect("a constant path and a port make a valid request")
}
