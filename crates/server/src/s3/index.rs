//! The index: which buckets and objects there are, and in which file each object's bytes lie.
//!
//! Whatever takes a blob out of the index returns its name, for the caller to delete the file. A blob that
//! no row names is rubbish; the next start removes it.

use super::StorageError;
use dormouse_core::{AccountId, Timestamp};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Schema of the index; kept as the database's `user_version`.
const SCHEMA_VERSION: u32 = 2;
/// The schema in which buckets belonged to nobody.
const SCHEMA_WITHOUT_ACCOUNTS: u32 = 1;

/// The index. Its methods block.
#[derive(Debug)]
pub(super) struct Index(Mutex<Connection>);

/// The bytes of an object or a part: a file that never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob {
    /// The file's name.
    pub(super) name: String,
    /// In bytes.
    pub(super) size: u64,
    /// Without quotes.
    pub(super) etag: String,
}

/// An object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    /// Its key within the bucket.
    pub(super) key: String,
    /// Its bytes.
    pub(super) blob: Blob,
    /// When it was written.
    pub(super) modified_at: Timestamp,
    /// What its writer said of it.
    pub(super) attributes: Attributes,
}

/// What an object's writer said of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Attributes {
    pub(super) cache_control: Option<String>,
    pub(super) content_disposition: Option<String>,
    pub(super) content_encoding: Option<String>,
    pub(super) content_language: Option<String>,
    pub(super) content_type: Option<String>,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) checksums: Checksums,
}

/// Checksums of the bytes, in base64, as far as the writer wanted them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Checksums {
    pub(super) crc32: Option<String>,
    pub(super) crc32c: Option<String>,
    pub(super) crc64nvme: Option<String>,
    pub(super) sha1: Option<String>,
    pub(super) sha256: Option<String>,
}

/// What must hold for a write to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Condition {
    /// Nothing.
    None,
    /// There is no object of this key.
    Absent,
    /// The object of this key has this ETag.
    Matches(String),
}

impl Index {
    /// Opens the index, making it where there is none. Buckets of before there were accounts become `owner`'s.
    pub(super) fn open(path: &Path, owner: &AccountId) -> Result<Self, StorageError> {
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(dormouse_core::limits::STORE_BUSY_TIMEOUT)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update(None, "foreign_keys", "on")?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        match transaction.pragma_query_value(None, "user_version", |row| row.get(0))? {
            0 => {
                transaction.execute_batch(include_str!("schema.sql"))?;
                transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            }
            SCHEMA_WITHOUT_ACCOUNTS => {
                transaction.execute_batch(
                    "ALTER TABLE buckets ADD COLUMN account TEXT NOT NULL DEFAULT ''",
                )?;
                transaction.execute("UPDATE buckets SET account = ?1", [owner.as_str()])?;
                transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            }
            SCHEMA_VERSION => {}
            found => {
                return Err(StorageError::Schema {
                    path: path.to_owned(),
                    found,
                });
            }
        }
        transaction.commit()?;
        Ok(Self(Mutex::new(connection)))
    }

    /// Runs `work` in a transaction of its own.
    pub(super) fn with<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        // A panic has rolled its transaction back: the connection is good.
        let mut connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = work(&transaction)?;
        transaction.commit()?;
        Ok(value)
    }
}

/// Makes a bucket of this account; says whether it is new.
pub(super) fn create_bucket(
    index: &Connection,
    name: &str,
    account: &AccountId,
    now: Timestamp,
) -> Result<bool, StorageError> {
    let added = index.execute(
        "INSERT OR IGNORE INTO buckets (name, created_ms, account) VALUES (?1, ?2, ?3)",
        (name, now.0, account.as_str()),
    )?;
    match require_own(index, name, account) {
        Err(StorageError::AccessDenied) => Err(StorageError::BucketTaken),
        own => own.map(|()| added == 1),
    }
}

/// Fails unless there is such a bucket and it is this account's.
pub(super) fn require_own(
    index: &Connection,
    name: &str,
    account: &AccountId,
) -> Result<(), StorageError> {
    let owner: Option<String> = index
        .query_row(
            "SELECT account FROM buckets WHERE name = ?1",
            [name],
            |row| row.get(0),
        )
        .optional()?;
    match owner {
        None => Err(StorageError::NoSuchBucket),
        Some(owner) if owner == account.as_str() => Ok(()),
        Some(_) => Err(StorageError::AccessDenied),
    }
}

/// Removes an empty bucket.
pub(super) fn delete_bucket(index: &Connection, name: &str) -> Result<(), StorageError> {
    require_bucket(index, name)?;
    let in_use: bool = index.query_row(
        "SELECT EXISTS (SELECT 1 FROM objects WHERE bucket = ?1)
             OR EXISTS (SELECT 1 FROM uploads WHERE bucket = ?1)",
        [name],
        |row| row.get(0),
    )?;
    if in_use {
        return Err(StorageError::BucketNotEmpty);
    }
    index.execute("DELETE FROM buckets WHERE name = ?1", [name])?;
    Ok(())
}

/// Fails unless there is such a bucket.
pub(super) fn require_bucket(index: &Connection, name: &str) -> Result<(), StorageError> {
    let found = index
        .query_row("SELECT 1 FROM buckets WHERE name = ?1", [name], |_| Ok(()))
        .optional()?;
    found.ok_or(StorageError::NoSuchBucket)
}

