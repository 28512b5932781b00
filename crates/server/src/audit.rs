//! The audit log: a line for each control call, whoever made it and whatever came of it. No body, no query and
//! no secret is in it.

use dormouse_api::error::{ERROR_TYPE, REQUEST_ID};
use dormouse_core::AccountId;
use http::header::{HeaderValue, USER_AGENT};
use http::request::Parts;
use http::{HeaderMap, Response};
use std::net::IpAddr;

/// The target of the log's lines.
pub(crate) const AUDIT_LOG: &str = "dormouse::audit";

/// Where a request came from; an extension of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// Whose key signed a request. An extension of the answer to it, as [`Action`] is.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) account: AccountId,
    /// The id of the access key.
    pub(crate) key: String,
}

/// What a request asked for, by AWS's name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Action(pub(crate) &'static str);

/// Writes the line of a request that was answered.
pub(crate) fn record<B>(parts: &Parts, response: &Response<B>) {
    let caller = response.extensions().get::<Caller>();
    let status = response.status();
    tracing::info!(
        target: AUDIT_LOG,
        request_id = text(response.headers(), REQUEST_ID),
        source = parts.extensions.get::<Peer>().map(|peer| tracing::field::display(peer.0)),
        user_agent = text(&parts.headers, USER_AGENT),
        account = caller.map(|caller| tracing::field::display(&caller.account)),
        access_key = caller.map(|caller| caller.key.as_str()),
        action = response.extensions().get::<Action>().map(|action| action.0),
        method = %parts.method,
        path = parts.uri.path(),
        status = status.as_u16(),
        error = text(response.headers(), ERROR_TYPE),
        "control call"
    );
}

fn text(headers: &HeaderMap, name: impl http::header::AsHeaderName) -> Option<&str> {
    headers.get(name).map(HeaderValue::to_str)?.ok()
}
