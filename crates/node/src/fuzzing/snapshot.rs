//! Files of the data directory as a failing disk gives them back: they are what was written, or known for damaged.

use crate::disk;
use crate::snapshot::Manifest;
use crate::vmm::qemu;
use crate::working_set::WorkingSet;
use dormouse_core::guest::GENERATION;
use dormouse_core::limits::{DISK_BYTES_MAX, PREFETCH_BYTES_MAX};
use std::fs::File;
use std::io::{self, ErrorKind, Seek, Write};

const PAGE: u64 = 4096;

/// Reads `data` as one of the files of a snapshot or a MicroVM; its first byte says which.
pub fn snapshot(data: &[u8]) {
    let Some((kind, file)) = data.split_first() else {
        return;
    };
    match kind % 5 {
        0 => manifest(file),
        1 => qemu::fuzzing::saved_pages(file),
        2 => working_set(file),
        3 => qemu::fuzzing::record(file),
        _ => disk_header(file).expect("a file to write to"),
    }
}

fn manifest(text: &[u8]) {
    let Ok(manifest) = Manifest::parse(text, "fake") else {
        return;
    };
    assert_eq!(manifest.format, Manifest::FORMAT);
    assert_eq!(manifest.agent_generation, GENERATION);
    let text = serde_json::to_vec_pretty(&manifest).expect("a manifest serializes");
    let again = Manifest::parse(&text, "fake").expect("what was written can be read");
    assert_eq!(again, manifest);
}

/// The first four bytes are the memory's length in pages.
fn working_set(data: &[u8]) {
    let Some((memory_pages, file)) = data.split_first_chunk() else {
        return;
    };
    let Ok(set) = WorkingSet::decode(file) else {
        return;
    };
    assert_eq!(set.encode().expect("page numbers that were read"), file);
    let memory_pages = u64::from(u32::from_le_bytes(*memory_pages));
    let (mut end, mut pages) = (0, 0);
    for request in set.requests(memory_pages) {
        assert!(request.start >= end && !request.is_empty());
        end = request.end;
        pages += request.end - request.start;
    }
    assert!(end <= memory_pages, "read past the end of the memory");
    assert!(pages <= PREFETCH_BYTES_MAX / PAGE, "too much is read ahead");
}

fn disk_header(data: &[u8]) -> io::Result<()> {
    // Not in memory: what may be sought in a file is for the kernel to say.
    let mut file = tempfile::tempfile()?;
    file.write_all(data)?;
    if let Some(name) = whole_or_damaged(&mut file, disk::read_backing_name)?.flatten() {
        let len = name.as_os_str().len();
        assert!((1..=disk::BACKING_NAME_MAX).contains(&len));
    }
    if let Some(size) = whole_or_damaged(&mut file, disk::read_virtual_size)? {
        assert!(size <= DISK_BYTES_MAX);
    }
    Ok(())
}

/// None for a file that is known for damaged. Any other error would stop the garbage collection of all layers.
fn whole_or_damaged<T>(
    file: &mut File,
    read: impl FnOnce(&mut File) -> io::Result<T>,
) -> io::Result<Option<T>> {
    file.rewind()?;
    match read(file) {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            let is_damage = matches!(
                error.kind(),
                ErrorKind::InvalidData | ErrorKind::UnexpectedEof
            );
            assert!(is_damage, "damage is taken for something else: {error:?}");
            Ok(None)
        }
    }
}
