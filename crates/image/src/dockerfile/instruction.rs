//! What each instruction says, before any variable is replaced.

use super::expand::{Expander, split_words};
use super::flags::Flags;
use super::healthcheck;
use super::lexer::{HereDoc, Line};
use super::mount::Mount;
use super::{DockerfileError, invalid, unsupported};
use crate::config::Healthcheck;
use dormouse_core::{limits, shown};

/// An instruction, known to be supported as far as it can be told without its variables.
#[derive(Debug, Clone)]
pub(super) struct Instruction {
    /// Where it begins, from 1.
    pub(super) line: usize,
    /// As written, on one line, for logs.
    pub(super) text: String,
    pub(super) op: Op,
}

#[derive(Debug, Clone)]
pub(super) enum Op {
    From(From),
    /// Names and default values.
    Arg(Vec<(String, Option<String>)>),
    Env(Vec<(String, String)>),
    Label(Vec<(String, String)>),
    Run(Run),
    Copy(Copy),
    Cmd(Command),
    Entrypoint(Command),
    Shell(Vec<String>),
    Workdir(String),
    User(String),
    Expose(Vec<String>),
    Volume(Vec<String>),
    StopSignal(String),
    Healthcheck(Healthcheck),
    /// The instruction as it is kept, with its here-documents.
    Onbuild(String),
    Maintainer(String),
}

#[derive(Debug, Clone)]
pub(super) struct From {
    pub(super) image: String,
    pub(super) platform: Option<String>,
    /// The stage's name, in lower case.
    pub(super) name: Option<String>,
}

/// A command in one of its two forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Exec(Vec<String>),
    Shell(String),
}

#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) command: Command,
    pub(super) documents: Vec<HereDoc>,
    pub(super) mounts: Vec<Mount>,
    /// Whether it runs without a network.
    pub(super) offline: bool,
}

/// COPY or ADD.
#[derive(Debug, Clone)]
pub(super) struct Copy {
    pub(super) is_add: bool,
    pub(super) sources: Vec<Source>,
    pub(super) dest: String,
    pub(super) from: Option<String>,
    pub(super) chown: Option<String>,
    pub(super) chmod: Option<String>,
    pub(super) checksum: Option<String>,
    pub(super) parents: bool,
    pub(super) excludes: Vec<String>,
    /// Whether archives are unpacked: as given, or as is usual.
    pub(super) unpack: Option<bool>,
}

#[derive(Debug, Clone)]
pub(super) enum Source {
    Path(String),
    Document(HereDoc),
}

impl Instruction {
    /// Reads one instruction. `escape` is the Dockerfile's escape character.
    pub(super) fn parse(line: Line, escape: char) -> Result<Self, DockerfileError> {
        let text = display(&line.text);
        let op = Parser {
            line: line.number,
            escape,
            documents: line.documents,
        }
        .parse(&line.text)?;
        Ok(Self {
            line: line.number,
            text,
            op,
        })
    }
}

/// The text for logs: one space where there were several, and not too long.
fn display(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    shown(words, limits::INSTRUCTION_SHOWN_CHARS_MAX)
}

struct Parser {
    line: usize,
    escape: char,
    documents: Vec<HereDoc>,
}

