//! One QEMU machine: its process, its control socket and its network slot.

use super::clocks;
use super::command::CONSOLE;
use super::delta;
use super::pages::GuestMemory;
use super::process::Process;
use super::record::MachineRecord;
use super::{create, give_back};
use crate::clock;
use crate::disk;
use crate::host::jail;
use crate::host::slot::Slot;
use crate::vmm::qmp::{Qmp, Seen};
use crate::vmm::{DeltaFiles, DeltaStats, ExitReason, Instance, Stream, VmmError};
use async_trait::async_trait;
use dormouse_core::guest::AGENT_PORT;
use dormouse_core::limits;
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OnceCell, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// What QEMU said last is read within this after its end.
const LAST_EVENTS_TIMEOUT: Duration = Duration::from_secs(1);

/// A machine. Dropping it closes the control socket and leaves the process running.
#[derive(Debug)]
pub(super) struct Machine {
    run_dir: PathBuf,
    process: Arc<Process>,
    qmp: Qmp,
    cpus: Arc<Cpus>,
    slot: Arc<Slot>,
    /// As it stands in the machine's folder.
    record: Mutex<MachineRecord>,
    exit: watch::Receiver<Option<ExitReason>>,
    /// Set once process and record are gone, and the slot is or will be.
    ended: OnceCell<()>,
    _watch: AbortOnDropHandle<()>,
}

impl Machine {
    pub(super) fn new(
        run_dir: &Path,
        process: Process,
        qmp: Qmp,
        slot: Slot,
        record: MachineRecord,
    ) -> Arc<Self> {
        let process = Arc::new(process);
        let (told, exit) = watch::channel(None);
        let cpus = Arc::new(Cpus::new(qmp.clone()));
        let seen = qmp.seen();
        let watch = watch_machine(
            run_dir.to_owned(),
            process.clone(),
            seen,
            cpus.clone(),
            told,
        );
        Arc::new(Self {
            run_dir: run_dir.to_owned(),
            process,
            qmp,
            cpus,
            slot: Arc::new(slot),
            record: Mutex::new(record),
            exit,
            ended: OnceCell::new(),
            _watch: AbortOnDropHandle::new(tokio::spawn(watch)),
        })
    }

    /// Loads the device state of a golden snapshot into a machine that waits for one.
    pub(super) async fn load_golden(&self, state: &Path) -> Result<(), VmmError> {
        self.ignore_shared_memory().await?;
        let file = File::open(state).map_err(VmmError::io("open device state"))?;
        self.load_state(file).await
    }

    /// Loads what a suspended machine left into one that waits for it; its clocks go on as if it had not slept.
    pub(super) async fn load_delta(
        &self,
        files: DeltaFiles,
        clocks: clocks::Source,
    ) -> Result<(), VmmError> {
        self.ignore_shared_memory().await?;
        // Devices read the guest's memory while they load, so it has to be in place before.
        let delta::Loaded {
            mut state,
            paused_at,
        } = self
            .with_memory(move |memory, cancelled| delta::load(memory, &files, cancelled))
            .await?;
        // The host's clock may have been set back meanwhile.
        let slept = Duration::from_nanos(clock::now_ns().saturating_sub(paused_at));
        if let Err(error) = clocks::advance(&mut state, clocks, slept) {
            let run_dir = self.run_dir.display();
            tracing::warn!(%run_dir, %error, "the guest's monotonic clocks stood still in its sleep");
        }
        let file = in_memory(&state).map_err(VmmError::io("pass on device state"))?;
        self.load_state(file).await
    }

    async fn load_state(&self, file: File) -> Result<(), VmmError> {
        // Nothing may write to a disk before its snapshot is loaded whole, so a failure must not end QEMU
        // in its own way.
        let arguments = |path: &str| json!({"uri": format!("file:{path}"), "exit-on-error": false});
        self.qmp
            .execute_on("migrate-incoming", file.into(), arguments)
            .await?;
        self.migrated("migrate-incoming").await
    }

