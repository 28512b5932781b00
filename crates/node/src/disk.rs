//! Disk images: overlays that cost nothing to make, and how much space things take.
//!
//! An overlay is an empty qcow2 (version 3) that names its backing disk. It is so small and so regular
//! that writing it takes less than starting `qemu-img`, and does not open a backing disk that a machine
//! has locked.
//!
//! ```text
//! cluster 0        header, backing format, backing name
//! cluster 1        reference count table: one entry, cluster 2
//! cluster 2        reference counts: 1 for each cluster of this file
//! cluster 3..      L1 table, all zero: nothing is allocated, everything is the backing disk's
//! ```

use crate::host::jail;
use crate::vmm::VmmError;
use dormouse_core::limits;
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const MAGIC: [u8; 4] = *b"QFI\xfb";
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Bytes of disk behind one L1 entry: a cluster of 8-byte L2 entries, one cluster each.
const L1_REACH: u64 = CLUSTER * CLUSTER / 8;
/// Length of the version 3 header without optional fields.
const HEADER_LEN: u32 = 104;
/// Header extension that names the backing disk's format.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Longest backing name that QEMU reads.
pub(crate) const BACKING_NAME_MAX: usize = 1023;
/// A qcow2 file's header ends with its first cluster, and no cluster is larger.
const HEAD_MAX: u64 = 2 << 20;
const SECTOR: u64 = 512;

/// Format of a disk image, told by its name: what a guest wrote at the start of a raw disk must never
/// decide how the host reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Raw,
    Qcow2,
}

impl Format {
    fn of(disk: &Path) -> Self {
        match disk.extension() {
            Some(extension) if extension == "qcow2" => Self::Qcow2,
            _ => Self::Raw,
        }
    }

    fn name(self) -> &'static [u8] {
        match self {
            Self::Raw => b"raw",
            Self::Qcow2 => b"qcow2",
        }
    }
}

/// How QEMU names the format of a disk image.
pub(crate) fn format_name(disk: &Path) -> &'static str {
    match Format::of(disk) {
        Format::Raw => "raw",
        Format::Qcow2 => "qcow2",
    }
}

/// Makes `overlay`, which must not exist, a disk that reads as `backing` until it is written to. A
/// `backing` whose name ends in `.qcow2` is one, any other is raw. It must not change from now on, and whoever is shown
/// `overlay` may read it.
///
/// # Errors
/// `backing` is not what its name says, or a file operation failed; then there is no `overlay`.
pub async fn create_overlay(backing: &Path, overlay: &Path) -> Result<(), VmmError> {
    create_larger_overlay(backing, overlay, 0).await
}

/// As [`create_overlay`], for a disk of `bytes` at least: what `backing` does not have reads as zeros.
///
/// # Errors
/// As for [`create_overlay`].
pub async fn create_larger_overlay(
    backing: &Path,
    overlay: &Path,
    bytes: u64,
) -> Result<(), VmmError> {
    let (backing, overlay) = (backing.to_owned(), overlay.to_owned());
    let made =
        tokio::task::spawn_blocking(move || create_overlay_blocking(&backing, &overlay, bytes));
    made.await
        .unwrap_or_else(|_| Err(io::Error::other("the thread ended")))
        .map_err(VmmError::io("create disk overlay"))
}

/// The disk that `disk` says that it lies over, if any; a raw one lies over nothing. Blocks.
pub(crate) fn backing_of(disk: &Path) -> io::Result<Option<PathBuf>> {
    match Format::of(disk) {
        Format::Raw => Ok(None),
        Format::Qcow2 => backing_blocking(disk),
    }
}

/// The disk that a qcow2 `disk` says that it lies over; none for one that lies over nothing. A VMM that was taken over
/// writes any name there.
///
/// # Errors
/// The file cannot be read, or is not a qcow2 whose header makes sense.
pub fn backing_blocking(disk: &Path) -> io::Result<Option<PathBuf>> {
    let Some(name) = read_backing_name(&mut File::open(disk)?)? else {
        return Ok(None);
    };
    let dir = disk.parent().unwrap_or_else(|| Path::new("/"));
    // Ours are absolute or `./NEIGHBOUR`; an absolute one replaces the folder.
    Ok(Some(dir.join(name.strip_prefix("./").unwrap_or(&name))))
}

