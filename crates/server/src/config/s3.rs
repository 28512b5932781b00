//! `[s3]`: where `s3://` artifacts are read from.

use super::ConfigError;
use dormouse_core::AccountId;
use secrecy::SecretString;
use serde::Deserialize;
use std::collections::BTreeMap;

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
    /// Whose a bucket is: its objects are artifacts of this account's images alone.
    pub(crate) buckets: BTreeMap<String, AccountId>,
    /// Whose all other buckets are.
    pub(crate) account: AccountId,
}

impl OutsideS3 {
    /// The account that may build from this bucket. The key reads on behalf of all accounts, so the other S3 cannot
    /// tell.
    pub(crate) fn owner(&self, bucket: &str) -> &AccountId {
        self.buckets.get(bucket).unwrap_or(&self.account)
    }
}

/// `[s3]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawS3 {
    endpoint: Option<String>,
    region: Option<String>,
    access_key_id: Option<String>,
    secret_access_key: Option<SecretString>,
    /// Accounts by bucket.
    buckets: BTreeMap<String, String>,
}

/// Checks `[s3]`; the other S3 is in the daemon's region unless it says otherwise, and its buckets are the daemon's own
/// account's.
pub(super) fn s3(
    raw: Option<RawS3>,
    region: &str,
    account: &AccountId,
) -> Result<S3Source, ConfigError> {
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
            buckets: buckets(raw.buckets)?,
            account: account.clone(),
        })),
        _ => Err(ConfigError::Value {
            key: "s3",
            problem: "an outside S3 needs a key".to_owned(),
            remedy: "set access_key_id and secret_access_key, or leave [s3] out to use the embedded one",
        }),
    }
}

fn buckets(raw: BTreeMap<String, String>) -> Result<BTreeMap<String, AccountId>, ConfigError> {
    let owned = raw.into_iter().map(|(bucket, account)| {
        let account = AccountId::parse(&account).ok_or_else(|| ConfigError::Value {
            key: "s3.buckets",
            problem: format!("{account:?}, whose {bucket} is to be, is no account number"),
            remedy: "write a bucket and an account, as in \"code\" = \"123456789012\"",
        })?;
        Ok((bucket, account))
    });
    owned.collect()
}
