//! Access keys: who may call the API and the embedded S3, and for which account.
//!
//! `DATA/keys/ID.json` holds one key, sealed; the first start makes one. The folder is the truth: `dormouse key` adds
//! and removes files, and a running daemon follows within a moment.

use base64::{Engine, engine::general_purpose::STANDARD};
use dormouse_core::chain;
use dormouse_core::{AccountId, Timestamp, limits};
use dormouse_node::clock;
use dormouse_secrets::{Sealer, SecretError};
use secrecy::zeroize::{Zeroize, Zeroizing};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Length of an access key's id, as on AWS.
const ID_LEN: usize = 20;
/// What an id of a lasting key starts with, on AWS.
const ID_PREFIX: &str = "AKIA";
/// Bytes of randomness in a secret: 40 characters in base64, as on AWS.
const SECRET_BYTES: usize = 30;
/// What a key's file is sealed as.
const PURPOSE: &str = "access-key";

/// One access key.
#[derive(Debug, Clone)]
pub(crate) struct AccessKey {
    /// Its public name.
    pub(crate) id: String,
    /// What its requests are signed with.
    pub(crate) secret: SecretString,
    /// The account that it acts for.
    pub(crate) account: AccountId,
    /// When it was made.
    pub(crate) created_at: Timestamp,
}

/// The daemon's access keys.
#[derive(Debug)]
pub(crate) struct Keys {
    dir: PathBuf,
    sealer: Arc<Sealer>,
    known: RwLock<Known>,
    /// What of the folder was read, as it was then; whoever reads it holds this.
    read: Mutex<Listing>,
    /// Of the requests with unknown keys one at a time has the folder looked at: strangers must not fill the pool of
    /// threads that block.
    meeting: Semaphore,
}

type Known = BTreeMap<String, AccessKey>;

/// Files of the folder in order, and for each what changes when it does.
type Listing = Vec<(OsString, u64, i64, i64)>;

/// Why the keys cannot be read or made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeysError {
    /// A file operation failed.
    #[error("{action} {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// A key's file cannot be read, opened or written.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A file does not hold a key.
    #[error("{path} is not an access key: {problem}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong; never the secret.
        problem: String,
    },
    /// There is no key yet.
    #[error("there is no access key in {0}: start `dormouse serve` with this data directory first")]
    None(PathBuf),
    /// There is no key of this id.
    #[error("there is no access key {0}")]
    Unknown(String),
    /// There are as many as there may be.
    #[error("there are {} access keys already", limits::ACCESS_KEYS_MAX)]
    TooMany,
}

impl KeysError {
    /// Whether the next try may succeed with nothing changed.
    fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Io { .. } | Self::Secret(SecretError::Read { .. })
        )
    }
}

/// A key as its file has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    access_key_id: String,
    secret_access_key: String,
    account: AccountId,
    /// Milliseconds since the epoch; of keys made before this was kept, none.
    #[serde(default)]
    created_at_ms: u64,
}

impl Drop for KeyFile {
    fn drop(&mut self) {
        self.secret_access_key.zeroize();
    }
}

impl Keys {
    /// Reads the keys in the data directory, making the first one for `account` where there is none. Those of
    /// earlier versions are sealed.
    pub(crate) fn open_or_create(
        data_dir: &Path,
        account: &AccountId,
        sealer: Arc<Sealer>,
    ) -> Result<Self, KeysError> {
        match Self::open(data_dir, Arc::clone(&sealer)) {
            Err(KeysError::None(dir)) => {
                let key = AccessKey::random(account.clone());
                store(&dir, &key, &sealer)?;
                tracing::info!(access_key_id = key.id, %account, "first access key made");
                Self::open(data_dir, sealer)
            }
            opened => {
                let keys = opened?;
                keys.adopt()?;
                Ok(keys)
            }
        }
    }

    /// Makes another key, which a running daemon takes up by itself.
    pub(crate) fn create(
        data_dir: &Path,
        account: AccountId,
        sealer: &Sealer,
    ) -> Result<AccessKey, KeysError> {
        let dir = folder(data_dir);
        match list(&dir) {
            Ok(files) if files.len() >= limits::ACCESS_KEYS_MAX => return Err(KeysError::TooMany),
            _ => {}
        }
        let key = AccessKey::random(account);
        store(&dir, &key, sealer)?;
        Ok(key)
    }

