//! Endpoint tokens.

use super::microvms;
use crate::app::App;
use dormouse_api::types::{
    CreateMicrovmAuthTokenRequest, CreateMicrovmAuthTokenResponse, PortSpecification,
};
use dormouse_api::{ApiError, checks};
use dormouse_core::microvm::State;
use dormouse_core::{AccountId, limits};
use dormouse_ingress::{Claims, PortRange, TokenKind};
use dormouse_node::clock;

/// CreateMicrovmAuthToken. A MicroVM that sleeps or starts may be given one; one that has ended may not.
pub(super) async fn create(
    app: &App,
    account: &AccountId,
    request: CreateMicrovmAuthTokenRequest,
) -> Result<CreateMicrovmAuthTokenResponse, ApiError> {
    checks::token_minutes(request.expiration_in_minutes, limits::TOKEN_MINUTES_MAX)?;
    checks::port_ranges(&request.allowed_ports)?;
    if request.allowed_ports.len() > limits::TOKEN_GRANTS_MAX {
        return Err(ApiError::validation(format!(
            "A token opens at most {} ports and ranges: name a range or all ports.",
            limits::TOKEN_GRANTS_MAX
        )));
    }
    let vm = microvms::find(app, account, &request.microvm_identifier).await?;
    if vm.state == State::Terminated {
        return Err(ApiError::microvm_terminated(&request.microvm_identifier));
    }
    let now = clock::now();
    let minutes = u64::try_from(request.expiration_in_minutes).unwrap_or(0);
    let claims = Claims {
        endpoint: vm.endpoint,
        ports: request.allowed_ports.iter().map(range).collect(),
        expires_s: now.0 / 1000 + minutes * 60,
        kind: TokenKind::Http,
    };
    Ok(CreateMicrovmAuthTokenResponse::new(
        app.tokens.mint(&claims),
    ))
}

fn range(port: &PortSpecification) -> PortRange {
    match *port {
        PortSpecification::Port(port) => PortRange::single(port),
        PortSpecification::Range(range) => PortRange {
            first: range.start_port,
            last: range.end_port,
        },
        PortSpecification::AllPorts(_) => PortRange::ALL,
    }
}
