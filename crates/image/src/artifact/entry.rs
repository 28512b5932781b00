//! What one entry of an archive claims, checked before anything is done with it.

use dormouse_core::limits;
use std::io::Read;
use zip::read::ZipFileEntry;

/// Longest part of a path, in bytes, as in Linux file systems.
const PART_BYTES_MAX: usize = 255;
/// Longest target of a link, in bytes.
const TARGET_BYTES_MAX: u64 = 1024;

/// Kinds of entry that an archive may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    Link,
}

impl Kind {
    pub(super) fn of(entry: &ZipFileEntry<'_>) -> Result<Self, &'static str> {
        const FORMAT: u32 = 0o170_000;
        let is_folder = entry.name_raw().ends_with(b"/");
        match mode(entry).unwrap_or_default() & FORMAT {
            0 | 0o040_000 if is_folder => Ok(Self::Folder),
            0o040_000 => Ok(Self::Folder),
            _ if is_folder => Err("is a folder by its name and something else by its mode"),
            0 | 0o100_000 => Ok(Self::File),
            0o120_000 => Ok(Self::Link),
            _ => Err("is a device, a pipe or a socket"),
        }
    }
}

/// The entry's Unix mode with its format bits, if the archive states one. The crate's own answer
/// leaves out setuid and its like.
pub(super) fn mode(entry: &ZipFileEntry<'_>) -> Option<u32> {
    Some(entry.external_attributes() >> 16).filter(|mode| *mode != 0)
}

/// The entry's name. Archives made on Linux and macOS often hold UTF-8 without saying so.
pub(super) fn name(entry: &ZipFileEntry<'_>) -> Result<String, &'static str> {
    match std::str::from_utf8(entry.name_raw()) {
        Ok(name) => Ok(name.to_owned()),
        Err(_) => match entry.name() {
            Ok(name) => Ok(name.into_owned()),
            Err(_) => Err("has a name that is not text"),
        },
    }
}

/// A name for people: printable and of bounded length.
pub(super) fn printable(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    text.chars()
        .take(200)
        .flat_map(char::escape_debug)
        .collect()
}

/// The path, relative and without empty parts; empty for the root itself.
pub(super) fn checked_path(name: &str) -> Result<String, &'static str> {
    if name.contains('\0') {
        return Err("has a NUL byte in its name");
    }
    if name.contains('\\') {
        return Err("has a backslash in its name");
    }
    if name.starts_with('/') {
        return Err("has an absolute path");
    }
    if matches!(name.as_bytes(), [drive, b':', ..] if drive.is_ascii_alphabetic()) {
        return Err("has a drive letter in its name");
    }
    let parts: Vec<_> = name
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    if parts.contains(&"..") {
        return Err("leads out of the archive by `..`");
    }
    let too_long = parts.iter().any(|part| part.len() > PART_BYTES_MAX);
    if too_long || name.len() > limits::ARTIFACT_PATH_BYTES_MAX {
        return Err("has too long a name");
    }
    Ok(parts.join("/"))
}

/// Reads a link's target and makes sure that it stays inside.
///
/// `..` may only stand at the target's start and may only climb to the root. By induction no chain of
/// such links leaves: each of them ends at or below the root, and the plain names that follow can only
/// lead down or into another such link.
pub(crate) fn checked_link_target(path: &str, reader: impl Read) -> Result<String, &'static str> {
    let mut target = String::new();
    let read = reader
        .take(TARGET_BYTES_MAX + 1)
        .read_to_string(&mut target);
    if read.is_err() {
        return Err("is a link with a damaged target");
    }
    if target.is_empty() || target.contains('\0') || target.len() as u64 > TARGET_BYTES_MAX {
        return Err("is a link with an empty or too long target");
    }
    if target.starts_with('/') {
        return Err("is a link with an absolute target");
    }
    let parts: Vec<_> = target
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    let climbs = parts.iter().take_while(|part| **part == "..").count();
    if climbs > path.matches('/').count() || parts[climbs..].contains(&"..") {
        return Err("is a link that may lead out of the archive");
    }
    Ok(target)
}
