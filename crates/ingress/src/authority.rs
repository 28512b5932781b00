//! The internal certificate authority: one CA per installation, and the endpoints' wildcard
//! certificate, which it issues and renews by itself.
//!
//! Only the CA is kept on disk, its key sealed. The wildcard's key lives in memory: each start issues a new one,
//! and a process that runs on issues the next long before the last expires.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use dormouse_secrets::{Sealer, SecretError, file};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivatePkcs8KeyDer;
use secrecy::zeroize::Zeroizing;
use uuid::Uuid;

use crate::names::Domains;
use crate::resolver::Certificates;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long a CA is valid.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long a wildcard certificate is valid: clients accept 398 days at most.
const LEAF_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// Age at which a wildcard certificate gives way to the next.
const LEAF_RENEWAL: Duration = Duration::from_secs(30 * 24 * 3600);
/// A client whose clock is behind by this much still accepts a new certificate.
const CLOCK_SKEW: Duration = DAY;

/// What the CA's key is sealed as.
const PURPOSE: &str = "ca-key";

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The CA's key cannot be read, opened or written.
    #[error("the CA's key")]
    Key(#[from] SecretError),
    /// The CA's certificate cannot be read.
    #[error("the CA cannot be read from {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The CA's certificate cannot be written.
    #[error("the CA cannot be written to {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The certificate is there and its key is not. Clients trust that certificate, so it is not
    /// replaced without being asked.
    #[error("the CA's key is missing: restore {key}, or remove {certificate} for a new CA")]
    KeyMissing {
        /// Where the key should be.
        key: PathBuf,
        /// The certificate that is there.
        certificate: PathBuf,
    },
    /// A file of the CA does not hold what it should.
    #[error("{path} is not usable")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rcgen::Error,
    },
    /// A certificate could not be made, for instance for a name that is none.
    #[error("the certificate could not be issued")]
    Issue(#[source] rcgen::Error),
    /// The TLS library refuses what was issued.
    #[error("the certificate cannot be served")]
    Serve(#[source] rustls::Error),
}

/// The CA of this installation.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
}

impl Authority {
    /// Reads `ca.pem` and `ca.key` from `folder`, or makes a CA and puts both there, the key sealed.
    pub fn load_or_create(folder: &Path, sealer: &Sealer) -> Result<Self, AuthorityError> {
        let (pem_path, key_path) = (folder.join("ca.pem"), folder.join("ca.key"));
        sealer.adopt(PURPOSE, &key_path)?;
        let (certificate, key) = (read(&pem_path)?, sealer.read(PURPOSE, &key_path)?);
        let key = match (key, &certificate) {
            (Some(text), _) => {
                let text = str::from_utf8(&text).unwrap_or_default();
                KeyPair::from_pem(text).map_err(|source| AuthorityError::Malformed {
                    path: key_path,
                    source,
                })?
            }
            (None, None) => create_key(&key_path, sealer)?,
            (None, Some(_)) => {
                return Err(AuthorityError::KeyMissing {
                    key: key_path,
                    certificate: pem_path,
                });
            }
        };
        let certificate_pem = match certificate {
            Some(text) => text,
            None => create_certificate(&pem_path, &key)?,
        };
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key).map_err(|source| {
            AuthorityError::Malformed {
                path: pem_path,
                source,
            }
        })?;
        Ok(Self {
            issuer,
            certificate_pem,
        })
    }

    /// The CA's certificate: what a client must trust.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// TLS with this CA's certificates alone, for everything directly below `suffix`, for `suffix`
    /// itself and for `extra` host names and IP addresses.
    pub fn server_config(
        self: &Arc<Self>,
        suffix: &str,
        extra: &[String],
    ) -> Result<rustls::ServerConfig, AuthorityError> {
        let mut names = vec![format!("*.{suffix}"), suffix.to_owned()];
        names.extend_from_slice(extra);
        let domains = Arc::new(Domains::default());
        Certificates::new(Arc::clone(self), names, Vec::new(), domains)?.server_config()
    }

    /// A new key and a certificate for `names`, valid from now.
    pub(crate) fn issue(
        &self,
        names: &[String],
        now: SystemTime,
    ) -> Result<CertifiedKey, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::Issue)?;
        let mut params = CertificateParams::new(names).map_err(AuthorityError::Issue)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "Dormouse endpoints");
        set_validity(&mut params, now, LEAF_LIFE);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(AuthorityError::Issue)?;
        let signing_key = aws_lc_rs::default_provider()
            .key_provider
            .load_private_key(PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .map_err(AuthorityError::Serve)?;
        Ok(CertifiedKey::new(
            vec![certificate.der().clone()],
            signing_key,
        ))
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("certificate_pem", &self.certificate_pem)
            .finish_non_exhaustive()
    }
}

