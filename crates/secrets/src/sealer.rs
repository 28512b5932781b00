//! Seals and opens secrets, in memory and in files.

use std::fmt;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use secrecy::zeroize::Zeroizing;

use crate::SecretError;
use crate::envelope::{self, Envelope, NotParsed, is_sealed};
use crate::file;
use crate::key::{self, Key};

/// Seals and opens secrets under one key.
pub struct Sealer {
    cipher: LessSafeKey,
    key_id: String,
    key_file: PathBuf,
}

impl Sealer {
    /// Reads the key at `key_file`; `None` where there is no such file.
    pub fn open(key_file: &Path) -> Result<Option<Self>, SecretError> {
        Ok(key::read(key_file)?.map(|key| Self::new(&key, key_file)))
    }

    /// Makes a key at `key_file`, unless somebody else has just done so, and uses the one that is there.
    pub fn create(key_file: &Path) -> Result<Self, SecretError> {
        Ok(Self::new(&key::create(key_file)?, key_file))
    }

    /// A key that nobody has and that is kept nowhere: for tests.
    #[must_use]
    pub fn random() -> Self {
        Self::new(&key::random(), Path::new(""))
    }

    fn new(key: &Key, key_file: &Path) -> Self {
        let cipher = UnboundKey::new(&AES_256_GCM, key.as_slice());
        Self {
            cipher: LessSafeKey::new(cipher.expect("the key has the cipher's length")),
            key_id: key::id(key),
            key_file: key_file.to_owned(),
        }
    }

    /// Where the key came from.
    #[must_use]
    pub fn key_file(&self) -> &Path {
        &self.key_file
    }

