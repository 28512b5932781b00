//! Starting a process as a container runtime does: its own session and control group, Docker's default
//! capabilities, the image's user, and errors in Docker's words.

use crate::account::{Account, AccountError, Accounts};
use crate::cgroup::Cgroup;
use crate::isolation::Isolation;
use crate::privilege;
use crate::program::{self, Image, ProgramError};
use crate::reaper::Reaper;
use dormouse_core::guest::{Exit, ProcessSpec};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Gid, Pid, Resource, Rlimit, Uid, ioctl_tiocsctty, setrlimit, setsid};
use rustix::thread::{
    CapabilitySet, remove_capability_from_bounding_set, set_thread_gid, set_thread_groups,
    set_thread_uid,
};
use std::ffi::CString;
use std::fs;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::sync::oneshot;

/// What Docker gives a container that asks for nothing more.
const CAPABILITIES: CapabilitySet = CapabilitySet::from_bits_retain(0xa804_25fb);
/// Beyond this no kernel has capabilities; an older one ends the list earlier.
const CAPABILITY_BITS: u32 = 64;
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What AWS gives an app: it may not raise it.
const APP_OPEN_FILES: Rlimit = Rlimit {
    current: Some(1024),
    maximum: Some(1024),
};
/// Programs that close every descriptor up to the limit need a low one; those that want more may raise it.
const COMMAND_OPEN_FILES: Rlimit = Rlimit {
    current: Some(1024),
    maximum: Some(524_288),
};
/// Exit code of a process that SIGKILL ended.
const KILLED: i32 = 137;

/// Why a process could not be started. The words are Docker's where Docker has the case.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// No program was named.
    #[error("no command specified")]
    NoCommand,
    /// The program cannot be found.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// An argument or variable that no process can have.
    #[error("the command or its environment holds a NUL byte")]
    Nul(#[from] std::ffi::NulError),
    /// The kernel refused to execute it.
    #[error("exec {program}: {}", errno_text(.answer))]
    Exec {
        /// The program's path.
        program: String,
        /// The kernel's answer, said in Docker's words above.
        answer: io::Error,
    },
    /// The working directory is not absolute.
    #[error("the working directory {0:?} is not an absolute path")]
    CwdNotAbsolute(String),
    /// The working directory could not be made or entered.
    #[error("working directory {path}")]
    Cwd {
        /// The directory.
        path: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// An environment variable that no process can have.
    #[error("invalid environment variable name {0:?}")]
    Variable(String),
    /// The user or group does not exist.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// The agent could not do its part.
    #[error("{action}")]
    Host {
        /// What was being done.
        action: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl StartError {
    pub(crate) fn host<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host {
            action,
            source: source.into(),
        }
    }
}

/// The kernel's words as Docker prints them.
fn errno_text(error: &io::Error) -> String {
    match error
        .raw_os_error()
        .map(rustix::io::Errno::from_raw_os_error)
    {
        Some(rustix::io::Errno::NOENT) => "no such file or directory".to_owned(),
        Some(rustix::io::Errno::ACCESS) => "permission denied".to_owned(),
        Some(rustix::io::Errno::NOEXEC) => "exec format error".to_owned(),
        Some(rustix::io::Errno::TOOBIG) => "argument list too long".to_owned(),
        _ => error.to_string(),
    }
}

/// What a process may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rights {
    /// What AWS leaves an app: Docker's default capabilities.
    App,
    /// The same, for what the host runs beside the app or while it builds an image.
    Command,
    /// All that there is; [`crate::privilege::open_up`] comes before.
    All,
    /// The same, for what runs beside an app that has it.
    AllBeside,
}

/// A process that is ready to start: everything that may wait for the disk is done.
pub(crate) struct Plan {
    program: PathBuf,
    image: Image,
    cwd: PathBuf,
    account: Account,
    rights: Rights,
    timeout: Option<Duration>,
    isolation: Option<Isolation>,
}

/// What a process's standard streams are to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Streams {
    /// Files and pipes.
    Plain,
    /// The terminal that controls its session.
    Terminal,
}

