//! RUN: its command, its environment and its mounts.

use super::instruction::{Command, Run, is_one_document};
use super::mount::{Kind, Mount, Owner};
use super::stage::{StagePlanner, join};
use super::{
    DockerfileError, FileOwner, MountKind, PROXY_ARGS, RunMount, RunStep, Source, invalid,
};

/// Where a script that a here-document holds is mounted, as in BuildKit.
const SCRIPTS: &str = "/dev/pipes";
/// Largest user or group number, as in Docker.
const ID_MAX: u32 = i32::MAX.unsigned_abs();

impl StagePlanner<'_> {
    pub(super) fn run(&mut self, line: usize, run: &Run) -> Result<RunStep, DockerfileError> {
        let mut mounts = run
            .mounts
            .iter()
            .map(|mount| self.mount(line, mount))
            .collect::<Result<Vec<_>, _>>()?;
        let argv = match (&run.command, run.documents.as_slice()) {
            (Command::Shell(text), [document]) if is_one_document(text) => {
                let content = document.content();
                if content.starts_with("#!") {
                    let target = format!("{SCRIPTS}/{}", document.name.replace('/', "_"));
                    mounts.push(RunMount {
                        target: target.clone(),
                        kind: MountKind::Script { content },
                    });
                    self.in_shell(target)
                } else {
                    self.in_shell(content)
                }
            }
            (Command::Shell(text), documents) => {
                // The shell reads the documents itself.
                let mut whole = text.clone();
                for document in documents {
                    whole.push('\n');
                    whole.push_str(&document.raw);
                    whole.push_str(&document.name);
                }
                self.in_shell(whole)
            }
            (command, _) => self.argv(command),
        };
        let env = self.run_env();
        Ok(RunStep {
            argv,
            proxies: self.proxies(&env),
            env,
            cwd: self.config.cwd().to_owned(),
            user: self.config.user.clone(),
            mounts,
            offline: run.offline,
        })
    }

    /// The environment that the Dockerfile gives: ENV over the ARGs in scope.
    fn run_env(&self) -> Vec<(String, String)> {
        let mut env = self.config.clone();
        for (name, value) in &self.args {
            if env.env(name).is_none() {
                env.set_env(name, value.clone());
            }
        }
        env.env
    }

    /// The proxies that the build was given, but those that `env` has.
    fn proxies(&self, env: &[(String, String)]) -> Vec<(String, String)> {
        let is_set = |name: &str| env.iter().any(|(known, _)| known == name);
        let given = PROXY_ARGS
            .iter()
            .filter_map(|name| self.build_args.get_key_value(*name));
        let given = given.filter(|(name, _)| !is_set(name));
        given
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    fn mount(&mut self, line: usize, mount: &Mount) -> Result<RunMount, DockerfileError> {
        let written = self.word(line, &mount.target)?;
        let mut target = if written.is_empty() {
            String::new()
        } else {
            join(self.config.cwd(), &written)
        };
        let kind = match &mount.kind {
            Kind::Bind {
                from,
                source,
                writable,
            } => MountKind::Bind {
                from: from
                    .as_ref()
                    .map_or(Source::Context, |from| self.froms[from].clone()),
                path: join("/", &self.word(line, source)?),
                writable: *writable,
            },
            Kind::Cache {
                id,
                read_only,
                owner,
            } => MountKind::Cache {
                id: match id {
                    Some(id) => self.word(line, id)?,
                    None => target.clone(),
                },
                read_only: *read_only,
                owner: self.owner(line, owner, 0o755)?,
            },
            Kind::Tmpfs { size } => MountKind::Tmpfs {
                bytes: size.as_ref().map(|raw| self.size(line, raw)).transpose()?,
            },
            Kind::Secret {
                id,
                required,
                env,
                owner,
            } => {
                let id = match id {
                    Some(id) => self.word(line, id)?,
                    None => base_name(&target).to_owned(),
                };
                if target.is_empty() && env.is_none() {
                    target = format!("/run/secrets/{}", base_name(&id));
                }
                MountKind::Secret {
                    id,
                    required: *required,
                    env: env.clone(),
                    owner: self.owner(line, owner, 0o400)?,
                }
            }
        };
        let may_lack_target = matches!(&kind, MountKind::Secret { env: Some(_), .. });
        if target == "/" || (target.is_empty() && !may_lack_target) {
            return Err(invalid(line, format!("--mount: `{written}` is no target")));
        }
        Ok(RunMount { target, kind })
    }

    fn owner(
        &mut self,
        line: usize,
        owner: &Owner,
        mode: u32,
    ) -> Result<FileOwner, DockerfileError> {
        let mut number = |what: &str, raw: &Option<String>, radix, default, max| {
            let Some(raw) = raw else { return Ok(default) };
            let text = self.word(line, raw)?;
            let number = u32::from_str_radix(&text, radix).ok();
            number
                .filter(|number| *number <= max)
                .ok_or_else(|| invalid(line, format!("--mount: {what}={text} is out of range")))
        };
        Ok(FileOwner {
            mode: number("mode", &owner.mode, 8, mode, 0o7777)?,
            uid: number("uid", &owner.uid, 10, 0, ID_MAX)?,
            gid: number("gid", &owner.gid, 10, 0, ID_MAX)?,
        })
    }

    /// A size as in `64m`, in bytes.
    fn size(&mut self, line: usize, raw: &str) -> Result<u64, DockerfileError> {
        let text = self.word(line, raw)?;
        let lower = text.to_ascii_lowercase();
        let digits = lower.trim_end_matches(|c: char| !c.is_ascii_digit());
        let shift = match &lower[digits.len()..] {
            "" | "b" => Some(0),
            "k" | "kb" => Some(10),
            "m" | "mb" => Some(20),
            "g" | "gb" => Some(30),
            _ => None,
        };
        let bytes = digits.parse::<u64>().ok().zip(shift);
        bytes
            .and_then(|(number, shift)| number.checked_mul(1 << shift))
            .ok_or_else(|| invalid(line, format!("--mount: size={text} is no size, as in 64m")))
    }
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
