//! Client of the guest agent: a short HTTP/1.1 exchange over a fresh connection.
//!
//! Every answer is hostile until proven otherwise: heads and bodies are bounded, and each request has a
//! time limit. Connections are never kept: a snapshot would freeze them half open.

mod error;
mod exchange;

pub use error::GuestError;

use crate::vmm::{Instance, Stream, VmmError};
use bytes::{Buf, Bytes, BytesMut};
use dormouse_core::guest::{
    AppSpec, AppStatus, COPY_SPEC, CopySpec, ExecSpec, Exit, FrameKind, GENERATION, Hello,
    LOG_NEXT, SHELL_PROTOCOL, ShellSpec, ThawSpec, TreeCopySpec, Trusted, whole_frame,
};
use dormouse_core::limits;
use error::nonsense;
use exchange::{
    RequestBody, ask, at_most, bytes_body, collect, empty, get, http_error, json_body, open, parse,
    post, read_json, request, stream_body, within,
};
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// A part of what a process in the guest printed.
#[derive(Debug)]
pub enum Output {
    /// Bytes of standard output.
    Stdout(Bytes),
    /// Bytes of standard error.
    Stderr(Bytes),
}

/// The agent of one machine.
#[derive(Debug, Clone, Copy)]
pub struct Guest<'a> {
    machine: &'a dyn Instance,
}

impl<'a> Guest<'a> {
    /// Speaks to the agent of `machine`.
    #[must_use]
    pub fn new(machine: &'a dyn Instance) -> Self {
        Self { machine }
    }

