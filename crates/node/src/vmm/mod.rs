//! The seam to what runs a virtual machine: [`Vmm`] makes machines, [`Instance`] is one.
//!
//! A machine comes with its network: a backend that needs a slot acquires it on the way up and gives it
//! back when the machine ends. The driver sees only a folder of files, a process and a way to the agent.
//!
//! Two backends stand behind it, held to one contract (`tests/vmm_contract`): [`qemu`] and [`fake`].

pub mod fake;
pub mod initramfs;
pub mod probe;
pub mod qemu;
pub(crate) mod qmp;

use crate::host::slot::SlotError;
use async_trait::async_trait;
use dormouse_core::egress::Egress;
use std::fmt::Debug;
use std::ops::Range;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream to the agent of a machine.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// Makes machines.
#[async_trait]
pub trait Vmm: Send + Sync + Debug {
    /// The backend's name for logs and manifests, as in `qemu-tcg`.
    fn name(&self) -> &'static str;

    /// Starts a machine cold. It runs when this returns; its agent may not answer yet.
    async fn boot(&self, spec: &BootSpec) -> Result<Box<dyn Instance>, VmmError>;

    /// Loads a snapshot. The machine is paused when this returns: [`Instance::resume`] runs it.
    async fn restore(&self, spec: &RestoreSpec) -> Result<Box<dyn Instance>, VmmError>;

    /// Takes over a machine that an earlier process of ours started in `run_dir`; none when it is gone.
    async fn adopt(&self, run_dir: &Path) -> Result<Option<Box<dyn Instance>>, VmmError>;

    /// Ends whatever still runs in `run_dir` without needing to talk to it, and frees its slot.
    /// Doing it twice, or where nothing runs, is fine.
    async fn reap(&self, run_dir: &Path) -> Result<(), VmmError>;
}

/// One machine. Dropping it leaves the machine running, so that it outlives the daemon.
#[async_trait]
pub trait Instance: Send + Sync + Debug {
    /// Process id of the machine's VMM, for accounting; none where there is no process of its own.
    fn pid(&self) -> Option<u32>;

    /// Runs a paused machine. Running one already is fine.
    async fn resume(&self) -> Result<(), VmmError>;

    /// Stops the machine's CPUs. Paused already is fine.
    async fn pause(&self) -> Result<(), VmmError>;

    /// Writes the device state of a machine booted with [`BootSpec::golden_memory`] to `state`.
    /// That memory file is complete with it. The machine is paused and must not run again.
    async fn snapshot_golden(&self, state: &Path) -> Result<(), VmmError>;

    /// Writes what this restored machine has that its golden snapshot has not. The machine is paused
    /// after it. When it fails the files may be torn, and the machine can be resumed.
    async fn snapshot_delta(&self, files: &DeltaFiles) -> Result<DeltaStats, VmmError>;

    /// Pages of its golden memory that this restored machine has touched so far, in order and without
    /// overlap, as page numbers. Neighbours that the host mapped along with them may be among them.
    async fn touched_pages(&self) -> Result<Vec<Range<u64>>, VmmError>;

    /// Makes `overlay` (which must not exist) the disk that is written to from now on, on top of what
    /// was the disk until now. The guest must have frozen its file system.
    async fn switch_disk(&self, overlay: &Path) -> Result<(), VmmError>;

    /// Opens a connection to the agent's port.
    async fn connect(&self) -> Result<Box<dyn Stream>, VmmError>;

    /// Waits until the machine is gone.
    async fn exited(&self) -> ExitReason;

    /// Ends the machine at once and frees its slot. Gone already is fine.
    async fn kill(&self) -> Result<(), VmmError>;
}

/// A machine to start cold.
#[derive(Debug, Clone)]
pub struct BootSpec {
    /// Folder for the machine's socket, log and bookkeeping; exists.
    pub run_dir: PathBuf,
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initramfs with the agent as `/init`.
    pub initramfs: PathBuf,
    /// Root disk, a qcow2 file that the machine writes to.
    pub disk: PathBuf,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Keep the guest's memory in this file, so that a golden snapshot can be made.
    pub golden_memory: Option<PathBuf>,
    /// Disks besides the root disk. A machine with any of them cannot be snapshotted.
    pub disks: Vec<AttachedDisk>,
}

/// A disk besides the root disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedDisk {
    /// The serial number by which the guest finds it, 20 bytes at most.
    pub serial: String,
    /// A qcow2 file if its name ends in `.qcow2`, raw otherwise.
    pub path: PathBuf,
    /// Whether the guest may write to it.
    pub writable: bool,
}

/// A machine to load from a snapshot.
#[derive(Debug, Clone)]
pub struct RestoreSpec {
    /// Folder for the machine's socket, log and bookkeeping; exists.
    pub run_dir: PathBuf,
    /// Root disk, a qcow2 file that the machine writes to.
    pub disk: PathBuf,
    /// Guest memory in MiB: the same as at boot.
    pub memory_mib: u32,
    /// Number of vCPUs: the same as at boot.
    pub vcpus: u32,
    /// Memory of the golden snapshot; mapped copy-on-write, never written.
    pub golden_memory: PathBuf,
    /// Disk of the golden snapshot, which `disk` lies over; never written.
    pub golden_disk: PathBuf,
    /// Which device state to load, and which memory over the golden one.
    pub state: StateSource,
    /// Where the machine may open connections to.
    pub egress: Egress,
}

/// Which state a machine starts from.
#[derive(Debug, Clone)]
pub enum StateSource {
    /// The golden snapshot's own device state.
    Golden(PathBuf),
    /// What [`Instance::snapshot_delta`] wrote.
    Delta(DeltaFiles),
}

/// Where a delta snapshot is kept.
#[derive(Debug, Clone)]
pub struct DeltaFiles {
    /// Device state.
    pub state: PathBuf,
    /// Pages that differ from the golden memory.
    pub memory: PathBuf,
}

/// How much a delta snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaStats {
    /// Pages written, of 4096 bytes each.
    pub pages: u64,
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitReason {
    /// The guest powered off.
    PoweredOff,
    /// The VMM process ended otherwise; what is known of it.
    Crashed(String),
}

/// Why a backend could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// A file, socket or process operation failed.
    #[error("{action}")]
    Io {
        /// What was being done, as in `spawn qemu`.
        action: String,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The VMM refused a command.
    #[error("{command} refused: {message}")]
    Refused {
        /// The command.
        command: String,
        /// The VMM's words.
        message: String,
    },
    /// The machine is gone.
    #[error("machine is gone: {0}")]
    Gone(String),
    /// The VMM did not answer in time.
    #[error("{0} timed out")]
    TimedOut(String),
    /// A snapshot file is not what it should be.
    #[error("snapshot {path} is damaged: {problem}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// No network slot could be made.
    #[error("network slot")]
    Network(#[from] SlotError),
}

impl VmmError {
    /// Wraps an operating system error with what was being done.
    pub fn io(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io {
            action: action.into(),
            source,
        }
    }

    /// Whether the cause is a full disk: the caller's state stays good and it may try again.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == std::io::ErrorKind::StorageFull,
            Self::Refused { message, .. } => message.contains("No space left on device"),
            _ => false,
        }
    }
}

/// Words of a VMM as they may stand in a log or a reason: on one line, and of a bearable length.
fn cut(words: &str) -> String {
    const MAX: usize = 1000;
    let words = words.chars().take(MAX);
    words
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_vmm_are_one_short_line() {
        assert_eq!(cut("no\u{1b}[2J such\nfile"), "no [2J such file");
        assert_eq!(cut(&"ä".repeat(5000)).chars().count(), 1000);
    }
}
