//! The jail in which a VMM runs: what it is made of, and how one is started.
//!
//! `dormouse-jail` puts up the walls; this says what they enclose. A jailed program sees copies of its own files, made
//! once for each version of it, and those files of the host that its machine needs.

use dormouse_jail::{Shown, Spec, tree};
use rustix::fs::{Gid, Mode, Uid, chmod, chown};
use rustix::io::{FdFlags, fcntl_setfd};
use std::ffi::OsString;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// What QEMU loads at run time besides its libraries.
const ROM_FOLDERS: [&str; 2] = ["/usr/share/qemu", "/usr/share/seabios"];
const ROMS: [&str; 5] = [
    "qboot.rom",
    "pvh.bin",
    "linuxboot.bin",
    "linuxboot_dma.bin",
    "bios-microvm.bin",
];
/// Files in which whoever is shown them may read.
const READABLE: u32 = 0o644;
const OWN: u32 = 0o600;
/// The bit of these that others go by.
const FOR_OTHERS: u32 = 0o004;

/// Starts one program in jails.
#[derive(Debug, Clone)]
pub struct Jailer {
    jail: PathBuf,
    program: PathBuf,
    tree: PathBuf,
    mount_point: PathBuf,
}

/// What encloses one machine's VMM.
#[derive(Debug)]
pub(crate) struct Cell {
    /// The user that it runs as.
    pub(crate) uid: u32,
    /// The control groups that it joins.
    pub(crate) cgroups: Vec<PathBuf>,
    /// What it sees of the host.
    pub(crate) shown: Vec<Shown>,
    /// Bytes of the largest file that it may write.
    pub(crate) file_bytes_max: u64,
    /// Whether it may use `/dev/kvm`.
    pub(crate) kvm: bool,
}

impl Jailer {
    /// Makes jails for `program`, found by `PATH` unless it has a slash, in the folder `dir`; `jail` is the program that
    /// builds them. Copies what `program` is made of there unless that was done. Blocks.
    ///
    /// # Errors
    /// The program or one of its files is not there, or cannot be copied.
    pub fn install(jail: &Path, program: &Path, dir: &Path) -> io::Result<Self> {
        let program = find_program(program)?;
        let files = files_of(&program)?;
        let mount_point = dir.join("root");
        fs::create_dir_all(&mount_point)?;
        let tree = dir.join(format!("files-{:016x}", fingerprint(&files)?));
        if !tree.exists() {
            let draft = dir.join("files.tmp");
            remove_tree(&draft)?;
            tree::plant(&files, &draft)?;
            fs::rename(&draft, &tree)?;
            File::open(dir)?.sync_all()?;
        }
        Ok(Self {
            jail: std::path::absolute(jail)?,
            program,
            tree,
            mount_point,
        })
    }

    /// A command that starts the program in a jail and prints its process id. It inherits `stdin` and, as the same
    /// number, `descriptor`; its own messages go to `log`.
    pub(crate) fn command(
        &self,
        cell: Cell,
        arguments: Vec<OsString>,
        stdin: Option<OwnedFd>,
        descriptor: OwnedFd,
        log: File,
    ) -> io::Result<tokio::process::Command> {
        let mut shown = cell.shown;
        // What lies in a folder that is shown, too, comes after it.
        shown.sort_by(|a, b| a.path.cmp(&b.path));
        shown.dedup_by(|later, first| later.path == first.path);
        let spec = Spec {
            uid: cell.uid,
            cgroups: cell.cgroups,
            tree: self.tree.clone(),
            mount_point: self.mount_point.clone(),
            shown,
            file_bytes_max: cell.file_bytes_max,
            kvm: cell.kvm,
            descriptors: vec![descriptor.as_raw_fd()],
            program: self.program.clone(),
            arguments,
        };
        let mut command = tokio::process::Command::new(&self.jail);
        command
            .arg(serde_json::to_string(&spec)?)
            .current_dir("/")
            .env_clear()
            .stdin(stdin.map_or_else(Stdio::null, Stdio::from))
            .stdout(Stdio::piped())
            .stderr(log);
        // SAFETY: the call is async-signal-safe, and nothing else happens between fork and exec.
        unsafe {
            command.pre_exec(move || Ok(fcntl_setfd(&descriptor, FdFlags::empty())?));
        }
        Ok(command)
    }
}

