//! Layers are plain, gzip or zstd; their first bytes tell which, whatever a manifest says.

use flate2::bufread::MultiGzDecoder;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Take};

const BUFFER_BYTES: usize = 256 << 10;

/// How bytes are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Magic {
    Plain,
    Gzip,
    Zstd,
}

impl Magic {
    /// Looks at the first bytes.
    pub(crate) fn of(first: &[u8]) -> Self {
        match first {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A frame that decoders skip, with which seekable variants may begin.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }
}

type Source = BufReader<Take<File>>;

/// The bytes of a layer, unpacked as they are read, up to a limit.
pub(crate) struct Unpacked {
    decoder: Decoder,
    left: u64,
}

enum Decoder {
    Plain(Source),
    Gzip(Box<MultiGzDecoder<Source>>),
    Zstd(Box<zstd::Decoder<'static, Source>>),
}

impl Unpacked {
    /// Reads `file` from where it is, `len` bytes at most, giving out no more than `bytes_max`.
    pub(crate) fn new(file: File, len: u64, bytes_max: u64) -> io::Result<Self> {
        let mut source = BufReader::with_capacity(BUFFER_BYTES, file.take(len));
        let decoder = match Magic::of(source.fill_buf()?) {
            Magic::Plain => Decoder::Plain(source),
            Magic::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(source))),
            Magic::Zstd => Decoder::Zstd(Box::new(zstd::Decoder::with_buffer(source)?)),
        };
        let left = bytes_max;
        Ok(Self { decoder, left })
    }

    /// How many more bytes it would give out.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }
}

impl Read for Unpacked {
    /// Fails with [`io::ErrorKind::FileTooLarge`] at the limit.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.decoder {
            Decoder::Plain(source) => source.read(buffer),
            Decoder::Gzip(decoder) => decoder.read(buffer),
            Decoder::Zstd(decoder) => decoder.read(buffer),
        }?;
        match self.left.checked_sub(count as u64) {
            Some(left) => {
                self.left = left;
                Ok(count)
            }
            None => {
                self.left = 0;
                Err(io::ErrorKind::FileTooLarge.into())
            }
        }
    }
}
