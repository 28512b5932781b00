//! A certificate that somebody else issued: two PEM files, checked before they are served, and followed
//! while the daemon runs.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::digest;
use dormouse_core::limits;
use rustls::InconsistentKeys;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::zeroize::Zeroizing;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

use crate::names::covers;
use crate::resolver::Given;
use dormouse_core::chain;

/// Where a certificate and its key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, and those between it and its root, as PEM.
    pub certificate: PathBuf,
    /// Its private key, as PEM.
    pub key: PathBuf,
}

/// Why the files are not served.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read, or is far too large for what it should be.
    #[error("{path} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{path} holds no {what}")]
    Missing {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        what: &'static str,
    },
    /// The TLS library cannot work with the key.
    #[error("the key in {path} cannot be used")]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rustls::Error,
    },
    /// The key is another certificate's.
    #[error("the key in {key} is not that of the certificate in {certificate}")]
    Mismatch {
        /// The file with the key.
        key: PathBuf,
        /// The file with the certificate.
        certificate: PathBuf,
    },
    /// The certificate is for other names.
    #[error("the certificate in {path} does not cover {name}, but {covered}")]
    Uncovered {
        /// The file.
        path: PathBuf,
        /// What it should cover.
        name: String,
        /// What it covers, with commas between.
        covered: String,
    },
    /// The certificate's time is over or has not come.
    #[error("the certificate in {path} is good from {begin} to {end}, and not now")]
    OutOfDate {
        /// The file.
        path: PathBuf,
        /// The first moment of its validity.
        begin: String,
        /// The last one.
        end: String,
    },
}

/// A certificate that may be served.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) key: Arc<CertifiedKey>,
    /// Seconds of the Unix epoch between which it is good.
    pub(crate) validity_s: (i64, i64),
}

/// Both files, as they are.
pub(crate) struct Content {
    certificate: Zeroizing<Vec<u8>>,
    key: Zeroizing<Vec<u8>>,
}

impl Content {
    /// Certificate and key are in one text.
    pub(crate) fn of_one(text: Zeroizing<Vec<u8>>) -> Self {
        Self {
            certificate: text.clone(),
            key: text,
        }
    }
}

impl CertificateFiles {
    /// Puts what is in the files into `given`, if it is good for that name and time.
    pub fn load(self, given: Arc<Given>) -> Result<Followed, CertificateError> {
        let content = self.read()?;
        let checked = self.check(&content, given.name(), SystemTime::now())?;
        given.put(checked.key);
        let print = fingerprint(&Ok(content));
        Ok(Followed {
            files: self,
            given,
            judged: print,
            untimely: false,
            last: print,
        })
    }

    fn read(&self) -> Result<Content, CertificateError> {
        Ok(Content {
            certificate: Zeroizing::new(read(&self.certificate)?),
            key: Zeroizing::new(read(&self.key)?),
        })
    }

    /// The content of the files, if it is good for `name` at the moment `now`.
    pub(crate) fn check(
        &self,
        content: &Content,
        name: &str,
        now: SystemTime,
    ) -> Result<Checked, CertificateError> {
        let no_certificate = || CertificateError::Missing {
            path: self.certificate.clone(),
            what: "certificate in PEM form",
        };
        let chain = CertificateDer::pem_slice_iter(&content.certificate)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| no_certificate())?;
        let first = chain.first().ok_or_else(no_certificate)?.clone();
        let (_, parsed) = X509Certificate::from_der(&first).map_err(|_| no_certificate())?;
        let key =
            PrivateKeyDer::from_pem_slice(&content.key).map_err(|_| CertificateError::Missing {
                path: self.key.clone(),
                what: "private key in PEM form",
            })?;
        let key = CertifiedKey::from_der(chain, key, &default_provider());
        let key = key.map_err(|error| self.unusable(error))?;
        self.check_names(&parsed, name)?;
        let validity = parsed.validity();
        let begin_and_end = [validity.not_before, validity.not_after];
        let [begin_s, end_s] = begin_and_end.map(|time| time.timestamp());
        if !(begin_s..end_s).contains(&seconds(now)) {
            let [begin, end] = begin_and_end.map(|time: ASN1Time| time.to_string());
            let path = self.certificate.clone();
            return Err(CertificateError::OutOfDate { path, begin, end });
        }
        Ok(Checked {
            key: Arc::new(key),
            validity_s: (begin_s, end_s),
        })
    }

    fn unusable(&self, error: rustls::Error) -> CertificateError {
        match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                CertificateError::Mismatch {
                    key: self.key.clone(),
                    certificate: self.certificate.clone(),
                }
            }
            source => CertificateError::Key {
                path: self.key.clone(),
                source,
            },
        }
    }

    fn check_names(
        &self,
        certificate: &X509Certificate<'_>,
        name: &str,
    ) -> Result<(), CertificateError> {
        let extension = certificate.subject_alternative_name().ok().flatten();
        let all = extension.map_or(&[][..], |extension| &extension.value.general_names);
        let dns = all.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        });
        let names: Vec<String> = dns.collect();
        if names.iter().any(|pattern| covers(pattern, name)) {
            return Ok(());
        }
        let covered = match names.is_empty() {
            true => "no name at all".to_owned(),
            false => names.join(", "),
        };
        Err(CertificateError::Uncovered {
            path: self.certificate.clone(),
            name: name.to_owned(),
            covered,
        })
    }
}

