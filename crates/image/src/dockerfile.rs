//! Dockerfile to build plan.
//!
//! The grammar is the `parse-dockerfile` crate's; what the instructions mean is here: variable
//! expansion, ARG scopes, inheritance from the base image, and a clear refusal, with its line, of what
//! Dormouse does not do. A plan names no file of the build context: `context` resolves those.

mod expand;
mod planner;
mod source;

use crate::config::ImageConfig;
use dormouse_core::limits;
use std::collections::BTreeMap;

/// Arguments that every RUN gets when the build has them, declared or not. A cached layer does not
/// depend on their values.
pub(crate) const PROXY_ARGS: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// A Dockerfile, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Reference of the base image, with its variables expanded.
    pub from: String,
    /// What to do, in order. FROM and ARG are no steps: their effect is in the other steps.
    pub steps: Vec<Step>,
    /// The finished image's configuration; its command is never empty.
    pub config: ImageConfig,
}

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Line of the Dockerfile on which the instruction begins, from 1.
    pub line: usize,
    /// The instruction as written, on one line, for logs.
    pub text: String,
    /// What it does.
    pub kind: StepKind,
    /// The configuration in force after it.
    pub config: ImageConfig,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepKind {
    /// Runs a command.
    Run(RunStep),
    /// Copies files from the build context.
    Copy(CopyStep),
    /// Makes a folder, and its parents, when it is missing.
    Workdir {
        /// Absolute path inside the image.
        path: String,
        /// The user in force, who owns a folder that is made; empty for root.
        owner: String,
    },
    /// Changes the configuration only; the disk stays as it is.
    Config,
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunStep {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The whole environment: ENV over the ARGs in scope.
    pub env: Vec<(String, String)>,
    /// Absolute working directory.
    pub cwd: String,
    /// The user; empty for root.
    pub user: String,
}

/// Files to copy from the build context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyStep {
    /// Paths in the context, as Go's `filepath.Match` patterns; never empty.
    pub sources: Vec<String>,
    /// Absolute path inside the image. It ends in `/` when it is a folder by its spelling.
    pub dest: String,
    /// `--chown`; empty for root.
    pub owner: String,
    /// `--chmod`: permission bits for all that is copied.
    pub chmod: Option<u32>,
    /// Whether it was written ADD, which may not name an archive.
    pub is_add: bool,
}

/// Why a Dockerfile cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum DockerfileError {
    /// It is too large.
    #[error("the Dockerfile is larger than {max} bytes")]
    TooLarge {
        /// The limit.
        max: u64,
    },
    /// It is not text.
    #[error("the Dockerfile is not valid UTF-8")]
    NotText,
    /// It has too many instructions.
    #[error("line {line}: the Dockerfile has more than {max} instructions")]
    TooManySteps {
        /// The first line too many.
        line: usize,
        /// The limit.
        max: usize,
    },
    /// An instruction is wrong.
    #[error("line {line}: {problem}")]
    Invalid {
        /// Where.
        line: usize,
        /// What is wrong, for people.
        problem: String,
    },
    /// An instruction is right, but this version does not carry it out.
    #[error("line {line}: {what} is not supported: {advice}")]
    Unsupported {
        /// Where.
        line: usize,
        /// The instruction or option.
        what: String,
        /// What to do instead.
        advice: &'static str,
    },
    /// The base image cannot be used.
    #[error("line {line}: cannot use the base image `{reference}`")]
    Base {
        /// Where.
        line: usize,
        /// The image.
        reference: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing says what to run.
    #[error("the Dockerfile has no CMD or ENTRYPOINT, and its base image has none either")]
    NoCommand,
}

/// Understands a Dockerfile. `base` gives the configuration of the image that FROM names.
///
/// # Errors
/// The first thing in the Dockerfile that is wrong or not supported.
pub fn plan<E>(
    dockerfile: &[u8],
    build_args: &BTreeMap<String, String>,
    base: impl FnOnce(&str) -> Result<ImageConfig, E>,
) -> Result<Plan, DockerfileError>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let max = limits::DOCKERFILE_BYTES_MAX;
    if dockerfile.len() as u64 > max {
        return Err(DockerfileError::TooLarge { max });
    }
    let text = std::str::from_utf8(dockerfile).map_err(|_| DockerfileError::NotText)?;
    let source = source::Source::parse(text)?;
    planner::Planner::new(&source, build_args).plan(base)
}

#[cfg(test)]
mod tests;
