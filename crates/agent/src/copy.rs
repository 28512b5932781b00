//! Unpacking a tar into the guest's file system: Docker's `COPY`.
//!
//! The agent sees the guest's root as its own, so every link is followed inside it and nothing that an
//! archive holds can reach beyond. Entries that climb with `..` are refused all the same.
//!
//! As in Docker a file replaces a file, and a folder that exists keeps its owner and mode.

use crate::account::{AccountError, Accounts, Owner};
use dormouse_core::guest::CopySpec;
use dormouse_core::limits;
use rustix::fs::{AtFlags, CWD, Gid, Timespec, Timestamps, Uid, chownat, utimensat};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use tar::{Archive, Entry, EntryType};

const FOLDER_MODE: u32 = 0o755;
const MODE_MASK: u32 = 0o7777;

/// Why a copy failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// The destination is not an absolute path.
    #[error("the destination {0:?} is not an absolute path")]
    DestNotAbsolute(String),
    /// A path with `..` in it.
    #[error("the path {0:?} leads out of the destination")]
    Climbs(PathBuf),
    /// A kind of entry that no build context holds.
    #[error("{0:?} is neither a file, a folder nor a link")]
    Unsupported(PathBuf),
    /// A copy to a file's path needs exactly one file.
    #[error("a copy to a file's path needs an archive of one regular file")]
    NotOneFile,
    /// A file cannot replace a folder.
    #[error("cannot replace the folder {0:?} with a file")]
    FolderInTheWay(PathBuf),
    /// The owner does not exist.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// The archive is damaged or was cut off.
    #[error("cannot read the archive")]
    Archive(#[source] io::Error),
    /// The account files cannot be read.
    #[error("cannot read the account files")]
    Accounts(#[source] io::Error),
    /// The file system refused.
    #[error("cannot write {path:?}")]
    Write {
        /// Where.
        path: PathBuf,
        /// The kernel's answer, or what broke the archive in the middle of this file.
        #[source]
        source: io::Error,
    },
}

impl CopyError {
    fn write<E: Into<io::Error>>(path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self::Write {
            path: path.to_owned(),
            source: source.into(),
        }
    }

    /// Whether the disk is full.
    pub(crate) fn is_disk_full(&self) -> bool {
        matches!(self, Self::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }
}

/// Unpacks a tar as told; what it says of owners counts for nothing. This blocks.
pub(crate) fn unpack(spec: &CopySpec, tar: impl Read) -> Result<(), CopyError> {
    let owner = owner_of(spec)?;
    unpack_owned(spec, Some(owner), tar)
}

/// Unpacks a tar as told; unless that names an owner, files keep those of the tar. This blocks.
pub(crate) fn unpack_archive(spec: &CopySpec, tar: impl Read) -> Result<(), CopyError> {
    let owner = match spec.owner.as_str() {
        "" => None,
        _ => Some(owner_of(spec)?),
    };
    unpack_owned(spec, owner, tar)
}

/// Unpacks a tar into an empty folder. This blocks.
pub(crate) fn unpack_tree(folder: &Path, mut tar: impl Read) -> Result<(), CopyError> {
    let mut copy = Copy {
        owner: Some(Owner { uid: 0, gid: 0 }),
        folder_times: Vec::new(),
    };
    copy.all(folder, &mut tar)?;
    set_mode(folder, FOLDER_MODE)?;
    io::copy(&mut tar, &mut io::sink()).map_err(CopyError::Archive)?;
    Ok(())
}

fn owner_of(spec: &CopySpec) -> Result<Owner, CopyError> {
    let accounts = Accounts::load().map_err(CopyError::Accounts)?;
    Ok(accounts.owner(&spec.owner)?)
}

fn unpack_owned(
    spec: &CopySpec,
    owner: Option<Owner>,
    mut tar: impl Read,
) -> Result<(), CopyError> {
    if !spec.dest.starts_with('/') {
        return Err(CopyError::DestNotAbsolute(spec.dest.clone()));
    }
    let dest = Path::new("/").join(relative(Path::new(&spec.dest))?);
    let mut copy = Copy {
        owner,
        folder_times: Vec::new(),
    };
    if spec.as_file {
        copy.one_file(&dest, &mut tar)?;
    } else {
        copy.all(&dest, &mut tar)?;
    }
    // What stands behind the archive's end mark is read, so that the connection can be used again.
    io::copy(&mut tar, &mut io::sink()).map_err(CopyError::Archive)?;
    Ok(())
}

/// A path below the destination: without its root, and never upwards.
fn relative(path: &Path) -> Result<PathBuf, CopyError> {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(CopyError::Climbs(path.to_owned()));
            }
        }
    }
    Ok(out)
}

