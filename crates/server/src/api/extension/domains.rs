//! Custom domains of a MicroVM: give, list, take back.

use crate::api::{microvms, store_failed};
use crate::app::App;
use crate::aws_names;
use crate::config::is_host_name;
use crate::domains::ClaimError;
use dormouse_api::ApiError;
use dormouse_core::microvm::State;
use dormouse_core::{AccountId, limits};
use serde::Serialize;

/// The names of a MicroVM.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DomainList {
    microvm_id: String,
    endpoint: String,
    domains: Vec<String>,
}

pub(super) async fn add(
    app: &App,
    caller: &AccountId,
    id: &str,
    name: &str,
) -> Result<DomainList, ApiError> {
    check(app, name)?;
    let vm = microvms::find(app, caller, id).await?;
    if vm.state == State::Terminated {
        return Err(ApiError::microvm_terminated(id));
    }
    match app.domains.claim(&vm, name).await {
        Ok(()) => list(app, caller, id).await,
        Err(ClaimError::Taken) => Err(ApiError::conflict(format!(
            "The domain {name} belongs to another MicroVM."
        ))),
        Err(ClaimError::TooMany) => Err(ApiError::quota_exceeded(format!(
            "A MicroVM has at most {} domains.",
            limits::MICROVM_DOMAINS_MAX
        ))),
        Err(ClaimError::Store(error)) => Err(store_failed(error)),
    }
}

pub(super) async fn list(app: &App, caller: &AccountId, id: &str) -> Result<DomainList, ApiError> {
    let vm = microvms::find(app, caller, id).await?;
    Ok(DomainList {
        domains: app.domains.list(&vm.id).await.map_err(store_failed)?,
        endpoint: app.endpoint(&vm.endpoint),
        microvm_id: vm.id.to_string(),
    })
}

pub(super) async fn remove(
    app: &App,
    caller: &AccountId,
    id: &str,
    name: &str,
) -> Result<DomainList, ApiError> {
    let vm = microvms::find(app, caller, id).await?;
    let released = app.domains.release(caller, &vm.id, name).await;
    if released.map_err(store_failed)? {
        return list(app, caller, id).await;
    }
    Err(ApiError::not_found(format!(
        "{id} does not have the domain {name}."
    )))
}

/// A name that could be another's endpoint is nobody's domain.
fn check(app: &App, name: &str) -> Result<(), ApiError> {
    let own = [
        app.config.endpoint_domain.clone(),
        aws_names::endpoints(&app.config.region),
    ];
    let below = |domain: &String| {
        name.strip_suffix(domain.as_str())
            .is_some_and(|before| before.is_empty() || before.ends_with('.'))
    };
    if !is_host_name(name) {
        return Err(ApiError::validation(format!(
            "{name} is not a host name: write lower-case labels with dots between them."
        )));
    }
    if own.iter().any(below) {
        return Err(ApiError::validation(format!(
            "{name} is among the names of endpoints: choose one outside of their domain."
        )));
    }
    Ok(())
}
