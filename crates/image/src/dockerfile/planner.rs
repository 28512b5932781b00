//! From instructions to stages: which there are, which the last one needs, and what each begins from.

use super::expand::{Expander, Scope};
use super::instruction::{From, Instruction, Op};
use super::lexer::Text;
use super::stage::StagePlanner;
use super::{
    Base, BaseReference, DockerfileError, Plan, Source, Stage, invalid, platform_args, unsupported,
};
use crate::config::ImageConfig;
use dormouse_core::limits;
use std::collections::{BTreeMap, BTreeSet};

/// What Docker sets when the base image says nothing.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A Dockerfile whose stages are known and whose steps are not planned yet.
#[derive(Debug)]
pub(super) struct Planner<'a> {
    expander: Expander,
    build_args: &'a BTreeMap<String, String>,
    /// ARGs from before the first FROM, and those that describe the platform.
    global_args: BTreeMap<String, String>,
    drafts: Vec<Draft>,
}

/// A stage as written.
#[derive(Debug)]
struct Draft {
    line: usize,
    name: Option<String>,
    platform: Option<String>,
    base: Base,
    body: Vec<Instruction>,
    /// What it takes files from, by what is written after `from=`.
    froms: BTreeMap<String, Source>,
}

/// What a planned stage leaves to the stages after it.
struct Planned {
    /// Its place in the plan.
    index: usize,
    args: BTreeMap<String, String>,
    config: ImageConfig,
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        text: Text,
        build_args: &'a BTreeMap<String, String>,
    ) -> Result<Self, DockerfileError> {
        let escape = text.escape;
        let instructions = text
            .lines
            .into_iter()
            .map(|line| Instruction::parse(line, escape));
        let instructions = instructions.collect::<Result<Vec<_>, _>>()?;
        let mut planner = Self {
            expander: Expander::new(escape, limits::DOCKERFILE_EXPANDED_BYTES_MAX),
            build_args,
            global_args: platform_args(),
            drafts: Vec::new(),
        };
        for instruction in instructions {
            planner.take(instruction)?;
        }
        if planner.drafts.is_empty() {
            return Err(invalid(1, "there is no FROM"));
        }
        for index in 0..planner.drafts.len() {
            planner.resolve_froms(index)?;
        }
        Ok(planner)
    }

    /// The images that the needed stages name, each once, in order.
    pub(super) fn references(&self) -> Vec<BaseReference> {
        let mut references: Vec<BaseReference> = Vec::new();
        let mut add = |reference: &str, line| {
            if !references.iter().any(|known| known.reference == reference) {
                let reference = reference.to_owned();
                references.push(BaseReference { reference, line });
            }
        };
        for index in self.needed() {
            let draft = &self.drafts[index];
            if let Base::Image(reference) = &draft.base {
                add(reference, draft.line);
            }
            for instruction in &draft.body {
                for from in instruction.froms() {
                    if let Some(Source::Image(reference)) = draft.froms.get(from) {
                        add(reference, instruction.line);
                    }
                }
            }
        }
        references
    }

    pub(super) fn plan<E>(
        mut self,
        mut image: impl FnMut(&str) -> Result<ImageConfig, E>,
    ) -> Result<Plan, DockerfileError>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let mut planned: BTreeMap<usize, Planned> = BTreeMap::new();
        let mut stages = Vec::new();
        for (place, index) in self.needed().into_iter().enumerate() {
            self.check_platform(index)?;
            let draft = &self.drafts[index];
            let (base, args, config) = match &draft.base {
                Base::Scratch => (
                    Base::Scratch,
                    BTreeMap::new(),
                    with_path(ImageConfig::default()),
                ),
                Base::Stage(from) => {
                    let from = &planned[from];
                    (
                        Base::Stage(from.index),
                        from.args.clone(),
                        from.config.clone(),
                    )
                }
                Base::Image(reference) => {
                    let config = image(reference).map_err(|error| DockerfileError::Base {
                        line: draft.line,
                        reference: reference.clone(),
                        source: Box::new(error),
                    })?;
                    (
                        Base::Image(reference.clone()),
                        BTreeMap::new(),
                        with_path(config),
                    )
                }
            };
            let froms = in_plan(&draft.froms, &planned);
            let mut stage = StagePlanner {
                expander: &mut self.expander,
                build_args: self.build_args,
                global_args: &self.global_args,
                froms: &froms,
                args,
                config,
                cmd_is_set: false,
                steps: Vec::new(),
            };
            stage.triggers(draft.line)?;
            for instruction in &draft.body {
                stage.step(instruction)?;
            }
            let (steps, args, config) = (stage.steps, stage.args, stage.config);
            stages.push(Stage {
                name: draft
                    .name
                    .clone()
                    .unwrap_or_else(|| format!("stage-{index}")),
                line: draft.line,
                base,
                steps,
            });
            let done = Planned {
                index: place,
                args,
                config,
            };
            planned.insert(index, done);
        }
        // The last stage is always needed.
        let config = planned.remove(&(self.drafts.len() - 1));
        let config = config.map(|last| last.config).unwrap_or_default();
        if config.argv().is_empty() {
            return Err(DockerfileError::NoCommand);
        }
        Ok(Plan { stages, config })
    }

    fn take(&mut self, instruction: Instruction) -> Result<(), DockerfileError> {
        let line = instruction.line;
        match (&instruction.op, self.drafts.last_mut()) {
            (Op::From(from), _) => {
                let draft = self.draft(line, from)?;
                self.drafts.push(draft);
            }
            (_, Some(draft)) => draft.body.push(instruction),
            (Op::Arg(args), None) => self.global_arg(line, args)?,
            (_, None) => return Err(invalid(line, "an instruction comes before the first FROM")),
        }
        Ok(())
    }

    fn draft(&mut self, line: usize, from: &From) -> Result<Draft, DockerfileError> {
        let scope = borrow(&self.global_args);
        let mut expand = |raw: &str| {
            let expanded = self.expander.word(raw, &scope);
            expanded.map_err(|problem| invalid(line, problem))
        };
        let platform = from.platform.as_deref().map(&mut expand).transpose()?;
        let image = expand(&from.image)?;
        let base = match (image.as_str(), self.stage_named(&image)) {
            ("", _) => return Err(invalid(line, "FROM names no image; is its ARG set?")),
            (_, Some(stage)) => Base::Stage(stage),
            ("scratch", None) => Base::Scratch,
            (_, None) => Base::Image(image),
        };
        Ok(Draft {
            line,
            name: from.name.clone(),
            platform,
            base,
            body: Vec::new(),
            froms: BTreeMap::new(),
        })
    }

    /// The last stage so far of this name.
    fn stage_named(&self, name: &str) -> Option<usize> {
        let name = name.to_ascii_lowercase();
        let is_it = |draft: &Draft| draft.name.as_ref() == Some(&name);
        self.drafts.iter().rposition(is_it)
    }

    /// Finds what the stage takes files from.
    fn resolve_froms(&mut self, index: usize) -> Result<(), DockerfileError> {
        let mut found = BTreeMap::new();
        for instruction in &self.drafts[index].body {
            for from in instruction.froms() {
                let source = self.source(index, instruction.line, from)?;
                found.insert(from.to_owned(), source);
            }
        }
        let count = found.len();
        let max = limits::BUILD_SOURCES_MAX;
        if count > max {
            let line = self.drafts[index].line;
            let problem = format!("the stage takes files from {count} others; {max} is the most");
            return Err(invalid(line, problem));
        }
        self.drafts[index].froms = found;
        Ok(())
    }

    fn source(&self, index: usize, line: usize, from: &str) -> Result<Source, DockerfileError> {
        if let Ok(number) = from.parse::<usize>() {
            if number < index {
                return Ok(Source::Stage(number));
            }
            let problem =
                format!("from={from} is no stage before this one, which is number {index}");
            return Err(invalid(line, problem));
        }
        let name = from.to_ascii_lowercase();
        let is_it = |draft: &Draft| draft.name.as_ref() == Some(&name);
        if let Some(stage) = self.drafts[..index].iter().rposition(is_it) {
            return Ok(Source::Stage(stage));
        }
        if self.drafts[index..].iter().any(is_it) {
            let problem = format!("the stage `{from}` is not built before this one");
            return Err(invalid(line, problem));
        }
        if name == "scratch" {
            return Err(invalid(line, "scratch has no files"));
        }
        Ok(Source::Image(from.to_owned()))
    }

    /// The last stage and all that it needs, in the order in which they are written.
    fn needed(&self) -> BTreeSet<usize> {
        let mut needed = BTreeSet::new();
        let mut todo = vec![self.drafts.len() - 1];
        while let Some(index) = todo.pop() {
            if !needed.insert(index) {
                continue;
            }
            let draft = &self.drafts[index];
            if let Base::Stage(from) = draft.base {
                todo.push(from);
            }
            todo.extend(draft.froms.values().filter_map(|from| match from {
                Source::Stage(stage) => Some(*stage),
                Source::Context | Source::Image(_) => None,
            }));
        }
        needed
    }

    fn check_platform(&self, index: usize) -> Result<(), DockerfileError> {
        let draft = &self.drafts[index];
        let host = &self.global_args["TARGETPLATFORM"];
        match draft.platform.as_deref() {
            None | Some("linux/amd64") => Ok(()),
            Some(platform) if platform == host => Ok(()),
            Some(platform) => {
                let what = format!("FROM --platform={platform}");
                let advice = "remove it; images run on this host's CPU";
                Err(unsupported(draft.line, what, advice))
            }
        }
    }

    fn global_arg(
        &mut self,
        line: usize,
        args: &[(String, Option<String>)],
    ) -> Result<(), DockerfileError> {
        for (name, default) in args {
            let scope = borrow(&self.global_args);
            let default = default.as_ref().map(|raw| self.expander.word(raw, &scope));
            let default = default
                .transpose()
                .map_err(|problem| invalid(line, problem))?;
            if let Some(value) = self.build_args.get(name).cloned().or(default) {
                self.global_args.insert(name.clone(), value);
            }
        }
        let bytes = self
            .global_args
            .iter()
            .map(|(name, value)| name.len() + value.len());
        if bytes.sum::<usize>() > limits::IMAGE_CONFIG_BYTES_MAX {
            let max = limits::IMAGE_CONFIG_BYTES_MAX;
            return Err(invalid(line, format!("the arguments pass {max} bytes")));
        }
        Ok(())
    }
}

/// The sources with their stages' places in the plan.
fn in_plan(
    froms: &BTreeMap<String, Source>,
    planned: &BTreeMap<usize, Planned>,
) -> BTreeMap<String, Source> {
    let place = |source: &Source| match source {
        Source::Stage(stage) => Source::Stage(planned[stage].index),
        other => other.clone(),
    };
    froms
        .iter()
        .map(|(name, source)| (name.clone(), place(source)))
        .collect()
}

fn with_path(mut config: ImageConfig) -> ImageConfig {
    if config.env("PATH").is_none() {
        config
            .env
            .push(("PATH".to_owned(), PATH_DEFAULT.to_owned()));
    }
    config
}

pub(super) fn borrow(args: &BTreeMap<String, String>) -> Scope<'_> {
    args.iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect()
}
