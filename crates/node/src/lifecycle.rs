//! What a MicroVM's transitions really do: launch, suspend, resume and teardown on one host.
//!
//! Each may be called again after a crash at any point. What tells the cases apart lies on disk:
//! a whole snapshot is a folder under its final name, and it loses that name just before the MicroVM
//! runs on from it.

use crate::boot::BootFiles;
use crate::clock;
use crate::disk;
use crate::gate::Gate;
use crate::guest::{Guest, GuestError};
use crate::layers::LayerCache;
use crate::layout::{BuildDir, Layout, VmDir};
use crate::snapshot::{Manifest, ManifestError, rename_durably};
use crate::vmm::{DeltaFiles, ExitReason, Instance, RestoreSpec, StateSource, Vmm, VmmError};
use crate::working_set;
use dormouse_core::guest::{AppState, ThawSpec};
use dormouse_core::hook::Hook;
use dormouse_core::limits;
use dormouse_core::microvm::{Record, State};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// The host's means: a folder and a VMM.
#[derive(Debug)]
pub struct Host {
    /// Where everything lies.
    pub layout: Layout,
    /// What runs machines.
    pub vmm: Arc<dyn Vmm>,
    /// What new machines boot from.
    pub boot: BootFiles,
    /// The build cache.
    pub layers: Arc<LayerCache>,
}

/// Why a transition failed.
#[derive(Debug, thiserror::Error)]
pub enum LifecycleError {
    /// The machine could not be made, paused, saved or loaded.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The agent inside did not do its part.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The image's snapshot cannot be used.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A file operation failed.
    #[error("{action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error("{0} timed out")]
    TimedOut(&'static str),
}

/// A hook of the app's did not answer as it must; the state reason that follows.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct HookFailed(pub(crate) String);

impl LifecycleError {
    /// The machine has ended, and what was not kept with it.
    pub(crate) fn gone(reason: ExitReason) -> Self {
        let how = match reason {
            ExitReason::PoweredOff => "it powered itself off".to_owned(),
            ExitReason::Crashed(how) => how,
        };
        Self::Vmm(VmmError::Gone(how))
    }
}

fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> LifecycleError {
    move |source| LifecycleError::Io { action, source }
}

impl Host {
    /// Restores the image's snapshot. The machine is paused, its app frozen: [`Host::thaw`] comes next.
    pub(crate) async fn launch(
        &self,
        record: &Record,
    ) -> Result<Arc<dyn Instance>, LifecycleError> {
        // Whatever an earlier attempt left never served a request: begin again.
        self.teardown(record).await?;
        let dir = self.layout.vm(&record.id);
        let build = self.layout.build(&record.build);
        let manifest = Manifest::load(&build, self.vmm.name()).await?;
        create_dir(dir.path())?;
        disk::create_overlay(&build.disk(), &dir.disk()).await?;
        prefetch(&build, &manifest);
        let state = StateSource::Golden(build.state());
        let spec = self.restore_spec(record, &dir, &manifest, state);
        Ok(Arc::from(self.vmm.restore(&spec).await?))
    }

    /// Whether the MicroVM's snapshot is whole: it has its name.
    pub(crate) async fn is_kept(&self, record: &Record) -> Result<bool, LifecycleError> {
        tokio::fs::try_exists(self.layout.vm(&record.id).suspended())
            .await
            .map_err(io_error("look for snapshot"))
    }

    /// Whether there is room for a snapshot: writing to a full disk, the guest would stop until there is.
    pub(crate) async fn find_room(&self, record: &Record) -> Result<(), LifecycleError> {
        let free = disk::free_bytes(self.layout.vm(&record.id).path()).await;
        if free.map_err(io_error("look for room for snapshot"))? < limits::DISK_FULL_BYTES {
            let full = rustix::io::Errno::NOSPC.into();
            return Err(io_error("find room for snapshot")(full));
        }
        Ok(())
    }

