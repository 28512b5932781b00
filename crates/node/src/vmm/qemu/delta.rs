//! The file of pages that a suspended machine has over its golden memory.
//!
//! ```text
//! header    magic, version, page size, memory length, page count, range count, when it was paused,
//!           length and SHA-256 of the device state that belongs to it
//! ranges    first page number and count, 8 bytes each, in order, without overlap
//! pages     4096 bytes each, in the order of the ranges
//! checksum  SHA-256 of everything before it
//! ```
//! Numbers are little endian. The checksum comes last, so a file that was cut short, or whose pages never
//! reached the disk, does not pass for whole. Both files are read hostile: they may be damaged.

use super::create;
use super::pages::{GuestMemory, PAGE};
use crate::vmm::{DeltaFiles, DeltaStats, VmmError};
use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN, digest};
use dormouse_core::limits::DEVICE_STATE_BYTES_MAX;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::ops::Range;
use std::path::Path;
use tokio_util::sync::CancellationToken;

const MAGIC: [u8; 8] = *b"dmdelta\0";
const VERSION: u32 = 2;
const HEADER_LEN: usize = 8 + 4 + 4 + 8 * 5 + SHA256_OUTPUT_LEN;
const RANGE_LEN: usize = 16;
/// Pages read or written in one go.
const BATCH: u64 = 256;
const BATCH_LEN: usize = (BATCH * PAGE) as usize;

/// What precedes the ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Header {
    memory_len: u64,
    pages: u64,
    ranges: u64,
    /// Nanoseconds since the Unix epoch.
    paused_at: u64,
    state_len: u64,
    state_digest: [u8; SHA256_OUTPUT_LEN],
}

/// What was read of a suspended machine.
#[derive(Debug)]
pub(super) struct Loaded {
    /// Its device state, which the saved pages belong to.
    pub(super) state: Vec<u8>,
    /// When its clocks stood still, in nanoseconds since the Unix epoch.
    pub(super) paused_at: u64,
}

/// Writes the pages of `memory` that are not golden, bound to the device state that is there already.
/// Both files are on disk when this returns. Blocks; ends early once `cancelled`.
pub(super) fn save(
    memory: &GuestMemory,
    paused_at: u64,
    files: &DeltaFiles,
    cancelled: &CancellationToken,
) -> Result<DeltaStats, VmmError> {
    let state = read_state(&files.state).map_err(VmmError::io("read device state"))?;
    sync(&files.state).map_err(VmmError::io("sync device state"))?;
    let ranges = memory
        .own_pages()
        .map_err(VmmError::io("find dirty pages"))?;
    // Once saved, the machine ends: a file that could not be loaded must not be made.
    let pages = check_ranges(&ranges, memory.len()).map_err(VmmError::io("find dirty pages"))?;
    let header = Header {
        memory_len: memory.len(),
        pages,
        ranges: ranges.len() as u64,
        paused_at,
        state_len: state.len() as u64,
        state_digest: sha256(&state),
    };
    let written = write(memory, &header, &ranges, &files.memory, cancelled);
    written.map_err(VmmError::io("write dirty pages"))?;
    Ok(DeltaStats {
        pages: header.pages,
    })
}

/// Puts saved pages into the paused machine's memory. On an error that memory is unfit to run. Blocks.
pub(super) fn load(
    memory: &GuestMemory,
    files: &DeltaFiles,
    cancelled: &CancellationToken,
) -> Result<Loaded, VmmError> {
    let damaged = |path: &Path, problem: &str| VmmError::Damaged {
        path: path.to_owned(),
        problem: problem.to_owned(),
    };
    let state = read_state(&files.state).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => damaged(&files.state, "too long"),
        _ => VmmError::io("read device state")(error),
    })?;
    let header = read(memory, &files.memory, cancelled).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => damaged(&files.memory, &error.to_string()),
        io::ErrorKind::UnexpectedEof => damaged(&files.memory, "cut short"),
        _ => VmmError::io("read saved pages")(error),
    })?;
    if header.state_len != state.len() as u64 || header.state_digest != sha256(&state) {
        return Err(damaged(
            &files.state,
            "not the one that the saved pages belong to",
        ));
    }
    Ok(Loaded {
        state,
        paused_at: header.paused_at,
    })
}

