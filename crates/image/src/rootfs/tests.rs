//! Layers as tars, laid over each other and written to a folder. Writing needs root, since files keep their owners.

mod hostile;
mod random;
mod sparse;

use super::*;
use flate2::write::GzEncoder;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use tar::{EntryType, Header};

const BOUNDS: Bounds = Bounds {
    disk_bytes: 64 << 20,
    lookups: 1 << 17,
    names_bytes: 4 << 20,
};

/// A layer in the making.
struct Layer(Vec<u8>);

impl Layer {
    fn new() -> Self {
        Self(Vec::new())
    }

    /// An entry with this name and link as they are, whatever they are.
    fn entry(mut self, kind: EntryType, path: &[u8], link: &[u8], content: &[u8]) -> Self {
        for (extension, text) in [(b'L', path), (b'K', link)] {
            if text.len() >= 100 {
                self.block(
                    &header(EntryType::new(extension), b"././@LongLink", b"", text.len()),
                    text,
                );
            }
        }
        self.block(&header(kind, path, link, content.len()), content);
        self
    }

    fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let fits = |digits: &usize| (body + digits).to_string().len() == *digits;
            let digits = (1..10).find(fits).unwrap();
            text.extend(format!("{} {key}=", body + digits).into_bytes());
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        self.block(&header(EntryType::XHeader, b"pax", b"", text.len()), &text);
        self
    }

    fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(EntryType::Regular, path.as_bytes(), b"", content)
    }

    fn dir(self, path: &str) -> Self {
        self.entry(EntryType::Directory, path.as_bytes(), b"", b"")
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path.as_bytes(), target.as_bytes(), b"")
    }

    fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Link, path.as_bytes(), target.as_bytes(), b"")
    }

    fn block(&mut self, header: &Header, content: &[u8]) {
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

fn header(kind: EntryType, path: &[u8], link: &[u8], size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    let old = header.as_old_mut();
    let (path, link) = (&path[..path.len().min(100)], &link[..link.len().min(100)]);
    old.name[..path.len()].copy_from_slice(path);
    old.linkname[..link.len()].copy_from_slice(link);
    header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(size as u64);
    header.set_cksum();
    header
}

/// Layers as files, and a folder to unpack to, both in a folder with something that must not be touched.
struct Lab {
    folder: tempfile::TempDir,
    layers: Vec<LayerSource>,
}

impl Lab {
    fn new(layers: &[Vec<u8>]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("out")).unwrap();
        fs::create_dir(folder.path().join("victim")).unwrap();
        fs::write(folder.path().join("victim/kept"), "kept").unwrap();
        let layers = (0..).zip(layers).map(|(number, content)| {
            let path = folder.path().join(format!("layer-{number}"));
            fs::write(&path, content).unwrap();
            let len = content.len() as u64;
            LayerSource {
                path,
                start: 0,
                len,
            }
        });
        let layers = layers.collect();
        Self { folder, layers }
    }

    fn out(&self) -> std::path::PathBuf {
        self.folder.path().join("out")
    }

    fn unpack(&self) -> Result<BTreeMap<String, String>, RootfsError> {
        let tree = flatten(&self.layers, None, BOUNDS)?;
        write(&tree, &self.layers, BOUNDS, &self.out())?;
        Ok(listing(&self.out()))
    }

    fn assert_nothing_outside(&self) {
        let mut names: Vec<_> = fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with("layer-"))
            .collect();
        names.sort();
        assert_eq!(names, ["out", "victim"]);
        let victim = self.folder.path().join("victim");
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(victim.join("kept")).unwrap(), "kept");
    }
}

/// Everything in a folder: content of files, `/` for folders, the target of symbolic links.
fn listing(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let text = if metadata.is_dir() {
                waiting.push(path.clone());
                "/".to_owned()
            } else if metadata.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else {
                String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned()
            };
            let name = path.strip_prefix(folder).unwrap();
            found.insert(name.to_string_lossy().into_owned(), text);
        }
    }
    found
}

fn unpack(layers: &[Vec<u8>]) -> Result<BTreeMap<String, String>, RootfsError> {
    let lab = Lab::new(layers);
    let result = lab.unpack();
    lab.assert_nothing_outside();
    result
}

