//! `[s3]`: where `s3://` artifacts are read from.

use super::ConfigError;
use secrecy::SecretString;
use serde::Deserialize;

/// Where `s3://` artifacts are read from.
#[derive(Debug, Clone)]
pub(crate) enum S3Source {
    /// The S3 in this daemon.
    Embedded,
    /// Another S3.
    Outside(OutsideS3),
}

/// Another S3 than the daemon's own.
#[derive(Debug, Clone)]
pub(crate) struct OutsideS3 {
    /// `https://host[:port]`; none for AWS itself.
    pub(crate) endpoint: Option<String>,
    /// Its region.
    pub(crate) region: String,
    /// Access key and secret.
    pub(crate) access_key: (String, SecretString),
}

/// `[s3]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawS3 {
    endpoint: Option<String>,
    region: Option<String>,
    access_key_id: Option<String>,
    secret_access_key: Option<SecretString>,
}

/// Checks `[s3]`; the other S3 is in the daemon's region unless it says otherwise.
pub(super) fn s3(raw: Option<RawS3>, region: &str) -> Result<S3Source, ConfigError> {
    let Some(raw) = raw else {
        return Ok(S3Source::Embedded);
    };
    if let Some(endpoint) = &raw.endpoint {
        let authority = ["http://", "https://"]
            .iter()
            .find_map(|scheme| endpoint.strip_prefix(scheme));
        if !authority.is_some_and(|rest| !rest.is_empty() && !rest.contains(['@', '?', '#'])) {
            return Err(ConfigError::Value {
                key: "s3.endpoint",
                problem: format!("{endpoint:?} is not an address"),
                remedy: "write one as in \"https://s3.example.com\"",
            });
        }
    }
    match (raw.access_key_id, raw.secret_access_key) {
        (Some(id), Some(secret)) => Ok(S3Source::Outside(OutsideS3 {
            endpoint: raw.endpoint,
            region: raw.region.unwrap_or_else(|| region.to_owned()),
            access_key: (id, secret),
        })),
        _ => Err(ConfigError::Value {
            key: "s3",
            problem: "an outside S3 needs a key".to_owned(),
            remedy: "set access_key_id and secret_access_key, or leave [s3] out to use the embedded one",
        }),
    }
}
