//! Certificate authorities that the host lends to a build step: in the image's bundle and among the CAs
//! that its administrator adds, where installers look, while the step runs; out of both when it has ended.
//!
//! What a step does with them in between is its own affair: a bundle that it made anew from what it found
//! there has them as one piece, which is cut out again.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Where systems keep the CAs that they trust, in one file. The first is made when there is none.
const BUNDLES: [&str; 3] = [
    "etc/ssl/certs/ca-certificates.crt",
    "etc/pki/tls/certs/ca-bundle.crt",
    "etc/ssl/cert.pem",
];
/// What `update-ca-certificates` adds to the bundle.
const ANCHOR: &str = "usr/local/share/ca-certificates/dormouse-build.crt";
/// The links to it that `update-ca-certificates` makes are in here.
const LINKS: &str = "etc/ssl/certs";
const LINK: &str = "dormouse-build.pem";
/// A larger bundle is none.
const BUNDLE_BYTES_MAX: u64 = 32 << 20;

/// What was lent, to be taken back.
#[derive(Debug)]
pub(crate) struct Lent {
    root: PathBuf,
    pem: Vec<u8>,
    bundle: PathBuf,
    /// The bundle's length and time before; none when there was no bundle.
    before: Option<(u64, SystemTime)>,
    /// Folders that were made, parents first.
    folders: Vec<PathBuf>,
}

/// Why the CAs could not be put in place or taken away.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}")]
pub(crate) struct TrustError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Lent {
    /// Adds the CAs of `pem` to those that the system below `root` trusts. This blocks.
    pub(crate) fn lend(root: &Path, pem: &[u8]) -> Result<Self, TrustError> {
        let mut pem = pem.to_vec();
        if !pem.ends_with(b"\n") {
            pem.push(b'\n');
        }
        let existing = BUNDLES.map(|path| root.join(path));
        let existing = existing.into_iter().find(|path| path.is_file());
        let mut lent = Self {
            root: root.to_owned(),
            before: None,
            bundle: existing.clone().unwrap_or_else(|| root.join(BUNDLES[0])),
            folders: Vec::new(),
            pem,
        };
        let anchor = root.join(ANCHOR);
        lent.make_folders(&anchor)?;
        let written = fs::write(&anchor, &lent.pem)
            .and_then(|()| fs::set_permissions(&anchor, Permissions::from_mode(0o644)));
        written.map_err(failed("write", &anchor))?;
        match existing {
            Some(bundle) => lent.append(&bundle)?,
            None => {
                let bundle = lent.bundle.clone();
                lent.make_folders(&bundle)?;
                fs::write(&bundle, &lent.pem).map_err(failed("write", &bundle))?;
            }
        }
        Ok(lent)
    }

    /// The bundle's path as programs inside see it.
    pub(crate) fn bundle(&self) -> PathBuf {
        let inside = self.bundle.strip_prefix(&self.root);
        Path::new("/").join(inside.unwrap_or(&self.bundle))
    }

    /// Takes everything away again that is still there. This blocks.
    pub(crate) fn take_back(self) -> Result<(), TrustError> {
        let anchor = self.root.join(ANCHOR);
        remove(&anchor)?;
        self.remove_links()?;
        self.cut_bundle()?;
        for folder in self.folders.iter().rev() {
            // A step may have put something of its own there.
            let _ = fs::remove_dir(folder);
        }
        Ok(())
    }

    fn make_folders(&mut self, file: &Path) -> Result<(), TrustError> {
        let Some(folder) = file.parent() else {
            return Ok(());
        };
        let missing = folder.ancestors().take_while(|folder| !folder.is_dir());
        let mut missing: Vec<PathBuf> = missing.map(Path::to_owned).collect();
        missing.reverse();
        for folder in missing {
            fs::create_dir(&folder).map_err(failed("make", &folder))?;
            self.folders.push(folder);
        }
        Ok(())
    }

    fn append(&mut self, bundle: &Path) -> Result<(), TrustError> {
        let append = || {
            let mut file = File::options().read(true).append(true).open(bundle)?;
            let metadata = file.metadata()?;
            let mut text = Vec::new();
            (&file).take(BUNDLE_BYTES_MAX).read_to_end(&mut text)?;
            if !text.is_empty() && !text.ends_with(b"\n") {
                file.write_all(b"\n")?;
            }
            file.write_all(&self.pem)?;
            Ok((metadata.len(), metadata.modified()?))
        };
        self.before = Some(append().map_err(failed("write", bundle))?);
        Ok(())
    }

