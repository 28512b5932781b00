//! From a code artifact to a golden snapshot.
//!
//! ```text
//! artifact.zip ─▶ context ─▶ plan ─▶ steps in a build VM, each disk cached ─▶ fresh boot ─▶ app ready
//!                                                                ─▶ frozen ─▶ snapshot ─▶ validated
//! ```
//! The host only reads the archive and moves disks about: whatever runs customer code runs in a VM.

mod app_log;
mod bases;
mod copying;
mod disks;
mod error;
mod fetch;
mod golden;
mod hook;
mod log;
mod stages;
mod steps;
mod trust;
mod validate;
mod vm;

pub use error::BuildError;
pub use fetch::FetchError;
pub use log::BuildLog;
pub use trust::ExtraCas;

use crate::disk;
use crate::layout::BuildDir;
use crate::lifecycle::Host;
use dormouse_core::hook::Hooks;
use dormouse_core::image::SnapshotSizes;
use dormouse_core::{AccountId, BuildId, limits};
use dormouse_image::{BaseImages, Context, Plan, dockerfile};
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
    /// The account that the image belongs to: it shares its layer cache with no other.
    pub account: AccountId,
    /// The zip, already fetched.
    pub artifact: PathBuf,
    /// Baseline memory of the image in MiB; the guest sees its peak.
    pub memory_mib: u32,
    /// Variables that the app starts with, over the image's own.
    pub environment: BTreeMap<String, String>,
    /// The image's hooks.
    pub hooks: Hooks,
    /// Whether the app keeps every capability.
    pub all_capabilities: bool,
    /// Build arguments, as `docker build --build-arg` gives them; proxy variables among them.
    pub build_args: BTreeMap<String, String>,
    /// What `RUN --mount=type=secret` may ask for, by its id.
    pub secrets: BuildSecrets,
    /// CAs that the build trusts besides the image's own.
    pub extra_cas: Option<Arc<ExtraCas>>,
}

/// Secrets of a build, by id. They are in no log, cache key or layer.
#[derive(Clone, Default)]
pub struct BuildSecrets(pub BTreeMap<String, Vec<u8>>);

impl std::fmt::Debug for BuildSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
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
    /// Restore and validate hook; zero without one.
    pub validate_ms: u64,
    /// All of it.
    pub total_ms: u64,
}

/// Builds one image version. On failure nothing but the log is left of it.
pub async fn build(
    host: &Host,
    images: &BaseImages,
    job: &BuildJob,
    log: &BuildLog,
) -> Result<SnapshotSizes, BuildError> {
    let dir = host.layout.build(&job.id);
    clear(host, &job.id).await?;
    let mut result = run(host, images, job, &dir, log).await;
    if let Err(error) = &result
        && error.is_lost_machine()
    {
        // Nothing of the attempt is kept but layers that were whole, so a second one costs little. A kernel
        // that dies by itself is seen now and then under nested virtualization.
        log.line("the build's machine was lost: trying once more");
        tracing::info!(build = %job.id, error = dormouse_core::chain(error), "machine of build lost; trying once more");
        clear(host, &job.id).await?;
        result = run(host, images, job, &dir, log).await;
    }
    let result = match result {
        Err(error) if error.may_be_full_disk() && is_disk_full(&dir).await => {
            Err(BuildError::DiskFull)
        }
        result => result,
    };
    let dockerfile = match &result {
        Err(error) if error.line().is_some() => read_dockerfile(&dir).await,
        _ => None,
    };
    clear(host, &job.id).await?;
    if let Err(error) = &result {
        log.failed(error, dockerfile.as_deref());
        for file in dir.golden_files() {
            remove(&file).await?;
        }
    }
    result
}

/// Ends the machines of a build that is over or was given up, and deletes its scratch space.
pub async fn clear(host: &Host, id: &BuildId) -> Result<(), BuildError> {
    let dir = host.layout.build(id);
    let run_dirs = [
        steps::run_dir(&dir),
        golden::run_dir(&dir),
        validate::run_dir(&dir),
    ];
    for run_dir in run_dirs {
        host.vmm.reap(&run_dir).await?;
    }
    remove(&dir.scratch()).await
}

async fn run(
    host: &Host,
    images: &BaseImages,
    job: &BuildJob,
    dir: &BuildDir,
    log: &BuildLog,
) -> Result<SnapshotSizes, BuildError> {
    let began = Instant::now();
    let mut times = BuildTimes::default();
    let context_dir = context_dir(dir);
    create_dirs(&context_dir).await?;
    let prepared = prepare(images, job, context_dir, log).await?;
    for (reference, base) in &prepared.bases {
        log.line(&format!("FROM {reference} ({})", base.digest));
    }

    // Held until the golden disk lies over them.
    let layers = host.layers.for_build(&job.account);
    let build = stages::Build {
        host,
        layers: &layers,
        dir,
        job,
        prepared: &prepared,
        log,
    };
    let built = stages::run(build).await?;
    times.steps_ms = ms_since(began);

    let sizes = golden::make(host, job, dir, &prepared.plan, &built, log, &mut times).await?;
    times.total_ms = ms_since(began);
    log.finished();
    let text = serde_json::to_vec(&times).expect("numbers serialize");
    crate::snapshot::write_whole(&dir.times(), &text)
        .await
        .map_err(BuildError::io("write times"))?;
    Ok(sizes)
}

fn context_dir(dir: &BuildDir) -> PathBuf {
    dir.scratch().join("context")
}

/// The Dockerfile of a build that failed, to quote from. It is hostile still, and may be gone.
async fn read_dockerfile(dir: &BuildDir) -> Option<Vec<u8>> {
    let context_dir = context_dir(dir);
    let read = blocking(move || Ok(Context::open(&context_dir)?.dockerfile()?));
    read.await.ok()
}

/// A context that is unpacked and a Dockerfile that is understood.
#[derive(Debug)]
struct Prepared {
    context: Arc<Context>,
    plan: Plan,
    /// The images that the plan names.
    bases: BTreeMap<String, bases::Base>,
}

async fn prepare(
    images: &BaseImages,
    job: &BuildJob,
    context_dir: PathBuf,
    log: &BuildLog,
) -> Result<Prepared, BuildError> {
    let (artifact, args) = (job.artifact.clone(), job.build_args.clone());
    let (context, dockerfile, references) = blocking(move || {
        dormouse_image::unpack(&artifact, &context_dir)?;
        let context = Context::open(&context_dir)?;
        let dockerfile = context.dockerfile()?;
        let references = dockerfile::references(&dockerfile, &args)?;
        Ok((Arc::new(context), dockerfile, references))
    })
    .await?;
    let bases = bases::resolve(images, references, log).await?;
    let args = job.build_args.clone();
    // A Dockerfile may have megabytes of variables to expand.
    let (plan, bases) = blocking(move || {
        let plan = dockerfile::plan(&dockerfile, &args, |reference| {
            let base = bases.get(reference).ok_or(UnknownBase)?;
            Ok::<_, UnknownBase>(base.config.clone())
        })?;
        Ok((plan, bases))
    })
    .await?;
    Ok(Prepared {
        context,
        plan,
        bases,
    })
}

/// A plan asks for what `references` did not name; never so.
#[derive(Debug, thiserror::Error)]
#[error("the image was not looked for")]
struct UnknownBase;

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
