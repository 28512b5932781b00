//! A tree of all files that a program is made of, at the paths at which it looks for them.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

/// The libraries and the loader of a program.
///
/// # Errors
/// `ldd` does not run, or does not understand the program.
pub fn libraries(program: &Path) -> io::Result<Vec<PathBuf>> {
    let listed = Command::new("ldd").arg(program).output()?;
    if !listed.status.success() {
        let words = String::from_utf8_lossy(&listed.stderr).into_owned();
        return Err(io::Error::other(format!(
            "ldd {}: {words}",
            program.display()
        )));
    }
    Ok(listed_paths(&String::from_utf8_lossy(&listed.stdout)))
}

/// Paths in what `ldd` prints: `name => /path (address)` or `/path (address)`.
fn listed_paths(listed: &str) -> Vec<PathBuf> {
    let paths = listed.lines().filter_map(|line| {
        let path = line.split("=>").last()?.split_whitespace().next()?;
        path.starts_with('/').then(|| PathBuf::from(path))
    });
    paths.collect()
}

/// Copies files into a new tree that every user may read, and writes it to the disk: whoever gives it its name may trust
/// it after a loss of power.
///
/// # Errors
/// One of them is not there, or cannot be copied.
pub fn plant(files: &[PathBuf], tree: &Path) -> io::Result<()> {
    for file in files {
        copy_into(file, tree)?;
    }
    finish_folders(tree)
}

/// Copies a file to the path in `tree` that it has on the host, links on the way to it included.
fn copy_into(file: &Path, tree: &Path) -> io::Result<()> {
    let top = Component::Normal(
        file.components()
            .nth(1)
            .map(Component::as_os_str)
            .unwrap_or_default(),
    );
    let link = Path::new("/").join(top);
    if link.is_symlink() {
        fs::create_dir_all(tree)?;
        match std::os::unix::fs::symlink(fs::read_link(&link)?, tree.join(top)) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    let (Some(folder), Some(name)) = (file.parent(), file.file_name()) else {
        return Err(ErrorKind::InvalidInput.into());
    };
    let folder = folder.canonicalize()?;
    let folder = tree.join(folder.strip_prefix("/").unwrap_or(&folder));
    fs::create_dir_all(&folder)?;
    let target = folder.join(name);
    fs::copy(file, &target)?;
    let mode = fs::metadata(&target)?.permissions().mode() | 0o444;
    fs::set_permissions(&target, fs::Permissions::from_mode(mode))?;
    File::open(&target)?.sync_all()
}

/// Lets every user look into the folders of a tree, whatever files this process makes otherwise.
fn finish_folders(folder: &Path) -> io::Result<()> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            finish_folders(&entry.path())?;
        }
    }
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_ldd_prints() {
        let listed = "\tlinux-vdso.so.1 (0x00007ffc)\n\
            \tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = [
            "/lib/x86_64-linux-gnu/libz.so.1",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(listed_paths(listed), expected.map(PathBuf::from));
    }
}
