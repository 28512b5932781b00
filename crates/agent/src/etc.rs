//! The files that tell the app its name and where to ask for others: `/etc/hostname`, `/etc/hosts` and
//! `/etc/resolv.conf`. As with Docker they are the runtime's, whatever the image says.

use crate::console;
use dormouse_core::guest::{DNS_ADDR, GUEST_ADDR};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// The name of a VM that was not told its own yet.
const FIRST_HOSTNAME: &str = "localhost";
/// A longer hosts file than this is the app's mischief and is replaced.
const HOSTS_BYTES_MAX: u64 = 1 << 20;
/// Longest host name that the kernel takes, in bytes.
const HOSTNAME_BYTES_MAX: usize = 64;

/// Writes all three files and sets the first host name.
pub(crate) fn write_at_boot() -> io::Result<()> {
    fs::create_dir_all("/etc")?;
    let servers = format!("nameserver {DNS_ADDR}\n");
    replace(Path::new("/etc/resolv.conf"), servers.as_bytes())?;
    replace(
        Path::new("/etc/hosts"),
        fresh_hosts(FIRST_HOSTNAME).as_bytes(),
    )?;
    set_hostname(FIRST_HOSTNAME)?;
    write_hostname(FIRST_HOSTNAME)
}

/// Gives the VM another name, and another machine id where it has one. A file that cannot be written stays as it is: an app
/// that has filled its disk, or made it read-only, is to run all the same.
pub(crate) fn rename(hostname: &str, machine_id: [u8; 16]) -> io::Result<()> {
    set_hostname(hostname)?;
    for (file, written) in [
        ("hosts", rename_in_hosts(hostname)),
        ("hostname", write_hostname(hostname)),
        ("machine-id", renew_machine_id(machine_id)),
    ] {
        if let Err(error) = written {
            console::say(format_args!("cannot write /etc/{file}: {error}"));
        }
    }
    Ok(())
}

/// Lines that the app added stay.
fn rename_in_hosts(hostname: &str) -> io::Result<()> {
    let path = Path::new("/etc/hosts");
    let hosts = match read_regular(path, HOSTS_BYTES_MAX) {
        Some(text) => renamed_hosts(&text, hostname),
        None => fresh_hosts(hostname),
    };
    rewrite(path, hosts.as_bytes())
}

fn renew_machine_id(id: [u8; 16]) -> io::Result<()> {
    let path = Path::new("/etc/machine-id");
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => rewrite(path, format!("{}\n", hex::encode(id)).as_bytes()),
        _ => Ok(()),
    }
}

/// Whether a name can be a host name.
pub(crate) fn is_hostname(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    (1..=HOSTNAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(is_allowed)
        && !name.starts_with(['-', '.'])
}

fn set_hostname(hostname: &str) -> io::Result<()> {
    Ok(rustix::system::sethostname(hostname.as_bytes())?)
}

fn write_hostname(hostname: &str) -> io::Result<()> {
    rewrite(
        Path::new("/etc/hostname"),
        format!("{hostname}\n").as_bytes(),
    )
}

fn fresh_hosts(hostname: &str) -> String {
    format!(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         {GUEST_ADDR}\t{hostname}\n"
    )
}

/// The hosts file with the VM's own line set to a new name.
fn renamed_hosts(text: &str, hostname: &str) -> String {
    let own = GUEST_ADDR.to_string();
    let mut out = String::with_capacity(text.len() + hostname.len());
    let others = text
        .lines()
        .filter(|line| line.split_whitespace().next() != Some(own.as_str()));
    for line in others {
        out.push_str(line);
        out.push('\n');
    }
    out.push_str(&format!("{own}\t{hostname}\n"));
    out
}

/// Reads a file that the app may have made anything of.
fn read_regular(path: &Path, bytes_max: u64) -> Option<String> {
    let (file, found) = open_regular(path, fs::OpenOptions::new().read(true))?;
    if found.len() > bytes_max {
        return None;
    }
    let mut text = String::new();
    file.take(bytes_max).read_to_string(&mut text).ok()?;
    Some(text)
}

/// Gives a file other contents. Where it is a plain file it is written in place: that needs no new file, whose contents
/// the kernel would send to the disk at once, and nothing of the app's runs that could read it half written.
fn rewrite(path: &Path, contents: &[u8]) -> io::Result<()> {
    match open_plain(path) {
        Some(mut file) => {
            file.write_all(contents)?;
            file.set_len(contents.len() as u64)
        }
        None => replace(path, contents),
    }
}

/// A regular file that has no other name, to write to.
fn open_plain(path: &Path) -> Option<fs::File> {
    let (file, found) = open_regular(path, fs::OpenOptions::new().write(true))?;
    (found.nlink() == 1).then_some(file)
}

/// Opens a regular file, and nothing by way of a link: a pipe must not hold the agent up.
fn open_regular(path: &Path, options: &mut fs::OpenOptions) -> Option<(fs::File, fs::Metadata)> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = flags.bits().cast_signed();
    let file = options.custom_flags(flags).open(path).ok()?;
    let found = file.metadata().ok()?;
    found.is_file().then_some((file, found))
}

