//! A guest's agent that answers anything: the host takes what was said, no more of it than it may, and goes on.

use super::assert_brief;
use crate::build::BuildLog;
use crate::guest::{Guest, GuestError, Output};
use crate::hook;
use crate::vmm::{DeltaFiles, DeltaStats, ExitReason, Instance, Stream, VmmError};
use async_trait::async_trait;
use bytes::Bytes;
use dormouse_core::guest::{CopySpec, ExecSpec, ProcessSpec, ShellSpec, ThawSpec};
use dormouse_core::hook::{Hook, HookCall};
use dormouse_core::{chain, limits};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use std::{fs, io};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::yield_now;
use tokio::time::Instant;

/// The answer is the body of this one if the first byte has this bit.
const BODY_ALONE: u8 = 0x80;
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nx-dormouse-log-next: 7\r\n\r\n";
/// Turns that the tasks of an exchange may take to see that it is over.
const LAST_TURNS: usize = 1000;

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("runtime");
}

/// Answers one of the host's requests with `data`. Its first byte says which, the second how many bytes come at once.
pub fn agent(data: &[u8]) {
    let [request, piece, said @ ..] = data else {
        return;
    };
    let mut answer = Vec::new();
    if request & BODY_ALONE != 0 {
        answer.extend(HEAD);
    }
    answer.extend(said);
    let machine = Machine {
        answer: answer.into(),
        piece: usize::from(*piece),
    };
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            // The clock moves only where the host waits, and nothing is left to wait for.
            let began = Instant::now();
            ask(&machine, request & !BODY_ALONE).await;
            assert_eq!(began.elapsed(), Duration::ZERO, "the host has waited");
            assert_nothing_left().await;
        });
    });
}

async fn ask(machine: &Machine, request: u8) {
    let guest = Guest::new(machine);
    let done = match request % 12 {
        0 => guest.hello(Duration::ZERO).await.map(drop),
        1 => guest.app().await.map(drop),
        2 => guest.wait_app().await.map(drop),
        3 => logs(guest).await,
        4 => exec(machine).await,
        5 => guest.freeze().await,
        6 => guest.thaw_restored(Duration::ZERO, thaw).await,
        7 => read(machine, guest.tunnel(8080).await).await,
        8 => read(machine, guest.shell(&shell()).await).await,
        9 => guest.lend_trust("").await.map(drop),
        10 => guest.unpack(&copy(), &b"tar"[..]).await.map(drop),
        _ => {
            // How it fails is one of a few words, and none of the guest's.
            let _ = hook::ask(guest, call(), Some("{}".to_owned())).await;
            Ok(())
        }
    };
    if let Err(error) = done {
        assert_brief(&chain(&error));
    }
}

async fn logs(guest: Guest<'_>) -> Result<(), GuestError> {
    let (bytes, _) = guest.app_logs(0).await?;
    assert!(bytes.len() <= limits::AGENT_BODY_BYTES_MAX);
    let log = Log::create();
    log.log.app_output(&bytes);
    log.assert_fit_for_a_terminal();
    Ok(())
}

async fn exec(machine: &Machine) -> Result<(), GuestError> {
    let (log, mut bytes) = (Log::create(), 0);
    let mut step = log.log.step(None, 1, 1, "RUN app");
    let (guest, command) = (Guest::new(machine), command());
    let print = |output| {
        let (Output::Stdout(part) | Output::Stderr(part)) = &output;
        bytes += part.len();
        step.output(&output);
    };
    let done = guest.exec(&command, print).await;
    assert!(bytes <= machine.answer.len(), "more output than was sent");
    drop(step);
    log.assert_fit_for_a_terminal();
    done.map(drop)
}

async fn read(
    machine: &Machine,
    opened: Result<Box<dyn Stream>, GuestError>,
) -> Result<(), GuestError> {
    let mut bytes = Vec::new();
    // That it breaks off is the client's affair.
    let _ = opened?.read_to_end(&mut bytes).await;
    assert!(machine.answer.ends_with(&bytes), "not what was sent");
    Ok(())
}

