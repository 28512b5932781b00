//! What is in the context, by path, and where its links lead.

use super::ignore::{Ignore, Matched};
use super::{ContextError, read_error};
use dormouse_core::glob::Fuel;
use dormouse_core::limits;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::Bound;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Links followed for one path before it counts as a loop, as in Linux.
const LINKS_MAX: u32 = 40;

/// Everything but the root, by its path from the root.
#[derive(Debug)]
pub(super) struct Listing {
    root: Node,
    nodes: BTreeMap<String, Node>,
}

/// One thing in the context. Modes are permission bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    File { mode: u32, bytes: u64 },
    Folder { mode: u32 },
    Link { target: String },
}

impl Listing {
    /// Lists what `ignore` leaves of a folder.
    pub(super) fn read(root: &Path, ignore: &Ignore, fuel: &Fuel) -> Result<Self, ContextError> {
        let mut walk = Walk {
            root,
            ignore,
            fuel,
            nodes: BTreeMap::new(),
            seen: 0,
        };
        walk.folder("", &ignore.root())?;
        Ok(Self {
            root: Node::Folder { mode: 0o755 },
            nodes: walk.nodes,
        })
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.nodes.contains_key(path)
    }

    /// All paths, in order.
    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    /// Everything below a folder, parents first: the path from there, the path from the root, and
    /// what it is.
    pub(super) fn below(&self, folder: &str) -> impl Iterator<Item = (&str, &str, &Node)> {
        let prefix = if folder.is_empty() {
            String::new()
        } else {
            format!("{folder}/")
        };
        let from = (Bound::Excluded(prefix.clone()), Bound::Unbounded);
        self.nodes.range(from).map_while(move |(path, node)| {
            path.strip_prefix(prefix.as_str())
                .map(|name| (name, path.as_str(), node))
        })
    }

    /// Follows `path` to something that is no link, never above the root.
    pub(super) fn resolve(&self, path: &str) -> Option<(String, &Node)> {
        let mut todo: Vec<String> = parts(path);
        let mut real: Vec<String> = Vec::new();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == ".." {
                real.pop();
                continue;
            }
            real.push(part);
            match self.nodes.get(&real.join("/"))? {
                Node::Link { target } => {
                    links += 1;
                    if links > LINKS_MAX {
                        return None;
                    }
                    real.pop();
                    if target.starts_with('/') {
                        real.clear();
                    }
                    todo.extend(parts(target));
                }
                Node::File { .. } if !todo.is_empty() => return None,
                Node::File { .. } | Node::Folder { .. } => {}
            }
        }
        let real = real.join("/");
        let node = if real.is_empty() {
            &self.root
        } else {
            self.nodes.get(&real)?
        };
        Some((real, node))
    }
}

/// A path's parts, the last first.
fn parts(path: &str) -> Vec<String> {
    let parts = path.split('/').filter(|part| !matches!(*part, "" | "."));
    parts.rev().map(str::to_owned).collect()
}

struct Walk<'a> {
    root: &'a Path,
    ignore: &'a Ignore,
    fuel: &'a Fuel,
    nodes: BTreeMap<String, Node>,
    seen: usize,
}

impl Walk<'_> {
    /// Lists a folder and what is below it; answers whether anything of it is kept.
    fn folder(&mut self, folder: &str, matched: &Matched) -> Result<bool, ContextError> {
        let mut kept = false;
        for name in self
            .names(folder)
            .map_err(|error| read_error(folder, error))?
        {
            let unusable = || ContextError::Unusable {
                path: Path::new(folder).join(&name).display().to_string(),
            };
            let name = name.to_str().ok_or_else(unusable)?;
            let path = if folder.is_empty() {
                name.to_owned()
            } else {
                format!("{folder}/{name}")
            };
            self.seen += 1;
            let max = limits::ARTIFACT_ENTRIES_MAX;
            if self.seen > max || path.len() > limits::ARTIFACT_PATH_BYTES_MAX {
                return Err(ContextError::TooLarge { max });
            }
            let (ignored, matched) = self.ignore.decide(&path, matched, self.fuel)?;
            if ignored && self.ignore.is_plain() {
                continue;
            }
            let node = self.node(&path)?.ok_or_else(unusable)?;
            let is_folder = matches!(node, Node::Folder { .. });
            // What is kept keeps the folders that it lies in.
            let keep = (is_folder && self.folder(&path, &matched)?) || !ignored;
            if keep {
                self.nodes.insert(path, node);
                kept = true;
            }
        }
        Ok(kept)
    }

    /// The names in a folder, read to the end so that no folder stays open while another is listed.
    fn names(&self, folder: &str) -> std::io::Result<Vec<OsString>> {
        let entries = std::fs::read_dir(self.root.join(folder))?;
        entries.map(|entry| Ok(entry?.file_name())).collect()
    }

    fn node(&self, path: &str) -> Result<Option<Node>, ContextError> {
        let full = self.root.join(path);
        let metadata = full
            .symlink_metadata()
            .map_err(|error| read_error(path, error))?;
        let mode = metadata.permissions().mode() & 0o7777;
        let kind = metadata.file_type();
        if kind.is_dir() {
            return Ok(Some(Node::Folder { mode }));
        }
        if kind.is_file() {
            return Ok(Some(Node::File {
                mode,
                bytes: metadata.len(),
            }));
        }
        if !kind.is_symlink() {
            return Ok(None);
        }
        let target = full.read_link().map_err(|error| read_error(path, error))?;
        Ok(target.to_str().map(|target| Node::Link {
            target: target.to_owned(),
        }))
    }
}
