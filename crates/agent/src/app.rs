//! The customer's app: one process, what it left of output, and how it ended.

use crate::cgroup::Cgroup;
use crate::console;
use crate::log_ring::{LogRing, Piece};
use crate::process::{Plan, StartError, Started};
use crate::reaper::Reaper;
use dormouse_core::guest::Exit;
use dormouse_core::limits;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process};
use std::io;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;

/// The app's last output is read for at most this long after it ended.
const LAST_OUTPUT_TIMEOUT: Duration = Duration::from_secs(2);
const READ_BYTES: usize = 16 * 1024;

/// Where the app is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Absent,
    Running(Pid),
    Exited(Exit),
}

/// The app. Clones are the same app.
#[derive(Debug, Clone)]
pub(crate) struct App {
    cgroup: Arc<Cgroup>,
    phase: Arc<watch::Sender<Phase>>,
    log: Arc<Mutex<LogRing>>,
    log_end: Arc<watch::Sender<u64>>,
}

impl App {
    /// An app that is not started yet.
    pub(crate) fn new(guest: &Cgroup) -> io::Result<Self> {
        Ok(Self {
            cgroup: Arc::new(guest.child("app")?),
            phase: Arc::new(watch::Sender::new(Phase::Absent)),
            log: Arc::new(Mutex::new(LogRing::new(limits::AGENT_LOG_BYTES))),
            log_end: Arc::new(watch::Sender::new(0)),
        })
    }

    /// Where the app is now.
    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// CPU time of all its processes, in microseconds.
    pub(crate) fn cpu_usec(&self) -> io::Result<u64> {
        self.cgroup.cpu_usec()
    }

    /// Starts the app; none when it runs already.
    pub(crate) fn start(&self, plan: Plan, reaper: &Reaper) -> Result<Option<()>, StartError> {
        if matches!(self.phase(), Phase::Running(_)) {
            return Ok(None);
        }
        let (output, stdout) = pipe_with(PipeFlags::CLOEXEC)
            .map_err(StartError::host("make a pipe for the output"))?;
        let output = pipe::Receiver::from_owned_fd(output)
            .map_err(StartError::host("watch the pipe of the output"))?;
        let stderr = stdout
            .try_clone()
            .map_err(StartError::host("share the pipe of the output"))?;
        let started = plan.start(reaper, &self.cgroup, Stdio::null(), [stdout, stderr])?;
        self.phase.send_replace(Phase::Running(started.pid));
        tokio::spawn(self.clone().supervise(started, output));
        Ok(Some(()))
    }

    /// How the app ended, once it has.
    pub(crate) async fn exited(&self) {
        let mut phase = self.phase.subscribe();
        let ended = phase.wait_for(|phase| matches!(phase, Phase::Exited(_)));
        // The sender lives as long as `self`.
        let _ = ended.await;
    }

    /// Output from an offset on; when there is none yet, what comes within `patience`.
    pub(crate) async fn logs(&self, after: u64, patience: Duration) -> Piece {
        let mut end = self.log_end.subscribe();
        let news = end.wait_for(|end| *end > after);
        let _ = tokio::time::timeout(patience, news).await;
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .since(after)
    }

    /// Asks the app's first process to end.
    pub(crate) fn terminate(&self) {
        if let Phase::Running(pid) = self.phase() {
            // It may have ended this instant.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    async fn supervise(self, started: Started, output: pipe::Receiver) {
        let reading = tokio::spawn(self.clone().keep_output(output));
        let exit = started.finish(&self.cgroup, std::future::pending()).await;
        let abort = reading.abort_handle();
        if tokio::time::timeout(LAST_OUTPUT_TIMEOUT, reading)
            .await
            .is_err()
        {
            abort.abort();
        }
        console::say(format_args!("app exited with code {}", exit.code));
        self.phase.send_replace(Phase::Exited(exit));
    }

    async fn keep_output(self, mut output: pipe::Receiver) {
        let mut bytes = vec![0; READ_BYTES];
        while let Ok(len @ 1..) = output.read(&mut bytes).await {
            let end = self
                .log
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(&bytes[..len]);
            self.log_end.send_replace(end);
        }
    }
}
