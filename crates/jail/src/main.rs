//! `dormouse-jail SPEC`: starts a program behind walls, prints its process id, and is gone.
//!
//! | wall | what it stops |
//! |---|---|
//! | control groups | taking more memory, processor time or processes than its share |
//! | namespaces (mount, pid, net, ipc, uts, cgroup, user) | seeing the host's files, processes, network and names |
//! | a root of its own, without `/proc` and `/sys` | reaching any file that was not shown |
//! | a user id of its own, no capabilities | touching other machines' files and processes |
//! | `no_new_privs` | winning rights by running a program |
//! | Landlock, where the kernel has it | files again, should a mount be wrong |
//! | seccomp allow-list | system calls that a VMM has no use for |
//! | limits: no core dumps, size of a file | memory of guests on the host's disk; filling it |
//!
//! It runs as root, in one thread, for a few milliseconds, and reads nothing that a guest could have written. The program
//! is process 1 of its namespace, so whatever it starts dies with it.

mod descriptors;
mod files;
mod privilege;
mod root;
mod syscalls;

use dormouse_jail::Spec;
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

/// What the program believes its host is called.
const HOSTNAME: &[u8] = b"jail";

/// Why the program was not started.
#[derive(Debug, thiserror::Error)]
enum JailError {
    #[error("usage: dormouse-jail SPEC, as the daemon calls it: {0}")]
    Usage(String),
    #[error("{action}: {source}")]
    Io { action: String, source: io::Error },
}

impl JailError {
    fn io<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::Io {
            action: action.into(),
            source: source.into(),
        }
    }
}

fn main() -> ExitCode {
    match start() {
        Ok(pid) => {
            println!("{pid}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("dormouse-jail: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Puts up the walls around this process, then has it start the program behind them.
fn start() -> Result<u32, JailError> {
    let spec = spec()?;
    // The program has to pass through folders that are made here.
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    descriptors::close_others(&spec.descriptors).map_err(JailError::io("close descriptors"))?;
    for group in &spec.cgroups {
        fs::write(group.join("cgroup.procs"), "0")
            .map_err(JailError::io(format!("join {}", group.display())))?;
    }
    leave_namespaces()?;
    // The last look at the host's processes; the user namespace is told its ids through it.
    let proc = root::open_folder("/proc").map_err(JailError::io("open /proc"))?;
    root::enter(&spec)?;
    rustix::system::sethostname(HOSTNAME).map_err(JailError::io("set host name"))?;
    forbid_core_dumps()?;
    limit_files(spec.file_bytes_max)?;
    let fence = syscalls::fence().map_err(JailError::io("compile system call filter"))?;

    let log = io::stderr();
    let own_log = rustix::io::fcntl_dupfd_cloexec(&log, 3).map_err(JailError::io("share log"))?;
    let (uid, shown) = (spec.uid, spec.shown.clone());
    let mut command = Command::new(&spec.program);
    command
        .args(&spec.arguments)
        .env_clear()
        .stdout(Stdio::from(own_log));
    // SAFETY: this process has one thread, so its child may do whatever it could do itself.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            privilege::drop(uid, &proc)?;
            files::restrict(&shown)?;
            // Last: what comes before needs calls that the fence forbids.
            fence.apply()
        });
    }
    let program = spec.program.display();
    let child = command
        .spawn()
        .map_err(JailError::io(format!("start {program}")))?;
    Ok(child.id())
}

fn spec() -> Result<Spec, JailError> {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next(), arguments.next()) {
        (Some(spec), None) => {
            serde_json::from_str(&spec).map_err(|error| JailError::Usage(error.to_string()))
        }
        _ => Err(JailError::Usage("it takes one argument".to_owned())),
    }
}

fn leave_namespaces() -> Result<(), JailError> {
    let namespaces = UnshareFlags::NEWNS
        | UnshareFlags::NEWPID
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    // SAFETY: descriptors stay shared with nobody: this process has one thread.
    unsafe { unshare_unsafe(namespaces) }.map_err(JailError::io("leave the host's namespaces"))
}

fn forbid_core_dumps() -> Result<(), JailError> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(JailError::io("forbid core dumps"))
}

fn limit_files(bytes: u64) -> Result<(), JailError> {
    let limit = Rlimit {
        current: Some(bytes),
        maximum: Some(bytes),
    };
    setrlimit(Resource::Fsize, limit).map_err(JailError::io("limit the size of files"))?;
    // SAFETY: a signal that is ignored has no handler; what the program inherits is that the write fails, not its end.
    match unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) } {
        libc::SIG_ERR => Err(JailError::io("ignore SIGXFSZ")(io::Error::last_os_error())),
        _ => Ok(()),
    }
}
