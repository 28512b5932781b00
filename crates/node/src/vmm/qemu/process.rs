//! A QEMU process: started so that it outlives the daemon, and held by a pidfd so that a number that the
//! kernel gave to somebody else in the meantime is never mistaken for it.

use crate::vmm::{VmmError, cut};
use dormouse_core::limits;
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::timeout;

/// File name of QEMU's own messages in a machine's folder.
pub(super) const LOG: &str = "qemu.log";

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
    pidfd: AsyncFd<OwnedFd>,
    /// How it ended, where it is a child of ours.
    status: Option<watch::Receiver<Option<ExitStatus>>>,
}

impl Process {
    /// Starts a program in `run_dir`, in a session of its own, with its messages in the log there. It
    /// inherits nothing but `stdin`.
    pub(super) fn spawn(
        program: &Path,
        arguments: Vec<OsString>,
        run_dir: &Path,
        stdin: Option<OwnedFd>,
    ) -> Result<Self, VmmError> {
        let log = File::options()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(run_dir.join(LOG))
            .map_err(VmmError::io("create qemu log"))?;
        let log_too = log.try_clone().map_err(VmmError::io("create qemu log"))?;
        let mut command = tokio::process::Command::new(program);
        command
            .args(arguments)
            .current_dir(run_dir)
            .env_clear()
            .stdin(stdin.map_or_else(Stdio::null, Stdio::from))
            .stdout(log)
            .stderr(log_too);
        // SAFETY: setsid is async-signal-safe, and nothing else happens between fork and exec.
        unsafe {
            command.pre_exec(|| Ok(rustix::process::setsid().map(drop)?));
        }
        let mut child = command
            .spawn()
            .map_err(VmmError::io(format!("start {}", program.display())))?;
        let pid = child
            .id()
            .expect("a child that was not waited for has its pid");
        let mut process = Self::open(pid).map_err(VmmError::io("open pidfd"))?;
        let (ended, status) = watch::channel(None);
        process.status = Some(status);
        // It outlives the machine's handle: a child that ends must be waited for whoever still cares.
        tokio::spawn(async move {
            let status = child.wait().await;
            ended.send_replace(status.ok());
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

    /// Finds a process by the folder it runs in: one that was started just before a crash.
    pub(super) fn find_in(run_dir: &Path, program: &Path) -> io::Result<Option<Self>> {
        let Some(name) = program.file_name() else {
            return Ok(None);
        };
        let Ok(run_dir) = run_dir.canonicalize() else {
            return Ok(None);
        };
        for entry in std::fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let link = |name| std::fs::read_link(entry.path().join(name)).ok();
            let runs_here = link("cwd").is_some_and(|cwd| cwd == run_dir);
            if runs_here && link("exe").is_some_and(|exe| exe.file_name() == Some(name)) {
                return Self::open(pid).map(Some);
            }
        }
        Ok(None)
    }

    fn open(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or(io::ErrorKind::InvalidInput)?;
        // The pidfd comes first: the start time read after it is that of the same process, or none.
        let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::NONBLOCK)?;
        let id = ProcessId {
            pid,
            start_ticks: start_ticks(pid)?,
        };
        // SAFETY: the descriptor is owned, so it stays open and the same until it is dropped with the
        // `AsyncFd`, which is never taken apart.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
        Ok(Self {
            id,
            pidfd,
            status: None,
        })
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

/// The last words of a QEMU process, for error messages.
pub(super) fn last_words(run_dir: &Path) -> String {
    const TAIL: u64 = 1024;
    let read = || -> io::Result<String> {
        let mut log = File::open(run_dir.join(LOG))?;
        let len = log.metadata()?.len();
        log.seek(SeekFrom::Start(len.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        log.take(TAIL).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    cut(text.trim().lines().last().unwrap_or_default())
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

    fn sleeper(dir: &Path) -> Process {
        Process::spawn(Path::new("/bin/sleep"), vec!["60".into()], dir, None).unwrap()
    }

    /// Until exec is done the child is still a copy of this process.
    async fn found_in(dir: &Path) -> Process {
        loop {
            if let Some(found) = Process::find_in(dir, Path::new("sleep")).unwrap() {
                return found;
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn killed_child_leaves_no_zombie() {
        let dir = tempfile::tempdir().unwrap();
        let process = sleeper(dir.path());
        process.kill().await.unwrap();
        process.kill().await.unwrap();
        assert!(
            !Path::new(&format!("/proc/{}", process.id.pid))
                .try_exists()
                .unwrap()
        );
    }

    #[tokio::test]
    async fn process_is_found_again_by_identity_only() {
        let dir = tempfile::tempdir().unwrap();
        let process = sleeper(dir.path());
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

    #[tokio::test]
    async fn process_is_found_by_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let process = sleeper(dir.path());
        let found = found_in(dir.path()).await;
        assert_eq!(found.id, process.id);
        assert!(
            Process::find_in(dir.path(), Path::new("qemu"))
                .unwrap()
                .is_none()
        );
        process.kill().await.unwrap();
        assert!(
            Process::find_in(dir.path(), Path::new("sleep"))
                .unwrap()
                .is_none()
        );
    }

    #[tokio::test]
    async fn child_has_a_session_of_its_own_and_no_descriptors_of_ours() {
        let dir = tempfile::tempdir().unwrap();
        let held = tempfile::NamedTempFile::new_in(dir.path()).unwrap();
        let process = sleeper(dir.path());
        found_in(dir.path()).await;
        let pid = Pid::from_raw(process.id.pid as i32).unwrap();
        assert_eq!(rustix::process::getsid(Some(pid)).unwrap(), pid);
        let links = std::fs::read_dir(format!("/proc/{}/fd", process.id.pid)).unwrap();
        let open: Vec<_> = links
            .map(|fd| std::fs::read_link(fd.unwrap().path()).unwrap())
            .collect();
        assert!(!open.iter().any(|path| path == held.path()), "{open:?}");
        assert!(open.contains(&dir.path().join(LOG)), "{open:?}");
        process.kill().await.unwrap();
    }
}
