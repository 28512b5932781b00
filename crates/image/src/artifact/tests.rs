//! Archives made by hand, byte by byte, because no tool makes the hostile ones.

use super::*;
use proptest::prelude::*;
use std::os::unix::fs::PermissionsExt;
use zip::write::SimpleFileOptions;

/// One entry of a zip that is stored, not compressed.
struct Entry<'a> {
    name: &'a [u8],
    content: &'a [u8],
    /// Unix mode with its format bits; 0 for an archive that states none.
    mode: u32,
    flags: u16,
    method: u16,
}

fn entry<'a>(name: &'a str, content: &'a str) -> Entry<'a> {
    let mode = 0o100_644;
    Entry {
        name: name.as_bytes(),
        content: content.as_bytes(),
        mode,
        flags: 1 << 11,
        method: 0,
    }
}

fn link<'a>(name: &'a str, target: &'a str) -> Entry<'a> {
    Entry {
        mode: 0o120_777,
        ..entry(name, target)
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

fn zip_of(entries: &[Entry<'_>]) -> Vec<u8> {
    let (mut body, mut listing) = (Vec::new(), Vec::new());
    for entry in entries {
        let offset = u32::try_from(body.len()).unwrap();
        let length = u32::try_from(entry.content.len()).unwrap();
        let mut shared = Vec::new();
        shared.extend(20_u16.to_le_bytes());
        shared.extend(entry.flags.to_le_bytes());
        shared.extend(entry.method.to_le_bytes());
        shared.extend([0, 0, 0x21, 0]);
        shared.extend(crc32(entry.content).to_le_bytes());
        shared.extend(length.to_le_bytes());
        shared.extend(length.to_le_bytes());
        shared.extend(u16::try_from(entry.name.len()).unwrap().to_le_bytes());
        shared.extend(0_u16.to_le_bytes());
        body.extend(b"PK\x03\x04");
        body.extend(&shared);
        body.extend(entry.name);
        body.extend(entry.content);
        listing.extend(b"PK\x01\x02");
        listing.extend([20, if entry.mode == 0 { 0 } else { 3 }]);
        listing.extend(&shared);
        listing.extend([0; 6]);
        listing.extend((entry.mode << 16).to_le_bytes());
        // After the comment's length, the disk and the internal attributes.
        listing.extend(offset.to_le_bytes());
        listing.extend(entry.name);
    }
    let count = u16::try_from(entries.len()).unwrap().to_le_bytes();
    let start = u32::try_from(body.len()).unwrap();
    let length = u32::try_from(listing.len()).unwrap();
    body.extend(listing);
    body.extend(b"PK\x05\x06\0\0\0\0");
    body.extend(count);
    body.extend(count);
    body.extend(length.to_le_bytes());
    body.extend(start.to_le_bytes());
    body.extend([0, 0]);
    body
}

/// Unpacks bytes in a folder of their own; what was beside the destination is checked untouched.
fn try_unpack(bytes: &[u8], bounds: &Bounds) -> (tempfile::TempDir, Result<(), ArtifactError>) {
    let folder = tempfile::tempdir().unwrap();
    let zip = folder.path().join("artifact.zip");
    std::fs::write(&zip, bytes).unwrap();
    let result = unpack_within(&zip, &folder.path().join("dest"), bounds);
    let mut names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    names.retain(|name| name != "dest");
    assert_eq!(
        names,
        ["artifact.zip"],
        "something was written outside of the destination"
    );
    (folder, result)
}

fn refusal(entries: &[Entry<'_>]) -> String {
    let (_folder, result) = try_unpack(&zip_of(entries), &BOUNDS);
    let error = result.unwrap_err();
    format!("{}: {error}", error.code())
}

#[test]
fn a_good_archive_keeps_contents_modes_and_links() {
    let bytes = zip_of(&[
        entry("Dockerfile", "FROM x"),
        Entry {
            mode: 0o100_755,
            ..entry("./bin//run.sh", "#!/bin/sh")
        },
        Entry {
            mode: 0o104_711,
            ..entry("suid", "")
        },
        Entry {
            mode: 0o600,
            ..entry("python-writestr", "x")
        },
        Entry {
            mode: 0,
            ..entry("from-windows", "x")
        },
        Entry {
            mode: 0o040_750,
            ..entry("private/", "")
        },
        entry("private/größe.txt", "in"),
        link("private/up", "../bin/run.sh"),
        link("dangling", "not/there"),
    ]);
    let (folder, result) = try_unpack(&bytes, &BOUNDS);
    result.unwrap();
    let dest = folder.path().join("dest");
    let mode = |path: &str| {
        dest.join(path)
            .symlink_metadata()
            .unwrap()
            .permissions()
            .mode()
            & 0o7777
    };
    assert_eq!(
        std::fs::read_to_string(dest.join("bin/run.sh")).unwrap(),
        "#!/bin/sh"
    );
    assert_eq!(
        std::fs::read_to_string(dest.join("private/größe.txt")).unwrap(),
        "in"
    );
    assert_eq!(mode("bin/run.sh"), 0o755);
    assert_eq!(mode("suid"), 0o4711);
    assert_eq!(mode("python-writestr"), 0o600);
    assert_eq!(mode("from-windows"), 0o644);
    assert_eq!(mode("private"), 0o750);
    assert_eq!(mode("bin"), 0o755);
    assert_eq!(
        dest.join("private/up").read_link().unwrap(),
        Path::new("../bin/run.sh")
    );
    assert!(
        dest.join("dangling")
            .symlink_metadata()
            .unwrap()
            .is_symlink()
    );
}

#[test]
fn hostile_names_are_refused_by_name() {
    let dockerfile = || entry("Dockerfile", "FROM x");
    let long_part = "x".repeat(256);
    let long_path = "x/".repeat(600) + "x";
    let table = [
        ("../evil", "`../evil` leads out of the archive by `..`"),
        (
            "a/../../evil",
            "`a/../../evil` leads out of the archive by `..`",
        ),
        ("a/..", "`a/..` leads out of the archive by `..`"),
        ("/etc/passwd", "`/etc/passwd` has an absolute path"),
        ("..\\evil", "`..\\\\evil` has a backslash in its name"),
        ("C:evil", "`C:evil` has a drive letter in its name"),
        ("a\0b", "`a\\0b` has a NUL byte in its name"),
        (&long_part, "has too long a name"),
        (&long_path, "has too long a name"),
        (".", "`.` has no name"),
    ];
    for (name, expected) in table {
        let text = refusal(&[dockerfile(), entry(name, "x")]);
        assert!(
            text.starts_with("ARCHIVE_INVALID: the code artifact's entry `"),
            "{text}"
        );
        assert!(text.ends_with(expected), "{text}");
    }
}

#[test]
fn links_cannot_lead_out() {
    for (path, target, expected) in [
        ("l", "/etc", "`l` is a link with an absolute target"),
        ("l", "..", "`l` is a link that may lead out of the archive"),
        (
            "l",
            "../x",
            "`l` is a link that may lead out of the archive",
        ),
        (
            "a/l",
            "../../x",
            "`a/l` is a link that may lead out of the archive",
        ),
        (
            "l",
            "a/../../x",
            "`l` is a link that may lead out of the archive",
        ),
        ("l", "", "`l` is a link with an empty or too long target"),
        (
            "l",
            "a\0b",
            "`l` is a link with an empty or too long target",
        ),
    ] {
        let text = refusal(&[entry("Dockerfile", ""), link(path, target)]);
        assert!(text.ends_with(expected), "{path} -> {target}: {text}");
    }
    // Each link is inside by its spelling, but together they would climb out.
    let chain = [
        entry("Dockerfile", ""),
        link("x/y/z", "../.."),
        link("out", "x/y/z/../../etc"),
    ];
    assert!(
        refusal(&chain).contains("`out` is a link that may lead out"),
        "{}",
        refusal(&chain)
    );
}

#[test]
fn nothing_is_written_through_a_link() {
    let through = [
        entry("Dockerfile", ""),
        link("l", "a"),
        entry("l/x", "evil"),
    ];
    assert!(refusal(&through).ends_with("`l/x` lies below another entry that is no folder"));
    let before = [
        entry("Dockerfile", ""),
        entry("l/x", "evil"),
        link("l", "a"),
    ];
    assert!(refusal(&before).ends_with("`l` collides with another entry"));
}

#[test]
fn entries_cannot_collide() {
    let twice = [entry("Dockerfile", "1"), entry("Dockerfile", "2")];
    let expected = "ARCHIVE_INVALID: the code artifact holds two entries of one name";
    assert_eq!(refusal(&twice), expected);
    let spelled = [entry("Dockerfile", "1"), entry("./Dockerfile", "2")];
    assert!(refusal(&spelled).ends_with("`./Dockerfile` collides with another entry"));
    let file_and_folder = [entry("Dockerfile", ""), entry("a", ""), entry("a/b", "")];
    assert!(
        refusal(&file_and_folder).ends_with("`a/b` lies below another entry that is no folder")
    );
}

#[test]
fn special_encrypted_and_unknown_entries_are_refused() {
    for mode in [0o020_644, 0o060_644, 0o010_644, 0o140_644] {
        let text = refusal(&[
            entry("Dockerfile", ""),
            Entry {
                mode,
                ..entry("dev", "")
            },
        ]);
        assert!(
            text.ends_with("`dev` is a device, a pipe or a socket"),
            "{text}"
        );
    }
    let encrypted = Entry {
        flags: 1,
        ..entry("secret", "x")
    };
    let text = refusal(&[entry("Dockerfile", ""), encrypted]);
    assert!(
        text.ends_with("`secret` is encrypted; make the archive without a password"),
        "{text}"
    );
    let bzip2 = Entry {
        method: 12,
        ..entry("packed", "x")
    };
    let text = refusal(&[entry("Dockerfile", ""), bzip2]);
    assert!(
        text.ends_with("`packed` is compressed by a method other than deflate"),
        "{text}"
    );
}

#[test]
fn what_is_no_zip_is_refused() {
    let good = zip_of(&[entry("Dockerfile", "FROM x"), entry("a", "b")]);
    let mut damaged = good.clone();
    let at = damaged.windows(6).position(|w| w == b"FROM x").unwrap();
    damaged[at] = b'X';
    for (bytes, what) in [
        (b"hello".to_vec(), "text"),
        (Vec::new(), "nothing"),
        (good[..good.len() - 10].to_vec(), "truncated"),
        (good[..good.len() / 2].to_vec(), "half"),
        (damaged, "damaged"),
    ] {
        let (_folder, result) = try_unpack(&bytes, &BOUNDS);
        assert_eq!(result.unwrap_err().code(), "ARCHIVE_INVALID", "{what}");
    }
}

#[test]
fn a_dockerfile_must_be_a_file_at_the_root() {
    for entries in [
        [entry("app/Dockerfile", ""), entry("x", "")],
        [entry("dockerfile", ""), entry("x", "")],
        [entry("Dockerfile/x", ""), entry("x", "")],
        [link("Dockerfile", "x"), entry("x", "")],
    ] {
        assert!(refusal(&entries).starts_with("ARCHIVE_DOCKERFILE_NOT_FOUND: "));
    }
}

#[test]
fn sizes_are_bounded_by_what_is_written() {
    let small = |change: fn(&mut Bounds)| {
        let mut bounds = Bounds {
            file_bytes: 10_000,
            listing_bytes: 10_000,
            entries: 4,
            unpacked_bytes: 100_000,
            ratio: 10,
            ratio_free_bytes: 1000,
        };
        change(&mut bounds);
        bounds
    };
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    writer
        .start_file("Dockerfile", SimpleFileOptions::default())
        .unwrap();
    writer.write_all(b"FROM x").unwrap();
    writer
        .start_file("zeros", SimpleFileOptions::default())
        .unwrap();
    writer.write_all(&[0; 50_000]).unwrap();
    let bomb = writer.finish().unwrap().into_inner();
    let fails = |bytes: &[u8], bounds: &Bounds| try_unpack(bytes, bounds).1.unwrap_err();

    let error = fails(&bomb, &small(|_| {}));
    assert!(
        matches!(error, ArtifactError::Bomb { ref entry, ratio: 10 } if entry == "zeros"),
        "{error}"
    );
    let error = fails(
        &bomb,
        &small(|b| (b.ratio, b.unpacked_bytes) = (1_000_000, 40_000)),
    );
    assert!(
        matches!(error, ArtifactError::TooLarge { ref entry, .. } if entry == "zeros"),
        "{error}"
    );
    try_unpack(&bomb, &small(|b| b.ratio_free_bytes = 60_000))
        .1
        .unwrap();
    let error = fails(&bomb, &small(|b| b.file_bytes = 100));
    assert!(
        matches!(error, ArtifactError::TooBig { max: 100 }),
        "{error}"
    );
    let error = fails(&bomb, &small(|b| b.listing_bytes = 60));
    assert!(
        matches!(error, ArtifactError::ListingTooLarge { max: 60 }),
        "{error}"
    );

    let many: Vec<_> = ["Dockerfile", "b", "c", "d", "e"]
        .map(|name| entry(name, ""))
        .into();
    let error = fails(&zip_of(&many), &small(|_| {}));
    assert!(
        matches!(error, ArtifactError::TooManyEntries { max: 4 }),
        "{error}"
    );
    // Folders that no entry names count too.
    let deep = zip_of(&[entry("Dockerfile", ""), entry("a/b/c/d/e", "")]);
    let error = fails(&deep, &small(|_| {}));
    assert!(
        matches!(error, ArtifactError::TooManyEntries { max: 4 }),
        "{error}"
    );
}

#[test]
fn a_lying_header_does_not_get_more_room() {
    // The header of a compressed entry claims one byte; the data unpacks to many.
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    writer
        .start_file("Dockerfile", SimpleFileOptions::default())
        .unwrap();
    writer.write_all(&[b'x'; 5000]).unwrap();
    let mut bytes = writer.finish().unwrap().into_inner();
    let real = 5000_u32.to_le_bytes();
    while let Some(at) = bytes.windows(4).position(|window| window == real) {
        bytes[at..at + 4].copy_from_slice(&1_u32.to_le_bytes());
    }
    let (folder, result) = try_unpack(&bytes, &BOUNDS);
    assert!(
        matches!(result, Err(ArtifactError::Damaged { .. })),
        "{result:?}"
    );
    let written = folder
        .path()
        .join("dest/Dockerfile")
        .metadata()
        .unwrap()
        .len();
    assert!(written <= 5000, "{written}");
}

/// A small file system of its own; needs root.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new(size: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]);
        assert!(mount.arg(folder.path()).status().unwrap().success());
        Self(folder)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let umount = std::process::Command::new("umount")
            .arg(self.0.path())
            .status();
        assert!(umount.is_ok_and(|status| status.success()));
    }
}

#[test]
fn a_full_disk_has_its_own_code() {
    let content = "x".repeat(200_000);
    let zip = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(zip.path(), zip_of(&[entry("Dockerfile", &content)])).unwrap();
    let small = Tmpfs::new("64k");
    let error = unpack(zip.path(), &small.0.path().join("dest")).unwrap_err();
    assert!(matches!(error, ArtifactError::DiskFull(_)), "{error}");
}

#[test]
fn the_hosts_failures_are_told_apart() {
    let error = io("write a file")(std::io::Error::from_raw_os_error(
        Errno::NOSPC.raw_os_error(),
    ));
    assert_eq!(error.code(), "DISK_STORAGE_FULL");
    let error = io("write a file")(std::io::Error::from_raw_os_error(Errno::IO.raw_os_error()));
    assert_eq!(error.code(), "INTERNAL_PLATFORM_ERROR");
}

#[test]
fn a_destination_in_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mine"), "x").unwrap();
    let zip = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(zip.path(), zip_of(&[entry("Dockerfile", "")])).unwrap();
    assert!(matches!(
        unpack(zip.path(), folder.path()),
        Err(ArtifactError::Io { .. })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let (_folder, result) = try_unpack(&bytes, &BOUNDS);
        prop_assert!(result.is_err());
    }

    #[test]
    fn a_changed_archive_never_panics_or_leaves_its_folder(
        at in 0..400_usize,
        byte in any::<u8>(),
        cut in 0..400_usize,
    ) {
        let mut bytes = zip_of(&[
            entry("Dockerfile", "FROM x"), entry("a/b", "c"), link("a/l", "../Dockerfile"),
        ]);
        let at = at % bytes.len();
        bytes[at] = byte;
        if cut < bytes.len() {
            bytes.truncate(bytes.len() - cut % 40);
        }
        let _ = try_unpack(&bytes, &BOUNDS);
    }

    #[test]
    fn a_checked_path_stays_below_its_root(name in "[a./\\\\: ]{0,12}") {
        if let Ok(path) = checked_path(&name) {
            prop_assert!(!path.starts_with('/') && !path.split('/').any(|part| part == ".."));
        }
    }
}
