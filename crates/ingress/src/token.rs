//! Endpoint tokens: JWE in compact form, `dir` with `A256GCM`, opaque to clients as on AWS.
//!
//! A token says which endpoint it opens, which ports and until when. An endpoint's id is drawn at random
//! for one MicroVM and never again, and that MicroVM is one account's for life: so the token is bound to
//! both without naming them. It needs no store: the key alone tells a true token from a false one. All tokens with few ports have the same length, so
//! that the length says nothing about the grant.

use aws_lc_rs::aead::{Aad, NONCE_LEN, Nonce};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use dormouse_core::{EndpointId, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::token_keys::{ENC, TokenKeys};

/// Claims are padded to a multiple of this; one such block makes a token of 760 characters, the
/// length of a token of AWS.
const CLAIMS_BLOCK_BYTES: usize = 464;
/// Longest token that is worth looking at, in characters.
const TOKEN_LENGTH_MAX: usize = 16 << 10;
const TAG_BYTES: usize = 16;

/// What a token grants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// The one endpoint that the token opens.
    pub endpoint: EndpointId,
    /// The ports that it opens there.
    pub ports: Vec<PortRange>,
    /// The second of the Unix epoch from which on it opens nothing.
    #[serde(rename = "exp")]
    pub expires_s: u64,
    /// What it may be used for.
    pub kind: TokenKind,
}

impl Claims {
    /// Whether the grant covers `port`.
    #[must_use]
    pub fn allow(&self, port: u16) -> bool {
        self.ports.iter().any(|range| range.contains(port))
    }

    /// Whether the grant is over.
    #[must_use]
    pub fn expired(&self, now: Timestamp) -> bool {
        now.0 >= self.expires_s.saturating_mul(1000)
    }
}

/// What a token may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenKind {
    /// Requests to the app.
    Http,
    /// A shell in the MicroVM.
    Shell,
}

/// Ports from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u16, u16)", into = "(u16, u16)")]
pub struct PortRange {
    /// The lowest port.
    pub first: u16,
    /// The highest port.
    pub last: u16,
}

impl PortRange {
    /// Every port there is.
    pub const ALL: Self = Self {
        first: 1,
        last: u16::MAX,
    };

    /// One port.
    #[must_use]
    pub fn single(port: u16) -> Self {
        Self {
            first: port,
            last: port,
        }
    }

    /// Whether `port` lies in the range.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl From<(u16, u16)> for PortRange {
    fn from((first, last): (u16, u16)) -> Self {
        Self { first, last }
    }
}

impl From<PortRange> for (u16, u16) {
    fn from(range: PortRange) -> Self {
        (range.first, range.last)
    }
}

/// Why a token opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a JWE of the one form that Dormouse makes.
    #[error("the token is malformed")]
    Malformed,
    /// Made with a key that is not among ours.
    #[error("the token's key is unknown")]
    UnknownKey,
    /// Made or changed by someone who does not have the key.
    #[error("the token does not authenticate")]
    Forged,
    /// Was good once.
    #[error("the token has expired")]
    Expired,
}

/// The protected header, in AWS's order of fields. Anything more (`zip`, `crit`) is refused.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    kid: Uuid,
    alg: String,
    enc: String,
}

const ALG: &str = "dir";

impl TokenKeys {
    /// Makes a token that grants `claims`.
    #[must_use]
    pub fn mint(&self, claims: &Claims) -> String {
        let ring = self.ring();
        let (kid, key) = ring.signing();
        let header = Header {
            kid: *kid,
            alg: ALG.to_owned(),
            enc: ENC.to_owned(),
        };
        let protected = BASE64.encode(json(&header));
        let mut nonce = [0; NONCE_LEN];
        random(&mut nonce);
        let mut sealed = json(claims);
        // White space after the document is not part of it: a parser skips the padding.
        sealed.resize(sealed.len().next_multiple_of(CLAIMS_BLOCK_BYTES), b' ');
        key.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(protected.as_bytes()),
            &mut sealed,
        )
        .expect("a few kilobytes are within what AES-GCM can seal");
        let (ciphertext, tag) = sealed.split_at(sealed.len() - TAG_BYTES);
        format!(
            "{protected}..{}.{}.{}",
            BASE64.encode(nonce),
            BASE64.encode(ciphertext),
            BASE64.encode(tag)
        )
    }

    /// What `token` grants at the moment `now`.
    pub fn open(&self, token: &str, now: Timestamp) -> Result<Claims, TokenError> {
        let jwe = Jwe::parse(token).ok_or(TokenError::Malformed)?;
        let ring = self.ring();
        let key = ring.find(jwe.kid).ok_or(TokenError::UnknownKey)?;
        let mut sealed = jwe.sealed;
        let plaintext = key
            .open_in_place(
                Nonce::assume_unique_for_key(jwe.nonce),
                Aad::from(jwe.protected.as_bytes()),
                &mut sealed,
            )
            .map_err(|_| TokenError::Forged)?;
        let claims: Claims =
            serde_json::from_slice(plaintext).map_err(|_| TokenError::Malformed)?;
        if claims.expired(now) {
            return Err(TokenError::Expired);
        }
        Ok(claims)
    }
}

