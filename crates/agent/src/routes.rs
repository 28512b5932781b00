//! The protocol's requests, one function each; the table is in `dormouse_core::guest`.

use crate::app::{App, Phase};
use crate::body_reader::BodyReader;
use crate::cgroup::Cgroup;
use crate::freezer::{FreezeError, Freezer};
use crate::process::{Plan, Rights, StartError};
use crate::reaper::Reaper;
use crate::refusal::Refusal;
use crate::shell::{self, Shell};
use crate::trust::Lent;
use crate::{
    archive, body_reader, copy, exec, isolation, power, privilege, tree_copy, trees, tunnel,
};
use bytes::Bytes;
use dormouse_core::guest::{
    AppSpec, AppState, AppStatus, COPY_SPEC, CopySpec, ExecSpec, GENERATION, Hello, LOG_NEXT,
    LOG_START, SHELL_PROTOCOL, ShellSpec, ThawSpec, TreeCopySpec, Trusted,
};
use dormouse_core::limits;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Largest JSON body, in bytes: a command line of a size that the kernel takes, and a script in hex.
const JSON_BYTES_MAX: usize = 4 << 20;
/// Longest wait for new log bytes that the host may ask for.
const LOG_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long the agent stays on one vCPU after a thaw: the first request comes the same way.
const TOGETHER_AFTER_THAW: Duration = Duration::from_secs(1);

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// What the agent's requests act on.
#[derive(Debug)]
pub(crate) struct Agent {
    guest: Arc<Cgroup>,
    freezer: Arc<Freezer>,
    app: App,
    reaper: Reaper,
    /// Numbers the control groups of commands and shells.
    numbers: AtomicU64,
    /// How the app was started last.
    app_spec: Mutex<Option<AppSpec>>,
    shell_places: Arc<Semaphore>,
    lent_trust: Mutex<Option<Lent>>,
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
            numbers: AtomicU64::new(0),
            app_spec: Mutex::default(),
            shell_places: Arc::new(Semaphore::new(limits::SHELLS_MAX)),
            lent_trust: Mutex::default(),
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

    /// A name for a control group that no other has.
    fn group_name(&self, kind: &str) -> String {
        format!("{kind}-{}", self.numbers.fetch_add(1, Ordering::Relaxed))
    }