    /// Lets requests in flight end, then tells the app that it is about to sleep, unless a suspend that a crash
    /// cut off has told it before.
    pub(crate) async fn before_suspend(
        &self,
        record: &Record,
        machine: &dyn Instance,
        gate: &Gate,
    ) -> Result<(), HookFailed> {
        gate.drain(limits::DRAIN_QUIET, limits::DRAIN_TIMEOUT).await;
        if record.hooks.call(Hook::Suspend).is_none() || !is_app_running(machine).await {
            return Ok(());
        }
        self.tell(record, machine, Hook::Suspend).await
    }

    /// Calls a hook of a MicroVM that runs, if its image has that hook.
    pub(crate) async fn tell(
        &self,
        record: &Record,
        machine: &dyn Instance,
        hook: Hook,
    ) -> Result<(), HookFailed> {
        let Some(call) = record.hooks.call(hook) else {
            return Ok(());
        };
        let body = (hook == Hook::Run).then(|| run_hook_body(record));
        let told = crate::hook::tell(machine, call, body).await;
        told.map_err(|failure| HookFailed(call.microvm_reason(failure)))
    }

    /// Stops the app and has the guest write out what its disk does not have yet. [`Host::before_suspend`] comes
    /// first, [`Host::keep`] after.
    pub(crate) async fn freeze(
        &self,
        record: &Record,
        machine: &dyn Instance,
    ) -> Result<(), LifecycleError> {
        // Requests in flight and the hook may have taken long, and written much.
        self.find_room(record).await?;
        let freeze = async {
            // A suspend that a crash cut off may have left it paused, and then its agent is silent.
            machine.resume().await?;
            Ok(Guest::new(machine).freeze().await?)
        };
        while_alive(machine, limits::SUSPEND_TIMEOUT, "freeze", freeze).await
    }

    /// Writes the snapshot of a frozen machine under its final name. From then on the MicroVM is asleep, come what
    /// may, and [`Host::end_machine`] is next; when it fails, [`Host::run_on`].
    pub(crate) async fn keep(
        &self,
        record: &Record,
        machine: &dyn Instance,
    ) -> Result<(), LifecycleError> {
        let dir = self.layout.vm(&record.id);
        let write = async {
            remove_tree(&dir.suspending()).await?;
            create_dir(&dir.suspending())?;
            machine
                .snapshot_delta(&delta_files(&dir.suspending()))
                .await?;
            let folder = tokio::fs::File::open(dir.suspending()).await;
            folder
                .map_err(io_error("open snapshot"))?
                .sync_all()
                .await
                .map_err(io_error("sync snapshot"))
        };
        while_alive(machine, limits::SUSPEND_TIMEOUT, "suspend", write).await?;
        // Not under the time limit: given up halfway, a rename may still happen later.
        rename_durably(&dir.suspending(), &dir.suspended())
            .await
            .map_err(io_error("name snapshot"))
    }

    /// Ends whatever still runs of a MicroVM's machine, and takes back what it was lent.
    pub(crate) async fn end_machine(&self, record: &Record) -> Result<(), LifecycleError> {
        Ok(self.vmm.reap(self.layout.vm(&record.id).path()).await?)
    }

    /// Takes a failed suspend back. What has the snapshot's name loses it before the machine runs: the two
    /// would no longer agree. A failure changes nothing, and it can be called again.
    pub(crate) async fn run_on(
        &self,
        record: &Record,
        machine: &dyn Instance,
    ) -> Result<(), LifecycleError> {
        let dir = self.layout.vm(&record.id);
        // A disk that fails may fail again: what is not there needs no other name.
        if self.is_kept(record).await? {
            tokio::fs::rename(dir.suspended(), dir.suspending())
                .await
                .map_err(io_error("take snapshot back"))?;
        }
        if let Err(error) = remove_tree(&dir.suspending()).await {
            tracing::warn!(microvm = %record.id, %error, "half a snapshot was not deleted");
        }
        self.thaw(record.id.as_str(), machine).await
    }

