//! Layers that mean harm: each is refused with its reason, or does nothing outside.

use super::*;
use dormouse_core::limits;

fn refusal(layer: Layer) -> String {
    unpack(&[layer.end()]).unwrap_err().to_string()
}

#[test]
fn paths_do_not_leave_the_root() {
    for path in ["../victim/evil", "a/../../victim/evil", "..", "a/.."] {
        let text = refusal(Layer::new().dir("a").file(path, b"evil"));
        assert!(text.contains("leads out"), "{path}: {text}");
    }
    expect(
        &[Layer::new().file("/etc/evil", b"x").end()],
        &[("etc", "/"), ("etc/evil", "x")],
    );
    let text = refusal(Layer::new().pax(&[("path", b"a\0b")]).file("x", b""));
    assert!(text.contains("zero byte"), "{text}");
}

#[test]
fn symbolic_links_lead_nowhere_but_within() {
    for target in ["/victim", "../victim", "../../../../victim", "//..//victim"] {
        let layer = Layer::new().symlink("out", target).file("out/evil", b"x");
        let found = unpack(&[layer.end()]).unwrap();
        assert_eq!(found["victim/evil"], "x", "{target}");
    }
    // Over an absolute path that really is on the host.
    let lab = Lab::new(&[]);
    let victim = lab.folder.path().join("victim");
    let layer = Layer::new()
        .symlink("out", victim.to_str().unwrap())
        .file("out/kept", b"changed")
        .file("out/evil", b"x")
        .file("out/.wh.kept", b"");
    let again = Lab::new(&[Layer::new().end(), layer.end()]);
    again.unpack().unwrap();
    lab.assert_nothing_outside();
    let text = refusal(
        Layer::new()
            .symlink("a", "b")
            .symlink("b", "a")
            .file("a/x", b""),
    );
    assert!(text.contains("too many symbolic links"), "{text}");
    // A link in the place of a folder that is written to afterwards.
    let swap = Layer::new()
        .dir("d")
        .file("d/a", b"1")
        .symlink("d", "/victim")
        .file("d/evil", b"x");
    expect(
        &[swap.end()],
        &[("d", "-> /victim"), ("victim", "/"), ("victim/evil", "x")],
    );
}

#[test]
fn hard_links_lead_to_files_of_the_image() {
    for (target, reason) in [
        ("/etc/passwd", "not there"),
        ("../victim/kept", "leads out"),
        ("dir", "to a folder"),
        ("", "not there"),
        (".", "not there"),
        ("self", "not there"),
        ("out/kept", "not there"),
    ] {
        let layer = Layer::new()
            .dir("dir")
            .symlink("out", "../victim")
            .hard_link("self", target);
        let text = refusal(layer);
        assert!(text.contains(reason), "{target}: {text}");
    }
    // A hard link to a link, and then a file in the link's place: the link is replaced, not followed.
    let layer = Layer::new()
        .symlink("link", "/victim/kept")
        .hard_link("again", "link")
        .file("again", b"changed");
    expect(
        &[layer.end()],
        &[("again", "changed"), ("link", "-> /victim/kept")],
    );
}

#[test]
fn devices_are_left_out_and_unknown_kinds_refused() {
    for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo] {
        let layer = Layer::new().dir("dev").entry(kind, b"dev/sda", b"", b"");
        expect(&[layer.end()], &[("dev", "/")]);
    }
    for kind in [b'V', b'M', b'D', b'?'] {
        let text = refusal(Layer::new().entry(EntryType::new(kind), b"x", b"", b""));
        assert!(text.contains("unknown type"), "{text}");
    }
}

#[test]
fn whiteouts_hide_nothing_but_names() {
    for name in [".wh.", ".wh..", ".wh...", "a/.wh.."] {
        let text = refusal(Layer::new().dir("a").file(name, b""));
        assert!(text.contains("whiteout"), "{name}: {text}");
    }
    let text = refusal(Layer::new().file(".wh.a/b", b"x"));
    assert!(text.contains("whiteout"), "{text}");
    let text = refusal(Layer::new().file("../.wh.victim", b""));
    assert!(text.contains("leads out"), "{text}");
    let opaque_root = Layer::new().file(".wh..wh..opq", b"").file("b", b"2").end();
    expect(
        &[Layer::new().file("a", b"1").end(), opaque_root],
        &[("b", "2")],
    );
}

#[test]
fn entries_that_contradict_each_other_end_with_the_last() {
    let layer = Layer::new()
        .file("a", b"1")
        .dir("a")
        .file("a/b", b"2")
        .file("a", b"3")
        .file("a", b"4");
    expect(&[layer.end()], &[("a", "4")]);
    let text = refusal(Layer::new().file("a", b"1").file("a/b", b"2"));
    assert!(
        text.contains("a file is where its folder should be"),
        "{text}"
    );
    let text = refusal(Layer::new().file("./", b"1"));
    assert!(text.contains("root must be a folder"), "{text}");
}

