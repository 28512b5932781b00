//! The keys of endpoint tokens: a JWK set in one file, whose first key makes tokens while all open them.
//!
//! After some weeks a new key is put before the others. One that makes no more tokens goes when the last
//! that it can have made has expired. The file, which is sealed, is written before a key is used, so that
//! a crash at any moment leaves every token good.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use aws_lc_rs::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use dormouse_core::limits;
use dormouse_secrets::{Sealer, SecretError};
use secrecy::zeroize::{Zeroize, Zeroizing};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::token::random;
use dormouse_core::chain;

const KEY_BYTES: usize = 32;
/// What the key file is sealed as.
const PURPOSE: &str = "token-keys";
pub(crate) const ENC: &str = "A256GCM";

/// Why the key file gives no keys.
#[derive(Debug, thiserror::Error)]
pub enum TokenKeysError {
    /// The file cannot be read, opened or written.
    #[error("token keys")]
    File(#[from] SecretError),
    /// The file is there but is no JWK set of at least one `A256GCM` key with a UUID for its `kid`.
    #[error("{path} holds no usable token keys")]
    Malformed {
        /// The key file.
        path: PathBuf,
    },
}

/// The key file: a JWK set (RFC 7517), newest key first.
#[derive(Serialize, Deserialize)]
struct JwkSet {
    keys: Vec<Jwk>,
}

#[derive(Serialize, Deserialize)]
struct Jwk {
    kty: String,
    kid: Uuid,
    alg: String,
    k: String,
    /// The second of the Unix epoch in which it was made.
    #[serde(default)]
    iat: u64,
}

impl Drop for Jwk {
    fn drop(&mut self) {
        self.k.zeroize();
    }
}

/// The keys that make and open tokens. Reading them takes no longer than copying a pointer.
pub struct TokenKeys {
    file: KeyFile,
    ring: RwLock<Arc<Ring>>,
    /// Held while the file is changed.
    turning: Mutex<()>,
}

/// Where the keys are kept, and what seals them.
struct KeyFile {
    path: PathBuf,
    sealer: Arc<Sealer>,
}

/// The keys as they are at one moment, the newest first; at least one.
pub(crate) struct Ring(Vec<(Uuid, LessSafeKey)>);

impl Ring {
    /// The key that makes tokens.
    pub(crate) fn signing(&self) -> (&Uuid, &LessSafeKey) {
        let (kid, key) = &self.0[0];
        (kid, key)
    }

    pub(crate) fn find(&self, kid: Uuid) -> Option<&LessSafeKey> {
        let found = self.0.iter().find(|(known, _)| *known == kid);
        found.map(|(_, key)| key)
    }
}

impl TokenKeys {
    /// Reads the keys at `path`, or makes one and puts it there, sealed and readable by its owner only.
    pub fn load_or_create(path: &Path, sealer: Arc<Sealer>) -> Result<Self, TokenKeysError> {
        let path = path.to_owned();
        let file = KeyFile { path, sealer };
        file.sealer.adopt(PURPOSE, &file.path)?;
        let text = match file.read()? {
            Some(text) => text,
            None => {
                let keys = vec![Jwk::new(now_s())];
                file.write(&JwkSet { keys })?
            }
        };
        let malformed = file.malformed();
        Self::parse(file, &text).ok_or(malformed)
    }

    /// Reads a JWK set; `None` unless every key in it is usable and there is at least one.
    fn parse(file: KeyFile, text: &[u8]) -> Option<Self> {
        let set: JwkSet = serde_json::from_slice(text).ok()?;
        Some(Self {
            file,
            ring: RwLock::new(Arc::new(set.ring()?)),
            turning: Mutex::new(()),
        })
    }

    /// The keys of a JWK set that is kept nowhere.
    #[cfg(test)]
    pub(crate) fn of(text: &str) -> Self {
        let file = KeyFile {
            path: PathBuf::new(),
            sealer: Arc::new(Sealer::random()),
        };
        Self::parse(file, text.as_bytes()).expect("keys")
    }