impl Parser {
    fn parse(mut self, text: &str) -> Result<Op, DockerfileError> {
        let (keyword, rest) = split_keyword(text);
        let keyword = known(keyword).ok_or_else(|| {
            let cut: String = keyword.chars().take(40).collect();
            invalid(self.line, format!("unknown instruction: {cut}"))
        })?;
        let (mut flags, rest) = Flags::split(self.line, keyword, rest);
        let rest = rest.trim();
        if rest.is_empty() {
            return Err(invalid(
                self.line,
                format!("{keyword} requires at least one argument"),
            ));
        }
        let op = match keyword {
            "FROM" => Op::From(self.from(&mut flags, rest)?),
            "ARG" => Op::Arg(self.args(rest)?),
            "ENV" => Op::Env(self.pairs(rest)?),
            "LABEL" => Op::Label(self.pairs(rest)?),
            "RUN" => Op::Run(self.run(&mut flags, rest)?),
            "COPY" | "ADD" => Op::Copy(self.copy(keyword, &mut flags, rest)?),
            "CMD" => Op::Cmd(command(self.line, rest)?),
            "ENTRYPOINT" => Op::Entrypoint(command(self.line, rest)?),
            "SHELL" => Op::Shell(self.shell(rest)?),
            "WORKDIR" => Op::Workdir(rest.to_owned()),
            "USER" => Op::User(rest.to_owned()),
            "EXPOSE" => Op::Expose(rest.split_whitespace().map(str::to_owned).collect()),
            "VOLUME" => Op::Volume(self.words(rest)?),
            "STOPSIGNAL" => Op::StopSignal(rest.to_owned()),
            "HEALTHCHECK" => Op::Healthcheck(healthcheck::parse(self.line, &mut flags, rest)?),
            "ONBUILD" => Op::Onbuild(self.onbuild(rest)?),
            // `known` knows no others.
            _ => Op::Maintainer(rest.to_owned()),
        };
        flags.finish()?;
        Ok(op)
    }

    fn from(&self, flags: &mut Flags, rest: &str) -> Result<From, DockerfileError> {
        let platform = flags.value("platform")?;
        let words: Vec<_> = rest.split_whitespace().collect();
        let (image, name) = match words.as_slice() {
            [image] => (*image, None),
            [image, keyword, name] if keyword.eq_ignore_ascii_case("as") => (*image, Some(*name)),
            _ => {
                let problem =
                    "FROM requires either one or three arguments, as in FROM image AS name";
                return Err(invalid(self.line, problem));
            }
        };
        let name = name.map(str::to_ascii_lowercase);
        if let Some(name) = name.as_ref().filter(|name| !is_stage_name(name)) {
            let problem = format!(
                "`{name}` is no stage name: it begins with a letter and has letters, digits, -, _ and ."
            );
            return Err(invalid(self.line, problem));
        }
        Ok(From {
            image: image.to_owned(),
            platform,
            name,
        })
    }

    fn args(&self, rest: &str) -> Result<Vec<(String, Option<String>)>, DockerfileError> {
        let words = Expander::new(self.escape, 0).split(rest);
        let arg = |word: &String| {
            let (name, default) = match word.split_once('=') {
                Some((name, default)) => (name, Some(default.to_owned())),
                None => (word.as_str(), None),
            };
            let plain = |c: char| c.is_alphanumeric() || c == '_';
            if name.is_empty() || !name.chars().all(plain) {
                return Err(invalid(self.line, format!("`{name}` is no ARG name")));
            }
            Ok((name.to_owned(), default))
        };
        words.iter().map(arg).collect()
    }

    /// The names and values of an ENV or a LABEL, in either of its two forms.
    fn pairs(&self, rest: &str) -> Result<Vec<(String, String)>, DockerfileError> {
        let words = Expander::new(self.escape, 0).split(rest);
        if !words.first().is_some_and(|first| first.contains('=')) {
            // `ENV name the rest is the value`
            let pair = rest.split_once(char::is_whitespace);
            let (name, value) = pair.ok_or_else(|| invalid(self.line, "a name has no value"))?;
            return Ok(vec![(name.to_owned(), value.trim_start().to_owned())]);
        }
        let pair = |word: &String| match word.split_once('=') {
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => Err(invalid(
                self.line,
                format!("`{word}` is not of the form name=value"),
            )),
        };
        words.iter().map(pair).collect()
    }