/// Puts a file in place of whatever has its name, without following or opening that.
fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = Path::new(&name);
    remove_any(new)?;
    fs::write(new, contents)?;
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_dir()) {
        fs::remove_dir_all(path)?;
    }
    fs::rename(new, path)
}

fn remove_any(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_name_replaces_the_old_line_and_no_other() {
        let before = "127.0.0.1\tlocalhost\n10.0.0.2\told old.example\n10.0.0.20 db\n# note";
        assert_eq!(
            renamed_hosts(before, "new"),
            "127.0.0.1\tlocalhost\n10.0.0.20 db\n# note\n10.0.0.2\tnew\n"
        );
        assert_eq!(
            renamed_hosts(&fresh_hosts("a"), "b"),
            fresh_hosts("b"),
            "renaming a fresh file is the same as writing it"
        );
    }

    #[test]
    fn host_names_are_checked() {
        assert!(is_hostname("microvm-0f3a.local"));
        for bad in ["", "a b", "a\n", "-a", ".a", &"a".repeat(65)] {
            assert!(!is_hostname(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_dangling_link_is_replaced_by_a_file() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("resolv.conf");
        std::os::unix::fs::symlink("../run/systemd/resolve/stub", &path).expect("link");
        replace(&path, b"nameserver\n").expect("replace");
        assert!(fs::symlink_metadata(&path).expect("there").is_file());
        assert_eq!(fs::read(&path).expect("read"), b"nameserver\n");
    }

    #[test]
    fn a_plain_file_is_rewritten_and_anything_else_replaced() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("hostname");
        let inode = || fs::symlink_metadata(&path).expect("there").ino();
        rewrite(&path, b"first\n").expect("write anew");
        let first = inode();
        rewrite(&path, b"2\n").expect("write in place");
        assert_eq!(
            (fs::read(&path).expect("read"), inode()),
            (b"2\n".to_vec(), first)
        );

        let other = dir.path().join("other");
        fs::hard_link(&path, &other).expect("link");
        rewrite(&path, b"third\n").expect("replace");
        assert_eq!(fs::read(&path).expect("read"), b"third\n");
        assert_eq!(
            fs::read(&other).expect("read"),
            b"2\n",
            "not through another name"
        );

        fs::remove_file(&path).expect("remove");
        std::os::unix::fs::symlink(&other, &path).expect("link");
        rewrite(&path, b"fourth\n").expect("replace");
        assert_eq!(
            fs::read(&other).expect("read"),
            b"2\n",
            "not through a link"
        );
        assert_eq!(fs::read(&path).expect("read"), b"fourth\n");
    }

    #[test]
    fn only_a_short_regular_file_is_read() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("hosts");
        assert_eq!(read_regular(&path, 10), None);
        fs::write(&path, "12345").expect("write");
        assert_eq!(read_regular(&path, 10).as_deref(), Some("12345"));
        assert_eq!(read_regular(&path, 4), None);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("link");
        assert_eq!(read_regular(&link, 10), None);
    }
}