/// Lets the user `uid`, and nobody else, write to a file.
pub(crate) fn lend(path: &Path, uid: u32) -> io::Result<()> {
    set_owner(path, uid, OWN)
}

/// Takes a file back from whoever it was lent to; those that it is shown to can read it. Gone already is fine.
pub(crate) fn take_back(path: &Path) -> io::Result<()> {
    match set_owner(path, 0, READABLE) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn set_owner(path: &Path, id: u32, mode: u32) -> io::Result<()> {
    let before = fs::symlink_metadata(path)?;
    if !before.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "not a file"));
    }
    if before.uid() != id || before.gid() != id {
        chown(path, Some(Uid::from_raw(id)), Some(Gid::from_raw(id)))?;
    }
    if before.permissions().mode() & 0o7777 != mode {
        chmod(path, Mode::from_raw_mode(mode))?;
    }
    Ok(())
}

/// A file that is only read.
pub(crate) fn read_only(path: &Path) -> io::Result<Shown> {
    make_readable(path)?;
    Ok(Shown {
        path: std::path::absolute(path)?,
        writable: false,
    })
}

/// A file that is only read, and whose name is somebody's word: no link, and nothing that had to be made readable first.
pub(crate) fn readable_already(path: &Path) -> io::Result<Shown> {
    let found = fs::symlink_metadata(path)?;
    if !found.is_file() || found.permissions().mode() & FOR_OTHERS == 0 {
        let problem = format!("{} is not there to be read", path.display());
        return Err(io::Error::new(ErrorKind::PermissionDenied, problem));
    }
    Ok(Shown {
        path: std::path::absolute(path)?,
        writable: false,
    })
}

/// Lets those read a file that it is shown to. The folders of the host above it keep out all others.
pub(crate) fn make_readable(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & FOR_OTHERS == 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o444))?;
    }
    Ok(())
}

/// A file or folder whose own permissions say what may be written.
pub(crate) fn writable(path: &Path) -> io::Result<Shown> {
    Ok(Shown {
        path: std::path::absolute(path)?,
        writable: true,
    })
}

fn find_program(program: &Path) -> io::Result<PathBuf> {
    if program.components().count() > 1 {
        return program.canonicalize();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file());
    let missing = || {
        io::Error::new(
            ErrorKind::NotFound,
            format!("no {} in PATH", program.display()),
        )
    };
    found.ok_or_else(missing)?.canonicalize()
}

/// The program, its libraries, its loader and its ROMs.
fn files_of(program: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = vec![program.to_owned()];
    files.extend(tree::libraries(program)?);
    for rom in ROMS {
        let places = ROM_FOLDERS.iter().map(|folder| Path::new(folder).join(rom));
        files.extend(places.filter(|path| path.is_file()));
    }
    Ok(files)
}

/// Changes when one of the files does.
fn fingerprint(files: &[PathBuf]) -> io::Result<u64> {
    let mut hasher = DefaultHasher::new();
    for file in files {
        let found = fs::metadata(file)?;
        (
            file,
            found.len(),
            found.mtime(),
            found.mtime_nsec(),
            found.ino(),
        )
            .hash(&mut hasher);
    }
    Ok(hasher.finish())
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_copied_once_and_runs_on_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let jailer = Jailer::install(Path::new("jail"), Path::new("true"), dir.path()).unwrap();
        let copy = jailer.tree.join(jailer.program.strip_prefix("/").unwrap());
        assert!(copy.is_file(), "{copy:?}");
        let again = Jailer::install(Path::new("jail"), Path::new("true"), dir.path()).unwrap();
        assert_eq!(again.tree, jailer.tree);
        let missing = Jailer::install(Path::new("jail"), Path::new("no-such-vmm"), dir.path());
        assert!(missing.unwrap_err().to_string().contains("no-such-vmm"));
    }

    #[test]
    fn only_a_file_changes_hands() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk");
        fs::write(&file, "").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(lend(&link, 1).is_err(), "a link could lead anywhere");
        assert!(take_back(&dir.path().join("gone")).is_ok());
    }
}
