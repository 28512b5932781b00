//! What can go wrong between the host and a guest's agent.

use crate::vmm::VmmError;
use dormouse_core::guest::GENERATION;
use dormouse_core::limits;
use http::StatusCode;

/// Why the agent could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// No connection to the agent.
    #[error("connect to guest agent")]
    Connect(#[source] VmmError),
    /// The exchange broke off.
    #[error("{request} to guest agent")]
    Http {
        /// What was asked.
        request: &'static str,
        /// How it broke.
        #[source]
        source: hyper::Error,
    },
    /// The agent did not answer in time.
    #[error("{0} to guest agent timed out")]
    TimedOut(&'static str),
    /// The agent answered with a refusal.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// The agent's words.
        message: String,
    },
    /// The agent's answer makes no sense.
    #[error("{request} to guest agent: {problem}")]
    Nonsense {
        /// What was asked.
        request: &'static str,
        /// What is wrong with the answer.
        problem: String,
    },
    /// The snapshot's agent speaks another generation of the protocol.
    #[error("guest agent speaks protocol generation {found}, this daemon speaks {GENERATION}")]
    Generation {
        /// The agent's generation.
        found: u32,
    },
}

impl GuestError {
    /// The status that the agent refused with, if it did.
    #[must_use]
    pub fn refusal(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

pub(super) fn nonsense(request: &'static str, problem: &str) -> GuestError {
    GuestError::Nonsense {
        request,
        problem: quoted(problem),
    }
}

/// What the agent says, as it may stand in a log or a reason: of one line, and no longer than a sentence.
pub(super) fn quoted(text: &str) -> String {
    let end = text.floor_char_boundary(limits::AGENT_MESSAGE_BYTES_MAX);
    text[..end].replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_says_is_one_short_line() {
        assert_eq!(quoted("no\u{1b}[2J such\nfile"), "no [2J such file");
        assert_eq!(
            quoted(&"ä".repeat(limits::AGENT_MESSAGE_BYTES_MAX)).len(),
            1024
        );
    }
}
