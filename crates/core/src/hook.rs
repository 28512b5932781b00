//! Hooks: requests by which the platform asks an app whether it is ready, or tells it what happens to it.
//!
//! | hook | when | an answer other than 200 |
//! |---|---|---|
//! | ready, validate | while the image is built, again and again while the answer is 503 | fails the build |
//! | run, resume | before the MicroVM serves requests | ends the MicroVM |
//! | suspend | before its memory is kept | ends the MicroVM |
//! | terminate | before it is taken apart | changes nothing |

use serde::{Deserialize, Serialize};
use std::fmt;

/// A hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// May the app be snapshotted?
    Ready,
    /// Does the app work after a launch from its new snapshot?
    Validate,
    /// The MicroVM begins.
    Run,
    /// It has been woken.
    Resume,
    /// It is about to sleep.
    Suspend,
    /// It is about to end.
    Terminate,
}

impl Hook {
    /// All hooks, for tables and tests.
    pub const ALL: [Self; 6] = [
        Self::Ready,
        Self::Validate,
        Self::Run,
        Self::Resume,
        Self::Suspend,
        Self::Terminate,
    ];

    /// The path that the app serves it under.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Ready => "/aws/lambda-microvms/runtime/v1/ready",
            Self::Validate => "/aws/lambda-microvms/runtime/v1/validate",
            Self::Run => "/aws/lambda-microvms/runtime/v1/run",
            Self::Resume => "/aws/lambda-microvms/runtime/v1/resume",
            Self::Suspend => "/aws/lambda-microvms/runtime/v1/suspend",
            Self::Terminate => "/aws/lambda-microvms/runtime/v1/terminate",
        }
    }

    /// Its name at the beginning of a sentence.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Validate => "Validate",
            Self::Run => "Run",
            Self::Resume => "Resume",
            Self::Suspend => "Suspend",
            Self::Terminate => "Terminate",
        }
    }
}

/// The hooks of an image: where its app serves them, and the time limit in seconds of each that is enabled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hooks {
    /// Port on which the app serves its hooks; of no meaning when it has none.
    pub port: u16,
    /// Time limit of the ready hook, all its polls included.
    pub ready_s: Option<u64>,
    /// Time limit of the validate hook, all its polls included.
    pub validate_s: Option<u64>,
    /// Time limit of the run hook.
    pub run_s: Option<u64>,
    /// Time limit of the resume hook.
    pub resume_s: Option<u64>,
    /// Time limit of the suspend hook.
    pub suspend_s: Option<u64>,
    /// Time limit of the terminate hook.
    pub terminate_s: Option<u64>,
}

impl Hooks {
    /// How to call a hook; none when it is not enabled.
    #[must_use]
    pub fn call(&self, hook: Hook) -> Option<HookCall> {
        let timeout_s = match hook {
            Hook::Ready => self.ready_s,
            Hook::Validate => self.validate_s,
            Hook::Run => self.run_s,
            Hook::Resume => self.resume_s,
            Hook::Suspend => self.suspend_s,
            Hook::Terminate => self.terminate_s,
        };
        timeout_s.map(|timeout_s| HookCall {
            hook,
            port: self.port,
            timeout_s,
        })
    }
}

/// How to call one hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HookCall {
    /// Which one.
    pub hook: Hook,
    /// Port on which the app serves it.
    pub port: u16,
    /// Give up after this many seconds.
    pub timeout_s: u64,
}

/// How a hook failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookFailure {
    /// It answered with this HTTP status.
    Status(u16),
    /// It did not answer in time.
    TimedOut,
    /// Nothing listens on its port.
    Refused,
    /// The exchange broke off, or was no HTTP.
    Broken,
}

impl HookCall {
    /// The state reason of a build that this failure ends.
    #[must_use]
    pub fn build_reason(&self, failure: HookFailure) -> String {
        let title = self.hook.title();
        // AWS names the class of the status, not the status.
        let answered = |side: &str, class: &str| {
            format!(
                "{title} hook check failed: the application returned a {side} error (HTTP {class}) response"
            )
        };
        match failure {
            HookFailure::Status(500..) => answered("server", "5xx"),
            HookFailure::Status(_) => answered("client", "4xx"),
            HookFailure::TimedOut | HookFailure::Refused | HookFailure::Broken => {
                let after = iso_duration(self.timeout_s);
                format!("{title} hook invocation timed out after {after}")
            }
        }
    }

