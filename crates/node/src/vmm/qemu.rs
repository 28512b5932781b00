//! The QEMU backend: one QEMU process per machine, by KVM or software emulation.
//!
//! | | memory | device state |
//! |---|---|---|
//! | boot | shared mapping of a new file | – |
//! | golden snapshot | stays in that file | migration stream without memory |
//! | restore | private mapping of the golden file | loaded into the paused machine |
//! | delta snapshot | the private pages, read from outside | saved without memory |
//! | restore of a delta | those pages, written into the private mapping | as before |
//!
//! Invariants: golden files are never opened for writing by a restore; nothing runs between load and
//! [`Instance::resume`]; whatever can be found in a run folder is enough to end the machine.
//!
//! It runs in a jail (`host/jail.rs`) that shows it the files above and nothing else; what it opens later it is given open.
//!
//! The end of the guest's console is kept in QEMU and read with `ringbuf-read` on the folder's `qmp.sock`.

mod clocks;
mod command;
mod counter;
mod delta;
mod enclosed;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod machine;
mod pages;
mod probe;
mod process;
mod record;
mod scan;
mod words;

pub use command::Accel;
pub(super) use probe::boot_probe;

use super::qmp::{self, Qmp};
use super::{BootSpec, Instance, RestoreSpec, StateSource, Vmm, VmmError};
use crate::host::cgroup::Share;
use crate::host::jail::{self, Cell, Jailer};
use crate::host::slot::{Slot, SlotError, SlotPool};
use crate::retry;
use async_trait::async_trait;
use dormouse_core::egress::Egress;
use dormouse_core::{chain, limits};
use enclosed::Enclosed;
use machine::Machine;
use process::Process;
use record::MachineRecord;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::time::timeout;

/// How long the end of a QEMU that has closed its socket is waited for.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs machines in QEMU, version 10 or later.
#[derive(Debug)]
pub struct Qemu {
    jailer: Jailer,
    accel: Accel,
    slots: Arc<SlotPool>,
    /// The folders of the disks that others may lie over.
    foundations: Vec<PathBuf>,
    /// What guests compute their clocks from; measured once.
    clocks: OnceCell<clocks::Source>,
    /// Machines that this process holds, by folder.
    held: Mutex<HashMap<PathBuf, Weak<Machine>>>,
}

impl Qemu {
    /// Runs the QEMU that `jailer` starts. No disk lies over another but those right in the folders `foundations`.
    #[must_use]
    pub fn new(
        jailer: Jailer,
        accel: Accel,
        slots: Arc<SlotPool>,
        foundations: Vec<PathBuf>,
    ) -> Self {
        Self {
            jailer,
            accel,
            slots,
            foundations,
            clocks: OnceCell::new(),
            held: Mutex::default(),
        }
    }

    /// The slots that machines in these folders use, going by their bookkeeping.
    ///
    /// # Errors
    /// A record cannot be read.
    pub fn slots_in_use(run_dirs: &[PathBuf]) -> Result<HashSet<String>, VmmError> {
        let records = run_dirs.iter().map(|dir| MachineRecord::load(dir));
        records
            .filter_map(|record| record.map(|r| r.map(|r| r.slot)).transpose())
            .collect()
    }

    /// What the guest in `run_dir` has printed to its console since this was last asked; 64 KiB at most.
    ///
    /// # Errors
    /// This process holds no machine there, or QEMU does not answer.
    pub async fn console(&self, run_dir: &Path) -> Result<String, VmmError> {
        let machine = self.held(run_dir);
        machine
            .ok_or_else(|| VmmError::Gone("no machine here".to_owned()))?
            .console()
            .await
    }