fn read_state(path: &Path) -> io::Result<Vec<u8>> {
    let mut state = Vec::new();
    File::open(path)?
        .take(DEVICE_STATE_BYTES_MAX + 1)
        .read_to_end(&mut state)?;
    if state.len() as u64 > DEVICE_STATE_BYTES_MAX {
        return Err(invalid("device state is too long"));
    }
    Ok(state)
}

/// Brings a file to disk that another process has written.
fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn write(
    memory: &GuestMemory,
    header: &Header,
    ranges: &[Range<u64>],
    path: &Path,
    cancelled: &CancellationToken,
) -> io::Result<()> {
    let mut out = Checked::new(create(path)?);
    let mut head = header.encode();
    for range in ranges {
        head.extend(range.start.to_le_bytes());
        head.extend((range.end - range.start).to_le_bytes());
    }
    out.put(&head)?;
    let mut buffer = vec![0; BATCH_LEN];
    let mut filled = 0;
    for batch in batches(ranges) {
        stop_if(cancelled)?;
        let len = ((batch.end - batch.start) * PAGE) as usize;
        if filled + len > BATCH_LEN {
            out.put(&buffer[..filled])?;
            filled = 0;
        }
        memory.read(batch.start * PAGE, &mut buffer[filled..filled + len])?;
        filled += len;
    }
    out.put(&buffer[..filled])?;
    let Checked {
        inner: mut file,
        digest,
    } = out;
    file.write_all(digest.finish().as_ref())?;
    file.sync_all()
}

fn read(memory: &GuestMemory, path: &Path, cancelled: &CancellationToken) -> io::Result<Header> {
    let file = File::open(path)?;
    let file_len = file.metadata()?.len();
    let mut input = Checked::new(BufReader::with_capacity(BATCH_LEN, file));
    let mut head = [0; HEADER_LEN];
    input.get(&mut head)?;
    let header = Header::decode(&head)?;
    header.check(memory.len(), file_len)?;
    let mut ranges = vec![0; header.ranges as usize * RANGE_LEN];
    input.get(&mut ranges)?;
    let ranges = decode_ranges(&ranges, &header)?;
    let mut buffer = vec![0; BATCH_LEN];
    for batch in batches(&ranges) {
        stop_if(cancelled)?;
        let pages = &mut buffer[..((batch.end - batch.start) * PAGE) as usize];
        input.get(pages)?;
        memory.write(batch.start * PAGE, pages)?;
    }
    let Checked {
        inner: mut file,
        digest,
    } = input;
    let mut stated = [0; SHA256_OUTPUT_LEN];
    file.read_exact(&mut stated)?;
    if digest.finish().as_ref() != stated {
        return Err(invalid("checksum does not match"));
    }
    Ok(header)
}

/// Cuts ranges into pieces of at most [`BATCH`] pages.
fn batches(ranges: &[Range<u64>]) -> impl Iterator<Item = Range<u64>> + '_ {
    ranges.iter().flat_map(|range| {
        let end = range.end;
        (range.start..end)
            .step_by(BATCH as usize)
            .map(move |at| at..end.min(at + BATCH))
    })
}

