//! Rows in one SQLite file: the backend of a single host.
//!
//! SQLite blocks, so each of two connections has a thread and a bounded queue of its own: one for writes,
//! one for reads, which the write-ahead log lets go on while a write waits for the disk. A read that is
//! asked for after a write was answered sees it.

use crate::migrate::migrate;
use crate::{Backend, Kind, NewRow, Order, Query, Row, StoreError, Write, Written};
use async_trait::async_trait;
use dormouse_core::limits;
use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior, named_params};
use std::fmt;
use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use tokio::sync::{mpsc, oneshot};

/// A number in the file's header that SQLite leaves to its user: not 0 once every row is sealed, and what was plain is
/// nowhere in the file.
const PLAIN_IS_GONE: &str = "user_version";

/// Rows in one SQLite file.
#[derive(Debug)]
pub struct Sqlite {
    reader: Worker,
    writer: Worker,
}

impl Sqlite {
    /// Opens the database at `path`, making it and bringing its schema up to date as needed. Only its
    /// owner may read the file.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let path = path.to_owned();
        let open = move || {
            protect(&path)?;
            let mut writer = connect(&path)?;
            migrate(&mut writer, &path)?;
            Ok(Self {
                reader: Worker::start("store-read", connect(&path)?),
                writer: Worker::start("store-write", writer),
            })
        };
        tokio::task::spawn_blocking(open)
            .await
            .map_err(|_| StoreError::Closed)?
    }

    /// Whether [`Sqlite::leave_nothing_plain`] was done.
    pub(crate) async fn nothing_is_plain(&self) -> Result<bool, StoreError> {
        let read = |connection: &mut Connection| {
            connection.pragma_query_value(None, PLAIN_IS_GONE, |row| row.get(0))
        };
        let found: i64 = (self.reader.run(read).await?).map_err(StoreError::sqlite("look"))?;
        Ok(found != 0)
    }

    /// Writes the file anew, so that nothing is left of what was deleted or replaced, and notes that it was done: not
    /// where another connection still reads what was there, for then it is done at the next start.
    pub(crate) async fn leave_nothing_plain(&self) -> Result<(), StoreError> {
        self.writer
            .run(|connection| {
                connection.execute_batch("VACUUM")?;
                let truncate = "PRAGMA wal_checkpoint(TRUNCATE)";
                let hindered: bool = connection.query_row(truncate, [], |row| row.get(0))?;
                if hindered {
                    return Ok(());
                }
                connection.pragma_update(None, PLAIN_IS_GONE, 1)
            })
            .await?
            .map_err(StoreError::sqlite("compact"))
    }
}

#[async_trait]
impl Backend for Sqlite {
    async fn get(&self, kind: Kind, id: &str) -> Result<Option<Row>, StoreError> {
        let id = id.to_owned();
        self.reader
            .run(move |connection| get(connection, kind, &id))
            .await?
            .map_err(StoreError::sqlite("read a row"))
    }

    async fn list(&self, kind: Kind, query: &Query) -> Result<Vec<Row>, StoreError> {
        let query = query.clone();
        self.reader
            .run(move |connection| list(connection, kind, &query))
            .await?
            .map_err(StoreError::sqlite("list rows"))
    }

    async fn apply(&self, writes: Vec<Write>) -> Result<Vec<Written>, StoreError> {
        self.writer
            .run(move |connection| apply(connection, writes))
            .await?
    }
}

/// A thread that owns a connection. It ends when the last sender is dropped.
struct Worker(mpsc::Sender<Job>);

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

impl Worker {
    fn start(name: &str, mut connection: Connection) -> Self {
        let (sender, mut jobs) = mpsc::channel::<Job>(limits::STORE_QUEUE);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                while let Some(job) = jobs.blocking_recv() {
                    job(&mut connection);
                }
            })
            .expect("the system has threads left at startup");
        Self(sender)
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // Nobody may be waiting any more; the job is done all the same.
            drop(answer.send(job(connection)));
        });
        self.0.send(job).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("free_places", &self.0.capacity())
            .finish()
    }
}

/// Makes the file before SQLite does: its journals take over the mode.
fn protect(path: &Path) -> Result<(), StoreError> {
    const OWNER_ONLY: u32 = 0o600;
    let failed = |action| {
        move |source| StoreError::File {
            action,
            path: path.to_owned(),
            source,
        }
    };
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(OWNER_ONLY)
        .open(path)
        .map_err(failed("open"))?;
    file.set_permissions(Permissions::from_mode(OWNER_ONLY))
        .map_err(failed("protect"))
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    let open = || {
        let connection = Connection::open(path)?;
        connection.busy_timeout(limits::STORE_BUSY_TIMEOUT)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        Ok(connection)
    };
    open().map_err(StoreError::sqlite("open a connection"))
}

const COLUMNS: &str = "id, account, parent, seq, revision, body";