    /// Starts a QEMU process in a slot of its own. On an error nothing is left of it.
    async fn start(
        &self,
        run_dir: &Path,
        machine: &command::Machine<'_>,
        enclosed: Enclosed,
        disk: &Path,
        egress: Egress,
    ) -> Result<Arc<Machine>, VmmError> {
        let boot_id = record::boot_id()?;
        let golden_memory = match machine.memory {
            command::Memory::Private(path) => Some(path.to_owned()),
            command::Memory::Anonymous | command::Memory::Shared(_) => None,
        };
        let slot = self.slots.acquire().await?;
        let record = MachineRecord {
            boot_id,
            slot: slot.name().to_owned(),
            process: None,
            lent: enclosed.lent.clone(),
            golden_memory,
            disk: disk.to_owned(),
            disk_node: 0,
            egress,
        };
        // On this thread: a start that is dropped here would leave a slot that no record names.
        if let Err(error) = record.save(run_dir) {
            give_back(Arc::new(slot)).await;
            return Err(error);
        }
        match self
            .start_in(slot, run_dir, machine, enclosed, record)
            .await
        {
            Ok(machine) => {
                let mut held = lock(&self.held);
                held.retain(|_, machine| machine.strong_count() > 0);
                held.insert(run_dir.to_owned(), Arc::downgrade(&machine));
                Ok(machine)
            }
            Err(error) => {
                if let Err(error) = self.reap(run_dir).await {
                    tracing::error!(run_dir = %run_dir.display(), %error, "failed machine not cleaned up");
                }
                Err(error)
            }
        }
    }

    async fn start_in(
        &self,
        slot: Slot,
        run_dir: &Path,
        machine: &command::Machine<'_>,
        enclosed: Enclosed,
        mut record: MachineRecord,
    ) -> Result<Arc<Machine>, VmmError> {
        slot.set_egress(&record.egress).await?;
        for file in &enclosed.lent {
            jail::lend(file, slot.uid()).map_err(VmmError::io("lend file to the machine"))?;
        }
        let cell = Cell {
            uid: slot.uid(),
            cgroups: slot.confine(share(machine)).await?,
            shown: enclosed.shown,
            file_bytes_max: enclosed.file_bytes_max,
            kvm: self.accel == Accel::Kvm,
        };
        let tap = slot.open_tap().await?;
        let control = qmp::listen(run_dir).map_err(VmmError::io("make qmp socket"))?;
        let arguments = machine.arguments(control.as_raw_fd());
        let process =
            Process::spawn(&self.jailer, cell, arguments, run_dir, Some(tap), control).await?;
        record.process = Some(process.id);
        record.save(run_dir)?;
        let qmp = connect(run_dir, &process).await?;
        Ok(Machine::new(run_dir, process, qmp, slot, record))
    }

    /// The machine of a folder, where this process holds it. One that is over is not, whoever has hold of it still: what
    /// the folder tells of is its successor.
    fn held(&self, run_dir: &Path) -> Option<Arc<Machine>> {
        let machine = lock(&self.held).get(run_dir).and_then(Weak::upgrade);
        machine.filter(|machine| !machine.is_over())
    }

    async fn clocks(&self) -> Result<clocks::Source, VmmError> {
        let measured = self.clocks.get_or_try_init(|| clocks::of(self.accel));
        measured.await.copied()
    }
}

