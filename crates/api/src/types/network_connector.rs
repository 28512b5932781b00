//! Network connectors of an account. This API (`lambda-core`) spells its members in PascalCase, leaves
//! out what is absent, and writes times as text.

use super::Tags;
use serde::{Deserialize, Serialize};

/// Creates a connector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "PascalCase")]
pub struct CreateNetworkConnectorRequest {
    /// Its name, unique in the account.
    pub name: String,
    /// What it connects to.
    pub configuration: NetworkConnectorConfiguration,
    /// The role that would make it on AWS; required by the service, not by the model.
    pub operator_role: Option<String>,
    /// Makes repeats of this request one connector; required by the service, not by the model.
    pub client_token: Option<String>,
    /// Its tags.
    pub tags: Option<Tags>,
}

/// What a connector connects to: a union of one member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum NetworkConnectorConfiguration {
    /// Traffic out of MicroVMs into subnets.
    VpcEgressConfiguration(NetworkConnectorVpcEgressConfiguration),
}

/// Traffic out of MicroVMs into subnets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "PascalCase")]
pub struct NetworkConnectorVpcEgressConfiguration {
    /// 1 to 16 subnets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet_ids: Option<Vec<String>>,
    /// Up to 16 security groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub security_group_ids: Option<Vec<String>>,
    /// The addresses that it speaks; required by the service, not by the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_protocol: Option<NetworkProtocol>,
    /// The one thing that it is for; required by the service, not by the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub associated_compute_resource_types: Option<Vec<ComputeResourceType>>,
    /// Whether it has a public address of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elastic_ip_configuration: Option<ElasticIpConfiguration>,
}

/// The addresses that a connector speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum NetworkProtocol {
    /// IPv4 alone.
    IPv4,
    /// IPv4 and IPv6.
    DualStack,
}

/// What a connector is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[expect(missing_docs, reason = "AWS's own names")]
pub enum ComputeResourceType {
    MicroVm,
    WebFunction,
}

/// Whether a connector has a public address of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "PascalCase")]
pub struct ElasticIpConfiguration {
    /// Where the address comes from.
    #[serde(rename = "Type")]
    pub kind: ElasticIpType,
}

/// Where a public address comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[expect(missing_docs, reason = "AWS's own names")]
pub enum ElasticIpType {
    None,
    ServiceManaged,
}

/// Where a connector is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "AWS's own states")]
pub enum NetworkConnectorState {
    Pending,
    Active,
    Inactive,
    Failed,
    Deleting,
    DeleteFailed,
}

/// Why a connector could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[expect(missing_docs, reason = "AWS's own codes")]
pub enum NetworkConnectorStateReasonCode {
    DisallowedByVpcEncryptionControl,
    Ec2RequestLimitExceeded,
    InsufficientRolePermissions,
    InternalError,
    InternetGatewayNotAttached,
    InvalidSecurityGroup,
    InvalidSubnet,
    SecurityGroupsPerInterfaceLimitExceeded,
    SubnetOutOfIPAddresses,
}

/// Why a connector's last update failed: the same codes.
pub type NetworkConnectorLastUpdateStatusReasonCode = NetworkConnectorStateReasonCode;

/// How a connector's last update went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[expect(missing_docs, reason = "AWS's own words")]
pub enum NetworkConnectorLastUpdateStatus {
    Successful,
    Failed,
    InProgress,
}

/// What a connector is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum NetworkConnectorType {
    /// The one kind that there is.
    VpcEgress,
}

/// A connector, as every operation on one answers it; each leaves out what is not its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "PascalCase")]
pub struct NetworkConnector {
    /// Its ARN.
    pub arn: String,
    /// The last part of its ARN.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The ARN of the version that is shown, where that is not plain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_arn: Option<String>,
    /// The version that is shown, from 1.
    pub version: i64,
    /// What it connects to.
    pub configuration: NetworkConnectorConfiguration,
    /// The role that would make it on AWS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operator_role: Option<String>,
    /// Where it is in its life.
    pub state: NetworkConnectorState,
}

/// The answer to Create.
pub type CreateNetworkConnectorResponse = NetworkConnector;
/// The answer to Delete.
pub type DeleteNetworkConnectorResponse = NetworkConnector;

/// Names one connector: the whole request of Get and Delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "PascalCase")]
pub struct NetworkConnectorRequest {
    /// The connector's id, name or ARN.
    pub identifier: String,
}

