//! Which key seals the secrets of a data directory: the one that the configuration names, else the
//! credential that systemd hands over, else `DATA/sealing.key`, which the first start makes.
//!
//! A key is made only while nothing is sealed: where one is missing, somebody has to say where it is.

use crate::config::Config;
use crate::daemon::DaemonFile;
use dormouse_secrets::{Sealer, SecretError, is_sealed};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Folders that hold what is sealed, besides the database.
const FOLDERS: [&str; 3] = ["keys", "tls", "tls/acme"];
/// Enough of a file to see whether it is sealed.
const HEAD_BYTES: u64 = 64;

/// For a daemon that starts.
pub(crate) fn for_daemon(config: &Config) -> Result<Sealer, SecretError> {
    open_or_create(&config.data_dir, config.secrets.key_file.as_deref())
}

/// For a command that makes a secret, beside a daemon or before there is one.
pub(crate) fn for_writing(config: &Config) -> Result<Sealer, SecretError> {
    open_or_create(&config.data_dir, key_file_of_daemon(config).as_deref())
}

/// For a command that reads secrets; it makes no key.
pub(crate) fn for_reading(config: &Config) -> Result<Sealer, SecretError> {
    let found = find(&config.data_dir, key_file_of_daemon(config).as_deref())?;
    // Where nothing is sealed, any key will do.
    Ok(found.unwrap_or_else(Sealer::random))
}

/// A command may not know what the daemon was configured with, nor see its credentials.
fn key_file_of_daemon(config: &Config) -> Option<PathBuf> {
    let configured = config.secrets.key_file.clone();
    configured.or_else(|| DaemonFile::read(&config.data_dir).ok()?.sealing_key_file)
}

fn open_or_create(data_dir: &Path, key_file: Option<&Path>) -> Result<Sealer, SecretError> {
    match find(data_dir, key_file)? {
        Some(sealer) => Ok(sealer),
        None => Sealer::create(&own_key_file(data_dir)),
    }
}

/// The sealer, or none where one may be made.
fn find(data_dir: &Path, key_file: Option<&Path>) -> Result<Option<Sealer>, SecretError> {
    let own = own_key_file(data_dir);
    let path = key_file.unwrap_or(&own);
    if let Some(sealer) = Sealer::open(path)? {
        return Ok(Some(sealer));
    }
    match (first_sealed(data_dir)?, key_file) {
        (Some(sealed), _) => Err(SecretError::KeyMissing {
            key_file: path.to_owned(),
            sealed,
        }),
        (None, Some(named)) => Err(SecretError::NoKey {
            path: named.to_owned(),
        }),
        (None, None) => Ok(None),
    }
}

fn own_key_file(data_dir: &Path) -> PathBuf {
    data_dir.join("sealing.key")
}

/// A file of the data directory that is sealed, if there is any.
fn first_sealed(data_dir: &Path) -> Result<Option<PathBuf>, SecretError> {
    for folder in FOLDERS {
        let folder = data_dir.join(folder);
        let found = sealed_in(&folder).map_err(|source| SecretError::Read {
            path: folder,
            source,
        })?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn sealed_in(folder: &Path) -> io::Result<Option<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if !entry.file_type()?.is_file() {
            continue;
        }
        let mut head = Vec::new();
        File::open(entry.path())?
            .take(HEAD_BYTES)
            .read_to_end(&mut head)?;
        if is_sealed(&head) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    const SECRET: &[u8] = b"hush";

    fn put_key(path: &Path, byte: u8) {
        fs::write(path, [byte; 32]).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    #[test]
    fn the_first_start_makes_a_key_and_later_ones_use_it() {
        let data = tempfile::tempdir().unwrap();
        assert!(find(data.path(), None).unwrap().is_none());
        let made = open_or_create(data.path(), None).unwrap();
        assert_eq!(made.key_file(), data.path().join("sealing.key"));
        let found = open_or_create(data.path(), None).unwrap();
        assert_eq!(found.key_id(), made.key_id());
    }

    #[test]
    fn where_something_is_sealed_no_key_is_made() {
        let data = tempfile::tempdir().unwrap();
        let own = own_key_file(data.path());
        let sealer = open_or_create(data.path(), None).unwrap();
        for name in ["keys/a.json", "tls/ca.key", "tls/acme/account.json"] {
            let sealed = data.path().join(name);
            sealer.write("test", &sealed, SECRET).unwrap();
            fs::rename(&own, data.path().join("elsewhere")).unwrap();
            for named in [None, Some(data.path().join("not-there"))] {
                let error = open_or_create(data.path(), named.as_deref()).unwrap_err();
                let said = error.to_string();
                assert!(matches!(error, SecretError::KeyMissing { .. }), "{said}");
                assert!(said.contains(name), "{said}");
                assert!(!own.exists());
            }
            fs::rename(data.path().join("elsewhere"), &own).unwrap();
            fs::remove_file(sealed).unwrap();
        }
    }

    #[test]
    fn a_key_that_is_named_wins_and_is_never_made() {
        let data = tempfile::tempdir().unwrap();
        let named = data.path().join("named");
        let error = open_or_create(data.path(), Some(&named)).unwrap_err();
        assert!(matches!(error, SecretError::NoKey { .. }));
        assert!(!named.exists());
        put_key(&named, 7);
        put_key(&own_key_file(data.path()), 8);
        let sealer = open_or_create(data.path(), Some(&named)).unwrap();
        assert_eq!(sealer.key_file(), named);

        let path = data.path().join("keys/a.json");
        sealer.write("test", &path, SECRET).unwrap();
        let other = open_or_create(data.path(), None).unwrap();
        let error = other.read("test", &path).unwrap_err();
        assert!(matches!(error, SecretError::OtherKey { .. }));
    }
}
