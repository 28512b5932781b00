//! Dockerfile to build plan.
//!
//! ```text
//! text ──lexer──▶ lines ──instruction──▶ instructions ──planner──▶ stages ──stage──▶ steps
//! ```
//! The grammar is BuildKit's: directives, continued lines, here-documents in every place. What the
//! instructions mean is here too: variable expansion, ARG scopes, stages, inheritance from the base
//! image, and a clear refusal, with its line, of what Dormouse does not do. A plan names no file of the
//! build context: `context` resolves those.

mod copy;
mod expand;
mod flags;
mod healthcheck;
mod instruction;
mod lexer;
mod mount;
mod planner;
mod run;
mod stage;

use crate::config::ImageConfig;
use dormouse_core::limits;
use std::collections::BTreeMap;

/// Arguments that every RUN gets when the build has them, declared or not.
const PROXY_ARGS: [&str; 10] = [
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

/// What to do instead of `ADD` with a repository.
const GIT_ADVICE: &str = "clone it before making the code artifact, or RUN git clone";

/// A Dockerfile, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The last stage, which is the result, and those before it that it needs. None needs a later one.
    pub stages: Vec<Stage>,
    /// The finished image's configuration; its command is never empty.
    pub config: ImageConfig,
}

/// One stage: FROM and what follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Its name, or `stage-N` with its number in the Dockerfile.
    pub name: String,
    /// Line of its FROM.
    pub line: usize,
    /// What its disk is at first.
    pub base: Base,
    /// What to do, in order. FROM and ARG are no steps: their effect is in the other steps.
    pub steps: Vec<Step>,
}

/// What a stage begins from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// An empty disk.
    Scratch,
    /// An earlier stage of the plan.
    Stage(usize),
    /// An image, by its reference.
    Image(String),
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
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepKind {
    /// Runs a command.
    Run(RunStep),
    /// Copies files.
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

/// Where files come from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The build context.
    Context,
    /// An earlier stage of the plan.
    Stage(usize),
    /// An image, by its reference.
    Image(String),
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunStep {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Its environment: ENV over the ARGs in scope.
    pub env: Vec<(String, String)>,
    /// Proxy variables of the build that nothing in the Dockerfile sets; the command has them too.
    pub proxies: Vec<(String, String)>,
    /// Absolute working directory.
    pub cwd: String,
    /// The user; empty for root.
    pub user: String,
    /// What it sees besides the image's own files.
    pub mounts: Vec<RunMount>,
    /// Whether it has no network.
    pub offline: bool,
}

/// One mount of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunMount {
    /// Absolute path inside the image; empty for a secret that is a variable only.
    pub target: String,
    /// What is there.
    pub kind: MountKind,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    /// A file or folder from elsewhere.
    Bind {
        /// From where.
        from: Source,
        /// Absolute path there.
        path: String,
        /// Whether it may be written to; what is written is lost.
        writable: bool,
    },
    /// A folder that outlives the build.
    Cache {
        /// Builds of one account share it by this.
        id: String,
        /// Whether it may not be written to.
        read_only: bool,
        /// How the folder is made.
        owner: FileOwner,
    },
    /// An empty folder in memory.
    Tmpfs {
        /// Its size; none for the kernel's choice.
        bytes: Option<u64>,
    },
    /// A secret of the build.
    Secret {
        /// Its name among the build's secrets.
        id: String,
        /// Whether the build fails when there is none.
        required: bool,
        /// The variable that holds it.
        env: Option<String>,
        /// How its file is made.
        owner: FileOwner,
    },
    /// A script that the Dockerfile holds.
    Script {
        /// What it says.
        content: String,
    },
}

/// Mode and owner of a file or folder that is made for a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileOwner {
    /// Permission bits.
    pub mode: u32,
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
}

/// Files to copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyStep {
    /// Where paths are looked for.
    pub from: Source,
    /// What is copied; never empty.
    pub sources: Vec<CopySource>,
    /// Absolute path inside the image. It ends in `/` when it is a folder by its spelling.
    pub dest: String,
    /// `--chown`; empty for root, or for the owner that it has where it comes from.
    pub owner: String,
    /// `--chmod`: permission bits for all that is copied.
    pub chmod: Option<u32>,
    /// SHA-256 that the one URL must have, in hex.
    pub checksum: Option<String>,
    /// Whether the folders that lead to a source are made at the destination too.
    pub parents: bool,
    /// Patterns of what is left out.
    pub excludes: Vec<String>,
    /// Whether files that are archives are unpacked.
    pub unpack_files: bool,
    /// Whether what a URL brings is unpacked.
    pub unpack_urls: bool,
}

/// One thing to copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopySource {
    /// A path, as a pattern of Go's `filepath.Match`.
    Path(String),
    /// A file that the Dockerfile holds.
    Text {
        /// Its name in a folder.
        name: String,
        /// What it says.
        content: String,
    },
    /// A file to fetch, by `http://` or `https://`.
    Url {
        /// Where from.
        url: String,
        /// Its name in a folder; may be empty.
        name: String,
    },
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

/// An image that a Dockerfile needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BaseReference {
    /// The reference as written, with its variables expanded.
    pub reference: String,
    /// The line that first names it.
    pub line: usize,
}

/// The images that a Dockerfile needs, each once, in the order in which it names them.
///
/// # Errors
/// The first thing in the Dockerfile that is wrong or not supported, as far as it can be told without
/// knowing the images.
pub fn references(
    dockerfile: &[u8],
    build_args: &BTreeMap<String, String>,
) -> Result<Vec<BaseReference>, DockerfileError> {
    Ok(planner::Planner::new(text(dockerfile)?, build_args)?.references())
}

/// Understands a Dockerfile. `image` gives the configuration of an image that a FROM names.
///
/// # Errors
/// The first thing in the Dockerfile that is wrong or not supported.
pub fn plan<E>(
    dockerfile: &[u8],
    build_args: &BTreeMap<String, String>,
    image: impl FnMut(&str) -> Result<ImageConfig, E>,
) -> Result<Plan, DockerfileError>
where
    E: std::error::Error + Send + Sync + 'static,
{
    planner::Planner::new(text(dockerfile)?, build_args)?.plan(image)
}

fn text(dockerfile: &[u8]) -> Result<lexer::Text, DockerfileError> {
    let max = limits::DOCKERFILE_BYTES_MAX;
    if dockerfile.len() as u64 > max {
        return Err(DockerfileError::TooLarge { max });
    }
    let text = std::str::from_utf8(dockerfile).map_err(|_| DockerfileError::NotText)?;
    lexer::Text::parse(text)
}

/// A refusal of something that is wrong.
fn invalid(line: usize, problem: impl Into<String>) -> DockerfileError {
    DockerfileError::Invalid {
        line,
        problem: problem.into(),
    }
}

/// A refusal of something that is right elsewhere.
fn unsupported(line: usize, what: impl Into<String>, advice: &'static str) -> DockerfileError {
    DockerfileError::Unsupported {
        line,
        what: what.into(),
        advice,
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
            (format!("{prefix}VARIANT"), String::new()),
        ]
    };
    let stage = ("TARGETSTAGE".to_owned(), "default".to_owned());
    of("BUILD")
        .into_iter()
        .chain(of("TARGET"))
        .chain([stage])
        .collect()
}

#[cfg(test)]
mod tests;
