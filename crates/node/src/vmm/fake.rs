//! A backend without hardware: machines are values in this process, and start at once.
//!
//! Their agent speaks the real protocol, and their life follows the real rules: state lives in memory and
//! in the files of a snapshot, a paused machine answers nothing, a frozen app uses no time. So all above
//! the VMM can be tested, or shown, in milliseconds. What it leaves out: processes, disks (a file written
//! in the guest is part of its memory), and any program but a few words of shell.

mod agent;
mod app;
mod guest;
mod shell;

use super::{
    BootSpec, DeltaFiles, DeltaStats, ExitReason, Instance, RestoreSpec, StateSource, Stream, Vmm,
    VmmError,
};
use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};
use guest::{Guest, GuestState};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use uuid::Uuid;

/// Bytes on their way between host and guest on one connection.
const PIPE: usize = 64 * 1024;
/// Bytes of a page, as delta snapshots count them.
const PAGE: u64 = 4096;

/// Makes machines in memory. Clones share them, as daemons of one host would.
#[derive(Debug, Clone, Default)]
pub struct Fake {
    machines: Arc<Mutex<HashMap<PathBuf, Arc<Machine>>>>,
    failures: Arc<Mutex<VecDeque<Failure>>>,
}

/// Something to go wrong, once, the next time it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// A machine does not boot.
    Boot,
    /// A snapshot cannot be loaded.
    Restore,
    /// The disk is full while a delta snapshot is written.
    SnapshotDiskFull,
    /// A restored machine ends as soon as it runs.
    ExitOnResume,
    /// Whether a machine is still there cannot be told.
    Adopt,
    /// What a machine left cannot be cleared away.
    Reap,
}

impl Fake {
    /// A backend without machines.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many machines live.
    #[must_use]
    pub fn machines(&self) -> usize {
        let machines = lock(&self.machines);
        let alive = machines.values().filter(|m| m.guest.exit().is_none());
        alive.count()
    }

    /// Makes the next operation of that kind fail.
    pub fn fail_next(&self, failure: Failure) {
        lock(&self.failures).push_back(failure);
    }

    /// Ends the machine in `run_dir` as a bug in its VMM would; none there is fine.
    pub fn crash(&self, run_dir: &Path) {
        if let Some(machine) = lock(&self.machines).get(run_dir) {
            machine
                .guest
                .end(ExitReason::Crashed("crashed on request".to_owned()));
        }
    }

    /// How many machines run or are paused.
    #[must_use]
    pub fn running(&self) -> usize {
        let alive = |machine: &&Arc<Machine>| machine.guest.exit().is_none();
        lock(&self.machines).values().filter(alive).count()
    }

    /// How many machines have ended and not been reaped.
    #[must_use]
    pub fn unreaped(&self) -> usize {
        let ended = |machine: &&Arc<Machine>| machine.guest.exit().is_some();
        lock(&self.machines).values().filter(ended).count()
    }

    fn take(&self, failure: Failure) -> bool {
        let mut failures = lock(&self.failures);
        let at = failures.iter().position(|next| *next == failure);
        at.and_then(|at| failures.remove(at)).is_some()
    }

    fn add(&self, run_dir: &Path, guest: Arc<Guest>, memory: Memory) -> Box<dyn Instance> {
        let machine = Arc::new(Machine {
            guest,
            memory,
            kept_whole: AtomicBool::new(false),
            fake: self.clone(),
        });
        lock(&self.machines).insert(run_dir.to_owned(), machine.clone());
        Box::new(machine)
    }
}

#[async_trait]
impl Vmm for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    async fn boot(&self, spec: &BootSpec) -> Result<Box<dyn Instance>, VmmError> {
        if self.take(Failure::Boot) {
            return Err(refused("boot", "failed on request"));
        }
        let guest = Guest::start(GuestState::default(), true);
        let memory = spec
            .golden_memory
            .clone()
            .map_or(Memory::Anonymous, Memory::Shared);
        Ok(self.add(&spec.run_dir, guest, memory))
    }

    async fn restore(&self, spec: &RestoreSpec) -> Result<Box<dyn Instance>, VmmError> {
        if self.take(Failure::Restore) {
            return Err(refused("restore", "failed on request"));
        }
        let golden: Saved = load(&spec.golden_memory).await?;
        let (saved, state) = match &spec.state {
            StateSource::Golden(state) => (golden, state),
            StateSource::Delta(files) => (load(&files.memory).await?, &files.state),
        };
        let device: Device = load(state).await?;
        if device.id != saved.device.id {
            return Err(VmmError::Damaged {
                path: state.clone(),
                problem: "not the one that the saved memory belongs to".to_owned(),
            });
        }
        let guest = Guest::start(saved.guest, false);
        let golden = tokio::fs::metadata(&spec.golden_memory).await;
        let golden_len = golden.map_err(VmmError::io("read snapshot"))?.len();
        Ok(self.add(&spec.run_dir, guest, Memory::Private { golden_len }))
    }

    async fn adopt(&self, run_dir: &Path) -> Result<Option<Box<dyn Instance>>, VmmError> {
        if self.take(Failure::Adopt) {
            return Err(refused("adopt", "failed on request"));
        }
        let found = lock(&self.machines).get(run_dir).cloned();
        let alive = found.filter(|machine| machine.guest.exit().is_none());
        Ok(alive.map(|machine| Box::new(machine) as Box<dyn Instance>))
    }

    async fn reap(&self, run_dir: &Path) -> Result<(), VmmError> {
        if self.take(Failure::Reap) {
            return Err(refused("reap", "failed on request"));
        }
        let found = lock(&self.machines).remove(run_dir);
        if let Some(machine) = found {
            machine.kill().await?;
        }
        Ok(())
    }
}