    /// Whether the process has ended, as far as is known.
    pub(super) fn has_exited(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Whether nothing is left of it to end.
    pub(super) fn is_over(&self) -> bool {
        self.ended.initialized()
    }

    /// Takes what the guest has printed to its console since the last call: the end of it.
    pub(super) async fn console(&self) -> Result<String, VmmError> {
        read_console(&self.qmp).await
    }

    /// Leaves the memory out of device states: it stays in its file.
    async fn ignore_shared_memory(&self) -> Result<(), VmmError> {
        let capabilities = json!([{"capability": "x-ignore-shared", "state": true}]);
        let arguments = json!({"capabilities": capabilities});
        self.qmp
            .execute("migrate-set-capabilities", arguments)
            .await
            .map(drop)
    }

    /// Waits for a device state to be written or loaded.
    async fn migrated(&self, command: &'static str) -> Result<(), VmmError> {
        let waited = async {
            loop {
                let answer = self.qmp.execute("query-migrate", json!({})).await?;
                match answer.get("status").and_then(Value::as_str) {
                    Some("completed") => return Ok(()),
                    Some(status @ ("failed" | "cancelled")) => {
                        let words = answer.get("error-desc").and_then(Value::as_str);
                        return Err(VmmError::Refused {
                            command: command.to_owned(),
                            message: crate::vmm::cut(words.unwrap_or(status)),
                        });
                    }
                    _ => sleep(Duration::from_millis(1)).await,
                }
            }
        };
        timeout(limits::VMM_STATE_TIMEOUT, waited)
            .await
            .unwrap_or_else(|_| Err(VmmError::TimedOut(command.to_owned())))
    }

    /// Works on the guest's private memory in a thread of its own, which stops soon after the caller.
    async fn with_memory<T: Send + 'static>(
        &self,
        work: impl FnOnce(&GuestMemory, &CancellationToken) -> Result<T, VmmError> + Send + 'static,
    ) -> Result<T, VmmError> {
        let golden = self.with_record(|record| record.golden_memory.clone());
        let golden = golden.ok_or_else(|| VmmError::Refused {
            command: "look at guest memory".to_owned(),
            message: "the machine was not restored from a golden snapshot".to_owned(),
        })?;
        let pid = self.process.id.pid;
        let cancelled = CancellationToken::new();
        let _cancel_on_drop = cancelled.clone().drop_guard();
        let worked = tokio::task::spawn_blocking(move || {
            let memory =
                GuestMemory::of(pid, &golden).map_err(VmmError::io("find guest memory"))?;
            work(&memory, &cancelled)
        });
        worked
            .await
            .map_err(|error| VmmError::io("work on guest memory")(error.into()))?
    }