#[test]
fn bombs_are_refused() {
    let large = |size: u64| {
        let mut header = header(EntryType::Regular, b"zeros", b"", 0);
        header.set_size(size);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    // 256 MiB of zeros in a few kilobytes.
    let mut bomb = zstd::Encoder::new(Vec::new(), 1).unwrap();
    bomb.write_all(&large(256 << 20)).unwrap();
    for _ in 0..256 {
        bomb.write_all(&[0; 1 << 20]).unwrap();
    }
    let bomb = bomb.finish().unwrap();
    assert!(bomb.len() < 64 << 10);
    let text = unpack(&[bomb]).unwrap_err().to_string();
    assert!(text.contains("bytes in its layers"), "{text}");
    // What it claims is never taken for true.
    for size in [1 << 40, u64::MAX - 600, u64::MAX] {
        unpack(&[large(size)]).unwrap_err();
    }
    let half = vec![1; 33 << 20];
    let text = unpack(&[Layer::new().file("a", &half).file("b", &half).end()]).unwrap_err();
    assert!(text.to_string().contains("67108864 bytes"), "{text}");
    // Replaced files do not count.
    unpack(&[
        Layer::new().file("a", &half).end(),
        Layer::new().file("a", &half).end(),
    ])
    .unwrap();

    let mut many = Layer::new();
    for number in 0..5000 {
        many = many.file(&format!("f{number}"), b"");
    }
    let text = unpack(&[many.end()]).unwrap_err().to_string();
    assert!(text.contains("4096 files"), "{text}");

    let deep = "d/".repeat(limits::ROOTFS_DEPTH_MAX + 1);
    assert!(refusal(Layer::new().dir(&deep)).contains("too deep"));
    assert!(refusal(Layer::new().dir(&"x/".repeat(2048))).contains("too long"));
    assert!(refusal(Layer::new().file(&"x".repeat(256), b"")).contains("too long"));
    // Deeper by a link than any path says.
    let part = "d/".repeat(200);
    let layer = Layer::new()
        .dir(&part)
        .symlink("s", &part)
        .dir(&format!("s/{part}"));
    assert!(refusal(layer).contains("too deep"));
}

#[test]
fn descriptions_of_entries_have_a_limit() {
    let value = vec![b'x'; 5000];
    let layer = Layer::new()
        .pax(&[("SCHILY.xattr.user.a", &value)])
        .file("a", b"");
    assert!(refusal(layer).contains("extended attributes"));
    let mut many = Vec::new();
    for number in 0..400 {
        many.push((format!("SCHILY.xattr.user.{number}"), b"1"));
    }
    let many: Vec<_> = many
        .iter()
        .map(|(key, value)| (key.as_str(), &value[..]))
        .collect();
    assert!(refusal(Layer::new().pax(&many).file("a", b"")).contains("extended attributes"));
    let long = vec![b'x'; limits::TAR_HEADER_BYTES_MAX + 1];
    assert!(refusal(Layer::new().pax(&[("comment", &long)]).file("a", b"")).contains("too long"));
    assert!(refusal(Layer::new().entry(EntryType::Regular, &long, b"", b"")).contains("too long"));
    let layer = Layer::new().pax(&[("uid", b"5000000000")]).file("a", b"");
    assert!(refusal(layer).contains("owner"));
    assert!(refusal(Layer::new().symlink("a", &"x/".repeat(2100))).contains("symbolic link"));
}

#[test]
fn extended_attributes_count_by_what_they_take_in_memory() {
    let value = vec![b'x'; 4000];
    let mut folders = Layer::new();
    for number in 0..1200 {
        let layer = folders.dir(&format!("d{number}"));
        let layer = layer.pax(&[("SCHILY.xattr.user.a", &value)]);
        folders = layer.dir(&format!("d{number}"));
    }
    assert!(refusal(folders).contains("extended attributes"));
    let names: Vec<_> = (0..150)
        .map(|number| format!("SCHILY.xattr.user.{number}"))
        .collect();
    let small: Vec<_> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    let mut files = Layer::new();
    for number in 0..300 {
        files = files.pax(&small).file(&format!("f{number}"), b"");
    }
    assert!(refusal(files).contains("extended attributes"));
}

#[test]
fn descriptions_of_entries_count_as_entries() {
    let one = Layer::new().pax(&[("comment", b"a")]);
    let tar = one.pax(&[("comment", b"b")]).file("a", b"").end();
    let first = |entries_max| archive::Archive::new(&tar[..], entries_max).next();
    assert!(first(3).unwrap().is_some());
    assert!(matches!(first(2), Err(archive::ArchiveError::TooMany)));
}

#[test]
fn looking_up_paths_has_a_limit() {
    // Each path goes through 40 links of 2000 names: a few kilobytes of it would take hours.
    let mut layer = Layer::new().dir("d");
    let target = format!("{}d", "d/../".repeat(800));
    for number in 0..39 {
        layer = layer.symlink(
            &format!("d/l{number}"),
            &format!("/{target}/l{}", number + 1),
        );
    }
    layer = layer.symlink("d/l39", "/d");
    for number in 0..500 {
        layer = layer.file(&format!("d/l0/f{number}"), b"");
    }
    assert!(refusal(layer).contains("steps of paths"));
}
