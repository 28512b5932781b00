//! AWS Signature Version 4 in the Authorization header: verification, and signing on the same
//! canonical form, so that the two cannot differ.
//!
//! S3 follows other rules about paths and is not served by this module.

mod authorization;
mod canonical;

pub use authorization::Authorization;

use crate::error::{ApiError, ErrorCode};
use aws_lc_rs::hmac;
use canonical::{CONTENT_SHA256, UNSIGNED_PAYLOAD, canonical_request, sha256_hex};
use http::header::{
    AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, HeaderValue, InvalidHeaderValue,
};
use http::request::Parts;
use jiff::tz::TimeZone;
use jiff::{Timestamp, civil};
use secrecy::{ExposeSecret, SecretString};
use std::fmt;
use std::time::Duration;
use subtle::ConstantTimeEq;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const TERMINATOR: &str = "aws4_request";
const X_AMZ_DATE: HeaderName = HeaderName::from_static("x-amz-date");
const DATE_FORMAT: &str = "%Y%m%dT%H%M%SZ";

/// Whose key signed a request, proven.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AccessKeyId(String);

impl AccessKeyId {
    /// The identifier as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AccessKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a signature is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope<'a> {
    /// As in `us-east-1`.
    pub region: &'a str,
    /// `lambda` for everything in this crate.
    pub service: &'a str,
}

/// Why a request's signature is refused. The texts are AWS's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SigV4Error {
    /// There is no Authorization header.
    #[error("Missing Authentication Token")]
    Missing,
    /// There is one, but no whole signature in it.
    #[error("{0}")]
    Incomplete(&'static str),
    /// Nobody has this access key.
    #[error("The security token included in the request is invalid.")]
    UnknownKey,
    /// The signature is for another region.
    #[error("Credential should be scoped to a valid region.")]
    WrongRegion,
    /// The signature is for another service.
    #[error("Credential should be scoped to correct service: '{expected}'.")]
    WrongService {
        /// The one that it should be for.
        expected: String,
    },
    /// The credential's day is not the day of signing.
    #[error(
        "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{credential}' != '{signed}'."
    )]
    WrongDate {
        /// The day in the credential.
        credential: String,
        /// The day of signing.
        signed: String,
    },
    /// It was signed too long ago.
    #[error("Signature expired: {signed} is now earlier than {earliest} ({now} - {minutes} min.)")]
    Expired {
        /// When it was signed.
        signed: String,
        /// When it would have had to be.
        earliest: String,
        /// The server's time.
        now: String,
        /// The greatest age, in minutes.
        minutes: u64,
    },
    /// It was signed too far in the future.
    #[error(
        "Signature not yet current: {signed} is still later than {latest} ({now} + {minutes} min.)"
    )]
    NotYetCurrent {
        /// When it was signed.
        signed: String,
        /// When it would have had to be.
        latest: String,
        /// The server's time.
        now: String,
        /// The greatest lead, in minutes.
        minutes: u64,
    },
    /// The signature is not of this request under this key.
    #[error(
        "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details."
    )]
    Mismatch,
}

impl From<SigV4Error> for ApiError {
    fn from(error: SigV4Error) -> Self {
        let code = match error {
            SigV4Error::Missing => ErrorCode::MissingAuthenticationToken,
            SigV4Error::Incomplete(_) => ErrorCode::IncompleteSignature,
            SigV4Error::UnknownKey => ErrorCode::UnrecognizedClient,
            SigV4Error::WrongRegion
            | SigV4Error::WrongService { .. }
            | SigV4Error::WrongDate { .. }
            | SigV4Error::Expired { .. }
            | SigV4Error::NotYetCurrent { .. }
            | SigV4Error::Mismatch => ErrorCode::InvalidSignature,
        };
        Self::new(code, error.to_string())
    }
}

