//! The steps that are not copies: a command, or a folder.

use super::log::StepLog;
use super::stages::Build;
use super::vm::BuildVm;
use super::{BuildError, blocking, remove, trust};
use crate::guest::Guest;
use crate::layout::BuildDir;
use dormouse_core::guest::{CopySpec, ExecSpec, Mount, Mounted, ProcessSpec};
use dormouse_core::{limits, shown};
use dormouse_image::{FileOwner, MountKind, RunMount, RunStep, Source, Step, StepKind};
use std::path::PathBuf;
use std::sync::Arc;

/// A tar's end mark alone.
const EMPTY_TAR: &[u8] = &[0; 1024];

/// Where the build VM keeps its socket and bookkeeping.
pub(super) fn run_dir(dir: &BuildDir) -> PathBuf {
    dir.scratch().join("build-vm")
}

/// Carries out one step.
pub(super) async fn run(
    build: Build<'_>,
    vm: &BuildVm,
    step: &Step,
    log: StepLog<'_>,
) -> Result<(), BuildError> {
    match &step.kind {
        StepKind::Run(run) => return run_command(build, vm, run, step.line, log).await,
        StepKind::Workdir { path, owner } => {
            let spec = CopySpec {
                dest: path.clone(),
                owner: owner.clone(),
                as_file: false,
            };
            let made = vm
                .guest()
                .copy(&spec, std::io::Cursor::new(EMPTY_TAR))
                .await;
            made.map_err(BuildError::in_guest(step.line))?;
        }
        // Copies have a module of their own; the rest is no work.
        StepKind::Copy(_) | StepKind::Config => {}
    }
    log.done();
    Ok(())
}

async fn run_command(
    build: Build<'_>,
    vm: &BuildVm,
    run: &RunStep,
    line: usize,
    mut log: StepLog<'_>,
) -> Result<(), BuildError> {
    let guest = vm.guest();
    let mut mounting = Mounting {
        build,
        vm,
        line,
        env: [run.env.as_slice(), &run.proxies].concat(),
        mounts: Vec::new(),
        trees: Vec::new(),
    };
    for mount in &run.mounts {
        mounting.add(mount).await?;
    }
    let mut process = ProcessSpec {
        argv: run.argv.clone(),
        env: mounting.env,
        cwd: run.cwd.clone(),
        user: run.user.clone(),
        timeout_s: Some(limits::BUILD_STEP_TIMEOUT_S),
    };
    let cas = build.job.extra_cas.as_deref();
    trust::lend(guest, cas, &mut process).await?;
    let spec = ExecSpec {
        process,
        mounts: mounting.mounts,
        offline: run.offline,
    };
    let exit = guest.exec(&spec, |output| log.output(&output)).await;
    let exit = exit.map_err(BuildError::in_guest(line))?;
    let command = shown(run.argv.join(" "), limits::INSTRUCTION_SHOWN_CHARS_MAX);
    if exit.timed_out {
        let limit_s = limits::BUILD_STEP_TIMEOUT_S;
        return Err(BuildError::StepTimedOut {
            line,
            command,
            limit_s,
        });
    }
    if exit.code != 0 {
        return Err(BuildError::StepFailed {
            line,
            command,
            code: exit.code,
        });
    }
    trust::take_back(guest, cas).await?;
    for tree in mounting.trees {
        guest.delete_tree(&tree).await?;
    }
    log.done();
    Ok(())
}

/// What a command sees besides the image's own files, as the agent is told.
struct Mounting<'m> {
    build: Build<'m>,
    vm: &'m BuildVm,
    line: usize,
    env: Vec<(String, String)>,
    mounts: Vec<Mount>,
    /// Parts of the build context that were sent for this command.
    trees: Vec<String>,
}

impl Mounting<'_> {
    async fn add(&mut self, mount: &RunMount) -> Result<(), BuildError> {
        let what = match &mount.kind {
            MountKind::Bind {
                from: Source::Context,
                path,
                writable,
            } => self.context(path, *writable).await?,
            MountKind::Bind { from, path, .. } => Mounted::Tree {
                tree: self.vm.tree_of(from).ok_or(BuildError::Stopped)?,
                path: path.clone(),
                writable: false,
            },
            MountKind::Cache {
                id,
                read_only,
                owner,
            } => Mounted::Cache {
                // An id may be any text; its hex is a file name.
                name: cache_name(id),
                writable: !read_only,
                mode: owner.mode,
                uid: owner.uid,
                gid: owner.gid,
            },
            MountKind::Tmpfs { bytes } => Mounted::Tmpfs { bytes: *bytes },
            MountKind::Script { content } => {
                let owner = FileOwner {
                    mode: 0o755,
                    uid: 0,
                    gid: 0,
                };
                file(content.as_bytes(), owner)
            }
            MountKind::Secret {
                id,
                required,
                env,
                owner,
            } => {
                let Some(secret) = self.build.job.secrets.0.get(id) else {
                    return self.without_secret(id, *required);
                };
                if let Some(name) = env {
                    let text = String::from_utf8_lossy(secret).into_owned();
                    self.env.retain(|(known, _)| known != name);
                    self.env.push((name.clone(), text));
                }
                if mount.target.is_empty() {
                    return Ok(());
                }
                file(secret, *owner)
            }
        };
        self.mounts.push(Mount {
            target: mount.target.clone(),
            what,
        });
        Ok(())
    }

    fn without_secret(&self, id: &str, required: bool) -> Result<(), BuildError> {
        if !required {
            return Ok(());
        }
        Err(BuildError::Refused {
            line: self.line,
            problem: format!("secret {id}: not found"),
        })
    }

    /// Sends a part of the build context.
    async fn context(&mut self, path: &str, writable: bool) -> Result<Mounted, BuildError> {
        let name = format!("context-{}", self.trees.len());
        let tar = self.build.dir.scratch().join("tree.tar");
        let context = Arc::clone(&self.build.prepared.context);
        let (path, draft, line) = (path.to_owned(), tar.clone(), self.line);
        let tree = blocking(move || {
            let file = std::fs::File::create(&draft).map_err(BuildError::io("create tar"))?;
            let written = context.tree_tar(&path, std::io::BufWriter::new(file));
            written.map_err(|source| BuildError::Copy { line, source })
        })
        .await?;
        put_tree(self.vm.guest(), &name, &tar, self.line).await?;
        remove(&tar).await?;
        self.trees.push(name.clone());
        Ok(Mounted::Tree {
            tree: name,
            path: format!("/{}", tree.file.unwrap_or_default()),
            writable,
        })
    }
}

async fn put_tree(
    guest: Guest<'_>,
    name: &str,
    tar: &std::path::Path,
    line: usize,
) -> Result<(), BuildError> {
    let tar = tokio::fs::File::open(tar)
        .await
        .map_err(BuildError::io("open tar"))?;
    let put = guest.put_tree(name, tar).await;
    put.map_err(BuildError::in_guest(line))
}

fn file(content: &[u8], owner: FileOwner) -> Mounted {
    Mounted::File {
        content_hex: hex::encode(content),
        mode: owner.mode,
        uid: owner.uid,
        gid: owner.gid,
    }
}

fn cache_name(id: &str) -> String {
    use aws_lc_rs::digest;
    let digest = digest::digest(&digest::SHA256, id.as_bytes());
    hex::encode(&digest.as_ref()[..16])
}
