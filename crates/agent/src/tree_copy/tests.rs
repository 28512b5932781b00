use super::*;
use std::os::unix::fs::symlink;

struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    /// A tree with a bit of everything, and an empty root.
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary folder");
        let lab = Self { dir };
        fs::create_dir_all(lab.from("usr/bin")).expect("folders");
        fs::create_dir_all(lab.from("empty")).expect("folders");
        fs::create_dir(lab.dir.path().join("to")).expect("folder");
        for (path, mode) in [
            ("usr/bin/tool", 0o4755),
            ("usr/bin/other.txt", 0o600),
            ("notes.txt", 0o644),
        ] {
            fs::write(lab.from(path), path).expect("write");
            set_mode(&lab.from(path), mode).expect("mode");
        }
        fs::hard_link(lab.from("usr/bin/tool"), lab.from("usr/bin/twin")).expect("link");
        symlink("/usr/bin/tool", lab.from("absolute")).expect("link");
        symlink("usr", lab.from("alias")).expect("link");
        symlink("../../../outside", lab.from("usr/out")).expect("link");
        let old = Timespec {
            tv_sec: 1_000_000_000,
            tv_nsec: 5,
        };
        let times = Timestamps {
            last_access: old,
            last_modification: old,
        };
        for path in ["usr/bin/tool", "usr/bin", "usr"] {
            utimensat(CWD, lab.from(path), &times, AtFlags::empty()).expect("times");
        }
        let set = lsetxattr(
            lab.from("notes.txt"),
            c"user.kind",
            b"memo",
            XattrFlags::empty(),
        );
        assert!(matches!(set, Ok(()) | Err(rustix::io::Errno::NOTSUP)));
        lab
    }

    fn from(&self, path: &str) -> PathBuf {
        self.dir.path().join("from").join(path)
    }

    fn to(&self, path: &str) -> PathBuf {
        self.dir.path().join("to").join(path)
    }

    fn run(
        &self,
        sources: &[&str],
        dest: &str,
        change: impl FnOnce(&mut TreeCopySpec),
    ) -> Result<(), TreeCopyError> {
        let mut spec = TreeCopySpec {
            sources: sources.iter().map(|source| (*source).to_owned()).collect(),
            dest: dest.to_owned(),
            owner: String::new(),
            mode: None,
            parents: false,
            excludes: Vec::new(),
        };
        change(&mut spec);
        Copy::new(&spec, None)?.all(&self.from(""), &self.to(""), &spec)
    }

    fn copied(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut todo = vec![String::new()];
        while let Some(folder) = todo.pop() {
            for name in names(&self.to(&folder)).expect("list") {
                let path = join(&folder, name.to_str().expect("UTF-8"));
                if read_metadata(&self.to(&path)).expect("there").is_dir() {
                    todo.push(path.clone());
                }
                found.push(path);
            }
        }
        found.sort();
        found
    }
}

#[test]
fn everything_about_a_file_is_kept() {
    let lab = Lab::new();
    lab.run(&["/"], "/", |_| {}).expect("copies");
    for path in [
        "usr",
        "usr/bin",
        "usr/bin/tool",
        "notes.txt",
        "empty",
        "usr/out",
    ] {
        let (was, is) = (read_metadata(&lab.from(path)), read_metadata(&lab.to(path)));
        let (was, is) = (was.expect("there"), is.expect("copied"));
        assert_eq!(is.mode(), was.mode(), "{path}");
        assert_eq!((is.uid(), is.gid()), (was.uid(), was.gid()), "{path}");
        assert_eq!(
            (is.mtime(), is.mtime_nsec()),
            (was.mtime(), was.mtime_nsec()),
            "{path}"
        );
    }
    let inode = |path: &str| read_metadata(&lab.to(path)).expect("copied").ino();
    assert_eq!(inode("usr/bin/tool"), inode("usr/bin/twin"));
    let target = fs::read_link(lab.to("usr/out")).expect("a link");
    assert_eq!(target, Path::new("../../../outside"));
    let mut value = [0; 16];
    if let Ok(length) = lgetxattr(lab.from("notes.txt"), c"user.kind", &mut value) {
        let copied = lgetxattr(lab.to("notes.txt"), c"user.kind", &mut value).expect("copied");
        assert_eq!((length, &value[..copied]), (4, &b"memo"[..]));
    }
}

