//! Names of images: `[HOST[:PORT]/]NAME[/NAME…][:TAG]`.

use super::LocalImageError;
use crate::oci::reference::is_name_part;

/// Longest name and longest tag, as in registries.
const NAME_BYTES_MAX: usize = 200;
const TAG_BYTES_MAX: usize = 128;
const EXTENSION: &str = ".json";

/// A reference with its tag, known to be safe as a file name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    name: String,
    tag: String,
}

impl Reference {
    pub(super) fn parse(text: &str) -> Result<Self, LocalImageError> {
        Self::checked(text).map_err(|problem| LocalImageError::Reference {
            reference: text.chars().take(NAME_BYTES_MAX).collect(),
            problem,
        })
    }

    fn checked(text: &str) -> Result<Self, &'static str> {
        if text.contains('@') {
            return Err("the local store knows tags, not digests");
        }
        let last = text.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match text[last..].find(':') {
            Some(colon) => (&text[..last + colon], &text[last + colon + 1..]),
            None => (text, "latest"),
        };
        if name.len() > NAME_BYTES_MAX {
            return Err("the name is too long");
        }
        let mut parts = name.split('/').peekable();
        let first = parts.next().unwrap_or_default();
        // Only the first of several parts may be a host with its port.
        let host = parts.peek().and_then(|_| first.split_once(':'));
        let first = match host {
            Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
                host
            }
            _ => first,
        };
        if !is_name_part(first) || !parts.all(is_name_part) {
            return Err("names are lower-case letters and digits, joined by `.`, `_` or `-`");
        }
        let is_tag_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        let starts_well = !tag.is_empty() && !tag.starts_with(['.', '-']);
        if !starts_well || tag.len() > TAG_BYTES_MAX || !tag.bytes().all(is_tag_byte) {
            return Err("a tag is up to 128 letters, digits, `_`, `.` and `-`");
        }
        let (name, tag) = (name.to_owned(), tag.to_owned());
        Ok(Self { name, tag })
    }

    /// The name of the image's record. `+` is in no reference, so it stands for `/`.
    pub(super) fn file_name(&self) -> String {
        format!("{}{EXTENSION}", self.to_string().replace('/', "+"))
    }

    pub(super) fn from_file_name(name: &str) -> Option<Self> {
        Self::checked(&name.strip_suffix(EXTENSION)?.replace('+', "/")).ok()
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.name, self.tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_have_one_canonical_form() {
        let table = [
            ("localhost/debian:12", "localhost/debian:12"),
            ("debian", "debian:latest"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("a.b_c-d/e:V1.0-x", "a.b_c-d/e:V1.0-x"),
        ];
        for (text, expected) in table {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(reference.to_string(), expected);
            assert_eq!(
                Reference::from_file_name(&reference.file_name()),
                Some(reference)
            );
        }
    }

    #[test]
    fn what_could_leave_the_store_is_no_reference() {
        let long = "a".repeat(300);
        for bad in [
            "",
            "/",
            "..",
            "../x",
            "a/../b",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:.",
            "a:-x",
            "A",
            "a b",
            "a\0",
            "a:x/y:",
            "a+b",
            "a@sha256:00",
            "a:b:c",
            ".a",
            "a:x\n",
            "localhost:x/a",
            &long,
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
    }
}