/// What a machine's memory is, as for a real one.
#[derive(Debug)]
enum Memory {
    Anonymous,
    Shared(PathBuf),
    Private { golden_len: u64 },
}

#[derive(Debug)]
struct Machine {
    guest: Arc<Guest>,
    memory: Memory,
    /// Its golden snapshot is made: it must not run again.
    kept_whole: AtomicBool,
    fake: Fake,
}

/// The content of a device state file: only its identity matters.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Device {
    id: Uuid,
}

/// The content of a memory file.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    device: Device,
    guest: GuestState,
}

#[async_trait]
impl Instance for Arc<Machine> {
    fn pid(&self) -> Option<u32> {
        None
    }

    async fn resume(&self) -> Result<(), VmmError> {
        self.alive()?;
        if self.kept_whole.load(Ordering::Relaxed) {
            return Err(refused("resume", "the machine became a golden snapshot"));
        }
        if matches!(self.memory, Memory::Private { .. }) && self.fake.take(Failure::ExitOnResume) {
            self.guest
                .end(ExitReason::Crashed("crashed on request".to_owned()));
            return Ok(());
        }
        self.guest.set_running(true);
        Ok(())
    }

    async fn pause(&self) -> Result<(), VmmError> {
        self.alive()?;
        self.guest.set_running(false);
        Ok(())
    }

    async fn snapshot_golden(&self, state: &Path) -> Result<(), VmmError> {
        let Memory::Shared(memory) = &self.memory else {
            return Err(refused(
                "golden snapshot",
                "the machine's memory is not in a file",
            ));
        };
        self.pause().await?;
        self.kept_whole.store(true, Ordering::Relaxed);
        self.save(state, memory).await.map(drop)
    }

    async fn snapshot_delta(&self, files: &DeltaFiles) -> Result<DeltaStats, VmmError> {
        if !matches!(self.memory, Memory::Private { .. }) {
            return Err(refused("delta snapshot", "the machine was not restored"));
        }
        self.pause().await?;
        if self.fake.take(Failure::SnapshotDiskFull) {
            let full = io::Error::from(io::ErrorKind::StorageFull);
            return Err(VmmError::io("write dirty pages")(full));
        }
        let bytes = self.save(&files.state, &files.memory).await?;
        Ok(DeltaStats {
            pages: bytes.div_ceil(PAGE),
        })
    }

    async fn touched_pages(&self) -> Result<Vec<Range<u64>>, VmmError> {
        match self.memory {
            // It has read its whole memory file when it started.
            Memory::Private { golden_len } => {
                Ok(std::iter::once(0..golden_len.div_ceil(PAGE)).collect())
            }
            Memory::Anonymous | Memory::Shared(_) => Err(refused(
                "look at guest memory",
                "the machine was not restored",
            )),
        }
    }

    async fn switch_disk(&self, overlay: &Path) -> Result<(), VmmError> {
        self.alive()?;
        let made = tokio::fs::File::create_new(overlay).await;
        made.map(drop).map_err(VmmError::io("create disk overlay"))
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, VmmError> {
        self.alive()?;
        let (host, inside) = tokio::io::duplex(PIPE);
        tokio::spawn(agent::serve(self.guest.clone(), inside));
        Ok(Box::new(host))
    }

    async fn exited(&self) -> ExitReason {
        self.guest.exited().await
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.guest.end(ExitReason::Crashed("killed".to_owned()));
        Ok(())
    }
}

impl Machine {
    fn alive(&self) -> Result<(), VmmError> {
        match self.guest.exit() {
            Some(reason) => Err(VmmError::Gone(format!("{reason:?}"))),
            None => Ok(()),
        }
    }

    /// Writes both files; answers the length of the memory.
    async fn save(&self, state: &Path, memory: &Path) -> Result<u64, VmmError> {
        let device = Device { id: Uuid::new_v4() };
        store(state, &device).await?;
        store(
            memory,
            &Saved {
                device,
                guest: self.guest.state(),
            },
        )
        .await
    }
}

/// Writes a value as JSON after its checksum; answers the file's length.
async fn store(path: &Path, value: &impl Serialize) -> Result<u64, VmmError> {
    let json = serde_json::to_vec(value).map_err(|error| VmmError::io("save")(error.into()))?;
    let mut bytes = hex::encode(digest(&SHA256, &json)).into_bytes();
    bytes.push(b'\n');
    bytes.extend(json);
    tokio::fs::write(path, &bytes)
        .await
        .map_err(VmmError::io("write snapshot"))?;
    Ok(bytes.len() as u64)
}

/// Reads what [`store`] wrote.
async fn load<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, VmmError> {
    let bytes = tokio::fs::read(path)
        .await
        .map_err(VmmError::io("read snapshot"))?;
    let damaged = |problem: &str| VmmError::Damaged {
        path: path.to_owned(),
        problem: problem.to_owned(),
    };
    let newline = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or_else(|| damaged("cut short"))?;
    let (sum, json) = (&bytes[..newline], &bytes[newline + 1..]);
    if hex::encode(digest(&SHA256, json)).as_bytes() != sum {
        return Err(damaged("checksum does not match"));
    }
    serde_json::from_slice(json).map_err(|error| damaged(&error.to_string()))
}

fn refused(command: &str, message: &str) -> VmmError {
    VmmError::Refused {
        command: command.to_owned(),
        message: message.to_owned(),
    }
}

/// Locks what only short, panic-free sections touch.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
