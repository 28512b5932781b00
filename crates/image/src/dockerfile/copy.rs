//! COPY and ADD: what goes where, and how.

use super::instruction::{Copy, Source as Written};
use super::stage::{StagePlanner, join, user};
use super::{CopySource, CopyStep, DockerfileError, Source, invalid, unsupported};

impl StagePlanner<'_> {
    pub(super) fn copy(&mut self, line: usize, copy: &Copy) -> Result<CopyStep, DockerfileError> {
        let mut sources = Vec::with_capacity(copy.sources.len());
        for source in &copy.sources {
            sources.push(self.source(line, copy.is_add, source)?);
        }
        let dest = self.word(line, &copy.dest)?;
        let dest = destination(self.config.cwd(), &dest);
        if sources.len() > 1 && !dest.ends_with('/') {
            let problem = "several sources are copied, so the destination must end in `/`";
            return Err(invalid(line, problem));
        }
        let owner = match &copy.chown {
            Some(raw) => user(line, self.word(line, raw)?)?,
            None => String::new(),
        };
        let chmod = match &copy.chmod {
            Some(raw) => Some(mode(line, &self.word(line, raw)?)?),
            None => None,
        };
        let checksum = match &copy.checksum {
            Some(raw) => Some(checksum(line, &self.word(line, raw)?, &sources)?),
            None => None,
        };
        let mut excludes = Vec::with_capacity(copy.excludes.len());
        for raw in &copy.excludes {
            excludes.push(self.word(line, raw)?);
        }
        Ok(CopyStep {
            from: copy
                .from
                .as_ref()
                .map_or(Source::Context, |from| self.froms[from].clone()),
            sources,
            dest,
            owner,
            chmod,
            checksum,
            parents: copy.parents,
            excludes,
            unpack_files: copy.is_add && copy.unpack.unwrap_or(true),
            unpack_urls: copy.is_add && copy.unpack.unwrap_or(false),
        })
    }

    fn source(
        &mut self,
        line: usize,
        is_add: bool,
        source: &Written,
    ) -> Result<CopySource, DockerfileError> {
        let raw = match source {
            Written::Path(raw) => raw,
            Written::Document(document) => {
                let content = document.content();
                return Ok(CopySource::Text {
                    name: document.name.clone(),
                    content: if document.expand {
                        self.document(line, &content)?
                    } else {
                        content
                    },
                });
            }
        };
        let path = self.word(line, raw)?;
        if path.is_empty() {
            return Err(invalid(line, "a source is empty; is its variable set?"));
        }
        if !is_add {
            return Ok(CopySource::Path(path));
        }
        if is_git(&path) {
            let what = format!("ADD of a git repository, `{path}`,");
            return Err(unsupported(line, what, super::GIT_ADVICE));
        }
        match path.split_once("://") {
            Some(("http" | "https", rest)) => {
                let name = file_name(rest);
                Ok(CopySource::Url { url: path, name })
            }
            Some((scheme, _)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                let what = format!("ADD of `{path}`");
                Err(unsupported(line, what, "use http:// or https://"))
            }
            _ => Ok(CopySource::Path(path)),
        }
    }
}

/// The absolute destination; it ends in `/` when it is a folder by its spelling.
fn destination(cwd: &str, dest: &str) -> String {
    let is_folder = dest.is_empty()
        || dest.ends_with('/')
        || matches!(dest, "." | "..")
        || dest.ends_with("/.")
        || dest.ends_with("/..");
    let mut path = join(cwd, dest);
    if is_folder && path != "/" {
        path.push('/');
    }
    path
}

/// Whether a source is what Docker would clone.
fn is_git(source: &str) -> bool {
    let url = source.split('#').next().unwrap_or(source);
    source.starts_with("git@")
        || ["git://", "ssh://"]
            .iter()
            .any(|scheme| source.starts_with(scheme))
        || (url.contains("://") && url.ends_with(".git"))
}

/// The last part of a URL's path, which names the file in a folder; empty when there is none.
fn file_name(after_scheme: &str) -> String {
    let path = after_scheme.split(['?', '#']).next().unwrap_or_default();
    match path.split_once('/') {
        Some((_, path)) => path.rsplit('/').next().unwrap_or_default().to_owned(),
        None => String::new(),
    }
}

fn mode(line: usize, octal: &str) -> Result<u32, DockerfileError> {
    let mode = u32::from_str_radix(octal, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777);
    mode.filter(|_| octal.bytes().all(|b| b.is_ascii_digit()))
        .ok_or_else(|| invalid(line, format!("--chmod={octal} is no octal mode, as in 755")))
}

/// The hex digits of a `sha256:` checksum.
fn checksum(line: usize, text: &str, sources: &[CopySource]) -> Result<String, DockerfileError> {
    const HEX_DIGITS: usize = 64;
    if !matches!(sources, [CopySource::Url { .. }]) {
        return Err(invalid(line, "--checksum goes with one URL"));
    }
    let hex = text.strip_prefix("sha256:").unwrap_or_default();
    let plain = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if hex.len() != HEX_DIGITS || !hex.bytes().all(plain) {
        let problem = format!("--checksum={text} is not sha256: and {HEX_DIGITS} hex digits");
        return Err(invalid(line, problem));
    }
    Ok(hex.to_owned())
}
