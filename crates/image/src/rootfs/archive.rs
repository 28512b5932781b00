//! Reads a tar as a stream of entries, whatever wrote it: ustar, GNU, PAX, sparse files of each.
//!
//! Bounded at each point: what describes an entry is kept in memory and has a limit, data is never kept.

use super::pax::{self, Pax};
use dormouse_core::limits;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

const BLOCK: u64 = 512;

/// A tar that is read once, from its begin to its end.
pub(super) struct Archive<R> {
    stream: R,
    /// Data of the current entry that has not been read.
    data_left: u64,
    /// What fills the data's last block up.
    padding: u64,
    /// Entries that may still come, those that describe others among them.
    entries_left: usize,
}

/// One file of a tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) kind: EntryKind,
    /// Permission bits, with set-user-ID and its like.
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds and nanoseconds since the Unix epoch.
    pub(super) mtime: (i64, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EntryKind {
    /// Size with its holes, in bytes, and where its data goes.
    File {
        size: u64,
        segments: Vec<Segment>,
    },
    Dir,
    Symlink(Vec<u8>),
    /// Another name of the file at this path.
    HardLink(Vec<u8>),
    /// A device, pipe or such.
    Special,
}

/// A part of a file that is not a hole, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    offset: u64,
    length: u64,
}

/// Why a tar cannot be read on.
#[derive(Debug)]
pub(super) enum ArchiveError {
    /// It is no tar, or a damaged one.
    Damaged(&'static str),
    /// It has more entries than it may have.
    TooMany,
    /// Its bytes do not come.
    Read(io::Error),
    /// They cannot be written.
    Write(io::Error),
}

use ArchiveError::Damaged;

/// What the entries in front of an entry say of it.
#[derive(Debug, Default)]
struct Extensions {
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Pax,
}

impl<R: Read> Archive<R> {
    /// Of at most so many entries, those that describe others among them.
    pub(super) fn new(stream: R, entries_max: usize) -> Self {
        Self {
            stream,
            data_left: 0,
            padding: 0,
            entries_left: entries_max,
        }
    }

    /// How many entries there may still be.
    pub(super) fn entries_left(&self) -> usize {
        self.entries_left
    }