    /// Restores what was kept and takes it into use: from here on the state is the machine's alone, which is paused,
    /// its app frozen. When it fails a machine that may be left has not run, and [`Host::put_back`] is next.
    pub(crate) async fn wake(&self, record: &Record) -> Result<Arc<dyn Instance>, LifecycleError> {
        let dir = self.layout.vm(&record.id);
        let machine = self.restore_kept(record, &dir).await?;
        // From the rename on the machine may write to its disk, so the snapshot no longer fits it.
        rename_durably(&dir.suspended(), &dir.consumed())
            .await
            .map_err(io_error("take snapshot into use"))?;
        Ok(machine)
    }

    /// Takes a failed wake back: the snapshot may have lost its name all the same, only not durably. A failure changes
    /// nothing, and it can be called again.
    pub(crate) async fn put_back(&self, record: &Record) -> Result<(), LifecycleError> {
        if self.is_kept(record).await? {
            return Ok(());
        }
        let dir = self.layout.vm(&record.id);
        tokio::fs::rename(dir.consumed(), dir.suspended())
            .await
            .map_err(io_error("put snapshot back"))
    }

    /// Deletes the snapshot that a machine has run on from.
    pub(crate) async fn forget_used(&self, record: &Record) {
        if let Err(error) = remove_tree(&self.layout.vm(&record.id).consumed()).await {
            tracing::warn!(microvm = %record.id, %error, "used snapshot was not deleted");
        }
    }

    /// Finds the machine that an earlier daemon left. That of a running MicroVM is told to run: it may have stopped for
    /// a full disk, and it goes on after the next one only if it is to run as far as this daemon knows.
    pub async fn adopt(
        &self,
        record: &Record,
    ) -> Result<Option<Arc<dyn Instance>>, LifecycleError> {
        let dir = self.layout.vm(&record.id);
        let Some(machine) = self.vmm.adopt(dir.path()).await? else {
            return Ok(None);
        };
        if record.state == State::Running {
            machine.resume().await?;
        }
        Ok(Some(Arc::from(machine)))
    }

    /// Ends the machine and deletes the MicroVM's files.
    pub(crate) async fn teardown(&self, record: &Record) -> Result<(), LifecycleError> {
        let dir = self.layout.vm(&record.id);
        self.vmm.reap(dir.path()).await?;
        remove_tree(dir.path()).await
    }

    async fn restore_kept(
        &self,
        record: &Record,
        dir: &VmDir,
    ) -> Result<Arc<dyn Instance>, LifecycleError> {
        self.vmm.reap(dir.path()).await?;
        // What an earlier wake could not delete would be in the way of this one.
        remove_tree(&dir.consumed()).await?;
        let build = self.layout.build(&record.build);
        let manifest = Manifest::load(&build, self.vmm.name()).await?;
        prefetch(&build, &manifest);
        let state = StateSource::Delta(delta_files(&dir.suspended()));
        let spec = self.restore_spec(record, dir, &manifest, state);
        Ok(Arc::from(self.vmm.restore(&spec).await?))
    }

    fn restore_spec(
        &self,
        record: &Record,
        dir: &VmDir,
        manifest: &Manifest,
        state: StateSource,
    ) -> RestoreSpec {
        RestoreSpec {
            run_dir: dir.path().to_owned(),
            disk: dir.disk(),
            memory_mib: manifest.memory_mib,
            vcpus: manifest.vcpus,
            golden_memory: self.layout.build(&record.build).memory(),
            golden_disk: self.layout.build(&record.build).disk(),
            state,
            egress: record.egress.clone(),
        }
    }