    /// Removes a key: a running daemon refuses it from the next moment on.
    pub(crate) fn delete(data_dir: &Path, id: &str) -> Result<(), KeysError> {
        let dir = folder(data_dir);
        // What is no id must not become a path.
        let path = is_id(id).then(|| dir.join(format!("{id}.json")));
        let path = path.ok_or_else(|| KeysError::Unknown(id.to_owned()))?;
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(KeysError::Unknown(id.to_owned()))
            }
            Err(error) => Err(failed("delete", &path)(error)),
        }
    }

    /// Reads the keys in the data directory; there is at least one.
    pub(crate) fn open(data_dir: &Path, sealer: Arc<Sealer>) -> Result<Self, KeysError> {
        let dir = folder(data_dir);
        let listing = match list(&dir) {
            Err(KeysError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(KeysError::None(dir));
            }
            listed => listed?,
        };
        let mut known = Known::new();
        for (file, ..) in &listing {
            if let Some(key) = load(&dir.join(file), &sealer)? {
                known.insert(key.id.clone(), key);
            }
        }
        if known.is_empty() {
            return Err(KeysError::None(dir));
        }
        Ok(Self {
            dir,
            sealer,
            known: RwLock::new(known),
            read: Mutex::new(listing),
            meeting: Semaphore::new(1),
        })
    }

    /// Seals the files that an earlier version left plain.
    fn adopt(&self) -> Result<(), KeysError> {
        for (file, ..) in list(&self.dir)? {
            self.sealer.adopt(PURPOSE, &self.dir.join(file))?;
        }
        Ok(())
    }

    /// Finds a key by its id.
    pub(crate) fn get(&self, id: &str) -> Option<AccessKey> {
        self.known().get(id).cloned()
    }

    /// All keys, by account and then by age.
    pub(crate) fn all(&self) -> Vec<AccessKey> {
        let mut keys: Vec<AccessKey> = self.known().values().cloned().collect();
        keys.sort_by(|a, b| (&a.account, a.created_at).cmp(&(&b.account, b.created_at)));
        keys
    }

    /// The oldest key of an account.
    pub(crate) fn first_of(&self, account: &AccountId) -> Option<AccessKey> {
        self.all().into_iter().find(|key| key.account == *account)
    }

    /// Reads what has changed in the folder, and what could not be read before. Blocks.
    fn refresh(&self) -> Result<(), KeysError> {
        // A panic here has changed nothing.
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let listing = list(&self.dir)?;
        if *read == listing {
            return Ok(());
        }
        let mut known = Known::new();
        let mut now_read = Listing::new();
        let mut unread = None;
        for entry in listing {
            let (file, ..) = &entry;
            if read.binary_search(&entry).is_ok() {
                known.extend(self.known_of(file));
                now_read.push(entry);
                continue;
            }
            match load(&self.dir.join(file), &self.sealer) {
                Ok(Some(key)) => {
                    known.insert(key.id.clone(), key);
                }
                // Deleted since it was listed.
                Ok(None) => {}
                // A key that is known is good until its file says otherwise.
                Err(error) if error.may_pass() => {
                    known.extend(self.known_of(file));
                    unread = Some(error);
                    continue;
                }
                Err(error) => tracing::warn!(error = chain(&error), "access key is not used"),
            }
            now_read.push(entry);
        }
        let keys = known.len();
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = known;
        *read = now_read;
        match unread {
            Some(error) => Err(error),
            None => {
                tracing::info!(keys, "access keys have changed");
                Ok(())
            }
        }
    }

    /// The known key of a file, by its id.
    fn known_of(&self, file: &OsStr) -> Option<(String, AccessKey)> {
        let id = Path::new(file).file_stem()?.to_str()?;
        Some((id.to_owned(), self.get(id)?))
    }

    /// Follows the folder until `stop`.
    pub(crate) async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut failing = false;
        while stop
            .run_until_cancelled(tokio::time::sleep(limits::ACCESS_KEYS_CHECK))
            .await
            .is_some()
        {
            let refreshed = self.refresh_off_runtime().await;
            if let Err(error) = &refreshed
                && !failing
            {
                tracing::warn!(error = chain(error), "access keys were not read");
            }
            failing = refreshed.is_err();
        }
    }

    /// Looks at the folder at once when a request names a key that is not known: it may have been made a
    /// moment ago.
    pub(crate) async fn meet(self: &Arc<Self>, request: &http::request::Parts) {
        let Some(id) = named_key(request).filter(|id| self.get(id).is_none()) else {
            return;
        };
        let _turn = self.meeting.acquire().await;
        if self.get(id).is_none() {
            // Failing, it says so the next time that the folder is followed.
            drop(self.refresh_off_runtime().await);
        }
    }

    async fn refresh_off_runtime(self: &Arc<Self>) -> Result<(), KeysError> {
        let keys = Arc::clone(self);
        let refreshed = tokio::task::spawn_blocking(move || keys.refresh()).await;
        refreshed.unwrap_or(Ok(()))
    }

    fn known(&self) -> std::sync::RwLockReadGuard<'_, Known> {
        // The map is replaced whole.
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join("keys")
}