/// A pair of files that is served, and what it was when it was last looked at.
#[derive(Debug)]
pub struct Followed {
    files: CertificateFiles,
    given: Arc<Given>,
    /// What was last taken up or found to be of no use.
    judged: Fingerprint,
    /// Whether all that was wrong with that is its time, which may come.
    untimely: bool,
    last: Fingerprint,
}

impl Followed {
    /// Looks at the files every few seconds until `stop`. New ones are served as soon as they have been
    /// the same at two looks: certificate and key are seldom replaced in one moment. While what is there
    /// is of no use, the last pair that was keeps its place; one whose time has not come is looked at again.
    pub async fn follow(mut self, stop: CancellationToken) {
        let mut ticks = interval(limits::CERTIFICATE_CHECK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let looked = spawn_blocking(move || {
                let news = self.look(SystemTime::now());
                (self, news)
            });
            let news;
            (self, news) = looked.await.expect("reading a file does not panic");
            let certificate = self.files.certificate.display();
            match news {
                None => {}
                Some(Ok(())) => tracing::info!(%certificate, "a new certificate is served"),
                Some(Err(error)) => {
                    let error = chain(&error);
                    tracing::warn!(%certificate, error, "a new certificate is of no use; the last one stays");
                }
            }
        }
    }

    /// Takes up what has changed, once it has settled; says how that went.
    fn look(&mut self, now: SystemTime) -> Option<Result<(), CertificateError>> {
        let content = self.files.read();
        let print = fingerprint(&content);
        let settled = print == self.last;
        self.last = print;
        let is_known = print == self.judged;
        if !settled || (is_known && !self.untimely) {
            return None;
        }
        self.judged = print;
        let name = self.given.name();
        let checked = content.and_then(|content| self.files.check(&content, name, now));
        self.untimely = matches!(checked, Err(CertificateError::OutOfDate { .. }));
        if is_known && self.untimely {
            // It has been told.
            return None;
        }
        Some(checked.map(|checked| self.given.put(checked.key)))
    }
}

/// Tells one content of the files from another; none of files that cannot be read.
type Fingerprint = Option<[u8; 32]>;