    /// Runs a paused machine and gives it time, entropy and a name before its app runs on.
    pub(crate) async fn thaw(
        &self,
        hostname: &str,
        machine: &dyn Instance,
    ) -> Result<(), LifecycleError> {
        let thaw = async {
            let began = Instant::now();
            machine.resume().await?;
            let mut entropy = [0u8; 64];
            aws_lc_rs::rand::fill(&mut entropy)
                .map_err(|_| io::Error::other("no randomness"))
                .map_err(io_error("draw entropy for guest"))?;
            let spec = || ThawSpec {
                wall_clock_ns: clock::now_ns(),
                entropy_hex: hex::encode(entropy),
                hostname: hostname.to_owned(),
            };
            Guest::new(machine)
                .thaw_restored(limits::LAUNCH_TIMEOUT, spec)
                .await?;
            let took_ms = began.elapsed().as_millis();
            tracing::debug!(microvm = hostname, took_ms, "microvm thawed");
            Ok(())
        };
        while_alive(machine, limits::LAUNCH_TIMEOUT, "thaw", thaw).await
    }
}

/// Begins to read what a machine touches first, beside its start. A hint: without it the machine is slower.
fn prefetch(build: &BuildDir, manifest: &Manifest) {
    if manifest.working_set_pages.is_none() {
        return;
    }
    let (working_set, memory) = (build.working_set(), build.memory());
    tokio::task::spawn_blocking(move || {
        if let Err(error) = working_set::prefetch(&working_set, &memory) {
            let file = working_set.display();
            tracing::warn!(%file, %error, "working set was not read ahead");
        }
    });
}

/// Whether the app's code runs: not when it is frozen already, or has ended.
async fn is_app_running(machine: &dyn Instance) -> bool {
    // A suspend that a crash cut off may have left it paused, and then its agent is silent. What fails here
    // fails again in the suspend, and is told there.
    let status = async {
        machine.resume().await.ok()?;
        Guest::new(machine).app().await.ok()
    };
    let status = tokio::select! {
        biased;
        status = status => status,
        _ = machine.exited() => None,
    };
    status.is_some_and(|status| status.state == AppState::Running)
}

/// The key of the payload is left out where there is none.
fn run_hook_body(record: &Record) -> String {
    let mut body = serde_json::json!({"microvmId": record.id.as_str()});
    if let Some(payload) = &record.run_hook_payload {
        body["runHookPayload"] = payload.expose().into();
    }
    body.to_string()
}

/// Has a machine power itself off, where it still listens.
pub(crate) async fn power_off(machine: &dyn Instance) {
    let orderly = async {
        if Guest::new(machine).power_off().await.is_ok() {
            machine.exited().await;
        }
    };
    tokio::select! {
        _ = timeout(limits::POWEROFF_TIMEOUT, orderly) => {}
        _ = machine.exited() => {}
    }
}

/// Works with a machine for `limit` at most, and no longer than it lives: the network of a machine that is
/// gone is silent.
async fn while_alive<T>(
    machine: &dyn Instance,
    limit: Duration,
    what: &'static str,
    work: impl Future<Output = Result<T, LifecycleError>>,
) -> Result<T, LifecycleError> {
    tokio::select! {
        biased;
        done = timeout(limit, work) => done.unwrap_or(Err(LifecycleError::TimedOut(what))),
        reason = machine.exited() => Err(LifecycleError::gone(reason)),
    }
}

fn delta_files(folder: &Path) -> DeltaFiles {
    DeltaFiles {
        state: folder.join("state"),
        memory: folder.join("memory"),
    }
}

/// Makes a folder on this thread: when a transition is dropped, none that it has handed to another thread
/// may appear behind the teardown's back.
fn create_dir(path: &Path) -> Result<(), LifecycleError> {
    std::fs::create_dir(path).map_err(io_error("create folder of microvm"))
}

/// Deletes a folder with all in it. A dropped transition may still be writing there on another thread: what
/// appears meanwhile is deleted too.
async fn remove_tree(path: &Path) -> Result<(), LifecycleError> {
    const ATTEMPTS: usize = 10;
    for attempt in 1.. {
        match tokio::fs::remove_dir_all(path).await {
            Err(source)
                if source.kind() == io::ErrorKind::DirectoryNotEmpty && attempt < ATTEMPTS =>
            {
                sleep(Duration::from_millis(10)).await;
            }
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(LifecycleError::Io {
                    action: "delete files of microvm",
                    source,
                });
            }
            _ => break,
        }
    }
    Ok(())
}
