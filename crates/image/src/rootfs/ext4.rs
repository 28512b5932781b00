//! From a folder to an ext4 disk.

use super::RootfsError;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

/// The time at which every disk claims to have been made, so that equal folders make alike disks.
const MADE_AT: &str = "315532800";

/// Makes a sparse ext4 disk of `bytes` that holds `files`. Its identifiers follow from `digest_hex`.
pub(crate) fn make_ext4(
    files: &Path,
    disk: &Path,
    bytes: u64,
    digest_hex: &str,
) -> Result<(), RootfsError> {
    let failed = |action| {
        move |source| RootfsError::Io {
            action,
            path: disk.to_owned(),
            source,
        }
    };
    File::create(disk)
        .and_then(|file| file.set_len(bytes))
        .map_err(failed("make the disk"))?;
    let uuid = uuid_of(digest_hex);
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
        .map_err(failed("run mke2fs for"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let message: String = text.trim().chars().rev().take(1000).collect();
    let message = message.chars().rev().collect();
    Err(RootfsError::MakeFileSystem {
        status: output.status,
        message,
    })
}

/// A UUID that follows from a digest's hex digits.
fn uuid_of(hex: &str) -> String {
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
