//! The app in a fake machine: a small web server, and a few words of shell.
//!
//! | request | answer |
//! |---|---|
//! | `POST /count` | counts in memory and writes the number to the file `/data/count` |
//! | `GET /count` | the number in memory |
//! | `GET /ticks` | grows while the app runs |
//! | `POST /echo` | the request's body, as it comes |
//! | `GET /sleep/MS` | `ok` after so many milliseconds |
//! | `GET /hostname` | the machine's name |
//! | `GET /exit/CODE` | ends the app |
//! | a hook | the next answer that it was given; a run hook's payload is its answer; else 200 |
//! | `POST /answer/HOOK/STATUS` | gives a hook an answer: a status, or `hold` to be silent for a minute |
//! | `GET /hooks` | the hooks that were called, in order, with their bodies |
//! | any other path | `ok` |

use super::guest::Guest;
use bytes::Bytes;
use dormouse_core::guest::{AppState, Exit};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// The port it listens on.
pub(super) const PORT: u16 = 8080;
/// What the paths of hooks begin with.
const HOOKS: &str = "/aws/lambda-microvms/runtime/v1/";
/// Where the counter is on disk.
const COUNT_FILE: &str = "/data/count";
/// Longest sleep that a request may ask for, in milliseconds.
const SLEEP_MAX_MS: u64 = 60_000;

pub(super) type Body = BoxBody<Bytes, hyper::Error>;

/// Serves one connection to the app's port until either side ends it.
pub(super) async fn serve(
    guest: Arc<Guest>,
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) {
    let service = service_fn(|request| {
        let guest = guest.clone();
        async move { Ok::<_, Infallible>(answer(&guest, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    tokio::select! {
        // How a connection ends is the client's affair.
        _ = connection => {}
        _ = guest.exited() => {}
    }
}

async fn answer(guest: &Guest, request: Request<Incoming>) -> Response<Body> {
    // A paused machine or a frozen app does nothing at all.
    guest.running().await;
    guest.app_is(|app| app != AppState::Frozen).await;
    let path = request.uri().path().to_owned();
    if let Some(hook) = path.strip_prefix(HOOKS) {
        return answer_hook(guest, hook, request).await;
    }
    let words: Vec<&str> = path.trim_matches('/').split('/').collect();
    let text = match (request.method(), words.as_slice()) {
        (&Method::POST, ["count"]) => guest.with(|state| {
            state.counter += 1;
            state
                .files
                .insert(COUNT_FILE.to_owned(), state.counter.to_string());
            state.counter.to_string()
        }),
        (_, ["count"]) => guest.with(|state| state.counter.to_string()),
        (_, ["ticks"]) => (guest.cpu_usec() / 1000).to_string(),
        (_, ["hostname"]) => guest.with(|state| state.hostname.clone()),
        (&Method::POST, ["echo"]) => return Response::new(request.into_body().boxed()),
        (_, ["sleep", ms]) => {
            let ms = ms.parse().unwrap_or(0).min(SLEEP_MAX_MS);
            tokio::time::sleep(Duration::from_millis(ms)).await;
            "ok".to_owned()
        }
        (&Method::POST, ["answer", hook, answer]) => {
            let (hook, answer) = ((*hook).to_owned(), (*answer).to_owned());
            guest.with(|state| state.hook_answers.push((hook, answer)));
            "ok".to_owned()
        }
        (_, ["hooks"]) => guest.with(|state| state.hook_calls.join("\n")),
        (_, ["exit", code]) => {
            exit(guest, code.parse().unwrap_or(1));
            "bye".to_owned()
        }
        _ => "ok".to_owned(),
    };
    guest.log(&format!("{} {path}", request.method()));
    reply(StatusCode::OK, text)
}

/// Answers a hook with what `POST /answer` has prepared.
async fn answer_hook(guest: &Guest, hook: &str, request: Request<Incoming>) -> Response<Body> {
    let body = request.into_body().collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let call = format!("{hook} {}", String::from_utf8_lossy(&body));
    let answer = guest.with(|state| {
        state.hook_calls.push(call.trim_end().to_owned());
        let answers = &mut state.hook_answers;
        let at = answers.iter().position(|(name, _)| name == hook);
        at.map(|at| answers.remove(at).1)
    });
    let payload = serde_json::from_slice::<serde_json::Value>(&body).ok();
    let payload = payload.and_then(|body| Some(body.get("runHookPayload")?.as_str()?.to_owned()));
    let status = match answer.or(payload).as_deref() {
        Some("hold") => {
            tokio::time::sleep(Duration::from_millis(SLEEP_MAX_MS)).await;
            StatusCode::OK
        }
        Some(status) => status.parse().unwrap_or(StatusCode::BAD_REQUEST),
        None => StatusCode::OK,
    };
    reply(status, "")
}

/// Ends the app.
pub(super) fn exit(guest: &Guest, code: i32) {
    guest.with(|state| {
        state.exit = Some(Exit {
            code,
            timed_out: false,
        })
    });
    guest.set_app(AppState::Exited);
}

pub(super) fn reply(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(
        Full::new(body.into())
            .map_err(|never| match never {})
            .boxed(),
    );
    *response.status_mut() = status;
    response
}

/// Runs a command line of a fake guest: what it prints, and its exit code. It knows `echo`, `cat`, `exit`,
/// `false`, `sleep` and `sh -c`, parts joined by `&&`; any other program does nothing and succeeds.
pub(super) async fn run(guest: &Guest, argv: &[String]) -> (String, i32) {
    let words: Vec<&str> = argv.iter().map(String::as_str).collect();
    let script = match words.as_slice() {
        [
            "sh" | "/bin/sh" | "bash" | "/bin/bash",
            "-c" | "-ec",
            script,
            ..,
        ] => (*script).to_owned(),
        words => words.join(" "),
    };
    let mut printed = String::new();
    for line in script.split("&&").flat_map(str::lines) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let code = match words.as_slice() {
            ["echo", rest @ ..] => {
                printed.push_str(&rest.join(" "));
                printed.push('\n');
                0
            }
            ["cat", path] => match guest.with(|state| state.files.get(*path).cloned()) {
                Some(content) => {
                    printed.push_str(&content);
                    0
                }
                None => 1,
            },
            ["exit", code] => code.parse().unwrap_or(2),
            ["false"] => 1,
            ["sleep", seconds] => {
                let seconds = seconds.parse().unwrap_or(0).min(SLEEP_MAX_MS / 1000);
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                0
            }
            _ => 0,
        };
        if code != 0 {
            return (printed, code);
        }
    }
    (printed, 0)
}