#[test]
fn sources_and_destinations_are_read_as_in_docker() {
    let cases: [(&[&str], &str, &[&str]); 8] = [
        (&["/notes.txt"], "/renamed", &["renamed"]),
        (&["notes.txt"], "/in/", &["in", "in/notes.txt"]),
        (&["/absolute"], "/tool", &["tool"]),
        (&["alias/bin/other.txt"], "/", &["other.txt"]),
        (
            &["/usr/bin"],
            "/b",
            &["b", "b/other.txt", "b/tool", "b/twin"],
        ),
        (&["/usr/bin/t*"], "/b/", &["b", "b/tool", "b/twin"]),
        (
            &["/*/*/*.txt", "notes.txt"],
            "/b/",
            &["b", "b/notes.txt", "b/other.txt"],
        ),
        (
            &["/empty/../notes.txt"],
            "/deep/er/x",
            &["deep", "deep/er", "deep/er/x"],
        ),
    ];
    for (sources, dest, expected) in cases {
        let lab = Lab::new();
        lab.run(sources, dest, |_| {}).expect("copies");
        assert_eq!(lab.copied(), expected, "{sources:?} {dest}");
    }
}

#[test]
fn parents_modes_and_excludes_are_kept_to() {
    let lab = Lab::new();
    let parents = |spec: &mut TreeCopySpec| spec.parents = true;
    lab.run(&["/usr/./bin/tool"], "/p", parents)
        .expect("copies");
    assert_eq!(lab.copied(), ["p", "p/bin", "p/bin/tool"]);

    let lab = Lab::new();
    lab.run(&["/usr"], "/u", |spec| {
        spec.excludes = vec!["**/*.txt".to_owned(), "out".to_owned()];
        spec.mode = Some(0o700);
    })
    .expect("copies");
    assert_eq!(lab.copied(), ["u", "u/bin", "u/bin/tool", "u/bin/twin"]);
    for path in ["u", "u/bin", "u/bin/tool"] {
        let mode = read_metadata(&lab.to(path)).expect("copied").mode() & MODE_MASK;
        assert_eq!(mode, 0o700, "{path}");
    }
}

#[test]
fn what_is_there_gives_way_only_to_its_like() {
    let lab = Lab::new();
    fs::create_dir_all(lab.to("usr/bin")).expect("folders");
    set_mode(&lab.to("usr/bin"), 0o711).expect("mode");
    symlink("nowhere", lab.to("notes.txt")).expect("link");
    lab.run(&["/"], "/", |_| {}).expect("copies");
    let kept = read_metadata(&lab.to("usr/bin")).expect("there").mode() & MODE_MASK;
    assert_eq!(kept, 0o711);
    assert_eq!(
        fs::read(lab.to("notes.txt")).expect("a file now"),
        b"notes.txt"
    );

    let lab = Lab::new();
    fs::create_dir_all(lab.to("x/notes.txt")).expect("folders");
    let error = lab
        .run(&["notes.txt"], "/x/", |_| {})
        .expect_err("a folder");
    assert!(matches!(error, TreeCopyError::FolderInTheWay(_)), "{error}");
}

#[test]
fn what_is_wrong_is_told() {
    let lab = Lab::new();
    for sources in [
        &["/none"][..],
        &["/usr/bin/*.none"],
        &["/usr/out"],
        &["/[a"],
    ] {
        assert!(lab.run(sources, "/x/", |_| {}).is_err(), "{sources:?}");
    }
    let error = lab.run(&["/usr/bin/*"], "/x", |_| {}).expect_err("several");
    assert!(matches!(error, TreeCopyError::NeedsFolder(_)), "{error}");
    assert!(lab.copied().is_empty());
}
