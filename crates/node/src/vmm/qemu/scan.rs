//! The kernel's page scan (`PAGEMAP_SCAN`, Linux 6.7): it skips what was never touched.

use super::pages::{self, Wanted};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::ops::Range;

const IS_FILE: u64 = 1 << 2;
const IS_PRESENT: u64 = 1 << 3;
const IS_SWAPPED: u64 = 1 << 4;
/// Regions that one call may return.
const REGIONS: usize = 4096;

/// Address ranges of the pages in `span` that are wanted, in order; `Unsupported` on a kernel that cannot scan.
pub(super) fn scan(
    pagemap: &File,
    span: Range<u64>,
    wanted: Wanted,
) -> io::Result<Vec<Range<u64>>> {
    let mut regions = vec![Region::default(); REGIONS];
    let mut found = Vec::new();
    let mut at = span.start;
    loop {
        let scan = Scan::new(at..span.end, wanted, &mut regions);
        // SAFETY: `Scan` is the argument of exactly this operation, which only a pagemap file knows.
        let count = match unsafe { rustix::ioctl::ioctl(pagemap, scan) } {
            Err(Errno::NOTTY | Errno::INVAL) => return Err(io::ErrorKind::Unsupported.into()),
            count => count?,
        };
        for region in regions.iter().take(count) {
            pages::push(&mut found, region.start..region.end);
        }
        // The kernel's own word on how far it came, `walk_end`, is stale after a scan that filled its
        // inner buffer of 512 regions and then finished. A scan that found less than it may is done.
        match regions.get(..count).and_then(<[_]>::last) {
            Some(last) if count == REGIONS && last.end > at => at = last.end,
            _ => return Ok(found),
        }
    }
}

/// The kernel's `struct pm_scan_arg`.
#[repr(C)]
#[derive(Debug)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// The kernel's `struct page_region`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// One scan, into borrowed regions.
struct Scan<'a> {
    arg: ScanArg,
    _regions: PhantomData<&'a mut [Region]>,
}

impl<'a> Scan<'a> {
    fn new(span: Range<u64>, wanted: Wanted, regions: &'a mut [Region]) -> Self {
        // A category that is inverted and asked for keeps the file's pages out.
        let not_of_file = match wanted {
            Wanted::Own => IS_FILE,
            Wanted::Touched => 0,
        };
        let arg = ScanArg {
            size: size_of::<ScanArg>() as u64,
            flags: 0,
            start: span.start,
            end: span.end,
            walk_end: 0,
            vec: regions.as_mut_ptr() as u64,
            vec_len: regions.len() as u64,
            max_pages: 0,
            category_inverted: not_of_file,
            category_mask: not_of_file,
            category_anyof_mask: IS_PRESENT | IS_SWAPPED,
            // Neighbours that differ in what is returned of them are regions of their own.
            return_mask: not_of_file,
        };
        Self {
            arg,
            _regions: PhantomData,
        }
    }
}

// SAFETY: the opcode is the kernel's for this argument, and the argument points to `vec_len` regions
// that are borrowed mutably for as long as the scan lives.
unsafe impl Ioctl for Scan<'_> {
    /// Number of regions found.
    type Output = usize;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::read_write::<ScanArg>(b'f', 16)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut self.arg).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<usize> {
        usize::try_from(out).map_err(|_| Errno::INVAL)
    }
}
