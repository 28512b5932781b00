//! What a daemon leaves in its data directory for others: a lock while it runs, and where to reach it.

use dormouse_core::AccountId;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const FILE: &str = "daemon.json";

/// Where the daemon of a data directory is reached, or was last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DaemonFile {
    /// Its process id.
    pub(crate) pid: u32,
    /// Where the control API and S3 listen.
    pub(crate) api_addr: SocketAddr,
    /// Where the TLS ingress listens.
    pub(crate) ingress_addr: SocketAddr,
    /// Where `CONNECT` is served; none when it is off.
    #[serde(default)]
    pub(crate) connect_addr: Option<SocketAddr>,
    /// AWS region that it stands for.
    pub(crate) region: String,
    /// AWS account of its first access key.
    pub(crate) account: AccountId,
    /// Where the key is that seals its secrets; none for the data directory's own.
    #[serde(default)]
    pub(crate) sealing_key_file: Option<PathBuf>,
    /// Certificate of the CA that signs the endpoints' certificates, as PEM.
    pub(crate) ca_file: PathBuf,
}

/// Keeps a second daemon out of a data directory until it is dropped or the process ends.
#[derive(Debug)]
pub(crate) struct DataLock {
    _file: File,
}

/// Why the files of a daemon cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    /// Another daemon has the data directory.
    #[error("another `dormouse serve` uses {0}: stop it, or use another data directory")]
    Locked(PathBuf),
    /// No daemon has run here yet.
    #[error("no daemon has run in {0} yet: start `dormouse serve` with this data directory first")]
    NeverRan(PathBuf),
    /// The file is damaged.
    #[error("{path} is damaged: start `dormouse serve` again to write it anew")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
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
}

impl DataLock {
    /// Takes the lock of a data directory that exists.
    pub(crate) fn acquire(data_dir: &Path) -> Result<Self, DaemonError> {
        let path = data_dir.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(DaemonError::Locked(data_dir.to_owned())),
            Err(TryLockError::Error(error)) => Err(failed("lock", &path)(error)),
        }
    }
}

impl DaemonFile {
    /// Writes the file; readers see the old one or the new one.
    pub(crate) fn write(&self, data_dir: &Path) -> Result<(), DaemonError> {
        let text = serde_json::to_vec_pretty(self).expect("strings become JSON");
        replace_file(&data_dir.join(FILE), &text)
    }

    /// Reads the file of the daemon that runs, or ran last.
    pub(crate) fn read(data_dir: &Path) -> Result<Self, DaemonError> {
        let path = data_dir.join(FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(DaemonError::NeverRan(data_dir.to_owned()));
            }
            Err(error) => return Err(failed("read", &path)(error)),
        };
        serde_json::from_slice(&text).map_err(|source| DaemonError::Malformed { path, source })
    }

    /// What clients on this machine put into `AWS_ENDPOINT_URL`. An address rather than a name: clients
    /// put the bucket's name before a name.
    pub(crate) fn api_url(&self) -> String {
        format!("http://{}", reachable(self.api_addr))
    }

    /// Where clients on this machine reach the ingress.
    pub(crate) fn ingress_reachable(&self) -> SocketAddr {
        reachable(self.ingress_addr)
    }
}

/// Puts a file in its place, whole: readers see the old one or the new one.
pub(crate) fn replace_file(path: &Path, text: &[u8]) -> Result<(), DaemonError> {
    let new = path.with_extension(format!("new-{}", std::process::id()));
    let write = || {
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text)?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().map_err(failed("write", path))
}

/// An address to connect to, for one to listen on: nobody is reached at "any address".
pub(crate) fn reachable(listening: SocketAddr) -> SocketAddr {
    let loopback = match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(loopback, listening.port())
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DaemonError {
    let path = path.to_owned();
    move |source| DaemonError::Io {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_has_one_daemon() {
        let data = tempfile::tempdir().unwrap();
        let lock = DataLock::acquire(data.path()).unwrap();
        assert!(matches!(
            DataLock::acquire(data.path()),
            Err(DaemonError::Locked(_))
        ));
        drop(lock);
        DataLock::acquire(data.path()).unwrap();
    }

    #[test]
    fn a_daemon_is_found_where_it_said_it_is() {
        let data = tempfile::tempdir().unwrap();
        assert!(matches!(
            DaemonFile::read(data.path()),
            Err(DaemonError::NeverRan(_))
        ));
        let mut file = DaemonFile {
            pid: 1,
            api_addr: "0.0.0.0:9400".parse().unwrap(),
            ingress_addr: "127.0.0.1:9443".parse().unwrap(),
            connect_addr: None,
            region: "us-east-1".to_owned(),
            account: AccountId::parse("000000000000").unwrap(),
            sealing_key_file: Some("/sealing.key".into()),
            ca_file: "/ca.pem".into(),
        };
        file.write(data.path()).unwrap();
        assert_eq!(DaemonFile::read(data.path()).unwrap(), file);
        assert_eq!(file.api_url(), "http://127.0.0.1:9400");
        file.api_addr = "[::]:1".parse().unwrap();
        assert_eq!(file.api_url(), "http://[::1]:1");
        std::fs::write(data.path().join(FILE), "{").unwrap();
        assert!(matches!(
            DaemonFile::read(data.path()),
            Err(DaemonError::Malformed { .. })
        ));
    }
}
