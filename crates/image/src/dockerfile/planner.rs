//! From instructions to steps: what is in scope where, and what each instruction changes.

use super::expand::{Expander, Scope};
use super::source::{Source, invalid, is_remote, unsupported};
use super::{CopyStep, DockerfileError, PROXY_ARGS, Plan, RunStep, Step, StepKind};
use crate::config::ImageConfig;
use dormouse_core::limits;
use parse_dockerfile::{
    ArgInstruction, Command, Flag, FromInstruction, Instruction, RunInstruction,
    Source as CopySource, UnescapedString,
};
use std::collections::BTreeMap;

/// What Docker sets when the base image says nothing.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Debug)]
pub(super) struct Planner<'a, 't> {
    source: &'a Source<'t>,
    expander: Expander,
    build_args: &'a BTreeMap<String, String>,
    /// ARGs from before FROM, and those that describe the platform.
    global_args: BTreeMap<String, String>,
    /// ARGs in scope now.
    args: BTreeMap<String, String>,
    config: ImageConfig,
    /// Whether this Dockerfile has said CMD, which ENTRYPOINT then leaves alone.
    cmd_is_set: bool,
    steps: Vec<Step>,
}

impl<'a, 't> Planner<'a, 't> {
    pub(super) fn new(source: &'a Source<'t>, build_args: &'a BTreeMap<String, String>) -> Self {
        Self {
            source,
            expander: Expander::new(source.escape, limits::DOCKERFILE_EXPANDED_BYTES_MAX),
            build_args,
            global_args: platform_args(),
            args: BTreeMap::new(),
            config: ImageConfig::default(),
            cmd_is_set: false,
            steps: Vec::new(),
        }
    }