/// The key files of the folder, by name.
fn list(dir: &Path) -> Result<Listing, KeysError> {
    let mut listing = Listing::new();
    for entry in std::fs::read_dir(dir).map_err(failed("read", dir))? {
        let path = entry.map_err(failed("read", dir))?.path();
        let (Some(name), true) = (
            path.file_name(),
            path.extension().is_some_and(|e| e == "json"),
        ) else {
            continue;
        };
        match std::fs::metadata(&path) {
            Ok(file) => {
                listing.push((name.to_owned(), file.ino(), file.mtime(), file.mtime_nsec()));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("read", &path)(error)),
        }
    }
    listing.sort();
    Ok(listing)
}

/// The id of the key that a request says it is signed with, in its header or its query.
fn named_key(request: &http::request::Parts) -> Option<&str> {
    let header = request.headers.get(http::header::AUTHORIZATION);
    let header = header.and_then(|value| value.to_str().ok()).unwrap_or("");
    let query = request.uri.query().unwrap_or("");
    let after = |text: &'_ str, mark: &str| text.find(mark).map(|at| at + mark.len());
    let rest = match (
        after(header, "Credential="),
        after(query, "X-Amz-Credential="),
    ) {
        (Some(start), _) => &header[start..],
        (None, Some(start)) => &query[start..],
        (None, None) => return None,
    };
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric());
    Some(&rest[..end.unwrap_or(rest.len())])
}

