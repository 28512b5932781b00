//! How custom domains are stored.

use crate::{Entity, Kind};
use dormouse_core::{AccountId, EndpointId, MicrovmId};
use serde::{Deserialize, Serialize};

/// A host name that stands for a MicroVM's endpoint. It is taken over all accounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    /// The name, in lower case.
    pub name: String,
    /// Whose MicroVM it is.
    pub account: AccountId,
    /// The MicroVM.
    pub microvm: MicrovmId,
    /// Its endpoint.
    pub endpoint: EndpointId,
}

/// Keyed by its name, listed under its MicroVM.
impl Entity for Domain {
    const KIND: Kind = Kind::Domain;

    fn key(&self) -> String {
        self.name.clone()
    }

    fn account(&self) -> &AccountId {
        &self.account
    }

    fn parent(&self) -> String {
        self.microvm.to_string()
    }
}
