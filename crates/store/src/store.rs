//! The store as its callers see it: domain types in, domain types out.

use crate::{
    Backend, ClientToken, Entity, Memory, NewRow, Query, Row, Sealed, Sqlite, StoreError, Write,
    Written,
};
use dormouse_core::{AccountId, Timestamp};
use dormouse_secrets::Sealer;
use std::path::Path;
use std::sync::Arc;

/// A handle to the metadata; cheap to clone.
#[derive(Debug, Clone)]
pub struct Store(Arc<dyn Backend>);

impl From<Arc<dyn Backend>> for Store {
    fn from(backend: Arc<dyn Backend>) -> Self {
        Self(backend)
    }
}

/// A value as it was read: what to name when changing it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<E> {
    /// The value.
    pub value: E,
    /// Counts its changes.
    pub revision: u64,
    /// Its place in the order of creation: a cursor for [`Query::after`].
    pub seq: u64,
}

impl Store {
    /// Uses this backend.
    #[must_use]
    pub fn new(backend: impl Backend + 'static) -> Self {
        Self(Arc::new(backend))
    }

    /// A store that forgets everything when it is dropped, for tests.
    #[must_use]
    pub fn memory() -> Self {
        Self::new(Memory::default())
    }

    /// Opens the SQLite database at `path`, making it and bringing its schema up to date as needed. Records
    /// are sealed in it.
    pub async fn sqlite(path: &Path, sealer: Arc<Sealer>) -> Result<Self, StoreError> {
        Ok(Self::new(Sealed::new(Sqlite::open(path).await?, sealer)))
    }

    /// Opens the database for its one writer, and seals the records that an earlier version left plain.
    pub async fn sqlite_adopting(path: &Path, sealer: Arc<Sealer>) -> Result<Self, StoreError> {
        let rows = Sealed::new(Sqlite::open(path).await?, sealer);
        if !rows.rows().nothing_is_plain().await? {
            let adopted = rows.adopt().await?;
            rows.rows().leave_nothing_plain().await?;
            if adopted > 0 {
                tracing::info!(rows = adopted, "records of an earlier version are sealed");
            }
        }
        Ok(Self::new(rows))
    }

    /// Reads a value whoever owns it.
    pub async fn get<E: Entity>(&self, key: &str) -> Result<Option<Versioned<E>>, StoreError> {
        let row = self.0.get(E::KIND, key).await?;
        row.map(decode).transpose()
    }

    /// Reads a value of this account; another account's is as good as absent.
    pub async fn get_owned<E: Entity>(
        &self,
        account: &AccountId,
        key: &str,
    ) -> Result<Option<Versioned<E>>, StoreError> {
        let found = self.get::<E>(key).await?;
        Ok(found.filter(|found| found.value.account() == account))
    }

    /// Lists values, at most one page of them.
    pub async fn list<E: Entity>(&self, query: &Query) -> Result<Vec<Versioned<E>>, StoreError> {
        let rows = self.0.list(E::KIND, query).await?;
        rows.into_iter().map(decode).collect()
    }

    /// Adds a value.
    pub async fn insert<E: Entity>(&self, value: E) -> Result<Versioned<E>, StoreError> {
        let batch = Batch::default().insert(&value)?;
        let written = self.apply_one(batch).await?;
        Ok(Versioned::at(written, value))
    }

    /// Puts `value` in the place of `current`, unless that has changed since it was read.
    pub async fn update<E: Entity>(
        &self,
        current: &Versioned<E>,
        value: E,
    ) -> Result<Versioned<E>, StoreError> {
        let batch = Batch::default().update(current, &value)?;
        let written = self.apply_one(batch).await?;
        Ok(Versioned::at(written, value))
    }

    /// Removes a value, unless it has changed since it was read.
    pub async fn delete<E: Entity>(&self, current: &Versioned<E>) -> Result<(), StoreError> {
        self.apply_one(Batch::default().delete(current)).await?;
        Ok(())
    }

    /// Does all of a batch, or none of it; the answer has one entry for each write, in their order.
    pub async fn apply(&self, batch: Batch) -> Result<Vec<Written>, StoreError> {
        self.0.apply(batch.writes).await
    }

    /// Forgets client tokens whose time is over, a page of them in one commit; says how many.
    pub async fn expire_client_tokens(&self, now: Timestamp) -> Result<usize, StoreError> {
        let mut query = Query::default();
        let mut expired = 0;
        loop {
            let tokens = self.list::<ClientToken>(&query).await?;
            let over = tokens.iter().filter(|t| t.value.expires_at <= now);
            let over: Vec<_> = over.collect();
            // All live equally long, so that those that were made later are not over either.
            let (Some(last), false) = (tokens.last(), over.is_empty()) else {
                return Ok(expired);
            };
            query.after = Some(last.seq);
            let batch = over
                .iter()
                .fold(Batch::default(), |b, token| b.delete(token));
            match self.apply(batch).await {
                Ok(_) => expired += over.len(),
                // One of them is in use again: the next sweep takes up the others.
                Err(StoreError::Stale { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn apply_one(&self, batch: Batch) -> Result<Written, StoreError> {
        let written = self.apply(batch).await?;
        Ok(*written.first().expect("each write has its answer"))
    }
}

impl<E> Versioned<E> {
    /// A value that has just been written.
    #[must_use]
    pub fn at(written: Written, value: E) -> Self {
        Self {
            value,
            revision: written.revision,
            seq: written.seq,
        }
    }
}

/// Changes that belong together.
#[derive(Debug, Clone, Default)]
#[must_use = "a batch does nothing until it is applied"]
pub struct Batch {
    writes: Vec<Write>,
}

impl Batch {
    /// Adds a value.
    pub fn insert<E: Entity>(mut self, value: &E) -> Result<Self, StoreError> {
        self.writes.push(Write::Insert(NewRow {
            kind: E::KIND,
            id: value.key(),
            account: value.account().to_string(),
            parent: value.parent(),
            body: encode(value)?,
        }));
        Ok(self)
    }

    /// Puts `value` in the place of `current`.
    pub fn update<E: Entity>(
        mut self,
        current: &Versioned<E>,
        value: &E,
    ) -> Result<Self, StoreError> {
        debug_assert_eq!(current.value.key(), value.key(), "a key never changes");
        debug_assert_eq!(
            current.value.parent(),
            value.parent(),
            "a parent never changes"
        );
        self.writes.push(Write::Update {
            kind: E::KIND,
            id: value.key(),
            revision: current.revision,
            body: encode(value)?,
        });
        Ok(self)
    }

    /// Removes a value.
    pub fn delete<E: Entity>(mut self, current: &Versioned<E>) -> Self {
        self.writes.push(Write::Delete {
            kind: E::KIND,
            id: current.value.key(),
            revision: current.revision,
        });
        self
    }
}

fn encode<E: Entity>(value: &E) -> Result<serde_json::Value, StoreError> {
    serde_json::to_value(value).map_err(|source| StoreError::Body {
        kind: E::KIND,
        id: value.key(),
        source,
    })
}

fn decode<E: Entity>(row: Row) -> Result<Versioned<E>, StoreError> {
    let value = serde_json::from_value(row.body).map_err(|source| StoreError::Body {
        kind: E::KIND,
        id: row.id,
        source,
    })?;
    Ok(Versioned {
        value,
        revision: row.revision,
        seq: row.seq,
    })
}
