//! Client of QEMU's machine protocol (QMP): lines of JSON over a Unix socket.
//!
//! A task owns the connection. Callers send it commands and await the answer with the same id, so a
//! caller that gives up cannot put the conversation out of step. A guest can influence what QEMU says
//! but not how: still, lines are bounded, and whatever makes no sense ends the connection.

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;

use super::{VmmError, cut};
use dormouse_core::limits::{QMP_LINE_BYTES_MAX, VMM_COMMAND_TIMEOUT};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

/// File name of the socket in a machine's folder.
pub(super) const SOCKET: &str = "qmp.sock";
/// Commands that may wait for the connection, and answers that it may owe.
const QUEUE: usize = 16;

/// A connection to one QEMU. Clones share it; it closes with the last of them.
#[derive(Debug, Clone)]
pub(super) struct Qmp {
    commands: mpsc::Sender<Command>,
    seen: watch::Receiver<Seen>,
}

/// What QEMU has told of its own accord.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Why the machine ended, as in `guest-shutdown`.
    pub(super) shutdown: Option<String>,
    /// Whether the machine stopped because the host had no space for what it wrote.
    pub(super) disk_full: bool,
    /// Whether its CPUs stopped, for whatever reason, and have not run since.
    pub(super) stopped: bool,
}

#[derive(Debug)]
struct Command {
    name: &'static str,
    arguments: Value,
    /// Goes along with the command.
    file: Option<OwnedFd>,
    answer: oneshot::Sender<Result<Value, String>>,
}

/// A line from QEMU.
#[derive(Debug, Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    id: Option<u64>,
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Refusal>,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    desc: String,
}

impl Qmp {
    /// Connects to the socket in `run_dir` and leaves negotiation mode.
    pub(super) async fn connect(run_dir: &Path) -> Result<Self, VmmError> {
        let stream = open(run_dir)
            .await
            .map_err(VmmError::io("connect to qmp socket"))?;
        Self::handshake(stream).await
    }

