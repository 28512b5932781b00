//! Brings a database's schema up to date: ordered files, each applied once.
//!
//! The text of each applied migration is kept in the database, so that a program with other migrations
//! than the database was made with is refused instead of guessing.

use crate::StoreError;
use rusqlite::{Connection, TransactionBehavior};
use std::path::Path;

/// Migration `n` of the database is entry `n - 1`. Append only.
const MIGRATIONS: [&str; 2] = [
    include_str!("../migrations/0001_rows.sql"),
    include_str!("../migrations/0002_sealed.sql"),
];

/// Applies what is missing, all of it or nothing.
pub(crate) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let failed = StoreError::sqlite;
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(failed("begin a migration"))?;
    transaction
        .execute_batch(
            "CREATE TABLE IF NOT EXISTS migrations (version INTEGER PRIMARY KEY, sql TEXT NOT NULL) STRICT",
        )
        .map_err(failed("create the migration table"))?;
    let applied = applied(&transaction).map_err(failed("read the migration table"))?;
    let known = u32::try_from(MIGRATIONS.len()).expect("a handful of migrations");
    if let Some(&(found, _)) = applied.last()
        && found > known
    {
        return Err(StoreError::TooNew {
            path: path.to_owned(),
            found,
            known,
        });
    }
    for (version, sql) in (1..).zip(MIGRATIONS) {
        match applied.iter().find(|(applied, _)| *applied == version) {
            Some((_, text)) if text == sql => continue,
            Some(_) => {
                return Err(StoreError::Diverged {
                    path: path.to_owned(),
                    version,
                });
            }
            None => {}
        }
        transaction
            .execute_batch(sql)
            .map_err(failed("apply a migration"))?;
        transaction
            .execute(
                "INSERT INTO migrations (version, sql) VALUES (?1, ?2)",
                (version, sql),
            )
            .map_err(failed("record a migration"))?;
        tracing::info!(version, database = %path.display(), "database migrated");
    }
    transaction.commit().map_err(failed("commit a migration"))
}

fn applied(connection: &Connection) -> Result<Vec<(u32, String)>, rusqlite::Error> {
    connection
        .prepare("SELECT version, sql FROM migrations ORDER BY version")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect()
}
