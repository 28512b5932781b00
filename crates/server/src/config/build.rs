//! `[build]`: what image builds reach the outside world by, and what their cache may take.

use super::ConfigError;
use dormouse_core::{AccountId, limits};
use dormouse_node::build::{BuildSecrets, ExtraCas};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How builds go.
#[derive(Clone, Default)]
pub(crate) struct BuildConfig {
    /// Bytes of layers that nothing lies over that the cache keeps; none for a part of its file system.
    pub(crate) cache_max_bytes: Option<u64>,
    /// Build arguments that every build has: the proxies, under all names that programs look for.
    pub(crate) args: BTreeMap<String, String>,
    /// CAs that RUN steps trust besides the image's own.
    pub(crate) extra_cas: Option<Arc<ExtraCas>>,
    /// What RUN steps may mount as secrets, by account: nothing crosses from one to another.
    pub(crate) secrets: BTreeMap<AccountId, BuildSecrets>,
}

/// A proxy's address may hold a password.
impl fmt::Debug for BuildConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BuildConfig")
            .field("cache_max_bytes", &self.cache_max_bytes)
            .field("args", &self.args.keys())
            .field("extra_cas", &self.extra_cas.is_some())
            .field("secrets", &self.secrets)
            .finish()
    }
}

/// `[build]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawBuild {
    pub(super) concurrency: Option<usize>,
    cache_max_bytes: Option<u64>,
    pub(super) extra_ca_file: Option<PathBuf>,
    extra_ca_in_image: bool,
    http_proxy: Option<String>,
    https_proxy: Option<String>,
    no_proxy: Option<String>,
    /// Files of secrets by their id, by account.
    secrets: BTreeMap<String, BTreeMap<String, PathBuf>>,
}

impl BuildConfig {
    pub(super) fn new(raw: &RawBuild) -> Result<Self, ConfigError> {
        let mut args = BTreeMap::new();
        for (key, name, value) in [
            ("build.http_proxy", "http_proxy", &raw.http_proxy),
            ("build.https_proxy", "https_proxy", &raw.https_proxy),
            ("build.no_proxy", "no_proxy", &raw.no_proxy),
        ] {
            let Some(value) = value.as_deref().filter(|value| !value.is_empty()) else {
                continue;
            };
            if value.chars().any(|c| c.is_control() || c.is_whitespace()) {
                return Err(ConfigError::Value {
                    key,
                    // The value stays unsaid: it may hold a password.
                    problem: "it has white space or control characters".to_owned(),
                    remedy: "write an address as in \"http://proxy.example.com:3128\", or names with commas between them",
                });
            }
            args.insert(name.to_owned(), value.to_owned());
            args.insert(name.to_ascii_uppercase(), value.to_owned());
        }
        let extra_cas = raw.extra_ca_file.as_deref().map(|file| {
            let pem = certificates(file)?;
            let in_image = raw.extra_ca_in_image;
            Ok(Arc::new(ExtraCas { pem, in_image }))
        });
        Ok(Self {
            cache_max_bytes: raw.cache_max_bytes,
            args,
            extra_cas: extra_cas.transpose()?,
            secrets: secrets(&raw.secrets)?,
        })
    }
}

/// Reads the secrets of all accounts.
fn secrets(
    raw: &BTreeMap<String, BTreeMap<String, PathBuf>>,
) -> Result<BTreeMap<AccountId, BuildSecrets>, ConfigError> {
    let refuse = |problem: String| ConfigError::Value {
        key: "build.secrets",
        problem,
        remedy: "write a table for each account, as in [build.secrets.123456789012], of ids and files",
    };
    let max = limits::BUILD_SECRET_BYTES_MAX;
    let mut accounts = BTreeMap::new();
    for (account, files) in raw {
        let bad = || refuse(format!("{account} is no account number"));
        let account = AccountId::parse(account).ok_or_else(bad)?;
        let mut secrets = BuildSecrets::default();
        for (id, file) in files {
            let mut bytes = Vec::new();
            std::fs::File::open(file)
                .and_then(|file| file.take(max as u64 + 1).read_to_end(&mut bytes))
                .map_err(|error| refuse(format!("cannot read {}: {error}", file.display())))?;
            if bytes.len() > max {
                let problem = format!("{} is larger than {max} bytes", file.display());
                return Err(refuse(problem));
            }
            secrets.0.insert(id.clone(), bytes);
        }
        accounts.insert(account, secrets);
    }
    Ok(accounts)
}

