//! The control API: who asks, what for, and the handler that answers.
//!
//! ```text
//! raw request ─▶ body (bounded) ─▶ SigV4 ─▶ route ─▶ parse and validate ─▶ handler by noun ─▶ JSON
//! ```

mod builds;
mod connectors;
pub(crate) mod extension;
mod hooks;
mod idempotency;
mod images;
mod listing;
mod managed;
mod microvms;
mod network;
mod settings;
pub(crate) mod sts;
mod tags;
mod tokens;
mod versions;

pub(crate) use connectors::resume as resume_connectors;

use crate::app::App;
use crate::audit::{Action, Caller};
use crate::keys::Keys;
use bytes::Bytes;
use dormouse_api::ApiError;
use dormouse_api::error::REQUEST_ID;
use dormouse_api::restjson::{self, Request};
use dormouse_api::route::{Match, Operation, route};
use dormouse_api::sigv4::{self, Scope};
use dormouse_core::chain;
use dormouse_core::image::life::UnderWay;
use dormouse_core::{AccountId, limits};
use dormouse_node::clock;
use dormouse_store::{StoreError, Written};
use http::{Extensions, HeaderValue, Response, StatusCode, request::Parts};
use jiff::Timestamp;
use serde::Serialize;
use std::error::Error;
use std::time::Duration;
use uuid::Uuid;

/// Answers one control request; `body` is whole and bounded already.
pub(crate) async fn handle(app: &App, keys: &Keys, parts: &Parts, body: &[u8]) -> Response<Bytes> {
    let request_id = Uuid::new_v4();
    let call = Call {
        app,
        parts,
        body,
        request_id,
    };
    let mut marks = Extensions::new();
    let answered = call.answer(keys, &mut marks).await;
    let mut response = answered.unwrap_or_else(|error| error.into_response(request_id));
    response.extensions_mut().extend(marks);
    response
}

/// Answers whoever was refused too often.
pub(crate) fn refused_too_often(retry_after: Duration) -> Response<Bytes> {
    ApiError::throttled(retry_after).into_response(Uuid::new_v4())
}

/// Refuses a request whose body is larger than any request's is.
pub(crate) fn body_too_large() -> Response<Bytes> {
    ApiError::body_too_large(limits::API_BODY_BYTES_MAX).into_response(Uuid::new_v4())
}

/// Answers a request whose body did not come.
pub(crate) fn body_unread() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::REQUEST_TIMEOUT;
    if let Ok(id) = HeaderValue::from_str(&Uuid::new_v4().to_string()) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

struct Call<'a> {
    app: &'a App,
    parts: &'a Parts,
    body: &'a [u8],
    request_id: Uuid,
}