    /// The next entry; none at the end. What was not read of the last one is passed over.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let left = self.entries_left.checked_sub(1);
            self.entries_left = left.ok_or(ArchiveError::TooMany)?;
            let kind = header.entry_type();
            match kind {
                EntryType::GNULongName => extensions.long_path = Some(self.text(&header)?),
                EntryType::GNULongLink => extensions.long_link = Some(self.text(&header)?),
                EntryType::XHeader => {
                    let records = self.extension(&header)?;
                    extensions.pax = Pax::parse(&records).map_err(Damaged)?;
                }
                // Of the archive as a whole: nothing in it says where or what a file is.
                EntryType::XGlobalHeader => drop(self.extension(&header)?),
                _ => return self.entry(&header, extensions).map(Some),
            }
        }
    }

    /// Reads what comes after the last entry, for whoever takes a digest of all of it.
    pub(super) fn finish(mut self) -> Result<R, ArchiveError> {
        io::copy(&mut self.stream, &mut io::sink()).map_err(ArchiveError::Read)?;
        Ok(self.stream)
    }

    /// Writes the current entry's data to an empty file, leaving holes where it has them or has only zeros.
    pub(super) fn copy_data(
        &mut self,
        size: u64,
        segments: &[Segment],
        file: &File,
    ) -> Result<(), ArchiveError> {
        file.set_len(size).map_err(ArchiveError::Write)?;
        let mut buffer = vec![0; 128 << 10];
        for segment in segments {
            let (mut offset, end) = (segment.offset, segment.offset + segment.length);
            while offset < end {
                let wanted = usize::try_from(end - offset)
                    .unwrap_or(usize::MAX)
                    .min(buffer.len());
                let chunk = &mut buffer[..wanted];
                self.read_data(chunk)?;
                write_sparsely(file, chunk, offset).map_err(ArchiveError::Write)?;
                offset += wanted as u64;
            }
        }
        Ok(())
    }

    fn entry(&mut self, header: &Header, extensions: Extensions) -> Result<Entry, ArchiveError> {
        let mut pax = extensions.pax;
        let path = pax.path.take().or(extensions.long_path);
        let mut path = path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = pax.link.take().or(extensions.long_link);
        let link =
            || link.unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned());
        let kind = match header.entry_type() {
            // Before POSIX a folder was a file whose name ends so.
            EntryType::Regular if path.ends_with(b"/") && header.as_old().linkflag == [0] => {
                self.file(header, &pax)?;
                EntryKind::Dir
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                if let Some(name) = pax.sparse.as_mut().and_then(|sparse| sparse.name.take()) {
                    path = name;
                }
                self.file(header, &pax)?
            }
            EntryType::Directory => EntryKind::Dir,
            EntryType::Symlink => EntryKind::Symlink(link()),
            EntryType::Link => EntryKind::HardLink(link()),
            EntryType::Char | EntryType::Block | EntryType::Fifo => EntryKind::Special,
            _ => return Err(Damaged("an entry of an unknown type")),
        };
        let id = |pax: Option<u64>, header: io::Result<u64>| {
            let id = pax
                .map_or(header, Ok)
                .map_err(|_| Damaged("a damaged header"))?;
            u32::try_from(id).map_err(|_| Damaged("an owner that Linux cannot have"))
        };
        let (Ok(mode), Ok(mtime)) = (header.mode(), header.mtime()) else {
            return Err(Damaged("a damaged header"));
        };
        Ok(Entry {
            path,
            kind,
            mode: u16::try_from(mode & 0o7777).unwrap_or_default(),
            uid: id(pax.uid, header.uid())?,
            gid: id(pax.gid, header.gid())?,
            mtime: pax
                .mtime
                .unwrap_or_else(|| (i64::try_from(mtime).unwrap_or(0), 0)),
            xattrs: pax.xattrs,
        })
    }

    fn file(&mut self, header: &Header, pax: &Pax) -> Result<EntryKind, ArchiveError> {
        let stored = match pax.size {
            Some(size) => size,
            None => header
                .entry_size()
                .map_err(|_| Damaged("a damaged header"))?,
        };
        let gnu = match header.entry_type() {
            EntryType::GNUSparse => {
                let gnu = header.as_gnu().ok_or(Damaged("a damaged sparse file"))?;
                Some((
                    gnu.real_size(),
                    self.gnu_map(&gnu.sparse, gnu.is_extended())?,
                ))
            }
            _ => None,
        };
        // The blocks of the map come before the data, and are none of it.
        self.begin_data(stored)?;
        let (size, map) = match (gnu, &pax.sparse) {
            (Some((size, map)), _) => (size.map_err(|_| Damaged("a damaged sparse file"))?, map),
            (None, Some(sparse)) => {
                let map = match sparse.map_in_data {
                    true => self.map_in_data()?,
                    false => sparse.map.clone(),
                };
                (
                    sparse
                        .real_size
                        .ok_or(Damaged("a sparse file without a size"))?,
                    map,
                )
            }
            (None, None) => (stored, vec![0, stored]),
        };
        let segments = segments(&map, size, self.data_left)?;
        Ok(EntryKind::File { size, segments })
    }

    /// The map of GNU tar's old form, which goes on in blocks of its own after the header.
    fn gnu_map(&mut self, first: &[GnuSparseHeader], more: bool) -> Result<Vec<u64>, ArchiveError> {
        let mut map = Vec::new();
        let mut take = |parts: &[GnuSparseHeader]| {
            for part in parts.iter().filter(|part| !part.is_empty()) {
                let (Ok(offset), Ok(length)) = (part.offset(), part.length()) else {
                    return Err(Damaged("a damaged sparse file"));
                };
                map.extend([offset, length]);
            }
            match map.len() <= 2 * limits::TAR_SEGMENTS_MAX {
                true => Ok(()),
                false => Err(Damaged("a sparse file with too many parts")),
            }
        };
        take(first)?;
        let mut block = GnuExtSparseHeader::new();
        let mut more = more;
        // Blocks without a part would go on forever.
        let mut blocks = 0;
        while more {
            blocks += 1;
            if blocks > limits::TAR_SEGMENTS_MAX {
                return Err(Damaged("a sparse file with too many parts"));
            }
            self.stream
                .read_exact(block.as_mut_bytes())
                .map_err(ArchiveError::Read)?;
            take(&block.sparse)?;
            more = block.is_extended();
        }
        Ok(map)
    }

    /// The map of GNU tar's PAX form 1.0: lines with numbers, filled up to a whole block.
    fn map_in_data(&mut self) -> Result<Vec<u64>, ArchiveError> {
        let mut map = Vec::new();
        let mut numbers_left = None;
        let mut digits = Vec::new();
        while numbers_left != Some(0) {
            let mut block = [0; BLOCK as usize];
            self.read_data(&mut block)?;
            for byte in block {
                match (byte, numbers_left) {
                    (_, Some(0)) => break,
                    (b'0'..=b'9', _) if digits.len() < 20 => digits.push(byte),
                    (b'\n', left) => {
                        let number = pax::number(&digits).ok_or(Damaged("a damaged sparse map"))?;
                        digits.clear();
                        match left {
                            None if number > limits::TAR_SEGMENTS_MAX as u64 => {
                                return Err(Damaged("a sparse file with too many parts"));
                            }
                            None => numbers_left = Some(2 * number),
                            Some(left) => {
                                map.push(number);
                                numbers_left = Some(left - 1);
                            }
                        }
                    }
                    _ => return Err(Damaged("a damaged sparse map")),
                }
            }
        }
        Ok(map)
    }

    /// The next header; none at the end.
    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < block.len() {
            match self.stream.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(Damaged("it ends in the middle of an entry")),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ArchiveError::Read(error)),
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        let field: u32 = block[148..156].iter().map(|byte| u32::from(*byte)).sum();
        // The field itself counts as eight spaces.
        match header.cksum() {
            Ok(expected) if expected == sum - field + 8 * 32 => Ok(Some(header)),
            _ => Err(Damaged("it is no tar, or a damaged one")),
        }
    }

    /// The content of an entry that describes another.
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, ArchiveError> {
        let size = header
            .entry_size()
            .map_err(|_| Damaged("a damaged header"))?;
        let length = usize::try_from(size)
            .ok()
            .filter(|n| *n <= limits::TAR_HEADER_BYTES_MAX);
        let length = length.ok_or(Damaged("the description of an entry is too long"))?;
        self.begin_data(size)?;
        let mut content = vec![0; length];
        self.read_data(&mut content)?;
        Ok(content)
    }

    /// Such content as a text that may end with a zero byte.
    fn text(&mut self, header: &Header) -> Result<Vec<u8>, ArchiveError> {
        let mut text = self.extension(header)?;
        if text.last() == Some(&0) {
            text.pop();
        }
        Ok(text)
    }

    fn begin_data(&mut self, size: u64) -> Result<(), ArchiveError> {
        size.checked_add(BLOCK)
            .ok_or(Damaged("a size that no file can have"))?;
        self.data_left = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
        Ok(())
    }

    fn read_data(&mut self, buffer: &mut [u8]) -> Result<(), ArchiveError> {
        let left = self.data_left.checked_sub(buffer.len() as u64);
        self.data_left = left.ok_or(Damaged("an entry that ends too early"))?;
        self.stream.read_exact(buffer).map_err(ArchiveError::Read)
    }

    fn skip(&mut self) -> Result<(), ArchiveError> {
        let rest = self.data_left + self.padding;
        let skipped = io::copy(&mut (&mut self.stream).take(rest), &mut io::sink());
        if skipped.map_err(ArchiveError::Read)? < rest {
            return Err(Damaged("it ends in the middle of an entry"));
        }
        (self.data_left, self.padding) = (0, 0);
        Ok(())
    }
}

