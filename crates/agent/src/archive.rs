//! ADD of an archive: it is told apart and read here, inside the VM, whatever it holds.

use crate::copy::{self, CopyError};
use dormouse_core::guest::CopySpec;
use std::io::{self, Cursor, Read};

const BLOCK: usize = 512;
/// Where a tar's first header has its checksum.
const CHECKSUM: std::ops::Range<usize> = 148..156;

/// Why an archive was not unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    /// It is no tar, or its compression is damaged from the start. Nothing was written.
    #[error("not an archive that can be unpacked")]
    NoArchive,
    /// It is one, and could not be unpacked whole.
    #[error(transparent)]
    Copy(#[from] CopyError),
}

/// Unpacks a tar, plain or compressed, where `spec` says. Without an owner in `spec` files keep those of
/// the archive. This blocks.
pub(crate) fn unpack(spec: &CopySpec, bytes: impl Read + 'static) -> Result<(), UnpackError> {
    let mut plain = decompressed(bytes).map_err(|_| UnpackError::NoArchive)?;
    let mut first = Vec::with_capacity(BLOCK);
    let read = plain.by_ref().take(BLOCK as u64).read_to_end(&mut first);
    if read.is_err() || !is_tar_header(&first) {
        return Err(UnpackError::NoArchive);
    }
    Ok(copy::unpack_archive(spec, Cursor::new(first).chain(plain))?)
}

/// What the bytes stand for, going by how they begin.
fn decompressed(mut bytes: impl Read + 'static) -> io::Result<Box<dyn Read>> {
    const MAGIC_BYTES: u64 = 6;
    let mut magic = Vec::new();
    bytes.by_ref().take(MAGIC_BYTES).read_to_end(&mut magic)?;
    let whole = Cursor::new(magic.clone()).chain(bytes);
    Ok(match magic.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        [b'B', b'Z', b'h', ..] => Box::new(bzip2::read::MultiBzDecoder::new(whole)),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Box::new(lzma_rust2::XzReader::new(whole, true)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(whole);
            Box::new(decoder.map_err(io::Error::other)?)
        }
        _ => Box::new(whole),
    })
}

/// Whether a block is a tar's header: its bytes add up to its checksum.
fn is_tar_header(block: &[u8]) -> bool {
    if block.len() != BLOCK {
        return false;
    }
    let field = String::from_utf8_lossy(&block[CHECKSUM]);
    let digits = field.trim_matches(|c: char| c == '\0' || c == ' ');
    let Ok(expected) = u32::from_str_radix(digits, 8) else {
        return false;
    };
    let blank = |at: usize| CHECKSUM.contains(&at);
    let bytes = block.iter().enumerate();
    let sum: u32 = bytes
        .map(|(at, byte)| u32::from(if blank(at) { b' ' } else { *byte }))
        .sum();
    sum == expected
}

#[cfg(test)]
mod tests {
    use super::*;

    // A tar with one file `f`, packed by each of the usual programs.
    const GZIP: &str = "1f8b08000000000000034b63a03d300002331313300d04e8b4818111121b2c6e666860caa0604007b7319416\
        97241601ada4875d831064a4e6e4e4eb28241625676496a516730db47b46c1281805a36014d007000098a0b0\
        2400080000";
    const BZIP2: &str = "425a68393141592653595faaffe800002edb80ca90400477000000eb649f002808200054429ea0c4d34d1a69\
        89a788251234c8321ea0340347e550856204b99c485cb6202851d2a4df92a0f51067219d4d281661a8ddd1b1\
        a2df4fd00c09688b111c0bb9229c28482fd57ff400";
    const XZ: &str = "fd377a585a000004e6d6b4460200210116000000742fe5a3e007ff00485d00330033501868898301dce26e20\
        fe041b4681c4cd0b6b0c6a5cddbaf1120b097417a520f06cf4e754d901a17fdcbfa13bf7174d1d6c8fc0d674\
        9f7c65385610e62912f5bc745d000000449d297fd9a9248500016480100000009c7ecfb1b1c467fb02000000\
        0004595a";
    const ZSTD: &str = "28b52ffd046825020012c30a10a0edf093385e507528eb9632a888f12906ee44954c2b19d85a27f9772bcf41\
        3f4d2ef6e3bf55f7ff8d02082030351cd9fbd71cea8092bfd8891db287f313c502c34d9eec";

    #[test]
    fn every_compression_is_read() {
        for packed in [GZIP, BZIP2, XZ, ZSTD] {
            let bytes = hex::decode(packed).expect("hex");
            let mut plain = Vec::new();
            let mut reader = decompressed(Cursor::new(bytes)).expect("known");
            reader.read_to_end(&mut plain).expect("whole");
            assert!(is_tar_header(&plain[..BLOCK]));
            let mut tar = tar::Archive::new(plain.as_slice());
            let mut file = tar
                .entries()
                .expect("a tar")
                .next()
                .expect("one")
                .expect("whole");
            let mut content = String::new();
            file.read_to_string(&mut content).expect("text");
            assert_eq!(content, "hello, archives\n");

            let mut reader = decompressed(Cursor::new(plain.clone())).expect("plain");
            let mut same = Vec::new();
            reader.read_to_end(&mut same).expect("whole");
            assert_eq!(same, plain);
        }
    }

    #[test]
    fn what_is_no_tar_is_refused_before_anything_is_written() {
        let spec = CopySpec {
            dest: "/nonexistent-destination".to_owned(),
            as_file: false,
            owner: String::new(),
        };
        for bytes in [
            b"".to_vec(),
            b"text".to_vec(),
            vec![0; 2000],
            b"\x1f\x8bbroken".to_vec(),
            b"\xfd7zXZ\0broken".to_vec(),
            b"\x28\xb5\x2f\xfdbroken".to_vec(),
        ] {
            let error = unpack(&spec, Cursor::new(bytes)).expect_err("no archive");
            assert!(matches!(error, UnpackError::NoArchive), "{error}");
        }
        assert!(!std::path::Path::new(&spec.dest).exists());
    }
}
