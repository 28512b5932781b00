//! The host's extra CAs in a build: TLS that a company's proxy has opened and closed again verifies in
//! RUN steps, and nothing of it stays in the image unless it shall.

use super::BuildError;
use crate::guest::Guest;
use dormouse_core::guest::ProcessSpec;

/// CAs that builds trust besides the image's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraCas {
    /// Their certificates, as PEM.
    pub pem: String,
    /// Whether the finished image trusts them too.
    pub in_image: bool,
}

/// How programs that do not ask the system's bundle are told of it. All of these name a file.
const VARIABLES: [&str; 9] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
    "BUNDLE_SSL_CA_CERT",
];

/// Lets a process that is about to start trust the CAs. What its environment says already stays.
pub(super) async fn lend(
    guest: Guest<'_>,
    cas: Option<&ExtraCas>,
    process: &mut ProcessSpec,
) -> Result<(), BuildError> {
    let Some(cas) = cas else {
        return Ok(());
    };
    let bundle = guest.lend_trust(&cas.pem).await?.bundle;
    for name in VARIABLES {
        if !process.env.iter().any(|(given, _)| given == name) {
            process.env.push((name.to_owned(), bundle.clone()));
        }
    }
    Ok(())
}

/// Ends what [`lend`] began, before the disk becomes a layer.
pub(super) async fn take_back(guest: Guest<'_>, cas: Option<&ExtraCas>) -> Result<(), BuildError> {
    if cas.is_some() {
        guest.take_trust_back().await?;
    }
    Ok(())
}

/// Gives the finished image the CAs, if it shall have them.
pub(super) async fn keep(guest: Guest<'_>, cas: Option<&ExtraCas>) -> Result<(), BuildError> {
    if let Some(cas) = cas.filter(|cas| cas.in_image) {
        guest.lend_trust(&cas.pem).await?;
    }
    Ok(())
}
