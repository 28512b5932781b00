//! A QEMU process: started so that it outlives the daemon, and held by a pidfd so that a number that the
//! kernel gave to somebody else in the meantime is never mistaken for it.

use super::words::Words;
use crate::host::jail::{Cell, Jailer};
use crate::vmm::VmmError;
use dormouse_core::limits;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, set_child_subreaper, waitid,
};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

/// What tells a process from all others, before and after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessId {
    pub(super) pid: u32,
    /// When it started, in the kernel's ticks since the host's boot.
    pub(super) start_ticks: u64,
}

/// A process that runs, or has run.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) id: ProcessId,
    pidfd: Arc<AsyncFd<OwnedFd>>,
    /// None where it has closed them.
    words: Option<Words>,
    /// How it ended, where it is a child of ours.
    status: Option<watch::Receiver<Option<ExitStatus>>>,
}

impl Process {
    /// Starts a program in a jail. It inherits nothing but `stdin`, a tap, and `control`, the socket that it answers on.
    pub(super) async fn spawn(
        jailer: &Jailer,
        cell: Cell,
        arguments: Vec<OsString>,
        run_dir: &Path,
        stdin: Option<OwnedFd>,
        control: OwnedFd,
    ) -> Result<Self, VmmError> {
        let words = Words::new(run_dir).map_err(VmmError::io("make room for qemu's words"))?;
        let command = words
            .writer()
            .and_then(|log| jailer.command(cell, arguments, stdin, control, log))
            .map_err(VmmError::io("describe jail"))?;
        // In a task of its own: a process that its starter gives up on must still be waited for when it ends.
        let (done, started) = oneshot::channel();
        tokio::spawn(async move {
            let _ = done.send(start(command).await);
        });
        match started.await {
            Ok(Ok(Some(mut process))) => {
                // Of one that has ended since they are nowhere else.
                process.words = Some(words);
                Ok(process)
            }
            Ok(Ok(None)) => Err(VmmError::Gone(words.last())),
            Ok(Err(source)) => Err(VmmError::io("start jail")(source)),
            Err(_) => Err(VmmError::TimedOut("start of jail".to_owned())),
        }
    }

    /// Takes hold of a process that the jail has left to this one.
    pub(super) fn of_child(pid: u32) -> io::Result<Self> {
        let mut process = Self::open(pid)?;
        let (ended, status) = watch::channel(None);
        process.status = Some(status);
        let pidfd = process.pidfd.clone();
        // It outlives the machine's handle: a child that ends must be waited for whoever still cares.
        tokio::spawn(async move {
            // Readable once the process has ended.
            let _ = pidfd.readable().await;
            let waited = waitid(
                WaitId::PidFd(pidfd.get_ref().as_fd()),
                WaitIdOptions::EXITED,
            );
            ended.send_replace(waited.ok().flatten().map(|status| exit_status(&status)));
        });
        Ok(process)
    }

    /// Takes hold of a process that runs still; none when it is gone.
    pub(super) fn find(id: ProcessId) -> io::Result<Option<Self>> {
        match Self::open(id.pid) {
            Ok(process) if process.id == id => Ok(Some(process)),
            Ok(_) => Ok(None),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn open(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or(io::ErrorKind::InvalidInput)?;
        // The pidfd comes first: the start time read after it is that of the same process, or none. So are the words.
        let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::NONBLOCK)?;
        let words = Words::of(pid).ok();
        let id = ProcessId {
            pid,
            start_ticks: start_ticks(pid)?,
        };
        // SAFETY: the descriptor is owned, so it stays open and the same until it is dropped with the
        // `AsyncFd`, which is never taken apart.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
        Ok(Self {
            id,
            pidfd: Arc::new(pidfd),
            words,
            status: None,
        })
    }

    /// The last that it said on its standard error.
    pub(super) fn last_words(&self) -> String {
        self.words.as_ref().map(Words::last).unwrap_or_default()
    }

    /// Waits until the process has ended; answers how, where that can be known.
    pub(super) async fn ended(&self) -> Option<ExitStatus> {
        if let Some(status) = &self.status {
            let mut status = status.clone();
            return status
                .wait_for(Option::is_some)
                .await
                .ok()
                .and_then(|status| *status);
        }
        // A pidfd is readable from its process's end on, for ever.
        if let Err(error) = self.pidfd.readable().await {
            tracing::error!(pid = self.id.pid, %error, "wait for process failed");
        }
        None
    }

    /// Ends the process at once and waits until it is gone. Gone already is fine.
    pub(super) async fn kill(&self) -> Result<(), VmmError> {
        match rustix::process::pidfd_send_signal(self.pidfd.get_ref().as_fd(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => return Err(VmmError::io("kill qemu")(errno.into())),
        }
        timeout(limits::VMM_KILL_TIMEOUT, self.ended())
            .await
            .map(drop)
            .map_err(|_| VmmError::TimedOut("end of killed qemu".to_owned()))
    }
}

/// Runs the jail, which starts its program and ends; answers with the program's process. None where it could not: the log
/// says why.
async fn start(mut command: tokio::process::Command) -> io::Result<Option<Process>> {
    // The program then has this process for a parent once the jail is gone.
    set_child_subreaper(Some(rustix::process::getpid()))?;
    let mut jail = command.spawn()?;
    drop(command);
    let mut said = String::new();
    let run = async {
        if let Some(stdout) = jail.stdout.take() {
            // Longer than any process id.
            stdout.take(64).read_to_string(&mut said).await?;
        }
        jail.wait().await
    };
    let ended = timeout(limits::JAIL_TIMEOUT, run).await??;
    let pid = said.trim().parse().ok().filter(|_| ended.success());
    pid.map(Process::of_child).transpose()
}

/// As the wait status that the standard library reads.
fn exit_status(status: &WaitIdStatus) -> ExitStatus {
    let code = status.exit_status().unwrap_or_default() << 8;
    ExitStatus::from_raw(code | status.terminating_signal().unwrap_or_default())
}

/// Field 22 of `/proc/PID/stat`. The second field is in parentheses and may hold anything.
fn start_ticks(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let field = after_name.split_ascii_whitespace().nth(19);
    field
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Process {
        let child = std::process::Command::new("sleep").arg("60").spawn();
        Process::of_child(child.unwrap().id()).unwrap()
    }

    #[tokio::test]
    async fn killed_child_leaves_no_zombie() {
        let process = sleeper();
        process.kill().await.unwrap();
        process.kill().await.unwrap();
        assert_eq!(process.ended().await.unwrap().signal(), Some(9));
        assert!(
            !std::path::Path::new(&format!("/proc/{}", process.id.pid))
                .try_exists()
                .unwrap()
        );
    }

    #[tokio::test]
    async fn process_is_found_again_by_identity_only() {
        let process = sleeper();
        let found = Process::find(process.id).unwrap().unwrap();
        let other = ProcessId {
            start_ticks: process.id.start_ticks + 1,
            ..process.id
        };
        assert!(Process::find(other).unwrap().is_none());
        process.kill().await.unwrap();
        assert!(Process::find(process.id).unwrap().is_none());
        assert!(found.ended().await.is_none());
    }
}