/// The file's text, which must be certificates and nothing else: it goes into images' build VMs.
fn certificates(file: &Path) -> Result<String, ConfigError> {
    let refuse = |problem: String| ConfigError::Value {
        key: "build.extra_ca_file",
        problem,
        remedy: "name a file of CA certificates as PEM",
    };
    let max = limits::EXTRA_CA_BYTES_MAX;
    let mut text = String::new();
    let read = std::fs::File::open(file)
        .and_then(|file| file.take(max as u64 + 1).read_to_string(&mut text));
    read.map_err(|error| refuse(format!("cannot read {}: {error}", file.display())))?;
    if text.len() > max {
        return Err(refuse(format!(
            "{} is larger than {max} bytes",
            file.display()
        )));
    }
    let mut found = 0;
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        certificate.map_err(|_| refuse(format!("{} is not PEM", file.display())))?;
        found += 1;
    }
    if found == 0 || text.contains("PRIVATE KEY") {
        let what = if found == 0 {
            "no certificate"
        } else {
            "a private key"
        };
        return Err(refuse(format!("{} holds {what}", file.display())));
    }
    Ok(text)
}

/// Checks `build.concurrency`.
pub(super) fn at_once(number: Option<usize>) -> Result<usize, ConfigError> {
    match number.unwrap_or(limits::BUILDS_AT_ONCE) {
        number @ 1..=limits::BUILDS_AT_ONCE_MAX => Ok(number),
        number => Err(ConfigError::Value {
            key: "build.concurrency",
            problem: format!("{number} builds at once make no sense"),
            remedy: "write a number from 1 to 64",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.self_signed(&key).unwrap().pem()
    }

    fn with_file(content: &str) -> Result<BuildConfig, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        std::fs::write(&file, content).unwrap();
        BuildConfig::new(&RawBuild {
            extra_ca_file: Some(file),
            ..RawBuild::default()
        })
    }

    #[test]
    fn a_proxy_is_known_by_both_spellings_and_its_password_is_not_shown() {
        let config = BuildConfig::new(&RawBuild {
            https_proxy: Some("http://me:hush@proxy:3128".to_owned()),
            no_proxy: Some("a,b".to_owned()),
            http_proxy: Some(String::new()),
            ..RawBuild::default()
        });
        let config = config.unwrap();
        let names: Vec<&str> = config.args.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            ["HTTPS_PROXY", "NO_PROXY", "https_proxy", "no_proxy"]
        );
        assert!(!format!("{config:?}").contains("hush"));
        let bad = BuildConfig::new(&RawBuild {
            http_proxy: Some("http://me:hush@proxy \n".to_owned()),
            ..RawBuild::default()
        });
        assert!(!bad.unwrap_err().to_string().contains("hush"));
    }

    #[test]
    fn secrets_are_an_accounts_own_and_are_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "hush").unwrap();
        let config = |account: &str, file: PathBuf| {
            let files = BTreeMap::from([("npm".to_owned(), file)]);
            BuildConfig::new(&RawBuild {
                secrets: BTreeMap::from([(account.to_owned(), files)]),
                ..RawBuild::default()
            })
        };
        let good = config("123456789012", file.clone()).unwrap();
        let account = AccountId::parse("123456789012").unwrap();
        assert_eq!(good.secrets[&account].0["npm"], b"hush");
        let shown = format!("{good:?}");
        assert!(shown.contains("npm") && !shown.contains("104") && !shown.contains("hush"));
        config("me", file).unwrap_err();
        config("123456789012", dir.path().join("none")).unwrap_err();
    }

    #[test]
    fn only_certificates_are_taken_for_cas() {
        let pem = certificate();
        let config = with_file(&format!("# a note\n{pem}")).unwrap();
        assert!(config.extra_cas.unwrap().pem.contains(&pem));
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        for bad in [
            String::new(),
            "text".to_owned(),
            key.clone(),
            format!("{pem}{key}"),
        ] {
            with_file(&bad).unwrap_err();
        }
        with_file(&"x".repeat(limits::EXTRA_CA_BYTES_MAX + 1)).unwrap_err();
    }
}
