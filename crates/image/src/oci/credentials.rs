//! Who we are at a registry.

use super::RegistryConfig;
use base64::Engine;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Longest password and largest docker configuration, in bytes.
const PASSWORD_BYTES_MAX: u64 = 64 << 10;
const DOCKER_CONFIG_BYTES_MAX: u64 = 1 << 20;
/// What `docker login` calls Docker Hub.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// A user name, and where its password is: read anew for each pull, so that it can be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user name.
    pub username: String,
    /// File with the password; line ends at its end do not count.
    pub password_file: PathBuf,
}

/// Why credentials cannot be used. Never says what they are.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is too large to be what it should be.
    #[error("`{}` is larger than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// The docker configuration is damaged.
    #[error("`{}` is no docker configuration", path.display())]
    DockerConfig {
        /// The file.
        path: PathBuf,
    },
    /// The docker configuration leaves the password to a program.
    #[error(
        "`{}` leaves the password for {host} to a credential helper, and those are not run: \
         set username and password_file under [registry.\"{host}\"]", path.display()
    )]
    Helper {
        /// The file.
        path: PathBuf,
        /// The registry.
        host: String,
    },
}

/// What is said at a registry or its token server.
#[derive(Debug, Clone)]
pub(super) enum Identity {
    Anonymous,
    Password {
        username: String,
        password: SecretString,
    },
    /// A token that other tokens are fetched with.
    Refresh(SecretString),
}

impl RegistryConfig {
    /// What to say at a registry. Blocking.
    pub(super) fn identity(&self, host: &str) -> Result<Identity, CredentialsError> {
        if let Some(found) = self.credentials.get(host) {
            let text = read(&found.password_file, PASSWORD_BYTES_MAX)?;
            return Ok(Identity::Password {
                username: found.username.clone(),
                password: text.trim_end_matches(['\r', '\n']).to_owned().into(),
            });
        }
        match &self.docker_config {
            Some(path) => of_docker_config(path, host),
            None => Ok(Identity::Anonymous),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct DockerConfig {
    auths: BTreeMap<String, DockerAuth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DockerAuth {
    auth: Option<SecretString>,
    identitytoken: Option<SecretString>,
}

fn of_docker_config(path: &Path, host: &str) -> Result<Identity, CredentialsError> {
    let damaged = || CredentialsError::DockerConfig {
        path: path.to_owned(),
    };
    let text = read(path, DOCKER_CONFIG_BYTES_MAX)?;
    let config: DockerConfig = serde_json::from_str(&text).map_err(|_| damaged())?;
    let keys = match host {
        "docker.io" => vec![
            DOCKER_HUB_KEY.to_owned(),
            "docker.io".to_owned(),
            "index.docker.io".to_owned(),
        ],
        host => vec![
            host.to_owned(),
            format!("https://{host}"),
            format!("https://{host}/"),
        ],
    };
    let entry = keys.iter().find_map(|key| config.auths.get(key));
    if let Some(token) = entry.and_then(|entry| entry.identitytoken.as_ref())
        && !token.expose_secret().is_empty()
    {
        return Ok(Identity::Refresh(token.clone()));
    }
    if let Some(auth) = entry.and_then(|entry| entry.auth.as_ref())
        && !auth.expose_secret().is_empty()
    {
        let engine = base64::engine::general_purpose::STANDARD;
        let decoded = engine.decode(auth.expose_secret()).map_err(|_| damaged())?;
        let decoded = String::from_utf8(decoded).map_err(|_| damaged())?;
        let (username, password) = decoded.split_once(':').ok_or_else(damaged)?;
        return Ok(Identity::Password {
            username: username.to_owned(),
            password: password.trim_end_matches('\0').to_owned().into(),
        });
    }
    // An entry without its secret is what a helper leaves behind.
    let helped = keys.iter().any(|key| config.cred_helpers.contains_key(key))
        || (entry.is_some() && config.creds_store.is_some());
    match helped {
        true => Err(CredentialsError::Helper {
            path: path.to_owned(),
            host: host.to_owned(),
        }),
        false => Ok(Identity::Anonymous),
    }
}

fn read(path: &Path, limit: u64) -> Result<String, CredentialsError> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(limit + 1).read_to_string(&mut text));
    let length = read.map_err(|source| CredentialsError::Read {
        path: path.to_owned(),
        source,
    })?;
    if length as u64 > limit {
        let path = path.to_owned();
        return Err(CredentialsError::TooLarge { path, limit });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(config: &RegistryConfig, host: &str) -> String {
        match config.identity(host) {
            Ok(Identity::Anonymous) => "anonymous".to_owned(),
            Ok(Identity::Password { username, password }) => {
                format!("{username}:{}", password.expose_secret())
            }
            Ok(Identity::Refresh(token)) => format!("refresh {}", token.expose_secret()),
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn credentials_come_from_a_file_or_from_docker() {
        let folder = tempfile::tempdir().unwrap();
        let password_file = folder.path().join("password");
        std::fs::write(&password_file, "s3:cret\n").unwrap();
        let docker = folder.path().join("config.json");
        // user:pass, and one with a zero byte at its end, as some tools leave it.
        let text = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dXNlcjpwYXNz"},"r.io":{"auth":"dXNlcjpwYXNzAA=="},
            "acr.io":{"auth":"","identitytoken":"abc"},"stored.io":{},"bad.io":{"auth":"!"}},
            "credHelpers":{"helped.io":"x"},"credsStore":"desktop"}"#;
        std::fs::write(&docker, text).unwrap();
        let mut config = RegistryConfig {
            docker_config: Some(docker),
            ..RegistryConfig::default()
        };
        let credentials = Credentials {
            username: "me".to_owned(),
            password_file: password_file.clone(),
        };
        config.credentials.insert("mine.io".to_owned(), credentials);
        for (host, expected) in [
            ("mine.io", "me:s3:cret"),
            ("docker.io", "user:pass"),
            ("r.io", "user:pass"),
            ("acr.io", "refresh abc"),
            ("other.io", "anonymous"),
        ] {
            assert_eq!(said(&config, host), expected, "{host}");
        }
        for host in ["helped.io", "stored.io"] {
            assert!(said(&config, host).contains("credential helper"), "{host}");
        }
        let bad = said(&config, "bad.io");
        assert!(bad.contains("no docker configuration"), "{bad}");
        std::fs::remove_file(password_file).unwrap();
        assert!(said(&config, "mine.io").contains("cannot read"));
        let shown = format!("{:?}", config.identity("docker.io"));
        assert!(!shown.contains("pass\""), "{shown}");
    }
}
