//! Why the store could not do what was asked.

use crate::Kind;
use dormouse_secrets::SecretError;
use std::path::PathBuf;

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A row of this name is there already.
    #[error("{kind} {id} exists already")]
    Exists {
        /// Kind of the row.
        kind: Kind,
        /// Its name.
        id: String,
    },
    /// The row was changed or deleted since it was read: read it again and decide again.
    #[error("{kind} {id} was changed by another writer")]
    Stale {
        /// Kind of the row.
        kind: Kind,
        /// Its name.
        id: String,
    },
    /// A value could not be turned into a row's body or back.
    #[error("{kind} {id} does not convert to or from its stored form")]
    Body {
        /// Kind of the row.
        kind: Kind,
        /// Its name.
        id: String,
        /// What the conversion said.
        #[source]
        source: serde_json::Error,
    },
    /// The database was made by a newer Dormouse.
    #[error(
        "database {path} has schema {found}, this version of dormouse knows up to {known}: \
         use the newer dormouse again, or restore a copy made before the upgrade"
    )]
    TooNew {
        /// The database file.
        path: PathBuf,
        /// Newest migration in the database.
        found: u32,
        /// Newest migration that this program has.
        known: u32,
    },
    /// A migration that was applied is not the one that this program has.
    #[error(
        "database {path}: migration {version} is not the one that this dormouse has; \
         the database belongs to another build"
    )]
    Diverged {
        /// The database file.
        path: PathBuf,
        /// The migration.
        version: u32,
    },
    /// The database file could not be made or protected.
    #[error("{action} {path}")]
    File {
        /// What was being done, as in `create`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A row's body cannot be opened.
    #[error(transparent)]
    Sealed(#[from] SecretError),
    /// SQLite refused.
    #[error("{action} in the database")]
    Sqlite {
        /// What was being done, as in `read a row`.
        action: &'static str,
        /// SQLite's answer.
        #[source]
        source: rusqlite::Error,
    },
    /// The database's thread is gone: it was shut down or it panicked.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// Whether the cause is a full disk: nothing was written and the caller may try again.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Sqlite { source, .. } => {
                source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
            }
            Self::File { source, .. } => source.kind() == std::io::ErrorKind::StorageFull,
            _ => false,
        }
    }

    pub(crate) fn sqlite(action: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self::Sqlite { action, source }
    }
}
