//! Client tokens: a request that is repeated with its token makes nothing new.

use super::store_failed;
use crate::app::App;
use dormouse_api::ApiError;
use dormouse_core::{AccountId, limits};
use dormouse_node::clock;
use dormouse_store::{Batch, ClientToken, StoreError, Versioned};
use serde::Serialize;

/// A request's client token, and whether it has been used.
pub(super) struct Once {
    /// To be stored together with what the request makes; none when the request has no token.
    pub(super) fresh: Option<ClientToken>,
    /// A token of the same name that has expired and makes way.
    pub(super) expired: Option<Versioned<ClientToken>>,
    /// Key of what the same request made before.
    pub(super) made: Option<String>,
}

impl Once {
    /// Adds the token to what the request makes.
    pub(super) fn store(&self, mut batch: Batch) -> Result<Batch, StoreError> {
        if let Some(expired) = &self.expired {
            batch = batch.delete(expired);
        }
        match &self.fresh {
            Some(token) => batch.insert(token),
            None => Ok(batch),
        }
    }
}

/// Looks the token up. Another request under the same token is refused.
pub(super) async fn look_up(
    app: &App,
    account: &AccountId,
    operation: &str,
    token: Option<&str>,
    request: &impl Serialize,
    result: String,
) -> Result<Once, ApiError> {
    let Some(token) = token else {
        return Ok(Once {
            fresh: None,
            expired: None,
            made: None,
        });
    };
    let now = clock::now();
    let fresh = ClientToken {
        account: account.clone(),
        operation: operation.to_owned(),
        token: token.to_owned(),
        request_hash: hash(request)?,
        result,
        expires_at: now.after(limits::CLIENT_TOKEN_TTL),
    };
    let key = ClientToken::key_of(account, operation, token);
    let known = app
        .store
        .get::<ClientToken>(&key)
        .await
        .map_err(store_failed)?;
    match known {
        Some(known) if known.value.expires_at <= now => Ok(Once {
            fresh: Some(fresh),
            expired: Some(known),
            made: None,
        }),
        Some(known) if known.value.request_hash != fresh.request_hash => {
            Err(ApiError::client_token_reused(token))
        }
        Some(known) => Ok(Once {
            fresh: None,
            expired: None,
            made: Some(known.value.result),
        }),
        None => Ok(Once {
            fresh: Some(fresh),
            expired: None,
            made: None,
        }),
    }
}

fn hash(request: &impl Serialize) -> Result<String, ApiError> {
    let bytes = serde_json::to_vec(request).map_err(|e| super::internal("hash request", &e))?;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
    Ok(hex::encode(digest))
}
