//! Stopping all of the customer's code for a snapshot, and letting it run on as another VM.
//!
//! The order of [`Freezer::thaw`] is the product's promise: no instruction of a clone runs with the time,
//! the randomness, the connections or the name of another.

use crate::affinity::{self, Scattered};
use crate::cgroup::Cgroup;
use crate::{console, disk, etc, random, sockets, timers};
use dormouse_core::guest::ThawSpec;
use rustix::time::{ClockId, Timespec, clock_settime};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Processes stop within this; one that waits for the disk in the kernel stops after it.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What the host says takes less than this to get here, also when it is busy.
const UNDER_WAY: Duration = Duration::from_secs(1);

/// Why the guest could not be frozen or thawed. It stays as it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FreezeError {
    /// The seed is not hexadecimal, or too short or too long.
    #[error("entropy_hex must be {} to {} bytes in hex", random::SEED_BYTES.start(), random::SEED_BYTES.end())]
    Seed,
    /// The name cannot be a host name.
    #[error("invalid host name {0:?}")]
    Hostname(String),
    /// Names are written to the disk, which must not be frozen.
    #[error("the disk is frozen")]
    DiskFrozen,
    /// The host had the app run on, or had it frozen anew, before all was on the disk.
    #[error("the app was thawed before its freeze was done")]
    Thawed,
    /// A step failed.
    #[error("cannot {step}")]
    Step {
        /// The step.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl FreezeError {
    fn step<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Step {
            step,
            source: source.into(),
        }
    }
}

/// Freezes and thaws the customer's processes and the disk. Every call blocks.
#[derive(Debug)]
pub(crate) struct Freezer {
    guest: Arc<Cgroup>,
    /// One at a time stops the app or lets it run: both at once would leave neither. It holds the name under which the machine was
    /// thawed last, none before it ever was. A snapshot keeps that, and so tells a clone from a machine that has slept;
    /// the kernel's name is an app's to change that has all capabilities.
    turn: Mutex<Option<String>>,
    /// Where the agent's threads may run when nothing is frozen; set while they are kept together. Apart from the turn:
    /// whoever lets them go again keeps no process from starting.
    together: Mutex<Option<Scattered>>,
    processes_frozen: AtomicBool,
    disk_frozen: AtomicBool,
    /// How many freezes there were: one that waits for the disk may be over before it is done, and another have begun.
    freezes: AtomicU64,
}

impl Freezer {
    /// A freezer of everything in `guest`.
    pub(crate) fn new(guest: Arc<Cgroup>) -> Self {
        Self {
            guest,
            turn: Mutex::default(),
            together: Mutex::default(),
            processes_frozen: AtomicBool::new(false),
            disk_frozen: AtomicBool::new(false),
            freezes: AtomicU64::new(0),
        }
    }

    /// Starts a process unless the guest or its disk is frozen or about to be; a freeze waits for it.
    ///
    /// A process that joins a frozen group stops before it has become its program, and whoever starts it
    /// would wait for that on the thread that has to answer the thaw.
    pub(crate) fn start<T>(&self, start: impl FnOnce() -> T) -> Option<T> {
        let _turn = match self.turn.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        if self.is_frozen() || self.is_disk_frozen() {
            return None;
        }
        // What is started inherits where the agent runs.
        self.scatter();
        Some(start())
    }

    /// Lets the agent's threads run anywhere again, unless the processes are frozen.
    pub(crate) fn scatter(&self) {
        let mut together = self.together();
        if self.is_frozen() {
            return;
        }
        if let Some(scattered) = together.take() {
            scattered.restore().unwrap_or_else(slower);
        }
    }

    /// Whether the customer's processes are stopped, or about to be.
    pub(crate) fn is_frozen(&self) -> bool {
        self.processes_frozen.load(Ordering::SeqCst)
    }

    /// Whether writes to the disk wait, or are about to.
    pub(crate) fn is_disk_frozen(&self) -> bool {
        self.disk_frozen.load(Ordering::SeqCst)
    }

    /// Stops every process of the customer and writes to the disk what they left. Frozen is fine.
    pub(crate) fn freeze(&self) -> Result<(), FreezeError> {
        self.freeze_and(disk::sync)
    }

    /// The disk is waited for apart from the turn: a host that waits no longer has the app run on, and that must not wait
    /// for the disk in its turn.
    fn freeze_and(&self, sync: impl FnOnce() -> io::Result<()>) -> Result<(), FreezeError> {
        let own = self.stop()?;
        let synced = sync().map_err(FreezeError::step("write to the disk"));
        let _turn = self.turn();
        if !self.is_frozen() || self.freezes.load(Ordering::SeqCst) != own {
            return Err(FreezeError::Thawed);
        }
        if synced.is_err() {
            self.run_on()?;
            return synced;
        }
        let mut together = self.together();
        if together.is_none() {
            *together = affinity::gather().map_err(slower).ok();
        }
        Ok(())
    }

