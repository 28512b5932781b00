//! The stages of a Dockerfile: which of them, and which of their steps, must run at all.
//!
//! Every disk has a key that follows from the Dockerfile and its inputs alone, so all keys are known
//! before anything runs. From the last stage backwards it is then seen what the cache lacks: a stage
//! whose files nobody needs any more is not built.

use super::bases::Base as Image;
use super::log::BuildLog;
use super::vm::{self, BuildVm, Disks};
use super::{BuildError, BuildJob, Prepared, blocking, copying, disks, steps};
use crate::layers::Layers;
use crate::layout::BuildDir;
use crate::lifecycle::Host;
use dormouse_core::limits;
use dormouse_image::{Base, MountKind, Source, Stage, Step, StepKind, layer};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

/// What all parts of one build work with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Build<'a> {
    pub(super) host: &'a Host,
    pub(super) layers: &'a Layers,
    pub(super) dir: &'a BuildDir,
    pub(super) job: &'a BuildJob,
    pub(super) prepared: &'a Prepared,
    pub(super) log: &'a BuildLog,
}

/// What the cache says of a stage.
#[derive(Debug)]
struct Outlook {
    /// The key of the disk before the first step, and after each.
    keys: Vec<String>,
    /// How many steps need not run.
    done: usize,
    /// The disk after those; none when even what it begins from is to be made.
    disk: Option<PathBuf>,
}

/// Carries out the plan; answers the disk of its last stage.
pub(super) async fn run(build: Build<'_>) -> Result<PathBuf, BuildError> {
    let stages = &build.prepared.plan.stages;
    let mut outlooks = Vec::with_capacity(stages.len());
    for stage in stages {
        let keys = keys(build, stage, &outlooks).await?;
        outlooks.push(Outlook {
            keys,
            done: 0,
            disk: None,
        });
    }
    let needed = look_up(build, &mut outlooks).await?;
    let mut finished: Vec<Option<PathBuf>> = vec![None; stages.len()];
    for (index, (stage, outlook)) in stages.iter().zip(outlooks).enumerate() {
        // Whatever a build says of a stage that it does not need, it need not do.
        let outlook = match needed.contains(&index) {
            true => outlook,
            false => Outlook {
                done: stage.steps.len(),
                ..outlook
            },
        };
        finished[index] = build_stage(build, stage, outlook, &finished).await?;
    }
    let last = finished.pop().flatten();
    Ok(last.expect("the last stage is needed, so that its disk is there"))
}

/// The keys of a stage's disks.
async fn keys(
    build: Build<'_>,
    stage: &Stage,
    before: &[Outlook],
) -> Result<Vec<String>, BuildError> {
    let account = &build.job.account;
    let last = |stage: usize| before[stage].keys.last().cloned().unwrap_or_default();
    let image = |reference: &str| layer::base_key(account, &image(build, reference).digest);
    let mut key = match &stage.base {
        Base::Scratch => layer::base_key(account, disks::EMPTY_DIGEST),
        Base::Stage(from) => last(*from),
        Base::Image(reference) => image(reference),
    };
    let mut keys = vec![key.clone()];
    for step in &stage.steps {
        let mut inputs = Vec::new();
        for source in sources(step) {
            match source {
                Source::Context => inputs.push(context_digest(build, step, inputs.len()).await?),
                Source::Stage(from) => inputs.push(last(*from)),
                Source::Image(reference) => inputs.push(image(reference)),
            }
        }
        key = layer::key(&key, step, &inputs);
        keys.push(key.clone());
    }
    Ok(keys)
}

/// What a step takes files from, in the order in which it names them.
fn sources(step: &Step) -> Vec<&Source> {
    match &step.kind {
        StepKind::Copy(copy) => vec![&copy.from],
        StepKind::Run(run) => run
            .mounts
            .iter()
            .filter_map(|mount| match &mount.kind {
                MountKind::Bind { from, .. } => Some(from),
                _ => None,
            })
            .collect(),
        StepKind::Workdir { .. } | StepKind::Config => Vec::new(),
    }
}

/// The digest of what a step's source of this number is in the build context.
async fn context_digest(
    build: Build<'_>,
    step: &Step,
    number: usize,
) -> Result<String, BuildError> {
    let (context, kind, line) = (
        Arc::clone(&build.prepared.context),
        step.kind.clone(),
        step.line,
    );
    blocking(move || {
        let digest = match &kind {
            StepKind::Copy(copy) => context.copy_output(copy).map(|output| output.digest),
            StepKind::Run(run) => {
                let mut binds = run.mounts.iter().filter_map(|mount| match &mount.kind {
                    MountKind::Bind { path, .. } => Some(path),
                    _ => None,
                });
                let path = binds.nth(number).map_or("/", String::as_str);
                let tree = context.tree_tar(path, std::io::sink());
                tree.map(|tree| tree.digest)
            }
            StepKind::Workdir { .. } | StepKind::Config => return Ok(String::new()),
        };
        digest.map_err(|source| BuildError::Copy { line, source })
    })
    .await
}

