//! What a Dockerfile calls an image of a registry: `[HOST/]REPOSITORY[:TAG][@DIGEST]`.

use crate::digest::Digest;
use std::fmt;

/// Docker Hub, which a reference without a host means.
const HUB: &str = "docker.io";
/// The folder of Docker Hub that a name without a folder means.
const HUB_OFFICIAL: &str = "library/";
const REPOSITORY_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;

/// An image of a registry, by its full name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageRef {
    host: String,
    repository: String,
    version: Version,
}

/// Which image of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Version {
    Tag(String),
    Digest(Digest),
}

/// Why a text names no image of a registry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no image reference, as in debian:12 or registry.example.com/team/app@sha256:…: {problem}"
)]
pub struct ReferenceError {
    text: String,
    problem: &'static str,
}

impl ImageRef {
    /// Reads a reference as Docker does: no host means Docker Hub, no tag means `latest`, and a digest wins over a tag.
    ///
    /// # Errors
    /// The text is no reference.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        Self::checked(text).map_err(|problem| ReferenceError {
            text: text.chars().filter(|c| !c.is_control()).take(200).collect(),
            problem,
        })
    }

    fn checked(text: &str) -> Result<Self, &'static str> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest.parse::<Digest>();
                (
                    rest,
                    Some(digest.map_err(|_| "its digest is not sha256: and 64 hex digits")?),
                )
            }
            None => (text, None),
        };
        let last = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[last..].split_once(':') {
            Some((_, tag)) => (&rest[..rest.len() - tag.len() - 1], tag),
            None => (rest, "latest"),
        };
        let (host, repository) = match name.split_once('/') {
            Some((host, repository)) if is_host(host) => (host, repository.to_owned()),
            _ => (HUB, name.to_owned()),
        };
        let host = if host == "index.docker.io" { HUB } else { host };
        let repository = match host == HUB && !repository.contains('/') {
            true => format!("{HUB_OFFICIAL}{repository}"),
            false => repository,
        };
        if repository.len() > REPOSITORY_BYTES_MAX {
            return Err("its name is too long");
        }
        if !repository.split('/').all(is_name_part) {
            return Err("names are lower-case letters and digits, joined by `.`, `_` or `-`");
        }
        let is_tag_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if tag.is_empty()
            || tag.len() > TAG_BYTES_MAX
            || tag.starts_with(['.', '-'])
            || !tag.bytes().all(is_tag_byte)
        {
            return Err("a tag is up to 128 letters, digits, `_`, `.` and `-`");
        }
        Ok(Self {
            host: host.to_owned(),
            repository,
            version: digest.map_or_else(|| Version::Tag(tag.to_owned()), Version::Digest),
        })
    }

    /// The registry's host name, with its port where it has one.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository, as in `library/debian`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The digest that the image must have.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        match self.version {
            Version::Tag(_) => None,
            Version::Digest(digest) => Some(digest),
        }
    }

    /// Whether no registry can have it: `localhost` without a port is what this host's own images are called.
    #[must_use]
    pub fn is_of_this_host(&self) -> bool {
        self.host == "localhost"
    }

    /// The same repository's image of this digest.
    pub(super) fn pinned(&self, digest: Digest) -> Self {
        Self {
            version: Version::Digest(digest),
            ..self.clone()
        }
    }

    /// What a manifest is asked for by: the tag or the digest.
    pub(super) fn version(&self) -> String {
        match &self.version {
            Version::Tag(tag) => tag.clone(),
            Version::Digest(digest) => digest.to_string(),
        }
    }

    /// Names that mean this image, the full one first.
    #[must_use]
    pub fn spellings(&self) -> Vec<String> {
        let full = self.to_string();
        let short = full
            .strip_prefix(HUB)
            .and_then(|rest| rest.strip_prefix('/'));
        let shortest = short.and_then(|rest| rest.strip_prefix(HUB_OFFICIAL));
        let others = [short, shortest]
            .into_iter()
            .flatten()
            .map(str::to_owned)
            .collect::<Vec<_>>();
        std::iter::once(full.clone()).chain(others).collect()
    }
}

/// The canonical reference: one image, one text.
impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            host,
            repository,
            version,
        } = self;
        match version {
            Version::Tag(tag) => write!(f, "{host}/{repository}:{tag}"),
            Version::Digest(digest) => write!(f, "{host}/{repository}@{digest}"),
        }
    }
}

/// The first part of a name is a host when it looks like one.
pub(super) fn is_host(part: &str) -> bool {
    if part == "localhost" {
        return true;
    }
    let (name, port) = match part.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            (
                "",
                port.strip_prefix(':')
                    .or_else(|| port.is_empty().then_some("1")),
            )
        }
        None => match part.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (part, Some("1")),
        },
    };
    let is_label = |label: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        !label.is_empty() && !label.starts_with('-') && label.bytes().all(inner)
    };
    let port_good = port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    let plain_good = name.split('.').all(is_label);
    let bracketed = part.starts_with('[');
    port_good && (bracketed || (plain_good && part.contains(['.', ':'])))
}

/// Whether this may stand between the slashes of a name.
pub(crate) fn is_name_part(part: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let joined = |b: u8| plain(b) || matches!(b, b'.' | b'_' | b'-');
    let bytes = part.as_bytes();
    let ends_well = |b: Option<&u8>| b.is_some_and(|b| plain(*b));
    ends_well(bytes.first()) && ends_well(bytes.last()) && bytes.iter().all(|b| joined(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_has_one_full_name() {
        let digest = Digest::of(b"x");
        let pinned = format!("docker.io/library/debian@{digest}");
        for (text, expected) in [
            ("debian", "docker.io/library/debian:latest"),
            ("debian:12", "docker.io/library/debian:12"),
            ("library/debian:12", "docker.io/library/debian:12"),
            ("docker.io/debian:12", "docker.io/library/debian:12"),
            (
                "index.docker.io/library/debian:12",
                "docker.io/library/debian:12",
            ),
            ("bitnami/redis", "docker.io/bitnami/redis:latest"),
            ("ghcr.io/a/b/c:v1", "ghcr.io/a/b/c:v1"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
            ("127.0.0.1:5000/team/app:1", "127.0.0.1:5000/team/app:1"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("localhost/debian:12", "localhost/debian:12"),
            (
                "public.ecr.aws/lambda/microvms:al2023-minimal",
                "public.ecr.aws/lambda/microvms:al2023-minimal",
            ),
            (&format!("debian:12@{digest}"), &pinned),
            (&format!("debian@{digest}"), &pinned),
        ] {
            let reference = ImageRef::parse(text).unwrap();
            assert_eq!(reference.to_string(), expected, "{text}");
            assert_eq!(ImageRef::parse(expected).unwrap(), reference);
        }
        let spellings = ImageRef::parse("debian:12").unwrap().spellings();
        assert_eq!(
            spellings,
            [
                "docker.io/library/debian:12",
                "library/debian:12",
                "debian:12"
            ]
        );
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for bad in [
            "",
            ":",
            "/",
            "a:",
            ":1",
            "A",
            "a b",
            "a//b",
            "a/../b",
            "../a",
            "a:b:c",
            "a@sha256:00",
            "a@md5:00",
            "a@",
            "registry.example.com/",
            "registry.example.com:99999/a",
            "a:.x",
            "http://a/b",
            "ex.com/a?x=y",
            "ex.com/a#b",
            "user@ex.com/a",
            "a\n",
            "-.com/a",
        ] {
            assert!(ImageRef::parse(bad).is_err(), "{bad:?}");
        }
        assert!(ImageRef::parse(&"a".repeat(300)).is_err());
    }
}