    pub(crate) fn ring(&self) -> Arc<Ring> {
        Arc::clone(&self.ring.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts a new key first whenever the first is older than `every`, and drops those whose tokens have
    /// all expired, until `stop`.
    pub async fn rotate(self: Arc<Self>, every: Duration, stop: CancellationToken) {
        let mut ticks = interval(limits::TOKEN_KEY_CHECK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let keys = Arc::clone(&self);
            let turned = spawn_blocking(move || keys.turn(every, now_s()));
            match turned.await.expect("changing a file does not panic") {
                Ok(false) => {}
                Ok(true) => tracing::info!(keys = ?self, "token keys rotated"),
                // The keys stay as they are until the next look.
                Err(error) => {
                    tracing::warn!(error = chain(&error), "token keys were not rotated");
                }
            }
        }
    }

    /// Does what is due at the second `now_s`, and says whether anything was.
    fn turn(&self, every: Duration, now_s: u64) -> Result<bool, TokenKeysError> {
        let _turning = self.turning.lock().unwrap_or_else(PoisonError::into_inner);
        let malformed = || self.file.malformed();
        let text = self.file.read()?.ok_or_else(malformed)?;
        let mut set: JwkSet = serde_json::from_slice(&text).map_err(|_| malformed())?;
        if set.keys.is_empty() || !set.turn(every, now_s) {
            return Ok(false);
        }
        let ring = set.ring().ok_or_else(malformed)?;
        self.file.write(&set)?;
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(ring);
        Ok(true)
    }
}

impl JwkSet {
    fn ring(&self) -> Option<Ring> {
        let keys: Option<Vec<_>> = self.keys.iter().map(usable_key).collect();
        keys.filter(|keys| !keys.is_empty()).map(Ring)
    }

    /// Puts a new key first if it is time, and drops those that open nothing any more.
    ///
    /// A key from the future was made under a clock that has been set back since: it is replaced, too, or
    /// it would make tokens until then. What counts for the older keys is when any key before them took
    /// over, whichever clock that was by.
    fn turn(&mut self, every: Duration, now_s: u64) -> bool {
        let before = self.keys.len();
        let overlap_s = limits::TOKEN_KEY_OVERLAP.as_secs();
        let made_s = self.keys[0].iat;
        let is_new = now_s.saturating_sub(made_s) >= every.as_secs() || made_s > now_s + overlap_s;
        if is_new {
            self.keys.insert(0, Jwk::new(now_s));
        }
        let mut replaced_s = u64::MAX;
        self.keys.retain(|key| {
            let opens = replaced_s.saturating_add(overlap_s) >= now_s;
            replaced_s = replaced_s.min(key.iat);
            opens
        });
        self.keys.truncate(limits::TOKEN_KEYS_MAX);
        is_new || self.keys.len() != before
    }
}

impl Jwk {
    fn new(now_s: u64) -> Self {
        let mut secret = Zeroizing::new([0; KEY_BYTES]);
        random(secret.as_mut_slice());
        Self {
            kty: "oct".to_owned(),
            kid: Uuid::new_v4(),
            alg: ENC.to_owned(),
            k: BASE64.encode(*secret),
            iat: now_s,
        }
    }
}

impl fmt::Debug for TokenKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ring = self.ring();
        let kids = ring.0.iter().map(|(kid, _)| kid);
        f.debug_set().entries(kids).finish()
    }
}

impl KeyFile {
    fn read(&self) -> Result<Option<Zeroizing<Vec<u8>>>, TokenKeysError> {
        Ok(self.sealer.read(PURPOSE, &self.path)?)
    }

    fn write(&self, set: &JwkSet) -> Result<Zeroizing<Vec<u8>>, TokenKeysError> {
        let text = serde_json::to_vec_pretty(set).expect("a JWK set of strings always serializes");
        let text = Zeroizing::new(text);
        self.sealer.write(PURPOSE, &self.path, &text)?;
        Ok(text)
    }