struct Copy {
    /// Who owns what is copied; none for whom the tar names.
    owner: Option<Owner>,
    /// Times of the folders made: set last, since a new entry changes its folder's time.
    folder_times: Vec<(PathBuf, u64)>,
}

impl Copy {
    fn all(&mut self, dest: &Path, tar: impl Read) -> Result<(), CopyError> {
        self.make_folders(dest)?;
        let mut archive = Archive::new(tar);
        for entry in archive.entries().map_err(CopyError::Archive)? {
            self.place(dest, entry.map_err(CopyError::Archive)?)?;
        }
        for (path, time) in &self.folder_times {
            set_time(path, *time)?;
        }
        Ok(())
    }

    fn one_file(&mut self, dest: &Path, tar: impl Read) -> Result<(), CopyError> {
        let mut archive = Archive::new(tar);
        let mut entries = archive.entries().map_err(CopyError::Archive)?;
        let entry = entries.next().ok_or(CopyError::NotOneFile)?;
        let mut entry = entry.map_err(CopyError::Archive)?;
        if !is_regular(entry.header().entry_type()) {
            return Err(CopyError::NotOneFile);
        }
        let path = if dest.is_dir() {
            let from = entry.path().map_err(CopyError::Archive)?;
            dest.join(from.file_name().ok_or(CopyError::NotOneFile)?)
        } else {
            dest.to_owned()
        };
        self.make_parent(&path)?;
        self.write_file(&path, &mut entry)?;
        match entries.next() {
            None => Ok(()),
            Some(_) => Err(CopyError::NotOneFile),
        }
    }

    fn place(&mut self, dest: &Path, mut entry: Entry<'_, impl Read>) -> Result<(), CopyError> {
        let name = relative(&entry.path().map_err(CopyError::Archive)?)?;
        let path = dest.join(&name);
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            return self.make_folder(&path, &entry);
        }
        if name.as_os_str().is_empty() {
            return Err(CopyError::Unsupported(path));
        }
        self.make_parent(&path)?;
        if is_regular(kind) {
            return self.write_file(&path, &mut entry);
        }
        let link = entry.link_name().map_err(CopyError::Archive)?;
        let target = link.ok_or_else(|| CopyError::Unsupported(path.clone()))?;
        if kind.is_symlink() {
            make_way(&path)?;
            std::os::unix::fs::symlink(&target, &path).map_err(CopyError::write(&path))?;
            self.own(&path, self.owner_in(&entry)?)?;
            return set_time(&path, entry.header().mtime().map_err(CopyError::Archive)?);
        }
        if kind.is_hard_link() {
            make_way(&path)?;
            let original = dest.join(relative(&target)?);
            return fs::hard_link(original, &path).map_err(CopyError::write(&path));
        }
        Err(CopyError::Unsupported(path))
    }

    fn make_folder(&mut self, path: &Path, entry: &Entry<'_, impl Read>) -> Result<(), CopyError> {
        if path.is_dir() {
            return Ok(());
        }
        self.make_folders(path)?;
        if self.owner.is_none() {
            self.own(path, self.owner_in(entry)?)?;
        }
        let mode = entry.header().mode().map_err(CopyError::Archive)?;
        set_mode(path, mode)?;
        if self.folder_times.len() < limits::ARTIFACT_ENTRIES_MAX {
            let time = entry.header().mtime().map_err(CopyError::Archive)?;
            self.folder_times.push((path.to_owned(), time));
        }
        Ok(())
    }

    fn write_file(
        &mut self,
        path: &Path,
        entry: &mut Entry<'_, impl Read>,
    ) -> Result<(), CopyError> {
        let mode = entry.header().mode().map_err(CopyError::Archive)?;
        let time = entry.header().mtime().map_err(CopyError::Archive)?;
        make_way(path)?;
        let mut file = fs::File::create_new(path).map_err(CopyError::write(path))?;
        io::copy(entry, &mut file).map_err(CopyError::write(path))?;
        drop(file);
        // Changing the owner clears the set-user bit: the mode comes after it.
        self.own(path, self.owner_in(entry)?)?;
        set_mode(path, mode)?;
        set_time(path, time)
    }

    fn make_parent(&self, path: &Path) -> Result<(), CopyError> {
        path.parent()
            .map_or(Ok(()), |parent| self.make_folders(parent))
    }

    /// Makes a folder and those above it where they are missing.
    fn make_folders(&self, path: &Path) -> Result<(), CopyError> {
        if path.is_dir() {
            return Ok(());
        }
        self.make_parent(path)?;
        fs::create_dir(path).map_err(CopyError::write(path))?;
        self.own(path, self.owner.unwrap_or(Owner { uid: 0, gid: 0 }))?;
        set_mode(path, FOLDER_MODE)
    }

    /// Who is to own what an entry becomes.
    fn owner_in(&self, entry: &Entry<'_, impl Read>) -> Result<Owner, CopyError> {
        if let Some(owner) = self.owner {
            return Ok(owner);
        }
        let number = |id: io::Result<u64>| {
            let id = id.map_err(CopyError::Archive)?;
            // Numbers that Linux does not have belong to nobody in particular.
            Ok::<_, CopyError>(u32::try_from(id).unwrap_or(u32::MAX - 1))
        };
        let header = entry.header();
        Ok(Owner {
            uid: number(header.uid())?,
            gid: number(header.gid())?,
        })
    }

    fn own(&self, path: &Path, owner: Owner) -> Result<(), CopyError> {
        let uid = Some(Uid::from_raw(owner.uid));
        let gid = Some(Gid::from_raw(owner.gid));
        chownat(CWD, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(CopyError::write(path))
    }
}

