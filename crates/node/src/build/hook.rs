//! The ready hook: asks the app whether it may be snapshotted.

use super::BuildError;
use crate::guest::Guest;
use bytes::Bytes;
use dormouse_core::image::ReadyHook;
use dormouse_core::limits;
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// Polls the hook until the app says 200. `BuildError::Ready` carries AWS's text.
pub(super) async fn wait_ready(guest: Guest<'_>, hook: ReadyHook) -> Result<(), BuildError> {
    let deadline = Instant::now() + Duration::from_secs(hook.timeout_s);
    loop {
        let answer = timeout_at(deadline, ask(guest, hook.port)).await;
        match answer {
            Err(_) => return Err(timed_out(hook)),
            Ok(Some(StatusCode::OK)) => return Ok(()),
            Ok(Some(status)) if status.is_client_error() => return Err(refused("client", status)),
            Ok(Some(status))
                if status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE =>
            {
                return Err(refused("server", status));
            }
            // Not listening yet, or not ready yet.
            Ok(_) => {}
        }
        if Instant::now() >= deadline {
            return Err(timed_out(hook));
        }
        sleep(limits::READY_POLL).await;
    }
}

/// One request on a connection of its own; none when it came to no answer.
async fn ask(guest: Guest<'_>, port: u16) -> Option<StatusCode> {
    let stream = guest.tunnel(port).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .ok()?;
    let request = Request::post("/aws/lambda-microvms/runtime/v1/ready")
        .header(http::header::HOST, format!("localhost:{port}"))
        .header(http::header::CONTENT_LENGTH, "0")
        .body(Empty::<Bytes>::new())
        .expect("a constant path and a port make a valid request");
    tokio::select! {
        response = sender.send_request(request) => Some(response.ok()?.status()),
        _ = connection => None,
    }
}

fn refused(side: &str, status: StatusCode) -> BuildError {
    BuildError::Ready(format!(
        "Ready hook check failed: the application returned a {side} error (HTTP {}) response",
        status.as_u16()
    ))
}

fn timed_out(hook: ReadyHook) -> BuildError {
    let after = iso_duration(hook.timeout_s);
    BuildError::Ready(format!("Ready hook invocation timed out after {after}"))
}

/// A duration as ISO 8601 has it, as in `PT5M` or `PT1M30S`.
fn iso_duration(seconds: u64) -> String {
    let parts = [
        (seconds / 3600, 'H'),
        (seconds / 60 % 60, 'M'),
        (seconds % 60, 'S'),
    ];
    let text: String = parts
        .into_iter()
        .filter(|(value, _)| *value > 0)
        .map(|(value, unit)| format!("{value}{unit}"))
        .collect();
    if text.is_empty() {
        "PT0S".to_owned()
    } else {
        format!("PT{text}")
    }
}

#[cfg(test)]
mod tests {
    use super::iso_duration;

    #[test]
    fn durations_read_as_aws_prints_them() {
        for (seconds, text) in [
            (0, "PT0S"),
            (1, "PT1S"),
            (60, "PT1M"),
            (90, "PT1M30S"),
            (300, "PT5M"),
            (3600, "PT1H"),
        ] {
            assert_eq!(iso_duration(seconds), text);
        }
    }
}
