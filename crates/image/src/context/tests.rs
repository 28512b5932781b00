use super::*;
use expect_test::expect;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

/// A context made of files; a name that ends in `/` is a folder, and `->` in the content a link.
fn context(files: &[(&str, &str)]) -> (tempfile::TempDir, Context) {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if name.ends_with('/') {
            fs::create_dir_all(&path).unwrap();
        } else if let Some(target) = content.strip_prefix("->") {
            symlink(target, &path).unwrap();
        } else {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        }
    }
    let context = Context::open(folder.path()).unwrap();
    (folder, context)
}

fn step(sources: &[&str], dest: &str) -> CopyStep {
    CopyStep {
        from: crate::dockerfile::Source::Context,
        sources: sources
            .iter()
            .map(|source| CopySource::Path((*source).to_owned()))
            .collect(),
        dest: dest.to_owned(),
        owner: String::new(),
        chmod: None,
        checksum: None,
        parents: false,
        excludes: Vec::new(),
        unpack_files: false,
        unpack_urls: false,
    }
}

/// What a step sends, as text; errors as text too.
fn show(context: &Context, step: &CopyStep) -> String {
    let mut tar = Vec::new();
    let output = match context.copy_tar(step, &mut tar) {
        Ok(output) => output,
        Err(error) => return format!("error: {error}\n"),
    };
    assert_eq!(output.bytes, tar.len() as u64);
    assert_eq!(context.copy_output(step).unwrap(), output);
    let mut text = format!(
        "to {}{}\n",
        output.spec.dest,
        if output.spec.as_file { " as file" } else { "" }
    );
    for entry in tar::Archive::new(tar.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let header = entry.header();
        let (kind, mode) = (header.entry_type(), header.mode().unwrap());
        let path = entry.path().unwrap().display().to_string();
        match entry.link_name().unwrap() {
            Some(target) => writeln!(text, "{path} -> {}", target.display()).unwrap(),
            None => {
                let mut content = String::new();
                entry.read_to_string(&mut content).unwrap();
                writeln!(text, "{kind:?} {path} {mode:o} {content}").unwrap();
            }
        }
    }
    text
}

/// What each of several copies sends.
fn show_each(files: &[(&str, &str)], copies: &[(&[&str], &str)]) -> String {
    let (_folder, context) = context(files);
    let show_one = |(sources, dest): &(&[&str], &str)| {
        format!(
            "{} {dest}: {}",
            sources.join(" "),
            show(&context, &step(sources, dest))
        )
    };
    copies.iter().map(show_one).collect()
}

const APP: &[(&str, &str)] = &[
    ("Dockerfile", "FROM x"),
    ("app.py", "py"),
    ("src/a.txt", "a"),
    ("src/b.md", "b"),
    ("src/deep/c.txt", "c"),
    ("src/deep/up", "->../a.txt"),
    ("link", "->src/a.txt"),
    ("linked", "->src"),
    ("loop", "->loop"),
    ("gone", "->nowhere"),
];

