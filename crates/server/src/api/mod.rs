//! The control API: who asks, what for, and the handler that answers.
//!
//! ```text
//! raw request ─▶ body (bounded) ─▶ SigV4 ─▶ route ─▶ parse and validate ─▶ handler by noun ─▶ JSON
//! ```

mod idempotency;
mod images;
mod listing;
mod microvms;
mod tokens;

use crate::app::App;
use crate::keys::Keys;
use bytes::Bytes;
use dormouse_api::ApiError;
use dormouse_api::restjson::{self, Request};
use dormouse_api::route::{Match, Operation, route};
use dormouse_api::sigv4::{self, Scope};
use dormouse_core::{AccountId, limits};
use dormouse_node::clock;
use dormouse_node::driver::chain;
use dormouse_store::StoreError;
use http::{Response, request::Parts};
use jiff::Timestamp;
use serde::Serialize;
use std::error::Error;
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
    let response = match call.answer(keys).await {
        Ok(response) => response,
        Err(error) => error.into_response(request_id),
    };
    let status = response.status().as_u16();
    tracing::debug!(%request_id, method = %parts.method, path = parts.uri.path(), status, "api call");
    response
}

/// Refuses a request whose body is larger than any request's is.
pub(crate) fn body_too_large() -> Response<Bytes> {
    ApiError::body_too_large(limits::API_BODY_BYTES_MAX).into_response(Uuid::new_v4())
}

struct Call<'a> {
    app: &'a App,
    parts: &'a Parts,
    body: &'a [u8],
    request_id: Uuid,
}

impl Call<'_> {
    async fn answer(&self, keys: &Keys) -> Result<Response<Bytes>, ApiError> {
        let account = self.authenticate(keys)?;
        let found = route(&self.parts.method, self.parts.uri.path())?;
        let app = self.app;
        let caller = &account;
        match found.operation {
            Operation::CreateMicrovmImage => self.reply(
                &found,
                images::create(app, caller, self.parse(&found)?).await,
            ),
            Operation::GetMicrovmImage => {
                self.reply(&found, images::get(app, caller, self.parse(&found)?).await)
            }
            Operation::ListMicrovmImages => {
                self.reply(&found, images::list(app, caller, self.parse(&found)?).await)
            }
            Operation::GetMicrovmImageVersion => self.reply(
                &found,
                images::get_version(app, caller, self.parse(&found)?).await,
            ),
            Operation::GetMicrovmImageBuild => self.reply(
                &found,
                images::get_build(app, caller, self.parse(&found)?).await,
            ),
            Operation::ListManagedMicrovmImages => {
                self.reply(&found, images::list_managed(app, self.parse(&found)?))
            }
            Operation::RunMicrovm => self.reply(
                &found,
                microvms::run(app, caller, self.parse(&found)?).await,
            ),
            Operation::GetMicrovm => self.reply(
                &found,
                microvms::get(app, caller, self.parse(&found)?).await,
            ),
            Operation::ListMicrovms => self.reply(
                &found,
                microvms::list(app, caller, self.parse(&found)?).await,
            ),
            Operation::SuspendMicrovm => self.reply(
                &found,
                microvms::suspend(app, caller, self.parse(&found)?).await,
            ),
            Operation::ResumeMicrovm => self.reply(
                &found,
                microvms::resume(app, caller, self.parse(&found)?).await,
            ),
            Operation::TerminateMicrovm => self.reply(
                &found,
                microvms::terminate(app, caller, self.parse(&found)?).await,
            ),
            Operation::CreateMicrovmAuthToken => self.reply(
                &found,
                tokens::create(app, caller, self.parse(&found)?).await,
            ),
            other => Err(ApiError::not_implemented(other)),
        }
    }

    fn authenticate(&self, keys: &Keys) -> Result<AccountId, ApiError> {
        let scope = Scope {
            region: &self.app.config.region,
            service: "lambda",
        };
        let now = Timestamp::from_millisecond(i64::try_from(clock::now().0).unwrap_or(i64::MAX))
            .map_err(|error| internal("clock is out of range", &error))?;
        let lookup = |id: &str| keys.get(id).map(|key| key.secret.clone());
        let skew = limits::SIGV4_CLOCK_SKEW;
        let id = sigv4::verify(self.parts, self.body, scope, now, skew, lookup)?;
        let key = keys.get(id.as_str()).ok_or_else(ApiError::internal)?;
        Ok(key.account.clone())
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

/// A fault of ours: logged here, and the client is told no more than that.
fn internal(what: &str, error: &dyn Error) -> ApiError {
    tracing::error!(error = chain(error), "{what}");
    ApiError::internal()
}

fn store_failed(error: StoreError) -> ApiError {
    internal("store failed", &error)
}