/// What a qcow2 file says that it lies over.
pub(crate) fn read_backing_name(file: &mut (impl Read + Seek)) -> io::Result<Option<PathBuf>> {
    let mut head = [0; 20];
    file.read_exact(&mut head)?;
    if head[..4] != MAGIC {
        return Err(invalid("disk is not a qcow2 file"));
    }
    let field = |at: usize, len: usize| {
        let bytes = head[at..at + len].iter();
        bytes.fold(0u64, |value, byte| value << 8 | u64::from(*byte))
    };
    let (offset, length) = (field(8, 8), field(16, 4) as usize);
    if offset == 0 || length == 0 {
        return Ok(None);
    }
    if length > BACKING_NAME_MAX {
        return Err(invalid("name of backing disk is too long"));
    }
    // What cannot be sought is damage too, and no fault of the file system.
    if offset > HEAD_MAX {
        return Err(invalid("name of backing disk is not in the header"));
    }
    let mut name = vec![0; length];
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(&mut name)?;
    Ok(Some(PathBuf::from(OsString::from_vec(name))))
}

/// Bytes that unprivileged writers can still store on the file system of `path`.
///
/// # Errors
/// The path cannot be read.
pub async fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = statvfs(path).await?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Bytes that the file system of `path` has room for, full or empty.
///
/// # Errors
/// The path cannot be read.
pub async fn total_bytes(path: &Path) -> io::Result<u64> {
    let stat = statvfs(path).await?;
    Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
}

async fn statvfs(path: &Path) -> io::Result<rustix::fs::StatVfs> {
    let path = path.to_owned();
    let stat = tokio::task::spawn_blocking(move || rustix::fs::statvfs(&path));
    Ok(stat.await.map_err(io::Error::other)??)
}

/// Bytes that a file takes on its file system: holes take none.
///
/// # Errors
/// The file cannot be read.
pub async fn allocated_bytes(path: &Path) -> io::Result<u64> {
    Ok(allocated(&tokio::fs::metadata(path).await?))
}

/// The same of a file that has been looked at.
pub(crate) fn allocated(metadata: &Metadata) -> u64 {
    metadata.blocks() * SECTOR
}

fn create_overlay_blocking(backing: &Path, overlay: &Path, bytes: u64) -> io::Result<()> {
    let name = backing_name(backing, overlay)?;
    let head = overlay_head(
        name.as_os_str().as_bytes(),
        Format::of(backing),
        virtual_size(backing)?.max(bytes),
    )?;
    // Here it is known to be a disk. What the overlay's header says later is only its writer's word.
    jail::make_readable(backing)?;
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(overlay)?;
    let written = file
        .write_all(&head.bytes)
        .and_then(|()| file.set_len(head.file_len));
    if written.is_err() {
        // What is left of it is of no use; the first error is the one to report.
        let _ = std::fs::remove_file(overlay);
    }
    written
}

/// How the overlay names its backing disk: relative within one folder, so that the folder can move.
fn backing_name(backing: &Path, overlay: &Path) -> io::Result<PathBuf> {
    let name = backing
        .file_name()
        .ok_or_else(|| invalid("backing disk has no name"))?;
    if backing.parent() == overlay.parent() {
        // A colon before the first slash would read as a protocol.
        return Ok(Path::new(".").join(name));
    }
    std::path::absolute(backing)
}

/// The size of a disk as its guest sees it.
pub(crate) fn virtual_size(disk: &Path) -> io::Result<u64> {
    let mut file = File::open(disk)?;
    let size = match Format::of(disk) {
        Format::Raw => file.metadata()?.len(),
        Format::Qcow2 => return read_virtual_size(&mut file),
    };
    check_size(size)
}