    fn run(&mut self, flags: &mut Flags, rest: &str) -> Result<Run, DockerfileError> {
        let mounts = flags.every("mount")?;
        let mounts = mounts
            .iter()
            .map(|text| Mount::parse(self.line, text))
            .collect::<Result<_, _>>()?;
        let offline = match flags.value("network")?.as_deref() {
            None | Some("default") => false,
            Some("none") => true,
            Some(network) => {
                let what = format!("RUN --network={network}");
                return Err(unsupported(self.line, what, "use default or none"));
            }
        };
        match flags.value("security")?.as_deref() {
            None | Some("sandbox") => {}
            Some(mode) => {
                let what = format!("RUN --security={mode}");
                return Err(unsupported(self.line, what, "remove the option"));
            }
        }
        if !flags.every("device")?.is_empty() {
            return Err(unsupported(self.line, "RUN --device", "remove the option"));
        }
        let command = command(self.line, rest)?;
        if command == Command::Exec(Vec::new()) {
            return Err(invalid(self.line, "RUN has no command"));
        }
        Ok(Run {
            documents: match command {
                Command::Exec(_) => Vec::new(),
                Command::Shell(_) => std::mem::take(&mut self.documents),
            },
            command,
            mounts,
            offline,
        })
    }

    fn copy(
        &mut self,
        keyword: &str,
        flags: &mut Flags,
        rest: &str,
    ) -> Result<Copy, DockerfileError> {
        let is_add = keyword == "ADD";
        // Every layer is by itself here, so that there is nothing for --link to change.
        flags.switch("link")?;
        let json = json_words(self.line, rest)?;
        let is_json = json.is_some();
        let mut words =
            json.unwrap_or_else(|| rest.split_whitespace().map(str::to_owned).collect());
        let dest = words.pop().filter(|_| !words.is_empty()).ok_or_else(|| {
            let problem =
                format!("{keyword} requires at least two arguments: a source and where to");
            invalid(self.line, problem)
        })?;
        let mut documents = std::mem::take(&mut self.documents).into_iter();
        let sources = words.into_iter().map(|word| {
            if is_json || HereDoc::opened_by(&word).is_none() {
                return Source::Path(word);
            }
            documents
                .next()
                .map_or(Source::Path(word), Source::Document)
        });
        let sources: Vec<_> = sources.collect();
        if HereDoc::opened_by(&dest).is_some() && !is_json {
            let problem = format!("{keyword} names no destination after its here-document");
            return Err(invalid(self.line, problem));
        }
        let mut copy = Copy {
            is_add,
            sources,
            dest,
            from: None,
            chown: flags.value("chown")?,
            chmod: flags.value("chmod")?,
            checksum: None,
            parents: false,
            excludes: flags.every("exclude")?,
            unpack: None,
        };
        if is_add {
            copy.checksum = flags.value("checksum")?;
            if let Some(unpack) = flags.value("unpack")? {
                let truth = super::flags::truth(Some(&unpack));
                let problem = || invalid(self.line, "--unpack is true or false");
                copy.unpack = Some(truth.ok_or_else(problem)?);
            }
            if flags.switch("keep-git-dir")? {
                let what = "ADD of a git repository";
                return Err(unsupported(self.line, what, super::GIT_ADVICE));
            }
        } else {
            copy.from = flags.value("from")?;
            copy.parents = flags.switch("parents")?;
            self.check_from(copy.from.as_deref(), &copy.sources)?;
        }
        Ok(copy)
    }

    fn check_from(&self, from: Option<&str>, sources: &[Source]) -> Result<(), DockerfileError> {
        let Some(from) = from else { return Ok(()) };
        check_stage(self.line, from)?;
        if sources
            .iter()
            .any(|source| matches!(source, Source::Document(_)))
        {
            let problem = "COPY --from does not go with a here-document";
            return Err(invalid(self.line, problem));
        }
        Ok(())
    }

    fn shell(&self, rest: &str) -> Result<Vec<String>, DockerfileError> {
        let words = json_words(self.line, rest)?.filter(|words| !words.is_empty());
        words.ok_or_else(|| invalid(self.line, "SHELL requires its arguments in JSON form"))
    }

    fn words(&self, rest: &str) -> Result<Vec<String>, DockerfileError> {
        let words = json_words(self.line, rest)?;
        Ok(words.unwrap_or_else(|| rest.split_whitespace().map(str::to_owned).collect()))
    }