/// The current certificate for some names, and the next one when its time has come.
pub(crate) struct Leaves {
    authority: Arc<Authority>,
    names: Vec<String>,
    current: RwLock<Leaf>,
}

#[derive(Clone)]
struct Leaf {
    key: Arc<CertifiedKey>,
    /// Until its successor is due. Before, the clock has been set back, and clients may not accept it yet.
    served: Range<SystemTime>,
}

impl Leaves {
    pub(crate) fn new(
        authority: Arc<Authority>,
        names: Vec<String>,
    ) -> Result<Self, AuthorityError> {
        let now = SystemTime::now();
        let leaf = Leaf {
            key: Arc::new(authority.issue(&names, now)?),
            served: now..now + LEAF_RENEWAL,
        };
        Ok(Self {
            authority,
            names,
            current: RwLock::new(leaf),
        })
    }

    pub(crate) fn at(&self, now: SystemTime) -> Arc<CertifiedKey> {
        let leaf = self
            .current
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone();
        if leaf.served.contains(&now) {
            return leaf.key;
        }
        // Connections that meet here at the same moment each issue one; the last stays.
        let (key, life) = match self.authority.issue(&self.names, now) {
            Ok(key) => (Arc::new(key), LEAF_RENEWAL),
            Err(error) => {
                tracing::error!(%error, "the endpoint certificate was not renewed");
                (leaf.key, DAY)
            }
        };
        let mut current = self
            .current
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        *current = Leaf {
            key: Arc::clone(&key),
            served: now..now + life,
        };
        key
    }
}

impl fmt::Debug for Leaves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaves")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

fn read(path: &Path) -> Result<Option<String>, AuthorityError> {
    let read = file::read(path).map_err(|source| AuthorityError::Read {
        path: path.to_owned(),
        source,
    })?;
    // What is no text is no certificate either, and the parser says so.
    Ok(read.map(|bytes| String::from_utf8(bytes).unwrap_or_default()))
}

fn create_key(path: &Path, sealer: &Sealer) -> Result<KeyPair, AuthorityError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::Issue)?;
    let text = Zeroizing::new(key.serialize_pem());
    sealer.write(PURPOSE, path, text.as_bytes())?;
    Ok(key)
}

fn create_certificate(path: &Path, key: &KeyPair) -> Result<String, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    // A client may know the CAs of several installations: each has its own name.
    let name = format!("Dormouse CA {}", &Uuid::new_v4().simple().to_string()[..8]);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, SystemTime::now(), CA_LIFE);
    let certificate = params.self_signed(key).map_err(AuthorityError::Issue)?;
    let pem = certificate.pem();
    file::replace(path, 0o644, pem.as_bytes()).map_err(|source| AuthorityError::Write {
        path: path.to_owned(),
        source,
    })?;
    Ok(pem)
}

