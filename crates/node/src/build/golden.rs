//! The final boot: the app starts on the finished disk, is frozen once it is ready, and the machine is
//! snapshotted around it. Where the image has a validate hook, the snapshot must pass it to be usable.

use super::app_log::AppLog;
use super::log::BuildLog;
use super::validate::{self, Snapshotted};
use super::{BuildError, BuildJob, BuildTimes, create_dirs, hook, ms_since, remove, trust};
use crate::checksum::Checksums;
use crate::disk;
use crate::guest::{Guest, GuestError};
use crate::layout::BuildDir;
use crate::lifecycle::Host;
use crate::snapshot::{Manifest, write_whole};
use crate::vmm::BootSpec;
use crate::working_set::WorkingSet;
use dormouse_core::guest::{self, AppSpec, ProcessSpec};
use dormouse_core::hook::Hook;
use dormouse_core::image::SnapshotSizes;
use dormouse_core::limits;
use dormouse_image::Plan;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// The port that the endpoint reaches when a request names none.
const DEFAULT_PORT: u16 = 8080;

/// Where the machine keeps its socket and bookkeeping.
pub(super) fn run_dir(dir: &BuildDir) -> PathBuf {
    dir.scratch().join("final-vm")
}

/// Boots from `built`, waits for the app and snapshots it.
pub(super) async fn make(
    host: &Host,
    job: &BuildJob,
    dir: &BuildDir,
    plan: &Plan,
    built: &Path,
    log: &BuildLog,
    times: &mut BuildTimes,
) -> Result<SnapshotSizes, BuildError> {
    for file in dir.golden_files() {
        remove(&file).await?;
    }
    let bytes = limits::disk_bytes(job.memory_mib);
    disk::create_larger_overlay(built, &dir.disk(), bytes).await?;
    let spec = boot_spec(host, job, dir);
    create_dirs(&spec.run_dir).await?;
    log.line("booting from the finished disk");
    let began = Instant::now();
    let machine = host.vmm.boot(&spec).await?;
    let guest = Guest::new(&*machine);
    guest.hello(limits::BOOT_TIMEOUT).await?;
    trust::keep(guest, job.extra_cas.as_deref()).await?;
    start_app(guest, job, plan).await?;
    let output = wait_until_ready(guest, job, log, began, times).await?;

    let began = Instant::now();
    guest.freeze().await?;
    machine.snapshot_golden(&dir.state()).await?;
    machine.kill().await?;
    sync(dir).await?;
    let sizes = measure(dir, built).await?;
    times.snapshot_ms = ms_since(began);
    log.line(&format!("snapshot: {} MiB of memory", sizes.memory >> 20));

    let mut manifest = Manifest {
        format: Manifest::FORMAT,
        vmm: host.vmm.name().to_owned(),
        boot: host.boot.hash.clone(),
        memory_mib: spec.memory_mib,
        vcpus: spec.vcpus,
        agent_generation: guest::GENERATION,
        working_set_pages: None,
        checksums: Some(checksums(dir).await?),
    };
    if let Some(call) = job.hooks.call(Hook::Validate) {
        let began = Instant::now();
        let made = Snapshotted {
            memory_mib: spec.memory_mib,
            vcpus: spec.vcpus,
            output,
        };
        let working_set = validate::run(host, dir, made, call, log).await?;
        keep_working_set(dir, &working_set).await?;
        manifest.working_set_pages = Some(working_set.pages());
        times.validate_ms = ms_since(began);
    }
    // Last: from here on the snapshot can be launched.
    manifest
        .save(dir)
        .await
        .map_err(BuildError::io("write snapshot manifest"))?;
    Ok(sizes)
}

fn boot_spec(host: &Host, job: &BuildJob, dir: &BuildDir) -> BootSpec {
    BootSpec {
        run_dir: run_dir(dir),
        kernel: host.boot.kernel.clone(),
        initramfs: host.boot.initramfs.clone(),
        disk: dir.disk(),
        memory_mib: job.memory_mib * limits::MEMORY_PEAK_FACTOR,
        vcpus: limits::peak_vcpus(job.memory_mib),
        golden_memory: Some(dir.memory()),
        disks: Vec::new(),
    }
}