    fn with_record<T>(&self, work: impl FnOnce(&mut MachineRecord) -> T) -> T {
        // Poisoned only by a panic in these short closures, which do not leave it half changed.
        work(&mut self.record.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn end(&self) -> Result<(), VmmError> {
        self.process.kill().await?;
        self.with_record(|record| record.take_back())?;
        MachineRecord::remove(&self.run_dir)?;
        give_back(self.slot.clone()).await;
        Ok(())
    }
}

#[async_trait]
impl Instance for Arc<Machine> {
    fn pid(&self) -> Option<u32> {
        Some(self.process.id.pid)
    }

    async fn resume(&self) -> Result<(), VmmError> {
        self.cpus.run().await
    }

    async fn pause(&self) -> Result<(), VmmError> {
        self.cpus.stop().await
    }

    async fn snapshot_golden(&self, state: &Path) -> Result<(), VmmError> {
        self.pause().await?;
        self.ignore_shared_memory().await?;
        let file = create(state).map_err(VmmError::io("create device state"))?;
        let written = async {
            let arguments = |path: &str| json!({"uri": format!("file:{path}")});
            self.qmp
                .execute_on("migrate", file.into(), arguments)
                .await?;
            self.migrated("migrate").await
        };
        explain_full_disk(written.await, state).await
    }

    async fn snapshot_delta(&self, files: &DeltaFiles) -> Result<DeltaStats, VmmError> {
        self.pause().await?;
        let paused_at = clock::now_ns();
        let file = create(&files.state).map_err(VmmError::io("create device state"))?;
        let arguments = |path: &str| json!({"filename": path, "live": false});
        let written = self
            .qmp
            .execute_on("xen-save-devices-state", file.into(), arguments)
            .await;
        explain_full_disk(written, &files.state).await?;
        let files = files.clone();
        self.with_memory(move |memory, cancelled| delta::save(memory, paused_at, &files, cancelled))
            .await
    }

    async fn touched_pages(&self) -> Result<Vec<Range<u64>>, VmmError> {
        self.with_memory(|memory, _| {
            memory
                .touched_pages()
                .map_err(VmmError::io("find touched pages"))
        })
        .await
    }

    async fn switch_disk(&self, overlay: &Path) -> Result<(), VmmError> {
        let (disk, node) = self.with_record(|record| (record.disk.clone(), record.disk_node));
        disk::create_overlay(&disk, overlay).await?;
        jail::lend(overlay, self.slot.uid()).map_err(VmmError::io("lend disk"))?;
        let arguments = json!({
            "node-name": node_name(node),
            "snapshot-file": utf8(overlay)?,
            "snapshot-node-name": node_name(node + 1),
            "format": "qcow2",
            "mode": "existing",
        });
        self.qmp
            .execute("blockdev-snapshot-sync", arguments)
            .await?;
        self.with_record(|record| {
            record.lent.push(overlay.to_owned());
            record.disk = overlay.to_owned();
            record.disk_node = node + 1;
            record.save(&self.run_dir)
        })?;
        jail::take_back(&disk).map_err(VmmError::io("take disk back"))
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, VmmError> {
        tokio::select! {
            biased;
            reason = self.exited() => Err(VmmError::Gone(format!("{reason:?}"))),
            stream = self.slot.connect(AGENT_PORT) => {
                Ok(Box::new(stream.map_err(VmmError::io("connect to guest agent"))?))
            }
        }
    }

    async fn exited(&self) -> ExitReason {
        let mut exit = self.exit.clone();
        let reason = exit
            .wait_for(Option::is_some)
            .await
            .map(|reason| reason.clone());
        let unknown = || ExitReason::Crashed("how it ended was not seen".to_owned());
        reason.ok().flatten().unwrap_or_else(unknown)
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.ended.get_or_try_init(|| self.end()).await.map(drop)
    }
}

/// Whether the machine's CPUs are to run. Several want a say: they take turns, so that what is stopped for a snapshot
/// stays so.
#[derive(Debug)]
struct Cpus {
    qmp: Qmp,
    are_to_run: tokio::sync::Mutex<bool>,
}

impl Cpus {
    fn new(qmp: Qmp) -> Self {
        Self {
            qmp,
            are_to_run: tokio::sync::Mutex::default(),
        }
    }

    async fn run(&self) -> Result<(), VmmError> {
        let mut are_to_run = self.are_to_run.lock().await;
        *are_to_run = true;
        self.qmp.execute("cont", json!({})).await.map(drop)
    }

    async fn stop(&self) -> Result<(), VmmError> {
        let mut are_to_run = self.are_to_run.lock().await;
        *are_to_run = false;
        self.qmp.execute("stop", json!({})).await.map(drop)
    }

    /// Continues a machine that stopped by itself, where its disk has room again.
    async fn go_on_if_room(&self, run_dir: &Path) {
        let free = disk::free_bytes(run_dir).await.unwrap_or_default();
        let are_to_run = self.are_to_run.lock().await;
        if !*are_to_run || free < limits::DISK_FULL_BYTES {
            return;
        }
        match self.qmp.execute("cont", json!({})).await {
            Ok(_) => {
                tracing::info!(run_dir = %run_dir.display(), "host disk has room: machine goes on")
            }
            // One that has ended is somebody else's to report.
            Err(error) => {
                tracing::debug!(run_dir = %run_dir.display(), %error, "machine not continued")
            }
        }
    }
}

/// Takes what the guest has printed to its console since the last call: the end of it.
pub(super) async fn read_console(qmp: &Qmp) -> Result<String, VmmError> {
    let arguments = json!({"device": CONSOLE, "size": limits::CONSOLE_BYTES});
    let text = qmp.execute("ringbuf-read", arguments).await?;
    Ok(text.as_str().unwrap_or_default().to_owned())
}

/// A file that holds `bytes` and can be read only, which is how QEMU wants what it reads.
fn in_memory(bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("device-state", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// The block node of the disk after so many switches.
pub(super) fn node_name(number: u32) -> String {
    format!("disk{number}")
}

/// Tells how the process ended. A machine that stopped because the host's disk was full runs on when there is room; one
/// that has halted for good is ended.
async fn watch_machine(
    run_dir: PathBuf,
    process: Arc<Process>,
    mut seen: watch::Receiver<Seen>,
    cpus: Arc<Cpus>,
    told: watch::Sender<Option<ExitReason>>,
) {
    let (mut open, mut full) = (true, false);
    // One that an earlier daemon started may have stopped before this one listened.
    let mut halted = end_if_halted(&run_dir, &process, &cpus.qmp).await;
    let status = loop {
        tokio::select! {
            status = process.ended() => break status,
            changed = seen.changed(), if open => {
                open = changed.is_ok();
                let now = seen.borrow_and_update().clone();
                if now.stopped && halted.is_none() {
                    halted = end_if_halted(&run_dir, &process, &cpus.qmp).await;
                }
                let was_full = std::mem::replace(&mut full, now.disk_full);
                if full && !was_full {
                    tracing::error!(run_dir = %run_dir.display(), "host disk is full: machine stopped");
                }
            }
            () = sleep(limits::DISK_FULL_POLL), if full => {
                cpus.go_on_if_room(&run_dir).await;
            }
        }
    };
    // The last events may still be on their way; the socket ends after them.
    let drained = async { while seen.changed().await.is_ok() {} };
    if timeout(LAST_EVENTS_TIMEOUT, drained).await.is_err() {
        tracing::warn!(run_dir = %run_dir.display(), "qemu ended and left its control socket open");
    }
    let why = halted.or_else(|| seen.borrow().shutdown.clone());
    told.send_replace(Some(exit_reason(&process, why.as_deref(), status)));
}

/// Ends a machine whose CPUs will never run again, as after an error of KVM's: QEMU tells of no more than a stop, and stays.
/// Answers why.
pub(super) async fn end_if_halted(run_dir: &Path, process: &Process, qmp: &Qmp) -> Option<String> {
    let status = qmp.halted().await?;
    let why = format!("{status}: {}", process.last_words());
    tracing::error!(run_dir = %run_dir.display(), why, "machine halted for good");
    if let Err(error) = process.kill().await {
        tracing::error!(run_dir = %run_dir.display(), %error, "halted machine not ended");
    }
    Some(why)
}

fn exit_reason(process: &Process, why: Option<&str>, status: Option<ExitStatus>) -> ExitReason {
    match why {
        Some("guest-shutdown") => ExitReason::PoweredOff,
        Some(reason) => ExitReason::Crashed(reason.to_owned()),
        None => {
            let status = status.map_or_else(|| "ended".to_owned(), |status| status.to_string());
            let words = process.last_words();
            ExitReason::Crashed(format!("qemu {status}: {words}"))
        }
    }
}

/// QEMU does not always say that the disk is full: look for ourselves.
async fn explain_full_disk<T>(result: Result<T, VmmError>, file: &Path) -> Result<T, VmmError> {
    let Err(error @ VmmError::Refused { .. }) = result else {
        return result;
    };
    let free = match file.parent() {
        Some(folder) => disk::free_bytes(folder).await.ok(),
        None => None,
    };
    match free {
        Some(free) if free < limits::DISK_FULL_BYTES => {
            let full = std::io::Error::new(std::io::ErrorKind::StorageFull, error.to_string());
            Err(VmmError::io("write device state")(full))
        }
        _ => Err(error),
    }
}

fn utf8(path: &Path) -> Result<&str, VmmError> {
    path.to_str()
        .ok_or_else(|| bad_path("a path that is not UTF-8"))
}

fn bad_path(problem: &str) -> VmmError {
    let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, problem);
    VmmError::io("name a file to qemu")(source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::qmp::peer::{GREETING, ok, scripted, status};

    #[tokio::test]
    async fn machine_that_halts_for_good_is_ended_as_crashed() {
        let answers = vec![
            ok(),
            status("running", &["STOP"]),
            status("paused", &["RESUME", "STOP"]),
            status("internal-error", &[]),
        ];
        let (dir, qmp) = scripted(GREETING, answers).await;
        let qmp = qmp.unwrap();
        let child = std::process::Command::new("sleep").arg("60").spawn();
        let process = Arc::new(Process::of_child(child.unwrap().id()).unwrap());
        let (told, mut exit) = watch::channel(None);
        let run_dir = dir.path().to_owned();
        let (seen, cpus) = (qmp.seen(), Arc::new(Cpus::new(qmp)));
        watch_machine(run_dir, process.clone(), seen, cpus, told).await;
        let Some(ExitReason::Crashed(why)) = exit.borrow_and_update().clone() else {
            panic!("it is said to live, or to have ended in order");
        };
        assert!(why.starts_with("internal-error: "), "{why}");
        assert!(Process::find(process.id).unwrap().is_none());
    }
}
