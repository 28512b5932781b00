//! From a root file system's tar to an ext4 disk.

use super::{LocalImageError, io_error};
use dormouse_core::limits;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use tar::EntryType;

/// The time at which every disk claims to have been made, so that equal tars make alike disks.
const MADE_AT: &str = "315532800";

/// Unpacks a tar with owners, modes and extended attributes. Device nodes and pipes are left out: the
/// guest's kernel brings its own /dev.
pub(super) fn extract(tar: &Path, dest: &Path, bytes_max: u64) -> Result<(), LocalImageError> {
    let read = io_error("read the tar", tar);
    let mut archive = tar::Archive::new(io::BufReader::new(File::open(tar).map_err(&read)?));
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.set_preserve_mtime(true);
    archive.set_unpack_xattrs(true);
    let (mut bytes, mut entries) = (0_u64, 0_usize);
    for entry in archive.entries().map_err(&read)? {
        let mut entry = entry.map_err(&read)?;
        entries += 1;
        bytes = bytes.saturating_add(entry.size());
        if bytes > bytes_max || entries > limits::ROOTFS_ENTRIES_MAX {
            let entries = limits::ROOTFS_ENTRIES_MAX;
            return Err(LocalImageError::TooLarge {
                bytes: bytes_max,
                entries,
            });
        }
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::Char | EntryType::Block | EntryType::Fifo) {
            continue;
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        // It refuses what would be written outside of `dest`, through links too.
        if !entry
            .unpack_in(dest)
            .map_err(io_error("unpack", Path::new(&name)))?
        {
            return Err(LocalImageError::Escape { entry: name });
        }
    }
    // A tar without an entry for its root leaves ours as it was made: for root alone.
    let mode = fs::metadata(dest)
        .map_err(io_error("read", dest))?
        .permissions()
        .mode();
    fs::set_permissions(dest, fs::Permissions::from_mode(mode | 0o755))
        .map_err(io_error("set the mode of", dest))
}

/// Makes a sparse ext4 disk of `bytes` that holds `files`.
pub(super) fn make_ext4(
    files: &Path,
    disk: &Path,
    bytes: u64,
    digest: &str,
) -> Result<(), LocalImageError> {
    File::create(disk)
        .and_then(|file| file.set_len(bytes))
        .map_err(io_error("make the disk", disk))?;
    let uuid = uuid_of(digest);
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("mke2fs")
        .args([
            "-q", "-F", "-t", "ext4", "-m", "0", "-L", "root", "-U", &uuid, "-E",
        ])
        .arg(format!(
            "lazy_itable_init=1,lazy_journal_init=1,nodiscard,hash_seed={uuid}"
        ))
        .arg("-d")
        .args([files, disk])
        // Its usual folder is in root's PATH only.
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .env("E2FSPROGS_FAKE_TIME", MADE_AT)
        .stdin(Stdio::null())
        .output()
        .map_err(io_error("run mke2fs for", disk))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let message: String = text.trim().chars().rev().take(1000).collect();
    let message = message.chars().rev().collect();
    Err(LocalImageError::MakeFileSystem {
        status: output.status,
        message,
    })
}

/// A UUID that follows from the digest, `sha256:HEX`.
fn uuid_of(digest: &str) -> String {
    let hex = digest.trim_start_matches("sha256:");
    let part = |range: std::ops::Range<usize>| hex.get(range).unwrap_or_default();
    // Version 8: the content is up to whoever makes it.
    format!(
        "{}-{}-8{}-8{}-{}",
        part(0..8),
        part(8..12),
        part(12..15),
        part(15..18),
        part(18..30)
    )
}