    fn app_spec(&self) -> MutexGuard<'_, Option<AppSpec>> {
        self.app_spec.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lent_trust(&self) -> MutexGuard<'_, Option<Lent>> {
        self.lent_trust
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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
        (&Method::POST, "/v1/shell") => shell(&agent, request).await,
        (&Method::POST, "/v1/copy") => copy(&agent, request).await,
        (&Method::POST, "/v1/unpack") => unpack(&agent, request).await,
        (_, path) if path.starts_with("/v1/trees/") => tree(&agent, request).await,
        (&Method::POST, "/v1/trust") => lend_trust(&agent, request).await,
        (&Method::DELETE, "/v1/trust") => take_trust_back(&agent).await,
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
    must_run(agent)?;
    let spec: AppSpec = read_json(request).await?;
    let rights = if spec.all_capabilities {
        let guest = agent.guest.clone();
        run_blocking(move || {
            privilege::open_up(&guest).map_err(StartError::host("open up the VM"))
        })
        .await??;
        Rights::All
    } else {
        Rights::App
    };
    let process = spec.process.clone();
    let plan = run_blocking(move || Plan::new(process, rights)).await??;
    let starting = agent
        .freezer
        .start(|| agent.app.start(plan, &agent.reaper))
        .ok_or_else(frozen)?;
    match starting? {
        Some(()) => {
            *agent.app_spec() = Some(spec);
            agent.status().map(|status| json(&status))
        }
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
    must_run(agent)?;
    let spec: ExecSpec = read_json(request).await?;
    let name = agent.group_name("exec");
    let own = name.clone();
    let (plan, leftovers) = run_blocking(move || isolation::prepare(spec, &own)).await??;
    let frames = agent
        .freezer
        .start(|| exec::start(plan, &agent.reaper, agent.guest.clone(), name, leftovers))
        .ok_or_else(frozen)??;
    Ok(Response::new(frames.boxed_unsync()))
}

async fn shell(agent: &Agent, mut request: Request<Incoming>) -> Result<Answer, Refusal> {
    must_run(agent)?;
    let no_app = || Refusal::new(StatusCode::CONFLICT, "the app was not started");
    let app = agent.app_spec().clone().ok_or_else(no_app)?;
    let place = agent.shell_places.clone().try_acquire_owned();
    let place = place.map_err(|_| {
        let message = format!("{} shells are open already", limits::SHELLS_MAX);
        Refusal::new(StatusCode::TOO_MANY_REQUESTS, message)
    })?;
    let host = hyper::upgrade::on(&mut request);
    let spec: ShellSpec = read_json(request).await?;
    let terminal = spec.terminal;
    let plan = run_blocking(move || shell::prepare(&spec, &app)).await??;
    let name = agent.group_name("shell");
    let shell = agent
        .freezer
        .start(|| Shell::start(plan, terminal, &agent.reaper, agent.guest.clone(), name))
        .ok_or_else(frozen)??;
    tokio::spawn(shell.serve(host, place));
    let mut response = empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = response.headers_mut();
    let protocol = header::HeaderValue::from_static(SHELL_PROTOCOL);
    headers.insert(header::UPGRADE, protocol);
    let upgrade = header::HeaderValue::from_static("upgrade");
    headers.insert(header::CONNECTION, upgrade);
    Ok(response)
}

async fn copy(agent: &Agent, request: Request<Incoming>) -> Result<Answer, Refusal> {
    agent.disk_must_run()?;
    let spec = copy_spec(&request)?;
    feed(request, move |tar| copy::unpack(&spec, tar)).await
}

async fn unpack(agent: &Agent, request: Request<Incoming>) -> Result<Answer, Refusal> {
    agent.disk_must_run()?;
    let spec = copy_spec(&request)?;
    feed(request, move |bytes| archive::unpack(&spec, bytes)).await
}

/// What is asked of a tree: `/v1/trees/NAME` or `/v1/trees/NAME/copy`.
async fn tree(agent: &Agent, request: Request<Incoming>) -> Result<Answer, Refusal> {
    agent.disk_must_run()?;
    let path = request.uri().path();
    let rest = path.strip_prefix("/v1/trees/").unwrap_or_default();
    let (name, action) = rest.split_once('/').unwrap_or((rest, ""));
    let name = name.to_owned();
    match (request.method(), action) {
        (&Method::PUT, "") => feed(request, move |tar| trees::put(&name, tar)).await,
        (&Method::DELETE, "") => {
            run_blocking(move || trees::delete(&name)).await??;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        (&Method::POST, "copy") => {
            let spec: TreeCopySpec = read_json(request).await?;
            run_blocking(move || tree_copy::copy(&name, &spec)).await??;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        _ => Err(Refusal::new(
            StatusCode::NOT_FOUND,
            "no such request of a tree",
        )),
    }
}

fn copy_spec(request: &Request<Incoming>) -> Result<CopySpec, Refusal> {
    let bad = |problem: &str| {
        let message = format!("header {COPY_SPEC}: {problem}");
        Refusal::new(StatusCode::BAD_REQUEST, message)
    };
    let value = request.headers().get(COPY_SPEC);
    let value = value.ok_or_else(|| bad("missing"))?;
    serde_json::from_slice(value.as_bytes()).map_err(|error| bad(&error.to_string()))
}

/// Gives a request's body to work that blocks.
async fn feed<E: Into<Refusal> + Send + 'static>(
    request: Request<Incoming>,
    work: impl FnOnce(BodyReader) -> Result<(), E> + Send + 'static,
) -> Result<Answer, Refusal> {
    let (feeder, reader) = body_reader::channel();
    let working = tokio::task::spawn_blocking(move || work(reader));
    feeder.feed(request.into_body()).await;
    let worked = working.await.map_err(|error| lost(&error))?;
    worked.map_err(Into::into)?;
    Ok(empty(StatusCode::NO_CONTENT))
}

async fn lend_trust(agent: &Agent, request: Request<Incoming>) -> Result<Answer, Refusal> {
    agent.disk_must_run()?;
    let pem = read_body(request, limits::EXTRA_CA_BYTES_MAX).await?;
    take_trust_back(agent).await?;
    let lending = tokio::task::spawn_blocking(move || Lent::lend(Path::new("/"), &pem));
    let lent = lending.await.map_err(|error| lost(&error))??;
    let bundle = lent.bundle().display().to_string();
    *agent.lent_trust() = Some(lent);
    Ok(json(&Trusted { bundle }))
}

async fn take_trust_back(agent: &Agent) -> Result<Answer, Refusal> {
    agent.disk_must_run()?;
    let lent = agent.lent_trust().take();
    if let Some(lent) = lent {
        let taking = tokio::task::spawn_blocking(move || lent.take_back());
        taking.await.map_err(|error| lost(&error))??;
    }
    Ok(empty(StatusCode::NO_CONTENT))
}

async fn thaw(agent: &Agent, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let spec: ThawSpec = read_json(request).await?;
    let answer = blocking(agent, move |freezer| freezer.thaw(&spec)).await?;
    let freezer = agent.freezer.clone();
    tokio::spawn(async move {
        tokio::time::sleep(TOGETHER_AFTER_THAW).await;
        tokio::task::spawn_blocking(move || freezer.scatter());
    });
    Ok(answer)
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
    run_blocking(move || work(&freezer)).await??;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Refuses to start what could not run.
fn must_run(agent: &Agent) -> Result<(), Refusal> {
    if agent.freezer.is_frozen() || agent.freezer.is_disk_frozen() {
        return Err(frozen());
    }
    Ok(())
}

/// Does on the blocking pool what may wait for the disk.
async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| lost(&error))
}

fn frozen() -> Refusal {
    Refusal::new(StatusCode::CONFLICT, "the guest or its disk is frozen")
}

async fn read_json<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Refusal> {
    let bytes = read_body(request, JSON_BYTES_MAX).await?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, format!("invalid body: {error}")))
}

async fn read_body(request: Request<Incoming>, bytes_max: usize) -> Result<Bytes, Refusal> {
    let body = Limited::new(request.into_body(), bytes_max).collect();
    let body = tokio::time::timeout(limits::AGENT_REQUEST_TIMEOUT, body)
        .await
        .map_err(|_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive"))?
        .map_err(|error| Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()))?;
    Ok(body.to_bytes())
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