    async fn handshake(stream: UnixStream) -> Result<Self, VmmError> {
        let (reader, writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let greeted = async {
            let line = read_line(&mut reader).await?;
            line.greeting
                .ok_or_else(|| nonsense("no greeting"))
                .map(drop)
        };
        timeout(VMM_COMMAND_TIMEOUT, greeted)
            .await
            .map_err(|_| VmmError::TimedOut("qmp greeting".to_owned()))?
            .map_err(VmmError::io("read qmp greeting"))?;
        let (commands, queue) = mpsc::channel(QUEUE);
        let (seen, watcher) = watch::channel(Seen::default());
        tokio::spawn(serve(reader, writer, queue, seen));
        let qmp = Self {
            commands,
            seen: watcher,
        };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Runs a command and returns QEMU's answer.
    pub(super) async fn execute(
        &self,
        name: &'static str,
        arguments: Value,
    ) -> Result<Value, VmmError> {
        self.send(name, arguments, None).await
    }

    /// Runs a command on a file that QEMU cannot open itself. `arguments` is told the path that stands for it.
    pub(super) async fn execute_on(
        &self,
        name: &'static str,
        file: OwnedFd,
        arguments: impl FnOnce(&str) -> Value,
    ) -> Result<Value, VmmError> {
        let added = self.send("add-fd", json!({}), Some(file)).await?;
        let set = added.get("fdset-id").and_then(Value::as_u64);
        let set = set.ok_or_else(|| VmmError::Refused {
            command: "add-fd".to_owned(),
            message: "the answer names no set".to_owned(),
        })?;
        let done = self
            .send(name, arguments(&format!("/dev/fdset/{set}")), None)
            .await;
        // What has opened it holds it on its own.
        let removed = self.send("remove-fd", json!({"fdset-id": set}), None).await;
        let done = done?;
        removed?;
        Ok(done)
    }

    async fn send(
        &self,
        name: &'static str,
        arguments: Value,
        file: Option<OwnedFd>,
    ) -> Result<Value, VmmError> {
        let (answer, answered) = oneshot::channel();
        let exchange = async {
            self.commands
                .send(Command {
                    name,
                    arguments,
                    file,
                    answer,
                })
                .await
                .map_err(|_| gone())?;
            answered.await.map_err(|_| gone())
        };
        let answer = timeout(VMM_COMMAND_TIMEOUT, exchange)
            .await
            .map_err(|_| VmmError::TimedOut(name.to_owned()))??;
        answer.map_err(|message| VmmError::Refused {
            command: name.to_owned(),
            message,
        })
    }

    /// Why the machine's CPUs will never run again, although QEMU is there; none where they do, or may.
    pub(super) async fn halted(&self) -> Option<String> {
        let answer = self.execute("query-status", json!({})).await.ok()?;
        let status = answer.get("status").and_then(Value::as_str)?;
        matches!(status, "internal-error" | "guest-panicked").then(|| status.to_owned())
    }

    /// What QEMU has told of its own accord so far.
    pub(super) fn seen(&self) -> watch::Receiver<Seen> {
        self.seen.clone()
    }
}

fn gone() -> VmmError {
    VmmError::Gone("qemu closed its control socket".to_owned())
}

/// Makes the socket in `run_dir` that QEMU will answer on. It is made here so that QEMU need not write to any folder.
pub(super) fn listen(run_dir: &Path) -> std::io::Result<OwnedFd> {
    match std::fs::remove_file(run_dir.join(SOCKET)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let dir = folder(run_dir)?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd());
    Ok(std::os::unix::net::UnixListener::bind(path)?.into())
}

/// Connects by way of the folder's descriptor: a socket's path is limited to 108 bytes, a folder's not.
async fn open(run_dir: &Path) -> std::io::Result<UnixStream> {
    let dir = folder(run_dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd())).await
}

fn folder(path: &Path) -> rustix::io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// Sends a line, and with its first byte a descriptor.
async fn write_line(
    writer: &mut OwnedWriteHalf,
    line: &str,
    file: Option<OwnedFd>,
) -> std::io::Result<()> {
    let mut bytes = line.as_bytes();
    if let Some(file) = file {
        let stream = writer.as_ref();
        let sent = stream.async_io(Interest::WRITABLE, || {
            let files = [file.as_fd()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut along = SendAncillaryBuffer::new(&mut space);
            along.push(SendAncillaryMessage::ScmRights(&files));
            let flags = SendFlags::NOSIGNAL;
            Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut along, flags)?)
        });
        bytes = &bytes[sent.await?..];
    }
    writer.write_all(bytes).await
}

/// Carries commands out and answers back until either side is done.
async fn serve(
    mut reader: BufReader<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Command>,
    seen: watch::Sender<Seen>,
) {
    let (lines, mut incoming) = mpsc::channel(QUEUE);
    let reading = async move {
        loop {
            let line = read_line(&mut reader).await;
            let ended = line.is_err();
            if lines.send(line).await.is_err() || ended {
                return;
            }
        }
    };
    let working = async {
        let mut owed: HashMap<u64, oneshot::Sender<Result<Value, String>>> = HashMap::new();
        let mut next_id = 0u64;
        loop {
            tokio::select! {
                command = queue.recv(), if owed.len() < QUEUE => {
                    let Some(Command { name, arguments, file, answer }) = command else { return };
                    next_id += 1;
                    let line = json!({"execute": name, "arguments": arguments, "id": next_id});
                    if write_line(&mut writer, &format!("{line}\n"), file).await.is_err() {
                        return;
                    }
                    owed.insert(next_id, answer);
                }
                line = incoming.recv() => match line {
                    Some(Ok(line)) => take(line, &mut owed, &seen),
                    Some(Err(error)) => {
                        if error.kind() == std::io::ErrorKind::InvalidData {
                            tracing::warn!(%error, "qmp connection dropped");
                        }
                        return;
                    }
                    None => return,
                }
            }
        }
    };
    tokio::pin!(reading, working);
    // The reader ends only after it has handed over its last line, which ends the worker.
    tokio::select! {
        () = &mut working => {}
        () = &mut reading => working.await,
    }
}

