//! Tokens for endpoints and shells.

use super::{microvms, network};
use crate::app::App;
use dormouse_api::types::{
    CreateMicrovmAuthTokenRequest, CreateMicrovmAuthTokenResponse,
    CreateMicrovmShellAuthTokenRequest, CreateMicrovmShellAuthTokenResponse, PortSpecification,
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
    // Launched without ingress, it has no port that a token could open.
    let ports = if network::lets_requests_in(app, &vm.ingress_connectors) {
        request.allowed_ports.iter().map(range).collect()
    } else {
        Vec::new()
    };
    let claims = Claims {
        endpoint: vm.endpoint,
        ports,
        expires_s: expiry(request.expiration_in_minutes),
        kind: TokenKind::Http,
    };
    Ok(CreateMicrovmAuthTokenResponse::new(
        app.tokens.mint(&claims),
    ))
}

/// CreateMicrovmShellAuthToken: for a MicroVM that was launched with a way in for shells.
pub(super) async fn create_shell(
    app: &App,
    account: &AccountId,
    request: CreateMicrovmShellAuthTokenRequest,
) -> Result<CreateMicrovmShellAuthTokenResponse, ApiError> {
    checks::token_minutes(request.expiration_in_minutes, limits::TOKEN_MINUTES_MAX)?;
    let vm = microvms::find(app, account, &request.microvm_identifier).await?;
    if vm.state == State::Terminated {
        return Err(ApiError::microvm_terminated(&request.microvm_identifier));
    }
    network::check_shell(app, &vm.ingress_connectors)?;
    let claims = Claims {
        endpoint: vm.endpoint,
        ports: Vec::new(),
        expires_s: expiry(request.expiration_in_minutes),
        kind: TokenKind::Shell,
    };
    Ok(CreateMicrovmShellAuthTokenResponse::new(
        app.tokens.mint(&claims),
    ))
}

/// The second of the epoch that is so many minutes from now.
fn expiry(minutes: i32) -> u64 {
    clock::now().0 / 1000 + u64::try_from(minutes).unwrap_or(0) * 60
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