    fn malformed(&self) -> TokenKeysError {
        TokenKeysError::Malformed {
            path: self.path.clone(),
        }
    }
}

fn now_s() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

fn usable_key(jwk: &Jwk) -> Option<(Uuid, LessSafeKey)> {
    let secret = Zeroizing::new(BASE64.decode(&jwk.k).ok()?);
    let usable = jwk.kty == "oct" && jwk.alg == ENC;
    let key = UnboundKey::new(&AES_256_GCM, &secret).ok()?;
    usable.then(|| (jwk.kid, LessSafeKey::new(key)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::{Claims, PortRange, TokenError, TokenKind};
    use dormouse_core::{EndpointId, Timestamp};

    const NOW: Timestamp = Timestamp(1_900_000_000_000);
    const NOW_S: u64 = NOW.0 / 1000;
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn claims() -> Claims {
        Claims {
            endpoint: EndpointId::new(Uuid::nil()),
            ports: vec![PortRange::ALL],
            expires_s: 2_000_000_000,
            kind: TokenKind::Http,
        }
    }

    struct Bench {
        folder: tempfile::TempDir,
        sealer: Arc<Sealer>,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                folder: tempfile::tempdir().expect("folder"),
                sealer: Arc::new(Sealer::random()),
            }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("keys/tokens.jwks")
        }

        fn load(&self) -> Result<TokenKeys, TokenKeysError> {
            TokenKeys::load_or_create(&self.path(), Arc::clone(&self.sealer))
        }

        fn keys(&self) -> TokenKeys {
            self.load().expect("keys")
        }

        /// Replaces the file.
        fn put(&self, text: &str) {
            let written = self.sealer.write(PURPOSE, &self.path(), text.as_bytes());
            written.expect("write");
        }

        /// What is sealed in the file.
        fn text(&self) -> String {
            let text = self.sealer.read(PURPOSE, &self.path()).expect("read");
            String::from_utf8(text.expect("file").to_vec()).expect("text")
        }

        /// The file with one key, made at this second.
        fn made_at(&self, second: u64) -> TokenKeys {
            let keys = vec![Jwk::new(second)];
            self.put(&serde_json::to_string_pretty(&JwkSet { keys }).expect("text"));
            self.keys()
        }

        fn set(&self) -> JwkSet {
            serde_json::from_str(&self.text()).expect("set")
        }
    }

    #[test]
    fn a_key_that_was_replaced_opens_tokens_until_the_last_has_expired() {
        let bench = Bench::new();
        let keys = bench.made_at(NOW_S);
        let turn = |second| keys.turn(30 * DAY, second).expect("turn");
        assert!(!turn(NOW_S + 30 * 86_400 - 1));
        let old = keys.mint(&claims());
        let due = NOW_S + 30 * 86_400;
        assert!(turn(due));
        assert!(!turn(due), "once");
        let new = keys.mint(&claims());
        let kid = |token: &str| token.split('.').next().expect("header").to_owned();
        assert_ne!(kid(&old), kid(&new));

        let overlap = limits::TOKEN_KEY_OVERLAP.as_secs();
        assert!(!turn(due + overlap));
        for keys in [&keys, &bench.keys()] {
            assert_eq!(keys.open(&old, NOW), Ok(claims()));
            assert_eq!(keys.open(&new, NOW), Ok(claims()));
        }
        assert!(turn(due + overlap + 1));
        for keys in [&keys, &bench.keys()] {
            assert_eq!(keys.open(&old, NOW), Err(TokenError::UnknownKey));
            assert_eq!(keys.open(&new, NOW), Ok(claims()));
        }
        assert_eq!(
            bench.set().keys.len(),
            1,
            "the secret is gone from the disk, too"
        );
        assert!(overlap >= limits::TOKEN_MINUTES_MAX as u64 * 60);
    }

    #[test]
    fn a_clock_that_is_set_back_costs_no_token_and_leaves_no_key_for_ever() {
        let bench = Bench::new();
        let keys = bench.made_at(NOW_S);
        let turn = |second| keys.turn(DAY, second).expect("turn");
        let future = NOW_S + 3650 * 86_400;
        assert!(turn(future));
        let from_the_future = keys.mint(&claims());
        assert!(
            turn(NOW_S + 60),
            "a key from the future makes no more tokens"
        );
        assert!(!turn(NOW_S + 60));
        let now = keys.mint(&claims());
        // A second back, or an hour: nothing happens.
        for second in [NOW_S + 59, NOW_S - 3600] {
            assert!(!turn(second));
        }
        for token in [&from_the_future, &now] {
            assert_eq!(keys.open(token, NOW), Ok(claims()));
        }
        assert!(turn(NOW_S + 61 + limits::TOKEN_KEY_OVERLAP.as_secs()));
        assert_eq!(bench.set().keys.len(), 1);
        assert_eq!(keys.open(&now, NOW), Ok(claims()));
    }

    #[test]
    fn a_clock_that_jumps_to_and_fro_makes_a_bounded_number_of_keys() {
        let bench = Bench::new();
        let keys = bench.made_at(NOW_S);
        for round in 0..100 {
            let second = NOW_S + (round % 2) * 2 * 86_400;
            keys.turn(DAY, second).expect("turn");
            assert!(bench.set().keys.len() <= limits::TOKEN_KEYS_MAX);
            let token = keys.mint(&claims());
            assert_eq!(bench.keys().open(&token, NOW), Ok(claims()));
        }
    }

    #[test]
    fn a_key_without_an_age_is_old() {
        let bench = Bench::new();
        bench.made_at(NOW_S);
        let text = bench.text();
        let ageless = text.replace(&format!(",\n      \"iat\": {NOW_S}"), "");
        assert_ne!(text, ageless);
        bench.put(&ageless);
        let keys = bench.keys();
        let token = keys.mint(&claims());
        assert!(keys.turn(DAY, NOW_S).expect("turn"));
        assert_eq!(keys.open(&token, NOW), Ok(claims()));
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_the_keys_as_they_are() {
        let bench = Bench::new();
        let keys = bench.made_at(0);
        let token = keys.mint(&claims());
        std::fs::create_dir(bench.path().with_extension("jwks.new")).expect("in the way");
        keys.turn(DAY, NOW_S).expect_err("no place for the draft");
        assert_eq!(keys.open(&token, NOW), Ok(claims()));
        assert_eq!(bench.set().keys.len(), 1);
    }

    #[test]
    fn keys_survive_a_restart_and_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let bench = Bench::new();
        let token = bench.keys().mint(&claims());
        let again = bench.keys();
        assert_eq!(again.open(&token, NOW), Ok(claims()));
        let mode = std::fs::metadata(bench.path()).expect("file").permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        let secret = bench.set().keys[0].k.clone();
        assert!(!format!("{again:?}").contains(&secret));
        let stored = std::fs::read_to_string(bench.path()).expect("read");
        assert!(dormouse_secrets::is_sealed(stored.as_bytes()));
        assert!(!stored.contains(&secret));
    }

    #[test]
    fn the_plain_file_of_an_earlier_version_is_sealed_and_its_tokens_stay_good() {
        let bench = Bench::new();
        let token = bench.keys().mint(&claims());
        let plain = bench.text();
        std::fs::write(bench.path(), &plain).expect("write");
        assert_eq!(bench.keys().open(&token, NOW), Ok(claims()));
        let stored = std::fs::read(bench.path()).expect("read");
        assert!(dormouse_secrets::is_sealed(&stored));
        assert_eq!(bench.text(), plain);
    }

    #[test]
    fn an_unusable_key_file_is_an_error_and_stays_as_it_is() {
        let bench = Bench::new();
        bench.keys();
        let good = bench.text();
        let short = good.replace(&bench.set().keys[0].k[..4], "");
        for text in ["", "{}", r#"{"keys":[]}"#, &short] {
            bench.put(text);
            let error = bench.load().expect_err("unusable");
            assert!(matches!(error, TokenKeysError::Malformed { .. }), "{text}");
            assert_eq!(bench.text(), text);
        }
    }
}