/// Finds what the cache has of the stages that are needed; answers which those are.
async fn look_up(
    build: Build<'_>,
    outlooks: &mut [Outlook],
) -> Result<BTreeSet<usize>, BuildError> {
    let stages = &build.prepared.plan.stages;
    let mut needed = BTreeSet::from([stages.len() - 1]);
    // No stage needs a later one.
    for index in (0..stages.len()).rev() {
        if !needed.contains(&index) {
            continue;
        }
        let (stage, outlook) = (&stages[index], &mut outlooks[index]);
        for done in (1..=stage.steps.len()).rev() {
            // A step that leaves the disk as it is has the key of the one before it.
            if outlook.keys[done] == outlook.keys[done - 1] {
                continue;
            }
            if let Some(disk) = build.layers.find(&outlook.keys[done]).await {
                (outlook.done, outlook.disk) = (done, Some(disk));
                break;
            }
        }
        if outlook.disk.is_none() {
            match &stage.base {
                Base::Stage(from) => drop(needed.insert(*from)),
                Base::Image(reference) => {
                    outlook.disk = Some(image(build, reference).disk.clone());
                }
                Base::Scratch => outlook.disk = Some(disks::empty(&build.host.layout).await?),
            }
        }
        let stages_of = |source: &Source| match source {
            Source::Stage(stage) => Some(*stage),
            Source::Context | Source::Image(_) => None,
        };
        let left = stage.steps[outlook.done..].iter();
        needed.extend(left.flat_map(sources).filter_map(stages_of));
    }
    Ok(needed)
}

/// Runs what is left of a stage; answers its disk, or none when that is not needed.
async fn build_stage(
    build: Build<'_>,
    stage: &Stage,
    outlook: Outlook,
    finished: &[Option<PathBuf>],
) -> Result<Option<PathBuf>, BuildError> {
    let mut vm = None;
    let carried_out = carry_out(build, stage, outlook, finished, &mut vm).await;
    // However it went: while the machine lives it writes to the account's cache, which is let go of with it.
    let ended = match vm {
        Some(vm) => vm.end().await,
        None => Ok(()),
    };
    let disk = carried_out?;
    ended?;
    Ok(disk)
}

/// Carries out the steps in a machine that is left in `vm`.
async fn carry_out(
    build: Build<'_>,
    stage: &Stage,
    outlook: Outlook,
    finished: &[Option<PathBuf>],
    vm: &mut Option<BuildVm>,
) -> Result<Option<PathBuf>, BuildError> {
    let of = stage.steps.len();
    let name = (build.prepared.plan.stages.len() > 1).then_some(stage.name.as_str());
    let mut disk = outlook.disk.or_else(|| match stage.base {
        Base::Stage(from) => finished[from].clone(),
        Base::Image(_) | Base::Scratch => None,
    });
    for (at, step) in stage.steps.iter().enumerate() {
        let step_log = build.log.step(name, at + 1, of, &step.text);
        if step.kind == StepKind::Config {
            step_log.done();
            continue;
        }
        if at < outlook.done {
            step_log.cached();
            continue;
        }
        let running = match vm {
            Some(running) => running,
            None => {
                let from = disk.as_ref().ok_or(BuildError::Stopped)?;
                let disks = attached(build, &stage.steps[at..], finished).await?;
                let started = vm.insert(vm::start(build, from, disks).await?);
                started.guest().hello(limits::BOOT_TIMEOUT).await?;
                started
            }
        };
        match &step.kind {
            StepKind::Copy(copy) => {
                copying::run(build, running, copy, step.line).await?;
                step_log.done();
            }
            _ => steps::run(build, running, step, step_log).await?,
        }
        disk = Some(running.seal(build.layers, &outlook.keys[at + 1]).await?);
    }
    Ok(disk)
}

/// The disks that steps take files from, and that of the caches they use.
async fn attached(
    build: Build<'_>,
    steps: &[Step],
    finished: &[Option<PathBuf>],
) -> Result<Disks, BuildError> {
    let mut disks = Disks::default();
    for source in steps.iter().flat_map(sources) {
        let path = match source {
            Source::Context => continue,
            Source::Stage(stage) => finished[*stage].clone().ok_or(BuildError::Stopped)?,
            Source::Image(reference) => image(build, reference).disk.clone(),
        };
        disks.add_source(source, path);
    }
    let has_cache = |step: &Step| match &step.kind {
        StepKind::Run(run) => run
            .mounts
            .iter()
            .any(|mount| matches!(mount.kind, MountKind::Cache { .. })),
        _ => false,
    };
    if steps.iter().any(has_cache) {
        let cache = disks::take_cache(&build.host.layout, &build.job.account).await?;
        disks.add_cache(cache);
    }
    Ok(disks)
}

/// An image of the plan; `prepare` has found all of them.
fn image<'b>(build: Build<'b>, reference: &str) -> &'b Image {
    &build.prepared.bases[reference]
}