/// A started process.
#[derive(Debug)]
pub(crate) struct Started {
    /// Its number.
    pub(crate) pid: Pid,
    exited: oneshot::Receiver<i32>,
    timeout: Option<Duration>,
}

impl Plan {
    /// Resolves the user, makes the working directory and finds the program. This blocks.
    pub(crate) fn new(spec: ProcessSpec, rights: Rights) -> Result<Self, StartError> {
        let cwd = match spec.cwd.as_str() {
            "" => PathBuf::from("/"),
            path if path.starts_with('/') => PathBuf::from(path),
            path => return Err(StartError::CwdNotAbsolute(path.to_owned())),
        };
        let accounts = Accounts::load().map_err(StartError::host("read the account files"))?;
        let account = accounts.account(&spec.user)?;
        let env = complete_env(spec.env, &account.home)?;
        fs::create_dir_all(&cwd).map_err(|source| StartError::Cwd {
            path: cwd.display().to_string(),
            source,
        })?;
        let name = spec.argv.first().ok_or(StartError::NoCommand)?;
        let search_path = variable(&env, "PATH").unwrap_or_default();
        let program = program::find(name, search_path, &cwd)?;
        Ok(Self {
            image: Image::new(&program, spec.argv, env)?,
            program,
            cwd,
            account,
            rights,
            timeout: spec.timeout_s.map(Duration::from_secs),
            isolation: None,
        })
    }

    /// The same process, in namespaces of its own.
    pub(crate) fn isolated(self, isolation: Isolation) -> Self {
        Self {
            isolation: Some(isolation),
            ..self
        }
    }

    /// Starts the process in a control group, which must not be frozen: this waits until the process is
    /// its program. To be called on the runtime's thread, see [`Reaper::watch`].
    pub(crate) fn start(
        self,
        reaper: &Reaper,
        cgroup: &Cgroup,
        stdin: Stdio,
        [stdout, stderr]: [OwnedFd; 2],
    ) -> Result<Started, StartError> {
        // A program may open its own `/dev/stdout`: let it be the owner.
        let (uid, gid) = self.owner();
        for stream in [&stdout, &stderr] {
            rustix::fs::fchown(stream, Some(uid), Some(gid))
                .map_err(StartError::host("give the output to the user"))?;
        }
        let streams = [stdin, stdout.into(), stderr.into()];
        self.spawn(reaper, cgroup, streams, Streams::Plain)
    }

    /// Starts the process like [`Plan::start`], with a terminal for its three streams that controls it.
    pub(crate) fn start_on_terminal(
        self,
        reaper: &Reaper,
        cgroup: &Cgroup,
        terminal: OwnedFd,
    ) -> Result<Started, StartError> {
        let share = || terminal.try_clone().map(Stdio::from);
        let streams = || Ok([share()?, share()?, share()?]);
        let streams = streams().map_err(StartError::host::<io::Error>("share the terminal"))?;
        self.spawn(reaper, cgroup, streams, Streams::Terminal)
    }

    fn owner(&self) -> (Uid, Gid) {
        (
            Uid::from_raw(self.account.uid),
            Gid::from_raw(self.account.gid),
        )
    }

    fn spawn(
        self,
        reaper: &Reaper,
        cgroup: &Cgroup,
        [stdin, stdout, stderr]: [Stdio; 3],
        kind: Streams,
    ) -> Result<Started, StartError> {
        let owner = self.owner();
        let entrance = cgroup
            .entrance()
            .map_err(StartError::host("open the control group"))?;
        let groups: Vec<Gid> = self
            .account
            .groups
            .iter()
            .map(|gid| Gid::from_raw(*gid))
            .collect();
        let (image, rights, isolation) = (self.image, self.rights, self.isolation);
        let mut command = Command::new(&self.program);
        let cwd = CString::new(self.cwd.as_os_str().as_bytes())?;
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        // SAFETY: the closure runs between fork and exec. It makes system calls only: it neither
        // allocates nor takes a lock, and what it uses was made before the fork.
        unsafe {
            command.pre_exec(move || {
                // It joins its group under the agent's own view of the file system.
                rustix::io::write(&entrance, b"0")?;
                if let Some(isolation) = &isolation {
                    isolation.enter()?;
                }
                rustix::process::chdir(cwd.as_c_str())?;
                setsid()?;
                if kind == Streams::Terminal {
                    ioctl_tiocsctty(rustix::stdio::stdin())?;
                }
                enter_container(rights, owner, &groups)?;
                Err(image.execute())
            })
        };
        let child = command.spawn().map_err(|answer| StartError::Exec {
            program: self.program.display().to_string(),
            answer,
        })?;
        let pid = Pid::from_child(&child);
        Ok(Started {
            pid,
            exited: reaper.watch(pid),
            timeout: self.timeout,
        })
    }
}