    /// Removes the link to the anchor, and those by the certificate's hash that lead to that link.
    fn remove_links(&self) -> Result<(), TrustError> {
        let folder = self.root.join(LINKS);
        let Ok(entries) = fs::read_dir(&folder) else {
            return Ok(());
        };
        for entry in entries {
            let path = entry.map_err(failed("read", &folder))?.path();
            let target = fs::read_link(&path).unwrap_or_default();
            if target == Path::new(LINK) || target.strip_prefix("/") == Ok(Path::new(ANCHOR)) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    fn cut_bundle(&self) -> Result<(), TrustError> {
        if !self.bundle.is_file() {
            return Ok(());
        }
        let mut text = Vec::new();
        File::open(&self.bundle)
            .and_then(|file| file.take(BUNDLE_BYTES_MAX).read_to_end(&mut text))
            .map_err(failed("read", &self.bundle))?;
        let Some(at) = last_position(&text, &self.pem) else {
            return Ok(());
        };
        let is_end = at + self.pem.len() == text.len();
        match self.before {
            None if is_end && at == 0 => remove(&self.bundle),
            // Nobody else has written to it: it becomes what it was, its time included.
            Some((length, time)) if is_end && (length..=length + 1).contains(&(at as u64)) => {
                let restore = || {
                    let file = File::options().write(true).open(&self.bundle)?;
                    file.set_len(length)?;
                    file.set_modified(time)
                };
                restore().map_err(failed("write", &self.bundle))
            }
            _ => {
                text.drain(at..at + self.pem.len());
                fs::write(&self.bundle, &text).map_err(failed("write", &self.bundle))
            }
        }
    }
}

fn last_position(text: &[u8], piece: &[u8]) -> Option<usize> {
    let starts = text.len().checked_sub(piece.len())?;
    (0..=starts)
        .rev()
        .find(|start| text[*start..].starts_with(piece))
}

fn remove(path: &Path) -> Result<(), TrustError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("delete", path)(error)),
        _ => Ok(()),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TrustError {
    let path = path.to_owned();
    move |source| TrustError {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    const PEM: &[u8] = b"-----BEGIN A-----\nxx\n-----END A-----";

    /// Everything below a folder, by path: a file's content and time, or a link's target.
    fn tree(root: &Path) -> BTreeMap<PathBuf, (Vec<u8>, Option<SystemTime>)> {
        let mut found = BTreeMap::new();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let metadata = path.symlink_metadata().unwrap();
                let content = if metadata.is_dir() {
                    folders.push(path.clone());
                    (Vec::new(), None)
                } else if metadata.is_symlink() {
                    let target = fs::read_link(&path).unwrap();
                    (target.to_str().unwrap().into(), None)
                } else {
                    (fs::read(&path).unwrap(), metadata.modified().ok())
                };
                found.insert(path, content);
            }
        }
        found
    }

    fn image(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1))
                .unwrap();
        }
        root
    }

    #[test]
    fn an_image_is_afterwards_what_it_was() {
        for files in [
            &[][..],
            &[("etc/ssl/certs/ca-certificates.crt", "old\n")],
            &[("etc/ssl/certs/ca-certificates.crt", "no end of line")],
            &[("etc/ssl/certs/ca-certificates.crt", "")],
            &[("etc/pki/tls/certs/ca-bundle.crt", "old\n")],
            &[("usr/local/share/ca-certificates/own.crt", "own\n")],
        ] {
            let root = image(files);
            let before = tree(root.path());
            let lent = Lent::lend(root.path(), PEM).unwrap();
            let bundle = root.path().join(lent.bundle().strip_prefix("/").unwrap());
            let text = fs::read(&bundle).unwrap();
            assert!(text.ends_with(b"-----END A-----\n"), "{files:?}");
            assert_eq!(
                fs::read(root.path().join(ANCHOR)).unwrap(),
                text[text.len() - 37..]
            );
            lent.take_back().unwrap();
            assert_eq!(tree(root.path()), before, "{files:?}");
        }
    }

    #[test]
    fn a_bundle_that_a_step_made_anew_keeps_all_but_what_was_lent() {
        let root = image(&[]);
        let lent = Lent::lend(root.path(), PEM).unwrap();
        // What installing ca-certificates does.
        let folder = root.path().join(LINKS);
        fs::write(
            root.path().join(BUNDLES[0]),
            [b"public\n", &lent.pem[..], b"after\n"].concat(),
        )
        .unwrap();
        symlink(format!("/{ANCHOR}"), folder.join(LINK)).unwrap();
        symlink(LINK, folder.join("0a1b2c3d.0")).unwrap();
        symlink("/usr/share/ca-certificates/x.crt", folder.join("x.pem")).unwrap();
        lent.take_back().unwrap();
        let text = fs::read_to_string(root.path().join(BUNDLES[0])).unwrap();
        assert_eq!(text, "public\nafter\n");
        assert!(folder.join("x.pem").is_symlink());
        assert!(!folder.join(LINK).is_symlink());
        assert!(!folder.join("0a1b2c3d.0").is_symlink());
        assert!(!root.path().join("usr").exists());
    }

    #[test]
    fn what_a_step_deleted_or_replaced_stays_so() {
        let root = image(&[("etc/ssl/certs/ca-certificates.crt", "old\n")]);
        let bundle = root.path().join(BUNDLES[0]);
        let lent = Lent::lend(root.path(), PEM).unwrap();
        fs::write(&bundle, "own\n").unwrap();
        fs::remove_file(root.path().join(ANCHOR)).unwrap();
        lent.take_back().unwrap();
        assert_eq!(fs::read_to_string(&bundle).unwrap(), "own\n");

        let lent = Lent::lend(root.path(), PEM).unwrap();
        fs::remove_file(&bundle).unwrap();
        lent.take_back().unwrap();
        assert!(!bundle.exists());
    }
}