    /// The trigger is read now, so that a mistake in it shows here, and kept as text.
    fn onbuild(&mut self, rest: &str) -> Result<String, DockerfileError> {
        let (keyword, _) = split_keyword(rest);
        if let Some(keyword @ ("ONBUILD" | "FROM" | "MAINTAINER")) = known(keyword) {
            let problem = format!("{keyword} is not allowed as an ONBUILD trigger");
            return Err(invalid(self.line, problem));
        }
        let documents = std::mem::take(&mut self.documents);
        let mut text = rest.to_owned();
        for document in &documents {
            text.push('\n');
            text.push_str(&document.raw);
            text.push_str(&document.name);
        }
        let line = Line {
            number: self.line,
            text: rest.to_owned(),
            documents,
        };
        let trigger = Instruction::parse(line, self.escape)?;
        if trigger.froms().next().is_some() {
            let what = "ONBUILD with a --from";
            return Err(unsupported(
                self.line,
                what,
                "name the files of the build context",
            ));
        }
        Ok(text)
    }
}

impl Instruction {
    /// What this instruction takes files from besides the build context.
    pub(super) fn froms(&self) -> impl Iterator<Item = &str> {
        let (copy, mounts) = match &self.op {
            Op::Copy(copy) => (copy.from.as_deref(), &[][..]),
            Op::Run(run) => (None, run.mounts.as_slice()),
            _ => (None, &[][..]),
        };
        let mounts = mounts.iter().filter_map(Mount::from);
        copy.into_iter().chain(mounts)
    }
}

/// Refuses what cannot name a stage or an image.
pub(super) fn check_stage(line: usize, from: &str) -> Result<(), DockerfileError> {
    if from.contains('$') {
        let problem = format!(
            "from={from}: variables are not replaced here; give the image a name with FROM image AS name"
        );
        return Err(invalid(line, problem));
    }
    if from.is_empty() || from.contains(char::is_whitespace) {
        return Err(invalid(line, format!("`{from}` names no stage or image")));
    }
    Ok(())
}

fn split_keyword(text: &str) -> (&str, &str) {
    let (keyword, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    (keyword, rest.trim())
}

/// The instruction of this name, however it is spelt.
fn known(keyword: &str) -> Option<&'static str> {
    const KNOWN: [&str; 18] = [
        "ADD",
        "ARG",
        "CMD",
        "COPY",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "FROM",
        "HEALTHCHECK",
        "LABEL",
        "MAINTAINER",
        "ONBUILD",
        "RUN",
        "SHELL",
        "STOPSIGNAL",
        "USER",
        "VOLUME",
        "WORKDIR",
    ];
    let same = |known: &&str| known.eq_ignore_ascii_case(keyword);
    KNOWN.into_iter().find(same)
}

fn is_stage_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(plain)
}

/// A command: in exec form if it is a JSON array of strings, in shell form otherwise.
pub(super) fn command(line: usize, text: &str) -> Result<Command, DockerfileError> {
    Ok(match json_words(line, text)? {
        Some(words) => Command::Exec(words),
        None => Command::Shell(text.to_owned()),
    })
}

/// The strings of a JSON array; none when `text` is no JSON array.
fn json_words(line: usize, text: &str) -> Result<Option<Vec<String>>, DockerfileError> {
    if !text.starts_with('[') {
        return Ok(None);
    }
    let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(text) else {
        return Ok(None);
    };
    let words = values.into_iter().map(|value| match value {
        serde_json::Value::String(word) if word.contains('\0') => {
            Err(invalid(line, "there is a NUL byte"))
        }
        serde_json::Value::String(word) => Ok(word),
        _ => Err(invalid(
            line,
            "a JSON array of arguments holds strings only",
        )),
    });
    words.collect::<Result<_, _>>().map(Some)
}

/// Whether a RUN's arguments are one here-document and nothing else.
pub(super) fn is_one_document(arguments: &str) -> bool {
    split_words(arguments, '\\').is_some_and(|words| words.len() == 1)
        && HereDoc::opened_by(arguments).is_some()
}
