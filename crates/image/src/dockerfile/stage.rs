//! What each instruction of a stage does: steps, and changes of the configuration.

use super::expand::{Expander, Scope};
use super::instruction::{Command, Instruction, Op};
use super::lexer::Text;
use super::planner::borrow;
use super::{DockerfileError, Source, Step, StepKind, invalid};
use crate::config::ImageConfig;
use dormouse_core::limits;
use std::collections::BTreeMap;

/// A stage while it is being planned.
#[derive(Debug)]
pub(super) struct StagePlanner<'p> {
    pub(super) expander: &'p mut Expander,
    pub(super) build_args: &'p BTreeMap<String, String>,
    pub(super) global_args: &'p BTreeMap<String, String>,
    /// What follows `from=`, by its place in the plan.
    pub(super) froms: &'p BTreeMap<String, Source>,
    /// ARGs in scope now.
    pub(super) args: BTreeMap<String, String>,
    pub(super) config: ImageConfig,
    /// Whether this stage has said CMD, which ENTRYPOINT then leaves alone.
    pub(super) cmd_is_set: bool,
    pub(super) steps: Vec<Step>,
}

impl StagePlanner<'_> {
    /// Carries out what the base image wants done in a build that begins from it. What goes wrong is
    /// told of `line`, the FROM.
    pub(super) fn triggers(&mut self, line: usize) -> Result<(), DockerfileError> {
        for trigger in std::mem::take(&mut self.config.onbuild) {
            for mut trigger_line in Text::parse(&trigger)?.lines {
                trigger_line.number = line;
                let instruction = Instruction::parse(trigger_line, '\\')?;
                if instruction.froms().next().is_some() || matches!(instruction.op, Op::From(_)) {
                    let problem = format!(
                        "the base image's trigger `{}` needs another image",
                        instruction.text
                    );
                    return Err(invalid(line, problem));
                }
                self.step(&instruction)?;
            }
        }
        Ok(())
    }

    pub(super) fn step(&mut self, instruction: &Instruction) -> Result<(), DockerfileError> {
        let line = instruction.line;
        let kind = match &instruction.op {
            Op::Arg(args) => return self.arg(line, args),
            Op::Run(run) => StepKind::Run(self.run(line, run)?),
            Op::Copy(copy) => StepKind::Copy(self.copy(line, copy)?),
            Op::Workdir(raw) => self.workdir(line, raw)?,
            other => {
                self.configure(line, other)?;
                StepKind::Config
            }
        };
        if self.steps.len() == limits::DOCKERFILE_STEPS_MAX {
            let max = limits::DOCKERFILE_STEPS_MAX;
            return Err(DockerfileError::TooManySteps { line, max });
        }
        self.steps.push(Step {
            line,
            text: instruction.text.clone(),
            kind,
        });
        Ok(())
    }

    fn arg(
        &mut self,
        line: usize,
        args: &[(String, Option<String>)],
    ) -> Result<(), DockerfileError> {
        for (name, default) in args {
            let scope = in_force(&self.args, &self.config);
            let default = default.as_ref().map(|raw| self.expander.word(raw, &scope));
            let default = default
                .transpose()
                .map_err(|problem| invalid(line, problem))?;
            let value = self.build_args.get(name).cloned().or(default);
            if let Some(value) = value.or_else(|| self.global_args.get(name).cloned()) {
                self.args.insert(name.clone(), value);
            }
        }
        self.check_size(line)
    }

    fn workdir(&mut self, line: usize, raw: &str) -> Result<StepKind, DockerfileError> {
        let path = self.word(line, raw)?;
        if path.is_empty() {
            return Err(invalid(line, "WORKDIR is empty; is its variable set?"));
        }
        self.config.cwd = join(self.config.cwd(), &path);
        let owner = self.config.user.clone();
        Ok(StepKind::Workdir {
            path: self.config.cwd.clone(),
            owner,
        })
    }

    /// Applies an instruction that changes the configuration and nothing else.
    fn configure(&mut self, line: usize, op: &Op) -> Result<(), DockerfileError> {
        match op {
            Op::Env(pairs) => {
                for (name, value) in self.pairs(line, pairs)? {
                    self.config.set_env(&name, value);
                }
            }
            Op::Label(pairs) => {
                let labels = self.pairs(line, pairs)?;
                self.config.labels.extend(labels);
            }
            Op::Expose(words) => self.expose(line, words)?,
            Op::User(raw) => {
                let name = self.word(line, raw)?;
                self.config.user = user(line, name)?;
            }
            Op::Cmd(command) => {
                self.config.cmd = self.argv(command);
                self.cmd_is_set = true;
            }
            Op::Entrypoint(command) => {
                self.config.entrypoint = self.argv(command);
                if !self.cmd_is_set {
                    self.config.cmd.clear();
                }
            }
            Op::Shell(words) => self.config.shell.clone_from(words),
            Op::Volume(words) => self.volume(line, words)?,
            Op::StopSignal(raw) => {
                let signal = self.word(line, raw)?;
                if !is_signal(&signal) {
                    return Err(invalid(
                        line,
                        format!("`{signal}` is no signal, as in SIGTERM or 15"),
                    ));
                }
                self.config.stop_signal = Some(signal);
            }
            Op::Healthcheck(check) => self.config.healthcheck = Some(check.clone()),
            Op::Onbuild(trigger) => self.config.onbuild.push(trigger.clone()),
            Op::Maintainer(author) => self.config.author = Some(author.clone()),
            // These are steps, or are told apart before.
            Op::From(_) | Op::Arg(_) | Op::Run(_) | Op::Copy(_) | Op::Workdir(_) => {}
        }
        self.check_size(line)
    }

    fn expose(&mut self, line: usize, raw: &[String]) -> Result<(), DockerfileError> {
        let expanded = self.words(line, raw.iter().map(String::as_str))?;
        for port in expanded.iter().flat_map(|words| words.split_whitespace()) {
            let port = exposed_port(port).ok_or_else(|| {
                invalid(line, format!("`{port}` is no port, as in 8080 or 53/udp"))
            })?;
            if !self.config.exposed.contains(&port) {
                self.config.exposed.push(port);
            }
        }
        Ok(())
    }

    fn volume(&mut self, line: usize, raw: &[String]) -> Result<(), DockerfileError> {
        let volumes = self.words(line, raw.iter().map(String::as_str))?;
        for volume in volumes {
            if volume.is_empty() {
                return Err(invalid(line, "a volume is empty; is its variable set?"));
            }
            if !self.config.volumes.contains(&volume) {
                self.config.volumes.push(volume);
            }
        }
        Ok(())
    }

    fn pairs(
        &mut self,
        line: usize,
        raw: &[(String, String)],
    ) -> Result<Vec<(String, String)>, DockerfileError> {
        let words = raw
            .iter()
            .flat_map(|(name, value)| [name.as_str(), value.as_str()]);
        let flat = self.words(line, words)?;
        let pairs: Vec<_> = flat
            .chunks_exact(2)
            .map(|pair| (pair[0].clone(), pair[1].clone()))
            .collect();
        let is_bad = |name: &str| name.is_empty() || name.contains('=');
        if pairs.iter().any(|(name, _)| is_bad(name)) {
            return Err(invalid(line, "a name is empty or contains `=`"));
        }
        Ok(pairs)
    }

    /// A command's words, the shell's before them when it is in shell form.
    pub(super) fn argv(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(words) => words.clone(),
            Command::Shell(text) => self.in_shell(text.clone()),
        }
    }

    pub(super) fn in_shell(&self, text: String) -> Vec<String> {
        let mut argv = self.config.shell.clone();
        if argv.is_empty() {
            argv = vec!["/bin/sh".to_owned(), "-c".to_owned()];
        }
        argv.push(text);
        argv
    }

    pub(super) fn word(&mut self, line: usize, raw: &str) -> Result<String, DockerfileError> {
        let words = self.words(line, std::iter::once(raw))?;
        Ok(words.concat())
    }

    /// Expands words with the values from before the instruction that they stand in.
    pub(super) fn words<'w>(
        &mut self,
        line: usize,
        raw: impl Iterator<Item = &'w str>,
    ) -> Result<Vec<String>, DockerfileError> {
        let scope = in_force(&self.args, &self.config);
        raw.map(|word| {
            let expanded = self.expander.word(word, &scope);
            expanded.map_err(|problem| invalid(line, problem))
        })
        .collect()
    }

    pub(super) fn document(&mut self, line: usize, raw: &str) -> Result<String, DockerfileError> {
        let scope = in_force(&self.args, &self.config);
        let expanded = self.expander.document(raw, &scope);
        expanded.map_err(|problem| invalid(line, problem))
    }

    /// A step carries the whole environment, so it must stay small.
    fn check_size(&self, line: usize) -> Result<(), DockerfileError> {
        let config = &self.config;
        let env = config
            .env
            .iter()
            .map(|(name, value)| name.len() + value.len());
        let maps = config
            .labels
            .iter()
            .chain(&self.args)
            .chain(self.global_args);
        let maps = maps.map(|(name, value)| name.len() + value.len());
        let lists = [
            &config.entrypoint,
            &config.cmd,
            &config.exposed,
            &config.shell,
            &config.onbuild,
            &config.volumes,
        ];
        let words = lists.into_iter().flatten().map(String::len);
        let bytes: usize = env.chain(maps).chain(words).sum();
        if bytes > limits::IMAGE_CONFIG_BYTES_MAX {
            let max = limits::IMAGE_CONFIG_BYTES_MAX;
            let problem = format!("the image's variables, labels and command pass {max} bytes");
            return Err(invalid(line, problem));
        }
        Ok(())
    }
}

