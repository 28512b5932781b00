//! `[secrets]`: the key that seals what must not lie open on the disk.

use super::ConfigError;
use serde::Deserialize;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Name of the credential in systemd's `LoadCredential=` or `LoadCredentialEncrypted=`.
const CREDENTIAL: &str = "dormouse-sealing-key";

/// How secrets are sealed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct SecretsConfig {
    /// The file of the sealing key; none for the one in the data directory.
    pub(crate) key_file: Option<PathBuf>,
}

/// The table as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawSecrets {
    key_file: Option<PathBuf>,
}

/// Checks the table. `credentials` is the folder that systemd hands over to a service.
pub(super) fn secrets(
    raw: RawSecrets,
    credentials: Option<OsString>,
) -> Result<SecretsConfig, ConfigError> {
    let named = raw.key_file.map(|path| absolute(&path)).transpose()?;
    let credential = credentials.map(|folder| Path::new(&folder).join(CREDENTIAL));
    let credential = credential.filter(|path| path.is_file());
    Ok(SecretsConfig {
        key_file: named.or(credential),
    })
}

fn absolute(path: &Path) -> Result<PathBuf, ConfigError> {
    std::path::absolute(path).map_err(|error| ConfigError::Value {
        key: "secrets.key_file",
        problem: format!("{path:?} is not a path: {error}"),
        remedy: "name a file of 32 random bytes, as in \"/etc/dormouse/sealing.key\"",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_counts_where_there_is_one_and_no_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let credentials = || Some(folder.path().as_os_str().to_owned());
        let key_file = |raw, credentials| secrets(raw, credentials).unwrap().key_file;
        assert_eq!(key_file(RawSecrets::default(), None), None);
        assert_eq!(key_file(RawSecrets::default(), credentials()), None);
        let credential = folder.path().join(CREDENTIAL);
        std::fs::write(&credential, "").unwrap();
        let found = key_file(RawSecrets::default(), credentials());
        assert_eq!(found, Some(credential));
        let named = RawSecrets {
            key_file: Some("/etc/key".into()),
        };
        assert_eq!(key_file(named, credentials()), Some("/etc/key".into()));
    }
}