/// Turns offsets and lengths into parts that follow each other, lie within the file and use up its data.
fn segments(map: &[u64], size: u64, stored: u64) -> Result<Vec<Segment>, ArchiveError> {
    const BAD: ArchiveError = Damaged("a sparse file whose parts do not fit");
    let (pairs, rest) = map.as_chunks::<2>();
    let mut segments = Vec::new();
    let (mut end, mut data) = (0_u64, 0_u64);
    for &[offset, length] in pairs {
        if offset < end {
            return Err(BAD);
        }
        end = offset
            .checked_add(length)
            .filter(|end| *end <= size)
            .ok_or(BAD)?;
        data += length;
        if length > 0 {
            segments.push(Segment { offset, length });
        }
    }
    match rest.is_empty() && data == stored {
        true => Ok(segments),
        false => Err(BAD),
    }
}

/// Writes all but the blocks that have only zeros.
fn write_sparsely(file: &File, chunk: &[u8], offset: u64) -> io::Result<()> {
    const PAGE: usize = 4096;
    let pages: Vec<&[u8]> = chunk.chunks(PAGE).collect();
    let is_hole = |page: &[u8]| page.iter().all(|byte| *byte == 0);
    let mut at = 0;
    for run in pages.chunk_by(|a, b| is_hole(a) == is_hole(b)) {
        let length: usize = run.iter().map(|page| page.len()).sum();
        if !is_hole(run[0]) {
            file.write_all_at(&chunk[at..at + length], offset + at as u64)?;
        }
        at += length;
    }
    Ok(())
}