fn take(
    line: Line,
    owed: &mut HashMap<u64, oneshot::Sender<Result<Value, String>>>,
    seen: &watch::Sender<Seen>,
) {
    if let Some(event) = line.event {
        seen.send_if_modified(|seen| note(seen, &event, &line.data));
        return;
    }
    let Some(answer) = line.id.and_then(|id| owed.remove(&id)) else {
        tracing::debug!("qmp answer to nothing asked");
        return;
    };
    let result = match (line.value, line.error) {
        (Some(value), None) => Ok(value),
        (_, Some(refusal)) => Err(cut(&refusal.desc)),
        (None, None) => Err("neither value nor error".to_owned()),
    };
    // A caller that gave up is not missed.
    let _ = answer.send(result);
}

/// Keeps what an event tells; answers whether it told anything new.
fn note(seen: &mut Seen, event: &str, data: &Value) -> bool {
    let before = seen.clone();
    match event {
        "SHUTDOWN" => {
            let reason = data
                .get("reason")
                .and_then(Value::as_str)
                .unwrap_or("unknown");
            seen.shutdown = Some(cut(reason));
        }
        "BLOCK_IO_ERROR" => {
            let stopped = data.get("action").and_then(Value::as_str) == Some("stop");
            seen.disk_full |= stopped && data.get("nospace").and_then(Value::as_bool) == Some(true);
        }
        "STOP" => seen.stopped = true,
        "RESUME" => (seen.stopped, seen.disk_full) = (false, false),
        _ => {}
    }
    *seen != before
}

async fn read_line(reader: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Line> {
    let mut text = Vec::new();
    reader
        .take(QMP_LINE_BYTES_MAX)
        .read_until(b'\n', &mut text)
        .await?;
    if text.last() != Some(&b'\n') {
        return Err(match text.len() as u64 {
            QMP_LINE_BYTES_MAX => nonsense("line too long"),
            _ => std::io::ErrorKind::UnexpectedEof.into(),
        });
    }
    serde_json::from_slice(&text).map_err(|_| nonsense("not the protocol's JSON"))
}

fn nonsense(problem: &'static str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, problem)
}

#[cfg(test)]
pub(super) mod peer {
    use super::*;
    use tokio::net::UnixListener;

    pub(in crate::vmm) const GREETING: &str =
        "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n";

    /// A connection to a QEMU that follows a script.
    pub(in crate::vmm) async fn scripted(
        first: &str,
        answers: Vec<String>,
    ) -> (tempfile::TempDir, Result<Qmp, VmmError>) {
        let dir = listening(first, answers);
        let qmp = Qmp::connect(dir.path()).await;
        (dir, qmp)
    }

    /// The folder of a QEMU that follows a script: a line to expect (`<id>` stands for its id), then what to answer.
    pub(in crate::vmm) fn listening(first: &str, answers: Vec<String>) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        let first = first.to_owned();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (reader, mut writer) = stream.into_split();
            let _ = writer.write_all(first.as_bytes()).await;
            let mut lines = BufReader::new(reader).lines();
            for answer in answers {
                let Ok(Some(line)) = lines.next_line().await else {
                    return;
                };
                let line: Value = serde_json::from_str(&line).unwrap();
                let answer = answer.replace("<id>", &line["id"].to_string());
                let _ = writer.write_all(answer.as_bytes()).await;
            }
        });
        dir
    }

    pub(in crate::vmm) fn ok() -> String {
        "{\"return\": {}, \"id\": <id>}\n".to_owned()
    }

    /// QEMU's answer to the question how its machine is, and what it says after it.
    pub(in crate::vmm) fn status(status: &str, events: &[&str]) -> String {
        let answer = format!("{{\"return\": {{\"status\": \"{status}\"}}, \"id\": <id>}}\n");
        let events = events
            .iter()
            .map(|event| format!("{{\"event\": \"{event}\"}}\n"));
        answer + &events.collect::<String>()
    }
}

