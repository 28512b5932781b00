//! Cache keys of build steps.
//!
//! A key names the disk after a step: it is a SHA-256 over the key of the disk before it and all that
//! the step depends on, so equal keys mean equal disks as far as a build can be reproduced. The chain
//! begins with the account and the base image's digest: accounts share no layer. The encoding is part of
//! the format of the layer cache: a change of it needs a new [`FORMAT`], which makes every older layer
//! miss.

use crate::dockerfile::{
    CopySource, CopyStep, FileOwner, MountKind, RunStep, Source, Step, StepKind,
};
use aws_lc_rs::digest;
use dormouse_core::AccountId;

/// Version of the encoding below.
const FORMAT: &[u8] = b"dormouse layer 3";

/// Key of a base disk, in hex: where an account's chain begins. `digest` is the image's.
#[must_use]
pub fn base_key(account: &AccountId, digest: &str) -> String {
    let mut hash = Fields::new();
    hash.text("base");
    hash.text(account.as_str());
    hash.text(digest);
    hash.finish()
}

/// Key of the disk after `step`, in hex. `parent` is the key before it. `inputs` says what its files
/// are, in the order in which the step names them: of a copy step the digest of what it copies of the
/// context and the key of the disk that it copies from, of a command the same of each bind mount.
///
/// A step that leaves the disk as it is has its parent's key. The proxies of a build and the values of
/// secrets do not count, as in Docker, and neither does what a cache mount holds: they change how a
/// result comes about, not what it is. A proxy that the Dockerfile itself sets or declares counts like any
/// variable.
#[must_use]
pub fn key(parent: &str, step: &Step, inputs: &[String]) -> String {
    let mut hash = Fields::new();
    hash.text(parent);
    match &step.kind {
        StepKind::Config => return parent.to_owned(),
        StepKind::Run(run) => hash.run(run),
        StepKind::Copy(copy) => hash.copy(copy),
        StepKind::Workdir { path, owner } => {
            hash.text("workdir");
            hash.text(path);
            hash.text(owner);
        }
    }
    hash.list(inputs);
    hash.finish()
}

/// Hashes fields, each with its length, so that no two lists of fields look alike.
struct Fields(digest::Context);

impl Fields {
    fn new() -> Self {
        let mut fields = Self(digest::Context::new(&digest::SHA256));
        fields.bytes(FORMAT);
        fields
    }

    fn finish(self) -> String {
        hex::encode(self.0.finish())
    }

    fn bytes(&mut self, field: &[u8]) {
        self.0.update(&(field.len() as u64).to_be_bytes());
        self.0.update(field);
    }

    fn text(&mut self, field: &str) {
        self.bytes(field.as_bytes());
    }

    fn list(&mut self, fields: &[String]) {
        self.text(&fields.len().to_string());
        for field in fields {
            self.text(field);
        }
    }

    fn run(&mut self, run: &RunStep) {
        self.text(if run.offline { "run offline" } else { "run" });
        self.text(&run.cwd);
        self.text(&run.user);
        self.list(&run.argv);
        for (name, value) in &run.env {
            self.text(name);
            self.text(value);
        }
        for mount in &run.mounts {
            self.text("mount");
            self.text(&mount.target);
            self.mount(&mount.kind);
        }
    }

    fn mount(&mut self, kind: &MountKind) {
        match kind {
            MountKind::Bind {
                from,
                path,
                writable,
            } => {
                self.text("bind");
                self.source(from);
                self.text(path);
                self.text(&writable.to_string());
            }
            MountKind::Cache { id, .. } => {
                self.text("cache");
                self.text(id);
            }
            MountKind::Tmpfs { .. } => self.text("tmpfs"),
            MountKind::Secret { id, env, owner, .. } => {
                let FileOwner { mode, uid, gid } = owner;
                self.text("secret");
                self.text(id);
                self.text(env.as_deref().unwrap_or_default());
                self.text(&format!("{mode:o} {uid} {gid}"));
            }
            MountKind::Script { content } => {
                self.text("script");
                self.text(content);
            }
        }
    }

    fn copy(&mut self, copy: &CopyStep) {
        self.text("copy");
        self.source(&copy.from);
        for source in &copy.sources {
            match source {
                // The digest of the inputs tells what a path of the context stands for.
                CopySource::Path(_) if copy.from == Source::Context => {}
                CopySource::Path(path) => self.text(path),
                CopySource::Text { name, content } => {
                    self.text(name);
                    self.text(content);
                }
                CopySource::Url { url, .. } => {
                    self.text("url");
                    self.text(url);
                }
            }
        }
        self.text(&copy.dest);
        self.text(&copy.owner);
        let mode = copy.chmod.map(|mode| format!("{mode:o}"));
        self.text(&mode.unwrap_or_default());
        self.text(copy.checksum.as_deref().unwrap_or_default());
        self.text(&format!(
            "{} {} {}",
            copy.parents, copy.unpack_files, copy.unpack_urls
        ));
        self.list(&copy.excludes);
    }