/// The size of a qcow2 disk as its guest sees it.
pub(crate) fn read_virtual_size(file: &mut (impl Read + Seek)) -> io::Result<u64> {
    let mut magic = [0; 4];
    file.read_exact(&mut magic)?;
    if magic != MAGIC {
        return Err(invalid("backing disk is not a qcow2 file"));
    }
    let mut size = [0; 8];
    file.seek(SeekFrom::Start(24))?;
    file.read_exact(&mut size)?;
    check_size(u64::from_be_bytes(size))
}

fn check_size(size: u64) -> io::Result<u64> {
    // A header may say anything: a layer that lies about its size would let every guest above it fill the host's disk.
    if size == 0 || size > limits::DISK_BYTES_MAX || !size.is_multiple_of(SECTOR) {
        return Err(invalid("backing disk has a size that no disk has"));
    }
    Ok(size)
}

struct Head {
    bytes: Vec<u8>,
    file_len: u64,
}

/// Everything of an empty overlay that is not zero, and how long the file is.
fn overlay_head(backing: &[u8], format: Format, size: u64) -> io::Result<Head> {
    if backing.len() > BACKING_NAME_MAX {
        return Err(invalid("path of backing disk is too long"));
    }
    let l1_entries = size.div_ceil(L1_REACH);
    let clusters = 3 + (l1_entries * 8).div_ceil(CLUSTER);
    let extensions = {
        let mut bytes = Vec::new();
        let name = format.name();
        bytes.extend(BACKING_FORMAT.to_be_bytes());
        bytes.extend((name.len() as u32).to_be_bytes());
        bytes.extend(name);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend([0; 8]);
        bytes
    };
    let backing_offset = u64::from(HEADER_LEN) + extensions.len() as u64;
    let l1_entries = u32::try_from(l1_entries).map_err(|_| invalid("disk is too large"))?;

    let mut bytes = Vec::with_capacity(3 * CLUSTER as usize);
    bytes.extend(MAGIC);
    bytes.extend(3u32.to_be_bytes());
    bytes.extend(backing_offset.to_be_bytes());
    bytes.extend((backing.len() as u32).to_be_bytes());
    bytes.extend(CLUSTER_BITS.to_be_bytes());
    bytes.extend(size.to_be_bytes());
    bytes.extend(0u32.to_be_bytes()); // no encryption
    bytes.extend(l1_entries.to_be_bytes());
    bytes.extend((3 * CLUSTER).to_be_bytes()); // L1 table
    bytes.extend(CLUSTER.to_be_bytes()); // reference count table
    bytes.extend(1u32.to_be_bytes()); // of one cluster
    bytes.extend(0u32.to_be_bytes()); // no snapshots
    bytes.extend(0u64.to_be_bytes());
    bytes.extend([0; 24]); // no incompatible, compatible or autoclear features
    bytes.extend(4u32.to_be_bytes()); // reference counts of 1 << 4 bits
    bytes.extend(HEADER_LEN.to_be_bytes());
    bytes.extend(extensions);
    bytes.extend(backing);

    bytes.resize(CLUSTER as usize, 0);
    bytes.extend((2 * CLUSTER).to_be_bytes());
    bytes.resize(2 * CLUSTER as usize, 0);
    for _ in 0..clusters {
        bytes.extend(1u16.to_be_bytes());
    }
    Ok(Head {
        bytes,
        file_len: clusters * CLUSTER,
    })
}

/// The start of a qcow2 disk that says that it lies over `backing`.
#[cfg(test)]
pub(crate) fn head_that_says(backing: &Path) -> Vec<u8> {
    let name = backing.as_os_str().as_bytes();
    overlay_head(name, Format::of(backing), 1 << 20)
        .unwrap()
        .bytes
}

