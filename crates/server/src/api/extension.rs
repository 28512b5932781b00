//! What Dormouse's own command line asks of a daemon and AWS's API has no operation for. Paths begin with
//! `/_dormouse/v1/`, which no bucket can be called, and requests are signed like all others.
//!
//! | request | answer |
//! |---|---|
//! | `GET builds/ID/log?offset=N&wait=SECONDS` | what the build has logged from byte N on; waits for more of it |
//! | `GET microvms/ID/metrics` | what has crossed the endpoint of a MicroVM since the daemon started |
//! | `GET system/usage` | what takes how much of the disk |
//! | `POST system/prune` | deletes cached layers that nothing lies over |
//! | `GET microvms/ID/domains` | the custom domains of a MicroVM |
//! | `PUT microvms/ID/domains/NAME` | gives it one |
//! | `DELETE microvms/ID/domains/NAME` | takes one back |
//!
//! A build's log and a MicroVM's metrics and domains are its account's. The disk is the operator's: `system` answers to keys of the account that
//! the daemon is configured with.

mod domains;
mod logs;
mod system;

use super::{authenticate, control_scope, internal, microvms};
use crate::app::App;
use crate::keys::Keys;
use bytes::Bytes;
use dormouse_api::{ApiError, ErrorCode};
use dormouse_core::AccountId;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{Extensions, Method, Response};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use uuid::Uuid;

const PREFIX: &str = "/_dormouse/";

/// Whether a path is one of ours.
pub(crate) fn is_extension_path(path: &str) -> bool {
    path.starts_with(PREFIX)
}

/// Answers one request; `body` is whole and bounded already.
pub(crate) async fn handle(app: &App, keys: &Keys, parts: &Parts, body: &[u8]) -> Response<Bytes> {
    let request_id = Uuid::new_v4();
    let mut marks = Extensions::new();
    let answered = match authenticate(keys, parts, body, control_scope(app), &mut marks) {
        Ok(account) => answer(app, &account, parts, body).await,
        Err(error) => Err(error),
    };
    let mut response = answered.unwrap_or_else(|error| error.into_response(request_id));
    response.extensions_mut().extend(marks);
    response
}

async fn answer(
    app: &App,
    caller: &AccountId,
    parts: &Parts,
    body: &[u8],
) -> Result<Response<Bytes>, ApiError> {
    let path = parts.uri.path().strip_prefix(PREFIX).unwrap_or_default();
    let segments: Vec<&str> = path.split('/').collect();
    match (&parts.method, segments.as_slice()) {
        (&Method::GET, ["v1", "builds", id, "log"]) => {
            json(&logs::read(app, caller, id, parts.uri.query().unwrap_or_default()).await?)
        }
        (&Method::GET, ["v1", "microvms", id, "metrics"]) => {
            let vm = microvms::find(app, caller, id).await?;
            json(&app.traffic.of(&vm.endpoint))
        }
        (&Method::GET, ["v1", "system", "usage"]) => {
            operators_only(app, caller)?;
            json(&system::usage(app).await?)
        }
        (&Method::POST, ["v1", "system", "prune"]) => {
            operators_only(app, caller)?;
            json(&system::prune(app, body).await?)
        }
        (&Method::GET, ["v1", "microvms", id, "domains"]) => {
            json(&domains::list(app, caller, id).await?)
        }
        (&Method::PUT, ["v1", "microvms", id, "domains", name]) => {
            json(&domains::add(app, caller, id, name).await?)
        }
        (&Method::DELETE, ["v1", "microvms", id, "domains", name]) => {
            json(&domains::remove(app, caller, id, name).await?)
        }
        _ => Err(ApiError::new(
            ErrorCode::UnknownOperation,
            "There is nothing at this path.",
        )),
    }
}

fn operators_only(app: &App, caller: &AccountId) -> Result<(), ApiError> {
    if *caller == app.config.account {
        return Ok(());
    }
    let message = format!("Only keys of account {} may do this.", app.config.account);
    Err(ApiError::access_denied(Some(message)))
}

fn json<T: Serialize>(value: &T) -> Result<Response<Bytes>, ApiError> {
    let text = serde_json::to_vec(value).map_err(|error| internal("answer", &error))?;
    let mut response = Response::new(Bytes::from(text));
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}

/// A number from a query string; none when it is not in there.
fn number(query: &str, name: &str) -> Result<Option<u64>, ApiError> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let Some((_, value)) = pairs.find(|(key, _)| *key == name) else {
        return Ok(None);
    };
    let text = percent_decode_str(value).decode_utf8().ok();
    let number = text.and_then(|text| text.parse().ok());
    number
        .map(Some)
        .ok_or_else(|| ApiError::validation(format!("{name} must be a whole number")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bucket_has_such_a_path() {
        assert!(is_extension_path("/_dormouse/v1/system/usage"));
        assert!(!is_extension_path("/dormouse/v1/system/usage"));
        assert!(!is_extension_path("/_dormouse"));
    }

    #[test]
    fn numbers_are_whole() {
        assert_eq!(number("offset=17&wait=5", "offset").unwrap(), Some(17));
        assert_eq!(number("wait=5", "offset").unwrap(), None);
        for bad in [
            "offset=-1",
            "offset=",
            "offset=1.5",
            "offset=99999999999999999999",
        ] {
            number(bad, "offset").unwrap_err();
        }
    }
}