/// Whatever the agent did, the tasks of the exchange end with it.
async fn assert_nothing_left() {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    for _ in 0..LAST_TURNS {
        if tasks() == 0 {
            return;
        }
        yield_now().await;
    }
    panic!("{} tasks are left", tasks());
}

fn thaw() -> ThawSpec {
    ThawSpec {
        wall_clock_ns: 1,
        entropy_hex: String::new(),
        hostname: "app".to_owned(),
    }
}

fn shell() -> ShellSpec {
    ShellSpec {
        terminal: None,
        command: None,
    }
}

fn copy() -> CopySpec {
    CopySpec {
        dest: "/".to_owned(),
        as_file: false,
        owner: String::new(),
    }
}

fn command() -> ExecSpec {
    ExecSpec {
        process: ProcessSpec {
            argv: vec!["app".to_owned()],
            env: Vec::new(),
            cwd: "/".to_owned(),
            user: String::new(),
            timeout_s: None,
        },
        mounts: Vec::new(),
        offline: true,
    }
}

fn call() -> HookCall {
    HookCall {
        hook: Hook::Run,
        port: 9000,
        timeout_s: 1,
    }
}

/// A build's log in a file that one run after the other uses.
struct Log {
    log: BuildLog,
    path: PathBuf,
}

impl Log {
    fn create() -> Self {
        static FOLDER: OnceLock<TempDir> = OnceLock::new();
        let folder = FOLDER.get_or_init(|| tempfile::tempdir().expect("folder"));
        let path = folder.path().join("log");
        let log = BuildLog::create(&path).expect("log");
        Self { log, path }
    }

    fn assert_fit_for_a_terminal(&self) {
        let text = fs::read_to_string(&self.path).expect("a log is text");
        let is_control = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
        assert!(!text.contains(is_control), "{text:?}");
        assert!(
            text.lines()
                .all(|line| line.starts_with('#') || line.is_empty())
        );
    }
}

/// A machine whose agent answers each request with the same bytes, and hangs up.
#[derive(Debug)]
struct Machine {
    answer: Bytes,
    /// How many of them come at once; 0 for all.
    piece: usize,
}

#[async_trait]
impl Instance for Machine {
    fn pid(&self) -> Option<u32> {
        None
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, VmmError> {
        Ok(Box::new(Answer {
            left: self.answer.clone(),
            piece: self.piece,
            asked: false,
            reader: None,
        }))
    }

    async fn exited(&self) -> ExitReason {
        std::future::pending().await
    }

    async fn resume(&self) -> Result<(), VmmError> {
        Err(no_machine())
    }

    async fn pause(&self) -> Result<(), VmmError> {
        Err(no_machine())
    }

    async fn snapshot_golden(&self, _: &Path) -> Result<(), VmmError> {
        Err(no_machine())
    }

    async fn snapshot_delta(&self, _: &DeltaFiles) -> Result<DeltaStats, VmmError> {
        Err(no_machine())
    }

    async fn touched_pages(&self) -> Result<Vec<Range<u64>>, VmmError> {
        Err(no_machine())
    }

    async fn switch_disk(&self, _: &Path) -> Result<(), VmmError> {
        Err(no_machine())
    }

    async fn kill(&self) -> Result<(), VmmError> {
        Err(no_machine())
    }
}

fn no_machine() -> VmmError {
    VmmError::Gone("there is an agent and nothing else".to_owned())
}

/// One connection: silent until something is asked, and then the answer and the end.
struct Answer {
    left: Bytes,
    piece: usize,
    asked: bool,
    reader: Option<Waker>,
}

impl AsyncRead for Answer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.asked {
            self.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        let most = match self.piece {
            0 => usize::MAX,
            piece => piece,
        };
        let len = most.min(buffer.remaining()).min(self.left.len());
        buffer.put_slice(&self.left.split_to(len));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Answer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.asked = true;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