/// What a word may refer to within the stage: ENV wins over ARG.
fn in_force<'s>(args: &'s BTreeMap<String, String>, config: &'s ImageConfig) -> Scope<'s> {
    let mut scope = borrow(args);
    let env = config.env.iter();
    scope.extend(env.map(|(name, value)| (name.as_str(), value.as_str())));
    scope
}

/// An absolute path without `.`, `..` or a trailing `/`: `path` as seen from `cwd`.
pub(super) fn join(cwd: &str, path: &str) -> String {
    let from = if path.starts_with('/') { "" } else { cwd };
    let mut parts = Vec::new();
    for part in from.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

pub(super) fn user(line: usize, name: String) -> Result<String, DockerfileError> {
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && c != '/';
    let (user, group) = name.split_once(':').unwrap_or((&name, "0"));
    if user.is_empty() || group.is_empty() || group.contains(':') || !name.chars().all(plain) {
        return Err(invalid(
            line,
            format!("`{name}` is no user, as in app, app:app or 1000:1000"),
        ));
    }
    Ok(name)
}

/// A signal by its name, with or without SIG, or by its number.
fn is_signal(text: &str) -> bool {
    const NAMES: &str = "ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF PWR QUIT \
                         RTMAX RTMIN SEGV STKFLT STOP SYS TERM TRAP TSTP TTIN TTOU URG USR1 USR2 VTALRM \
                         WINCH XCPU XFSZ";
    const NUMBER_MAX: u8 = 64;
    if let Ok(number) = text.parse::<u8>() {
        return (1..=NUMBER_MAX).contains(&number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let real_time = ["RTMIN+", "RTMAX-"]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix));
    match real_time {
        Some(offset) => offset.parse::<u8>().is_ok_and(|offset| offset <= 30),
        None => NAMES.split_whitespace().any(|known| known == name),
    }
}

/// A port as it is stored: `8080/tcp`, or `8000-8010/tcp` for a range.
fn exposed_port(text: &str) -> Option<String> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let digits = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    let first_number: u16 = first.parse().ok()?;
    let last_number: u16 = last.parse().ok()?;
    let protocol = protocol.to_ascii_lowercase();
    let valid = matches!(protocol.as_str(), "tcp" | "udp" | "sctp")
        && digits(first)
        && digits(last)
        && first_number > 0
        && first_number <= last_number;
    valid.then(|| format!("{ports}/{protocol}"))
}
