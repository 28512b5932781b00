//! The seam: rows, and the three operations that keep them.

use crate::StoreError;
use async_trait::async_trait;
use serde_json::Value;
use std::fmt::{self, Debug};

/// What a row describes. The text names are stored: never change one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// An image.
    Image,
    /// A version of an image.
    Version,
    /// A build of a version.
    Build,
    /// A MicroVM.
    Microvm,
    /// A request that may be repeated.
    ClientToken,
    /// A network connector.
    Connector,
    /// A version of a network connector.
    ConnectorVersion,
    /// The name of a network connector.
    ConnectorName,
    /// A custom domain.
    Domain,
}

impl Kind {
    /// Each of them.
    pub(crate) const ALL: [Self; 9] = [
        Self::Image,
        Self::Version,
        Self::Build,
        Self::Microvm,
        Self::ClientToken,
        Self::Connector,
        Self::ConnectorVersion,
        Self::ConnectorName,
        Self::Domain,
    ];

    /// The name under which rows of this kind are stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Version => "version",
            Self::Build => "build",
            Self::Microvm => "microvm",
            Self::ClientToken => "client-token",
            Self::Connector => "connector",
            Self::ConnectorVersion => "connector-version",
            Self::ConnectorName => "connector-name",
            Self::Domain => "domain",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A stored row.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its name, unique within its kind.
    pub id: String,
    /// The account that it belongs to.
    pub account: String,
    /// What it is listed under; empty for nothing.
    pub parent: String,
    /// Order of creation, over all kinds; never given twice.
    pub seq: u64,
    /// Counts the row's changes from 1.
    pub revision: u64,
    /// The record itself.
    pub body: Value,
}

/// A row to be.
#[derive(Debug, Clone, PartialEq)]
pub struct NewRow {
    /// What it describes.
    pub kind: Kind,
    /// Its name, unique within its kind.
    pub id: String,
    /// The account that it belongs to.
    pub account: String,
    /// What it is listed under; empty for nothing.
    pub parent: String,
    /// The record itself.
    pub body: Value,
}

/// One change. Account and parent of a row stay as they were inserted.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// Adds a row; [`StoreError::Exists`] when its name is taken.
    Insert(NewRow),
    /// Replaces a row's body; [`StoreError::Stale`] unless the row has this revision.
    Update {
        /// Kind of the row.
        kind: Kind,
        /// Its name.
        id: String,
        /// The revision that the change was decided on.
        revision: u64,
        /// The new body.
        body: Value,
    },
    /// Removes a row; [`StoreError::Stale`] unless the row has this revision.
    Delete {
        /// Kind of the row.
        kind: Kind,
        /// Its name.
        id: String,
        /// The revision that the change was decided on.
        revision: u64,
    },
}

/// Where a row stands after a write; of a deleted row, where it stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The row's place in the order of creation.
    pub seq: u64,
    /// The row's revision.
    pub revision: u64,
}

/// Which rows of a kind to list. The default is all of them, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Query {
    /// Only rows of this account.
    pub account: Option<String>,
    /// Only rows under this parent.
    pub parent: Option<String>,
    /// In which order.
    pub order: Order,
    /// Only rows that come, in that order, after the row with this `seq`.
    pub after: Option<u64>,
    /// At most this many rows; never more than `limits::STORE_PAGE_ROWS_MAX`, which is also the default.
    pub limit: Option<usize>,
}

impl Query {
    /// All that is listed under the value with this key, oldest first.
    #[must_use]
    pub fn under(parent: impl Into<String>) -> Self {
        Self {
            parent: Some(parent.into()),
            ..Self::default()
        }
    }

    /// How many rows the answer may hold.
    #[must_use]
    pub(crate) fn page(&self) -> usize {
        let most = dormouse_core::limits::STORE_PAGE_ROWS_MAX;
        self.limit.map_or(most, |limit| limit.min(most))
    }
}

/// An order of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// By creation, oldest first.
    #[default]
    OldestFirst,
    /// By creation, newest first.
    NewestFirst,
}

/// Keeps rows. A future that is dropped may still have its writes done.
#[async_trait]
pub trait Backend: Send + Sync + Debug {
    /// Reads one row.
    async fn get(&self, kind: Kind, id: &str) -> Result<Option<Row>, StoreError>;

    /// Lists rows of a kind.
    async fn list(&self, kind: Kind, query: &Query) -> Result<Vec<Row>, StoreError>;

    /// Does all the writes in their order, or none of them. They are durable when this returns.
    async fn apply(&self, writes: Vec<Write>) -> Result<Vec<Written>, StoreError>;
}
