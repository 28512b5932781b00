//! The protocol's requests, one function each; the table is in `dormouse_core::guest`.

use crate::app::{App, Phase};
use crate::cgroup::Cgroup;
use crate::freezer::{FreezeError, Freezer};
use crate::process::Plan;
use crate::reaper::Reaper;
use crate::refusal::Refusal;
use crate::{body_reader, copy, exec, power, tunnel};
use bytes::Bytes;
use dormouse_core::guest::{
    AppState, AppStatus, COPY_SPEC, CopySpec, GENERATION, Hello, LOG_NEXT, LOG_START, ProcessSpec,
    ThawSpec,
};
use dormouse_core::limits;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Largest JSON body, in bytes: the kernel takes no larger command line either.
const JSON_BYTES_MAX: usize = 1 << 20;
/// Longest wait for new log bytes that the host may ask for.
const LOG_WAIT_MAX: Duration = Duration::from_secs(30);

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// What the agent's requests act on.
#[derive(Debug)]
pub(crate) struct Agent {
    guest: Arc<Cgroup>,
    freezer: Arc<Freezer>,
    app: App,
    reaper: Reaper,
    execs: AtomicU64,
}

impl Agent {
    /// Starts reaping and makes the control groups below `root`.
    pub(crate) fn new(root: &Cgroup) -> io::Result<Self> {
        let reaper = Reaper::default();
        reaper.start()?;
        let guest = Arc::new(root.child("guest")?);
        Ok(Self {
            freezer: Arc::new(Freezer::new(guest.clone())),
            app: App::new(&guest)?,
            guest,
            reaper,
            execs: AtomicU64::new(0),
        })
    }

    fn status(&self) -> Result<AppStatus, Refusal> {
        let (state, exit) = match self.app.phase() {
            Phase::Absent => (AppState::Absent, None),
            Phase::Running(_) if self.freezer.is_frozen() => (AppState::Frozen, None),
            Phase::Running(_) => (AppState::Running, None),
            Phase::Exited(exit) => (AppState::Exited, Some(exit)),
        };
        let cpu_usec = self.app.cpu_usec().map_err(|error| {
            let message = format!("cannot read the app's CPU time: {error}");
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, message)
        })?;
        Ok(AppStatus {
            state,
            exit,
            cpu_usec,
        })
    }

    /// Refuses what would wait for a frozen disk.
    fn disk_must_run(&self) -> Result<(), Refusal> {
        if self.freezer.is_disk_frozen() {
            return Err(FreezeError::DiskFrozen.into());
        }
        Ok(())
    }
}

/// Answers one request.
pub(crate) async fn answer(agent: Arc<Agent>, request: Request<Incoming>) -> Answer {
    let answered = match (request.method(), request.uri().path()) {
        (&Method::CONNECT, _) => tunnel::open(request).await.map(|()| empty(StatusCode::OK)),
        (&Method::GET, "/v1/hello") => hello(&agent),
        (&Method::POST, "/v1/app/start") => start(&agent, request).await,
        (&Method::GET, "/v1/app") => agent.status().map(|status| json(&status)),
        (&Method::GET, "/v1/app/wait") => wait(&agent).await,
        (&Method::GET, "/v1/app/logs") => logs(&agent, &request).await,
        (&Method::POST, "/v1/exec") => exec(&agent, request).await,
        (&Method::POST, "/v1/copy") => copy(&agent, request).await,
        (&Method::POST, "/v1/disk/freeze") => blocking(&agent, Freezer::freeze_disk).await,
        (&Method::POST, "/v1/disk/thaw") => blocking(&agent, Freezer::thaw_disk).await,
        (&Method::POST, "/v1/freeze") => blocking(&agent, Freezer::freeze).await,
        (&Method::POST, "/v1/thaw") => thaw(&agent, request).await,
        (&Method::POST, "/v1/poweroff") => Ok(poweroff(&agent)),
        (method, path) => Err(Refusal::new(
            StatusCode::NOT_FOUND,
            format!("no such request: {method} {path}"),
        )),
    };
    answered.unwrap_or_else(|refusal| {
        let status = refusal.status;
        let mut response = json_bytes(refusal.body());
        *response.status_mut() = status;
        response
    })
}

fn hello(agent: &Agent) -> Result<Answer, Refusal> {
    Ok(json(&Hello {
        generation: GENERATION,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        app: agent.status()?,
    }))
}

async fn start(agent: &Agent, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let plan = plan(agent, request).await?;
    let starting = agent
        .freezer
        .start(|| agent.app.start(plan, &agent.reaper))
        .ok_or_else(frozen)?;
    match starting? {
        Some(()) => agent.status().map(|status| json(&status)),
        None => Err(Refusal::new(
            StatusCode::CONFLICT,
            "the app is running already",
        )),
    }
}

async fn wait(agent: &Agent) -> Result<Answer, Refusal> {
    agent.app.exited().await;
    agent.status().map(|status| json(&status))
}

