//! What a QEMU process says on its standard error, kept for error messages.
//!
//! It goes to memory of a fixed size, and the kernel refuses what comes once that is full: whatever makes QEMU talk fills
//! neither the host's disk nor its memory, whether a daemon runs or not. The process holds the memory, so a daemon that
//! adopts the process finds it there.

use crate::vmm::cut;
use dormouse_core::limits::VMM_WORDS_BYTES_MAX;
use rustix::fs::{MemfdFlags, OFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Longest name of such memory, in bytes.
const NAME_MAX: usize = 249;

/// The standard error of one process.
#[derive(Debug)]
pub(super) struct Words(File);

impl Words {
    /// For a process that is yet to start. Named after its folder, so that one can see in `/proc` whose process it is.
    pub(super) fn new(run_dir: &Path) -> io::Result<Self> {
        let name = run_dir.as_os_str().as_bytes();
        let name = &name[name.len().saturating_sub(NAME_MAX)..];
        let memory = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&memory, VMM_WORDS_BYTES_MAX as u64)?;
        fcntl_add_seals(
            &memory,
            SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
        )?;
        Ok(Self(memory.into()))
    }

    /// Of a process that runs.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        let flags = OFlags::NONBLOCK.bits() as i32;
        let opened = File::options()
            .read(true)
            .custom_flags(flags)
            .open(format!("/proc/{pid}/fd/2"));
        opened.map(Self)
    }

    /// What the process is given to write to.
    pub(super) fn writer(&self) -> io::Result<File> {
        self.0.try_clone()
    }

    /// The last line, as it may stand in an error; of one that has said too much, the last that there was room for.
    pub(super) fn last(&self) -> String {
        let mut bytes = vec![0; VMM_WORDS_BYTES_MAX];
        let len = self.0.read_at(&mut bytes, 0).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes[..len]);
        let said = text.trim_end_matches('\0').trim();
        cut(said.lines().last().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    const FOLDER: &str = "/data/vms/microvm-1";

    fn start(script: &str, words: &Words) -> Child {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).stderr(words.writer().unwrap());
        shell.spawn().unwrap()
    }

    #[test]
    fn last_line_is_kept() {
        let words = Words::new(Path::new(FOLDER)).unwrap();
        assert_eq!(words.last(), "");
        start("echo one >&2; echo two >&2", &words).wait().unwrap();
        assert_eq!(words.last(), "two");
    }

    #[test]
    fn folder_may_have_a_long_path() {
        Words::new(Path::new(&"/deep".repeat(1000))).unwrap();
    }

    #[test]
    fn flood_fills_nothing() {
        let words = Words::new(Path::new(FOLDER)).unwrap();
        // Whoever says too much is not ended for it.
        let script = "echo first >&2; for i in $(seq 40000); do echo flood >&2; done; exit 7";
        let status = start(script, &words).wait().unwrap();
        assert_eq!(status.code(), Some(7));
        let kept = words.0.metadata().unwrap().len();
        assert_eq!(kept, VMM_WORDS_BYTES_MAX as u64);
        assert!("flood".starts_with(&words.last()), "{}", words.last());
    }

    #[test]
    fn another_daemon_finds_what_was_said() {
        let words = Words::new(Path::new(FOLDER)).unwrap();
        let mut child = start("echo hello >&2; exec sleep 60", &words);
        while words.last().is_empty() {
            std::thread::yield_now();
        }
        let shown = std::fs::read_link(format!("/proc/{}/fd/2", child.id())).unwrap();
        assert!(shown.to_str().unwrap().contains(FOLDER), "{shown:?}");
        let found = Words::of(child.id()).unwrap();
        drop(words);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.last(), "hello");
    }
}
