//! The tar that a copy step sends, and its digest.

use super::{ContextError, read_error};
use aws_lc_rs::digest;
use dormouse_core::guest::CopySpec;
use dormouse_core::limits;
use std::io::{Read, Write};
use tar::{EntryType, Header};

/// The time of everything that is copied: 1980-01-01, the earliest that a zip can state. Real times
/// would make two builds of one artifact differ.
const MTIME: u64 = 315_532_800;

/// Writes a tar, and digests what it means.
pub(super) struct Archive<W: Write> {
    tar: tar::Builder<Counting<W>>,
    digest: digest::Context,
    chmod: Option<u32>,
    entries: usize,
    content_bytes: u64,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(out: W, spec: &CopySpec, chmod: Option<u32>) -> Self {
        let tar = tar::Builder::new(Counting {
            inner: out,
            bytes: 0,
        });
        let mut archive = Self {
            tar,
            digest: digest::Context::new(&digest::SHA256),
            chmod,
            entries: 0,
            content_bytes: 0,
        };
        archive.note(&[b"copy 1", spec.dest.as_bytes(), &[u8::from(spec.as_file)]]);
        archive.note(&[spec.owner.as_bytes()]);
        archive
    }

    pub(super) fn folder(&mut self, name: &str, mode: u32) -> Result<(), ContextError> {
        self.count(0)?;
        let mode = self.chmod.unwrap_or(mode);
        self.note(&[b"folder", name.as_bytes(), &mode.to_be_bytes()]);
        let mut header = header(EntryType::Directory, mode, 0);
        self.tar
            .append_data(&mut header, name, std::io::empty())
            .map_err(ContextError::Send)
    }

    pub(super) fn link(&mut self, name: &str, target: &str) -> Result<(), ContextError> {
        self.count(0)?;
        self.note(&[b"link", name.as_bytes(), target.as_bytes()]);
        let mut header = header(EntryType::Symlink, 0o777, 0);
        self.tar
            .append_link(&mut header, name, target)
            .map_err(ContextError::Send)
    }

    /// Appends a file of which `bytes` were listed; one that has changed since is an error.
    pub(super) fn file(
        &mut self,
        name: &str,
        path: &str,
        mode: u32,
        bytes: u64,
        file: impl Read,
    ) -> Result<(), ContextError> {
        self.count(bytes)?;
        let mode = self.chmod.unwrap_or(mode);
        self.note(&[
            b"file",
            name.as_bytes(),
            &mode.to_be_bytes(),
            &bytes.to_be_bytes(),
        ]);
        let mut header = header(EntryType::Regular, mode, bytes);
        let mut content = Exactly {
            inner: file,
            left: bytes,
            digest: &mut self.digest,
            error: None,
        };
        let sent = self.tar.append_data(&mut header, name, &mut content);
        if let Some(error) = content.error {
            return Err(read_error(path, error));
        }
        sent.map_err(ContextError::Send)
    }

    /// Appends a file that the Dockerfile holds.
    pub(super) fn text(&mut self, name: &str, content: &str) -> Result<(), ContextError> {
        const MODE: u32 = 0o644;
        self.file(name, name, MODE, content.len() as u64, content.as_bytes())
    }

    /// Digests a file that goes another way.
    pub(super) fn digest_only(
        &mut self,
        path: &str,
        mode: u32,
        bytes: u64,
        file: impl Read,
    ) -> Result<(), ContextError> {
        self.count(bytes)?;
        // What proves to be no archive is copied as the file that it is.
        let mode = self.chmod.unwrap_or(mode);
        self.note(&[
            b"archive",
            path.as_bytes(),
            &mode.to_be_bytes(),
            &bytes.to_be_bytes(),
        ]);
        let mut content = Exactly {
            inner: file,
            left: bytes,
            digest: &mut self.digest,
            error: None,
        };
        std::io::copy(&mut content, &mut std::io::sink())
            .map(drop)
            .map_err(|error| read_error(path, error))
    }

    /// How many entries there are, those included that go another way.
    pub(super) fn entries(&self) -> usize {
        self.entries
    }

    /// Ends the tar; answers the digest in hex and the tar's length.
    pub(super) fn finish(self) -> Result<(String, u64), ContextError> {
        let mut out = self.tar.into_inner().map_err(ContextError::Send)?;
        out.flush().map_err(ContextError::Send)?;
        Ok((hex::encode(self.digest.finish()), out.bytes))
    }

    /// A step may name one file many times, but not copy more than an archive may hold.
    fn count(&mut self, bytes: u64) -> Result<(), ContextError> {
        self.entries += 1;
        self.content_bytes = self.content_bytes.saturating_add(bytes);
        let fits = self.entries <= limits::ARTIFACT_ENTRIES_MAX
            && self.content_bytes <= limits::ARTIFACT_UNPACKED_BYTES_MAX;
        if fits {
            Ok(())
        } else {
            Err(ContextError::CopiesTooMuch)
        }
    }

    /// Digests fields, each with its length, so that no two lists of fields look alike.
    fn note(&mut self, fields: &[&[u8]]) {
        for field in fields {
            self.digest.update(&(field.len() as u64).to_be_bytes());
            self.digest.update(field);
        }
    }
}

fn header(kind: EntryType, mode: u32, bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(bytes);
    header.set_mtime(MTIME);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Yields exactly the bytes that the header promised, and digests them.
struct Exactly<'a, R> {
    inner: R,
    left: u64,
    digest: &'a mut digest::Context,
    /// Why reading failed: the tar writer's errors do not tell reading from writing.
    error: Option<std::io::Error>,
}

impl<R: Read> Read for Exactly<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let room = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if room == 0 {
            return Ok(0);
        }
        let read = self
            .inner
            .read(&mut buffer[..room])
            .and_then(|count| match count {
                0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
                count => Ok(count),
            });
        match read {
            Ok(count) => {
                self.left -= count as u64;
                self.digest.update(&buffer[..count]);
                Ok(count)
            }
            Err(error) => {
                let kind = error.kind();
                if kind != std::io::ErrorKind::Interrupted {
                    self.error = Some(error);
                }
                Err(kind.into())
            }
        }
    }
}

struct Counting<W> {
    inner: W,
    bytes: u64,
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}
