//! The guest's memory as seen from outside QEMU: which pages it has made its own, their bytes, and a way
//! to put bytes back.
//!
//! QEMU maps the golden memory privately. A page that the guest has written is an anonymous copy; any
//! other is the file's page, shared by all machines. So the anonymous pages are what the machine has that
//! its golden snapshot has not.

use super::scan;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// Bytes of a page.
pub(super) const PAGE: u64 = 4096;

/// The private mapping of a golden memory file in a QEMU process.
#[derive(Debug)]
pub(super) struct GuestMemory {
    pid: u32,
    /// Parts of the mapping in order of file offset, without gaps.
    parts: Vec<Part>,
    /// Length of the guest's memory in bytes.
    len: u64,
    mem: File,
}

/// Which pages of a private mapping to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The process's own copies.
    Own,
    /// All that it has mapped: its own copies and the file's.
    Touched,
}

/// A part of the file and where it is mapped.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    address: u64,
    offset: u64,
    len: u64,
}

impl GuestMemory {
    /// Finds where process `pid` maps all of `golden`.
    pub(super) fn of(pid: u32, golden: &Path) -> io::Result<Self> {
        let file = std::fs::metadata(golden)?;
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let parts = private_parts(&maps, file.ino(), file.len())?;
        let mem = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))?;
        Ok(Self {
            pid,
            parts,
            len: file.len(),
            mem,
        })
    }

    /// A plain file in place of a machine's memory.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn of_file(path: &Path) -> Self {
        let mem = File::options().read(true).write(true).open(path);
        let mem = mem.expect("a file to read and write");
        let len = mem.metadata().expect("a file").len();
        Self {
            pid: 0,
            parts: vec![Part {
                address: 0,
                offset: 0,
                len,
            }],
            len,
            mem,
        }
    }

    /// Length of the guest's memory in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Ranges of page numbers that differ from the golden memory, in order.
    pub(super) fn own_pages(&self) -> io::Result<Vec<Range<u64>>> {
        self.find(Wanted::Own)
    }

    /// Ranges of page numbers that have been read or written, in order. On a read the kernel also maps what
    /// else of the same 64 KiB it has in memory.
    pub(super) fn touched_pages(&self) -> io::Result<Vec<Range<u64>>> {
        self.find(Wanted::Touched)
    }

    fn find(&self, wanted: Wanted) -> io::Result<Vec<Range<u64>>> {
        let pagemap = File::open(format!("/proc/{}/pagemap", self.pid))?;
        let mut pages = Vec::new();
        for part in &self.parts {
            let span = part.address..part.address + part.len;
            let found = match scan::scan(&pagemap, span.clone(), wanted) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    read_pagemap(&pagemap, span, wanted)?
                }
                found => found?,
            };
            for addresses in found {
                let page = |address| (address - part.address + part.offset) / PAGE;
                push(&mut pages, page(addresses.start)..page(addresses.end));
            }
        }
        Ok(pages)
    }

    /// Reads memory from byte offset `at` on.
    pub(super) fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let (address, room) = self.address(at + done as u64)?;
            let take = room.min((bytes.len() - done) as u64) as usize;
            self.mem
                .read_exact_at(&mut bytes[done..done + take], address)?;
            done += take;
        }
        Ok(())
    }

    /// Writes memory from byte offset `at` on. Only this machine sees it: the mapping is private.
    pub(super) fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let (address, room) = self.address(at + done as u64)?;
            let take = room.min((bytes.len() - done) as u64) as usize;
            self.mem.write_all_at(&bytes[done..done + take], address)?;
            done += take;
        }
        Ok(())
    }

    /// Where a byte of the guest's memory is mapped, and how many bytes follow it there.
    fn address(&self, at: u64) -> io::Result<(u64, u64)> {
        let part = self
            .parts
            .iter()
            .find(|part| (part.offset..part.offset + part.len).contains(&at));
        let part = part.ok_or(io::ErrorKind::InvalidInput)?;
        Ok((
            part.address + (at - part.offset),
            part.offset + part.len - at,
        ))
    }
}