fn is_id(id: &str) -> bool {
    (16..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

impl AccessKey {
    fn random(account: AccountId) -> Self {
        // RFC 4648's base32 letters: five bits of a byte choose one without bias.
        const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let mut random = [0; ID_LEN - ID_PREFIX.len()];
        fill(&mut random);
        let letters = random
            .iter()
            .map(|byte| char::from(LETTERS[usize::from(byte & 31)]));
        let mut secret = [0; SECRET_BYTES];
        fill(&mut secret);
        Self {
            id: ID_PREFIX.chars().chain(letters).collect(),
            secret: STANDARD.encode(secret).into(),
            account,
            created_at: clock::now(),
        }
    }
}

fn fill(bytes: &mut [u8]) {
    aws_lc_rs::rand::fill(bytes).expect("the system's random generator works");
}

/// Seals the key into its file: the whole file or none.
fn store(dir: &Path, key: &AccessKey, sealer: &Sealer) -> Result<(), KeysError> {
    let text = serde_json::to_vec_pretty(&KeyFile {
        access_key_id: key.id.clone(),
        secret_access_key: key.secret.expose_secret().to_owned(),
        account: key.account.clone(),
        created_at_ms: key.created_at.0,
    });
    let text = Zeroizing::new(text.expect("strings become JSON"));
    let path = dir.join(format!("{}.json", key.id));
    Ok(sealer.write(PURPOSE, &path, &text)?)
}

/// Reads a key; none when there is no such file any more.
fn load(path: &Path, sealer: &Sealer) -> Result<Option<AccessKey>, KeysError> {
    match sealer.read(PURPOSE, path)? {
        Some(text) => parse(path, &text).map(Some),
        None => Ok(None),
    }
}

fn parse(path: &Path, text: &[u8]) -> Result<AccessKey, KeysError> {
    let malformed = |problem: String| KeysError::Malformed {
        path: path.to_owned(),
        problem,
    };
    let mut file: KeyFile = serde_json::from_slice(text)
        // The parser's own words could quote the secret.
        .map_err(|error| malformed(format!("line {}, column {}", error.line(), error.column())))?;
    let id = file.access_key_id.clone();
    if !is_id(&id) {
        return Err(malformed(
            "access_key_id is not 16 to 128 letters and digits".to_owned(),
        ));
    }
    if file.secret_access_key.len() < 16 {
        return Err(malformed(
            "secret_access_key has fewer than 16 characters".to_owned(),
        ));
    }
    if AccountId::parse(file.account.as_str()).is_none() {
        return Err(malformed("account is not twelve digits".to_owned()));
    }
    Ok(AccessKey {
        id,
        secret: std::mem::take(&mut file.secret_access_key).into(),
        account: file.account.clone(),
        created_at: Timestamp(file.created_at_ms),
    })
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeysError {
    let path = path.to_owned();
    move |source| KeysError::Io {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn account() -> AccountId {
        AccountId::parse("000000000000").unwrap()
    }

    /// A data directory, and what seals its keys.
    struct Bench {
        data: tempfile::TempDir,
        sealer: Arc<Sealer>,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                data: tempfile::tempdir().unwrap(),
                sealer: Arc::new(Sealer::random()),
            }
        }

        fn path(&self) -> &Path {
            self.data.path()
        }

        fn open(&self) -> Result<Keys, KeysError> {
            Keys::open(self.path(), Arc::clone(&self.sealer))
        }

        fn open_or_create(&self) -> Keys {
            Keys::open_or_create(self.path(), &account(), Arc::clone(&self.sealer)).unwrap()
        }

        fn create(&self, account: AccountId) -> AccessKey {
            Keys::create(self.path(), account, &self.sealer).unwrap()
        }
    }

    #[test]
    fn the_first_start_makes_one_key_and_the_second_finds_it() {
        let data = Bench::new();
        assert!(matches!(data.open(), Err(KeysError::None(_))));
        let made = data.open_or_create();
        let key = made.first_of(&account()).unwrap();
        assert_eq!(key.id.len(), 20);
        assert!(key.id.starts_with("AKIA"));
        assert_eq!(key.secret.expose_secret().len(), 40);

        let found = data.open_or_create();
        assert_eq!(found.all().len(), 1);
        let same = found.get(&key.id).unwrap();
        assert_eq!(same.secret.expose_secret(), key.secret.expose_secret());
        assert!(found.get("AKIAUNKNOWNUNKNOWN22").is_none());
    }

    #[test]
    fn only_the_owner_may_read_a_key_and_no_text_shows_it() {
        let data = Bench::new();
        let keys = data.open_or_create();
        let first = keys.first_of(&account()).unwrap();
        let path = data.path().join(format!("keys/{}.json", first.id));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(&data.path().join("keys")), 0o700);
        assert!(!format!("{keys:?}").contains(first.secret.expose_secret()));
        let stored = std::fs::read_to_string(&path).unwrap();
        assert!(dormouse_secrets::is_sealed(stored.as_bytes()));
        assert!(!stored.contains(first.secret.expose_secret()));
    }

    #[test]
    fn the_plain_keys_of_an_earlier_version_are_sealed_by_the_next_start() {
        let data = Bench::new();
        let first = data.open_or_create().first_of(&account()).unwrap();
        let path = data.path().join(format!("keys/{}.json", first.id));
        let plain = data.sealer.read(PURPOSE, &path).unwrap().unwrap();
        std::fs::write(&path, &plain).unwrap();
        data.open().unwrap();
        let stored = || std::fs::read(&path).unwrap();
        assert_eq!(stored(), plain.as_slice(), "a command leaves them alone");

        let keys = data.open_or_create();
        assert!(dormouse_secrets::is_sealed(&stored()));
        let same = data.open().unwrap().get(&first.id).unwrap();
        assert_eq!(same.secret.expose_secret(), first.secret.expose_secret());
        assert_eq!(keys.all().len(), 1);
    }

    #[test]
    fn a_key_in_anothers_place_is_refused() {
        let data = Bench::new();
        data.open_or_create();
        let [one, two] = [0, 1].map(|_| data.create(account()).id);
        let path = |id| data.path().join(format!("keys/{id}.json"));
        std::fs::copy(path(one), path(two.clone())).unwrap();
        let said = data.open().unwrap_err().to_string();
        assert!(said.contains(&two), "{said}");
    }

    #[test]
    fn a_damaged_file_is_named_and_not_quoted() {
        let data = Bench::new();
        std::fs::create_dir(data.path().join("keys")).unwrap();
        for damaged in [
            "",
            "{\"access_key_id\": \"AKIAAAAAAAAAAAAAAAAA\", \"secret_access_key\": [\"hushhushhushhush\"]}",
            r#"{"access_key_id": "../../etc/passwd!", "secret_access_key": "hushhushhushhush", "account": "000000000000"}"#,
            r#"{"access_key_id": "AKIAAAAAAAAAAAAAAAAA", "secret_access_key": "hushhushhushhush", "account": "me"}"#,
            r#"{"access_key_id": "AKIAAAAAAAAAAAAAAAAA", "secret_access_key": "hush", "account": "000000000000"}"#,
        ] {
            std::fs::write(data.path().join("keys/a.json"), damaged).unwrap();
            let said = data.open().unwrap_err().to_string();
            assert!(said.contains("keys/a.json"), "{said}");
            assert!(!said.contains("hush"), "{said}");
        }
    }

    #[test]
    fn keys_come_and_go_while_they_are_in_use() {
        let data = Bench::new();
        let keys = data.open_or_create();
        let first = keys.first_of(&account()).unwrap();
        let other = AccountId::parse("111111111111").unwrap();
        let made = data.create(other.clone());
        assert!(keys.get(&made.id).is_none());
        keys.refresh().unwrap();
        assert_eq!(keys.get(&made.id).unwrap().account, other);
        assert_eq!(keys.first_of(&account()).unwrap().id, first.id);
        assert_eq!(keys.all().len(), 2);

        std::fs::write(data.path().join("keys/bad.json"), "{").unwrap();
        Keys::delete(data.path(), &first.id).unwrap();
        keys.refresh().unwrap();
        assert!(keys.get(&first.id).is_none());
        assert!(keys.get(&made.id).is_some(), "a bad file harms no other");
        for unknown in [first.id.as_str(), "../keys/bad", "bad", ""] {
            let gone = Keys::delete(data.path(), unknown);
            assert!(matches!(gone, Err(KeysError::Unknown(_))), "{unknown}");
        }
    }

    #[test]
    fn a_key_whose_file_cannot_be_read_for_now_stays_and_is_read_again() {
        let data = Bench::new();
        let keys = data.open_or_create();
        let first = keys.first_of(&account()).unwrap();
        let path = data.path().join(format!("keys/{}.json", first.id));
        let aside = data.path().join("aside");
        std::fs::rename(&path, &aside).unwrap();
        // What cannot be read, whoever tries.
        std::fs::create_dir(&path).unwrap();
        let made = data.create(account());
        keys.refresh().unwrap_err();
        assert!(keys.get(&first.id).is_some() && keys.get(&made.id).is_some());
        Keys::delete(data.path(), &made.id).unwrap();
        keys.refresh().unwrap_err();
        assert!(keys.get(&first.id).is_some() && keys.get(&made.id).is_none());

        std::fs::remove_dir(&path).unwrap();
        std::fs::rename(&aside, &path).unwrap();
        keys.refresh().unwrap();
        assert_eq!(keys.all().len(), 1);
        Keys::delete(data.path(), &first.id).unwrap();
        keys.refresh().unwrap();
        assert!(keys.all().is_empty());
    }

    #[tokio::test]
    async fn a_key_that_was_made_a_moment_ago_is_met() {
        let data = Bench::new();
        let keys = Arc::new(data.open_or_create());
        for header in [true, false] {
            let made = data.create(account());
            let credential = format!("{}/20260101/us-east-1/lambda/aws4_request", made.id);
            let request = match header {
                true => http::Request::get("/").header(
                    "authorization",
                    format!("AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host"),
                ),
                false => {
                    let credential = credential.replace('/', "%2F");
                    http::Request::get(format!("/?a=b&X-Amz-Credential={credential}&c=d"))
                }
            };
            let (parts, ()) = request.body(()).unwrap().into_parts();
            keys.meet(&parts).await;
            assert!(keys.get(&made.id).is_some());
        }
        let (parts, ()) = http::Request::get("/").body(()).unwrap().into_parts();
        keys.meet(&parts).await;
    }
}