async fn logs(agent: &Agent, request: &Request<Incoming>) -> Result<Answer, Refusal> {
    let query = request.uri().query().unwrap_or_default();
    let after = number(query, "after")?.unwrap_or(0);
    let wait = Duration::from_millis(number(query, "wait_ms")?.unwrap_or(0)).min(LOG_WAIT_MAX);
    let piece = agent.app.logs(after, wait).await;
    let (start, next) = (piece.start, piece.next());
    let mut response = Response::new(full(Bytes::from(piece.bytes)));
    let headers = response.headers_mut();
    headers.insert(LOG_START, start.into());
    headers.insert(LOG_NEXT, next.into());
    Ok(response)
}

async fn exec(agent: &Agent, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let plan = plan(agent, request).await?;
    let name = format!("exec-{}", agent.execs.fetch_add(1, Ordering::Relaxed));
    let frames = agent
        .freezer
        .start(|| exec::start(plan, &agent.reaper, agent.guest.clone(), name))
        .ok_or_else(frozen)??;
    Ok(Response::new(frames.boxed_unsync()))
}

async fn copy(agent: &Agent, request: Request<Incoming>) -> Result<Answer, Refusal> {
    agent.disk_must_run()?;
    let bad = |problem: &str| {
        let message = format!("header {COPY_SPEC}: {problem}");
        Refusal::new(StatusCode::BAD_REQUEST, message)
    };
    let value = request.headers().get(COPY_SPEC);
    let value = value.ok_or_else(|| bad("missing"))?;
    let spec: CopySpec =
        serde_json::from_slice(value.as_bytes()).map_err(|error| bad(&error.to_string()))?;
    let (feeder, reader) = body_reader::channel();
    let copying = tokio::task::spawn_blocking(move || copy::unpack(&spec, reader));
    feeder.feed(request.into_body()).await;
    copying.await.map_err(|error| lost(&error))??;
    Ok(empty(StatusCode::NO_CONTENT))
}

async fn thaw(agent: &Agent, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let spec: ThawSpec = read_json(request).await?;
    blocking(agent, move |freezer| freezer.thaw(&spec)).await
}

fn poweroff(agent: &Agent) -> Answer {
    tokio::spawn(power::off(
        agent.app.clone(),
        agent.guest.clone(),
        agent.freezer.clone(),
    ));
    empty(StatusCode::ACCEPTED)
}

async fn blocking(
    agent: &Agent,
    work: impl FnOnce(&Freezer) -> Result<(), FreezeError> + Send + 'static,
) -> Result<Answer, Refusal> {
    let freezer = agent.freezer.clone();
    tokio::task::spawn_blocking(move || work(&freezer))
        .await
        .map_err(|error| lost(&error))??;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Reads a process specification and prepares its start.
async fn plan(agent: &Agent, request: Request<Incoming>) -> Result<Plan, Refusal> {
    if agent.freezer.is_frozen() || agent.freezer.is_disk_frozen() {
        return Err(frozen());
    }
    let spec: ProcessSpec = read_json(request).await?;
    let planning = tokio::task::spawn_blocking(move || Plan::new(spec));
    Ok(planning.await.map_err(|error| lost(&error))??)
}

fn frozen() -> Refusal {
    Refusal::new(StatusCode::CONFLICT, "the guest or its disk is frozen")
}

async fn read_json<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Refusal> {
    let body = Limited::new(request.into_body(), JSON_BYTES_MAX).collect();
    let bytes = tokio::time::timeout(limits::AGENT_REQUEST_TIMEOUT, body)
        .await
        .map_err(|_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive"))?
        .map_err(|error| Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()))?
        .to_bytes();
    serde_json::from_slice(&bytes)
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, format!("invalid body: {error}")))
}

/// A number from a query string.
fn number(query: &str, key: &str) -> Result<Option<u64>, Refusal> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let Some((_, value)) = pairs.find(|(name, _)| *name == key) else {
        return Ok(None);
    };
    value
        .parse()
        .map(Some)
        .map_err(|_| Refusal::new(StatusCode::BAD_REQUEST, format!("{key} is not a number")))
}

fn lost(error: &tokio::task::JoinError) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

fn json<T: Serialize>(value: &T) -> Answer {
    let bytes = serde_json::to_vec(value).expect("answers have only plain fields");
    json_bytes(Bytes::from(bytes))
}

fn json_bytes(bytes: Bytes) -> Answer {
    let mut response = Response::new(full(bytes));
    let kind = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn empty(status: StatusCode) -> Answer {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = status;
    response
}

fn full(bytes: Bytes) -> UnsyncBoxBody<Bytes, Infallible> {
    Full::new(bytes).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_from_a_query() {
        assert_eq!(number("after=17&wait_ms=5", "after"), Ok(Some(17)));
        assert_eq!(number("after=17&wait_ms=5", "wait_ms"), Ok(Some(5)));
        assert_eq!(number("", "after"), Ok(None));
        assert!(number("after=-1", "after").is_err());
    }
}