/// Proves that the holder of a key signed this request for `scope`, at most `skew` from `now`.
/// `lookup` gives the secret of an access key.
///
/// # Errors
/// [`SigV4Error`], which turns into AWS's error for the client.
pub fn verify(
    parts: &Parts,
    body: &[u8],
    scope: Scope<'_>,
    now: Timestamp,
    skew: Duration,
    lookup: impl FnOnce(&str) -> Option<SecretString>,
) -> Result<AccessKeyId, SigV4Error> {
    let header = parts
        .headers
        .get(AUTHORIZATION)
        .ok_or(SigV4Error::Missing)?;
    let header = header
        .to_str()
        .map_err(|_| SigV4Error::Incomplete("Authorization header must be ASCII."))?;
    let authorization = Authorization::parse(header)?;
    let secret = lookup(authorization.access_key_id).ok_or(SigV4Error::UnknownKey)?;
    check_scope(&authorization, scope)?;
    let date = signed_date(parts)?;
    check_age(date, &authorization, now, skew)?;

    let payload_hash = payload_hash(parts, body)?;
    let canonical = canonical_request(parts, &authorization.signed_headers, &payload_hash);
    let signature = signature(&secret, date, scope, &canonical);
    if bool::from(signature.as_ref().ct_eq(&authorization.signature)) {
        Ok(AccessKeyId(authorization.access_key_id.to_owned()))
    } else {
        Err(SigV4Error::Mismatch)
    }
}

fn check_scope(authorization: &Authorization<'_>, scope: Scope<'_>) -> Result<(), SigV4Error> {
    if authorization.region != scope.region {
        return Err(SigV4Error::WrongRegion);
    }
    if authorization.service != scope.service {
        return Err(SigV4Error::WrongService {
            expected: scope.service.to_owned(),
        });
    }
    Ok(())
}

/// The time of signing, as in the signed header.
fn signed_date(parts: &Parts) -> Result<&str, SigV4Error> {
    parts
        .headers
        .get(X_AMZ_DATE)
        .and_then(|value| value.to_str().ok())
        .map(str::trim)
        .filter(|date| parse_date(date).is_some())
        .ok_or(SigV4Error::Incomplete(
            "Authorization header requires existence of a 'X-Amz-Date' header \
             in the ISO-8601 basic format.",
        ))
}

fn parse_date(text: &str) -> Option<Timestamp> {
    // The length rules out what strptime tolerates: signs, spaces, and longer years.
    if text.len() != "20150830T123600Z".len() {
        return None;
    }
    let date = civil::DateTime::strptime(DATE_FORMAT, text).ok()?;
    let timestamp = TimeZone::UTC.to_timestamp(date).ok()?;
    (format_date(timestamp) == text).then_some(timestamp)
}

fn format_date(timestamp: Timestamp) -> String {
    timestamp.strftime(DATE_FORMAT).to_string()
}

/// The day part of a date that [`parse_date`] accepts.
fn day(date: &str) -> &str {
    date.split_once('T').map_or(date, |(day, _)| day)
}

fn check_age(
    date: &str,
    authorization: &Authorization<'_>,
    now: Timestamp,
    skew: Duration,
) -> Result<(), SigV4Error> {
    if authorization.date != day(date) {
        return Err(SigV4Error::WrongDate {
            credential: authorization.date.to_owned(),
            signed: day(date).to_owned(),
        });
    }
    let signed = parse_date(date).ok_or(SigV4Error::Mismatch)?;
    let earliest = now.checked_sub(skew).unwrap_or(Timestamp::MIN);
    let latest = now.checked_add(skew).unwrap_or(Timestamp::MAX);
    let minutes = skew.as_secs() / 60;
    if signed < earliest {
        return Err(SigV4Error::Expired {
            signed: date.to_owned(),
            earliest: format_date(earliest),
            now: format_date(now),
            minutes,
        });
    }
    if signed > latest {
        return Err(SigV4Error::NotYetCurrent {
            signed: date.to_owned(),
            latest: format_date(latest),
            now: format_date(now),
            minutes,
        });
    }
    Ok(())
}

