//! These need root, `mke2fs`, `debugfs` and `e2fsck`, as imports themselves do.

use super::*;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use tar::{EntryType, Header};

const DISK_BYTES: u64 = 64 << 20;

fn header(kind: EntryType, mode: u32, owner: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(owner);
    header.set_gid(owner);
    header.set_mtime(1_700_000_000);
    header.set_size(0);
    header
}

fn rootfs(extra: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> tempfile::NamedTempFile {
    let mut tar = tar::Builder::new(Vec::new());
    let mut folder = |path: &str, mode, owner| {
        let mut header = header(EntryType::Directory, mode, owner);
        tar.append_data(&mut header, path, io::empty()).unwrap();
    };
    folder("etc", 0o755, 0);
    folder("dev", 0o755, 0);
    folder("usr/bin", 0o755, 0);
    folder("home/app", 0o700, 1000);
    folder("tmp", 0o1777, 0);
    let mut file = header(EntryType::Regular, 0o4755, 0);
    file.set_size(4);
    tar.append_data(&mut file, "usr/bin/su", &b"elf!"[..])
        .unwrap();
    let mut owned = header(EntryType::Regular, 0o640, 1000);
    owned.set_size(2);
    tar.append_data(&mut owned, "home/app/mine", &b"hi"[..])
        .unwrap();
    tar.append_link(&mut header(EntryType::Symlink, 0o777, 0), "bin", "usr/bin")
        .unwrap();
    tar.append_link(
        &mut header(EntryType::Symlink, 0o777, 0),
        "etc/abs",
        "/usr/bin/su",
    )
    .unwrap();
    tar.append_link(
        &mut header(EntryType::Link, 0o755, 0),
        "usr/bin/hard",
        "usr/bin/su",
    )
    .unwrap();
    let mut device = header(EntryType::Char, 0o666, 0);
    device.set_device_major(1).unwrap();
    device.set_device_minor(3).unwrap();
    tar.append_data(&mut device, "dev/null", io::empty())
        .unwrap();
    extra(&mut tar);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), tar.into_inner().unwrap()).unwrap();
    file
}

fn config() -> ImageConfig {
    ImageConfig {
        env: vec![("PATH".to_owned(), "/bin".to_owned())],
        ..ImageConfig::default()
    }
}

fn debugfs(disk: &Path, command: &str) -> String {
    let output = Command::new("/sbin/debugfs")
        .args(["-R", command])
        .arg(disk)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn an_imported_image_is_a_sound_disk_with_owners_modes_and_links() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalImages::open(folder.path()).unwrap();
    let tar = rootfs(|_| {});
    let image = store
        .import_rootfs_tar("localhost/tiny:1", tar.path(), config(), DISK_BYTES)
        .unwrap();

    let check = Command::new("/sbin/e2fsck")
        .arg("-fn")
        .arg(&image.disk)
        .output()
        .unwrap();
    assert!(
        check.status.success(),
        "{}",
        String::from_utf8_lossy(&check.stdout)
    );
    let inode = |path: &str| debugfs(&image.disk, &format!("stat {path}"));
    let assert_inode = |path: &str, parts: &[&str]| {
        let text = inode(path).split_whitespace().collect::<Vec<_>>().join(" ");
        for part in parts {
            assert!(text.contains(part), "{path}: {part} is not in {text}");
        }
    };
    assert_inode("/", &["Type: directory", "Mode: 0755", "User: 0"]);
    assert_inode(
        "/home/app",
        &["Type: directory", "Mode: 0700", "User: 1000", "Group: 1000"],
    );
    assert_inode(
        "/home/app/mine",
        &["Type: regular", "Mode: 0640", "User: 1000", "Size: 2"],
    );
    assert_inode("/tmp", &["Mode: 01777"]);
    assert_inode("/usr/bin/su", &["Mode: 04755", "Links: 2"]);
    assert_inode("/bin", &["Type: symlink", "Fast link dest: \"usr/bin\""]);
    assert_inode(
        "/etc/abs",
        &["Type: symlink", "Fast link dest: \"/usr/bin/su\""],
    );
    assert_eq!(debugfs(&image.disk, "cat /home/app/mine"), "hi");
    assert!(
        !inode("/dev/null").contains("Inode:"),
        "device nodes are left out"
    );
    let features = debugfs(&image.disk, "features");
    assert!(features.contains("has_journal"), "{features}");

    let metadata = fs::metadata(&image.disk).unwrap();
    assert_eq!(metadata.len(), DISK_BYTES);
    let used = std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
    assert!(
        used < DISK_BYTES / 4,
        "the disk is sparse, but uses {used} bytes"
    );
}

