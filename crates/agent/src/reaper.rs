//! Reaping: PID 1 is the parent of every orphan, and tells those who wait how their process ended.

use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Hands the exit codes of processes to those who wait for them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reaper {
    waiting: Arc<Mutex<HashMap<Pid, oneshot::Sender<i32>>>>,
}

impl Reaper {
    /// The exit code of a child, once it has ended.
    ///
    /// The child must have been started on the runtime's only thread since this last yielded:
    /// then it cannot have been reaped unseen.
    pub(crate) fn watch(&self, pid: Pid) -> oneshot::Receiver<i32> {
        let (sender, receiver) = oneshot::channel();
        self.lock().insert(pid, sender);
        receiver
    }

    /// Reaps for as long as the VM runs.
    pub(crate) fn start(&self) -> io::Result<()> {
        let mut child_ended = signal(SignalKind::child())?;
        let reaper = self.clone();
        tokio::spawn(async move {
            while child_ended.recv().await.is_some() {
                reaper.reap();
            }
        });
        Ok(())
    }

    fn reap(&self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let waiting = self.lock().remove(&pid);
            if let (Some(waiting), Some(code)) = (waiting, exit_code(status)) {
                // Whoever asked may have lost interest.
                let _ = waiting.send(code);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Pid, oneshot::Sender<i32>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A shell's view of how a process ended: its code, or 128 and the number of the signal.
fn exit_code(status: WaitStatus) -> Option<i32> {
    const SIGNALLED: i32 = 128;
    let by_signal = || status.terminating_signal().map(|signal| SIGNALLED + signal);
    status.exit_status().or_else(by_signal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::waitpid;
    use std::process::Command;

    #[test]
    fn exit_codes_are_a_shells() {
        for (script, code) in [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137)] {
            let child = Command::new("sh").args(["-c", script]).spawn();
            let pid = Pid::from_child(&child.expect("a shell"));
            let ended = waitpid(Some(pid), WaitOptions::empty()).expect("a child");
            let (_, status) = ended.expect("it has ended");
            assert_eq!(exit_code(status), Some(code), "{script}");
        }
    }
}
