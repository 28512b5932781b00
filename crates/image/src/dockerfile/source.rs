//! A Dockerfile's text and its instructions, all of them known to be supported.

use super::DockerfileError;
use super::expand::Expander;
use dormouse_core::limits;
use parse_dockerfile::{Command, Flag, HereDoc, Instruction, RunInstruction, Source as CopySource};

/// The text and what the parser made of it.
#[derive(Debug)]
pub(super) struct Source<'a> {
    text: &'a str,
    /// The escape character, a backslash unless a directive says otherwise.
    pub(super) escape: char,
    /// The instructions in order: ARGs, one FROM, then the rest.
    pub(super) instructions: Vec<Instruction<'a>>,
}

impl<'a> Source<'a> {
    /// Parses the text. What is not supported is refused here, before a syntax error that follows from
    /// it.
    pub(super) fn parse(text: &'a str) -> Result<Self, DockerfileError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        if let Some(position) = text.find('\0') {
            return Err(invalid(line_of(text, position), "there is a NUL byte"));
        }
        match parse_dockerfile::parse(text) {
            Ok(parsed) => {
                let escape = parsed.parser_directives.escape.as_ref();
                let escape = escape.map_or('\\', |directive| directive.value.value);
                let instructions = parsed.instructions;
                refuse_unsupported(text, escape, &instructions)?;
                Ok(Self {
                    text,
                    escape,
                    instructions,
                })
            }
            Err(error) => {
                let before: Vec<_> = parse_dockerfile::parse_iter(text)
                    .into_iter()
                    .flatten()
                    .flatten()
                    .collect();
                refuse_unsupported(text, '\\', &before)?;
                Err(invalid(error.line().max(1), format!("{error:#}")))
            }
        }
    }

    /// The line, from 1, on which an instruction begins.
    pub(super) fn line(&self, instruction: &Instruction<'_>) -> usize {
        line_of(self.text, start(instruction))
    }

    /// The instruction on one line, for logs.
    pub(super) fn display(&self, instruction: &Instruction<'_>) -> String {
        const CHARS_MAX: usize = 500;
        let line = self.join(&self.text[start(instruction)..]);
        let mut words = line.split_whitespace().collect::<Vec<_>>().join(" ");
        if let Some((cut, _)) = words.char_indices().nth(CHARS_MAX) {
            words.truncate(cut);
            words.push('…');
        }
        words
    }

    /// The first line of `raw`, with the lines that continue it. Comments and empty lines between
    /// them are left out.
    pub(super) fn join(&self, raw: &str) -> String {
        let mut joined = String::new();
        for (index, line) in raw.split('\n').enumerate() {
            let line = line.strip_suffix('\r').unwrap_or(line);
            let content = line.trim_start();
            if index > 0 && (content.is_empty() || content.starts_with('#')) {
                continue;
            }
            let trimmed = line.trim_end_matches([' ', '\t']);
            match trimmed.strip_suffix(self.escape) {
                Some(continued) => joined.push_str(continued),
                None => {
                    joined.push_str(line);
                    break;
                }
            }
        }
        joined
    }

    /// The shell command of a RUN that begins with a here-document.
    pub(super) fn here_doc_command(
        &self,
        run: &RunInstruction<'_>,
        document: &HereDoc<'_>,
        arguments: &str,
    ) -> String {
        if arguments.is_empty() {
            return document.value.clone().into_owned();
        }
        // `RUN <<EOF python3`: the shell reads the document itself.
        let from = self.text[run.run.span.end..].trim_start();
        let end = document.span.end;
        let terminator = self.text[end..]
            .find('\n')
            .map_or(self.text.len(), |at| end + at);
        from[..from.len() - (self.text.len() - terminator)].to_owned()
    }
}

/// A refusal of something that is wrong.
pub(super) fn invalid(line: usize, problem: impl Into<String>) -> DockerfileError {
    DockerfileError::Invalid {
        line,
        problem: problem.into(),
    }
}

/// A refusal of something that is right elsewhere.
pub(super) fn unsupported(
    line: usize,
    what: impl Into<String>,
    advice: &'static str,
) -> DockerfileError {
    DockerfileError::Unsupported {
        line,
        what: what.into(),
        advice,
    }
}

fn line_of(text: &str, position: usize) -> usize {
    text.as_bytes()[..position]
        .iter()
        .filter(|byte| **byte == b'\n')
        .count()
        + 1
}

fn start(instruction: &Instruction<'_>) -> usize {
    match instruction {
        Instruction::Add(add) => add.add.span.start,
        Instruction::Arg(arg) => arg.arg.span.start,
        Instruction::Cmd(cmd) => cmd.cmd.span.start,
        Instruction::Copy(copy) => copy.copy.span.start,
        Instruction::Entrypoint(entrypoint) => entrypoint.entrypoint.span.start,
        Instruction::Env(env) => env.env.span.start,
        Instruction::Expose(expose) => expose.expose.span.start,
        Instruction::From(from) => from.from.span.start,
        Instruction::Healthcheck(check) => check.healthcheck.span.start,
        Instruction::Label(label) => label.label.span.start,
        Instruction::Maintainer(maintainer) => maintainer.maintainer.span.start,
        Instruction::Onbuild(onbuild) => onbuild.onbuild.span.start,
        Instruction::Run(run) => run.run.span.start,
        Instruction::Shell(shell) => shell.shell.span.start,
        Instruction::Stopsignal(signal) => signal.stopsignal.span.start,
        Instruction::User(user) => user.user.span.start,
        Instruction::Volume(volume) => volume.volume.span.start,
        Instruction::Workdir(workdir) => workdir.workdir.span.start,
        // The parser may learn more instructions; they are refused by name elsewhere.
        _ => 0,
    }
}

