//! What a body must hash to, and what it did hash to.

use super::StorageError;
use super::index::Checksums;
use base64::{Engine, engine::general_purpose::STANDARD};
use s3s::checksum::ChecksumHasher;
use s3s::crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Md5, Sha1, Sha256};
use s3s::dto;

/// What a client says of the body that it sends.
#[derive(Debug, Clone, Default)]
pub(super) struct Claims {
    /// Length in bytes.
    pub(super) length: Option<u64>,
    /// MD5 in base64.
    pub(super) md5: Option<String>,
    /// Checksums, those that come after the body not included.
    pub(super) checksums: Checksums,
    /// Names of the checksum headers that come after the body, as in `x-amz-checksum-crc32`.
    pub(super) trailers: Vec<String>,
    /// An algorithm whose checksum the client wants to be told.
    pub(super) algorithm: Option<String>,
}

/// Hashes a body as it passes.
pub(super) struct Digest {
    md5: Md5,
    checksums: ChecksumHasher,
    length: u64,
}

/// What a body hashed to.
#[derive(Debug, Clone)]
pub(super) struct Digests {
    /// MD5.
    pub(super) md5: [u8; 16],
    /// Those that the client wanted or claimed.
    pub(super) checksums: Checksums,
    /// Length in bytes.
    pub(super) length: u64,
}

impl Claims {
    /// Starts hashing what the claims need.
    pub(super) fn digest(&self) -> Digest {
        let wanted = |name: &str, claimed: &Option<String>| {
            let named = |text: &str| text.eq_ignore_ascii_case(name);
            claimed.is_some()
                || self.algorithm.as_deref().is_some_and(named)
                || self.trailers.iter().any(|trailer| {
                    trailer
                        .rsplit_once('-')
                        .is_some_and(|(_, algorithm)| named(algorithm))
                })
        };
        let claims = &self.checksums;
        Digest {
            md5: Md5::new(),
            checksums: ChecksumHasher {
                crc32: wanted("crc32", &claims.crc32).then(Crc32::new),
                crc32c: wanted("crc32c", &claims.crc32c).then(Crc32c::new),
                sha1: wanted("sha1", &claims.sha1).then(Sha1::new),
                sha256: wanted("sha256", &claims.sha256).then(Sha256::new),
                crc64nvme: wanted("crc64nvme", &claims.crc64nvme).then(Crc64Nvme::new),
            },
            length: 0,
        }
    }

    /// Fails unless the body was what the client said; `trailing` is what came after it.
    pub(super) fn verify(
        &self,
        found: &Digests,
        trailing: Option<&http::HeaderMap>,
    ) -> Result<(), StorageError> {
        if self.length.is_some_and(|claimed| claimed != found.length) {
            return Err(StorageError::IncompleteBody);
        }
        let md5 = STANDARD.encode(found.md5);
        agree(self.md5.as_deref(), Some(&md5))?;
        for (name, claimed) in self.checksums.each() {
            agree(claimed, found.checksums.of(name))?;
        }
        for trailer in &self.trailers {
            let claimed = trailing.and_then(|headers| headers.get(trailer));
            let Some(claimed) = claimed.and_then(|value| value.to_str().ok()) else {
                // It was announced and did not come: the end of the body is missing.
                return Err(StorageError::IncompleteBody);
            };
            let name = trailer.rsplit_once('-').map_or("", |(_, name)| name);
            agree(Some(claimed), found.checksums.of(name))?;
        }
        Ok(())
    }
}

fn agree(claimed: Option<&str>, found: Option<&str>) -> Result<(), StorageError> {
    match claimed {
        Some(claimed) if Some(claimed) != found => Err(StorageError::BadDigest),
        _ => Ok(()),
    }
}

impl Digest {
    /// Takes in the next bytes.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.md5.update(bytes);
        self.checksums.update(bytes);
        self.length += bytes.len() as u64;
    }

    /// Bytes taken in so far.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// What it all hashed to.
    pub(super) fn finish(self) -> Digests {
        Digests {
            md5: self.md5.finalize(),
            checksums: self.checksums.finalize().into(),
            length: self.length,
        }
    }
}

impl Checksums {
    fn each(&self) -> [(&'static str, Option<&str>); 5] {
        [
            ("crc32", self.crc32.as_deref()),
            ("crc32c", self.crc32c.as_deref()),
            ("crc64nvme", self.crc64nvme.as_deref()),
            ("sha1", self.sha1.as_deref()),
            ("sha256", self.sha256.as_deref()),
        ]
    }

    fn of(&self, name: &str) -> Option<&str> {
        let found = self.each().into_iter().find(|(known, _)| *known == name);
        found.and_then(|(_, checksum)| checksum)
    }
}

impl From<dto::Checksum> for Checksums {
    fn from(checksum: dto::Checksum) -> Self {
        Self {
            crc32: checksum.checksum_crc32,
            crc32c: checksum.checksum_crc32c,
            crc64nvme: checksum.checksum_crc64nvme,
            sha1: checksum.checksum_sha1,
            sha256: checksum.checksum_sha256,
        }
    }
}
