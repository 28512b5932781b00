//! `[tls]`: certificates other than the internal CA's.

use super::{ConfigError, is_host_name};
use dormouse_ingress::{AcmeConfig, CertificateFiles};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Where certificates come from besides the internal CA.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct TlsConfig {
    /// For all names below the endpoint domain.
    pub(crate) certificate: Option<CertificateFiles>,
    /// Where a certificate for all names below the endpoint domain is ordered.
    pub(crate) acme: Option<AcmeConfig>,
    /// For custom domains, by name.
    pub(crate) domains: BTreeMap<String, CertificateFiles>,
}

/// The table as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTls {
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    acme: Option<RawAcme>,
    domains: BTreeMap<String, RawPair>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPair {
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawAcme {
    directory_url: Option<String>,
    contact: Vec<String>,
    hook: Option<PathBuf>,
    ca_file: Option<PathBuf>,
}

/// Checks the table. `answers_dns` says whether the daemon's own DNS answerer is on.
pub(super) fn tls(raw: RawTls, answers_dns: bool) -> Result<TlsConfig, ConfigError> {
    let certificate = match (raw.certificate, raw.key) {
        (Some(certificate), Some(key)) => Some(CertificateFiles { certificate, key }),
        (None, None) => None,
        _ => {
            return Err(ConfigError::Value {
                key: "tls",
                problem: "`certificate` and `key` go together".to_owned(),
                remedy: "name both files, or leave both out to use the internal CA",
            });
        }
    };
    if certificate.is_some() && raw.acme.is_some() {
        return Err(ConfigError::Value {
            key: "tls.acme",
            problem: "there is a given certificate already".to_owned(),
            remedy: "leave out either `tls.certificate` or [tls.acme]",
        });
    }
    let domain = |(name, pair): (String, RawPair)| {
        if !is_host_name(&name) {
            return Err(ConfigError::Value {
                key: "tls.domains",
                problem: format!("{name:?} is not a host name"),
                remedy: "write one as in [tls.domains.\"app.example.com\"]",
            });
        }
        let RawPair { certificate, key } = pair;
        Ok((name, CertificateFiles { certificate, key }))
    };
    Ok(TlsConfig {
        certificate,
        acme: raw
            .acme
            .map(|acme| self::acme(acme, answers_dns))
            .transpose()?,
        domains: raw
            .domains
            .into_iter()
            .map(domain)
            .collect::<Result<_, _>>()?,
    })
}

fn acme(raw: RawAcme, answers_dns: bool) -> Result<AcmeConfig, ConfigError> {
    let directory_url = raw.directory_url.unwrap_or_default();
    if !directory_url.starts_with("https://") {
        return Err(ConfigError::Value {
            key: "tls.acme.directory_url",
            problem: format!("{directory_url:?} is not the address of an ACME server"),
            remedy: "write one as in \"https://acme-v02.api.letsencrypt.org/directory\"",
        });
    }
    if raw.hook.is_none() && !answers_dns {
        return Err(ConfigError::Value {
            key: "tls.acme.hook",
            problem: "nothing puts the challenge into DNS".to_owned(),
            remedy: "name the program that does, or turn [dns] on and delegate the domain to it",
        });
    }
    if let Some(contact) = raw.contact.iter().find(|text| !text.starts_with("mailto:")) {
        return Err(ConfigError::Value {
            key: "tls.acme.contact",
            problem: format!("{contact:?} is not a contact"),
            remedy: "write addresses as in [\"mailto:admin@example.com\"]",
        });
    }
    Ok(AcmeConfig {
        directory_url,
        contact: raw.contact,
        hook: raw.hook,
        ca_file: raw.ca_file,
    })
}
