//! From a code artifact to a golden snapshot.
//!
//! ```text
//! artifact.zip ─▶ context ─▶ plan ─▶ steps in a build VM, each disk cached ─▶ fresh boot ─▶ app ready
//!                                                                           ─▶ frozen ─▶ snapshot
//! ```
//! The host only reads the archive and moves disks about: whatever runs customer code runs in a VM.

mod error;
mod golden;
mod hook;
mod layers;
mod log;
mod steps;

pub use error::BuildError;
pub use log::BuildLog;

use crate::disk;
use crate::layout::BuildDir;
use crate::lifecycle::Host;
use dormouse_core::image::{ReadyHook, SnapshotSizes};
use dormouse_core::{BuildId, limits};
use dormouse_image::{Context, LocalImages, Plan, dockerfile};
use layers::Layers;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// What to build.
#[derive(Debug, Clone)]
pub struct BuildJob {
    /// The build's name and its folder's.
    pub id: BuildId,
    /// The zip, already fetched.
    pub artifact: PathBuf,
    /// Baseline memory of the image in MiB; the guest sees its peak.
    pub memory_mib: u32,
    /// Variables that the app starts with, over the image's own.
    pub environment: BTreeMap<String, String>,
    /// How to ask the app whether it is ready.
    pub ready: Option<ReadyHook>,
}

/// How long the parts of a build took, in milliseconds.
#[derive(Debug, Default, Clone, Serialize)]
pub struct BuildTimes {
    /// Dockerfile steps, build VM included.
    pub steps_ms: u64,
    /// Start of the final VM to the app listening.
    pub cold_boot_ms: u64,
    /// Golden snapshot, app freeze included.
    pub snapshot_ms: u64,
    /// All of it.
    pub total_ms: u64,
}

/// Builds one image version. On failure nothing but the log is left of it.
pub async fn build(
    host: &Host,
    images: &LocalImages,
    job: &BuildJob,
    log: &BuildLog,
) -> Result<SnapshotSizes, BuildError> {
    let dir = host.layout.build(&job.id);
    clear(host, &job.id).await?;
    let result = match run(host, images, job, &dir, log).await {
        Err(error) if error.may_be_full_disk() && is_disk_full(&dir).await => {
            Err(BuildError::DiskFull)
        }
        result => result,
    };
    clear(host, &job.id).await?;
    if let Err(error) = &result {
        log.failed(error);
        for file in [dir.manifest(), dir.memory(), dir.state(), dir.disk()] {
            remove(&file).await?;
        }
    }
    result
}

/// Ends the machines of a build that is over or was given up, and deletes its scratch space.
pub async fn clear(host: &Host, id: &BuildId) -> Result<(), BuildError> {
    let dir = host.layout.build(id);
    for run_dir in [steps::run_dir(&dir), golden::run_dir(&dir)] {
        host.vmm.reap(&run_dir).await?;
    }
    remove(&dir.scratch()).await
}

async fn run(
    host: &Host,
    images: &LocalImages,
    job: &BuildJob,
    dir: &BuildDir,
    log: &BuildLog,
) -> Result<SnapshotSizes, BuildError> {
    let began = Instant::now();
    let mut times = BuildTimes::default();
    let context_dir = dir.scratch().join("context");
    create_dirs(&context_dir).await?;
    let prepared = prepare(images.clone(), job.artifact.clone(), context_dir).await?;
    log.line(&format!(
        "FROM {} ({})",
        prepared.plan.from, prepared.base_digest
    ));

    let layers = Layers::open(&host.layout.layers());
    let built = steps::run(host, &layers, dir, &prepared, log).await?;
    times.steps_ms = ms_since(began);

    let sizes = golden::make(host, job, dir, &prepared.plan, &built, log, &mut times).await?;
    times.total_ms = ms_since(began);
    log.line(&format!("DONE in {:.1} s", began.elapsed().as_secs_f64()));
    let text = serde_json::to_vec(&times).expect("numbers serialize");
    crate::snapshot::write_whole(&dir.times(), &text)
        .await
        .map_err(BuildError::io("write times"))?;
    Ok(sizes)
}

/// A context that is unpacked and a Dockerfile that is understood.
#[derive(Debug)]
struct Prepared {
    context: Arc<Context>,
    plan: Plan,
    base_disk: PathBuf,
    base_digest: String,
}

async fn prepare(
    images: LocalImages,
    artifact: PathBuf,
    context_dir: PathBuf,
) -> Result<Prepared, BuildError> {
    blocking(move || {
        dormouse_image::unpack(&artifact, &context_dir)?;
        let context = Context::open(&context_dir)?;
        let mut base = None;
        let plan = dockerfile::plan(&context.dockerfile()?, &BTreeMap::new(), |reference| {
            let image = images.resolve(reference)?;
            let config = image.config.clone();
            base = Some(image);
            Ok::<_, dormouse_image::LocalImageError>(config)
        })?;
        let base = base.expect("a plan has asked for its base image");
        let context = Arc::new(context);
        Ok(Prepared {
            context,
            plan,
            base_disk: base.disk,
            base_digest: base.digest,
        })
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BuildError> + Send + 'static,
) -> Result<T, BuildError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(BuildError::Stopped),
    }
}

async fn create_dirs(path: &Path) -> Result<(), BuildError> {
    tokio::fs::create_dir_all(path)
        .await
        .map_err(BuildError::io("create folder of build"))
}

async fn remove(path: &Path) -> Result<(), BuildError> {
    let removed = match tokio::fs::symlink_metadata(path).await {
        Ok(metadata) if metadata.is_dir() => tokio::fs::remove_dir_all(path).await,
        Ok(_) => tokio::fs::remove_file(path).await,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.map_err(BuildError::io("delete files of build"))
}

/// Asked before anything is deleted: a VM whose writes the host has no room for fails in many ways.
async fn is_disk_full(dir: &BuildDir) -> bool {
    let free = disk::free_bytes(dir.path()).await;
    free.is_ok_and(|free| free < limits::DISK_FULL_BYTES)
}

fn host_cpus() -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(cpus).unwrap_or(1)
}

fn ms_since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}