fn stop_if(cancelled: &CancellationToken) -> io::Result<()> {
    match cancelled.is_cancelled() {
        true => Err(io::ErrorKind::Interrupted.into()),
        false => Ok(()),
    }
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((PAGE as u32).to_le_bytes());
        for number in [
            self.memory_len,
            self.pages,
            self.ranges,
            self.paused_at,
            self.state_len,
        ] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.state_digest);
        bytes
    }

    fn decode(bytes: &[u8]) -> io::Result<Self> {
        let (magic, rest) = bytes
            .split_at_checked(8)
            .ok_or_else(|| invalid("no header"))?;
        let (kind, rest) = rest
            .split_at_checked(8)
            .ok_or_else(|| invalid("no header"))?;
        let (numbers, digest) = rest
            .split_at_checked(40)
            .ok_or_else(|| invalid("no header"))?;
        if magic != MAGIC {
            return Err(invalid("not a file of saved pages"));
        }
        if kind != [VERSION.to_le_bytes(), (PAGE as u32).to_le_bytes()].as_flattened() {
            return Err(invalid("another version or page size"));
        }
        let [memory_len, pages, ranges, paused_at, state_len] = numbers.as_chunks().0 else {
            return Err(invalid("no header"));
        };
        Ok(Self {
            memory_len: u64::from_le_bytes(*memory_len),
            pages: u64::from_le_bytes(*pages),
            ranges: u64::from_le_bytes(*ranges),
            paused_at: u64::from_le_bytes(*paused_at),
            state_len: u64::from_le_bytes(*state_len),
            state_digest: digest.try_into().map_err(|_| invalid("no header"))?,
        })
    }

    /// Checks that the numbers fit the guest and the file, so that nothing after is read in vain.
    fn check(&self, memory_len: u64, file_len: u64) -> io::Result<()> {
        if self.memory_len != memory_len {
            return Err(invalid("of a guest with another memory size"));
        }
        if self.pages > memory_len / PAGE || self.ranges > self.pages {
            return Err(invalid("more pages than the guest has"));
        }
        let expected = (HEADER_LEN + SHA256_OUTPUT_LEN) as u64
            + self.ranges * RANGE_LEN as u64
            + self.pages * PAGE;
        if file_len != expected {
            return Err(invalid("its length does not match its header"));
        }
        Ok(())
    }
}

fn decode_ranges(bytes: &[u8], header: &Header) -> io::Result<Vec<Range<u64>>> {
    let numbers = bytes.as_chunks::<8>().0.as_chunks::<2>().0.iter();
    let ranges = numbers.map(|[start, count]| {
        let (start, count) = (u64::from_le_bytes(*start), u64::from_le_bytes(*count));
        start..start.saturating_add(count)
    });
    let ranges: Vec<_> = ranges.collect();
    match check_ranges(&ranges, header.memory_len)? == header.pages {
        true => Ok(ranges),
        false => Err(invalid("ranges do not add up")),
    }
}

/// Checks that ranges are in order and in bounds; answers how many pages they hold.
fn check_ranges(ranges: &[Range<u64>], memory_len: u64) -> io::Result<u64> {
    let (mut end, mut pages) = (0, 0);
    for range in ranges {
        if range.start < end || range.is_empty() || range.end > memory_len / PAGE {
            return Err(invalid("range out of bounds"));
        }
        end = range.end;
        pages += range.end - range.start;
    }
    Ok(pages)
}

/// A file whose bytes are hashed on their way.
struct Checked<T> {
    inner: T,
    digest: Context,
}

impl<T> Checked<T> {
    fn new(inner: T) -> Self {
        Self {
            inner,
            digest: Context::new(&SHA256),
        }
    }
}

impl<T: Write> Checked<T> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.inner.write_all(bytes)
    }
}

impl<T: Read> Checked<T> {
    fn get(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.inner.read_exact(bytes)?;
        self.digest.update(bytes);
        Ok(())
    }
}