impl Call<'_> {
    /// `marks` become extensions of the answer: what the audit log says.
    async fn answer(
        &self,
        keys: &Keys,
        marks: &mut Extensions,
    ) -> Result<Response<Bytes>, ApiError> {
        let scope = control_scope(self.app);
        let account = authenticate(keys, self.parts, self.body, scope, marks)?;
        let found = route(&self.parts.method, self.parts.uri.path())?;
        marks.insert(Action(found.operation.name()));
        self.admit(&account, &found).await
    }

    async fn admit(&self, account: &AccountId, found: &Match) -> Result<Response<Bytes>, ApiError> {
        let throttle = &self.app.throttle;
        let admitted = throttle.admit(account, found.operation, clock::now());
        let answered = match admitted {
            Ok(()) => self.dispatch(account, found).await,
            Err(delay) => Err(ApiError::throttled(delay)),
        };
        answered.map_err(|error| error.in_the_words_of(found.operation))
    }

    async fn dispatch(
        &self,
        caller: &AccountId,
        found: &Match,
    ) -> Result<Response<Bytes>, ApiError> {
        let app = self.app;
        match found.operation {
            Operation::CreateMicrovmImage => {
                self.reply(found, images::create(app, caller, self.parse(found)?).await)
            }
            Operation::GetMicrovmImage => {
                self.reply(found, images::get(app, caller, self.parse(found)?).await)
            }
            Operation::ListMicrovmImages => {
                self.reply(found, images::list(app, caller, self.parse(found)?).await)
            }
            Operation::GetMicrovmImageVersion => {
                self.reply(found, versions::get(app, caller, self.parse(found)?).await)
            }
            Operation::UpdateMicrovmImage => {
                self.reply(found, images::update(app, caller, self.parse(found)?).await)
            }
            Operation::DeleteMicrovmImage => self.reply(
                found,
                images::delete(app, caller, self.parse(found)?, self.under_way()).await,
            ),
            Operation::ListMicrovmImageVersions => {
                self.reply(found, versions::list(app, caller, self.parse(found)?).await)
            }
            Operation::UpdateMicrovmImageVersion => self.reply(
                found,
                versions::update(app, caller, self.parse(found)?).await,
            ),
            Operation::DeleteMicrovmImageVersion => self.reply(
                found,
                versions::delete(app, caller, self.parse(found)?, self.under_way()).await,
            ),
            Operation::GetMicrovmImageBuild => {
                self.reply(found, builds::get(app, caller, self.parse(found)?).await)
            }
            Operation::ListMicrovmImageBuilds => {
                self.reply(found, builds::list(app, caller, self.parse(found)?).await)
            }
            Operation::ListManagedMicrovmImages => {
                self.reply(found, managed::list(app, self.parse(found)?))
            }
            Operation::ListManagedMicrovmImageVersions => {
                self.reply(found, managed::list_versions(app, self.parse(found)?))
            }
            Operation::ListTags => {
                self.reply(found, tags::list(app, caller, self.parse(found)?).await)
            }
            Operation::TagResource => {
                self.reply(found, tags::add(app, caller, self.parse(found)?).await)
            }
            Operation::UntagResource => {
                self.reply(found, tags::remove(app, caller, self.parse(found)?).await)
            }
            Operation::RunMicrovm => {
                self.reply(found, microvms::run(app, caller, self.parse(found)?).await)
            }
            Operation::GetMicrovm => {
                self.reply(found, microvms::get(app, caller, self.parse(found)?).await)
            }
            Operation::ListMicrovms => {
                self.reply(found, microvms::list(app, caller, self.parse(found)?).await)
            }
            Operation::SuspendMicrovm => self.reply(
                found,
                microvms::suspend(app, caller, self.parse(found)?).await,
            ),
            Operation::ResumeMicrovm => self.reply(
                found,
                microvms::resume(app, caller, self.parse(found)?).await,
            ),
            Operation::TerminateMicrovm => self.reply(
                found,
                microvms::terminate(app, caller, self.parse(found)?).await,
            ),
            Operation::CreateMicrovmAuthToken => {
                self.reply(found, tokens::create(app, caller, self.parse(found)?).await)
            }
            Operation::CreateMicrovmShellAuthToken => self.reply(
                found,
                tokens::create_shell(app, caller, self.parse(found)?).await,
            ),
            Operation::CreateNetworkConnector => self.reply(
                found,
                connectors::create(app, caller, self.parse(found)?).await,
            ),
            Operation::GetNetworkConnector => self.reply(
                found,
                connectors::get(app, caller, self.parse(found)?).await,
            ),
            Operation::ListNetworkConnectors => self.reply(
                found,
                connectors::list(app, caller, self.parse(found)?).await,
            ),
            Operation::ListNetworkConnectorVersions => self.reply(
                found,
                connectors::list_versions(app, caller, self.parse(found)?).await,
            ),
            Operation::UpdateNetworkConnector => self.reply(
                found,
                connectors::update(app, caller, self.parse(found)?).await,
            ),
            Operation::DeleteNetworkConnector => self.reply(
                found,
                connectors::delete(app, caller, self.parse(found)?).await,
            ),
        }
    }

    /// What a deletion does about a build under way: AWS refuses, and knows no way to call a build off. With
    /// the query parameter `dormouse-cancel=true`, which no AWS client sends, it is called off.
    fn under_way(&self) -> UnderWay {
        let query = self.parts.uri.query().unwrap_or_default();
        match query.split('&').any(|pair| pair == "dormouse-cancel=true") {
            true => UnderWay::Cancel,
            false => UnderWay::Refuse,
        }
    }

    fn parse<T: Request>(&self, found: &Match) -> Result<T, ApiError> {
        let query = self.parts.uri.query().unwrap_or_default();
        restjson::parse(&found.path_params, query, self.body)
    }

    fn reply<T: Serialize>(
        &self,
        found: &Match,
        result: Result<T, ApiError>,
    ) -> Result<Response<Bytes>, ApiError> {
        result.map(|output| restjson::respond(found.operation, &output, self.request_id))
    }
}

/// A batch that was decided on what another writer has changed since is to be decided again; it answers
/// nothing.
fn written_again(
    applied: Result<Vec<Written>, StoreError>,
) -> Result<Option<Vec<Written>>, ApiError> {
    match applied {
        Ok(written) => Ok(Some(written)),
        Err(StoreError::Exists { .. } | StoreError::Stale { .. }) => Ok(None),
        Err(error) => Err(store_failed(error)),
    }
}

/// Other writers were faster each time.
fn contended() -> ApiError {
    ApiError::conflict("Other requests change the same resource: try again")
}

/// What calls of the control API and its extension are signed for.
fn control_scope(app: &App) -> Scope<'_> {
    Scope {
        region: &app.config.region,
        service: "lambda",
    }
}

/// The account whose key signed the request for this scope; the mark says it again.
fn authenticate(
    keys: &Keys,
    parts: &Parts,
    body: &[u8],
    scope: Scope<'_>,
    marks: &mut Extensions,
) -> Result<AccountId, ApiError> {
    let now = Timestamp::from_millisecond(i64::try_from(clock::now().0).unwrap_or(i64::MAX))
        .map_err(|error| internal("clock is out of range", &error))?;
    let lookup = |id: &str| keys.get(id).map(|key| key.secret.clone());
    let skew = limits::SIGV4_CLOCK_SKEW;
    let id = sigv4::verify(parts, body, scope, now, skew, lookup)?;
    let key = keys.get(id.as_str()).ok_or_else(ApiError::internal)?;
    marks.insert(Caller {
        account: key.account.clone(),
        key: key.id,
    });
    Ok(key.account)
}

/// A fault of ours: logged here, and the client is told no more than that.
fn internal(what: &str, error: &dyn Error) -> ApiError {
    tracing::error!(error = chain(error), "{what}");
    ApiError::internal()
}

fn store_failed(error: StoreError) -> ApiError {
    internal("store failed", &error)
}

#[cfg(test)]
mod tests;