/// Every bucket of an account with the time of its making, by name.
pub(super) fn buckets(
    index: &Connection,
    account: &AccountId,
) -> Result<Vec<(String, Timestamp)>, StorageError> {
    let mut select = index
        .prepare_cached("SELECT name, created_ms FROM buckets WHERE account = ?1 ORDER BY name")?;
    let row = |row: &Row<'_>| Ok((row.get(0)?, Timestamp(row.get(1)?)));
    let rows = select.query_map([account.as_str()], row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Reads an object.
pub(super) fn object(index: &Connection, bucket: &str, key: &str) -> Result<Object, StorageError> {
    require_bucket(index, bucket)?;
    find(index, bucket, key)?.ok_or(StorageError::NoSuchKey)
}

fn find(index: &Connection, bucket: &str, key: &str) -> Result<Option<Object>, StorageError> {
    let mut select = index.prepare_cached(
        "SELECT key, blob, size, etag, modified_ms, attributes FROM objects WHERE bucket = ?1 AND key = ?2",
    )?;
    Ok(select.query_row((bucket, key), object_row).optional()?)
}

/// The objects of a bucket from the key `from` on, in the order of their keys.
pub(super) fn objects_from(
    index: &Connection,
    bucket: &str,
    from: &str,
    limit: usize,
) -> Result<Vec<Object>, StorageError> {
    let mut select = index.prepare_cached(
        "SELECT key, blob, size, etag, modified_ms, attributes FROM objects
         WHERE bucket = ?1 AND key >= ?2 ORDER BY key LIMIT ?3",
    )?;
    let rows = select.query_map((bucket, from, limit), object_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Puts an object in its place if the condition holds; returns the blob that was there before.
pub(super) fn put_object(
    index: &Connection,
    bucket: &str,
    object: &Object,
    condition: &Condition,
) -> Result<Option<String>, StorageError> {
    require_bucket(index, bucket)?;
    let old = find(index, bucket, &object.key)?;
    check(condition, old.as_ref())?;
    index.execute(
        "INSERT OR REPLACE INTO objects (bucket, key, blob, size, etag, modified_ms, attributes)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        (
            bucket,
            &object.key,
            &object.blob.name,
            object.blob.size,
            &object.blob.etag,
            object.modified_at.0,
            to_json(&object.attributes),
        ),
    )?;
    Ok(old.map(|old| old.blob.name))
}

fn check(condition: &Condition, current: Option<&Object>) -> Result<(), StorageError> {
    match (condition, current) {
        (Condition::None, _) | (Condition::Absent, None) => Ok(()),
        (Condition::Matches(etag), Some(current)) if current.blob.etag == *etag => Ok(()),
        (Condition::Matches(_), None) => Err(StorageError::NoSuchKey),
        _ => Err(StorageError::PreconditionFailed),
    }
}

/// Removes an object, if it is there; returns its blob.
pub(super) fn delete_object(
    index: &Connection,
    bucket: &str,
    key: &str,
) -> Result<Option<String>, StorageError> {
    require_bucket(index, bucket)?;
    let mut delete = index
        .prepare_cached("DELETE FROM objects WHERE bucket = ?1 AND key = ?2 RETURNING blob")?;
    Ok(delete
        .query_row((bucket, key), |row| row.get(0))
        .optional()?)
}

/// Every blob that a row names.
pub(super) fn blobs(index: &Connection) -> Result<HashSet<String>, StorageError> {
    let mut select = index.prepare("SELECT blob FROM objects UNION ALL SELECT blob FROM parts")?;
    let rows = select.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn object_row(row: &Row<'_>) -> Result<Object, rusqlite::Error> {
    Ok(Object {
        key: row.get(0)?,
        blob: Blob {
            name: row.get(1)?,
            size: row.get(2)?,
            etag: row.get(3)?,
        },
        modified_at: Timestamp(row.get(4)?),
        attributes: from_json(row, 5)?,
    })
}

/// Strings become JSON without fail.
pub(super) fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("strings become JSON")
}

/// Reads a column that [`to_json`] wrote.
pub(super) fn from_json<T: serde::de::DeserializeOwned>(
    row: &Row<'_>,
    column: usize,
) -> Result<T, rusqlite::Error> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(
            column,
            rusqlite::types::Type::Text,
            Box::new(error),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(number: u8) -> AccountId {
        AccountId::parse(&format!("{number:012}")).unwrap()
    }

    #[test]
    fn a_bucket_of_before_there_were_accounts_is_the_daemons_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.db");
        let old = Connection::open(&path).unwrap();
        old.execute_batch(
            "CREATE TABLE buckets (name TEXT PRIMARY KEY, created_ms INTEGER NOT NULL) STRICT;
             INSERT INTO buckets VALUES ('old', 1);
             PRAGMA user_version = 1;",
        )
        .unwrap();
        drop(old);
        for _ in 0..2 {
            let index = Index::open(&path, &account(1)).unwrap();
            let own = index.with(|index| require_own(index, "old", &account(1)));
            assert!(own.is_ok(), "{own:?}");
            let other = index.with(|index| require_own(index, "old", &account(2)));
            assert!(
                matches!(other, Err(StorageError::AccessDenied)),
                "{other:?}"
            );
        }
    }

    #[test]
    fn a_bucket_has_one_owner_and_its_name_is_taken_for_all() {
        let folder = tempfile::tempdir().unwrap();
        let index = Index::open(&folder.path().join("index.db"), &account(1)).unwrap();
        let create = |who| index.with(|i| create_bucket(i, "b", &account(who), Timestamp(0)));
        assert!(create(1).unwrap());
        assert!(!create(1).unwrap());
        assert!(matches!(create(2), Err(StorageError::BucketTaken)));
        let listed = |who| index.with(|i| buckets(i, &account(who))).unwrap().len();
        assert_eq!((listed(1), listed(2)), (1, 0));
    }
}
