//! Checksums of a golden snapshot's files: a snapshot that the disk has damaged is reported, never launched.
//!
//! They are computed when the snapshot is made and compared once in each boot of the host, before the first launch or
//! wake that uses it: what the host has read back once stays in its memory, or is read from a disk that has not failed
//! since. A file `verified` beside the snapshot names the boot in which that was done.

use crate::host;
use crate::layout::BuildDir;
use aws_lc_rs::digest::{Context, SHA256};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes that are compared with zero as one.
const PAGE: usize = 4096;
const BATCH: usize = 256 * PAGE;

/// SHA-256 of a golden snapshot's files, in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksums {
    /// Of the pages that are not zero, each with its number: how a file system keeps holes makes no difference.
    memory: String,
    /// Of the device state.
    state: String,
    /// Of the disk.
    disk: String,
}

/// Why a snapshot was not found good.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A file is not what it was.
    #[error("the snapshot's {file} is damaged: build the image again")]
    Damaged {
        /// Which file.
        file: &'static str,
    },
    /// A file cannot be read.
    #[error("read the snapshot's {file}")]
    Read {
        /// Which file.
        file: &'static str,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
}

impl Checksums {
    /// Of the snapshot in `build`. Blocks.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn of(build: &BuildDir) -> Result<Self, VerifyError> {
        Ok(Self {
            memory: of_memory(&build.memory()).map_err(unread("memory"))?,
            state: of_file(&build.state()).map_err(unread("device state"))?,
            disk: of_file(&build.disk()).map_err(unread("disk"))?,
        })
    }

    /// Compares the snapshot in `build` with these, unless that was done in this boot of the host. Blocks.
    pub(crate) fn verify(&self, build: &BuildDir) -> Result<(), VerifyError> {
        let boot = host::boot_id().unwrap_or_default();
        let seen = std::fs::read_to_string(build.verified());
        if !boot.is_empty() && seen.is_ok_and(|seen| seen == boot) {
            return Ok(());
        }
        let found = Self::of(build)?;
        for (file, expected, found) in [
            ("memory", &self.memory, &found.memory),
            ("device state", &self.state, &found.state),
            ("disk", &self.disk, &found.disk),
        ] {
            if expected != found {
                return Err(VerifyError::Damaged { file });
            }
        }
        mark_verified(build);
        Ok(())
    }

    /// Of a snapshot that was made just now, which nobody needs to compare in this boot of the host. Blocks.
    pub(crate) fn of_new(build: &BuildDir) -> Result<Self, VerifyError> {
        let sums = Self::of(build)?;
        mark_verified(build);
        Ok(sums)
    }
}

fn mark_verified(build: &BuildDir) {
    let mark = build.verified();
    let marked = host::boot_id().and_then(|boot| std::fs::write(&mark, boot));
    if let Err(error) = marked {
        // It is compared once more the next time.
        tracing::debug!(file = %mark.display(), %error, "not marked as verified");
    }
}

fn unread(file: &'static str) -> impl FnOnce(io::Error) -> VerifyError {
    move |source| VerifyError::Read { file, source }
}

fn of_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut sum = Context::new(&SHA256);
    let mut buffer = vec![0; BATCH];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(sum.finish())),
            len => sum.update(&buffer[..len]),
        }
    }
}

fn of_memory(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let mut sum = Context::new(&SHA256);
    sum.update(&file.metadata()?.len().to_le_bytes());
    let mut buffer = vec![0; BATCH];
    let mut at = 0;
    while let Some((start, end)) = next_data(&file, at)? {
        // A file system may begin and end its holes within a page.
        let mut page = start / PAGE as u64 * PAGE as u64;
        while page < end {
            let want = (end - page).next_multiple_of(PAGE as u64) as usize;
            let want = want.min(buffer.len());
            let len = read_up_to(&file, &mut buffer[..want], page)?;
            sum_pages(&mut sum, page, &buffer[..len]);
            page += want as u64;
        }
        at = page;
    }
    Ok(hex::encode(sum.finish()))
}

fn sum_pages(sum: &mut Context, at: u64, bytes: &[u8]) {
    for (number, page) in bytes.chunks(PAGE).enumerate() {
        if page.iter().any(|byte| *byte != 0) {
            sum.update(&(at + (number * PAGE) as u64).to_le_bytes());
            sum.update(page);
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], at + done as u64)? {
            0 => break,
            len => done += len,
        }
    }
    Ok(done)
}

/// The next part of a sparse file, from `at` on, that is no hole.
fn next_data(file: &File, at: u64) -> io::Result<Option<(u64, u64)>> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(Some((
        start,
        rustix::fs::seek(file, SeekFrom::Hole(start))?,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> (tempfile::TempDir, BuildDir) {
        let dir = tempfile::tempdir().unwrap();
        let build = BuildDir::at(dir.path().to_owned());
        let memory = File::create(build.memory()).unwrap();
        memory.set_len(64 << 20).unwrap();
        memory.write_all_at(b"kernel", 3 << 20).unwrap();
        memory.write_all_at(b"app", (40 << 20) - 1).unwrap();
        std::fs::write(build.state(), "devices").unwrap();
        std::fs::write(build.disk(), "blocks").unwrap();
        (dir, build)
    }

    fn forget(build: &BuildDir) {
        std::fs::remove_file(build.verified()).unwrap();
    }

    #[test]
    fn damage_to_any_file_is_found_after_the_next_boot() {
        for name in ["memory", "device state", "disk"] {
            let (_dir, build) = snapshot();
            let sums = Checksums::of(&build).unwrap();
            sums.verify(&build).unwrap();
            forget(&build);
            let path = match name {
                "memory" => build.memory(),
                "device state" => build.state(),
                _ => build.disk(),
            };
            let file = File::options().write(true).open(&path).unwrap();
            file.write_all_at(b"X", 2).unwrap();
            let error = sums.verify(&build).unwrap_err();
            assert!(matches!(error, VerifyError::Damaged { file } if file == name));
        }
    }

    #[test]
    fn a_verified_snapshot_is_not_read_again_in_this_boot() {
        let (_dir, build) = snapshot();
        let sums = Checksums::of(&build).unwrap();
        sums.verify(&build).unwrap();
        std::fs::write(build.state(), "other").unwrap();
        sums.verify(&build).unwrap();
        std::fs::write(build.verified(), "another boot").unwrap();
        assert!(sums.verify(&build).is_err());
    }

    #[test]
    fn holes_make_no_difference_but_zeros_for_data_do() {
        let (_dir, build) = snapshot();
        let sums = Checksums::of(&build).unwrap();
        let memory = File::options().write(true).open(build.memory()).unwrap();
        memory.write_all_at(&[0; 1 << 20], 10 << 20).unwrap();
        assert_eq!(
            Checksums::of(&build).unwrap(),
            sums,
            "a hole was filled with zeros"
        );
        memory.write_all_at(&[0; 6], 3 << 20).unwrap();
        assert_ne!(Checksums::of(&build).unwrap(), sums);
    }

    #[test]
    fn a_file_that_is_gone_is_named() {
        let (_dir, build) = snapshot();
        let sums = Checksums::of(&build).unwrap();
        std::fs::remove_file(build.state()).unwrap();
        let error = sums.verify(&build).unwrap_err();
        assert!(error.to_string().contains("device state"), "{error}");
    }
}
