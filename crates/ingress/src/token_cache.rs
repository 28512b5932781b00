//! The token that a client's connection brought last, already opened.
//!
//! A client sends the same token with each request. To decrypt and parse it costs more than all other checks
//! of a request together, so what it granted a moment ago it grants still. Its expiry is judged each time.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use dormouse_core::{Timestamp, limits};
use secrecy::zeroize::Zeroizing;

use crate::token::{Claims, TokenError};
use crate::token_keys::TokenKeys;

/// Remembers one token.
#[derive(Default)]
pub(crate) struct TokenCache(Mutex<Option<Opened>>);

struct Opened {
    token: Zeroizing<String>,
    claims: Arc<Claims>,
    at: Timestamp,
}

impl TokenCache {
    /// What `token` grants at the moment `now`. A key that is taken away is noticed after
    /// [`limits::TOKEN_TRUST`] at the latest.
    pub(crate) fn open(
        &self,
        keys: &TokenKeys,
        token: &str,
        now: Timestamp,
    ) -> Result<Arc<Claims>, TokenError> {
        if let Some(claims) = self.remembered(token, now) {
            return if claims.expired(now) {
                Err(TokenError::Expired)
            } else {
                Ok(claims)
            };
        }
        let claims = Arc::new(keys.open(token, now)?);
        *self.last() = Some(Opened {
            token: Zeroizing::new(token.to_owned()),
            claims: Arc::clone(&claims),
            at: now,
        });
        Ok(claims)
    }

    fn remembered(&self, token: &str, now: Timestamp) -> Option<Arc<Claims>> {
        let last = self.last();
        let opened = last.as_ref()?;
        let fresh = opened.at.0 <= now.0 && now.0 < opened.at.after(limits::TOKEN_TRUST).0;
        let same = verify_slices_are_equal(opened.token.as_bytes(), token.as_bytes()).is_ok();
        (fresh && same).then(|| Arc::clone(&opened.claims))
    }

    fn last(&self) -> MutexGuard<'_, Option<Opened>> {
        // Whole at any time, so a panic elsewhere cannot have torn it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for TokenCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenCache").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::{PortRange, TokenKind};
    use dormouse_core::EndpointId;
    use dormouse_secrets::Sealer;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    const NOW: Timestamp = Timestamp(1_900_000_000_000);

    fn keys_at(path: &Path) -> TokenKeys {
        TokenKeys::load_or_create(path, Arc::new(Sealer::random())).expect("keys")
    }

    struct Bench {
        keys: TokenKeys,
        folder: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("folder");
            let keys = keys_at(&folder.path().join("keys"));
            Self { keys, folder }
        }

        fn token(&self, port: u16, life: Duration) -> String {
            self.keys.mint(&Claims {
                endpoint: EndpointId::parse("30d00336-db07-f4f5-79c1-8571c22bef9e").expect("id"),
                ports: vec![PortRange::single(port)],
                expires_s: NOW.after(life).0 / 1000,
                kind: TokenKind::Http,
            })
        }

        fn strangers(&self) -> TokenKeys {
            keys_at(&self.folder.path().join("other"))
        }
    }

    #[test]
    fn each_token_grants_what_it_grants() {
        let (bench, cache) = (Bench::new(), TokenCache::default());
        let tokens = [80, 81].map(|port| (port, bench.token(port, Duration::from_secs(60))));
        for (port, token) in tokens.iter().chain(&tokens) {
            for _ in 0..2 {
                let claims = cache.open(&bench.keys, token, NOW).expect("claims");
                assert!(claims.allow(*port) && !claims.allow(port ^ 1));
            }
        }
        let refused = cache.open(&bench.keys, &format!("{}A", tokens[1].1), NOW);
        assert_eq!(refused, Err(TokenError::Malformed));
    }

    #[test]
    fn a_remembered_token_expires_to_the_millisecond() {
        let (bench, cache) = (Bench::new(), TokenCache::default());
        let life = limits::TOKEN_TRUST;
        let token = bench.token(80, life);
        let at = |ms| cache.open(&bench.keys, &token, Timestamp(ms)).map(drop);
        let end = NOW.after(life).0;
        assert_eq!(at(end - 10), Ok(()));
        assert_eq!(at(end - 1), Ok(()));
        assert_eq!(at(end), Err(TokenError::Expired));
    }

    #[test]
    fn a_key_that_is_taken_away_is_missed_soon() {
        let (bench, cache) = (Bench::new(), TokenCache::default());
        let (token, others) = (bench.token(80, Duration::from_secs(60)), bench.strangers());
        assert!(cache.open(&bench.keys, &token, NOW).is_ok());
        let later = NOW.after(limits::TOKEN_TRUST);
        let just_before = Timestamp(later.0 - 1);
        assert!(cache.open(&others, &token, just_before).is_ok());
        assert_eq!(
            cache.open(&others, &token, later),
            Err(TokenError::UnknownKey)
        );
        let earlier = Timestamp(NOW.0 - 1);
        assert!(
            cache.open(&others, &token, earlier).is_err(),
            "a clock set back"
        );
    }

    #[test]
    fn nothing_that_failed_is_remembered() {
        let (bench, cache) = (Bench::new(), TokenCache::default());
        let (token, others) = (bench.token(80, Duration::from_secs(60)), bench.strangers());
        assert_eq!(
            cache.open(&others, &token, NOW),
            Err(TokenError::UnknownKey)
        );
        assert!(cache.open(&bench.keys, &token, NOW).is_ok());
    }

    #[test]
    fn the_token_is_in_no_debug() {
        let (bench, cache) = (Bench::new(), TokenCache::default());
        let token = bench.token(80, Duration::from_secs(60));
        cache.open(&bench.keys, &token, NOW).expect("claims");
        assert!(!format!("{cache:?}").contains(&token));
    }
}