fn expect(layers: &[Vec<u8>], expected: &[(&str, &str)]) {
    let found = unpack(layers).unwrap();
    let found: Vec<_> = found
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn upper_layers_replace_hide_and_merge() {
    let lower = Layer::new()
        .dir("a")
        .file("a/keep", b"1")
        .file("a/gone", b"1")
        .file("a/new", b"1")
        .dir("b")
        .file("b/x", b"1")
        .dir("c")
        .file("c/y", b"1")
        .file("d", b"file")
        .dir("e")
        .file("e/z", b"1");
    let upper = Layer::new()
        .file("a/.wh.gone", b"")
        .file("a/new", b"2")
        .dir("b")
        .file("b/mine", b"2")
        .file("b/.wh..wh..opq", b"")
        .file(".wh.c", b"")
        .dir("d")
        .file("d/now", b"folder")
        .file("e", b"now a file")
        .file(".wh..wh.plnk", b"");
    expect(
        &[lower.end(), upper.end()],
        &[
            ("a", "/"),
            ("a/keep", "1"),
            ("a/new", "2"),
            ("b", "/"),
            ("b/mine", "2"),
            ("d", "/"),
            ("d/now", "folder"),
            ("e", "now a file"),
        ],
    );
}

#[test]
fn a_whiteout_hides_lower_layers_only_whatever_the_order() {
    let lower = || {
        Layer::new()
            .dir("a")
            .file("a/old", b"1")
            .file("f", b"1")
            .end()
    };
    for upper in [
        Layer::new().file(".wh.a", b"").dir("a").file("a/new", b"2"),
        Layer::new().dir("a").file("a/new", b"2").file(".wh.a", b""),
        // Its folder is not listed: it was in the lower layer.
        Layer::new().file("a/new", b"2").file("a/.wh..wh..opq", b""),
    ] {
        let upper = upper
            .file("f", b"2")
            .file(".wh.f", b"")
            .file("no/.wh.such", b"");
        expect(
            &[lower(), upper.end()],
            &[("a", "/"), ("a/new", "2"), ("f", "2")],
        );
    }
}

#[test]
fn a_linked_folder_is_gone_through_and_hard_links_keep_their_file() {
    let lower = Layer::new()
        .dir("usr/lib")
        .symlink("lib", "usr/lib")
        .file("usr/lib/one", b"1")
        .hard_link("first", "lib/one")
        .symlink("usr/up", "../../../first")
        .hard_link("also-up", "usr/up");
    let upper = Layer::new()
        .file("lib/two", b"2")
        .file("lib/.wh.one", b"")
        .hard_link("second", "usr/lib/two")
        .hard_link("first", "first");
    let lab = Lab::new(&[lower.end(), upper.end()]);
    let found = lab.unpack().unwrap();
    let found: Vec<_> = found
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect();
    assert_eq!(
        found,
        [
            ("also-up", "-> ../../../first"),
            ("first", "1"),
            ("lib", "-> usr/lib"),
            ("second", "2"),
            ("usr", "/"),
            ("usr/lib", "/"),
            ("usr/lib/two", "2"),
            ("usr/up", "-> ../../../first"),
        ]
    );
    let inode = |name: &str| fs::symlink_metadata(lab.out().join(name)).unwrap().ino();
    assert_eq!(inode("second"), inode("usr/lib/two"));
}

#[test]
fn metadata_survives() {
    let mut lab_layer = Layer::new().dir("d");
    let mut su = header(EntryType::Regular, b"su", b"", 2);
    su.set_mode(0o4755);
    su.set_uid(0);
    su.set_gid(42);
    su.set_cksum();
    lab_layer.block(&su, b"hi");
    let capability = b"\x01\0\0\x02\x0a\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let long = format!("d/{}", "n".repeat(200));
    let layer = lab_layer
        .pax(&[
            ("uid", b"70000"),
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.note", b"a\nb"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("mtime", b"1600000000.5"),
        ])
        .file("ping", b"x")
        .file(&long, b"long")
        .pax(&[("path", "d/päx\n".as_bytes())])
        .file("short", b"pax");
    let lab = Lab::new(&[layer.end()]);
    let found = lab.unpack().unwrap();
    assert_eq!(found[&long], "long");
    assert_eq!(found["d/päx\n"], "pax");
    let stat = |name: &str| fs::metadata(lab.out().join(name)).unwrap();
    assert_eq!(stat("su").permissions().mode() & 0o7777, 0o4755);
    assert_eq!((stat("su").uid(), stat("su").gid()), (0, 42));
    assert_eq!(stat("ping").uid(), 70_000);
    assert_eq!(
        (stat("ping").mtime(), stat("ping").mtime_nsec()),
        (1_600_000_000, 500_000_000)
    );
    assert_eq!(stat("d").mtime(), 1_700_000_000);
    let xattr = |name: &str| {
        let mut value = [0; 64];
        let found = rustix::fs::getxattr(lab.out().join("ping"), name, &mut value[..]);
        found.ok().map(|length| value[..length].to_vec())
    };
    assert_eq!(xattr("security.capability").unwrap(), capability);
    assert_eq!(xattr("user.note").unwrap(), b"a\nb");
    assert_eq!(xattr("trusted.overlay.opaque"), None);
}

#[test]
fn packed_layers_are_unpacked_and_checked() {
    let noise: Vec<u8> = (0..200)
        .flat_map(|n: u32| Digest::of(&n.to_be_bytes()).hex().into_bytes())
        .collect();
    let plain = Layer::new().file("a", &noise).end();
    let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain[..1000]).unwrap();
    let mut gzip = gzip.finish().unwrap();
    // Two members, as parallel gzips make them.
    let mut rest = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    rest.write_all(&plain[1000..]).unwrap();
    gzip.extend(rest.finish().unwrap());
    let mut zst = zstd::encode_all(&plain[..1000], 3).unwrap();
    zst.extend(b"\x50\x2a\x4d\x18\x04\0\0\0note");
    zst.extend(zstd::encode_all(&plain[1000..], 3).unwrap());
    let id = Digest::of(&plain);
    for layer in [&plain, &gzip, &zst] {
        let lab = Lab::new(std::slice::from_ref(layer));
        flatten(&lab.layers, Some(&[id]), BOUNDS).unwrap();
        assert_eq!(lab.unpack().unwrap()["a"].as_bytes(), noise);
        let error = flatten(&lab.layers, Some(&[Digest::of(b"x")]), BOUNDS).unwrap_err();
        assert!(
            matches!(error, RootfsError::DiffId { layer: 1, .. }),
            "{error}"
        );
        let error = flatten(&lab.layers, Some(&[id, id]), BOUNDS).unwrap_err();
        assert!(matches!(error, RootfsError::LayerCount { .. }), "{error}");
        let cut = Lab::new(&[layer[..layer.len() / 2].to_vec()]);
        cut.unpack().unwrap_err();
    }
}