    /// Asks until the agent answers, `limit` at most: a machine that boots has no agent yet, and the first
    /// packets to one just restored may be lost.
    pub async fn hello(&self, limit: Duration) -> Result<Hello, GuestError> {
        const ATTEMPT: Duration = Duration::from_millis(500);
        let deadline = Instant::now() + limit;
        loop {
            let attempt = self.json::<Hello>("hello", get("/v1/hello"), ATTEMPT).await;
            match attempt {
                Ok(hello) => return understood(hello),
                Err(error @ GuestError::Connect(VmmError::Gone(_))) => return Err(error),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Starts the app.
    pub async fn start_app(&self, spec: &AppSpec) -> Result<AppStatus, GuestError> {
        let request = post("/v1/app/start", json_body(spec));
        self.json("start of app", request, limits::AGENT_REQUEST_TIMEOUT)
            .await
    }

    /// What the app is doing.
    pub async fn app(&self) -> Result<AppStatus, GuestError> {
        self.json(
            "status of app",
            get("/v1/app"),
            limits::AGENT_REQUEST_TIMEOUT,
        )
        .await
    }

    /// Waits for the app's first process to end; without limit.
    pub async fn wait_app(&self) -> Result<AppStatus, GuestError> {
        let what = "wait for app";
        let response = self.send(what, get("/v1/app/wait")).await?;
        read_json(what, response).await
    }

    /// The app's output from byte `after` on, and the offset to ask for next.
    pub async fn app_logs(&self, after: u64) -> Result<(Bytes, u64), GuestError> {
        let what = "logs of app";
        let request = get(&format!("/v1/app/logs?after={after}"));
        let response = within(what, self.send(what, request)).await?;
        let next = response
            .headers()
            .get(LOG_NEXT)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .ok_or_else(|| nonsense(what, "no next offset"))?;
        let read = collect(what, response, limits::AGENT_BODY_BYTES_MAX);
        Ok((within(what, read).await?, next))
    }

    /// Runs a process to its end, handing on what it prints.
    pub async fn exec(
        &self,
        spec: &ExecSpec,
        on_output: impl FnMut(Output) + Send,
    ) -> Result<Exit, GuestError> {
        // The agent ends the process in time, if it is honest.
        let process = spec.process.timeout_s;
        let process = process.unwrap_or(limits::BUILD_STEP_TIMEOUT_S);
        let limit = Duration::from_secs(process) + limits::AGENT_REQUEST_TIMEOUT;
        at_most(limit, "exec", self.run(spec, on_output)).await
    }

    async fn run(
        &self,
        spec: &ExecSpec,
        mut on_output: impl FnMut(Output) + Send,
    ) -> Result<Exit, GuestError> {
        let what = "exec";
        let response = self.send(what, post("/v1/exec", json_body(spec))).await?;
        let mut body = response.into_body();
        let mut buffer = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(http_error(what))?;
            if let Ok(data) = frame.into_data() {
                buffer.extend_from_slice(&data);
            }
            while let Some((kind, payload)) = take_frame(&mut buffer)? {
                match kind {
                    FrameKind::Stdout => on_output(Output::Stdout(payload)),
                    FrameKind::Stderr => on_output(Output::Stderr(payload)),
                    FrameKind::Exit => return parse(what, &payload),
                    FrameKind::Stdin | FrameKind::Resize => {
                        return Err(nonsense(what, "a frame that only a host sends"));
                    }
                }
            }
        }
        Err(nonsense(what, "no exit before the end of the answer"))
    }

    /// Unpacks the tar that `tar` yields where `spec` says.
    pub async fn copy(
        &self,
        spec: &CopySpec,
        tar: impl tokio::io::AsyncRead + Send + Sync + 'static,
    ) -> Result<(), GuestError> {
        let request = with_copy_spec(post("/v1/copy", stream_body(tar)), spec)?;
        self.transfer("copy", request).await
    }

    /// Unpacks an archive, plain or compressed, where `spec` says; answers whether it is one. If it is
    /// none, nothing is written.
    pub async fn unpack(
        &self,
        spec: &CopySpec,
        archive: impl tokio::io::AsyncRead + Send + Sync + 'static,
    ) -> Result<bool, GuestError> {
        let request = with_copy_spec(post("/v1/unpack", stream_body(archive)), spec)?;
        match self.transfer("unpack", request).await {
            Ok(()) => Ok(true),
            Err(GuestError::Refused { status, .. })
                if status == StatusCode::UNSUPPORTED_MEDIA_TYPE =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes a tree in memory of the tar that `tar` yields.
    pub async fn put_tree(
        &self,
        name: &str,
        tar: impl tokio::io::AsyncRead + Send + Sync + 'static,
    ) -> Result<(), GuestError> {
        let path = format!("/v1/trees/{name}");
        let request = request(Method::PUT, &path, stream_body(tar));
        self.transfer("tree", request).await
    }

    /// Forgets a tree in memory.
    pub async fn delete_tree(&self, name: &str) -> Result<(), GuestError> {
        let path = format!("/v1/trees/{name}");
        let request = request(Method::DELETE, &path, empty());
        self.order("end of tree", request).await
    }

    /// Copies files of a tree into the root file system.
    pub async fn copy_tree(&self, name: &str, spec: &TreeCopySpec) -> Result<(), GuestError> {
        let path = format!("/v1/trees/{name}/copy");
        let request = post(&path, json_body(spec));
        self.transfer("copy of tree", request).await
    }

    /// Lets programs inside trust more CAs; any lent before are taken back.
    pub async fn lend_trust(&self, pem: &str) -> Result<Trusted, GuestError> {
        let body = bytes_body(Bytes::copy_from_slice(pem.as_bytes()));
        self.json(
            "loan of CAs",
            post("/v1/trust", body),
            limits::AGENT_REQUEST_TIMEOUT,
        )
        .await
    }

    /// Takes back the CAs that were lent.
    pub async fn take_trust_back(&self) -> Result<(), GuestError> {
        let mut request = post("/v1/trust", empty());
        *request.method_mut() = Method::DELETE;
        self.order("return of CAs", request).await
    }

    /// Puts everything on disk and holds writes back, so that the disk can be cut off here.
    pub async fn freeze_disk(&self) -> Result<(), GuestError> {
        self.order("freeze of disk", post("/v1/disk/freeze", empty()))
            .await
    }

    /// Lets writes go on.
    pub async fn thaw_disk(&self) -> Result<(), GuestError> {
        self.order("thaw of disk", post("/v1/disk/thaw", empty()))
            .await
    }

    /// Stops the app for a snapshot. The guest writes to its disk what it still holds, which takes as long as a
    /// suspend may.
    pub async fn freeze(&self) -> Result<(), GuestError> {
        let what = "freeze";
        let frozen = self.send(what, post("/v1/freeze", empty()));
        at_most(limits::SUSPEND_TIMEOUT, what, frozen)
            .await
            .map(drop)
    }

    /// Sets clock, entropy and identity, then lets the app run on.
    pub async fn thaw(&self, spec: &ThawSpec) -> Result<(), GuestError> {
        self.order("thaw", post("/v1/thaw", json_body(spec))).await
    }

    /// Thaws a machine that has just been restored: its network is knocked at until it answers, `limit` at
    /// most. What a guest does for the first time after a restore takes it long, and that is the hello: when
    /// the clock is read, the request is soon there.
    pub async fn thaw_restored(
        &self,
        limit: Duration,
        spec: impl FnOnce() -> ThawSpec,
    ) -> Result<(), GuestError> {
        let what = "thaw";
        let stream = self.knock(what, limit).await?;
        let thaw = async {
            let mut connection = open(stream, what).await?;
            let hello = ask(&mut connection, what, get("/v1/hello")).await?;
            understood(read_json(what, hello).await?)?;
            let request = post("/v1/thaw", json_body(&spec()));
            ask(&mut connection, what, request).await
        };
        within(what, thaw).await.map(drop)
    }

    async fn knock(
        &self,
        what: &'static str,
        limit: Duration,
    ) -> Result<Box<dyn Stream>, GuestError> {
        // A packet that comes before the machine runs is lost, and TCP waits a second to repeat it.
        const ATTEMPT: Duration = Duration::from_millis(250);
        let deadline = Instant::now() + limit;
        loop {
            let late = Instant::now() >= deadline;
            match timeout(ATTEMPT, self.machine.connect()).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) if late => return Err(GuestError::Connect(error)),
                Err(_) if late => return Err(GuestError::TimedOut(what)),
                Ok(Err(_)) => sleep(Duration::from_millis(5)).await,
                Err(_) => {}
            }
        }
    }

    /// Asks for an orderly end; the machine powers off some time after the answer.
    pub async fn power_off(&self) -> Result<(), GuestError> {
        self.order("power-off", post("/v1/poweroff", empty())).await
    }

    /// Opens a tunnel to `port` on the guest's loopback. A refusal with status 502 means that nothing
    /// listens there.
    pub async fn tunnel(&self, port: u16) -> Result<Box<dyn Stream>, GuestError> {
        self.dial(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
            .await
    }

    /// Opens a connection from inside the guest, with the guest's reach.
    pub async fn dial(&self, address: SocketAddrV4) -> Result<Box<dyn Stream>, GuestError> {
        let what = "tunnel";
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri(address.to_string())
            .header(http::header::HOST, address.to_string())
            .body(empty())
            .expect("an address makes a valid authority");
        self.upgrade(what, request).await
    }

    /// Opens a shell: a stream of frames both ways, as the protocol has them. A refusal with status 404 means
    /// that the agent is older than shells, with 429 that too many are open, with 400 that none can start.
    pub async fn shell(&self, spec: &ShellSpec) -> Result<Box<dyn Stream>, GuestError> {
        let mut request = post("/v1/shell", json_body(spec));
        let headers = request.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static(SHELL_PROTOCOL));
        self.upgrade("shell", request).await
    }

    /// Sends a request after which its connection is a plain stream.
    async fn upgrade(
        &self,
        what: &'static str,
        request: Request<RequestBody>,
    ) -> Result<Box<dyn Stream>, GuestError> {
        let upgraded = async {
            let response = self.send(what, request).await?;
            let upgraded = hyper::upgrade::on(response).await;
            upgraded.map_err(http_error(what))
        };
        let upgraded = within(what, upgraded).await?;
        Ok(Box::new(TokioIo::new(upgraded)))
    }

    /// Sends a request whose body, or the work on it, may take as long as a step of a build.
    async fn transfer(
        &self,
        what: &'static str,
        request: Request<RequestBody>,
    ) -> Result<(), GuestError> {
        let limit = Duration::from_secs(limits::BUILD_STEP_TIMEOUT_S);
        at_most(limit, what, self.send(what, request))
            .await
            .map(drop)
    }

    async fn order(
        &self,
        what: &'static str,
        request: Request<RequestBody>,
    ) -> Result<(), GuestError> {
        within(what, self.send(what, request)).await.map(drop)
    }

    async fn json<T: DeserializeOwned>(
        &self,
        what: &'static str,
        request: Request<RequestBody>,
        limit: Duration,
    ) -> Result<T, GuestError> {
        let exchange = async {
            let response = self.send(what, request).await?;
            read_json(what, response).await
        };
        at_most(limit, what, exchange).await
    }

    /// Sends one request on a connection of its own; an answer of 400 or above becomes an error.
    async fn send(
        &self,
        what: &'static str,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, GuestError> {
        let stream = self.machine.connect().await.map_err(GuestError::Connect)?;
        ask(&mut open(stream, what).await?, what, request).await
    }
}

fn with_copy_spec(
    mut request: Request<RequestBody>,
    spec: &CopySpec,
) -> Result<Request<RequestBody>, GuestError> {
    let spec = serde_json::to_string(spec).map_err(|e| nonsense("copy", &e.to_string()))?;
    let spec = HeaderValue::try_from(spec)
        .map_err(|_| nonsense("copy", "destination has control characters"))?;
    request.headers_mut().insert(COPY_SPEC, spec);
    Ok(request)
}

/// The agent that said so, unless this daemon does not speak its protocol.
fn understood(hello: Hello) -> Result<Hello, GuestError> {
    if hello.generation == GENERATION {
        return Ok(hello);
    }
    Err(GuestError::Generation {
        found: hello.generation,
    })
}

/// Takes one whole frame off the front of `buffer`, if there is one.
fn take_frame(buffer: &mut BytesMut) -> Result<Option<(FrameKind, Bytes)>, GuestError> {
    let found = whole_frame(buffer).map_err(|error| nonsense("exec", &error.to_string()))?;
    let Some((kind, payload)) = found else {
        return Ok(None);
    };
    let mut frame = buffer.split_to(payload.end);
    frame.advance(payload.start);
    Ok(Some((kind, frame.freeze())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_taken_whole() {
        let mut buffer = BytesMut::from(&[1, 0, 0, 0, 2, b'h', b'i', 3, 0, 0][..]);
        let frame = take_frame(&mut buffer)
            .expect("a valid frame")
            .expect("a whole frame");
        assert_eq!(frame, (FrameKind::Stdout, Bytes::from_static(b"hi")));
        assert!(take_frame(&mut buffer).expect("no error").is_none());
        assert_eq!(buffer[..], [3, 0, 0]);
    }
}