    fn source(&mut self, source: &Source) {
        // Which stage or image it is, the inputs tell.
        self.text(match source {
            Source::Context => "context",
            Source::Stage(_) | Source::Image(_) => "disk",
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dockerfile::RunMount;

    fn step(kind: StepKind) -> Step {
        Step {
            line: 1,
            text: String::new(),
            kind,
        }
    }

    fn command(argv: &[&str], env: &[(&str, &str)]) -> RunStep {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        RunStep {
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            env: env.iter().map(owned).collect(),
            proxies: Vec::new(),
            cwd: "/".to_owned(),
            user: String::new(),
            mounts: Vec::new(),
            offline: false,
        }
    }

    fn run(argv: &[&str], env: &[(&str, &str)]) -> Step {
        step(StepKind::Run(command(argv, env)))
    }

    fn mounted(kind: MountKind) -> Step {
        let mut run = command(&["a", "b"], &[("A", "1")]);
        run.mounts.push(RunMount {
            target: "/m".to_owned(),
            kind,
        });
        step(StepKind::Run(run))
    }

    fn copy(dest: &str, from: Source, path: &str) -> Step {
        step(StepKind::Copy(CopyStep {
            from,
            sources: vec![CopySource::Path(path.to_owned())],
            dest: dest.to_owned(),
            owner: String::new(),
            chmod: None,
            checksum: None,
            parents: false,
            excludes: Vec::new(),
            unpack_files: false,
            unpack_urls: false,
        }))
    }

    fn inputs(inputs: &[&str]) -> Vec<String> {
        inputs.iter().map(|input| (*input).to_owned()).collect()
    }

    fn account(number: &str) -> AccountId {
        AccountId::parse(number).expect("an account number")
    }

    #[test]
    fn a_key_is_stable() {
        // Written down on purpose: a changed value makes every cached layer useless.
        let base = base_key(&account("123456789012"), "sha256:00");
        let step = run(&["/bin/sh", "-c", "true"], &[("A", "1")]);
        let written = [
            "9e07f192d4b4bc8b2881344d8756ce625ade56ca664c17d73667b4cafea14a96",
            "f52b7751bc5a3a870c5ff29f43f30556b2cd431682fa4358f6db1294b9c1c09a",
        ];
        assert_eq!([base.as_str(), &key(&base, &step, &[])], written);
    }

    #[test]
    fn each_thing_that_matters_changes_the_key() {
        let base = key("p", &run(&["a", "b"], &[("A", "1")]), &[]);
        let secret = |id: &str| MountKind::Secret {
            id: id.to_owned(),
            required: false,
            env: None,
            owner: FileOwner {
                mode: 0o400,
                uid: 0,
                gid: 0,
            },
        };
        let bind = |path: &str| MountKind::Bind {
            from: Source::Stage(0),
            path: path.to_owned(),
            writable: false,
        };
        let script = MountKind::Script {
            content: "#!x".to_owned(),
        };
        let others = [
            key("q", &run(&["a", "b"], &[("A", "1")]), &[]),
            key("p", &run(&["ab"], &[("A", "1")]), &[]),
            key("p", &run(&["a", "b", "A", "1"], &[]), &[]),
            key("p", &run(&["a", "b"], &[("A", "2")]), &[]),
            key("p", &copy("/x", Source::Context, "a"), &inputs(&["d1"])),
            key("p", &copy("/x", Source::Context, "a"), &inputs(&["d2"])),
            key("p", &copy("/x/", Source::Context, "a"), &inputs(&["d1"])),
            key("p", &copy("/x", Source::Stage(0), "a"), &inputs(&["d1"])),
            key("p", &copy("/x", Source::Stage(0), "b"), &inputs(&["d1"])),
            key("p", &mounted(secret("s")), &[]),
            key("p", &mounted(secret("t")), &[]),
            key("p", &mounted(bind("/")), &inputs(&["d1"])),
            key("p", &mounted(bind("/")), &inputs(&["d2"])),
            key("p", &mounted(bind("/x")), &inputs(&["d1"])),
            key("p", &mounted(script), &[]),
            key(
                "p",
                &step(StepKind::Workdir {
                    path: "/x".to_owned(),
                    owner: String::new(),
                }),
                &[],
            ),
        ];
        for (index, other) in others.iter().enumerate() {
            assert_ne!(*other, base);
            assert!(!others[..index].contains(other), "{index}");
        }
    }

    #[test]
    fn accounts_share_nothing() {
        let keys = ["123456789012", "210987654321"].map(|number| base_key(&account(number), "d"));
        assert_ne!(keys[0], keys[1]);
    }

    #[test]
    fn proxies_of_the_build_and_configuration_do_not_count() {
        let proxy = ("http_proxy".to_owned(), "http://p".to_owned());
        let mut with = command(&["a"], &[("A", "1")]);
        with.proxies.push(proxy);
        let without = key("p", &run(&["a"], &[("A", "1")]), &[]);
        assert_eq!(key("p", &step(StepKind::Run(with)), &[]), without);
        let own = run(&["a"], &[("A", "1"), ("http_proxy", "http://p")]);
        assert_ne!(key("p", &own, &[]), without);
        assert_eq!(key("p", &step(StepKind::Config), &[]), "p");
    }

    #[test]
    fn the_number_of_a_stage_does_not_count() {
        let at = |stage| key("p", &copy("/x", Source::Stage(stage), "a"), &inputs(&["d"]));
        assert_eq!(at(0), at(1));
    }
}