    /// What the key is called where it must not be shown.
    #[must_use]
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Seals `secret` as the one of this purpose and name.
    #[must_use]
    pub fn seal(&self, purpose: &str, name: &str, secret: &[u8]) -> String {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).expect("the system's random generator works");
        let mut sealed = Vec::with_capacity(NONCE_LEN + secret.len() + AES_256_GCM.tag_len());
        sealed.extend(nonce);
        sealed.extend(secret);
        let tag = self.cipher.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(envelope::bound(purpose, name)),
            &mut sealed[NONCE_LEN..],
        );
        sealed.extend(
            tag.expect("a secret is far shorter than the cipher allows")
                .as_ref(),
        );
        Envelope::text(&self.key_id, &sealed)
    }

    /// Opens what was sealed for this purpose and name. What is not sealed stays as it is.
    pub fn unseal(
        &self,
        purpose: &str,
        name: &str,
        bytes: Vec<u8>,
    ) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        let bytes = Zeroizing::new(bytes);
        if !is_sealed(&bytes) {
            return Ok(bytes);
        }
        let what = || format!("{purpose} {name}");
        let parsed = Envelope::parse(&bytes).map_err(|why| match why {
            NotParsed::Damaged => SecretError::Damaged { what: what() },
            NotParsed::TooNew => SecretError::TooNew { what: what() },
        })?;
        if parsed.key_id != self.key_id {
            return Err(SecretError::OtherKey {
                what: what(),
                sealed_with: parsed.key_id.to_owned(),
                key_file: self.key_file.clone(),
                key: self.key_id.clone(),
            });
        }
        self.decrypt(purpose, name, parsed.data)
            .ok_or_else(|| SecretError::Damaged { what: what() })
    }

    fn decrypt(&self, purpose: &str, name: &str, sealed: Vec<u8>) -> Option<Zeroizing<Vec<u8>>> {
        let mut sealed = Zeroizing::new(sealed);
        let (nonce, data) = sealed.split_first_chunk_mut::<NONCE_LEN>()?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let bound = Aad::from(envelope::bound(purpose, name));
        let secret = self.cipher.open_in_place(nonce, bound, data).ok()?;
        Some(Zeroizing::new(secret.to_vec()))
    }

    /// The secret at `path`, sealed or plain; `None` where there is no such file.
    pub fn read(
        &self,
        purpose: &str,
        path: &Path,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, SecretError> {
        let bytes = read(path)?;
        let unseal = |bytes| self.unseal(purpose, &name_of(path), bytes);
        bytes
            .map(unseal)
            .transpose()
            .map_err(|error| named(error, path))
    }

    /// Seals `secret` and puts it at `path`, for its owner only; a crash leaves the old file or the new one.
    pub fn write(&self, purpose: &str, path: &Path, secret: &[u8]) -> Result<(), SecretError> {
        let text = self.seal(purpose, &name_of(path), secret);
        file::replace(path, 0o600, text.as_bytes()).map_err(|source| SecretError::Write {
            path: path.to_owned(),
            source,
        })
    }

    /// Seals the file at `path` if it is plain, and says whether it was.
    pub fn adopt(&self, purpose: &str, path: &Path) -> Result<bool, SecretError> {
        let bytes = read(path)?.map(Zeroizing::new);
        let plain = bytes.filter(|bytes| !is_sealed(bytes));
        if let Some(secret) = &plain {
            self.write(purpose, path, secret)?;
        }
        Ok(plain.is_some())
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer")
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, SecretError> {
    file::read(path).map_err(|source| SecretError::Read {
        path: path.to_owned(),
        source,
    })
}

/// A file goes by its name alone, so that the data directory can be moved.
fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Says of a file where it is.
fn named(error: SecretError, path: &Path) -> SecretError {
    let place = path.display().to_string();
    match error {
        SecretError::Damaged { .. } => SecretError::Damaged { what: place },
        SecretError::TooNew { .. } => SecretError::TooNew { what: place },
        SecretError::OtherKey {
            sealed_with,
            key_file,
            key,
            ..
        } => SecretError::OtherKey {
            what: place,
            sealed_with,
            key_file,
            key,
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    const SECRET: &[u8] = b"hush, a secret";

    #[test]
    fn what_is_sealed_opens_as_itself_and_does_not_show() {
        let sealer = Sealer::random();
        for secret in [SECRET, b"", &[0; 100_000]] {
            let sealed = sealer.seal("a", "b", secret);
            assert!(is_sealed(sealed.as_bytes()));
            let opened = sealer.unseal("a", "b", sealed.into_bytes()).unwrap();
            assert_eq!(opened.as_slice(), secret);
        }
        let (once, twice) = (sealer.seal("a", "b", SECRET), sealer.seal("a", "b", SECRET));
        assert_ne!(once, twice, "each time under a nonce of its own");
        assert!(!once.contains("hush"));
        assert!(!is_sealed(SECRET));
    }

    #[test]
    fn one_changed_character_is_noticed() {
        let sealer = Sealer::random();
        let sealed = sealer.seal("a", "b", SECRET).into_bytes();
        for at in 0..sealed.len() - 1 {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            let opened = sealer.unseal("a", "b", changed.clone());
            // What has lost its mark counts as plain, and is no secret of any kind.
            match is_sealed(&changed) {
                true => drop(opened.unwrap_err()),
                false => assert_eq!(opened.unwrap().as_slice(), changed),
            }
        }
        for cut in b"dormouse-sealed ".len()..sealed.len() - 1 {
            sealer.unseal("a", "b", sealed[..cut].to_vec()).unwrap_err();
        }
    }

    #[test]
    fn what_is_sealed_as_one_thing_is_no_other() {
        let sealer = Sealer::random();
        let sealed = sealer.seal("access-key", "a.json", SECRET).into_bytes();
        for (purpose, name) in [("access-key", "b.json"), ("token-keys", "a.json"), ("", "")] {
            let opened = sealer.unseal(purpose, name, sealed.clone());
            assert!(matches!(opened, Err(SecretError::Damaged { .. })));
        }
    }

    #[test]
    fn a_file_that_takes_anothers_place_is_refused_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
        let sealer = Sealer::random();
        sealer.write("key", &one, SECRET).unwrap();
        sealer.write("key", &other, b"another").unwrap();
        fs::copy(&one, &other).unwrap();
        let error = sealer.read("key", &other).unwrap_err().to_string();
        assert!(error.contains("/other is damaged"), "{error}");
        fs::create_dir(folder.path().join("moved")).unwrap();
        fs::rename(&one, folder.path().join("moved/one")).unwrap();
        sealer
            .read("key", &folder.path().join("moved/one"))
            .unwrap();
    }

    #[test]
    fn another_key_is_told_from_damage() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let [right, wrong] = ["right", "wrong"].map(|name| folder.path().join(name));
        Sealer::create(&right)
            .unwrap()
            .write("key", &path, SECRET)
            .unwrap();
        let error = Sealer::create(&wrong)
            .unwrap()
            .read("key", &path)
            .unwrap_err();
        let said = error.to_string();
        assert!(matches!(error, SecretError::OtherKey { .. }), "{said}");
        for part in [&path, &wrong] {
            assert!(said.contains(&part.display().to_string()), "{said}");
        }
        let again = Sealer::open(&right).unwrap().unwrap();
        assert_eq!(
            again.read("key", &path).unwrap().unwrap().as_slice(),
            SECRET
        );
    }

    #[test]
    fn a_later_version_is_not_guessed_at() {
        let sealer = Sealer::random();
        let sealed = sealer
            .seal("a", "b", SECRET)
            .replace("sealed 1 ", "sealed 2 ");
        let opened = sealer.unseal("a", "b", sealed.into_bytes());
        assert!(matches!(opened, Err(SecretError::TooNew { .. })));
    }

    #[test]
    fn a_plain_file_is_read_as_it_is_and_sealed_when_it_is_adopted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let sealer = Sealer::random();
        let read = || sealer.read("key", &path).unwrap();
        assert!(read().is_none());
        assert!(!sealer.adopt("key", &path).unwrap());
        fs::write(&path, SECRET).unwrap();
        assert_eq!(read().unwrap().as_slice(), SECRET);
        assert_eq!(fs::read(&path).unwrap(), SECRET, "reading changes nothing");

        // A crash has left the draft of an earlier attempt.
        fs::write(folder.path().join("secret.new"), "half").unwrap();
        assert!(sealer.adopt("key", &path).unwrap());
        assert!(is_sealed(&fs::read(&path).unwrap()));
        assert_eq!(read().unwrap().as_slice(), SECRET);
        assert!(!sealer.adopt("key", &path).unwrap(), "once");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn no_text_shows_the_key() {
        let key = key::random();
        let sealer = Sealer::new(&key, Path::new("key"));
        let shown = format!("{sealer:?}");
        assert!(shown.contains(sealer.key_id()));
        assert!(!shown.contains(&hex::encode(key.as_slice())));
    }
}