    /// The state reason of a MicroVM that this failure ends.
    #[must_use]
    pub fn microvm_reason(&self, failure: HookFailure) -> String {
        let what = match failure {
            HookFailure::Status(status) => format!("returned HTTP status {status}"),
            HookFailure::TimedOut => "timed out".to_owned(),
            HookFailure::Refused => "connection was refused".to_owned(),
            HookFailure::Broken => "failed".to_owned(),
        };
        let title = self.hook.title();
        format!(
            "{title} lifecycle hook {what}. \
             Please check your hook endpoint and application logs for more details."
        )
    }
}

/// What a caller hands to the run hook of its MicroVM. It may be a secret: it does not show.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunHookPayload(String);

impl RunHookPayload {
    /// Takes the caller's text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for the hook alone.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for RunHookPayload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

/// A duration as ISO 8601 has it, as in `PT5M` or `PT1M30S`.
fn iso_duration(seconds: u64) -> String {
    let parts = [
        (seconds / 3600, 'H'),
        (seconds / 60 % 60, 'M'),
        (seconds % 60, 'S'),
    ];
    let text: String = parts
        .into_iter()
        .filter(|(value, _)| *value > 0)
        .map(|(value, unit)| format!("{value}{unit}"))
        .collect();
    if text.is_empty() {
        "PT0S".to_owned()
    } else {
        format!("PT{text}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(hook: Hook) -> HookCall {
        HookCall {
            hook,
            port: 9000,
            timeout_s: 300,
        }
    }

    #[test]
    fn durations_read_as_aws_prints_them() {
        for (seconds, text) in [
            (0, "PT0S"),
            (1, "PT1S"),
            (60, "PT1M"),
            (90, "PT1M30S"),
            (300, "PT5M"),
            (3600, "PT1H"),
        ] {
            assert_eq!(iso_duration(seconds), text);
        }
    }

    #[test]
    fn a_build_ends_with_the_words_of_aws() {
        for (hook, failure, text) in [
            (
                Hook::Ready,
                HookFailure::Status(500),
                "Ready hook check failed: the application returned a server error (HTTP 5xx) response",
            ),
            (
                Hook::Ready,
                HookFailure::Status(404),
                "Ready hook check failed: the application returned a client error (HTTP 4xx) response",
            ),
            (
                Hook::Validate,
                HookFailure::TimedOut,
                "Validate hook invocation timed out after PT5M",
            ),
        ] {
            assert_eq!(call(hook).build_reason(failure), text);
        }
    }

    #[test]
    fn a_microvm_ends_with_the_words_of_aws() {
        let check = "Please check your hook endpoint and application logs for more details.";
        for (hook, failure, text) in [
            (
                Hook::Run,
                HookFailure::Status(400),
                "Run lifecycle hook returned HTTP status 400.",
            ),
            (
                Hook::Suspend,
                HookFailure::Status(500),
                "Suspend lifecycle hook returned HTTP status 500.",
            ),
            (
                Hook::Resume,
                HookFailure::Refused,
                "Resume lifecycle hook connection was refused.",
            ),
            (
                Hook::Resume,
                HookFailure::TimedOut,
                "Resume lifecycle hook timed out.",
            ),
            (
                Hook::Resume,
                HookFailure::Broken,
                "Resume lifecycle hook failed.",
            ),
        ] {
            assert_eq!(
                call(hook).microvm_reason(failure),
                format!("{text} {check}")
            );
        }
    }

    #[test]
    fn only_an_enabled_hook_is_called() {
        let hooks = Hooks {
            port: 9000,
            suspend_s: Some(300),
            ..Hooks::default()
        };
        for hook in Hook::ALL {
            let expected = (hook == Hook::Suspend).then(|| call(hook));
            assert_eq!(hooks.call(hook), expected);
            let name = hook.title().to_lowercase();
            assert!(hook.path().ends_with(&format!("/runtime/v1/{name}")));
        }
    }

    #[test]
    fn a_payload_does_not_show() {
        let payload = RunHookPayload::new("hunter2".to_owned());
        assert_eq!(format!("{payload:?}"), "<redacted>");
        assert_eq!(payload.expose(), "hunter2");
    }
}
