//! Why a build failed, and the text that its caller is shown.

use crate::driver::chain;
use crate::guest::GuestError;
use crate::vmm::VmmError;
use dormouse_image::{ArtifactError, ContextError, DockerfileError};

/// Why a build failed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The code artifact is bad.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The Dockerfile is bad, or asks for what there is not.
    #[error(transparent)]
    Dockerfile(#[from] DockerfileError),
    /// The build context cannot be used.
    #[error("build context")]
    Context(#[from] ContextError),
    /// A COPY or ADD asks for what the context does not have.
    #[error("Dockerfile line {line}")]
    Copy {
        /// Where.
        line: usize,
        /// What is wrong with it.
        #[source]
        source: ContextError,
    },
    /// A RUN step ended with a failure.
    #[error(
        "Dockerfile line {line}: process {command:?} did not complete successfully: exit code: {code}"
    )]
    StepFailed {
        /// Where.
        line: usize,
        /// What was run.
        command: String,
        /// How it ended.
        code: i32,
    },
    /// A RUN step took too long.
    #[error("Dockerfile line {line}: process {command:?} did not end within {limit_s} s")]
    StepTimedOut {
        /// Where.
        line: usize,
        /// What was run.
        command: String,
        /// The limit in seconds.
        limit_s: u64,
    },
    /// The app ended before its snapshot.
    #[error("The application exited with code {code} before its snapshot was taken.")]
    AppExited {
        /// Its exit code.
        code: i32,
    },
    /// The app could not be started.
    #[error("The application could not be started: {0}")]
    AppNotStarted(String),
    /// The ready hook said no, or nothing in time; AWS's text.
    #[error("{0}")]
    Ready(String),
    /// The host's disk is full.
    #[error("The disk is full.")]
    DiskFull,
    /// A file operation failed.
    #[error("{action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A machine failed.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The agent failed.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The daemon is stopping.
    #[error("the daemon stopped during the build")]
    Stopped,
}

impl BuildError {
    pub(super) fn io(action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| match source.kind() {
            std::io::ErrorKind::StorageFull => Self::DiskFull,
            _ => Self::Io { action, source },
        }
    }

    /// Whether a host without space can look like this.
    pub(super) fn may_be_full_disk(&self) -> bool {
        !matches!(
            self,
            Self::Dockerfile(_) | Self::Context(_) | Self::Copy { .. } | Self::Stopped
        )
    }

    /// AWS's documented code for this kind of failure.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Artifact(error) => error.code(),
            Self::Dockerfile(_)
            | Self::Context(_)
            | Self::Copy { .. }
            | Self::StepFailed { .. }
            | Self::StepTimedOut { .. }
            | Self::AppExited { .. }
            | Self::AppNotStarted(_) => "CONTAINER_BUILD_FAILED",
            Self::DiskFull => "DISK_STORAGE_FULL",
            Self::Vmm(error) if error.is_disk_full() => "DISK_STORAGE_FULL",
            Self::Ready(_) => "READY_HOOK_FAILED",
            Self::Io { .. } | Self::Vmm(_) | Self::Guest(_) | Self::Stopped => {
                "INTERNAL_PLATFORM_ERROR"
            }
        }
    }

    /// The `stateReason` of the build: AWS's text where AWS has one, then the cause.
    #[must_use]
    pub fn state_reason(&self) -> String {
        match self {
            // AWS gives these alone.
            Self::Ready(text) => text.clone(),
            error if error.code() == "CONTAINER_BUILD_FAILED" => {
                format!(
                    "CONTAINER_BUILD_FAILED: The container image build failed. {}",
                    chain(error)
                )
            }
            error => format!("{}: {}", error.code(), chain(error)),
        }
    }
}