fn row(row: &rusqlite::Row<'_>) -> Result<Row, rusqlite::Error> {
    Ok(Row {
        id: row.get(0)?,
        account: row.get(1)?,
        parent: row.get(2)?,
        seq: row.get(3)?,
        revision: row.get(4)?,
        body: body(&row.get::<_, String>(5)?)?,
    })
}

fn body(text: &str) -> Result<serde_json::Value, rusqlite::Error> {
    serde_json::from_str(text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(5, rusqlite::types::Type::Text, Box::new(error))
    })
}

fn get(connection: &Connection, kind: Kind, id: &str) -> Result<Option<Row>, rusqlite::Error> {
    connection
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM rows WHERE kind = ?1 AND id = ?2"
        ))?
        .query_row((kind.as_str(), id), row)
        .optional()
}

fn list(connection: &Connection, kind: Kind, query: &Query) -> Result<Vec<Row>, rusqlite::Error> {
    // The text follows what the query names, so that each shape gets its own plan with its own index.
    let mut sql = format!("SELECT {COLUMNS} FROM rows WHERE kind = ?1");
    let mut values: Vec<rusqlite::types::Value> = vec![kind.as_str().to_owned().into()];
    let mut and = |condition: &str, value: rusqlite::types::Value| {
        values.push(value);
        sql.push_str(&format!(" AND {condition} ?{}", values.len()));
    };
    if let Some(account) = &query.account {
        and("account =", account.clone().into());
    }
    if let Some(parent) = &query.parent {
        and("parent =", parent.clone().into());
    }
    let (beyond, direction) = match query.order {
        Order::OldestFirst => ("seq >", "ASC"),
        Order::NewestFirst => ("seq <", "DESC"),
    };
    if let Some(seq) = query.after {
        // No row has a number beyond what SQLite can count.
        and(beyond, i64::try_from(seq).unwrap_or(i64::MAX).into());
    }
    sql.push_str(&format!(" ORDER BY seq {direction} LIMIT {}", query.page()));
    connection
        .prepare_cached(&sql)?
        .query_map(rusqlite::params_from_iter(values), row)?
        .collect()
}

fn apply(connection: &mut Connection, writes: Vec<Write>) -> Result<Vec<Written>, StoreError> {
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(StoreError::sqlite("begin"))?;
    let written = writes
        .into_iter()
        .map(|write| apply_one(&transaction, write))
        .collect::<Result<_, _>>()?;
    transaction.commit().map_err(StoreError::sqlite("commit"))?;
    Ok(written)
}

fn apply_one(connection: &Connection, write: Write) -> Result<Written, StoreError> {
    let stale = |kind, id| StoreError::Stale { kind, id };
    match write {
        Write::Insert(new) => insert(connection, new),
        Write::Update {
            kind,
            id,
            revision,
            body,
        } => connection
            .prepare_cached(
                "UPDATE rows SET body = :body, revision = revision + 1
                 WHERE kind = :kind AND id = :id AND revision = :revision RETURNING seq, revision",
            )
            .and_then(|mut update| {
                let values = named_params! {
                    ":kind": kind.as_str(), ":id": id, ":revision": revision, ":body": body.to_string(),
                };
                update.query_row(values, written).optional()
            })
            .map_err(StoreError::sqlite("update a row"))?
            .ok_or_else(|| stale(kind, id)),
        Write::Delete { kind, id, revision } => connection
            .prepare_cached(
                "DELETE FROM rows WHERE kind = :kind AND id = :id AND revision = :revision
                 RETURNING seq, revision",
            )
            .and_then(|mut delete| {
                let values =
                    named_params! {":kind": kind.as_str(), ":id": id, ":revision": revision};
                delete.query_row(values, written).optional()
            })
            .map_err(StoreError::sqlite("delete a row"))?
            .ok_or_else(|| stale(kind, id)),
    }
}

fn insert(connection: &Connection, new: NewRow) -> Result<Written, StoreError> {
    let inserted = connection
        .prepare_cached(
            "INSERT INTO rows (kind, id, account, parent, revision, body)
             VALUES (?1, ?2, ?3, ?4, 1, ?5) RETURNING seq, revision",
        )
        .and_then(|mut insert| {
            insert.query_row(
                (
                    new.kind.as_str(),
                    &new.id,
                    &new.account,
                    &new.parent,
                    new.body.to_string(),
                ),
                written,
            )
        });
    inserted.map_err(|error| match error.sqlite_error_code() {
        // The table's only constraint that values of ours can violate.
        Some(ErrorCode::ConstraintViolation) => StoreError::Exists {
            kind: new.kind,
            id: new.id,
        },
        _ => StoreError::sqlite("insert a row")(error),
    })
}

fn written(row: &rusqlite::Row<'_>) -> Result<Written, rusqlite::Error> {
    Ok(Written {
        seq: row.get(0)?,
        revision: row.get(1)?,
    })
}
