//! Rows whose bodies are sealed: variables of an image and payloads of hooks may be secrets.
//!
//! Name, account, parent and order of a row stay open, for they are what rows are found by.

use crate::{Backend, Kind, NewRow, Query, Row, StoreError, Write, Written};
use async_trait::async_trait;
use dormouse_secrets::{Sealer, is_sealed};
use serde_json::Value;
use std::sync::Arc;

/// What a body is sealed as; the name is the row's kind and id.
const PURPOSE: &str = "row";

/// Seals what goes into a backend and opens what comes out of it.
#[derive(Debug)]
pub struct Sealed<B> {
    rows: B,
    sealer: Arc<Sealer>,
}

impl<B: Backend> Sealed<B> {
    /// Rows of `rows` with their bodies sealed; those that are plain are read as they are.
    pub fn new(rows: B, sealer: Arc<Sealer>) -> Self {
        Self { rows, sealer }
    }

    pub(crate) fn rows(&self) -> &B {
        &self.rows
    }

    /// Seals the rows that an earlier version left plain, and says how many there were. Nobody else may be
    /// writing: each of them gets a new revision.
    pub async fn adopt(&self) -> Result<usize, StoreError> {
        let mut adopted = 0;
        for kind in Kind::ALL {
            let mut query = Query::default();
            loop {
                let rows = self.rows.list(kind, &query).await?;
                let Some(last) = rows.last() else {
                    break;
                };
                query.after = Some(last.seq);
                let plain = rows
                    .into_iter()
                    .filter(|row| sealed_text(&row.body).is_none());
                let writes: Vec<Write> = plain.map(|row| self.sealing(kind, row)).collect();
                adopted += writes.len();
                self.rows.apply(writes).await?;
            }
        }
        Ok(adopted)
    }

    fn sealing(&self, kind: Kind, row: Row) -> Write {
        Write::Update {
            kind,
            body: self.seal(kind, &row.id, &row.body),
            id: row.id,
            revision: row.revision,
        }
    }

    fn seal(&self, kind: Kind, id: &str, body: &Value) -> Value {
        let text = body.to_string();
        let sealed = self.sealer.seal(PURPOSE, &name(kind, id), text.as_bytes());
        Value::String(sealed.trim_end().to_owned())
    }

    fn open(&self, kind: Kind, mut row: Row) -> Result<Row, StoreError> {
        if let Some(text) = sealed_text(&row.body) {
            let bytes = text.as_bytes().to_vec();
            let body = self.sealer.unseal(PURPOSE, &name(kind, &row.id), bytes)?;
            row.body = serde_json::from_slice(&body).map_err(|source| StoreError::Body {
                kind,
                id: row.id.clone(),
                source,
            })?;
        }
        Ok(row)
    }
}

#[async_trait]
impl<B: Backend> Backend for Sealed<B> {
    async fn get(&self, kind: Kind, id: &str) -> Result<Option<Row>, StoreError> {
        let row = self.rows.get(kind, id).await?;
        row.map(|row| self.open(kind, row)).transpose()
    }

    async fn list(&self, kind: Kind, query: &Query) -> Result<Vec<Row>, StoreError> {
        let rows = self.rows.list(kind, query).await?;
        rows.into_iter().map(|row| self.open(kind, row)).collect()
    }

    async fn apply(&self, mut writes: Vec<Write>) -> Result<Vec<Written>, StoreError> {
        for write in &mut writes {
            match write {
                Write::Insert(NewRow { kind, id, body, .. })
                | Write::Update { kind, id, body, .. } => *body = self.seal(*kind, id, body),
                Write::Delete { .. } => {}
            }
        }
        self.rows.apply(writes).await
    }
}

fn name(kind: Kind, id: &str) -> String {
    format!("{kind} {id}")
}

/// A body that is sealed. A plain one is never a text.
fn sealed_text(body: &Value) -> Option<&str> {
    body.as_str().filter(|text| is_sealed(text.as_bytes()))
}
