//! Metadata: what Dormouse must still know after a crash.
//!
//! A record is a row: a kind, a name, an account, a parent and a JSON body. [`Backend`] keeps rows and has
//! three operations; [`Store`] is what callers hold, and speaks in the domain's own types.
//!
//! ```text
//!   Store::get::<Image>(..)      typed, generic over Entity
//!        │ Row { kind, id, account, parent, seq, revision, body }
//!        ▼
//!   dyn Backend ──▶ Memory | Sealed<Sqlite>
//! ```
//!
//! Nothing is overwritten blindly: each change names the revision that it was decided on and fails with
//! [`StoreError::Stale`] when another writer was faster. Several changes go through together or not at all.

mod backend;
mod connector;
mod domain;
mod entity;
mod error;
mod memory;
mod migrate;
mod sealed;
mod sqlite;
mod store;

pub use backend::{Backend, Kind, NewRow, Order, Query, Row, Write, Written};
pub use connector::{ConnectorName, connector_version_key};
pub use domain::Domain;
pub use entity::{ClientToken, Entity, version_key};
pub use error::StoreError;
pub use memory::Memory;
pub use sealed::Sealed;
pub use sqlite::Sqlite;
pub use store::{Batch, Store, Versioned};
