//! The Dockerfile's steps, run in a build VM that boots only when the cache lacks a step.

use super::layers::{LayerDisk, Layers};
use super::log::{BuildLog, StepLog};
use super::{BuildError, Prepared, blocking, create_dirs, remove};
use crate::disk;
use crate::guest::Guest;
use crate::layout::BuildDir;
use crate::lifecycle::Host;
use crate::vmm::{BootSpec, Instance};
use dormouse_core::guest::{CopySpec, ProcessSpec};
use dormouse_core::limits;
use dormouse_image::{CopyStep, RunStep, Step, StepKind, layer};
use std::path::PathBuf;
use std::sync::Arc;

/// Where the build VM keeps its socket and bookkeeping.
pub(super) fn run_dir(dir: &BuildDir) -> PathBuf {
    dir.scratch().join("build-vm")
}

/// A build VM, and the disk that it writes to now: the layer of the step under way.
struct BuildVm {
    machine: Box<dyn Instance>,
    layer: LayerDisk,
}

/// Carries out the plan's steps; answers the disk after the last one.
pub(super) async fn run(
    host: &Host,
    layers: &Layers,
    dir: &BuildDir,
    prepared: &Prepared,
    log: &BuildLog,
) -> Result<PathBuf, BuildError> {
    let steps = &prepared.plan.steps;
    let mut disk = prepared.base_disk.clone();
    let mut key = prepared.base_digest.clone();
    let mut vm: Option<BuildVm> = None;
    for (number, step) in (1..).zip(steps) {
        let step_log = log.step(number, steps.len(), &step.text);
        key = layer::key(&key, step, copy_digest(prepared, step).await?.as_deref());
        if step.kind == StepKind::Config {
            step_log.done();
            continue;
        }
        if vm.is_none()
            && let Some(cached) = layers.find(&key).await
        {
            disk = cached;
            step_log.cached();
            continue;
        }
        let build_vm = match vm.take() {
            Some(running) => running,
            None => boot(host, layers, dir, &disk).await?,
        };
        let build_vm = vm.insert(build_vm);
        let done = run_step(build_vm, dir, prepared, step, step_log).await;
        if let Err(error) = done {
            remove(&build_vm.layer.path).await?;
            return Err(error);
        }
        disk = build_vm.layer.path.clone();
        seal(layers, build_vm, &key).await?;
    }
    if let Some(vm) = vm {
        vm.machine.kill().await?;
        // The layer after the last step: nothing was written to it.
        remove(&vm.layer.path).await?;
    }
    Ok(disk)
}

async fn copy_digest(prepared: &Prepared, step: &Step) -> Result<Option<String>, BuildError> {
    let StepKind::Copy(copy) = &step.kind else {
        return Ok(None);
    };
    let (context, copy, line) = (Arc::clone(&prepared.context), copy.clone(), step.line);
    blocking(move || match context.copy_output(&copy) {
        Ok(output) => Ok(Some(output.digest)),
        Err(source) => Err(BuildError::Copy { line, source }),
    })
    .await
}

async fn boot(
    host: &Host,
    layers: &Layers,
    dir: &BuildDir,
    disk: &std::path::Path,
) -> Result<BuildVm, BuildError> {
    let layer = layers.new_disk();
    disk::create_overlay(disk, &layer.path).await?;
    let run_dir = run_dir(dir);
    create_dirs(&run_dir).await?;
    let spec = BootSpec {
        run_dir,
        kernel: host.boot.kernel.clone(),
        initramfs: host.boot.initramfs.clone(),
        disk: layer.path.clone(),
        memory_mib: limits::BUILD_VM_MEMORY_MIB,
        vcpus: super::host_cpus(),
        golden_memory: None,
    };
    let machine = host.vmm.boot(&spec).await?;
    Guest::new(&*machine).hello(limits::BOOT_TIMEOUT).await?;
    Ok(BuildVm { machine, layer })
}

async fn run_step(
    vm: &BuildVm,
    dir: &BuildDir,
    prepared: &Prepared,
    step: &Step,
    log: StepLog<'_>,
) -> Result<(), BuildError> {
    let guest = Guest::new(&*vm.machine);
    match &step.kind {
        StepKind::Run(run) => return run_command(guest, run, step.line, log).await,
        StepKind::Copy(copy) => copy_files(guest, dir, prepared, copy, step.line).await?,
        StepKind::Workdir { path, owner } => {
            let spec = CopySpec {
                dest: path.clone(),
                owner: owner.clone(),
                as_file: false,
            };
            guest.copy(&spec, std::io::Cursor::new(EMPTY_TAR)).await?;
        }
        StepKind::Config => {}
    }
    log.done();
    Ok(())
}

/// A tar's end mark alone.
const EMPTY_TAR: &[u8] = &[0; 1024];

async fn run_command(
    guest: Guest<'_>,
    run: &RunStep,
    line: usize,
    mut log: StepLog<'_>,
) -> Result<(), BuildError> {
    let spec = ProcessSpec {
        argv: run.argv.clone(),
        env: run.env.clone(),
        cwd: run.cwd.clone(),
        user: run.user.clone(),
        timeout_s: Some(limits::BUILD_STEP_TIMEOUT_S),
    };
    let exit = guest.exec(&spec, |output| log.output(&output)).await?;
    let command = run.argv.join(" ");
    if exit.timed_out {
        let limit_s = limits::BUILD_STEP_TIMEOUT_S;
        return Err(BuildError::StepTimedOut {
            line,
            command,
            limit_s,
        });
    }
    if exit.code != 0 {
        log.exited(exit.code);
        return Err(BuildError::StepFailed {
            line,
            command,
            code: exit.code,
        });
    }
    log.done();
    Ok(())
}

async fn copy_files(
    guest: Guest<'_>,
    dir: &BuildDir,
    prepared: &Prepared,
    copy: &CopyStep,
    line: usize,
) -> Result<(), BuildError> {
    let path = dir.scratch().join("copy.tar");
    let (context, copy, tar) = (Arc::clone(&prepared.context), copy.clone(), path.clone());
    let output = blocking(move || {
        let file = std::fs::File::create(&tar).map_err(BuildError::io("create tar"))?;
        let written = context.copy_tar(&copy, std::io::BufWriter::new(file));
        written.map_err(|source| BuildError::Copy { line, source })
    })
    .await?;
    let tar = tokio::fs::File::open(&path)
        .await
        .map_err(BuildError::io("open tar"))?;
    guest.copy(&output.spec, tar).await?;
    remove(&path).await
}

/// Cuts the disk off after a step: what was written becomes a layer, and a new one lies on top of it.
async fn seal(layers: &Layers, vm: &mut BuildVm, key: &str) -> Result<(), BuildError> {
    let next = layers.new_disk();
    let guest = Guest::new(&*vm.machine);
    guest.freeze_disk().await?;
    vm.machine.switch_disk(&next.path).await?;
    guest.thaw_disk().await?;
    let done = std::mem::replace(&mut vm.layer, next);
    layers.publish(key, &done).await
}