#[async_trait]
impl Vmm for Qemu {
    fn name(&self) -> &'static str {
        match self.accel {
            Accel::Kvm => "qemu-kvm",
            Accel::Tcg => "qemu-tcg",
        }
    }

    async fn boot(&self, spec: &BootSpec) -> Result<Box<dyn Instance>, VmmError> {
        let append = command::kernel_append(self.clocks().await?);
        let machine = command::Machine {
            accel: self.accel,
            memory_mib: spec.memory_mib,
            vcpus: spec.vcpus,
            memory: match &spec.golden_memory {
                Some(path) => command::Memory::Shared(path),
                None => command::Memory::Anonymous,
            },
            disk: Some(&spec.disk),
            backing: None,
            more_disks: &spec.disks,
            network: true,
            start: command::Start::Kernel {
                kernel: &spec.kernel,
                initramfs: &spec.initramfs,
                append: &append,
            },
        };
        let (of, foundations) = (spec.clone(), self.foundations.clone());
        let enclosed = blocking(move || Enclosed::to_boot(&of, &foundations)).await?;
        let egress = Egress::internet();
        let machine = self
            .start(&spec.run_dir, &machine, enclosed, &spec.disk, egress)
            .await?;
        Ok(Box::new(machine))
    }

    async fn restore(&self, spec: &RestoreSpec) -> Result<Box<dyn Instance>, VmmError> {
        let machine = command::Machine {
            accel: self.accel,
            memory_mib: spec.memory_mib,
            vcpus: spec.vcpus,
            memory: command::Memory::Private(&spec.golden_memory),
            disk: Some(&spec.disk),
            backing: Some(&spec.golden_disk),
            more_disks: &[],
            network: true,
            start: command::Start::Incoming,
        };
        let (of, foundations) = (spec.clone(), self.foundations.clone());
        let enclosed = blocking(move || Enclosed::to_restore(&of, &foundations)).await?;
        let egress = spec.egress.clone();
        let machine = self
            .start(&spec.run_dir, &machine, enclosed, &spec.disk, egress)
            .await?;
        let load = async {
            match &spec.state {
                StateSource::Golden(state) => machine.load_golden(state).await,
                StateSource::Delta(files) => {
                    machine
                        .load_delta(files.clone(), self.clocks().await?)
                        .await
                }
            }
        };
        if let Err(error) = load.await {
            if let Err(error) = machine.kill().await {
                let run_dir = spec.run_dir.display();
                tracing::error!(%run_dir, %error, "failed machine not cleaned up");
            }
            return Err(error);
        }
        Ok(Box::new(machine))
    }

    async fn adopt(&self, run_dir: &Path) -> Result<Option<Box<dyn Instance>>, VmmError> {
        if let Some(machine) = self.held(run_dir) {
            return Ok((!machine.has_exited()).then(|| Box::new(machine) as Box<dyn Instance>));
        }
        let Some(record) = MachineRecord::load(run_dir)? else {
            return Ok(None);
        };
        // One whose process is not known was still being started: it has nothing that would be missed.
        let process = match record.process {
            Some(id) => Process::find(id).map_err(VmmError::io("find qemu process"))?,
            None => None,
        };
        let slot = match &process {
            Some(_) => self.slots.adopt(&record.slot, &record.egress).await?,
            None => None,
        };
        let (Some(process), Some(slot)) = (process, slot) else {
            self.reap(run_dir).await?;
            return Ok(None);
        };
        let Some(qmp) = reconnect(run_dir, &process).await? else {
            // Whoever reaps the machine gives back its slot, unless somebody holds it.
            drop(slot);
            self.reap(run_dir).await?;
            return Ok(None);
        };
        let machine = Machine::new(run_dir, process, qmp, slot, record);
        lock(&self.held).insert(run_dir.to_owned(), Arc::downgrade(&machine));
        Ok(Some(Box::new(machine)))
    }

    async fn reap(&self, run_dir: &Path) -> Result<(), VmmError> {
        if let Some(machine) = self.held(run_dir) {
            return machine.kill().await;
        }
        let Some(record) = MachineRecord::load(run_dir)? else {
            return MachineRecord::remove(run_dir);
        };
        if let Some(id) = record.process
            && let Some(process) = Process::find(id).map_err(VmmError::io("find qemu process"))?
        {
            process.kill().await?;
        }
        // One that was started just before a crash, and its jail, are known by their control group alone.
        self.slots.end_processes(&record.slot).await?;
        record.take_back()?;
        MachineRecord::remove(run_dir)?;
        let (name, slots) = (record.slot, self.slots.clone());
        let left = {
            let name = name.clone();
            move || delete_left(slots.clone(), name.clone())
        };
        freed(name, left).await;
        Ok(())
    }
}

/// Deletes the slot that a machine's record named, unless somebody else has it now.
async fn delete_left(slots: Arc<SlotPool>, name: String) -> Result<(), SlotError> {
    match slots.delete(&name).await {
        // Another machine's, or another daemon's.
        Err(SlotError::InUse(_) | SlotError::Config(_)) => Ok(()),
        deleted => deleted,
    }
}

/// Deletes the slot of a machine that is over.
async fn give_back(slot: Arc<Slot>) {
    let name = slot.name().to_owned();
    let release = move || {
        let slot = slot.clone();
        async move { slot.release().await }
    };
    freed(name, release).await;
}