/// A token taken apart, nothing in it believed yet.
struct Jwe<'a> {
    protected: &'a str,
    kid: Uuid,
    nonce: [u8; NONCE_LEN],
    /// Ciphertext and tag.
    sealed: Vec<u8>,
}

impl<'a> Jwe<'a> {
    fn parse(token: &'a str) -> Option<Self> {
        if token.len() > TOKEN_LENGTH_MAX {
            return None;
        }
        let mut segments = token.split('.');
        let mut next = || segments.next();
        let (protected, key, nonce, ciphertext, tag) =
            (next()?, next()?, next()?, next()?, next()?);
        // `dir` has no encrypted key.
        if !key.is_empty() || next().is_some() {
            return None;
        }
        let header: Header = serde_json::from_slice(&BASE64.decode(protected).ok()?).ok()?;
        if header.alg != ALG || header.enc != ENC {
            return None;
        }
        let mut sealed = BASE64.decode(ciphertext).ok()?;
        let tag = BASE64.decode(tag).ok()?;
        if tag.len() != TAG_BYTES {
            return None;
        }
        sealed.extend_from_slice(&tag);
        Some(Self {
            protected,
            kid: header.kid,
            nonce: BASE64.decode(nonce).ok()?.try_into().ok()?,
            sealed,
        })
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("a struct of strings and numbers always serializes")
}

/// Fills `bytes` with what nobody can foresee.
pub(crate) fn random(bytes: &mut [u8]) {
    aws_lc_rs::rand::fill(bytes).expect("the system's source of randomness does not fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Timestamp = Timestamp(1_900_000_000_000);
    const ENDPOINT: &str = "30d00336-db07-f4f5-79c1-8571c22bef9e";
    /// 00 01 02 … 1f, as a JWK set.
    const KNOWN_KEY: &str = r#"{"keys":[{"kty":"oct","kid":"3c5bb6a1-0bd0-4b1c-9d6e-1f2a3b4c5d6e",
        "alg":"A256GCM","k":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"}]}"#;
    /// Made with that key by joserfc, a JOSE library for Python.
    const FOREIGN: &str = "eyJraWQiOiIzYzViYjZhMS0wYmQwLTRiMWMtOWQ2ZS0xZjJhM2I0YzVkNmUiLCJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..uX04TGHYWZCpy0zX.y_D0wyMF5xwJb-oN8r_1nh5hUbZiNAUtXpqbvBxUF2PvWLwbrwpdezOIZ1FC6ik2SR1vvSycrl9-W_aDjlh-xOzJqrSWVLvy4gvI9l2PUIfY7PMfvXBWHXZCaVCntdFM2R3NSLpL88MXUNq1Hf_Qs8XrVkJJAgSmjwC6wjUW.lmgc5qeQELSOba_vXMmHEw";

    fn known_keys() -> TokenKeys {
        TokenKeys::of(KNOWN_KEY)
    }

    fn claims(ports: &[PortRange]) -> Claims {
        Claims {
            endpoint: EndpointId::parse(ENDPOINT).expect("endpoint"),
            ports: ports.to_vec(),
            expires_s: 2_000_000_000,
            kind: TokenKind::Http,
        }
    }

    /// The token with one segment replaced.
    fn with_segment(token: &str, index: usize, segment: &str) -> String {
        let mut segments: Vec<&str> = token.split('.').collect();
        segments[index] = segment;
        segments.join(".")
    }

    #[test]
    fn a_token_of_another_jose_library_opens() {
        let ports = [PortRange::single(8080), PortRange::from((9000, 9999))];
        assert_eq!(known_keys().open(FOREIGN, NOW), Ok(claims(&ports)));
    }

    #[test]
    fn a_token_has_the_shape_and_length_of_one_of_aws() {
        let keys = known_keys();
        let many: Vec<_> = (1..=20)
            .map(|n| PortRange::from((n * 100, n * 100 + 9)))
            .collect();
        for grant in [&[PortRange::ALL][..], &[PortRange::single(1)], &many] {
            let token = keys.mint(&claims(grant));
            let lengths: Vec<usize> = token.split('.').map(str::len).collect();
            assert_eq!(lengths, [99, 0, 16, 619, 22]);
            assert_eq!(keys.open(&token, NOW), Ok(claims(grant)));
        }
        let header = BASE64
            .decode(&keys.mint(&claims(&[]))[..99])
            .expect("header");
        assert_eq!(
            String::from_utf8(header).expect("text"),
            r#"{"kid":"3c5bb6a1-0bd0-4b1c-9d6e-1f2a3b4c5d6e","alg":"dir","enc":"A256GCM"}"#
        );
    }

    #[test]
    fn two_tokens_of_one_grant_differ() {
        let keys = known_keys();
        assert_ne!(keys.mint(&claims(&[])), keys.mint(&claims(&[])));
    }

    #[test]
    fn a_token_opens_nothing_from_its_last_second_on() {
        let keys = known_keys();
        let token = keys.mint(&claims(&[]));
        let at = |ms| keys.open(&token, Timestamp(ms)).map(|_| ());
        assert_eq!(at(1_999_999_999_999), Ok(()));
        assert_eq!(at(2_000_000_000_000), Err(TokenError::Expired));
        assert_eq!(at(u64::MAX), Err(TokenError::Expired));
    }

    #[test]
    fn a_changed_token_is_forged() {
        let keys = known_keys();
        let token = keys.mint(&claims(&[PortRange::single(1)]));
        let other = keys.mint(&claims(&[PortRange::ALL]));
        let segment = |index: usize| other.split('.').nth(index).expect("segment");
        for index in [2, 3, 4] {
            let mixed = with_segment(&token, index, segment(index));
            assert_eq!(keys.open(&mixed, NOW), Err(TokenError::Forged), "{index}");
        }
        // The same header with other white space: it decodes alike, and authenticates differently.
        let header = BASE64.decode(&token[..99]).expect("header");
        let spaced = String::from_utf8(header).expect("text").replace(':', ": ");
        let respelled = with_segment(&token, 0, &BASE64.encode(spaced));
        assert_eq!(keys.open(&respelled, NOW), Err(TokenError::Forged));
    }

    #[test]
    fn only_the_one_form_of_jwe_is_looked_at() {
        let keys = known_keys();
        let token = keys.mint(&claims(&[]));
        let kid = "3c5bb6a1-0bd0-4b1c-9d6e-1f2a3b4c5d6e";
        let header = |text: String| with_segment(&token, 0, &BASE64.encode(text));
        let malformed = [
            String::new(),
            "not-a-token".to_owned(),
            "....".to_owned(),
            format!("{token}."),
            format!("{token}="),
            with_segment(&token, 1, "AAAA"),
            with_segment(&token, 2, "AAAA"),
            with_segment(&token, 4, "AAAA"),
            header(format!(r#"{{"kid":"{kid}","alg":"none","enc":"A256GCM"}}"#)),
            header(format!(r#"{{"kid":"{kid}","alg":"dir","enc":"A128GCM"}}"#)),
            header(format!(
                r#"{{"kid":"{kid}","alg":"dir","enc":"A256GCM","zip":"DEF"}}"#
            )),
            header(r#"{"alg":"dir","enc":"A256GCM"}"#.to_owned()),
            format!("{token}{}", "A".repeat(TOKEN_LENGTH_MAX)),
        ];
        for token in malformed {
            assert_eq!(
                keys.open(&token, NOW),
                Err(TokenError::Malformed),
                "{token}"
            );
        }
    }

    proptest! {
        #[test]
        fn whatever_bytes_come_they_open_nothing(text in "(\\PC|[.A-Za-z0-9_-]){0,200}") {
            prop_assert!(known_keys().open(&text, NOW).is_err());
        }

        #[test]
        fn no_single_change_goes_unnoticed(position in 0..760_usize, character in "[.A-Za-z0-9_=-]") {
            let keys = known_keys();
            let token = keys.mint(&claims(&[PortRange::ALL]));
            let mut changed = token.clone();
            changed.replace_range(position..=position, &character);
            prop_assume!(changed != token);
            prop_assert!(keys.open(&changed, NOW).is_err());
        }
    }
}
