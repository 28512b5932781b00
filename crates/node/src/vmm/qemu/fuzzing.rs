//! What is kept of a machine on disk, as a fuzzer damages it.

use super::delta;
use super::pages::{GuestMemory, PAGE};
use super::record::MachineRecord;
use crate::vmm::{DeltaFiles, VmmError};
use aws_lc_rs::digest::{SHA256, digest};
use std::fs::{self, File};
use std::sync::OnceLock;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const MEMORY_PAGES: u64 = 64;
/// The end of a file's checksum is right if this bit is set: no fuzzer would find it.
const SEALED: u8 = 1;
/// The device state is another than the one that seeds are bound to.
const OTHER_STATE: u8 = 2;
const BOUND_STATE: &[u8] = b"registers";

/// Reads `data` as a machine's record.
pub(crate) fn record(data: &[u8]) {
    if let Ok(record) = MachineRecord::parse(data) {
        let text = serde_json::to_vec(&record).expect("a record serializes");
        let again = MachineRecord::parse(&text).expect("what was written can be read");
        assert_eq!(again, record);
    }
}

/// Loads `data` as header and ranges of saved pages. Its first byte says how many pages follow them, the second what
/// else is right.
pub(crate) fn saved_pages(data: &[u8]) {
    let [pages, what, head @ ..] = data else {
        return;
    };
    let (pages, lab) = (pages % 16, Lab::get());
    let memory = lab.blank_memory();
    lab.write(&file(head, pages, what & SEALED != 0), *what);
    let loaded = delta::load(&memory, &lab.files(), &CancellationToken::new());
    let found = fs::read(lab.memory()).expect("memory");
    assert_eq!(found.len() as u64, MEMORY_PAGES * PAGE, "memory has grown");
    match loaded {
        Ok(loaded) => {
            assert_eq!(loaded.state, BOUND_STATE);
            assert_pages(&found, pages);
        }
        Err(VmmError::Damaged { .. }) => {}
        Err(error) => panic!("damage is taken for something else: {error:?}"),
    }
}

/// Page number `n` of those that follow the head is full of the byte `n`.
fn file(head: &[u8], pages: u8, sealed: bool) -> Vec<u8> {
    let mut bytes = head.to_vec();
    for page in 1..=pages {
        bytes.resize(bytes.len() + PAGE as usize, page);
    }
    if sealed {
        bytes.extend_from_slice(digest(&SHA256, &bytes).as_ref());
    }
    bytes
}

/// Each page of the file is in memory once, in its order, and nothing else is.
fn assert_pages(memory: &[u8], pages: u8) {
    let mut found = Vec::new();
    for page in memory.chunks(PAGE as usize) {
        assert!(page.iter().all(|byte| *byte == page[0]), "a torn page");
        found.extend(Some(page[0]).filter(|byte| *byte != 0));
    }
    assert_eq!(found, (1..=pages).collect::<Vec<_>>());
}

/// The files that one run after the other uses.
struct Lab(TempDir);

impl Lab {
    fn get() -> &'static Self {
        static LAB: OnceLock<Lab> = OnceLock::new();
        LAB.get_or_init(|| Self(tempfile::tempdir().expect("folder")))
    }

    fn memory(&self) -> std::path::PathBuf {
        self.0.path().join("guest")
    }

    fn blank_memory(&self) -> GuestMemory {
        let memory = File::create(self.memory()).expect("memory");
        memory.set_len(MEMORY_PAGES * PAGE).expect("memory");
        GuestMemory::of_file(&self.memory())
    }

    fn files(&self) -> DeltaFiles {
        DeltaFiles {
            state: self.0.path().join("state"),
            memory: self.0.path().join("memory"),
        }
    }

    fn write(&self, memory: &[u8], what: u8) {
        let state: &[u8] = match what & OTHER_STATE {
            0 => BOUND_STATE,
            _ => b"Registers",
        };
        let files = self.files();
        fs::write(files.state, state).expect("device state");
        fs::write(files.memory, memory).expect("saved pages");
    }
}