fn invalid(problem: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(dir: &Path, size: u64) -> PathBuf {
        let path = dir.join("base.ext4");
        File::create(&path).unwrap().set_len(size).unwrap();
        path
    }

    #[tokio::test]
    async fn overlay_has_the_size_and_the_relative_name_of_its_neighbour() {
        let dir = tempfile::tempdir().unwrap();
        let base = raw(dir.path(), 8 << 30);
        let overlay = dir.path().join("a.qcow2");
        create_overlay(&base, &overlay).await.unwrap();
        assert_eq!(virtual_size(&overlay).unwrap(), 8 << 30);
        let bytes = std::fs::read(&overlay).unwrap();
        let name = b"./base.ext4";
        assert!(
            bytes[..CLUSTER as usize]
                .windows(name.len())
                .any(|window| window == name)
        );
        assert_eq!(bytes.len() as u64, 4 * CLUSTER);
        assert!(allocated_bytes(&overlay).await.unwrap() <= 4 * CLUSTER);
    }

    #[tokio::test]
    async fn overlay_elsewhere_names_its_backing_absolutely() {
        let (base_dir, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let base = raw(base_dir.path(), 1 << 20);
        let overlay = dir.path().join("a.qcow2");
        create_overlay(&base, &overlay).await.unwrap();
        let name = base.as_os_str().as_bytes();
        let bytes = std::fs::read(&overlay).unwrap();
        assert!(bytes.windows(name.len()).any(|window| window == name));
    }

    #[tokio::test]
    async fn a_chain_is_followed_by_name() {
        let (base_dir, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let base = raw(base_dir.path(), 1 << 20);
        let (a, b) = (dir.path().join("a.qcow2"), dir.path().join("b.qcow2"));
        create_overlay(&base, &a).await.unwrap();
        create_overlay(&a, &b).await.unwrap();
        assert_eq!(backing_blocking(&b).unwrap(), Some(a.clone()));
        assert_eq!(backing_blocking(&a).unwrap(), Some(base.clone()));
        backing_blocking(&base).unwrap_err();
        std::fs::write(&b, b"").unwrap();
        backing_blocking(&b).unwrap_err();
    }

    #[tokio::test]
    async fn header_that_points_anywhere_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let overlay = dir.path().join("a.qcow2");
        create_overlay(&raw(dir.path(), 1 << 20), &overlay)
            .await
            .unwrap();
        let whole = std::fs::read(&overlay).unwrap();
        for offset in [HEAD_MAX + 1, i64::MAX as u64, u64::MAX] {
            let mut bytes = whole.clone();
            bytes[8..16].copy_from_slice(&offset.to_be_bytes());
            std::fs::write(&overlay, bytes).unwrap();
            let error = backing_blocking(&overlay).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{offset}");
        }
    }

    #[tokio::test]
    async fn nothing_lies_over_a_disk_that_is_larger_than_any() {
        let dir = tempfile::tempdir().unwrap();
        let layer = dir.path().join("a.qcow2");
        create_overlay(&raw(dir.path(), 1 << 20), &layer)
            .await
            .unwrap();
        let mut bytes = std::fs::read(&layer).unwrap();
        for (size, taken) in [
            (limits::DISK_BYTES_MAX, true),
            (limits::DISK_BYTES_MAX + SECTOR, false),
        ] {
            bytes[24..32].copy_from_slice(&size.to_be_bytes());
            std::fs::write(&layer, &bytes).unwrap();
            let overlay = dir.path().join(format!("{size}.qcow2"));
            let made = create_overlay(&layer, &overlay).await;
            assert_eq!(made.is_ok(), taken, "{size}");
        }
    }

    #[tokio::test]
    async fn existing_overlay_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let base = raw(dir.path(), 1 << 20);
        let overlay = dir.path().join("a.qcow2");
        std::fs::write(&overlay, b"precious").unwrap();
        create_overlay(&base, &overlay).await.unwrap_err();
        assert_eq!(std::fs::read(&overlay).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn backing_that_is_not_what_its_name_says_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let backing = dir.path().join("base.qcow2");
        std::fs::write(&backing, vec![7; 4096]).unwrap();
        let overlay = dir.path().join("a.qcow2");
        create_overlay(&backing, &overlay).await.unwrap_err();
        assert!(!overlay.try_exists().unwrap());
    }

    #[test]
    fn guest_cannot_make_a_raw_disk_pass_for_a_qcow2() {
        assert_eq!(Format::of(Path::new("/x/debian-12.ext4")), Format::Raw);
        assert_eq!(Format::of(Path::new("/x/disk.qcow2")), Format::Qcow2);
    }
}
