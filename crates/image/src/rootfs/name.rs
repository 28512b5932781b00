//! Paths of tar entries, cut into names that are safe to use one by one.

use super::RootfsError;
use dormouse_core::limits;

/// Longest name of a file, as Linux has it.
const NAME_BYTES_MAX: usize = 255;

/// The names of an entry's path. A leading `/` is none of them: Docker, too, takes such a path from the root on.
pub(super) fn names(path: &[u8]) -> Result<Vec<&[u8]>, RootfsError> {
    if path.len() > limits::ROOTFS_PATH_BYTES_MAX {
        return Err(refused(path, "its path is too long"));
    }
    let mut names = Vec::new();
    for name in path.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err(RootfsError::Escape { entry: shown(path) }),
            name if name.len() > NAME_BYTES_MAX => {
                return Err(refused(path, "a name in its path is too long"));
            }
            name if name.contains(&0) => return Err(refused(path, "its path has a zero byte")),
            name => names.push(name),
        }
    }
    Ok(names)
}

/// What an entry's last name asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asks<'a> {
    /// A file of this name.
    Entry(&'a [u8]),
    /// That what lower layers have under this name is gone.
    Whiteout(&'a [u8]),
    /// That what lower layers have in this folder is gone.
    Opaque,
    /// Nothing: bookkeeping of a storage driver.
    Nothing,
}

/// Reads the marks that layers have in the place of what they delete.
pub(super) fn asks<'a>(path: &[u8], last: &'a [u8]) -> Result<Asks<'a>, RootfsError> {
    let Some(hidden) = last.strip_prefix(WHITEOUT) else {
        return Ok(Asks::Entry(last));
    };
    match hidden {
        b".wh..opq" => Ok(Asks::Opaque),
        b"" | b"." | b".." => Err(refused(path, "a whiteout of no file")),
        hidden if hidden.starts_with(WHITEOUT) => Ok(Asks::Nothing),
        hidden => Ok(Asks::Whiteout(hidden)),
    }
}

/// What the name of a whiteout begins with, so that no file's may.
pub(super) const WHITEOUT: &[u8] = b".wh.";

pub(super) fn refused(path: &[u8], problem: &'static str) -> RootfsError {
    let entry = shown(path);
    RootfsError::Entry { entry, problem }
}

/// A path for people, cut and without what could play with a terminal.
pub(super) fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_its_names() {
        for (path, expected) in [
            ("a/b", vec!["a", "b"]),
            ("./a//b/.", vec!["a", "b"]),
            ("/etc/passwd", vec!["etc", "passwd"]),
            ("./", vec![]),
            ("", vec![]),
            ("...", vec!["..."]),
        ] {
            let names: Vec<_> = names(path.as_bytes()).unwrap();
            let expected: Vec<_> = expected.iter().map(|name| name.as_bytes()).collect();
            assert_eq!(names, expected, "{path}");
        }
        for bad in [
            "..",
            "a/../b",
            "a/..",
            "/..",
            "a\0b",
            &"x".repeat(256),
            &"x/".repeat(3000),
        ] {
            names(bad.as_bytes()).unwrap_err();
        }
    }

    #[test]
    fn whiteouts_are_told_from_files() {
        for (name, expected) in [
            ("a", Asks::Entry(b"a")),
            (".wh", Asks::Entry(b".wh")),
            (".wh.a", Asks::Whiteout(b"a")),
            (".wh..a", Asks::Whiteout(b".a")),
            (".wh..wh..opq", Asks::Opaque),
            (".wh..wh.plnk", Asks::Nothing),
        ] {
            assert_eq!(asks(b"x", name.as_bytes()).unwrap(), expected, "{name}");
        }
        for bad in [".wh.", ".wh..", ".wh..."] {
            asks(b"x", bad.as_bytes()).unwrap_err();
        }
    }
}