/// How the body enters the canonical request; a hash that the client gives must be the body's.
fn payload_hash(parts: &Parts, body: &[u8]) -> Result<String, SigV4Error> {
    let given = parts.headers.get(CONTENT_SHA256).map(HeaderValue::as_bytes);
    if given == Some(UNSIGNED_PAYLOAD.as_bytes()) {
        return Ok(UNSIGNED_PAYLOAD.to_owned());
    }
    let actual = sha256_hex(body);
    match given {
        Some(given) if given != actual.as_bytes() => Err(SigV4Error::Mismatch),
        _ => Ok(actual),
    }
}

fn signature(
    secret: &SecretString,
    date: &str,
    scope: Scope<'_>,
    canonical_request: &[u8],
) -> hmac::Tag {
    let hashed = sha256_hex(canonical_request);
    let text = format!(
        "{ALGORITHM}\n{date}\n{}\n{hashed}",
        credential_scope(date, scope)
    );
    hmac::sign(&signing_key(secret, date, scope), text.as_bytes())
}

fn credential_scope(date: &str, scope: Scope<'_>) -> String {
    let Scope { region, service } = scope;
    format!("{}/{region}/{service}/{TERMINATOR}", day(date))
}

fn signing_key(secret: &SecretString, date: &str, scope: Scope<'_>) -> hmac::Key {
    let prefixed = SecretString::from(format!("AWS4{}", secret.expose_secret()));
    let mut key = hmac::Key::new(hmac::HMAC_SHA256, prefixed.expose_secret().as_bytes());
    for part in [day(date), scope.region, scope.service, TERMINATOR] {
        let tag = hmac::sign(&key, part.as_bytes());
        key = hmac::Key::new(hmac::HMAC_SHA256, tag.as_ref());
    }
    key
}

/// Why a request cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// It has neither a Host header nor a host in its URI.
    #[error("the request has no host")]
    NoHost,
    /// The access key, region or service cannot be in a header.
    #[error("the credential cannot be put in a header")]
    Credential(#[source] InvalidHeaderValue),
}

/// Signs a request as `access_key_id`: adds `host` where it is missing, `x-amz-date` and
/// `authorization`. The signature covers those, `content-type` and all `x-amz-*` headers.
///
/// # Errors
/// [`SignError`] when the host or the credential cannot be in a header.
pub fn sign(
    parts: &mut Parts,
    body: &[u8],
    access_key_id: &str,
    secret: &SecretString,
    scope: Scope<'_>,
    now: Timestamp,
) -> Result<(), SignError> {
    if !parts.headers.contains_key(HOST) {
        let authority = parts.uri.authority().ok_or(SignError::NoHost)?;
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| SignError::NoHost)?;
        parts.headers.insert(HOST, host);
    }
    let date = format_date(now);
    let value = HeaderValue::from_str(&date).map_err(SignError::Credential)?;
    parts.headers.insert(X_AMZ_DATE, value);

    let mut signed_headers: Vec<&str> = parts.headers.keys().map(HeaderName::as_str).collect();
    signed_headers.retain(|name| {
        [HOST.as_str(), CONTENT_TYPE.as_str()].contains(name) || name.starts_with("x-amz-")
    });
    signed_headers.sort_unstable();
    let payload_hash = match parts.headers.get(CONTENT_SHA256) {
        Some(given) if given == UNSIGNED_PAYLOAD => UNSIGNED_PAYLOAD.to_owned(),
        _ => sha256_hex(body),
    };
    let canonical = canonical_request(parts, &signed_headers, &payload_hash);
    let header = format!(
        "{ALGORITHM} Credential={access_key_id}/{}, SignedHeaders={}, Signature={}",
        credential_scope(&date, scope),
        signed_headers.join(";"),
        hex::encode(signature(secret, &date, scope, &canonical)),
    );
    let header = HeaderValue::from_str(&header).map_err(SignError::Credential)?;
    parts.headers.insert(AUTHORIZATION, header);
    Ok(())
}
