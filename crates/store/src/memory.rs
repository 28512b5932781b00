//! Rows in memory: for tests, and the plainest statement of what a backend must do.

use crate::{Backend, Kind, NewRow, Order, Query, Row, StoreError, Write, Written};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Rows in memory.
#[derive(Debug, Default)]
pub struct Memory(Mutex<Table>);

#[derive(Debug, Default, Clone)]
struct Table {
    rows: BTreeMap<(Kind, String), Row>,
    last_seq: u64,
}

impl Memory {
    fn table(&self) -> MutexGuard<'_, Table> {
        // A table is replaced whole, so a panic elsewhere cannot have left it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Backend for Memory {
    async fn get(&self, kind: Kind, id: &str) -> Result<Option<Row>, StoreError> {
        Ok(self.table().rows.get(&(kind, id.to_owned())).cloned())
    }

    async fn list(&self, kind: Kind, query: &Query) -> Result<Vec<Row>, StoreError> {
        let table = self.table();
        let mut found: Vec<&Row> = table
            .rows
            .iter()
            .filter(|((row_kind, _), row)| *row_kind == kind && matches(query, row))
            .map(|(_, row)| row)
            .collect();
        found.sort_by_key(|row| row.seq);
        if query.order == Order::NewestFirst {
            found.reverse();
        }
        Ok(found.into_iter().take(query.page()).cloned().collect())
    }

    async fn apply(&self, writes: Vec<Write>) -> Result<Vec<Written>, StoreError> {
        let mut table = self.table();
        let mut next = table.clone();
        let written = writes
            .into_iter()
            .map(|write| next.write(write))
            .collect::<Result<_, _>>()?;
        *table = next;
        Ok(written)
    }
}

fn matches(query: &Query, row: &Row) -> bool {
    let account = query.account.as_ref().is_none_or(|a| *a == row.account);
    let parent = query.parent.as_ref().is_none_or(|p| *p == row.parent);
    let cursor = query.after.is_none_or(|seq| match query.order {
        Order::OldestFirst => row.seq > seq,
        Order::NewestFirst => row.seq < seq,
    });
    account && parent && cursor
}

impl Table {
    fn write(&mut self, write: Write) -> Result<Written, StoreError> {
        match write {
            Write::Insert(new) => self.insert(new),
            Write::Update {
                kind,
                id,
                revision,
                body,
            } => {
                let row = self.at_revision(kind, id, revision)?;
                row.body = body;
                row.revision += 1;
                Ok(Written {
                    seq: row.seq,
                    revision: row.revision,
                })
            }
            Write::Delete { kind, id, revision } => {
                let row = self.at_revision(kind, id.clone(), revision)?;
                let written = Written {
                    seq: row.seq,
                    revision: row.revision,
                };
                self.rows.remove(&(kind, id));
                Ok(written)
            }
        }
    }

    fn insert(&mut self, new: NewRow) -> Result<Written, StoreError> {
        let key = (new.kind, new.id.clone());
        if self.rows.contains_key(&key) {
            return Err(StoreError::Exists {
                kind: new.kind,
                id: new.id,
            });
        }
        self.last_seq += 1;
        let row = Row {
            id: new.id,
            account: new.account,
            parent: new.parent,
            seq: self.last_seq,
            revision: 1,
            body: new.body,
        };
        self.rows.insert(key, row);
        Ok(Written {
            seq: self.last_seq,
            revision: 1,
        })
    }

    fn at_revision(
        &mut self,
        kind: Kind,
        id: String,
        revision: u64,
    ) -> Result<&mut Row, StoreError> {
        let key = (kind, id);
        match self.rows.get_mut(&key) {
            Some(row) if row.revision == revision => Ok(row),
            _ => Err(StoreError::Stale { kind, id: key.1 }),
        }
    }
}
