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
use crate::layout::{Layout, VmDir};
use crate::snapshot::{Manifest, ManifestError, rename_durably};
use crate::vmm::{DeltaFiles, ExitReason, Instance, RestoreSpec, StateSource, Vmm, VmmError};
use dormouse_core::guest::ThawSpec;
use dormouse_core::limits;
use dormouse_core::microvm::Record;
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

/// Why a suspend or a resume failed, and what is left.
#[derive(Debug, thiserror::Error)]
pub enum Setback {
    /// The MicroVM is as it was before: running, or kept whole on disk.
    #[error("{0}")]
    Unharmed(#[source] LifecycleError),
    /// Its state is gone.
    #[error("{0}")]
    Lost(#[source] LifecycleError),
}

fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> LifecycleError {
    move |source| LifecycleError::Io { action, source }
}

impl Host {
    /// Restores the image's snapshot and thaws the app.
    pub async fn launch(&self, record: &Record) -> Result<Arc<dyn Instance>, LifecycleError> {
        // Whatever an earlier attempt left never served a request: begin again.
        self.teardown(record, None).await?;
        let dir = self.layout.vm(&record.id);
        let build = self.layout.build(&record.build);
        let manifest = Manifest::load(&build, self.vmm.name()).await?;
        create_dir(dir.path())?;
        disk::create_overlay(&build.disk(), &dir.disk()).await?;
        let state = StateSource::Golden(build.state());
        let spec = self.restore_spec(record, &dir, &manifest, state);
        let machine: Arc<dyn Instance> = Arc::from(self.vmm.restore(&spec).await?);
        self.thaw(record, &*machine).await?;
        Ok(machine)
    }

    /// Freezes the app, keeps memory and disk, ends the machine. `machine` is none only where a crash came
    /// between the whole snapshot and the machine's end.
    pub async fn suspend(
        &self,
        record: &Record,
        machine: Option<&dyn Instance>,
        gate: &Gate,
    ) -> Result<(), Setback> {
        let dir = self.layout.vm(&record.id);
        if let Some(machine) = machine
            && !exists(&dir.suspended()).await
        {
            gate.drain(limits::DRAIN_QUIET, limits::DRAIN_TIMEOUT).await;
            if let Err(error) = keep(&dir, machine).await {
                self.run_on(record, &dir, machine)
                    .await
                    .map_err(Setback::Lost)?;
                return Err(Setback::Unharmed(error));
            }
        }
        // The snapshot is whole and has its name: from here on the MicroVM is asleep, come what may.
        gate.cut();
        if let Err(error) = self.vmm.reap(dir.path()).await {
            tracing::error!(microvm = %record.id, %error, "machine of suspended microvm did not end");
        }
        Ok(())
    }

    /// Takes a failed suspend back. What has the snapshot's name loses it before the machine runs: the two
    /// would no longer agree.
    async fn run_on(
        &self,
        record: &Record,
        dir: &VmDir,
        machine: &dyn Instance,
    ) -> Result<(), LifecycleError> {
        match tokio::fs::rename(dir.suspended(), dir.suspending()).await {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(LifecycleError::Io {
                    action: "take snapshot back",
                    source,
                });
            }
            _ => {}
        }
        if let Err(error) = remove_tree(&dir.suspending()).await {
            tracing::warn!(microvm = %record.id, %error, "half a snapshot was not deleted");
        }
        self.thaw(record, machine).await
    }

    /// Restores what was kept and thaws the app.
    pub async fn resume(&self, record: &Record) -> Result<Arc<dyn Instance>, Setback> {
        let dir = self.layout.vm(&record.id);
        let kept = tokio::fs::try_exists(dir.suspended()).await;
        let machine = if kept
            .map_err(io_error("find snapshot"))
            .map_err(Setback::Unharmed)?
        {
            let machine = self
                .restore_kept(record, &dir)
                .await
                .map_err(Setback::Unharmed)?;
            // From the rename on the machine may write to its disk, so the snapshot no longer fits it.
            if let Err(source) = rename_durably(&dir.suspended(), &dir.consumed()).await {
                self.vmm
                    .reap(dir.path())
                    .await
                    .map_err(|e| Setback::Lost(e.into()))?;
                // It has not run. The rename may be done all the same, only not durably.
                let _ = tokio::fs::rename(dir.consumed(), dir.suspended()).await;
                let error = LifecycleError::Io {
                    action: "take snapshot into use",
                    source,
                };
                return Err(Setback::Unharmed(error));
            }
            machine
        } else {
            // A crash came after the rename: the machine is there, or its state is gone.
            let gone = || VmmError::Gone("the machine ended while it was being resumed".to_owned());
            let adopted = self.adopt(record).await.map_err(Setback::Lost)?;
            adopted.ok_or_else(|| Setback::Lost(gone().into()))?
        };
        self.thaw(record, &*machine).await.map_err(Setback::Lost)?;
        if let Err(error) = remove_tree(&dir.consumed()).await {
            tracing::warn!(microvm = %record.id, %error, "used snapshot was not deleted");
        }
        Ok(machine)
    }

    /// Finds the machine that an earlier daemon left running, with its app thawed.
    pub async fn adopt(
        &self,
        record: &Record,
    ) -> Result<Option<Arc<dyn Instance>>, LifecycleError> {
        let dir = self.layout.vm(&record.id);
        Ok(self.vmm.adopt(dir.path()).await?.map(Arc::from))
    }

    /// Ends the machine, orderly where it still listens, and deletes the MicroVM's files.
    pub async fn teardown(
        &self,
        record: &Record,
        machine: Option<&dyn Instance>,
    ) -> Result<(), LifecycleError> {
        if let Some(machine) = machine {
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
            state,
        }
    }

    /// Runs a paused machine and gives it time, entropy and a name before its app runs on.
    async fn thaw(&self, record: &Record, machine: &dyn Instance) -> Result<(), LifecycleError> {
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
                hostname: record.id.as_str().to_owned(),
            };
            Guest::new(machine)
                .thaw_restored(limits::LAUNCH_TIMEOUT, spec)
                .await?;
            let took_ms = began.elapsed().as_millis();
            tracing::debug!(microvm = %record.id, took_ms, "microvm thawed");
            Ok(())
        };
        while_alive(machine, limits::LAUNCH_TIMEOUT, "thaw", thaw).await
    }
}

/// Writes the snapshot of a running machine under its final name.
async fn keep(dir: &VmDir, machine: &dyn Instance) -> Result<(), LifecycleError> {
    let write = async {
        // A suspend that a crash cut off may have left it paused, and then its agent is silent.
        machine.resume().await?;
        Guest::new(machine).freeze().await?;
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
        reason = machine.exited() => Err(VmmError::Gone(match reason {
            ExitReason::PoweredOff => "it powered itself off".to_owned(),
            ExitReason::Crashed(how) => how,
        }).into()),
    }
}

fn delta_files(folder: &Path) -> DeltaFiles {
    DeltaFiles {
        state: folder.join("state"),
        memory: folder.join("memory"),
    }
}

async fn exists(path: &Path) -> bool {
    tokio::fs::try_exists(path).await.unwrap_or(false)
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