/// Frees a slot that no record names any more, however often that fails. Nobody else would do it before the next start of
/// the daemon, so it has a task of its own, and goes on when whoever waits here is dropped or has waited long enough.
async fn freed<F>(slot: String, free: impl Fn() -> F + Send + 'static)
where
    F: Future<Output = Result<(), SlotError>> + Send + 'static,
{
    let freeing = tokio::spawn(async move {
        let told = |error: &SlotError| {
            tracing::error!(
                slot,
                error = chain(error),
                "slot not released; trying again"
            );
        };
        retry::until_done(free, told).await;
    });
    // The machine has ended either way.
    let _ = timeout(limits::VMM_KILL_TIMEOUT, freeing).await;
}

/// What a machine may take of the host.
fn share(machine: &command::Machine<'_>) -> Share {
    let own_mib = limits::VMM_OVERHEAD_MIB
        + match machine.accel {
            Accel::Kvm => 0,
            Accel::Tcg => limits::VMM_TRANSLATION_MIB,
        };
    Share {
        memory_bytes: (u64::from(machine.memory_mib) + own_mib) << 20,
        vcpus: machine.vcpus,
        threads: machine.vcpus + limits::VMM_THREADS,
    }
}

/// Creates a file, or empties the one that is there, for this process's user alone.
fn create(path: &Path) -> std::io::Result<File> {
    File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, VmmError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(error.into()))
        .map_err(VmmError::io("prepare files of the machine"))
}

/// Connects to a QEMU process that may still be starting: its socket is there before it is, and it answers when it is up.
async fn connect(run_dir: &Path, process: &Process) -> Result<Qmp, VmmError> {
    let late = || VmmError::TimedOut("start of qemu".to_owned());
    tokio::select! {
        connected = timeout(limits::VMM_START_TIMEOUT, Qmp::connect(run_dir)) => {
            let connected = connected.unwrap_or_else(|_| Err(late()));
            // A socket that is closed may be the first that is seen of QEMU's end.
            match connected {
                Err(error) => match timeout(LAST_WORDS_TIMEOUT, process.ended()).await {
                    Ok(_) => Err(not_started(process)),
                    Err(_) => Err(error),
                },
                connected => connected,
            }
        }
        _ = process.ended() => Err(not_started(process)),
    }
}

/// Connects to the QEMU process that an earlier daemon left; none where its machine is over.
async fn reconnect(run_dir: &Path, process: &Process) -> Result<Option<Qmp>, VmmError> {
    match connect(run_dir, process).await {
        // One that has halted for good refuses to run: adopted, it would be tried for ever.
        Ok(qmp) => {
            let halted = machine::end_if_halted(run_dir, process, &qmp).await;
            Ok(halted.is_none().then_some(qmp))
        }
        // It was ending when the daemon went down, and has ended since.
        Err(VmmError::Gone(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn not_started(process: &Process) -> VmmError {
    VmmError::Gone(format!("qemu did not start: {}", process.last_words()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::qmp::peer::{GREETING, listening, ok, status};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::time::{Instant, sleep};

    /// Fails so many times, and counts.
    fn failing(times: usize, tries: &Arc<AtomicUsize>) -> impl Fn() -> Freeing + Send + 'static {
        let tries = tries.clone();
        move || {
            let full = tries.fetch_add(1, Ordering::Relaxed) < times;
            std::future::ready(if full { Err(SlotError::Full) } else { Ok(()) })
        }
    }

    type Freeing = std::future::Ready<Result<(), SlotError>>;

    #[tokio::test]
    async fn machine_that_halted_while_no_daemon_listened_is_ended_and_not_adopted() {
        for (told, over) in [("internal-error", true), ("io-error", false)] {
            let dir = listening(GREETING, vec![ok(), status(told, &[])]);
            let child = std::process::Command::new("sleep").arg("60").spawn();
            let process = Process::of_child(child.unwrap().id()).unwrap();
            let qmp = reconnect(dir.path(), &process).await.unwrap();
            assert_eq!(qmp.is_none(), over, "{told}");
            assert_eq!(Process::find(process.id).unwrap().is_none(), over, "{told}");
            process.kill().await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn slot_is_freed_however_often_that_fails_and_whoever_waits() {
        let tries = Arc::new(AtomicUsize::new(0));
        freed("dmx-1".to_owned(), failing(2, &tries)).await;
        assert_eq!(tries.load(Ordering::Relaxed), 3);

        let tries = Arc::new(AtomicUsize::new(0));
        let wait = freed("dmx-2".to_owned(), failing(10, &tries));
        let dropped = timeout(Duration::from_millis(1), wait).await;
        assert!(dropped.is_err());
        sleep(10 * limits::RETRY_LAST).await;
        assert_eq!(tries.load(Ordering::Relaxed), 11);

        let began = Instant::now();
        freed("dmx-3".to_owned(), failing(usize::MAX, &tries)).await;
        assert_eq!(began.elapsed(), limits::VMM_KILL_TIMEOUT);
    }
}
