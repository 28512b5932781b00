//! The agent in a fake machine: the protocol of `dormouse_core::guest` over a pipe.

use super::app::{self, Body, reply};
use super::guest::Guest;
use super::shell;
use crate::vmm::ExitReason;
use dormouse_core::guest::{
    AgentError, AppState, COPY_SPEC, CopySpec, Exit, FRAME_PAYLOAD_MAX, FrameKind, GENERATION,
    Hello, LOG_NEXT, LOG_START, ProcessSpec, SHELL_PROTOCOL, ThawSpec, put_frame,
};
use dormouse_core::limits;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::DuplexStream;

/// A refusal: a status and words.
type Refusal = (StatusCode, String);

/// Serves one connection to the agent until either side ends it.
pub(super) async fn serve(guest: Arc<Guest>, io: DuplexStream) {
    let service = service_fn(|request| {
        let guest = guest.clone();
        async move {
            guest.running().await;
            let answer = answer(&guest, request).await;
            Ok::<_, Infallible>(answer.unwrap_or_else(|(status, message)| {
                let body = serde_json::to_vec(&AgentError { message });
                reply(status, body.expect("a string serializes"))
            }))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    tokio::select! {
        // How a connection ends is the host's affair.
        _ = connection => {}
        _ = guest.exited() => {}
    }
}

async fn answer(guest: &Arc<Guest>, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    match (&method, path.as_str()) {
        (&Method::CONNECT, _) => tunnel(guest, request),
        (&Method::GET, "/v1/hello") => json(&Hello {
            generation: GENERATION,
            version: "fake".to_owned(),
            app: guest.status(),
        }),
        (&Method::POST, "/v1/app/start") => start(guest, &body(request).await?),
        (&Method::GET, "/v1/app") => json(&guest.status()),
        (&Method::GET, "/v1/app/wait") => {
            guest.app_is(|app| app == AppState::Exited).await;
            json(&guest.status())
        }
        (&Method::GET, "/v1/app/logs") => logs(guest, request.uri().query().unwrap_or_default()),
        (&Method::POST, "/v1/exec") => Ok(exec(guest, body(request).await?).await),
        (&Method::POST, "/v1/shell") => open_shell(guest, request).await,
        (&Method::POST, "/v1/copy") => copy(request).await,
        (&Method::POST, "/v1/disk/freeze" | "/v1/disk/thaw") => done(),
        (&Method::POST, "/v1/freeze") => {
            if guest.status().state == AppState::Running {
                guest.set_app(AppState::Frozen);
            }
            done()
        }
        (&Method::POST, "/v1/thaw") => {
            let spec: ThawSpec = body(request).await?;
            guest.with(|state| state.hostname = spec.hostname);
            if guest.status().state == AppState::Frozen {
                guest.set_app(AppState::Running);
            }
            done()
        }
        (&Method::POST, "/v1/poweroff") => {
            let guest = guest.clone();
            tokio::spawn(async move {
                // The answer goes out first.
                tokio::time::sleep(Duration::from_millis(1)).await;
                guest.end(ExitReason::PoweredOff);
            });
            Ok(reply(StatusCode::ACCEPTED, ""))
        }
        _ => Err((StatusCode::NOT_FOUND, format!("no {method} {path} here"))),
    }
}

/// Opens a tunnel to the app's port, once it listens there.
fn tunnel(guest: &Arc<Guest>, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let port = request
        .uri()
        .authority()
        .and_then(|authority| authority.port_u16());
    let port = port.ok_or_else(|| (StatusCode::BAD_REQUEST, "no port".to_owned()))?;
    let listens = matches!(guest.status().state, AppState::Running | AppState::Frozen);
    if port != app::PORT || !listens {
        return Err((
            StatusCode::BAD_GATEWAY,
            format!("nothing listens on port {port}"),
        ));
    }
    let guest = guest.clone();
    tokio::spawn(async move {
        if let Ok(stream) = hyper::upgrade::on(request).await {
            app::serve(guest, TokioIo::new(stream)).await;
        }
    });
    Ok(reply(StatusCode::OK, ""))
}

async fn open_shell(
    guest: &Arc<Guest>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let host = hyper::upgrade::on(&mut request);
    let spec = body(request).await?;
    let guest = guest.clone();
    tokio::spawn(async move {
        if let Ok(host) = host.await {
            shell::serve(&guest, &spec, TokioIo::new(host)).await;
        }
    });
    let mut response = reply(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static(SHELL_PROTOCOL));
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    Ok(response)
}

fn start(guest: &Guest, spec: &ProcessSpec) -> Result<Response<Body>, Refusal> {
    if guest.status().state != AppState::Absent {
        return Err((
            StatusCode::CONFLICT,
            "the app was started before".to_owned(),
        ));
    }
    if spec.argv.is_empty() {
        return Err((StatusCode::BAD_REQUEST, "no program".to_owned()));
    }
    guest.set_app(AppState::Running);
    guest.log(&format!("started {}", spec.argv.join(" ")));
    // An app that is `exit N` does just that.
    if let [first, code] = spec.argv.as_slice()
        && first == "exit"
    {
        app::exit(guest, code.parse().unwrap_or(1));
    }
    json(&guest.status())
}

fn logs(guest: &Guest, query: &str) -> Result<Response<Body>, Refusal> {
    let after = query.strip_prefix("after=").unwrap_or("0").parse();
    let after = after.map_err(|_| (StatusCode::BAD_REQUEST, "after is not a number".to_owned()))?;
    let (start, bytes) = guest.log_after(after);
    let next = start + bytes.len() as u64;
    let mut response = reply(StatusCode::OK, bytes);
    response
        .headers_mut()
        .insert(LOG_START, HeaderValue::from(start));
    response
        .headers_mut()
        .insert(LOG_NEXT, HeaderValue::from(next));
    Ok(response)
}

async fn exec(guest: &Guest, spec: ProcessSpec) -> Response<Body> {
    let limit = spec.timeout_s.map_or(Duration::MAX, Duration::from_secs);
    let ran = tokio::time::timeout(limit, app::run(guest, &spec.argv)).await;
    let (printed, exit) = match ran {
        Ok((printed, code)) => (
            printed,
            Exit {
                code,
                timed_out: false,
            },
        ),
        Err(_) => (
            String::new(),
            Exit {
                code: 137,
                timed_out: true,
            },
        ),
    };
    let mut frames = Vec::new();
    for chunk in printed.as_bytes().chunks(FRAME_PAYLOAD_MAX) {
        put_frame(&mut frames, FrameKind::Stdout, chunk);
    }
    let exit = serde_json::to_vec(&exit).expect("numbers serialize");
    put_frame(&mut frames, FrameKind::Exit, &exit);
    reply(StatusCode::OK, frames)
}

/// Takes a tar in and forgets it: a fake machine has no disk.
async fn copy(request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let bad = |message: String| (StatusCode::BAD_REQUEST, message);
    let spec = request
        .headers()
        .get(COPY_SPEC)
        .map(HeaderValue::as_bytes)
        .unwrap_or_default();
    serde_json::from_slice::<CopySpec>(spec).map_err(|error| bad(error.to_string()))?;
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        frame.map_err(|error| bad(error.to_string()))?;
    }
    done()
}

async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Refusal> {
    let bad = |message: String| (StatusCode::BAD_REQUEST, message);
    let body = Limited::new(request.into_body(), limits::AGENT_BODY_BYTES_MAX);
    let body = body
        .collect()
        .await
        .map_err(|error| bad(error.to_string()))?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| bad(error.to_string()))
}

fn json(value: &impl Serialize) -> Result<Response<Body>, Refusal> {
    let body = serde_json::to_vec(value);
    let body = body.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(reply(StatusCode::OK, body))
}

fn done() -> Result<Response<Body>, Refusal> {
    Ok(reply(StatusCode::NO_CONTENT, ""))
}