#[test]
fn references_resolve_move_and_list() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalImages::open(folder.path()).unwrap();
    let unknown = store.resolve("localhost/a").unwrap_err();
    assert_eq!(
        unknown.to_string(),
        "no image `localhost/a:latest` in the local store"
    );
    assert!(matches!(
        store.resolve("../x"),
        Err(LocalImageError::Reference { .. })
    ));

    let tar = rootfs(|_| {});
    let import = |reference, config| {
        store
            .import_rootfs_tar(reference, tar.path(), config, DISK_BYTES)
            .unwrap()
    };
    let first = import("localhost/b", config());
    assert_eq!(store.resolve("localhost/b:latest").unwrap(), first);
    assert_eq!(first.config, config());
    let file = fs::metadata(&first.disk).unwrap().ino();

    // The same tar again: a new configuration, the same disk.
    let again = import(
        "localhost/b",
        ImageConfig {
            cwd: "/srv".to_owned(),
            ..config()
        },
    );
    assert_eq!((&again.disk, &again.digest), (&first.disk, &first.digest));
    assert_eq!(fs::metadata(&again.disk).unwrap().ino(), file);
    assert_eq!(store.resolve("localhost/b").unwrap().config.cwd, "/srv");

    let bigger = store
        .import_rootfs_tar("a:2", tar.path(), config(), DISK_BYTES * 2)
        .unwrap();
    assert_ne!(bigger.digest, first.digest);
    let names: Vec<_> = store
        .list()
        .unwrap()
        .into_iter()
        .map(|image| image.reference)
        .collect();
    assert_eq!(names, ["a:2", "localhost/b:latest"]);
    assert_eq!(
        fs::read_dir(folder.path().join("importing"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn a_hostile_or_broken_tar_leaves_the_store_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalImages::open(&folder.path().join("store")).unwrap();
    let victim = folder.path().join("victim");
    fs::create_dir(&victim).unwrap();
    let through_link = rootfs(|tar| {
        tar.append_link(&mut header(EntryType::Symlink, 0o777, 0), "out", &victim)
            .unwrap();
        tar.append_data(
            &mut header(EntryType::Regular, 0o644, 0),
            "out/evil",
            io::empty(),
        )
        .unwrap();
    });
    let climbing = rootfs(|tar| {
        let mut header = header(EntryType::Regular, 0o644, 0);
        let name = b"../../victim/evil";
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name);
        header.set_cksum();
        tar.append(&header, io::empty()).unwrap();
    });
    let text = tempfile::NamedTempFile::new().unwrap();
    fs::write(text.path(), "no tar at all".repeat(100)).unwrap();
    let cut = rootfs(|_| {});
    let bytes = fs::read(cut.path()).unwrap();
    fs::write(cut.path(), &bytes[..3000]).unwrap();
    // As in a container, the link leads to a folder of that name within the image.
    let image = store
        .import_rootfs_tar("inside", through_link.path(), config(), DISK_BYTES)
        .unwrap();
    let inside = format!("stat {}", victim.join("evil").display());
    assert!(debugfs(&image.disk, &inside).contains("Type: regular"));
    fs::remove_file(folder.path().join("store/references/inside:latest.json")).unwrap();
    fs::remove_file(&image.disk).unwrap();
    for tar in [&climbing, &text, &cut] {
        store
            .import_rootfs_tar("x", tar.path(), config(), DISK_BYTES)
            .unwrap_err();
    }
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    assert!(store.list().unwrap().is_empty());
    assert_eq!(fs::read_dir(store.disks()).unwrap().count(), 0);

    let large = rootfs(|tar| {
        let mut file = header(EntryType::Regular, 0o644, 0);
        file.set_size(1000 << 10);
        let content = io::repeat(7).take(1000 << 10);
        tar.append_data(&mut file, "large", content).unwrap();
    });
    let refused =
        |disk_bytes| match store.import_rootfs_tar("x", large.path(), config(), disk_bytes) {
            Err(LocalImageError::Rootfs(error)) => error,
            other => panic!("{other:?}"),
        };
    assert!(matches!(refused(512 << 10), RootfsError::TooLarge { .. }));
    // What an ext4 keeps for itself leaves no room for the file.
    assert!(matches!(
        refused(1 << 20),
        RootfsError::MakeFileSystem { .. }
    ));
}

#[test]
fn what_was_pulled_goes_once_it_is_idle() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalImages::open(folder.path()).unwrap();
    let tar = rootfs(|_| {});
    let layer = LayerSource {
        path: tar.path().to_owned(),
        start: 0,
        len: u64::MAX,
    };
    let image = |content: &str| NewImage {
        digest: crate::digest::Digest::of(content.as_bytes()).to_string(),
        layers: vec![layer.clone()],
        diff_ids: None,
        config: config(),
        disk_bytes: DISK_BYTES,
    };
    store.add_imported("kept", image("imported")).unwrap();
    let names = ["a.example/a:1".to_owned(), "a.example/a@x".to_owned()];
    store.add_pulled(&names, "x", image("pulled")).unwrap();
    let pulled = store.find_pulled(&names[0]).unwrap();

    let hour = std::time::Duration::from_secs(3600);
    let (before, after) = (SystemTime::now() - hour, SystemTime::now() + hour);
    assert!(store.idle_disks(before).unwrap().is_empty());
    let idle = store.idle_disks(after).unwrap();
    assert_eq!(idle.len(), 1);
    assert_eq!(
        (&idle[0].path, &idle[0].digest),
        (&pulled.disk, &pulled.digest)
    );
    assert!(idle[0].allocated > 0);
    // A build has come to use it: it may lose its names, and no more.
    assert!(!store.remove_idle(&idle[0], before).unwrap());
    assert!(pulled.disk.exists());
    store.add_pulled(&names, "x", image("pulled")).unwrap();
    assert!(store.remove_idle(&idle[0], after).unwrap());
    assert!(!pulled.disk.exists());
    for name in &names {
        let gone = store.find_pulled(name);
        assert!(matches!(gone, Err(LocalImageError::Unknown { .. })));
    }
    assert_eq!(store.list().unwrap().len(), 1);
    store.resolve("kept").unwrap();
}