fn sha256(bytes: &[u8]) -> [u8; SHA256_OUTPUT_LEN] {
    let mut out = [0; SHA256_OUTPUT_LEN];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

fn invalid(problem: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    const PAGES: u64 = 2000;

    struct Saved {
        _dir: tempfile::TempDir,
        files: DeltaFiles,
        blank: PathBuf,
    }

    fn pattern(page: u64) -> Vec<u8> {
        (0..PAGE).map(|at| (page * 31 + at / 7) as u8).collect()
    }

    fn blank(path: &Path) -> GuestMemory {
        File::create(path).unwrap().set_len(PAGES * PAGE).unwrap();
        GuestMemory::of_file(path)
    }

    /// Saves some pages of a memory that is a plain file.
    fn saved(ranges: &[Range<u64>]) -> Saved {
        let dir = tempfile::tempdir().unwrap();
        let memory = blank(&dir.path().join("source"));
        for page in ranges.iter().cloned().flatten() {
            memory.write(page * PAGE, &pattern(page)).unwrap();
        }
        let files = DeltaFiles {
            state: dir.path().join("state"),
            memory: dir.path().join("memory"),
        };
        std::fs::write(&files.state, b"registers").unwrap();
        let header = Header {
            memory_len: memory.len(),
            pages: ranges.iter().map(|range| range.end - range.start).sum(),
            ranges: ranges.len() as u64,
            paused_at: 1_700_000_000_000_000_000,
            state_len: 9,
            state_digest: sha256(b"registers"),
        };
        write(
            &memory,
            &header,
            ranges,
            &files.memory,
            &CancellationToken::new(),
        )
        .unwrap();
        Saved {
            blank: dir.path().join("blank"),
            _dir: dir,
            files,
        }
    }

    fn load_into_blank(saved: &Saved) -> Result<GuestMemory, VmmError> {
        let memory = blank(&saved.blank);
        let loaded = load(&memory, &saved.files, &CancellationToken::new())?;
        assert_eq!(loaded.state, b"registers");
        assert_eq!(loaded.paused_at, 1_700_000_000_000_000_000);
        Ok(memory)
    }

    #[test]
    fn what_was_saved_comes_back_and_nothing_else() {
        let ranges = [0..1, 5..6, 100..900, PAGES - 1..PAGES];
        let saved = saved(&ranges);
        let memory = load_into_blank(&saved).unwrap();
        for page in 0..PAGES {
            let mut found = vec![1; PAGE as usize];
            memory.read(page * PAGE, &mut found).unwrap();
            let own = ranges.iter().any(|range| range.contains(&page));
            let expected = if own {
                pattern(page)
            } else {
                vec![0; PAGE as usize]
            };
            assert!(found == expected, "page {page}");
        }
    }

    #[test]
    fn machine_that_wrote_nothing_saves_no_page() {
        load_into_blank(&saved(&[])).unwrap();
    }

    #[test]
    fn file_cut_short_anywhere_is_damaged() {
        let saved = saved(&[3..5, 7..8]);
        let whole = std::fs::read(&saved.files.memory).unwrap();
        for len in (0..whole.len()).step_by(501).chain([whole.len() - 1]) {
            std::fs::write(&saved.files.memory, &whole[..len]).unwrap();
            let error = load_into_blank(&saved).unwrap_err();
            assert!(matches!(error, VmmError::Damaged { .. }), "{len}: {error}");
        }
    }

    #[test]
    fn any_flipped_byte_is_damage() {
        let saved = saved(&[3..5, 7..8]);
        let whole = std::fs::read(&saved.files.memory).unwrap();
        for at in (0..200).chain((200..whole.len()).step_by(97)) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            std::fs::write(&saved.files.memory, &bytes).unwrap();
            let error = load_into_blank(&saved).unwrap_err();
            assert!(matches!(error, VmmError::Damaged { .. }), "{at}: {error}");
        }
    }

    #[test]
    fn state_of_another_suspend_is_damage() {
        let saved = saved(&[3..5, 9..10]);
        std::fs::write(&saved.files.state, b"Registers").unwrap();
        let error = load_into_blank(&saved).unwrap_err();
        assert!(matches!(error, VmmError::Damaged { .. }), "{error}");
    }

    #[test]
    fn cancelled_work_stops() {
        let saved = saved(&[3..5, 9..10]);
        let cancelled = CancellationToken::new();
        cancelled.cancel();
        let memory = blank(&saved.blank);
        assert!(load(&memory, &saved.files, &cancelled).is_err());
    }
}