async fn start_app(guest: Guest<'_>, job: &BuildJob, plan: &Plan) -> Result<(), BuildError> {
    let mut config = plan.config.clone();
    for (name, value) in &job.environment {
        config.set_env(name, value.clone());
    }
    let spec = ProcessSpec {
        argv: config.argv(),
        cwd: config.cwd().to_owned(),
        env: config.env,
        user: config.user,
        timeout_s: None,
    };
    let app = AppSpec {
        process: spec,
        all_capabilities: job.all_capabilities,
    };
    match guest.start_app(&app).await {
        Ok(_) => Ok(()),
        Err(GuestError::Refused { message, .. }) => Err(BuildError::AppNotStarted(message)),
        Err(error) => Err(error.into()),
    }
}

/// Ready is what the hook says. Without a hook the app is ready a moment after it listens or rests. Answers
/// with the byte of the app's output that comes next.
async fn wait_until_ready(
    guest: Guest<'_>,
    job: &BuildJob,
    log: &BuildLog,
    boot_began: Instant,
    times: &mut BuildTimes,
) -> Result<u64, BuildError> {
    let ready_hook = job.hooks.call(Hook::Ready);
    let waited = async {
        match ready_hook {
            Some(call) => hook::poll(guest, call, log).await?,
            None => wait_settled(guest).await,
        }
        times.cold_boot_ms = ms_since(boot_began);
        if ready_hook.is_none() {
            sleep(limits::SETTLE).await;
        }
        Ok(())
    };
    AppLog::new(guest, log, 0).follow(waited).await
}

/// Waits until the app listens, or has come to rest without: one that starts slowly is still busy.
async fn wait_settled(guest: Guest<'_>) {
    const POLL: Duration = Duration::from_millis(250);
    // CPU time in one poll below which an app counts as resting.
    const RESTING: Duration = Duration::from_millis(25);
    let deadline = Instant::now() + limits::SETTLE_MAX;
    let mut busy_at = Instant::now();
    let mut cpu_usec = 0;
    while Instant::now() < deadline && busy_at.elapsed() < limits::SETTLE_QUIET {
        if guest.tunnel(DEFAULT_PORT).await.is_ok() {
            return;
        }
        // An agent that does not answer is somebody else's to report.
        let now = guest.app().await.map_or(cpu_usec, |status| status.cpu_usec);
        if Duration::from_micros(now.saturating_sub(cpu_usec)) > RESTING {
            busy_at = Instant::now();
        }
        cpu_usec = now;
        sleep(POLL).await;
    }
}

/// Makes the snapshot durable.
async fn sync(dir: &BuildDir) -> Result<(), BuildError> {
    for file in [dir.memory(), dir.state(), dir.disk()] {
        let file = tokio::fs::File::open(&file)
            .await
            .map_err(BuildError::io("open snapshot"))?;
        file.sync_all()
            .await
            .map_err(BuildError::io("sync snapshot"))?;
    }
    Ok(())
}

async fn checksums(dir: &BuildDir) -> Result<Checksums, BuildError> {
    let dir = dir.clone();
    super::blocking(move || {
        Checksums::of_new(&dir)
            .map_err(|error| BuildError::io("checksum snapshot")(std::io::Error::other(error)))
    })
    .await
}

async fn measure(dir: &BuildDir, built: &Path) -> Result<SnapshotSizes, BuildError> {
    let allocated = async |path: &Path| {
        disk::allocated_bytes(path)
            .await
            .map_err(BuildError::io("measure snapshot"))
    };
    Ok(SnapshotSizes {
        memory: allocated(&dir.memory()).await? + allocated(&dir.state()).await?,
        code: allocated(built).await?,
        disk: allocated(&dir.disk()).await?,
    })
}

async fn keep_working_set(dir: &BuildDir, working_set: &WorkingSet) -> Result<(), BuildError> {
    let kept = async {
        let bytes = working_set.encode()?;
        write_whole(&dir.working_set(), &bytes).await
    };
    kept.await.map_err(BuildError::io("write working set"))
}