    /// Stops the processes; answers with the number of this freeze.
    fn stop(&self) -> Result<u64, FreezeError> {
        let _turn = self.turn();
        let own = self.freezes.fetch_add(1, Ordering::SeqCst) + 1;
        self.processes_frozen.store(true, Ordering::SeqCst);
        let stopped = self.guest.set_frozen(true, TIMEOUT);
        if stopped.is_err() {
            self.run_on()?;
        }
        stopped.map_err(FreezeError::step("freeze the app"))?;
        Ok(own)
    }

    /// All or nothing: the app goes on as if it had not been asked.
    fn run_on(&self) -> Result<(), FreezeError> {
        self.guest
            .set_frozen(false, TIMEOUT)
            .map_err(FreezeError::step("run the app after a failed freeze"))?;
        self.processes_frozen.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// Makes the VM its own, then runs the customer's processes. When a step fails they stay stopped, and
    /// the call can be made again. Not frozen is fine: what runs keeps its connections. [`Freezer::scatter`] comes a
    /// moment later.
    pub(crate) fn thaw(&self, spec: &ThawSpec) -> Result<(), FreezeError> {
        let mut name = self.turn();
        let seed = hex::decode(&spec.entropy_hex).map_err(|_| FreezeError::Seed)?;
        if !random::SEED_BYTES.contains(&seed.len()) {
            return Err(FreezeError::Seed);
        }
        if !etc::is_hostname(&spec.hostname) {
            return Err(FreezeError::Hostname(spec.hostname.clone()));
        }
        if self.is_disk_frozen() {
            return Err(FreezeError::DiskFrozen);
        }
        set_clock(spec.wall_clock_ns).map_err(FreezeError::step("set the clock"))?;
        timers::run_due().unwrap_or_else(later);
        random::reseed(&seed).map_err(FreezeError::step("reseed the random generator"))?;
        if name.as_ref() != Some(&spec.hostname) {
            part_from_snapshot(&spec.hostname)?;
        } else if self.is_frozen() {
            sockets::abort_tcp().unwrap_or_else(silent);
        }
        self.guest
            .set_frozen(false, TIMEOUT)
            .map_err(FreezeError::step("run the app"))?;
        self.processes_frozen.store(false, Ordering::SeqCst);
        *name = Some(spec.hostname.clone());
        Ok(())
    }

    /// Writes everything to the disk and makes further writes wait. Frozen is fine.
    pub(crate) fn freeze_disk(&self) -> Result<(), FreezeError> {
        let _turn = self.turn();
        self.disk_frozen.store(true, Ordering::SeqCst);
        let frozen = disk::freeze().map_err(FreezeError::step("freeze the disk"));
        self.disk_frozen.store(frozen.is_ok(), Ordering::SeqCst);
        frozen
    }

    /// Lets writes to the disk go on. Not frozen is fine.
    pub(crate) fn thaw_disk(&self) -> Result<(), FreezeError> {
        let _turn = self.turn();
        disk::thaw().map_err(FreezeError::step("thaw the disk"))?;
        self.disk_frozen.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn turn(&self) -> MutexGuard<'_, Option<String>> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn together(&self) -> MutexGuard<'_, Option<Scattered>> {
        self.together.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a clone a machine of its own, which one that has only slept is already.
fn part_from_snapshot(hostname: &str) -> Result<(), FreezeError> {
    sockets::abort_tcp().map_err(FreezeError::step("abort stale connections"))?;
    sockets::abort_udp().map_err(FreezeError::step("abort stale UDP sockets"))?;
    let machine_id = random::public_id().map_err(FreezeError::step("draw a machine id"))?;
    etc::rename(hostname, machine_id).map_err(FreezeError::step("set the host name"))
}

/// Says that where the agent runs could not be changed, which costs nothing but time.
fn slower(error: io::Error) {
    console::say(format_args!(
        "the agent's threads stay where they are: {error}"
    ));
}

/// Says that connections were kept over a sleep, which costs the app nothing but time: no other machine has them.
fn silent(error: io::Error) {
    console::say(format_args!("stale connections stay: {error}"));
}

/// Says that timers that became due in the sleep were not run, which costs the app nothing but time.
fn later(error: io::Error) {
    console::say(format_args!("timers that are due come late: {error}"));
}

/// Sets the wall clock, unless it is right: after a sleep it went on by itself, and what the host says was under way for a while.
fn set_clock(wall_clock_ns: u64) -> rustix::io::Result<()> {
    let told = Duration::from_nanos(wall_clock_ns);
    let own = SystemTime::now().duration_since(UNIX_EPOCH);
    if own.is_ok_and(|own| (told..told + UNDER_WAY).contains(&own)) {
        return Ok(());
    }
    let time = Timespec {
        tv_sec: i64::try_from(told.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: told.subsec_nanos().into(),
    };
    clock_settime(ClockId::Realtime, time)
}

#[cfg(test)]
mod tests;
