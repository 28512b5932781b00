//! Which domain types are stored, and under which names.

use crate::Kind;
use dormouse_core::{AccountId, ImageArn, Timestamp, image, microvm};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A domain type that is stored as rows of one kind.
///
/// Key, account and parent follow from parts of the value that never change in its life.
pub trait Entity: Serialize + DeserializeOwned + Send + Sync {
    /// The kind of its rows.
    const KIND: Kind;

    /// Its name, unique within the kind.
    fn key(&self) -> String;

    /// The account that it belongs to.
    fn account(&self) -> &AccountId;

    /// The key of what it is listed under; empty for nothing.
    fn parent(&self) -> String {
        String::new()
    }
}

/// Keyed by its ARN.
impl Entity for image::Image {
    const KIND: Kind = Kind::Image;

    fn key(&self) -> String {
        self.arn.to_string()
    }

    fn account(&self) -> &AccountId {
        &self.account
    }
}

/// Keyed by [`version_key`], listed under its image's ARN.
impl Entity for image::Version {
    const KIND: Kind = Kind::Version;

    fn key(&self) -> String {
        version_key(&self.image, &self.version)
    }

    fn account(&self) -> &AccountId {
        &self.account
    }

    fn parent(&self) -> String {
        self.image.to_string()
    }
}

/// Keyed by its id, listed under its version's key.
impl Entity for image::Build {
    const KIND: Kind = Kind::Build;

    fn key(&self) -> String {
        self.id.to_string()
    }

    fn account(&self) -> &AccountId {
        &self.account
    }

    fn parent(&self) -> String {
        version_key(&self.image, &self.version)
    }
}

/// Keyed by its id, listed under its image's ARN.
impl Entity for microvm::Record {
    const KIND: Kind = Kind::Microvm;

    fn key(&self) -> String {
        self.id.to_string()
    }

    fn account(&self) -> &AccountId {
        &self.account
    }

    fn parent(&self) -> String {
        self.image.to_string()
    }
}

/// The key of an image's version.
#[must_use]
pub fn version_key(image: &ImageArn, version: &str) -> String {
    format!("{image}:{version}")
}

/// A request that its caller may repeat: the second time it gets what the first one made.
///
/// Insert it in one batch with what the request makes; [`StoreError::Exists`](crate::StoreError::Exists)
/// for its kind then says that the request was seen before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientToken {
    /// Whose request it was.
    pub account: AccountId,
    /// The API operation; each has its own tokens.
    pub operation: String,
    /// The caller's token.
    pub token: String,
    /// Hash of the request: another request under the same token is a mistake of the caller.
    pub request_hash: String,
    /// Key of what the request made; the token is listed under it, to be forgotten together with it.
    pub result: String,
    /// When the token is forgotten.
    pub expires_at: Timestamp,
}

impl ClientToken {
    /// The key under which a request of this account and operation is remembered.
    #[must_use]
    pub fn key_of(account: &AccountId, operation: &str, token: &str) -> String {
        format!("{account}:{operation}:{token}")
    }
}

/// Keyed by [`ClientToken::key_of`], listed under the key of what it made.
impl Entity for ClientToken {
    const KIND: Kind = Kind::ClientToken;

    fn key(&self) -> String {
        Self::key_of(&self.account, &self.operation, &self.token)
    }

    fn account(&self) -> &AccountId {
        &self.account
    }

    fn parent(&self) -> String {
        self.result.clone()
    }
}
