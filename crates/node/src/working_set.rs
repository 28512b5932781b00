//! The part of a golden memory that a machine touches on its way to work, and reading it ahead.
//!
//! The build notes which pages the machine of its validate hook touched. A launch asks the kernel to read
//! them while its machine is still being started: one reader with many requests in flight, in place of a
//! guest that waits for one page after the other.
//!
//! ```text
//! header    magic, version, number of ranges, 4 bytes each after the magic's 8
//! ranges    first page number and count, 4 bytes each, in order, without overlap
//! ```
//! Numbers are little endian. The file is a hint: what is wrong with it costs time, never a launch.

use dormouse_core::limits::{PREFETCH_BYTES_MAX, WORKING_SET_RANGES_MAX};
use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZero;
use std::ops::Range;
use std::path::Path;

/// Bytes of a page.
const PAGE: u64 = 4096;
const MAGIC: [u8; 8] = *b"dmpages\0";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 16;
const RANGE_LEN: usize = 8;
/// Ranges with no more pages than this between them are read as one: that takes less than a second request.
const JOIN_PAGES: u64 = 8;
/// The kernel reads no more than this for one request, whatever is asked for.
const REQUEST_PAGES: u64 = 32;

/// Pages of a golden memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WorkingSet(Vec<Range<u64>>);

impl WorkingSet {
    /// Takes page numbers in order, without overlap.
    pub(crate) fn new(pages: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for range in pages {
            match ranges.last_mut() {
                Some(last) if range.start <= last.end + JOIN_PAGES => {
                    last.end = last.end.max(range.end);
                }
                _ => ranges.push(range),
            }
        }
        ranges.truncate(WORKING_SET_RANGES_MAX);
        Self(ranges)
    }

