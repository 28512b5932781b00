//! Access keys: who may call the API and the embedded S3, and for which account.
//!
//! `DATA/keys/ID.json` holds one key. The first start makes one; a key is removed by deleting its file
//! while the daemon is stopped.

use base64::{Engine, engine::general_purpose::STANDARD};
use dormouse_core::AccountId;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Length of an access key's id, as on AWS.
const ID_LEN: usize = 20;
/// What an id of a lasting key starts with, on AWS.
const ID_PREFIX: &str = "AKIA";
/// Bytes of randomness in a secret: 40 characters in base64, as on AWS.
const SECRET_BYTES: usize = 30;

/// One access key.
#[derive(Debug, Clone)]
pub(crate) struct AccessKey {
    /// Its public name.
    pub(crate) id: String,
    /// What its requests are signed with.
    pub(crate) secret: SecretString,
    /// The account that it acts for.
    pub(crate) account: AccountId,
}

/// The daemon's access keys.
#[derive(Debug, Clone)]
pub(crate) struct Keys(BTreeMap<String, AccessKey>);

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
}

/// A key as its file has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    access_key_id: String,
    secret_access_key: String,
    account: AccountId,
}

impl Keys {
    /// Reads the keys in the data directory, making the first one for `account` where there is none.
    pub(crate) fn open_or_create(data_dir: &Path, account: &AccountId) -> Result<Self, KeysError> {
        match Self::open(data_dir) {
            Err(KeysError::None(dir)) => {
                let key = AccessKey::random(account.clone());
                store(&dir, &key)?;
                tracing::info!(access_key_id = key.id, %account, "first access key made");
                Ok(Self(BTreeMap::from([(key.id.clone(), key)])))
            }
            opened => opened,
        }
    }

    /// Reads the keys in the data directory; there is at least one.
    pub(crate) fn open(data_dir: &Path) -> Result<Self, KeysError> {
        let dir = data_dir.join("keys");
        let files = match std::fs::read_dir(&dir) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(KeysError::None(dir));
            }
            Err(error) => return Err(failed("read", &dir)(error)),
        };
        let mut keys = BTreeMap::new();
        for file in files {
            let path = file.map_err(failed("read", &dir))?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                let key = load(&path)?;
                keys.insert(key.id.clone(), key);
            }
        }
        if keys.is_empty() {
            return Err(KeysError::None(dir));
        }
        Ok(Self(keys))
    }

    /// Finds a key by its id.
    pub(crate) fn get(&self, id: &str) -> Option<&AccessKey> {
        self.0.get(id)
    }

    /// The key that `dormouse env` gives out.
    pub(crate) fn first(&self) -> &AccessKey {
        self.0
            .values()
            .next()
            .expect("opened with at least one key")
    }
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
        }
    }
}

fn fill(bytes: &mut [u8]) {
    aws_lc_rs::rand::fill(bytes).expect("the system's random generator works");
}

/// Writes the whole file or none.
fn store(dir: &Path, key: &AccessKey) -> Result<(), KeysError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(failed("create", dir))?;
    let text = serde_json::to_vec_pretty(&KeyFile {
        access_key_id: key.id.clone(),
        secret_access_key: key.secret.expose_secret().to_owned(),
        account: key.account.clone(),
    })
    .expect("strings become JSON");
    let path = dir.join(format!("{}.json", key.id));
    let new = path.with_extension("new");
    let write = || {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        std::fs::File::open(dir)?.sync_all()
    };
    write().map_err(failed("write", &path))
}

fn load(path: &Path) -> Result<AccessKey, KeysError> {
    let malformed = |problem: String| KeysError::Malformed {
        path: path.to_owned(),
        problem,
    };
    let text = std::fs::read(path).map_err(failed("read", path))?;
    let file: KeyFile = serde_json::from_slice(&text)
        // The parser's own words could quote the secret.
        .map_err(|error| malformed(format!("line {}, column {}", error.line(), error.column())))?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric();
    let id = file.access_key_id;
    if !(16..=128).contains(&id.len()) || !id.bytes().all(plain) {
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
        secret: file.secret_access_key.into(),
        account: file.account,
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

    #[test]
    fn the_first_start_makes_one_key_and_the_second_finds_it() {
        let data = tempfile::tempdir().unwrap();
        assert!(matches!(Keys::open(data.path()), Err(KeysError::None(_))));
        let made = Keys::open_or_create(data.path(), &account()).unwrap();
        let key = made.first();
        assert_eq!(key.id.len(), 20);
        assert!(key.id.starts_with("AKIA"));
        assert_eq!(key.secret.expose_secret().len(), 40);

        let found = Keys::open_or_create(data.path(), &account()).unwrap();
        assert_eq!(found.0.len(), 1);
        let same = found.get(&key.id).unwrap();
        assert_eq!(same.secret.expose_secret(), key.secret.expose_secret());
        assert!(found.get("AKIAUNKNOWNUNKNOWN22").is_none());
    }

    #[test]
    fn only_the_owner_may_read_a_key_and_no_text_shows_it() {
        let data = tempfile::tempdir().unwrap();
        let keys = Keys::open_or_create(data.path(), &account()).unwrap();
        let path = data.path().join(format!("keys/{}.json", keys.first().id));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(&data.path().join("keys")), 0o700);
        assert!(!format!("{keys:?}").contains(keys.first().secret.expose_secret()));
    }

    #[test]
    fn a_damaged_file_is_named_and_not_quoted() {
        let data = tempfile::tempdir().unwrap();
        std::fs::create_dir(data.path().join("keys")).unwrap();
        for damaged in [
            "",
            "{\"access_key_id\": \"AKIAAAAAAAAAAAAAAAAA\", \"secret_access_key\": [\"hushhushhushhush\"]}",
            r#"{"access_key_id": "../../etc/passwd!", "secret_access_key": "hushhushhushhush", "account": "000000000000"}"#,
            r#"{"access_key_id": "AKIAAAAAAAAAAAAAAAAA", "secret_access_key": "hushhushhushhush", "account": "me"}"#,
            r#"{"access_key_id": "AKIAAAAAAAAAAAAAAAAA", "secret_access_key": "hush", "account": "000000000000"}"#,
        ] {
            std::fs::write(data.path().join("keys/a.json"), damaged).unwrap();
            let said = Keys::open(data.path()).unwrap_err().to_string();
            assert!(said.contains("keys/a.json"), "{said}");
            assert!(!said.contains("hush"), "{said}");
        }
    }
}
