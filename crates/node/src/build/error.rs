//! Why a build failed, and the text that its caller is shown.

use super::fetch::FetchError;
use crate::guest::GuestError;
use crate::lifecycle::LifecycleError;
use crate::vmm::VmmError;
use dormouse_core::{chain, limits, shown};
use dormouse_image::{ArtifactError, ContextError, DockerfileError};
use http::StatusCode;

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
    /// A step asks for what cannot be done.
    #[error("Dockerfile line {line}: {problem}")]
    Refused {
        /// Where.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// ADD could not fetch a file.
    #[error("Dockerfile line {line}: cannot fetch {url}")]
    Fetch {
        /// Where.
        line: usize,
        /// From where.
        url: String,
        /// What went wrong.
        #[source]
        source: Box<FetchError>,
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
    /// The app ended in the machine that was to be validated.
    #[error("The application exited with code {code} while its snapshot was validated.")]
    ExitedInValidation {
        /// Its exit code.
        code: i32,
    },
    /// The new snapshot could not be restored to be validated.
    #[error("restore of the new snapshot")]
    Restore(#[from] LifecycleError),
    /// The ready or validate hook said no, or nothing in time; AWS's text.
    #[error("{0}")]
    Hook(String),
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

    /// What the agent says of a step. Its refusal of what the step asks for is the customer's affair.
    pub(super) fn in_guest(line: usize) -> impl FnOnce(GuestError) -> Self {
        move |error| match error {
            GuestError::Refused { status, message }
                if status.is_client_error() || status == StatusCode::INSUFFICIENT_STORAGE =>
            {
                Self::Refused {
                    line,
                    problem: message,
                }
            }
            error => Self::Guest(error),
        }
    }

    /// The Dockerfile's line that is to blame, from 1.
    pub(super) fn line(&self) -> Option<usize> {
        match self {
            Self::Copy { line, .. }
            | Self::Refused { line, .. }
            | Self::Fetch { line, .. }
            | Self::StepFailed { line, .. }
            | Self::StepTimedOut { line, .. }
            | Self::Dockerfile(
                DockerfileError::TooManySteps { line, .. }
                | DockerfileError::Invalid { line, .. }
                | DockerfileError::Unsupported { line, .. }
                | DockerfileError::Base { line, .. },
            ) => Some(*line),
            _ => None,
        }
    }

    /// Whether a host without space can look like this.
    pub(super) fn may_be_full_disk(&self) -> bool {
        !matches!(
            self,
            Self::Dockerfile(_) | Self::Context(_) | Self::Copy { .. } | Self::Stopped
        )
    }

    /// Whether the machine went away under the build, which says nothing of what was being built.
    pub(super) fn is_lost_machine(&self) -> bool {
        matches!(
            self,
            Self::Vmm(VmmError::Gone(_))
                | Self::Guest(GuestError::Connect(VmmError::Gone(_)) | GuestError::Http { .. })
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
            | Self::Refused { .. }
            | Self::Fetch { .. }
            | Self::StepFailed { .. }
            | Self::StepTimedOut { .. }
            | Self::AppExited { .. }
            | Self::ExitedInValidation { .. }
            | Self::AppNotStarted(_) => "CONTAINER_BUILD_FAILED",
            Self::DiskFull => "DISK_STORAGE_FULL",
            Self::Vmm(error) if error.is_disk_full() => "DISK_STORAGE_FULL",
            Self::Hook(_) => "IMAGE_HOOK_FAILED",
            Self::Io { .. } | Self::Vmm(_) | Self::Guest(_) | Self::Restore(_) | Self::Stopped => {
                "INTERNAL_PLATFORM_ERROR"
            }
        }
    }

    /// The `stateReason` of the build: AWS's text where AWS has one, then the cause.
    #[must_use]
    pub fn state_reason(&self) -> String {
        match self {
            // AWS gives these alone.
            Self::Hook(text) => text.clone(),
            error if error.code() == "CONTAINER_BUILD_FAILED" => {
                format!(
                    "CONTAINER_BUILD_FAILED: The container image build failed. {}",
                    chain_shown(error)
                )
            }
            error => format!("{}: {}", error.code(), chain_shown(error)),
        }
    }
}

/// The chain of an error, whose texts may be of a Dockerfile or of a guest.
fn chain_shown(error: &BuildError) -> String {
    shown(chain(error), limits::STATE_REASON_CHARS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_short_however_long_the_dockerfile_is() {
        let long = "x".repeat(1 << 20);
        let command = shown(long.clone(), limits::INSTRUCTION_SHOWN_CHARS_MAX);
        let (line, code) = (1, 3);
        let reason = BuildError::StepFailed {
            line,
            command,
            code,
        };
        let reason = reason.state_reason();
        assert!(reason.ends_with("x…\" did not complete successfully: exit code: 3"));
        let problem = long;
        let reason = BuildError::Refused { line, problem }.state_reason();
        assert!(reason.chars().count() < limits::STATE_REASON_CHARS_MAX + 100);
    }
}
