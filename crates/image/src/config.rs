//! What an image says about the process that it runs, in Docker's terms.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How an image's process starts: the part of an image that is not files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// Environment, in the order in which it was set; a name appears once.
    pub env: Vec<(String, String)>,
    /// Absolute working directory; empty means `/`.
    pub cwd: String,
    /// `user`, `user:group`, `uid` or `uid:gid`; empty for root.
    pub user: String,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// The arguments that follow, or the whole command when there is no entrypoint.
    pub cmd: Vec<String>,
    /// Ports that the app says it listens on, as in `8080/tcp`.
    pub exposed: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// What a command in shell form is an argument of; empty for `/bin/sh -c`.
    pub shell: Vec<String>,
    /// Instructions for a build that begins from this image, as text.
    pub onbuild: Vec<String>,
    /// Folders that the image declares as volumes. A MicroVM keeps its whole file system, so they are
    /// recorded and change nothing.
    pub volumes: Vec<String>,
    /// The signal that asks the app to stop, as written; recorded only.
    pub stop_signal: Option<String>,
    /// How the app's health could be checked; recorded only.
    pub healthcheck: Option<Healthcheck>,
    /// Who maintains the image, as MAINTAINER has it; recorded only.
    pub author: Option<String>,
}

/// A HEALTHCHECK. Times are in nanoseconds; none for Docker's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Healthcheck {
    /// `NONE`; or `CMD` and the words of a command; or `CMD-SHELL` and a shell command.
    pub test: Vec<String>,
    /// Time between two checks.
    pub interval_ns: Option<u64>,
    /// Time limit of one check.
    pub timeout_ns: Option<u64>,
    /// Time after the start in which failures do not count.
    pub start_period_ns: Option<u64>,
    /// Time between two checks in the start period.
    pub start_interval_ns: Option<u64>,
    /// Failures in a row that make the app unhealthy.
    pub retries: Option<u32>,
}

impl ImageConfig {
    /// The configuration of a bare root file system: nothing but the path that Debian's shells start with.
    #[must_use]
    pub fn bare() -> Self {
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        Self {
            env: vec![("PATH".to_owned(), path.to_owned())],
            ..Self::default()
        }
    }

    /// The whole command line: entrypoint, then cmd. Empty when the image names no command.
    #[must_use]
    pub fn argv(&self) -> Vec<String> {
        self.entrypoint.iter().chain(&self.cmd).cloned().collect()
    }

    /// The working directory, never empty.
    #[must_use]
    pub fn cwd(&self) -> &str {
        if self.cwd.is_empty() { "/" } else { &self.cwd }
    }

    /// The value of an environment variable.
    #[must_use]
    pub fn env(&self, name: &str) -> Option<&str> {
        let found = self.env.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Sets an environment variable, keeping its place when it is already set.
    pub fn set_env(&mut self, name: &str, value: String) {
        match self.env.iter_mut().find(|(key, _)| key == name) {
            Some(slot) => slot.1 = value,
            None => self.env.push((name.to_owned(), value)),
        }
    }
}