#[test]
fn one_file_becomes_a_path() {
    let copies: [(&[&str], &str); 3] = [
        (&["app.py"], "/srv/main.py"),
        (&["app.py"], "/srv/"),
        (&["./src/../app.py"], "/"),
    ];
    expect![[r#"
        app.py /srv/main.py: to /srv/main.py as file
        Regular app.py 644 py
        app.py /srv/: to /srv
        Regular app.py 644 py
        ./src/../app.py /: to /
        Regular app.py 644 py
    "#]]
    .assert_eq(&show_each(APP, &copies));
}

#[test]
fn a_folder_copies_its_contents() {
    let copies: [(&[&str], &str); 2] = [(&["src"], "/srv"), (&["src/", "app.py"], "/srv/")];
    expect![[r#"
        src /srv: to /srv
        Regular a.txt 644 a
        Regular b.md 644 b
        Directory deep 755 
        Regular deep/c.txt 644 c
        deep/up -> ../a.txt
        src/ app.py /srv/: to /srv
        Regular a.txt 644 a
        Regular b.md 644 b
        Directory deep 755 
        Regular deep/c.txt 644 c
        deep/up -> ../a.txt
        Regular app.py 644 py
    "#]]
    .assert_eq(&show_each(APP, &copies));
    let files = [("Dockerfile", "x"), ("empty/", "")];
    expect![[r#"
        . /w/: to /w
        Regular Dockerfile 644 x
        Directory empty 755 
    "#]]
    .assert_eq(&show_each(&files, &[(&["."], "/w/")]));
}

#[test]
fn patterns_select() {
    let copies: [(&[&str], &str); 4] = [
        (&["src/*.txt"], "/one"),
        (&["*/[ab].*"], "/some/"),
        (&["*/[ab].*"], "/some"),
        (&["src/d?ep"], "/deep"),
    ];
    expect![[r#"
        src/*.txt /one: to /one as file
        Regular a.txt 644 a
        */[ab].* /some/: to /some
        Regular a.txt 644 a
        Regular b.md 644 b
        */[ab].* /some: error: several files match, so the destination `/some` must end in `/`
        src/d?ep /deep: to /deep
        Regular c.txt 644 c
        up -> ../a.txt
    "#]]
    .assert_eq(&show_each(APP, &copies));
}

#[test]
fn links_that_are_sources_are_followed_inside() {
    let copies: [(&[&str], &str); 5] = [
        (&["link"], "/x"),
        (&["linked"], "/x"),
        (&["linked/deep/up"], "/x"),
        (&["loop"], "/x"),
        (&["gone"], "/x"),
    ];
    expect![[r#"
        link /x: to /x as file
        Regular link 644 a
        linked /x: to /x
        Regular a.txt 644 a
        Regular b.md 644 b
        Directory deep 755 
        Regular deep/c.txt 644 c
        deep/up -> ../a.txt
        linked/deep/up /x: to /x as file
        Regular up 644 a
        loop /x: error: `loop` is not in the archive
        gone /x: error: `gone` is not in the archive
    "#]]
    .assert_eq(&show_each(APP, &copies));
}

#[test]
fn a_link_never_leads_the_host_out() {
    let files = [
        ("out", "->/etc/passwd"),
        ("up", "->../../../../etc/passwd"),
        ("d/x", "x"),
    ];
    // As part of a folder a link is copied, not followed.
    let copies: [(&[&str], &str); 5] = [
        (&["out"], "/x"),
        (&["up"], "/x"),
        (&["../etc/passwd"], "/x"),
        (&["d/../../x"], "/x"),
        (&["."], "/x/"),
    ];
    expect![[r#"
        out /x: error: `out` is not in the archive
        up /x: error: `up` is not in the archive
        ../etc/passwd /x: error: `../etc/passwd` leads out of the archive
        d/../../x /x: error: `d/../../x` leads out of the archive
        . /x/: to /x
        Directory d 755 
        Regular d/x 644 x
        out -> /etc/passwd
        up -> ../../../../etc/passwd
    "#]]
    .assert_eq(&show_each(&files, &copies));
}

#[test]
fn a_file_that_becomes_a_link_is_not_read() {
    let (folder, context) = context(&[("a", "mine")]);
    fs::remove_file(folder.path().join("a")).unwrap();
    symlink("/etc/passwd", folder.path().join("a")).unwrap();
    let error = context.copy_output(&step(&["a"], "/x")).unwrap_err();
    assert!(matches!(error, ContextError::Read { .. }), "{error}");
}

#[test]
fn a_file_that_shrinks_is_an_error() {
    let (folder, context) = context(&[("a", "0123456789")]);
    fs::write(folder.path().join("a"), "0").unwrap();
    let error = context.copy_output(&step(&["a"], "/x")).unwrap_err();
    assert!(
        matches!(error, ContextError::Read { ref path, .. } if path == "a"),
        "{error}"
    );
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let copies: [(&[&str], &str); 5] = [
        (&["nothing.txt"], "/x"),
        (&["*.zip"], "/x"),
        (&["g*"], "/x"),
        (&["app.py", "[x"], "/x/"),
        (&["app.py/x"], "/x"),
    ];
    expect![[r#"
        nothing.txt /x: error: `nothing.txt` is not in the archive
        *.zip /x: error: `*.zip` is not in the archive
        g* /x: error: `gone` is not in the archive
        app.py [x /x/: error: the pattern `[x` has a `[` without its `]`
        app.py/x /x: error: `app.py/x` is not in the archive
    "#]]
    .assert_eq(&show_each(APP, &copies));
}

#[test]
fn a_step_cannot_copy_without_end() {
    let (_folder, context) = context(APP);
    let sources = vec!["src/*"; 40_000];
    let error = context.copy_output(&step(&sources, "/x/")).unwrap_err();
    assert!(matches!(error, ContextError::CopiesTooMuch), "{error}");
    let sources = vec!["src"; 30_000];
    let error = context.copy_output(&step(&sources, "/x/")).unwrap_err();
    assert!(matches!(error, ContextError::CopiesTooMuch), "{error}");
}

#[test]
fn dockerignore_hides_files_but_not_from_the_build() {
    let files = [
        (".dockerignore", "*\n!src\nsrc/**/*.md\n!src/deep/keep.md\n"),
        ("Dockerfile", "FROM x"),
        ("secret", "s"),
        ("src/a.txt", "a"),
        ("src/b.md", "b"),
        ("src/deep/keep.md", "k"),
        ("other/x", "x"),
    ];
    expect![[r#"
        . /w/: to /w
        Directory src 755 
        Regular src/a.txt 644 a
        Directory src/deep 755 
        Regular src/deep/keep.md 644 k
        secret /w: error: `secret` is in the archive, but .dockerignore leaves it out
    "#]]
    .assert_eq(&show_each(&files, &[(&["."], "/w/"), (&["secret"], "/w")]));
    let (_folder, context) = context(&files);
    assert_eq!(context.dockerfile().unwrap(), b"FROM x");
}

#[test]
fn an_ignore_file_of_the_dockerfile_itself_takes_precedence() {
    let files = [
        (".dockerignore", "a"),
        ("Dockerfile.dockerignore", "b"),
        ("a", ""),
        ("b", ""),
    ];
    let (_folder, context) = context(&files);
    assert!(context.has("a") && !context.has("b"));
}

#[test]
fn an_exception_keeps_the_folders_above_it() {
    let files = [
        (".dockerignore", "a\n!a/b/c"),
        ("a/b/c", "c"),
        ("a/x", "x"),
        ("z", "z"),
    ];
    expect![[r#"
        . /w/: to /w
        Regular .dockerignore 644 a
        !a/b/c
        Directory a 755 
        Directory a/b 755 
        Regular a/b/c 644 c
        Regular z 644 z
    "#]]
    .assert_eq(&show_each(&files, &[(&["."], "/w/")]));
}

#[test]
fn chmod_applies_to_files_and_folders() {
    let (_folder, context) = context(APP);
    let copy = step(&["src/deep", "app.py"], "/x/");
    let copy = CopyStep {
        chmod: Some(0o700),
        owner: "app".to_owned(),
        ..copy
    };
    expect![[r#"
        to /x
        Regular c.txt 700 c
        up -> ../a.txt
        Regular app.py 700 py
    "#]]
    .assert_eq(&show(&context, &copy));
    assert_eq!(context.copy_output(&copy).unwrap().spec.owner, "app");
}

#[test]
fn archives_go_by_themselves_when_they_are_to_be_unpacked() {
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_data(&mut header_of(1), "x", &b"x"[..]).unwrap();
    let tar = tar.into_inner().unwrap();
    let mut digests = BTreeSet::new();
    for content in [
        tar.as_slice(),
        b"\x1f\x8b\x08rest",
        b"BZh9rest",
        b"\xfd7zXZ\0rest",
        b"\x28\xb5\x2f\xfdrest",
    ] {
        let (folder, _) = context(&[("plain", "x")]);
        fs::write(folder.path().join("pack"), content).unwrap();
        let context = Context::open(folder.path()).unwrap();
        let copied = context.copy_output(&step(&["pack"], "/x")).unwrap();
        assert!(copied.spec.as_file && copied.archives.is_empty());
        let add = CopyStep {
            unpack_files: true,
            ..step(&["pack", "plain"], "/x/")
        };
        let added = context.copy_output(&add).unwrap();
        assert_eq!(
            (added.entries, added.archives),
            (1, vec!["pack".to_owned()])
        );
        assert!(digests.insert(added.digest));
        let excluding = CopyStep {
            excludes: vec!["pa*".to_owned()],
            ..add.clone()
        };
        assert!(context.copy_output(&excluding).unwrap().archives.is_empty());
        // It may prove to be no archive, and is copied then.
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(folder.path().join("pack"), executable).unwrap();
        let context = Context::open(folder.path()).unwrap();
        assert!(digests.insert(context.copy_output(&add).unwrap().digest));

        let mut sent = Vec::new();
        let spec = context.file_tar(&step(&["pack"], "/x"), "pack", &mut sent);
        assert!(spec.unwrap().as_file);
        let mut archive = tar::Archive::new(sent.as_slice());
        let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
        let mut found = Vec::new();
        entry.read_to_end(&mut found).unwrap();
        assert_eq!(found, content);
    }
}

#[test]
fn parents_and_excludes_choose_names_and_files() {
    let (_folder, context) = context(APP);
    let parents = |sources: &[&str]| CopyStep {
        parents: true,
        ..step(sources, "/to")
    };
    let excluding = |sources: &[&str], excludes: &[&str]| CopyStep {
        excludes: excludes
            .iter()
            .map(|pattern| (*pattern).to_owned())
            .collect(),
        ..step(sources, "/to/")
    };
    let shown = [
        show(&context, &parents(&["src/deep/c.txt", "app.py"])),
        show(&context, &parents(&["./src/./deep/c.txt"])),
        show(&context, &parents(&["src/**/*.txt"])),
        show(&context, &parents(&["src/deep"])),
        show(&context, &excluding(&["src"], &["*.md", "deep"])),
        show(&context, &excluding(&["src"], &["**/*.txt", "!a.txt"])),
        show(&context, &excluding(&["src/*.*"], &["*.md"])),
    ];
    expect![[r#"
        to /to
        Directory src 755 
        Directory src/deep 755 
        Regular src/deep/c.txt 644 c
        Regular app.py 644 py
        --
        to /to
        Directory deep 755 
        Regular deep/c.txt 644 c
        --
        to /to
        Directory src 755 
        Regular src/a.txt 644 a
        Directory src/deep 755 
        Regular src/deep/c.txt 644 c
        --
        to /to
        Directory src 755 
        Directory src/deep 755 
        Regular src/deep/c.txt 644 c
        src/deep/up -> ../a.txt
        --
        to /to
        Regular a.txt 644 a
        --
        to /to
        Regular a.txt 644 a
        Regular b.md 644 b
        Directory deep 755 
        deep/up -> ../a.txt
        --
        to /to
        Regular a.txt 644 a
    "#]]
    .assert_eq(&shown.join("--\n"));
}

#[test]
fn files_of_the_dockerfile_join_those_of_the_context() {
    let (_folder, context) = context(APP);
    let text = |name: &str| CopySource::Text {
        name: name.to_owned(),
        content: "said\n".to_owned(),
    };
    let mut both = step(&["app.py"], "/to/");
    both.sources.push(text("EOF"));
    let mut alone = step(&[], "/to/file");
    alone.sources.push(text("EOF"));
    let shown = [show(&context, &both), show(&context, &alone)];
    expect![[r#"
        to /to
        Regular app.py 644 py
        Regular EOF 644 said

        to /to/file as file
        Regular EOF 644 said

    "#]]
    .assert_eq(&shown.concat());
}

#[test]
fn a_command_sees_a_folder_or_one_file() {
    let (_folder, context) = context(APP);
    let mut tar = Vec::new();
    let tree = context.tree_tar("/src/deep", &mut tar).unwrap();
    assert_eq!(tree.file, None);
    let mut archive = tar::Archive::new(tar.as_slice());
    let names = archive.entries().unwrap().map(|entry| {
        let entry = entry.unwrap();
        entry.path().unwrap().display().to_string()
    });
    assert_eq!(names.collect::<Vec<_>>(), ["c.txt", "up"]);
    let file = context.tree_tar("/link", std::io::sink()).unwrap();
    assert_eq!(file.file.as_deref(), Some("link"));
    assert_ne!(file.digest, tree.digest);
    let missing = context.tree_tar("/none", std::io::sink()).unwrap_err();
    assert!(matches!(missing, ContextError::Missing { .. }));
}

fn header_of(bytes: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(0o644);
    header
}

#[test]
fn the_digest_changes_with_what_is_copied_and_with_nothing_else() {
    let files = [("d/a", "1"), ("d/l", "->a"), ("other", "x")];
    let digest = |change: &dyn Fn(&Path), step: &CopyStep| {
        let (folder, _) = context(&files);
        change(folder.path());
        Context::open(folder.path())
            .unwrap()
            .copy_output(step)
            .unwrap()
            .digest
    };
    let copy = step(&["d"], "/x/");
    let base = digest(&|_| {}, &copy);
    let touch = |root: &Path| {
        let file = fs::File::options()
            .write(true)
            .open(root.join("d/a"))
            .unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
    };
    assert_eq!(digest(&touch, &copy), base);
    assert_eq!(
        digest(&|root| fs::write(root.join("other"), "y").unwrap(), &copy),
        base
    );
    let changes: [&dyn Fn(&Path); 4] = [
        &|root| fs::write(root.join("d/a"), "2").unwrap(),
        &|root| fs::rename(root.join("d/a"), root.join("d/b")).unwrap(),
        &|root| fs::set_permissions(root.join("d/a"), fs::Permissions::from_mode(0o755)).unwrap(),
        &|root| {
            fs::remove_file(root.join("d/l")).unwrap();
            symlink("b", root.join("d/l")).unwrap();
        },
    ];
    let mut seen = vec![base];
    for change in changes {
        seen.push(digest(change, &copy));
    }
    seen.push(digest(&|_| {}, &step(&["d"], "/y/")));
    seen.push(digest(
        &|_| {},
        &CopyStep {
            owner: "app".to_owned(),
            ..copy.clone()
        },
    ));
    seen.push(digest(
        &|_| {},
        &CopyStep {
            chmod: Some(0o600),
            ..copy
        },
    ));
    for (index, digest) in seen.iter().enumerate() {
        assert!(!seen[..index].contains(digest), "{index}");
    }
}

#[test]
fn a_failing_receiver_is_told_apart() {
    struct Broken;
    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (_folder, context) = context(APP);
    let error = context
        .copy_tar(&step(&["app.py"], "/x"), Broken)
        .unwrap_err();
    assert!(matches!(error, ContextError::Send(_)), "{error}");
}

#[test]
fn a_dockerfile_that_is_no_file_is_refused() {
    let (_folder, context) = context(&[("Dockerfile/", "")]);
    assert!(matches!(
        context.dockerfile(),
        Err(ContextError::NoDockerfile)
    ));
    let (_folder, context) = self::context(&[]);
    assert!(matches!(
        context.dockerfile(),
        Err(ContextError::NoDockerfile)
    ));
}

#[test]
fn long_names_and_odd_names_survive() {
    let name = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let (_folder, context) = context(&[(&name, "long"), ("with space", "s"), ("größe", "u")]);
    let text = show(&context, &step(&["."], "/x/"));
    for name in [name.as_str(), "with space", "größe"] {
        assert!(text.contains(name), "{text}");
    }
}
