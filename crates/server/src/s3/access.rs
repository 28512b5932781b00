//! Who may do what: an account everything with its own buckets, and nothing with another's.

use super::StorageError;
use super::storage::Storage;
use crate::keys::Keys;
use dormouse_core::AccountId;
use http::Extensions;
use s3s::access::{S3Access, S3AccessContext};
use s3s::path::S3Path;
use s3s::{S3Result, s3_error};
use std::sync::Arc;

/// Checks each request before its operation sees it.
pub(super) struct Access {
    pub(super) keys: Arc<Keys>,
    pub(super) storage: Storage,
    /// Artifacts are read from another S3, so nothing that is stored here would be.
    pub(super) is_replaced: bool,
}

/// The account whose key signed the request.
#[derive(Debug, Clone)]
struct Caller(AccountId);

#[async_trait::async_trait]
impl S3Access for Access {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let key = context.credentials().map(|signed| &signed.access_key);
        let key = key.and_then(|id| self.keys.get(id));
        let account = key.ok_or_else(denied)?.account;
        if self.is_replaced {
            return Err(s3_error!(
                NotImplemented,
                "This daemon reads artifacts from the S3 that [s3] in its configuration names, and has none of its \
                 own: use that one"
            ));
        }
        let bucket = match context.s3_path() {
            S3Path::Root => None,
            S3Path::Bucket { bucket } | S3Path::Object { bucket, .. } => Some(bucket),
        };
        // To make a bucket of a name that is taken is another mistake, which the operation tells itself.
        if let Some(bucket) = bucket
            && context.s3_op().name() != "CreateBucket"
        {
            match self.storage.require_own(bucket, &account).await {
                // That there is none is for the operation to say.
                Ok(()) | Err(StorageError::NoSuchBucket) => {}
                Err(error) => return Err(error.into()),
            }
        }
        context.extensions_mut().insert(Caller(account));
        Ok(())
    }
}

/// The account that a checked request acts for.
pub(super) fn caller(extensions: &Extensions) -> S3Result<AccountId> {
    let caller = extensions.get::<Caller>();
    caller.map(|caller| caller.0.clone()).ok_or_else(denied)
}

fn denied() -> s3s::S3Error {
    s3_error!(AccessDenied, "Access Denied")
}