#[cfg(test)]
mod tests {
    use super::peer::{GREETING, ok, scripted};
    use super::*;

    #[tokio::test]
    async fn command_is_answered_across_events() {
        let event =
            "{\"event\": \"STOP\", \"timestamp\": {}}\n{\"return\": {\"a\": 1}, \"id\": <id>}\n";
        let (_dir, qmp) = scripted(GREETING, vec![ok(), event.to_owned()]).await;
        let answer = qmp
            .unwrap()
            .execute("query-status", json!({}))
            .await
            .unwrap();
        assert_eq!(answer, json!({"a": 1}));
    }

    #[tokio::test]
    async fn refusal_carries_qemus_words() {
        let refusal = "{\"error\": {\"class\": \"GenericError\", \"desc\": \"No space left on device\"}, \"id\": <id>}\n";
        let (_dir, qmp) = scripted(GREETING, vec![ok(), refusal.to_owned()]).await;
        let error = qmp.unwrap().execute("stop", json!({})).await.unwrap_err();
        assert!(error.is_disk_full(), "{error}");
    }

    #[tokio::test]
    async fn end_of_the_connection_is_told_and_shutdown_is_kept() {
        let last = "{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-shutdown\"}}\n";
        let (_dir, qmp) = scripted(GREETING, vec![ok(), last.to_owned()]).await;
        let qmp = qmp.unwrap();
        let error = qmp.execute("cont", json!({})).await.unwrap_err();
        assert!(matches!(error, VmmError::Gone(_)), "{error}");
        let seen = qmp.seen().borrow().clone();
        assert_eq!(seen.shutdown.as_deref(), Some("guest-shutdown"));
    }

    #[tokio::test]
    async fn nonsense_is_an_error() {
        for first in ["hello\n", "{}\n", "[]\n", "{\"QMP\":", "\u{0}\n", ""] {
            let (_dir, qmp) = scripted(first, vec![]).await;
            assert!(qmp.is_err(), "{first:?}");
        }
        for answer in ["what\n", "{\"id\": \"x\"}\n", "{\"event\": 3}\n"] {
            let (_dir, qmp) = scripted(GREETING, vec![ok(), answer.to_owned()]).await;
            assert!(
                qmp.unwrap().execute("stop", json!({})).await.is_err(),
                "{answer:?}"
            );
        }
    }

    #[tokio::test]
    async fn endless_line_is_cut_off() {
        let (_dir, qmp) = scripted(
            GREETING,
            vec![ok(), "x".repeat(QMP_LINE_BYTES_MAX as usize + 1)],
        )
        .await;
        let error = qmp.unwrap().execute("stop", json!({})).await.unwrap_err();
        assert!(matches!(error, VmmError::Gone(_)), "{error}");
    }

    #[tokio::test]
    async fn machine_that_will_never_run_again_is_told_from_one_that_may() {
        for (status, halted) in [
            ("running", false),
            ("paused", false),
            ("inmigrate", false),
            ("io-error", false),
            ("internal-error", true),
            ("guest-panicked", true),
        ] {
            let answers = vec![ok(), peer::status(status, &[])];
            let (_dir, qmp) = scripted(GREETING, answers).await;
            let why = qmp.unwrap().halted().await;
            assert_eq!(why.as_deref(), halted.then_some(status));
        }
    }

    #[test]
    fn full_disk_is_noted_until_the_machine_runs_on() {
        let mut seen = Seen::default();
        note(
            &mut seen,
            "BLOCK_IO_ERROR",
            &json!({"action": "report", "nospace": true}),
        );
        assert!(!seen.disk_full);
        note(
            &mut seen,
            "BLOCK_IO_ERROR",
            &json!({"action": "stop", "nospace": true}),
        );
        assert!(seen.disk_full);
        note(&mut seen, "STOP", &Value::Null);
        assert!(seen.stopped);
        note(&mut seen, "RESUME", &Value::Null);
        assert!(!seen.disk_full && !seen.stopped);
    }
}