fn fingerprint(content: &Result<Content, CertificateError>) -> Fingerprint {
    let content = content.as_ref().ok()?;
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(&content.certificate.len().to_le_bytes());
    hash.update(&content.certificate);
    hash.update(&content.key);
    hash.finish().as_ref().try_into().ok()
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    let most = limits::CERTIFICATE_BYTES_MAX;
    let read = File::open(path).and_then(|file| {
        let mut bytes = Vec::new();
        file.take(most + 1).read_to_end(&mut bytes)?;
        match bytes.len() as u64 > most {
            true => Err(io::ErrorKind::FileTooLarge.into()),
            false => Ok(bytes),
        }
    });
    read.map_err(|source| CertificateError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Seconds of the Unix epoch.
pub(crate) fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};
    use std::fs;
    use std::time::Duration;

    const NAME: &str = "*.vm.example.com";

    struct Bench {
        folder: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("folder");
            Self { folder }
        }

        fn files(&self) -> CertificateFiles {
            CertificateFiles {
                certificate: self.folder.path().join("tls.pem"),
                key: self.folder.path().join("tls.key"),
            }
        }

        /// Writes a new pair for `name` and returns the key as PEM.
        fn write(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> String {
            let key = KeyPair::generate().expect("key");
            let mut params = CertificateParams::new([name.to_owned()]).expect("name");
            change(&mut params);
            let certificate = params.self_signed(&key).expect("certificate");
            let files = self.files();
            fs::write(files.certificate, certificate.pem()).expect("write");
            fs::write(files.key, key.serialize_pem()).expect("write");
            key.serialize_pem()
        }

        fn refusal(&self) -> String {
            let error = self.files().load(Given::new(NAME)).expect_err("refused");
            error.to_string()
        }
    }

    #[test]
    fn a_pair_that_is_of_no_use_is_refused_with_the_file_and_what_is_wrong() {
        let bench = Bench::new();
        assert!(bench.refusal().contains("tls.pem cannot be read"));
        let key = bench.write(NAME, |_| {});
        bench.files().load(Given::new(NAME)).expect("a good pair");

        bench.write(NAME, |_| {});
        fs::write(bench.files().key, key).expect("write");
        assert!(
            bench.refusal().contains("tls.key is not that of"),
            "{}",
            bench.refusal()
        );
        bench.write("vm.example.com", |_| {});
        let refusal = bench.refusal();
        assert!(
            refusal.ends_with("does not cover *.vm.example.com, but vm.example.com"),
            "{refusal}"
        );
        bench.write(NAME, |params| {
            params.not_after = rcgen::date_time_ymd(2001, 1, 1)
        });
        assert!(
            bench.refusal().contains("and not now"),
            "{}",
            bench.refusal()
        );
        bench.write(NAME, |params| {
            params.not_before = rcgen::date_time_ymd(2999, 1, 1)
        });
        assert!(
            bench.refusal().contains("and not now"),
            "{}",
            bench.refusal()
        );
        bench.write(NAME, |_| {});
        fs::write(bench.files().key, "no key").expect("write");
        assert!(bench.refusal().contains("tls.key holds no private key"));
        fs::write(bench.files().certificate, "").expect("write");
        assert!(bench.refusal().contains("tls.pem holds no certificate"));
        fs::write(bench.files().key, vec![b'x'; 2 << 20]).expect("write");
        assert!(bench.refusal().contains("tls.key cannot be read"));
    }

    #[test]
    fn a_certificate_for_a_custom_domain_may_be_a_wildcard() {
        let bench = Bench::new();
        bench.write("*.example.org", |_| {});
        bench
            .files()
            .load(Given::new("app.example.org"))
            .expect("covered");
        bench
            .files()
            .load(Given::new("a.b.example.org"))
            .expect_err("one label too many");
    }

    #[test]
    fn a_new_pair_is_taken_up_once_it_has_settled_and_a_broken_one_is_told_once() {
        let bench = Bench::new();
        let now = SystemTime::now();
        let key = bench.write(NAME, |_| {});
        let mut followed = bench.files().load(Given::new(NAME)).expect("a good pair");
        assert!(followed.look(now).is_none());

        bench.write(NAME, |_| {});
        assert!(followed.look(now).is_none(), "not settled");
        followed.look(now).expect("news").expect("good");
        assert!(followed.look(now).is_none());

        fs::write(bench.files().key, &key).expect("write");
        assert!(followed.look(now).is_none(), "not settled");
        followed.look(now).expect("news").expect_err("mismatch");
        fs::remove_file(bench.files().key).expect("remove");
        assert!(followed.look(now).is_none(), "not settled");
        followed.look(now).expect("news").expect_err("gone");
        assert!(followed.look(now).is_none());

        bench.write(NAME, |_| {});
        let much_later = now + Duration::from_secs(1 << 40);
        assert!(followed.look(much_later).is_none(), "not settled");
        followed
            .look(much_later)
            .expect("news")
            .expect_err("expired");
    }

    #[test]
    fn a_new_pair_whose_time_has_not_come_is_told_once_and_taken_up_when_it_has() {
        let bench = Bench::new();
        bench.write(NAME, |_| {});
        let mut followed = bench.files().load(Given::new(NAME)).expect("a good pair");
        bench.write(NAME, |params| {
            params.not_before = rcgen::date_time_ymd(2999, 1, 1);
        });
        let now = SystemTime::now();
        assert!(followed.look(now).is_none(), "not settled");
        followed.look(now).expect("news").expect_err("early");
        assert!(followed.look(now).is_none(), "told");
        let in_time = now + Duration::from_secs(1000 * 366 * 24 * 3600);
        followed.look(in_time).expect("news").expect("good");
        assert!(followed.look(in_time).is_none());
    }
}
