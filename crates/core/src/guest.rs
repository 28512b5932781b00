//! The protocol between the host and the guest agent: plain HTTP/1.1 on one TCP port inside the VM.
//!
//! A snapshot keeps the agent that it was made with, so a host meets agents older than itself. Every
//! agent states its [`GENERATION`]; a host speaks the agent's generation or refuses the snapshot.
//! Fields may be added with a default without a new generation; a changed meaning needs one.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `CONNECT ADDRESS:PORT` | raw bytes | 200 and a tunnel to that port of an IPv4 address, as in `127.0.0.1:80`; 502 when nothing listens |
//! | `GET /v1/hello` | – | [`Hello`] |
//! | `POST /v1/app/start` | [`AppSpec`] | [`AppStatus`] |
//! | `GET /v1/app` | – | [`AppStatus`] |
//! | `GET /v1/app/wait` | – | [`AppStatus`] once the app has exited; held open until then |
//! | `GET /v1/app/logs?after=N` | – | log bytes from offset N; headers [`LOG_START`] and [`LOG_NEXT`]; with `&wait_ms=M` (30,000 at most) it waits for the first |
//! | `POST /v1/exec` | [`ExecSpec`] | a stream of frames, see [`FrameKind`] |
//! | `POST /v1/shell`, upgrade to [`SHELL_PROTOCOL`] | [`ShellSpec`] | 101, then frames both ways; 429 when too many are open. Who closes the stream hangs up |
//! | `POST /v1/copy` | tar; [`CopySpec`] in the header [`COPY_SPEC`] | 204 |
//! | `POST /v1/trust` | CA certificates as PEM | [`Trusted`]: programs trust them too |
//! | `DELETE /v1/trust` | – | 204: no longer, as far as nobody made them his own |
//! | `POST /v1/unpack` | a tar, plain or compressed; [`CopySpec`] in the header [`COPY_SPEC`] | 204; 415 when it is no archive, and then nothing is written |
//! | `PUT /v1/trees/NAME` | tar | 204: a tree in memory with these files |
//! | `DELETE /v1/trees/NAME` | – | 204: the tree is gone |
//! | `POST /v1/trees/NAME/copy` | [`TreeCopySpec`] | 204: files of the tree are copied into the root file system |
//! | `POST /v1/disk/freeze` | – | 204: everything is on disk and writes wait |
//! | `POST /v1/disk/thaw` | – | 204 |
//! | `POST /v1/freeze` | – | 204: the app is stopped and its writes are on disk |
//! | `POST /v1/thaw` | [`ThawSpec`] | 204: clock, entropy and identity are set, then the app runs |
//! | `POST /v1/poweroff` | – | 202, then the app is terminated, the disk unmounted and the VM off |
//!
//! An error is a status of 400 or above with an [`AgentError`] as its body.

mod frame;

pub use frame::{
    FRAME_HEADER_LEN, FRAME_PAYLOAD_MAX, FrameError, FrameKind, put_frame, whole_frame,
};

use serde::{Deserialize, Serialize};

/// The protocol generation of this source tree.
pub const GENERATION: u32 = 1;
/// The TCP port on which the agent listens inside the VM.
pub const AGENT_PORT: u16 = 61_313;
/// The VM's own address, the same in every VM: each has a network namespace to itself.
pub const GUEST_ADDR: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 0, 0, 2);
/// The host's end of the VM's link; the agent answers no other peer.
pub const HOST_ADDR: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 0, 0, 1);
/// Length of the link's network prefix.
pub const LINK_PREFIX_LEN: u8 = 30;
/// Where the DNS forwarder of the VM's network namespace answers.
pub const DNS_ADDR: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 53, 53);
/// The VM's Ethernet address; alike in every VM, since none shares a link with another.
pub const GUEST_MAC: &str = "02:d0:e0:00:00:02";

/// Header of a log answer: offset of its first byte; larger than asked for when older bytes are gone.
pub const LOG_START: &str = "x-dormouse-log-start";
/// Header of a log answer: the offset to ask for next.
pub const LOG_NEXT: &str = "x-dormouse-log-next";
/// Header of a copy request: a [`CopySpec`] as JSON.
pub const COPY_SPEC: &str = "x-dormouse-copy";

/// The protocol that a shell's connection goes on with.
pub const SHELL_PROTOCOL: &str = "dormouse-shell";

/// What the agent says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The protocol generation that the agent speaks.
    pub generation: u32,
    /// The agent's build version, for logs.
    pub version: String,
    /// What the app is doing.
    pub app: AppStatus,
}

/// What the app is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppStatus {
    /// Where the app is in its life.
    pub state: AppState,
    /// How it ended, once it has.
    pub exit: Option<Exit>,
    /// CPU time that the app's processes have used, in microseconds. It stands still while frozen.
    pub cpu_usec: u64,
}

/// Where the app is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AppState {
    /// Not started.
    Absent,
    /// Its first process is alive.
    Running,
    /// All its processes are stopped for a snapshot.
    Frozen,
    /// Its first process has ended.
    Exited,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code; 128 and the signal's number for a process that a signal ended, as in a shell.
    pub code: i32,
    /// Whether it ran out of its time and was killed.
    #[serde(default)]
    pub timed_out: bool,
}