/// Finds the private mappings of a file in the text of `/proc/PID/maps`; they must cover it once.
fn private_parts(maps: &str, inode: u64, file_len: u64) -> io::Result<Vec<Part>> {
    let mut parts: Vec<Part> = maps
        .lines()
        .filter_map(|line| private_part(line, inode))
        .collect();
    parts.sort_by_key(|part| part.offset);
    let mut end = 0;
    for part in &parts {
        if part.offset != end {
            return Err(unexpected("golden memory is mapped with gaps or twice"));
        }
        end += part.len;
    }
    if parts.is_empty() || end != file_len {
        return Err(unexpected("golden memory is not mapped whole"));
    }
    Ok(parts)
}

/// Parses `start-end perms offset device inode path`.
fn private_part(line: &str, inode: u64) -> Option<Part> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let private = fields.next()?.ends_with('p');
    let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
    let found: u64 = fields.nth(1)?.parse().ok()?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    (private && found == inode).then_some(Part {
        address: start,
        offset,
        len: end - start,
    })
}

/// Adds a range, growing the last one when it touches.
pub(super) fn push(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

/// Finds pages by reading `/proc/PID/pagemap`: on kernels before 6.7, which cannot scan.
fn read_pagemap(pagemap: &File, span: Range<u64>, wanted: Wanted) -> io::Result<Vec<Range<u64>>> {
    const FILE_PAGE: u64 = 1 << 61;
    const SWAPPED: u64 = 1 << 62;
    const PRESENT: u64 = 1 << 63;
    const ENTRIES: u64 = 32 * 1024;
    let mut found = Vec::new();
    let mut bytes = vec![0; ENTRIES as usize * 8];
    let mut address = span.start;
    while address < span.end {
        let count = ENTRIES.min((span.end - address) / PAGE);
        let bytes = &mut bytes[..count as usize * 8];
        pagemap.read_exact_at(bytes, address / PAGE * 8)?;
        for entry in bytes.as_chunks().0 {
            let entry = u64::from_ne_bytes(*entry);
            let is_wanted = wanted == Wanted::Touched || entry & FILE_PAGE == 0;
            if entry & (PRESENT | SWAPPED) != 0 && is_wanted {
                push(&mut found, address..address + PAGE);
            }
            address += PAGE;
        }
    }
    Ok(found)
}

fn unexpected(problem: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

    /// A golden memory that this process maps as QEMU does.
    struct Mapping {
        golden: tempfile::NamedTempFile,
        address: *mut std::ffi::c_void,
        len: usize,
    }

    impl Mapping {
        fn new(pages: u64) -> Self {
            let golden = tempfile::NamedTempFile::new().unwrap();
            let len = (pages * PAGE) as usize;
            golden.as_file().set_len(len as u64).unwrap();
            golden.as_file().write_all_at(b"golden", 3 * PAGE).unwrap();
            let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
            // SAFETY: the kernel chooses the address, so nothing else is mapped there.
            let address = unsafe {
                mmap(
                    std::ptr::null_mut(),
                    len,
                    protection,
                    flags,
                    golden.as_file(),
                    0,
                )
                .unwrap()
            };
            Self {
                golden,
                address,
                len,
            }
        }

        fn memory(&self) -> GuestMemory {
            GuestMemory::of(std::process::id(), self.golden.path()).unwrap()
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: the mapping is this value's own, and nothing refers into it.
            unsafe { munmap(self.address, self.len).unwrap() }
        }
    }

    #[test]
    fn own_pages_are_found_however_scattered() {
        // More ranges than one scan returns, and than fit the kernel's inner buffer.
        for (pages, step) in [(20_000, 2), (20_000, 3), (3000, 2), (600, 1), (100, 7)] {
            let mapping = Mapping::new(pages);
            let memory = mapping.memory();
            let own: Vec<u64> = (0..pages).step_by(step).collect();
            for page in &own {
                memory.write(page * PAGE, b"own").unwrap();
            }
            // What was only read stays the golden file's.
            let mut bytes = [0; 6];
            memory.read(3 * PAGE, &mut bytes).unwrap();
            let found = memory.own_pages().unwrap();
            assert_eq!(
                found.into_iter().flatten().collect::<Vec<_>>(),
                own,
                "{pages} {step}"
            );
        }
    }

    #[test]
    fn both_ways_to_find_own_pages_agree() {
        let mapping = Mapping::new(40_000);
        let memory = mapping.memory();
        for page in (0..40_000).filter(|page| page % 5 == 0 || page % 7 < 3) {
            memory.write(page * PAGE, b"own").unwrap();
        }
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let start = mapping.address as u64;
        let span = start..start + mapping.len as u64;
        // Some that are only read, among those that are not touched at all.
        for page in (20_000..40_000).step_by(701) {
            memory.read(page * PAGE, &mut [0; 8]).unwrap();
        }
        for wanted in [Wanted::Own, Wanted::Touched] {
            let scanned = scan::scan(&pagemap, span.clone(), wanted);
            let read = read_pagemap(&pagemap, span.clone(), wanted).unwrap();
            match scanned {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                scanned => assert_eq!(scanned.unwrap(), read, "{wanted:?}"),
            }
        }
    }

    #[test]
    fn pages_that_were_read_or_written_are_touched_and_far_ones_are_not() {
        let mapping = Mapping::new(4000);
        let memory = mapping.memory();
        assert_eq!(memory.touched_pages().unwrap(), []);
        memory.write(1000 * PAGE, b"own").unwrap();
        memory.read(2000 * PAGE, &mut [0; 8]).unwrap();
        let touched: Vec<u64> = memory
            .touched_pages()
            .unwrap()
            .into_iter()
            .flatten()
            .collect();
        for page in [1000, 2000] {
            assert!(touched.contains(&page), "{touched:?}");
        }
        for page in [0, 500, 1500, 3000] {
            assert!(!touched.contains(&page), "{touched:?}");
        }
    }

    #[test]
    fn written_pages_read_back_and_golden_stays() {
        let mapping = Mapping::new(10);
        let memory = mapping.memory();
        memory.write(3 * PAGE - 2, b"across").unwrap();
        let mut bytes = [0; 6];
        memory.read(3 * PAGE - 2, &mut bytes).unwrap();
        assert_eq!(&bytes, b"across");
        mapping
            .golden
            .as_file()
            .read_exact_at(&mut bytes, 3 * PAGE)
            .unwrap();
        assert_eq!(&bytes, b"golden");
        assert!(memory.write(10 * PAGE - 1, b"ab").is_err());
    }

    #[test]
    fn mapping_in_several_parts_is_put_together() {
        let maps = "\
7f0000200000-7f0000300000 rw-p 00100000 fe:00 42 /data/memory
7f0000000000-7f0000100000 rw-p 00000000 fe:00 42 /data/memory
7f0000900000-7f0000a00000 rw-s 00000000 fe:00 42 /data/memory
7f0000b00000-7f0000c00000 r--p 00000000 fe:00 43 /usr/lib/libc.so.6
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0 [stack]
";
        let parts = private_parts(maps, 42, 2 << 20).unwrap();
        assert_eq!(
            parts[0],
            Part {
                address: 0x7f00_0000_0000,
                offset: 0,
                len: 1 << 20
            }
        );
        assert_eq!(
            parts[1],
            Part {
                address: 0x7f00_0020_0000,
                offset: 1 << 20,
                len: 1 << 20
            }
        );
    }

    #[test]
    fn mapping_with_gaps_is_refused() {
        let maps = "1000-2000 rw-p 00001000 fe:00 42 /m\n";
        assert!(private_parts(maps, 42, 0x2000).is_err());
        assert!(private_parts("1000-2000 rw-p 00000000 fe:00 42 /m\n", 42, 0x2000).is_err());
        assert!(private_parts("", 42, 0x2000).is_err());
        let twice = "1000-2000 rw-p 00000000 fe:00 42 /m\n3000-4000 rw-p 00000000 fe:00 42 /m\n";
        assert!(private_parts(twice, 42, 0x1000).is_err());
    }
}