    pub(super) fn plan<E>(
        mut self,
        base: impl FnOnce(&str) -> Result<ImageConfig, E>,
    ) -> Result<Plan, DockerfileError>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let mut base = Some(base);
        let mut reference = None;
        let source = self.source;
        for instruction in &source.instructions {
            let line = source.line(instruction);
            match (instruction, &reference) {
                (Instruction::From(from), _) => {
                    let name = self.base_reference(line, from)?;
                    let lookup = base
                        .take()
                        .ok_or_else(|| invalid(line, "there is a second FROM"))?;
                    let found = lookup(&name).map_err(|error| DockerfileError::Base {
                        line,
                        reference: name.clone(),
                        source: Box::new(error),
                    })?;
                    self.inherit(found);
                    reference = Some(name);
                }
                (Instruction::Arg(arg), None) => self.global_arg(line, arg)?,
                (Instruction::Arg(arg), Some(_)) => self.stage_arg(line, arg)?,
                (_, Some(_)) => self.step(line, instruction)?,
                (_, None) => return Err(invalid(line, "an instruction comes before FROM")),
            }
        }
        let from = reference.ok_or_else(|| invalid(1, "there is no FROM"))?;
        if self.config.argv().is_empty() {
            return Err(DockerfileError::NoCommand);
        }
        Ok(Plan {
            from,
            steps: self.steps,
            config: self.config,
        })
    }

    fn base_reference(
        &mut self,
        line: usize,
        from: &FromInstruction<'_>,
    ) -> Result<String, DockerfileError> {
        let scope = borrow(&self.global_args);
        let mut expand = |raw: &str| {
            self.expander
                .word(raw, &scope)
                .map_err(|problem| invalid(line, problem))
        };
        for option in &from.options {
            let value = option
                .value
                .as_ref()
                .map_or("", |value| value.value.as_ref());
            if option.name.value != "platform" {
                return Err(invalid(
                    line,
                    format!("FROM has no option --{}", option.name.value),
                ));
            }
            let platform = expand(value)?;
            let host = &self.global_args["TARGETPLATFORM"];
            if platform != "linux/amd64" && platform != *host {
                let what = format!("FROM --platform={platform}");
                return Err(unsupported(
                    line,
                    what,
                    "remove it; images run on this host's CPU",
                ));
            }
        }
        let name = expand(&from.image.value)?;
        match name.as_str() {
            "" => Err(invalid(line, "FROM names no image; is its ARG set?")),
            "scratch" => Err(unsupported(
                line,
                "FROM scratch",
                "begin with an image that has files",
            )),
            _ => Ok(name),
        }
    }

    fn inherit(&mut self, base: ImageConfig) {
        self.config = base;
        if self.config.env("PATH").is_none() {
            self.config
                .env
                .push(("PATH".to_owned(), PATH_DEFAULT.to_owned()));
        }
    }

    fn global_arg(&mut self, line: usize, arg: &ArgInstruction<'_>) -> Result<(), DockerfileError> {
        for word in self.expander.split(&arg.arguments.value) {
            let (name, default) = name_and_default(line, &word)?;
            let scope = borrow(&self.global_args);
            let default = default
                .map(|raw| self.expander.word(raw, &scope))
                .transpose();
            let default = default.map_err(|problem| invalid(line, problem))?;
            if let Some(value) = self.build_args.get(name).cloned().or(default) {
                self.global_args.insert(name.to_owned(), value);
            }
        }
        self.check_size(line)
    }

    fn stage_arg(&mut self, line: usize, arg: &ArgInstruction<'_>) -> Result<(), DockerfileError> {
        let mut declared = Vec::new();
        let scope = in_force(&self.args, &self.config);
        for word in self.expander.split(&arg.arguments.value) {
            let (name, default) = name_and_default(line, &word)?;
            let default = default
                .map(|raw| self.expander.word(raw, &scope))
                .transpose();
            let default = default.map_err(|problem| invalid(line, problem))?;
            let value = self.build_args.get(name).cloned().or(default);
            let value = value.or_else(|| self.global_args.get(name).cloned());
            declared.extend(value.map(|value| (name.to_owned(), value)));
        }
        self.args.extend(declared);
        self.check_size(line)
    }

    fn step(&mut self, line: usize, instruction: &Instruction<'_>) -> Result<(), DockerfileError> {
        let kind = match instruction {
            Instruction::Run(run) => self.run(line, run)?,
            Instruction::Copy(copy) => {
                self.copy(line, &copy.options, &copy.src, &copy.dest, false)?
            }
            Instruction::Add(add) => self.copy(line, &add.options, &add.src, &add.dest, true)?,
            Instruction::Workdir(workdir) => self.workdir(line, &workdir.arguments)?,
            other => {
                self.configure(line, other)?;
                StepKind::Config
            }
        };
        let text = self.source.display(instruction);
        self.steps.push(Step {
            line,
            text,
            kind,
            config: self.config.clone(),
        });
        Ok(())
    }

    fn run(&self, line: usize, run: &RunInstruction<'_>) -> Result<StepKind, DockerfileError> {
        let argv = match (&run.arguments, run.here_docs.first()) {
            (Command::Shell(arguments), Some(document)) => {
                shell(self.source.here_doc_command(run, document, arguments.value))
            }
            (command, _) => self.argv(line, command)?,
        };
        if argv.is_empty() {
            return Err(invalid(line, "RUN has no command"));
        }
        let mut env = self.config.clone();
        let proxies = PROXY_ARGS
            .iter()
            .filter_map(|name| self.build_args.get_key_value(*name));
        for (name, value) in self.args.iter().chain(proxies) {
            if env.env(name).is_none() {
                env.set_env(name, value.clone());
            }
        }
        Ok(StepKind::Run(RunStep {
            argv,
            env: env.env,
            cwd: self.config.cwd().to_owned(),
            user: self.config.user.clone(),
        }))
    }

    /// The argument vector of a command; empty when it has no words.
    fn argv(&self, line: usize, command: &Command<'_>) -> Result<Vec<String>, DockerfileError> {
        let argv = match command {
            Command::Exec(words) => words
                .value
                .iter()
                .map(|word| word.value.to_string())
                .collect(),
            Command::Shell(text) if text.value.is_empty() => Vec::new(),
            Command::Shell(text) => shell(self.source.join(text.value)),
            // The parser may learn more forms; an empty command is refused.
            _ => Vec::new(),
        };
        argv.iter().try_for_each(|word| refuse_nul(line, word))?;
        Ok(argv)
    }

    fn copy(
        &mut self,
        line: usize,
        options: &[Flag<'_>],
        sources: &[CopySource<'_>],
        dest: &UnescapedString<'_>,
        is_add: bool,
    ) -> Result<StepKind, DockerfileError> {
        let raw = sources.iter().filter_map(|source| match source {
            CopySource::Path(path) => Some(path.value.as_ref()),
            _ => None,
        });
        let sources = self.words(line, raw)?;
        if sources.iter().any(String::is_empty) {
            return Err(invalid(line, "a source is empty; is its variable set?"));
        }
        if let Some(remote) = sources.iter().find(|source| is_add && is_remote(source)) {
            let what = format!("ADD of a URL, `{remote}`,");
            return Err(unsupported(
                line,
                what,
                "put the file into the archive, or RUN curl",
            ));
        }
        let dest = self.word(line, &dest.value)?;
        let is_folder =
            dest.is_empty() || dest.ends_with('/') || dest == "." || dest.ends_with("/.");
        let mut dest = join(self.config.cwd(), &dest);
        if is_folder && dest != "/" {
            dest.push('/');
        }
        if sources.len() > 1 && !dest.ends_with('/') {
            let problem = "several sources are copied, so the destination must end in `/`";
            return Err(invalid(line, problem));
        }
        let mut owner = String::new();
        let mut chmod = None;
        for option in options {
            let value = option
                .value
                .as_ref()
                .map_or("", |value| value.value.as_ref());
            let value = self.word(line, value)?;
            match option.name.value.as_ref() {
                "chown" => owner = user(line, value)?,
                "chmod" => chmod = Some(mode(line, &value)?),
                _ => {}
            }
        }
        Ok(StepKind::Copy(CopyStep {
            sources,
            dest,
            owner,
            chmod,
            is_add,
        }))
    }

    fn workdir(
        &mut self,
        line: usize,
        raw: &UnescapedString<'_>,
    ) -> Result<StepKind, DockerfileError> {
        let path = self.word(line, &raw.value)?;
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
    fn configure(
        &mut self,
        line: usize,
        instruction: &Instruction<'_>,
    ) -> Result<(), DockerfileError> {
        match instruction {
            Instruction::Env(env) => {
                for (name, value) in self.pairs(line, &env.arguments.value)? {
                    self.config.set_env(&name, value);
                }
            }
            Instruction::Label(label) => {
                let labels = self.pairs(line, &label.arguments.value)?;
                self.config.labels.extend(labels);
            }
            Instruction::Expose(expose) => self.expose(line, &expose.arguments)?,
            Instruction::User(raw) => {
                let name = self.word(line, &raw.arguments.value)?;
                self.config.user = user(line, name)?;
            }
            Instruction::Cmd(cmd) => {
                self.config.cmd = self.argv(line, &cmd.arguments)?;
                self.cmd_is_set = true;
            }
            Instruction::Entrypoint(entrypoint) => {
                self.config.entrypoint = self.argv(line, &entrypoint.arguments)?;
                if !self.cmd_is_set {
                    self.config.cmd.clear();
                }
            }
            _ => return Err(unsupported(line, "this instruction", "remove it")),
        }
        self.check_size(line)
    }

    fn expose(&mut self, line: usize, raw: &[UnescapedString<'_>]) -> Result<(), DockerfileError> {
        let expanded = self.words(line, raw.iter().map(|word| word.value.as_ref()))?;
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

    /// The names and values of an ENV or a LABEL, in either of its two forms.
    fn pairs(&mut self, line: usize, raw: &str) -> Result<Vec<(String, String)>, DockerfileError> {
        let words = self.expander.split(raw);
        let mut pairs = Vec::new();
        if words.first().is_some_and(|first| first.contains('=')) {
            for word in &words {
                let problem = || invalid(line, format!("`{word}` is not of the form name=value"));
                pairs.push(word.split_once('=').ok_or_else(problem)?);
            }
        } else {
            // `ENV name the rest is the value`
            let pair = raw.trim_start().split_once(char::is_whitespace);
            let (name, value) = pair.ok_or_else(|| invalid(line, "a name has no value"))?;
            pairs.push((name, value.trim_start()));
        }
        let flat = self.words(
            line,
            pairs.into_iter().flat_map(|(name, value)| [name, value]),
        )?;
        let expanded: Vec<_> = flat
            .chunks_exact(2)
            .map(|pair| (pair[0].clone(), pair[1].clone()))
            .collect();
        if expanded
            .iter()
            .any(|(name, _)| name.is_empty() || name.contains('='))
        {
            return Err(invalid(line, "a name is empty or contains `=`"));
        }
        Ok(expanded)
    }

    fn word(&mut self, line: usize, raw: &str) -> Result<String, DockerfileError> {
        let words = self.words(line, std::iter::once(raw))?;
        Ok(words.concat())
    }

    /// Expands words with the values from before the instruction that they stand in.
    fn words<'w>(
        &mut self,
        line: usize,
        raw: impl Iterator<Item = &'w str>,
    ) -> Result<Vec<String>, DockerfileError> {
        let scope = in_force(&self.args, &self.config);
        raw.map(|word| {
            refuse_nul(line, word)?;
            self.expander
                .word(word, &scope)
                .map_err(|problem| invalid(line, problem))
        })
        .collect()
    }

    /// Every step carries the configuration, so it must stay small.
    fn check_size(&self, line: usize) -> Result<(), DockerfileError> {
        let env = self
            .config
            .env
            .iter()
            .map(|(name, value)| name.len() + value.len());
        let maps = self
            .config
            .labels
            .iter()
            .chain(&self.args)
            .chain(&self.global_args);
        let maps = maps.map(|(name, value)| name.len() + value.len());
        let words = self
            .config
            .entrypoint
            .iter()
            .chain(&self.config.cmd)
            .chain(&self.config.exposed);
        let bytes: usize = env.chain(maps).chain(words.map(String::len)).sum();
        if bytes > limits::IMAGE_CONFIG_BYTES_MAX {
            let max = limits::IMAGE_CONFIG_BYTES_MAX;
            return Err(invalid(
                line,
                format!("the image's variables, labels and command pass {max} bytes"),
            ));
        }
        Ok(())
    }
}

/// JSON can spell a NUL byte, which no path and no argument may hold.
fn refuse_nul(line: usize, word: &str) -> Result<(), DockerfileError> {
    if word.contains('\0') {
        Err(invalid(line, "there is a NUL byte"))
    } else {
        Ok(())
    }
}

/// Arguments that say what is built on what; both are this host.
fn platform_args() -> BTreeMap<String, String> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let of = |prefix: &str| {
        [
            (format!("{prefix}PLATFORM"), format!("linux/{arch}")),
            (format!("{prefix}OS"), "linux".to_owned()),
            (format!("{prefix}ARCH"), arch.to_owned()),
        ]
    };
    of("BUILD").into_iter().chain(of("TARGET")).collect()
}

fn borrow(args: &BTreeMap<String, String>) -> Scope<'_> {
    args.iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect()
}

/// What a word may refer to within the stage: ENV wins over ARG.
fn in_force<'s>(args: &'s BTreeMap<String, String>, config: &'s ImageConfig) -> Scope<'s> {
    let mut scope = borrow(args);
    scope.extend(
        config
            .env
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str())),
    );
    scope
}

fn name_and_default(line: usize, word: &str) -> Result<(&str, Option<&str>), DockerfileError> {
    let (name, default) = match word.split_once('=') {
        Some((name, default)) => (name, Some(default)),
        None => (word, None),
    };
    let valid = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    if valid {
        Ok((name, default))
    } else {
        Err(invalid(line, format!("`{name}` is no ARG name")))
    }
}

fn shell(command: String) -> Vec<String> {
    vec!["/bin/sh".to_owned(), "-c".to_owned(), command]
}

/// An absolute path without `.`, `..` or a trailing `/`: `path` as seen from `cwd`.
fn join(cwd: &str, path: &str) -> String {
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

fn user(line: usize, name: String) -> Result<String, DockerfileError> {
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

fn mode(line: usize, octal: &str) -> Result<u32, DockerfileError> {
    let mode = u32::from_str_radix(octal, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777);
    mode.filter(|_| octal.bytes().all(|b| b.is_ascii_digit()))
        .ok_or_else(|| invalid(line, format!("--chmod={octal} is no octal mode, as in 755")))
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
