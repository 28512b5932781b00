//! The parts of an image archive, by name and place, so that each can be read where it lies.

use super::archive::{Archive, ArchiveError, EntryKind};
use super::compression::{Magic, Unpacked};
use super::name;
use dormouse_core::limits;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;

/// What is where, by name.
pub(crate) type Members = BTreeMap<String, Member>;

/// A part of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Member {
    /// Its content, in bytes from the archive's begin.
    File { start: u64, len: u64 },
    /// Another name in the archive.
    Link(String),
}

/// What an image archive holds.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) members: Members,
    /// Whether the places are those of the unpacked archive.
    pub(crate) packed: bool,
}

/// Lists an image archive; none when the file looks like anything else, such as a root file system.
pub(crate) fn members(path: &Path) -> io::Result<Option<Found>> {
    let mut first = [0; 4];
    let read = File::open(path)?.read(&mut first)?;
    let packed = Magic::of(&first[..read]) != Magic::Plain;
    let position = Rc::new(Cell::new(0));
    let stream = Counted {
        inner: Unpacked::new(
            File::open(path)?,
            u64::MAX,
            limits::REGISTRY_IMAGE_BYTES_MAX,
        )?,
        position: Rc::clone(&position),
    };
    let mut archive = Archive::new(stream, limits::ROOTFS_ENTRIES_MAX);
    let mut members = Members::new();
    loop {
        let entry = match archive.next() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            // Whoever reads it as something else says what is wrong.
            Err(ArchiveError::Damaged(_) | ArchiveError::TooMany) => return Ok(None),
            Err(ArchiveError::Read(error) | ArchiveError::Write(error)) => return Err(error),
        };
        let Some(name) = plain_name(&entry.path) else {
            return Ok(None);
        };
        if !looks_right(&name) {
            return Ok(None);
        }
        let member = match entry.kind {
            EntryKind::Dir => continue,
            EntryKind::File { size, segments } if size == 0 || segments.len() == 1 => {
                Member::File {
                    start: position.get(),
                    len: size,
                }
            }
            EntryKind::Symlink(target) | EntryKind::HardLink(target) => {
                match linked(&name, &target) {
                    Some(target) => Member::Link(target),
                    None => return Ok(None),
                }
            }
            EntryKind::File { .. } | EntryKind::Special => return Ok(None),
        };
        members.insert(name, member);
        if members.len() > limits::ARCHIVE_MEMBERS_MAX {
            return Ok(None);
        }
    }
    let is_image = members.contains_key("manifest.json") || members.contains_key("index.json");
    Ok(is_image.then_some(Found { members, packed }))
}

/// Writes what a packed file unpacks to.
pub(crate) fn unpack_file(from: &Path, to: &Path, bytes_max: u64) -> io::Result<()> {
    let mut unpacked = Unpacked::new(File::open(from)?, u64::MAX, bytes_max)?;
    io::copy(&mut unpacked, &mut File::create_new(to)?).map(drop)
}

fn plain_name(path: &[u8]) -> Option<String> {
    let names = name::names(path).ok()?;
    String::from_utf8(names.join(&b'/')).ok()
}

/// The target of a link, as a name in the archive: a symbolic one starts at its own folder.
fn linked(name: &str, target: &[u8]) -> Option<String> {
    let target = std::str::from_utf8(target).ok()?;
    let mut names: Vec<&str> = name.split('/').collect();
    names.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(names.pop()?),
            part => names.push(part),
        }
    }
    Some(names.join("/"))
}

/// Names as image archives have them; the first other one tells a root file system.
fn looks_right(name: &str) -> bool {
    let first = name.split('/').next().unwrap_or_default();
    let is_hex = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    matches!(
        first,
        "blobs" | "oci-layout" | "index.json" | "manifest.json" | "repositories"
    ) || is_hex(first.split('.').next().unwrap_or_default())
}

/// Knows how far it has read.
struct Counted<R> {
    inner: R,
    position: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.position.set(self.position.get() + count as u64);
        Ok(count)
    }
}