fn refuse_unsupported(
    text: &str,
    escape: char,
    instructions: &[Instruction<'_>],
) -> Result<(), DockerfileError> {
    let mut stages = 0;
    for (index, instruction) in instructions.iter().enumerate() {
        let line = line_of(text, start(instruction));
        if index == limits::DOCKERFILE_STEPS_MAX {
            return Err(DockerfileError::TooManySteps { line, max: index });
        }
        stages += usize::from(matches!(instruction, Instruction::From(_)));
        if stages > 1 {
            let advice = "keep one FROM, and put what the other stages make into the archive";
            return Err(unsupported(
                line,
                "a second FROM (multi-stage build)",
                advice,
            ));
        }
        refuse_instruction(line, escape, instruction)?;
    }
    Ok(())
}

fn refuse_instruction(
    line: usize,
    escape: char,
    instruction: &Instruction<'_>,
) -> Result<(), DockerfileError> {
    let (what, advice) = match instruction {
        Instruction::Run(run) => return refuse_run(line, escape, run),
        Instruction::Copy(copy) => return refuse_copy(line, "COPY", &copy.options, &copy.src),
        Instruction::Add(add) => return refuse_copy(line, "ADD", &add.options, &add.src),
        Instruction::Healthcheck(_) => (
            "HEALTHCHECK",
            "remove it; the image's ready hook tells when the app is ready",
        ),
        Instruction::Maintainer(_) => ("MAINTAINER", "remove it, or use LABEL"),
        Instruction::Onbuild(_) => ("ONBUILD", "write the instruction where it is needed"),
        Instruction::Shell(_) => (
            "SHELL",
            "use the exec form, as in RUN [\"bash\", \"-c\", \"...\"]",
        ),
        Instruction::Stopsignal(_) => ("STOPSIGNAL", "remove it"),
        Instruction::Volume(_) => ("VOLUME", "remove it; a MicroVM keeps its whole file system"),
        Instruction::Arg(_)
        | Instruction::Cmd(_)
        | Instruction::Entrypoint(_)
        | Instruction::Env(_)
        | Instruction::Expose(_)
        | Instruction::From(_)
        | Instruction::Label(_)
        | Instruction::User(_)
        | Instruction::Workdir(_) => return Ok(()),
        _ => ("this instruction", "remove it"),
    };
    Err(unsupported(line, what, advice))
}

fn refuse_run(line: usize, escape: char, run: &RunInstruction<'_>) -> Result<(), DockerfileError> {
    if let Some(option) = run.options.first() {
        let what = format!("RUN --{}", option.name.value);
        return Err(unsupported(line, what, "remove the option"));
    }
    if run
        .here_docs
        .iter()
        .any(|document| document.value.starts_with("#!"))
    {
        let advice = "name the interpreter, as in RUN <<EOF python3";
        return Err(unsupported(
            line,
            "a here-document that begins with #!",
            advice,
        ));
    }
    if let (Command::Shell(command), true) = (&run.arguments, run.here_docs.is_empty()) {
        let words = Expander::new(escape, 0).split(command.value);
        if words.iter().any(|word| opens_here_doc(word)) {
            let advice = "write it first, as in RUN <<EOF python3";
            return Err(unsupported(
                line,
                "a here-document that does not follow RUN",
                advice,
            ));
        }
    }
    Ok(())
}

/// Whether a shell word is `<<NAME`, which makes a here-document of the lines that follow.
fn opens_here_doc(word: &str) -> bool {
    let word = word.trim_start_matches(|c: char| c.is_ascii_digit());
    let Some(name) = word.strip_prefix("<<") else {
        return false;
    };
    let name = name.strip_prefix('-').unwrap_or(name);
    !name.is_empty() && !name.contains('<')
}

fn refuse_copy(
    line: usize,
    keyword: &str,
    options: &[Flag<'_>],
    sources: &[CopySource<'_>],
) -> Result<(), DockerfileError> {
    for option in options {
        let name = option.name.value.as_ref();
        let advice = match name {
            "chown" | "chmod" | "link" => continue,
            "from" => "keep one FROM, and put the files into the archive",
            "exclude" => "name the files in .dockerignore",
            _ => "remove the option",
        };
        return Err(unsupported(line, format!("{keyword} --{name}"), advice));
    }
    for source in sources {
        match source {
            CopySource::HereDoc(_) => {
                let what = format!("{keyword} of a here-document");
                return Err(unsupported(line, what, "put the file into the archive"));
            }
            CopySource::Path(path) if keyword == "ADD" && is_remote(&path.value) => {
                let what = format!("ADD of a URL, `{}`,", path.value);
                return Err(unsupported(
                    line,
                    what,
                    "put the file into the archive, or RUN curl",
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether ADD would fetch this source instead of reading it from the context.
pub(super) fn is_remote(source: &str) -> bool {
    source.contains("://") || source.starts_with("git@")
}
