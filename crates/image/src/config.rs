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
