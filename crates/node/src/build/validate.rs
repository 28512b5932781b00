//! The validate hook: a new machine, restored from the snapshot as a launch would be, says whether it works.
//!
//! Whatever it changes is discarded. What it touches of the golden memory on its way is what launches will
//! need first: its working set.

use super::app_log::AppLog;
use super::log::BuildLog;
use super::{BuildError, create_dirs, hook};
use crate::disk;
use crate::guest::Guest;
use crate::layout::BuildDir;
use crate::lifecycle::Host;
use crate::vmm::{Instance, RestoreSpec, StateSource};
use crate::working_set::WorkingSet;
use dormouse_core::MicrovmId;
use dormouse_core::egress::Egress;
use dormouse_core::hook::HookCall;
use std::path::PathBuf;
use uuid::Uuid;

/// Where the machine keeps its socket and bookkeeping.
pub(super) fn run_dir(dir: &BuildDir) -> PathBuf {
    dir.scratch().join("validate-vm")
}

/// The machine that was snapshotted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Snapshotted {
    /// Guest memory in MiB.
    pub(super) memory_mib: u32,
    /// Number of vCPUs.
    pub(super) vcpus: u32,
    /// The byte of the app's output that comes first after the snapshot.
    pub(super) output: u64,
}

/// Restores the snapshot that lies in `dir` and polls the hook.
pub(super) async fn run(
    host: &Host,
    dir: &BuildDir,
    made: Snapshotted,
    call: HookCall,
    log: &BuildLog,
) -> Result<WorkingSet, BuildError> {
    log.phase("validating the snapshot");
    let run_dir = run_dir(dir);
    create_dirs(&run_dir).await?;
    let disk = run_dir.join("disk.qcow2");
    disk::create_overlay(&dir.disk(), &disk).await?;
    let spec = RestoreSpec {
        run_dir,
        disk,
        memory_mib: made.memory_mib,
        vcpus: made.vcpus,
        golden_memory: dir.memory(),
        golden_disk: dir.disk(),
        state: StateSource::Golden(dir.state()),
        egress: Egress::internet(),
    };
    let machine = host.vmm.restore(&spec).await?;
    let touched = works(host, &*machine, made.output, call, log).await;
    machine.kill().await?;
    let working_set = WorkingSet::new(touched?);
    let mib = working_set.pages() >> 8;
    log.line(&format!("working set: {mib} MiB of memory"));
    Ok(working_set)
}

async fn works(
    host: &Host,
    machine: &dyn Instance,
    output: u64,
    call: HookCall,
    log: &BuildLog,
) -> Result<Vec<std::ops::Range<u64>>, BuildError> {
    // A name of its own, as each clone has.
    let name = MicrovmId::new(Uuid::new_v4());
    host.thaw(name.as_str(), machine).await?;
    let guest = Guest::new(machine);
    let polled = AppLog::new(guest, log, output).follow(hook::poll(guest, call, log));
    match polled.await {
        Ok(_) => Ok(machine.touched_pages().await?),
        Err(BuildError::AppExited { code }) => Err(BuildError::ExitedInValidation { code }),
        Err(error) => Err(error),
    }
}
