//! Connectors as the API shows them.

use super::super::internal;
use dormouse_api::ApiError;
use dormouse_api::types::{
    GetNetworkConnectorResponse, NetworkConnector, NetworkConnectorConfiguration,
    NetworkConnectorLastUpdateStatus, NetworkConnectorState, NetworkConnectorStateReasonCode,
    NetworkConnectorSummary, NetworkConnectorType, NetworkConnectorVersionSummary,
    UpdateNetworkConnectorResponse,
};
use dormouse_core::Timestamp;
use dormouse_core::connector::{
    Connector, ConnectorSpec, ConnectorState, ConnectorVersion, Failure, Update,
};

/// What create and delete answer.
pub(super) fn summary(
    connector: &Connector,
    version: &ConnectorVersion,
    with_version_arn: bool,
) -> Result<NetworkConnector, ApiError> {
    let version_arn = connector.arn().at(version.number).to_string();
    Ok(NetworkConnector {
        arn: connector.arn().to_string(),
        id: connector.id.to_string(),
        name: connector.name.clone(),
        version_arn: with_version_arn.then_some(version_arn),
        version: version.number.into(),
        configuration: configuration(&version.spec)?,
        operator_role: version.spec.operator_role.clone(),
        state: state(connector.state),
    })
}

/// What the deletion of one version answers.
pub(super) fn deleted_version(
    connector: &Connector,
    version: &ConnectorVersion,
) -> Result<NetworkConnector, ApiError> {
    Ok(NetworkConnector {
        state: NetworkConnectorState::Deleting,
        ..summary(connector, version, true)?
    })
}

/// What get answers: of one version when the ARN named it, else of the connector.
pub(super) fn whole(
    connector: &Connector,
    version: &ConnectorVersion,
    one_version: bool,
) -> Result<GetNetworkConnectorResponse, ApiError> {
    let mut shown = summary(connector, version, one_version)?;
    let mut state_reason = connector.state_reason.clone();
    let mut failure = connector.failure.as_ref();
    let mut changed_at = connector.updated_at;
    if one_version {
        shown.state = state(version.state);
        failure = version.failure.as_ref();
        state_reason = failure.map(Failure::reason);
        changed_at = version.updated_at;
    }
    let update = connector.last_update.as_ref();
    Ok(GetNetworkConnectorResponse {
        connector: shown,
        last_modified: iso(changed_at),
        last_update_status: update.map(update_status),
        last_update_status_reason: update.and_then(update_reason),
        last_update_status_reason_code: update.and_then(|update| match update {
            Update::Failed(failure) => Some(reason_code(failure)),
            _ => None,
        }),
        latest_version: (!one_version).then_some(connector.current_version.into()),
        latest_version_arn: (!one_version).then(|| latest_arn(connector)),
        state_reason,
        state_reason_code: failure.map(reason_code),
    })
}

/// What update answers.
pub(super) fn updated(
    connector: &Connector,
    version: &ConnectorVersion,
) -> Result<UpdateNetworkConnectorResponse, ApiError> {
    let update = connector
        .last_update
        .as_ref()
        .unwrap_or(&Update::Successful);
    Ok(UpdateNetworkConnectorResponse {
        connector: summary(connector, version, true)?,
        last_modified: iso(connector.updated_at),
        last_update_status: update_status(update),
        last_update_status_reason: update_reason(update),
    })
}

/// A connector in a list.
pub(super) fn item(connector: &Connector) -> NetworkConnectorSummary {
    NetworkConnectorSummary {
        arn: connector.arn().to_string(),
        id: connector.id.to_string(),
        last_modified: iso(connector.updated_at),
        latest_version: connector.current_version.into(),
        latest_version_arn: latest_arn(connector),
        name: connector.name.clone(),
        state: state(connector.state),
        kind: NetworkConnectorType::VpcEgress,
    }
}

/// A version in a list.
pub(super) fn version_item(
    connector: &Connector,
    version: &ConnectorVersion,
) -> NetworkConnectorVersionSummary {
    let failure = version.failure.as_ref();
    NetworkConnectorVersionSummary {
        arn: connector.arn().to_string(),
        id: connector.id.to_string(),
        last_modified: iso(version.updated_at),
        name: connector.name.clone(),
        state: state(version.state),
        state_reason: failure.map(Failure::reason),
        state_reason_code: failure.map(reason_code),
        version: version.number.into(),
        version_arn: connector.arn().at(version.number).to_string(),
    }
}

/// The configuration as it was given.
pub(super) fn configuration(
    spec: &ConnectorSpec,
) -> Result<NetworkConnectorConfiguration, ApiError> {
    serde_json::from_value(spec.configuration.clone())
        .map_err(|error| internal("stored configuration does not parse", &error))
}

pub(super) fn state(state: ConnectorState) -> NetworkConnectorState {
    match state {
        ConnectorState::Pending => NetworkConnectorState::Pending,
        ConnectorState::Active => NetworkConnectorState::Active,
        ConnectorState::Failed => NetworkConnectorState::Failed,
        ConnectorState::Deleting => NetworkConnectorState::Deleting,
    }
}

pub(super) fn state_name(state: ConnectorState) -> &'static str {
    match state {
        ConnectorState::Pending => "PENDING",
        ConnectorState::Active => "ACTIVE",
        ConnectorState::Failed => "FAILED",
        ConnectorState::Deleting => "DELETING",
    }
}

fn latest_arn(connector: &Connector) -> String {
    connector.arn().at(connector.current_version).to_string()
}

fn update_status(update: &Update) -> NetworkConnectorLastUpdateStatus {
    match update {
        Update::InProgress => NetworkConnectorLastUpdateStatus::InProgress,
        Update::Successful | Update::Unchanged => NetworkConnectorLastUpdateStatus::Successful,
        Update::Failed(_) => NetworkConnectorLastUpdateStatus::Failed,
    }
}

fn update_reason(update: &Update) -> Option<String> {
    match update {
        Update::Unchanged => Some("No configuration changes detected".to_owned()),
        Update::Failed(failure) => Some(failure.reason()),
        Update::InProgress | Update::Successful => None,
    }
}

fn reason_code(failure: &Failure) -> NetworkConnectorStateReasonCode {
    match failure {
        Failure::InvalidSubnet(_) => NetworkConnectorStateReasonCode::InvalidSubnet,
        Failure::InvalidSecurityGroup(_) => NetworkConnectorStateReasonCode::InvalidSecurityGroup,
    }
}

/// A time as this API writes it.
fn iso(at: Timestamp) -> String {
    let at = i64::try_from(at.0).ok();
    let at = at.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    format!("{:.3}", at.unwrap_or_default())
}
