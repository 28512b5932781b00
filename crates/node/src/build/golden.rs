//! The final boot: the app starts on the finished disk, is frozen once it is ready, and the machine is
//! snapshotted around it.

use super::log::BuildLog;
use super::{BuildError, BuildJob, BuildTimes, create_dirs, hook, ms_since, remove};
use crate::disk;
use crate::guest::{Guest, GuestError};
use crate::layout::BuildDir;
use crate::lifecycle::Host;
use crate::snapshot::Manifest;
use crate::vmm::BootSpec;
use dormouse_core::guest::{self, AppState, ProcessSpec};
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
    for file in [dir.manifest(), dir.memory(), dir.state(), dir.disk()] {
        remove(&file).await?;
    }
    disk::create_overlay(built, &dir.disk()).await?;
    let spec = boot_spec(host, job, dir);
    create_dirs(&spec.run_dir).await?;
    log.line("booting from the finished disk");
    let began = Instant::now();
    let machine = host.vmm.boot(&spec).await?;
    let guest = Guest::new(&*machine);
    guest.hello(limits::BOOT_TIMEOUT).await?;
    start_app(guest, job, plan).await?;
    wait_until_ready(guest, job, log, began, times).await?;

    let began = Instant::now();
    guest.freeze().await?;
    machine.snapshot_golden(&dir.state()).await?;
    machine.kill().await?;
    let sizes = finish(host, dir, built, &spec).await?;
    times.snapshot_ms = ms_since(began);
    log.line(&format!("snapshot: {} MiB of memory", sizes.memory >> 20));
    Ok(sizes)
}

fn boot_spec(host: &Host, job: &BuildJob, dir: &BuildDir) -> BootSpec {
    BootSpec {
        run_dir: run_dir(dir),
        kernel: host.boot.kernel.clone(),
        initramfs: host.boot.initramfs.clone(),
        disk: dir.disk(),
        memory_mib: job.memory_mib * limits::MEMORY_PEAK_FACTOR,
        vcpus: limits::peak_vcpus(job.memory_mib).min(super::host_cpus()),
        golden_memory: Some(dir.memory()),
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
    match guest.start_app(&spec).await {
        Ok(_) => Ok(()),
        Err(GuestError::Refused { message, .. }) => Err(BuildError::AppNotStarted(message)),
        Err(error) => Err(error.into()),
    }
}

/// Ready is what the hook says. Without a hook the app is ready a moment after it listens or rests.
async fn wait_until_ready(
    guest: Guest<'_>,
    job: &BuildJob,
    log: &BuildLog,
    boot_began: Instant,
    times: &mut BuildTimes,
) -> Result<(), BuildError> {
    let waited = async {
        match job.ready {
            Some(hook) => hook::wait_ready(guest, hook).await?,
            None => wait_settled(guest).await,
        }
        times.cold_boot_ms = ms_since(boot_began);
        if job.ready.is_none() {
            sleep(limits::SETTLE).await;
        }
        Ok(())
    };
    let mut logs = AppLogs {
        guest,
        log,
        next: 0,
    };
    let result = tokio::select! {
        ready = waited => ready,
        died = logs.follow_until_exit() => Err(died),
    };
    logs.fetch().await?;
    result
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

/// Carries the app's output into the build log.
struct AppLogs<'a> {
    guest: Guest<'a>,
    log: &'a BuildLog,
    next: u64,
}

impl AppLogs<'_> {
    async fn fetch(&mut self) -> Result<(), BuildError> {
        let (bytes, next) = self.guest.app_logs(self.next).await?;
        self.next = next;
        self.log.app_output(&bytes);
        Ok(())
    }

    /// Comes back only when the app has ended, or the machine with it.
    async fn follow_until_exit(&mut self) -> BuildError {
        loop {
            let status = match self.guest.app().await {
                Ok(status) => status,
                Err(error) => return error.into(),
            };
            if status.state == AppState::Exited {
                return BuildError::AppExited {
                    code: status.exit.map_or(-1, |exit| exit.code),
                };
            }
            if let Err(error) = self.fetch().await {
                return error;
            }
            sleep(Duration::from_millis(250)).await;
        }
    }
}

/// Makes the snapshot durable and, last, usable.
async fn finish(
    host: &Host,
    dir: &BuildDir,
    built: &Path,
    spec: &BootSpec,
) -> Result<SnapshotSizes, BuildError> {
    for file in [dir.memory(), dir.state(), dir.disk()] {
        let file = tokio::fs::File::open(&file)
            .await
            .map_err(BuildError::io("open snapshot"))?;
        file.sync_all()
            .await
            .map_err(BuildError::io("sync snapshot"))?;
    }
    let manifest = Manifest {
        format: Manifest::FORMAT,
        vmm: host.vmm.name().to_owned(),
        boot: host.boot.hash.clone(),
        memory_mib: spec.memory_mib,
        vcpus: spec.vcpus,
        agent_generation: guest::GENERATION,
    };
    manifest
        .save(dir)
        .await
        .map_err(BuildError::io("write snapshot manifest"))?;
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