    /// How many pages these are.
    pub(crate) fn pages(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    /// The content of its file.
    ///
    /// # Errors
    /// A page number is larger than any memory's.
    pub(crate) fn encode(&self) -> io::Result<Vec<u8>> {
        let number = |value: u64| u32::try_from(value).map_err(|_| invalid("page number"));
        let mut bytes = Vec::with_capacity(HEADER_LEN + self.0.len() * RANGE_LEN);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(number(self.0.len() as u64)?.to_le_bytes());
        for range in &self.0 {
            bytes.extend(number(range.start)?.to_le_bytes());
            bytes.extend(number(range.end - range.start)?.to_le_bytes());
        }
        Ok(bytes)
    }

    pub(crate) fn decode(bytes: &[u8]) -> io::Result<Self> {
        let (head, rest) = bytes
            .split_at_checked(HEADER_LEN)
            .ok_or_else(|| invalid("no header"))?;
        let (magic, numbers) = head.split_at(MAGIC.len());
        if magic != MAGIC || numbers[..4] != VERSION.to_le_bytes() {
            return Err(invalid("not a file of pages, or another version"));
        }
        let (ranges, rest) = rest.as_chunks::<RANGE_LEN>();
        if !rest.is_empty() || numbers[4..] != (ranges.len() as u32).to_le_bytes() {
            return Err(invalid("cut short"));
        }
        let mut end = 0;
        let decode = |bytes: &[u8; RANGE_LEN]| {
            let [a, b, c, d, e, f, g, h] = *bytes;
            let start = u64::from(u32::from_le_bytes([a, b, c, d]));
            let range = start..start + u64::from(u32::from_le_bytes([e, f, g, h]));
            if range.start < end || range.is_empty() {
                return Err(invalid("ranges are not in order"));
            }
            end = range.end;
            Ok(range)
        };
        ranges
            .iter()
            .map(decode)
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// What to ask the kernel for, of a memory of so many pages.
    pub(crate) fn requests(&self, memory_pages: u64) -> impl Iterator<Item = Range<u64>> {
        let mut left = PREFETCH_BYTES_MAX / PAGE;
        self.0.iter().flat_map(move |range| {
            let range = range.start..range.end.min(memory_pages).min(range.start + left);
            left -= range.end.saturating_sub(range.start);
            requests(range)
        })
    }
}

/// Asks the kernel to read the pages that `working_set` names of the file `memory`. Blocks, though not for
/// the pages themselves.
///
/// # Errors
/// One of the files cannot be read, or is no file of pages.
pub(crate) fn prefetch(working_set: &Path, memory: &Path) -> io::Result<()> {
    let file_max = HEADER_LEN + WORKING_SET_RANGES_MAX * RANGE_LEN;
    let mut bytes = Vec::new();
    File::open(working_set)?
        .take(file_max as u64)
        .read_to_end(&mut bytes)?;
    let memory = File::open(memory)?;
    let memory_pages = memory.metadata()?.len() / PAGE;
    for request in WorkingSet::decode(&bytes)?.requests(memory_pages) {
        let len = NonZero::new((request.end - request.start) * PAGE);
        fadvise(&memory, request.start * PAGE, len, Advice::WillNeed)?;
    }
    Ok(())
}

/// Cuts a range into what the kernel takes at once.
fn requests(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    range
        .step_by(REQUEST_PAGES as usize)
        .map(move |start| start..end.min(start + REQUEST_PAGES))
}

fn invalid(problem: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::{ReadWriteFlags, preadv2};
    use std::time::{Duration, Instant};

    #[test]
    fn ranges_that_are_close_are_read_as_one() {
        let set = WorkingSet::new([0..1, 2..4, 4 + JOIN_PAGES..20, 40..41]);
        assert_eq!(set.0, [0..20, 40..41]);
        assert_eq!(set.pages(), 21);
        assert_eq!(WorkingSet::new([]).pages(), 0);
    }

    #[test]
    fn what_was_written_is_read_back() {
        let set = WorkingSet::new([0..1, 100..900, 8_000_000..8_388_608]);
        let bytes = set.encode().unwrap();
        assert_eq!(WorkingSet::decode(&bytes).unwrap(), set);
        assert_eq!(
            WorkingSet::decode(&WorkingSet::new([]).encode().unwrap())
                .unwrap()
                .pages(),
            0
        );
    }

    #[test]
    fn damage_is_noticed() {
        let bytes = WorkingSet::new([3..5, 70..80]).encode().unwrap();
        for len in 0..bytes.len() {
            assert!(WorkingSet::decode(&bytes[..len]).is_err(), "{len}");
        }
        for at in (0..HEADER_LEN).chain([HEADER_LEN + RANGE_LEN + 4]) {
            let mut damaged = bytes.clone();
            // The last byte makes the second range begin before the first, or turns it empty.
            damaged[at] = if at < HEADER_LEN {
                damaged[at] ^ 0x40
            } else {
                0
            };
            assert!(WorkingSet::decode(&damaged).is_err(), "{at}");
        }
    }

    #[test]
    fn pages_are_asked_for_in_pieces() {
        let pieces: Vec<_> = requests(10..80).collect();
        assert_eq!(pieces, [10..42, 42..74, 74..80]);
    }

    /// Whether a page is in memory, without reading it.
    fn is_cached(file: &File, page: u64) -> bool {
        let mut byte = [0];
        let buffers = &mut [io::IoSliceMut::new(&mut byte)];
        preadv2(file, buffers, page * PAGE, ReadWriteFlags::NOWAIT).is_ok()
    }

    #[test]
    fn pages_that_are_asked_for_come_into_memory_and_no_others() {
        // Beside the test itself: a folder for temporary files may be in memory.
        let test = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir_in(test.parent().unwrap()).unwrap();
        let memory = dir.path().join("memory");
        let pages = 2048;
        std::fs::write(&memory, vec![7; (pages * PAGE) as usize]).unwrap();
        let file = File::open(&memory).unwrap();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        assert!(
            !is_cached(&file, 300),
            "the test's file system keeps what it is told to drop"
        );

        let hint = dir.path().join("working-set");
        // The last range is longer than the memory.
        let set = WorkingSet::new([0..100, 1000..1500, 2000..4000]);
        std::fs::write(&hint, set.encode().unwrap()).unwrap();
        prefetch(&hint, &memory).unwrap();
        let began = Instant::now();
        while !(is_cached(&file, 99) && is_cached(&file, 1250) && is_cached(&file, 2047)) {
            assert!(began.elapsed() < Duration::from_secs(10), "not read ahead");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!is_cached(&file, 600));

        std::fs::write(&hint, b"nonsense").unwrap();
        assert!(prefetch(&hint, &memory).is_err());
        assert!(prefetch(&dir.path().join("none"), &memory).is_err());
    }
}