/// A process to start, in Docker's terms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Program and arguments; the program is looked up in the `PATH` of `env`.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory; made when missing.
    pub cwd: String,
    /// `user`, `user:group`, `uid` or `uid:gid`; empty for root.
    pub user: String,
    /// Kill it after this many seconds; none for no limit.
    pub timeout_s: Option<u64>,
}

/// A command to run beside the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// The process.
    #[serde(flatten)]
    pub process: ProcessSpec,
    /// What it sees over the root file system, the first at the bottom.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Whether it has loopback and no other network.
    #[serde(default)]
    pub offline: bool,
}

/// Something that one process sees at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path; made when missing, and then removed after the process.
    pub target: String,
    /// What is there.
    pub what: Mounted,
}

/// What a mount shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mounted {
    /// A file or folder of a tree.
    Tree {
        /// The tree's name; `disk-SERIAL` is the disk of that serial number.
        tree: String,
        /// Absolute path in it.
        path: String,
        /// Whether it may be written to.
        writable: bool,
    },
    /// A folder of the cache disk, made when missing.
    Cache {
        /// Its name there: letters and digits.
        name: String,
        /// Whether it may be written to.
        writable: bool,
        /// Permission bits of a new one.
        mode: u32,
        /// Its user.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// An empty folder in memory.
    Tmpfs {
        /// Its size; none for the kernel's choice.
        bytes: Option<u64>,
    },
    /// A file in memory, of which nothing reaches a disk.
    File {
        /// What it says, in hex.
        content_hex: String,
        /// Its permission bits.
        mode: u32,
        /// Its user.
        uid: u32,
        /// Its group.
        gid: u32,
    },
}

impl std::fmt::Debug for Mounted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A file may be a secret: it never reaches a log.
        f.write_str(match self {
            Self::Tree { .. } => "Tree",
            Self::Cache { .. } => "Cache",
            Self::Tmpfs { .. } => "Tmpfs",
            Self::File { .. } => "File",
        })
    }
}

/// How the names of trees begin that are disks.
pub const DISK_TREE: &str = "disk-";
/// Serial number of the cache disk.
pub const CACHE_SERIAL: &str = "cache";

/// What of a tree is copied, and where to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeCopySpec {
    /// Paths in the tree, as patterns of Go's `filepath.Match`.
    pub sources: Vec<String>,
    /// Absolute path in the root file system; it ends in `/` when it is a folder by its spelling.
    pub dest: String,
    /// `user[:group]` or `uid[:gid]` that owns what is copied; empty to leave it as it is in the tree.
    pub owner: String,
    /// Permission bits for all that is copied; none to leave them.
    pub mode: Option<u32>,
    /// Whether the folders that lead to a source are made at the destination too.
    pub parents: bool,
    /// Patterns of what is left out.
    pub excludes: Vec<String>,
}

/// The app to start: a process, and what it may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppSpec {
    /// Its process.
    #[serde(flatten)]
    pub process: ProcessSpec,
    /// Whether root's processes keep every capability, and find the kernel's settings and their own control
    /// group writable, as in a privileged container. An older agent knows Docker's default alone.
    #[serde(default)]
    pub all_capabilities: bool,
}

impl From<ProcessSpec> for AppSpec {
    fn from(process: ProcessSpec) -> Self {
        Self {
            process,
            all_capabilities: false,
        }
    }
}

/// Where a copied tar goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopySpec {
    /// Absolute folder inside the guest into which the tar is unpacked; made when missing. A symbolic
    /// link on the way is followed inside the guest's root.
    pub dest: String,
    /// The tar holds one regular file and `dest` is its new path, unless `dest` is an existing folder:
    /// then the file goes into it under its own name. This is Docker's `COPY file /path`.
    #[serde(default)]
    pub as_file: bool,
    /// `user[:group]` or `uid[:gid]` that owns what is copied; empty for root.
    pub owner: String,
}

/// Where the CAs are that programs inside trust.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trusted {
    /// Absolute path of a file with all of them, as PEM.
    pub bundle: String,
}

/// What a restored VM is given before its app runs on.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThawSpec {
    /// Wall-clock time in nanoseconds since the Unix epoch.
    pub wall_clock_ns: u64,
    /// Fresh random bytes from the host, in hex, to reseed the kernel's generator.
    pub entropy_hex: String,
    /// The VM's host name: that of its last thaw for one that has slept, another for a clone.
    pub hostname: String,
}

impl std::fmt::Debug for ThawSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The entropy seeds the guest's keys: it never reaches a log.
        f.debug_struct("ThawSpec")
            .field("wall_clock_ns", &self.wall_clock_ns)
            .field("hostname", &self.hostname)
            .finish_non_exhaustive()
    }
}

/// A shell to open: it sees what the app sees, as root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShellSpec {
    /// Its terminal's size at the beginning; none for a shell without a terminal.
    pub terminal: Option<TerminalSize>,
    /// What the shell is to run, as after `sh -c`; none for what it reads.
    #[serde(default)]
    pub command: Option<String>,
}

/// Size of a terminal in characters; 0 by 0 when nobody knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// The body of a refusal by the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentError {
    /// What went wrong, for people.
    pub message: String,
}