#[test]
fn a_use_is_noted_and_a_disk_that_went_away_is_pulled_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalImages::open(folder.path()).unwrap();
    let record =
        r#"{"reference":"r","resolved":"x","digest":"sha256:00","created_ms":0,"config":{}}"#;
    fs::write(store.pulled_record("r"), record).unwrap();
    let missing = store.find_pulled("r");
    assert!(matches!(missing, Err(LocalImageError::Unknown { .. })));
    let disk = File::create(store.disk("sha256:00")).unwrap();
    disk.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    store.find_pulled("r").unwrap();
    let used = disk.metadata().unwrap().modified().unwrap();
    assert!(used.elapsed().unwrap().as_secs() < 60);
}

#[test]
fn a_damaged_record_is_said_to_be_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalImages::open(folder.path()).unwrap();
    fs::write(folder.path().join("references/x:1.json"), "{").unwrap();
    assert!(matches!(
        store.resolve("x:1"),
        Err(LocalImageError::Damaged { .. })
    ));
    let record = r#"{"digest":"sha256:../../../etc/passwd","created_ms":0,"config":{}}"#;
    fs::write(folder.path().join("references/x:1.json"), record).unwrap();
    assert!(matches!(
        store.resolve("x:1"),
        Err(LocalImageError::Io { .. })
    ));
}