/// Reads one connector.
pub type GetNetworkConnectorRequest = NetworkConnectorRequest;
/// Ends one connector.
pub type DeleteNetworkConnectorRequest = NetworkConnectorRequest;

/// A connector with its latest version and how its last update went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "PascalCase")]
pub struct GetNetworkConnectorResponse {
    /// The connector.
    #[serde(flatten)]
    pub connector: NetworkConnector,
    /// When it last changed, as in `2026-07-30T06:12:44.120Z`.
    pub last_modified: String,
    /// How its last update went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_update_status: Option<NetworkConnectorLastUpdateStatus>,
    /// More about that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_update_status_reason: Option<String>,
    /// Why its last update failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_update_status_reason_code: Option<NetworkConnectorLastUpdateStatusReasonCode>,
    /// Its newest version; not said of a version that was asked for by its own ARN.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latest_version: Option<i64>,
    /// The ARN of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latest_version_arn: Option<String>,
    /// Why it is where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_reason: Option<String>,
    /// The same as a code, after a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_reason_code: Option<NetworkConnectorStateReasonCode>,
}

/// Gives a connector another configuration or role; what is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "PascalCase")]
pub struct UpdateNetworkConnectorRequest {
    /// The connector's id, name or ARN.
    pub identifier: String,
    /// What it connects to from now on.
    pub configuration: Option<NetworkConnectorConfiguration>,
    /// The role that would make it on AWS.
    pub operator_role: Option<String>,
    /// Makes repeats of this request one update.
    pub client_token: Option<String>,
}

/// A connector after an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "PascalCase")]
pub struct UpdateNetworkConnectorResponse {
    /// The connector.
    #[serde(flatten)]
    pub connector: NetworkConnector,
    /// When it last changed.
    pub last_modified: String,
    /// How the update went.
    pub last_update_status: NetworkConnectorLastUpdateStatus,
    /// More about that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_update_status_reason: Option<String>,
}

/// Reads the connectors, a page at a time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "PascalCase")]
pub struct ListNetworkConnectorsRequest {
    /// Only connectors in this state.
    pub state: Option<NetworkConnectorState>,
    /// Where the page begins; from an earlier page.
    pub marker: Option<String>,
    /// Most items on the page, 1 to 100; a page never has more than 50.
    pub max_items: Option<i32>,
}

/// One page of connectors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "PascalCase")]
pub struct ListNetworkConnectorsResponse {
    /// What is on the page; may be empty though more pages follow.
    pub network_connectors: Vec<NetworkConnectorSummary>,
    /// Names the page after this one; absent after the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_marker: Option<String>,
}

/// A connector in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "PascalCase")]
pub struct NetworkConnectorSummary {
    /// Its ARN.
    pub arn: String,
    /// The last part of its ARN.
    pub id: String,
    /// When it last changed.
    pub last_modified: String,
    /// Its newest version.
    pub latest_version: i64,
    /// The ARN of that.
    pub latest_version_arn: String,
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub state: NetworkConnectorState,
    /// What it is.
    #[serde(rename = "Type")]
    pub kind: NetworkConnectorType,
}

/// Reads the versions of a connector, a page at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "PascalCase")]
pub struct ListNetworkConnectorVersionsRequest {
    /// The connector's id, name or ARN.
    pub identifier: String,
    /// Only versions in this state.
    pub state: Option<NetworkConnectorState>,
    /// Where the page begins; from an earlier page.
    pub marker: Option<String>,
    /// Most items on the page, 1 to 100.
    pub max_items: Option<i32>,
}

/// One page of a connector's versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "PascalCase")]
pub struct ListNetworkConnectorVersionsResponse {
    /// What is on the page; may be empty though more pages follow.
    pub network_connector_versions: Vec<NetworkConnectorVersionSummary>,
    /// Names the page after this one; absent after the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_marker: Option<String>,
}

/// A version of a connector in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "PascalCase")]
pub struct NetworkConnectorVersionSummary {
    /// The connector's ARN.
    pub arn: String,
    /// The last part of the connector's ARN.
    pub id: String,
    /// When the version last changed.
    pub last_modified: String,
    /// The connector's name.
    pub name: String,
    /// Where the version is in its life.
    pub state: NetworkConnectorState,
    /// Why it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_reason: Option<String>,
    /// The same as a code, after a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_reason_code: Option<NetworkConnectorStateReasonCode>,
    /// Its number, from 1.
    pub version: i64,
    /// Its ARN.
    pub version_arn: String,
}
