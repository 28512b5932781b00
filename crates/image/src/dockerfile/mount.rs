//! `RUN --mount`.

use super::flags::truth;
use super::instruction::check_stage;
use super::{DockerfileError, invalid, unsupported};

/// A mount as written: its variables are not replaced yet.
#[derive(Debug, Clone)]
pub(super) struct Mount {
    pub(super) kind: Kind,
    /// Where to; empty when it was not given, which only a secret may do.
    pub(super) target: String,
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    Bind {
        from: Option<String>,
        source: String,
        writable: bool,
    },
    Cache {
        id: Option<String>,
        read_only: bool,
        owner: Owner,
    },
    Tmpfs {
        size: Option<String>,
    },
    Secret {
        id: Option<String>,
        required: bool,
        /// The variable that holds it, instead of a file or besides.
        env: Option<String>,
        owner: Owner,
    },
}

/// Mode, user and group of what a mount makes; each as written.
#[derive(Debug, Clone, Default)]
pub(super) struct Owner {
    pub(super) mode: Option<String>,
    pub(super) uid: Option<String>,
    pub(super) gid: Option<String>,
}

/// The `key=value` parts, of which the known ones are taken one by one.
struct Parts<'t> {
    line: usize,
    kind: &'t str,
    left: Vec<(String, Option<&'t str>)>,
}

impl Mount {
    pub(super) fn parse(line: usize, text: &str) -> Result<Self, DockerfileError> {
        let mut parts = Parts {
            line,
            kind: "bind",
            left: Vec::new(),
        };
        for part in text.split(',') {
            let (key, value) = match part.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (part, None),
            };
            parts.left.push((key.trim().to_ascii_lowercase(), value));
        }
        parts.kind = parts.take(&["type"])?.unwrap_or("bind");
        let target = parts.take(&["target", "dst", "destination"])?;
        let kind = match parts.kind {
            "bind" => parts.bind()?,
            "cache" => parts.cache()?,
            "tmpfs" => Kind::Tmpfs {
                size: parts.take(&["size"])?.map(str::to_owned),
            },
            "secret" => parts.secret(target.is_some())?,
            "ssh" => {
                let advice = "use a secret mount with a token or key";
                return Err(unsupported(line, "RUN --mount=type=ssh", advice));
            }
            other => {
                let problem =
                    format!("--mount=type={other} is none of bind, cache, tmpfs and secret");
                return Err(invalid(line, problem));
            }
        };
        if let Some((key, _)) = parts.left.first() {
            let problem = format!("--mount=type={} has no option `{key}`", parts.kind);
            return Err(invalid(line, problem));
        }
        if target.is_none_or(str::is_empty) && !matches!(kind, Kind::Secret { .. }) {
            let problem = format!("--mount=type={} names no target", parts.kind);
            return Err(invalid(line, problem));
        }
        Ok(Self {
            kind,
            target: target.unwrap_or_default().to_owned(),
        })
    }

    /// The stage or image that it shows, unless that is the build context.
    pub(super) fn from(&self) -> Option<&str> {
        match &self.kind {
            Kind::Bind { from, .. } => from.as_deref(),
            Kind::Cache { .. } | Kind::Tmpfs { .. } | Kind::Secret { .. } => None,
        }
    }
}

impl<'t> Parts<'t> {
    /// The value of the option of these names.
    fn take(&mut self, names: &[&str]) -> Result<Option<&'t str>, DockerfileError> {
        let mut found = None;
        let mut missing = None;
        self.left.retain(|(key, value)| {
            let is_it = names.contains(&key.as_str());
            if is_it {
                found = *value;
                missing = value.is_none().then(|| key.clone());
            }
            !is_it
        });
        match missing {
            Some(key) => Err(invalid(self.line, format!("--mount: `{key}` has no value"))),
            None => Ok(found),
        }
    }

    /// Whether the switch of these names is on.
    fn switch(&mut self, names: &[&str]) -> Result<Option<bool>, DockerfileError> {
        let Some(at) = self
            .left
            .iter()
            .position(|(key, _)| names.contains(&key.as_str()))
        else {
            return Ok(None);
        };
        let (key, value) = self.left.remove(at);
        let problem = || invalid(self.line, format!("--mount: `{key}` is true or false"));
        truth(value).ok_or_else(problem).map(Some)
    }

    fn read_only(&mut self) -> Result<Option<bool>, DockerfileError> {
        let read_only = self.switch(&["readonly", "ro"])?;
        let writable = self.switch(&["readwrite", "rw"])?;
        Ok(read_only.or_else(|| writable.map(|writable| !writable)))
    }

    fn owner(&mut self) -> Result<Owner, DockerfileError> {
        Ok(Owner {
            mode: self.take(&["mode"])?.map(str::to_owned),
            uid: self.take(&["uid"])?.map(str::to_owned),
            gid: self.take(&["gid"])?.map(str::to_owned),
        })
    }

    fn bind(&mut self) -> Result<Kind, DockerfileError> {
        let from = self.take(&["from"])?;
        let writable = !self.read_only()?.unwrap_or(true);
        if let Some(from) = from {
            check_stage(self.line, from)?;
            if writable {
                let what = "a writable --mount=type=bind of a stage or image";
                return Err(unsupported(self.line, what, "COPY --from it instead"));
            }
        }
        let source = self.take(&["source", "src"])?.unwrap_or_default();
        Ok(Kind::Bind {
            from: from.map(str::to_owned),
            source: source.to_owned(),
            writable,
        })
    }

    fn cache(&mut self) -> Result<Kind, DockerfileError> {
        if self.take(&["from"])?.is_some() || self.take(&["source", "src"])?.is_some() {
            let what = "--mount=type=cache with from or source";
            let advice = "fill the cache in the RUN step itself";
            return Err(unsupported(self.line, what, advice));
        }
        // One build has a cache at a time, which keeps the promise of each of the three.
        match self.take(&["sharing"])? {
            None | Some("shared" | "private" | "locked") => {}
            Some(other) => {
                let problem = format!("sharing={other} is none of shared, private and locked");
                return Err(invalid(self.line, problem));
            }
        }
        Ok(Kind::Cache {
            id: self.take(&["id"])?.map(str::to_owned),
            read_only: self.read_only()?.unwrap_or(false),
            owner: self.owner()?,
        })
    }

    fn secret(&mut self, has_target: bool) -> Result<Kind, DockerfileError> {
        let id = self.take(&["id"])?;
        let source = self.take(&["source", "src"])?;
        if id.is_some() && source.is_some() {
            return Err(invalid(
                self.line,
                "a secret has an id or a source, not both",
            ));
        }
        let id = id.or(source);
        if id.is_none() && !has_target {
            return Err(invalid(self.line, "a secret needs an id or a target"));
        }
        Ok(Kind::Secret {
            id: id.map(str::to_owned),
            required: self.switch(&["required"])?.unwrap_or(false),
            env: self.take(&["env"])?.map(str::to_owned),
            owner: self.owner()?,
        })
    }
}
