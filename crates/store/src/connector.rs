//! How network connectors are stored: the connector, its versions, and its name, which is a row of its own
//! so that no two connectors of an account can have the same one.

use crate::{Entity, Kind};
use dormouse_core::AccountId;
use dormouse_core::ConnectorId;
use dormouse_core::connector::{Connector, ConnectorVersion};
use serde::{Deserialize, Serialize};

/// Keyed by its id.
impl Entity for Connector {
    const KIND: Kind = Kind::Connector;

    fn key(&self) -> String {
        self.id.to_string()
    }

    fn account(&self) -> &AccountId {
        &self.account
    }
}

/// Keyed by [`connector_version_key`], listed under its connector's id.
impl Entity for ConnectorVersion {
    const KIND: Kind = Kind::ConnectorVersion;

    fn key(&self) -> String {
        connector_version_key(&self.connector, self.number)
    }

    fn account(&self) -> &AccountId {
        &self.account
    }

    fn parent(&self) -> String {
        self.connector.to_string()
    }
}

/// The key of a connector's version.
#[must_use]
pub fn connector_version_key(connector: &ConnectorId, number: u32) -> String {
    format!("{connector}:{number}")
}

/// A name that is taken, and by which connector. Inserted and deleted in one batch with that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectorName {
    /// Whose name it is.
    pub account: AccountId,
    /// The name.
    pub name: String,
    /// What has it.
    pub connector: ConnectorId,
}

impl ConnectorName {
    /// The key under which a name of this account is kept.
    #[must_use]
    pub fn key_of(account: &AccountId, name: &str) -> String {
        format!("{account}:{name}")
    }
}

/// Keyed by [`ConnectorName::key_of`].
impl Entity for ConnectorName {
    const KIND: Kind = Kind::ConnectorName;

    fn key(&self) -> String {
        Self::key_of(&self.account, &self.name)
    }

    fn account(&self) -> &AccountId {
        &self.account
    }
}