impl Started {
    /// Waits until the process has ended, its time is up or `cancelled` resolves. Whatever is then left
    /// in its control group is killed, as in a container.
    pub(crate) async fn finish(self, cgroup: &Cgroup, cancelled: impl Future<Output = ()>) -> Exit {
        let mut exited = self.exited;
        let out_of_time = async {
            match self.timeout {
                Some(timeout) => tokio::time::sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        let mut timed_out = false;
        let code = tokio::select! {
            biased;
            code = &mut exited => Some(code),
            () = out_of_time => { timed_out = true; None }
            () = cancelled => None,
        };
        if let Err(error) = cgroup.kill() {
            crate::console::say(format_args!("cannot kill a control group: {error}"));
        }
        let code = match code {
            Some(code) => code,
            None => exited.await,
        };
        Exit {
            // The reaper forgets nobody; should it, the process is gone all the same.
            code: code.unwrap_or(KILLED),
            timed_out,
        }
    }
}

/// The child's last steps before it becomes the program.
fn enter_container(rights: Rights, owner: (Uid, Gid), groups: &[Gid]) -> io::Result<()> {
    let open_files = match rights {
        Rights::App => APP_OPEN_FILES,
        Rights::Command | Rights::All | Rights::AllBeside => COMMAND_OPEN_FILES,
    };
    setrlimit(Resource::Nofile, open_files)?;
    let score = rustix::fs::open(
        c"/proc/self/oom_score_adj",
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    rustix::io::write(&score, b"0")?;
    match rights {
        Rights::App | Rights::Command => drop_capabilities()?,
        Rights::All => privilege::own_cgroup()?,
        Rights::AllBeside => privilege::leave_cgroups()?,
    }
    set_thread_groups(groups)?;
    set_thread_gid(owner.1)?;
    // Root keeps what is left in the bounding set; any other user loses every capability here.
    set_thread_uid(owner.0)?;
    Ok(())
}

fn drop_capabilities() -> io::Result<()> {
    for bit in 0..CAPABILITY_BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if CAPABILITIES.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The environment with what Docker adds when it is missing.
fn complete_env(
    mut env: Vec<(String, String)>,
    home: &str,
) -> Result<Vec<(String, String)>, StartError> {
    let is_bad = |name: &str| name.is_empty() || name.contains(['=', '\0']);
    if let Some((name, _)) = env.iter().find(|(name, _)| is_bad(name)) {
        return Err(StartError::Variable(name.clone()));
    }
    for (name, value) in [("PATH", PATH_DEFAULT), ("HOME", home)] {
        if variable(&env, name).is_none() {
            env.push((name.to_owned(), value.to_owned()));
        }
    }
    Ok(env)
}

/// The value of a variable; where it is set twice, the last wins, as in the process itself.
fn variable<'a>(env: &'a [(String, String)], name: &str) -> Option<&'a str> {
    env.iter()
        .rev()
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(env: &[(&str, &str)]) -> Vec<(String, String)> {
        env.iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn missing_path_and_home_are_added() {
        let env = complete_env(pairs(&[("A", "1")]), "/home/app").expect("valid");
        assert_eq!(
            env,
            pairs(&[("A", "1"), ("PATH", PATH_DEFAULT), ("HOME", "/home/app")])
        );
        let given = pairs(&[("PATH", "/x"), ("HOME", "/y")]);
        assert_eq!(complete_env(given.clone(), "/root").expect("valid"), given);
        for bad in ["", "A=B", "A\0"] {
            assert!(complete_env(pairs(&[(bad, "")]), "/").is_err(), "{bad:?}");
        }
    }
}
