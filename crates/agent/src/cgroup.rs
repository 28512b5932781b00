//! Control groups (version 2), the unit in which processes are frozen, killed and measured.
//!
//! ```text
//! /                the agent
//! └── guest        everything of the customer's; frozen as a whole
//!     ├── app
//!     ├── exec-N   one for each command that the host runs
//!     └── shell-N  one for each shell that somebody has open
//! ```

use crate::console;
use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, unlinkat};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Longest file of a control group that is read, in bytes.
const FILE_BYTES_MAX: usize = 4096;
const POLL: Duration = Duration::from_millis(1);
/// Killed processes are gone within this.
const GONE_TIMEOUT: Duration = Duration::from_secs(10);
const GONE_POLL: Duration = Duration::from_millis(5);

/// One control group, held by a descriptor of its folder.
#[derive(Debug)]
pub(crate) struct Cgroup {
    dir: OwnedFd,
}

impl Cgroup {
    /// The group that a mount of the control group file system starts with.
    pub(crate) fn root(dir: OwnedFd) -> Self {
        Self { dir }
    }

    /// A group below this one, made when missing.
    pub(crate) fn child(&self, name: &str) -> io::Result<Self> {
        match mkdirat(&self.dir, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let dir = openat(&self.dir, name, flags, Mode::empty())?;
        Ok(Self { dir })
    }

    /// Removes an empty group below this one.
    pub(crate) fn remove_child(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.dir, name, AtFlags::REMOVEDIR)?)
    }

    /// Removes a group below this one once its processes, which were killed, are gone.
    pub(crate) async fn remove_child_once_empty(&self, child: &Self, name: &str) {
        let gone = async {
            while child.is_populated().unwrap_or(false) {
                tokio::time::sleep(GONE_POLL).await;
            }
        };
        let _ = tokio::time::timeout(GONE_TIMEOUT, gone).await;
        if let Err(error) = self.remove_child(name) {
            console::say(format_args!("cannot remove control group {name}: {error}"));
        }
    }

    /// The file through which a process joins: it writes `0`.
    pub(crate) fn entrance(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        Ok(openat(&self.dir, "cgroup.procs", flags, Mode::empty())?)
    }

    /// Sends SIGKILL to every process of the group. They may take a moment to be gone.
    pub(crate) fn kill(&self) -> io::Result<()> {
        self.write("cgroup.kill", "1")
    }

    /// Stops every process of the group or lets it run on, and waits until that is so.
    /// This blocks for up to `timeout`.
    pub(crate) fn set_frozen(&self, frozen: bool, timeout: Duration) -> io::Result<()> {
        let value = if frozen { "1" } else { "0" };
        self.write("cgroup.freeze", value)?;
        let start = Instant::now();
        while self.field("cgroup.events", "frozen")? != u64::from(frozen) {
            if start.elapsed() > timeout {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Whether a process lives in the group or below it.
    pub(crate) fn is_populated(&self) -> io::Result<bool> {
        Ok(self.field("cgroup.events", "populated")? != 0)
    }

    /// CPU time used so far by the group, in microseconds.
    pub(crate) fn cpu_usec(&self) -> io::Result<u64> {
        self.field("cpu.stat", "usage_usec")
    }

    /// Lets groups below this one, and below its children, use controllers. Neither may hold a process itself.
    pub(crate) fn delegate(&self, controllers: &str) -> io::Result<()> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let parent = Self {
            dir: openat(&self.dir, "..", flags, Mode::empty())?,
        };
        parent.write("cgroup.subtree_control", controllers)?;
        self.write("cgroup.subtree_control", controllers)
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let fd = openat(&self.dir, file, flags, Mode::empty())?;
        rustix::io::write(&fd, value.as_bytes())?;
        Ok(())
    }

    fn field(&self, file: &str, key: &str) -> io::Result<u64> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = openat(&self.dir, file, flags, Mode::empty())?;
        let mut bytes = [0; FILE_BYTES_MAX];
        let len = rustix::io::read(&fd, &mut bytes)?;
        let text = String::from_utf8_lossy(&bytes[..len]);
        flat_field(&text, key).ok_or_else(|| {
            let problem = format!("{file} has no number {key}");
            io::Error::new(io::ErrorKind::InvalidData, problem)
        })
    }
}

/// The value of a key in a file of `key value` lines.
fn flat_field(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "usage_usec_total 9\nusage_usec 1234\nuser_usec 5\n";
        assert_eq!(flat_field(text, "usage_usec"), Some(1234));
        assert_eq!(flat_field(text, "usage"), None);
        assert_eq!(flat_field("populated x\n", "populated"), None);
    }
}