fn is_regular(kind: EntryType) -> bool {
    kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse()
}

/// Removes what has an entry's name, unless it is a folder.
fn make_way(path: &Path) -> Result<(), CopyError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => Err(CopyError::FolderInTheWay(path.to_owned())),
        Ok(_) => fs::remove_file(path).map_err(CopyError::write(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(CopyError::write(path)(error)),
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<(), CopyError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode & MODE_MASK))
        .map_err(CopyError::write(path))
}

fn set_time(path: &Path, seconds: u64) -> Result<(), CopyError> {
    let time = Timespec {
        tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(CopyError::write(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use tar::{Builder, Header};

    enum Item<'a> {
        File(&'a str, &'a str, u32),
        Folder(&'a str, u32),
        Symlink(&'a str, &'a str),
        HardLink(&'a str, &'a str),
        Fifo(&'a str),
    }
    use Item::{Fifo, File, Folder, HardLink, Symlink};

    /// Names are written as they are: the builder's own functions refuse `..`.
    fn archive(items: &[Item<'_>]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for item in items {
            let (name, kind, mode, link, data) = match *item {
                File(name, data, mode) => (name, EntryType::Regular, mode, "", data),
                Folder(name, mode) => (name, EntryType::Directory, mode, "", ""),
                Symlink(name, to) => (name, EntryType::Symlink, 0o777, to, ""),
                HardLink(name, to) => (name, EntryType::Link, 0o644, to, ""),
                Fifo(name) => (name, EntryType::Fifo, 0o644, "", ""),
            };
            let mut header = Header::new_gnu();
            let fields = header.as_gnu_mut().expect("made so");
            fields.name[..name.len()].copy_from_slice(name.as_bytes());
            fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_mtime(1_000_000_000);
            header.set_size(data.len() as u64);
            header.set_cksum();
            builder.append(&header, data.as_bytes()).expect("memory");
        }
        builder.into_inner().expect("memory")
    }

    fn run(dest: &Path, as_file: bool, items: &[Item<'_>]) -> Result<(), CopyError> {
        let mut copy = Copy {
            owner: Some(Owner {
                uid: rustix::process::getuid().as_raw(),
                gid: rustix::process::getgid().as_raw(),
            }),
            folder_times: Vec::new(),
        };
        let bytes = archive(items);
        if as_file {
            copy.one_file(dest, bytes.as_slice())
        } else {
            copy.all(dest, bytes.as_slice())
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("there").mode() & MODE_MASK
    }

    #[test]
    fn a_tree_arrives_with_modes_links_and_times() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let dest = dir.path().join("new/app");
        let items = [
            Folder("./", 0o700),
            Folder("bin/", 0o750),
            File("bin/run", "#!", 0o4755),
            Symlink("link", "bin/run"),
            HardLink("twin", "bin/run"),
            File("deep/without/folders", "x", 0o600),
        ];
        run(&dest, false, &items).expect("copies");
        assert_eq!(mode(&dest.join("bin")), 0o750);
        assert_eq!(mode(&dest.join("bin/run")), 0o4755);
        assert_eq!(
            fs::read_link(dest.join("link")).expect("a link"),
            Path::new("bin/run")
        );
        let run_file = fs::metadata(dest.join("bin/run")).expect("there");
        let twin = fs::metadata(dest.join("twin")).expect("there");
        assert_eq!(run_file.ino(), twin.ino());
        for name in ["bin", "bin/run", "link"] {
            let found = fs::symlink_metadata(dest.join(name)).expect("there");
            assert_eq!(found.mtime(), 1_000_000_000, "{name}");
        }
        assert_eq!(mode(&dest.join("deep/without")), FOLDER_MODE);
        assert_eq!(
            fs::read(dest.join("deep/without/folders")).expect("read"),
            b"x"
        );
    }

    #[test]
    fn what_exists_is_treated_as_docker_does() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let dest = dir.path();
        fs::create_dir(dest.join("kept")).expect("folder");
        set_mode(&dest.join("kept"), 0o711).expect("mode");
        fs::write(dest.join("old"), "old").expect("write");
        fs::write(dest.join("target"), "target").expect("write");
        std::os::unix::fs::symlink("target", dest.join("link")).expect("link");
        std::os::unix::fs::symlink("kept", dest.join("alias")).expect("link");
        let items = [
            Folder("kept", 0o777),
            File("old", "new", 0o644),
            File("link", "a file now", 0o644),
            File("alias/inside", "x", 0o644),
        ];
        run(dest, false, &items).expect("copies");
        assert_eq!(mode(&dest.join("kept")), 0o711);
        assert_eq!(fs::read(dest.join("old")).expect("read"), b"new");
        assert_eq!(fs::read(dest.join("target")).expect("read"), b"target");
        assert_eq!(fs::read(dest.join("link")).expect("read"), b"a file now");
        assert_eq!(fs::read(dest.join("kept/inside")).expect("read"), b"x");
        let error = run(dest, false, &[File("kept", "", 0o644)]).expect_err("a folder");
        assert!(matches!(error, CopyError::FolderInTheWay(_)), "{error}");
    }

    #[test]
    fn climbing_and_strange_entries_are_refused() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let dest = dir.path().join("dest");
        for items in [
            [File("../out", "x", 0o644)],
            [File("a/../../out", "x", 0o644)],
            [HardLink("in", "../out")],
        ] {
            let error = run(&dest, false, &items).expect_err("climbs");
            assert!(matches!(error, CopyError::Climbs(_)), "{error}");
        }
        let error = run(&dest, false, &[Fifo("pipe")]).expect_err("a pipe");
        assert!(matches!(error, CopyError::Unsupported(_)), "{error}");
        assert!(!dir.path().join("out").exists());
        // An absolute name counts from the destination.
        run(&dest, false, &[File("/etc/x", "x", 0o644)]).expect("copies");
        assert!(dest.join("etc/x").exists());
    }

    #[test]
    fn one_file_takes_the_path_or_goes_into_the_folder() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let dest = dir.path().join("a/b/renamed");
        let file = [File("src/name.txt", "x", 0o640)];
        run(&dest, true, &file).expect("copies");
        assert_eq!(fs::read(&dest).expect("read"), b"x");
        assert_eq!(mode(&dest), 0o640);
        run(dir.path(), true, &file).expect("copies");
        assert_eq!(fs::read(dir.path().join("name.txt")).expect("read"), b"x");
        for items in [
            &[][..],
            &[Folder("d", 0o755)],
            &[File("a", "", 0o644), File("b", "", 0o644)],
        ] {
            let error = run(&dest, true, items).expect_err("not one file");
            assert!(matches!(error, CopyError::NotOneFile), "{error}");
        }
    }

    #[test]
    fn an_archive_that_is_cut_off_is_an_error() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let bytes = archive(&[File("a", &"x".repeat(2000), 0o644)]);
        let mut copy = Copy {
            owner: Some(Owner { uid: 0, gid: 0 }),
            folder_times: Vec::new(),
        };
        assert!(copy.all(dir.path(), &bytes[..1000]).is_err());
    }

    #[test]
    fn the_destination_is_absolute_and_never_climbs() {
        for dest in ["app", "", "/app/../.."] {
            let spec = CopySpec {
                dest: dest.to_owned(),
                as_file: false,
                owner: String::new(),
            };
            assert!(unpack(&spec, io::empty()).is_err(), "{dest:?}");
        }
    }
}