fn set_validity(params: &mut CertificateParams, now: SystemTime, life: Duration) {
    let since_epoch = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let start = rcgen::date_time_ymd(1970, 1, 1) + since_epoch.saturating_sub(CLOCK_SKEW);
    params.not_before = start;
    params.not_after = start + life;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A folder, and what seals the key in it.
    struct Bench {
        folder: tempfile::TempDir,
        sealer: Sealer,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                folder: tempfile::tempdir().expect("folder"),
                sealer: Sealer::random(),
            }
        }

        fn load(&self) -> Result<Authority, AuthorityError> {
            Authority::load_or_create(self.folder.path(), &self.sealer)
        }

        fn authority(&self) -> Arc<Authority> {
            Arc::new(self.load().expect("CA"))
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }
    }

    #[test]
    fn a_ca_is_made_once_and_its_key_is_private() {
        let bench = Bench::new();
        let first = bench.authority();
        let second = bench.authority();
        assert_eq!(first.certificate_pem(), second.certificate_pem());
        let mode = |name: &str| {
            let metadata = std::fs::metadata(bench.path(name)).expect("file");
            metadata.permissions().mode() & 0o777
        };
        assert_eq!((mode("ca.key"), mode("ca.pem")), (0o600, 0o644));
        assert!(!format!("{first:?}").contains("PRIVATE"));
    }

    #[test]
    fn the_plain_key_of_an_earlier_version_is_sealed_and_stays() {
        let bench = Bench::new();
        let pem = bench.authority().certificate_pem().to_owned();
        let path = bench.path("ca.key");
        let plain = bench
            .sealer
            .read(PURPOSE, &path)
            .expect("read")
            .expect("key");
        std::fs::write(&path, &plain).expect("write");
        assert_eq!(bench.authority().certificate_pem(), pem);
        let stored = std::fs::read(&path).expect("read");
        assert!(dormouse_secrets::is_sealed(&stored));
        assert_eq!(
            bench.sealer.read(PURPOSE, &path).expect("read"),
            Some(plain)
        );
    }

    #[test]
    fn a_ca_that_lost_its_key_is_not_replaced() {
        let bench = Bench::new();
        let pem = bench.authority().certificate_pem().to_owned();
        std::fs::remove_file(bench.path("ca.key")).expect("remove");
        let error = bench.load().expect_err("no key");
        assert!(matches!(error, AuthorityError::KeyMissing { .. }));
        let kept = std::fs::read_to_string(bench.path("ca.pem")).expect("read");
        assert_eq!(kept, pem);
    }

    #[test]
    fn a_crash_between_the_key_and_the_certificate_is_made_good() {
        let bench = Bench::new();
        bench.authority();
        std::fs::remove_file(bench.path("ca.pem")).expect("remove");
        bench.authority();
    }

    #[test]
    fn a_broken_file_is_named() {
        let bench = Bench::new();
        bench.authority();
        std::fs::write(bench.path("ca.key"), "nonsense").expect("write");
        let error = bench.load().expect_err("broken");
        assert!(error.to_string().contains("ca.key"), "{error}");
    }

    #[test]
    fn the_wildcard_is_renewed_before_it_expires() {
        let bench = Bench::new();
        let names = vec!["*.vm.localhost".to_owned()];
        let leaves = Leaves::new(bench.authority(), names).expect("leaf");
        let now = SystemTime::now();
        let der = |at| leaves.at(at).cert[0].clone();
        let first = der(now);
        assert_eq!(first, der(now + LEAF_RENEWAL - DAY));
        let second = der(now + LEAF_RENEWAL + DAY);
        assert_ne!(first, second);
        assert_eq!(second, der(now + LEAF_RENEWAL + 2 * DAY));
        assert!(LEAF_RENEWAL < LEAF_LIFE - CLOCK_SKEW);
    }

    #[test]
    fn a_wildcard_made_while_the_clock_was_ahead_gives_way_when_it_is_set_back() {
        let bench = Bench::new();
        let names = vec!["*.vm.localhost".to_owned()];
        let leaves = Leaves::new(bench.authority(), names).expect("leaf");
        let der = |at| leaves.at(at).cert[0].clone();
        let now = SystemTime::now();
        let ahead = der(now + 2 * LEAF_LIFE);
        let second = der(now);
        assert_ne!(ahead, second);
        assert_eq!(second, der(now + DAY));
    }

    #[test]
    fn a_name_that_is_none_is_an_error() {
        let bench = Bench::new();
        let error = bench
            .authority()
            .server_config("vm.localhost", &["bücher".to_owned()])
            .expect_err("not ASCII");
        assert!(matches!(error, AuthorityError::Issue(_)));
    }
}
