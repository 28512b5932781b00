//! Cache keys of build steps.
//!
//! A key names the disk after a step: it is a SHA-256 over the key of the disk before it and all that
//! the step depends on, so equal keys mean equal disks as far as a build can be reproduced. The chain
//! begins with the base image's digest. The encoding is part of the format of the layer cache: a
//! change of it needs a new [`FORMAT`], which makes every older layer miss.

use crate::dockerfile::{PROXY_ARGS, RunStep, Step, StepKind};
use aws_lc_rs::digest;

/// Version of the encoding below.
const FORMAT: &[u8] = b"dormouse layer 1";

/// Key of the disk after `step`, in hex. `parent` is the key before it, or the base image's digest;
/// `input` is the digest of what a copy step copies (`CopyOutput::digest`).
///
/// A step that leaves the disk as it is has its parent's key. The values of proxy variables do not
/// count, as in Docker: they change how a download goes, not what it brings.
#[must_use]
pub fn key(parent: &str, step: &Step, input: Option<&str>) -> String {
    let mut hash = Fields(digest::Context::new(&digest::SHA256));
    hash.bytes(FORMAT);
    hash.text(parent);
    match &step.kind {
        StepKind::Config => return parent.to_owned(),
        StepKind::Run(run) => hash.run(run),
        StepKind::Copy(copy) => {
            hash.text("copy");
            hash.text(&copy.dest);
            hash.text(&copy.owner);
            hash.text(
                &copy
                    .chmod
                    .map_or_else(String::new, |mode| format!("{mode:o}")),
            );
            hash.text(input.unwrap_or_default());
        }
        StepKind::Workdir { path, owner } => {
            hash.text("workdir");
            hash.text(path);
            hash.text(owner);
        }
    }
    hex::encode(hash.0.finish())
}

/// Hashes fields, each with its length, so that no two lists of fields look alike.
struct Fields(digest::Context);

impl Fields {
    fn bytes(&mut self, field: &[u8]) {
        self.0.update(&(field.len() as u64).to_be_bytes());
        self.0.update(field);
    }

    fn text(&mut self, field: &str) {
        self.bytes(field.as_bytes());
    }

    fn run(&mut self, run: &RunStep) {
        self.text("run");
        self.text(&run.cwd);
        self.text(&run.user);
        self.text(&run.argv.len().to_string());
        for word in &run.argv {
            self.text(word);
        }
        let counts = |(name, _): &&(String, String)| !PROXY_ARGS.contains(&name.as_str());
        for (name, value) in run.env.iter().filter(counts) {
            self.text(name);
            self.text(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ImageConfig;
    use crate::dockerfile::CopyStep;

    fn step(kind: StepKind) -> Step {
        Step {
            line: 1,
            text: String::new(),
            kind,
            config: ImageConfig::default(),
        }
    }

    fn run(argv: &[&str], env: &[(&str, &str)]) -> Step {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        step(StepKind::Run(RunStep {
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            env: env.iter().map(owned).collect(),
            cwd: "/".to_owned(),
            user: String::new(),
        }))
    }

    fn copy(dest: &str) -> Step {
        step(StepKind::Copy(CopyStep {
            sources: vec!["a".to_owned()],
            dest: dest.to_owned(),
            owner: String::new(),
            chmod: None,
            is_add: false,
        }))
    }

    #[test]
    fn a_key_is_stable() {
        // Written down on purpose: a changed value makes every cached layer useless.
        let written = "67dc4bc8c5a7fcede80085a62e3ec5fecba8395c3ee18d5718931edf0ce6102e";
        assert_eq!(
            key(
                "base",
                &run(&["/bin/sh", "-c", "true"], &[("A", "1")]),
                None
            ),
            written
        );
    }

    #[test]
    fn each_thing_that_matters_changes_the_key() {
        let base = key("p", &run(&["a", "b"], &[("A", "1")]), None);
        let others = [
            key("q", &run(&["a", "b"], &[("A", "1")]), None),
            key("p", &run(&["ab"], &[("A", "1")]), None),
            key("p", &run(&["a", "b", "A", "1"], &[]), None),
            key("p", &run(&["a", "b"], &[("A", "2")]), None),
            key("p", &copy("/x"), Some("d1")),
            key("p", &copy("/x"), Some("d2")),
            key("p", &copy("/x/"), Some("d1")),
            key(
                "p",
                &step(StepKind::Workdir {
                    path: "/x".to_owned(),
                    owner: String::new(),
                }),
                None,
            ),
        ];
        for (index, other) in others.iter().enumerate() {
            assert_ne!(*other, base);
            assert!(!others[..index].contains(other), "{index}");
        }
    }

    #[test]
    fn proxies_and_configuration_do_not_count() {
        let with = run(&["a"], &[("http_proxy", "http://p"), ("A", "1")]);
        assert_eq!(
            key("p", &with, None),
            key("p", &run(&["a"], &[("A", "1")]), None)
        );
        assert_eq!(key("p", &step(StepKind::Config), None), "p");
    }
}
