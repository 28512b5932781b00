//! Endpoint tokens.

use super::Empty;
use crate::Sensitive;
use serde::{Deserialize, Serialize};

/// Asks for a token that opens a MicroVM's endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CreateMicrovmAuthTokenRequest {
    /// The MicroVM's id.
    pub microvm_identifier: String,
    /// The token's life in minutes, at least 1.
    pub expiration_in_minutes: i32,
    /// The ports that the token opens, at least one.
    pub allowed_ports: Vec<PortSpecification>,
}

/// A port, a range of them, or all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum PortSpecification {
    /// One port.
    Port(u16),
    /// All from one to another, both included.
    Range(PortRange),
    /// Every port.
    AllPorts(Empty),
}

/// Ports from `start_port` to `end_port`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct PortRange {
    /// The first port.
    pub start_port: u16,
    /// The last port.
    pub end_port: u16,
}

/// Asks for a token that opens a shell in a MicroVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CreateMicrovmShellAuthTokenRequest {
    /// The MicroVM's id.
    pub microvm_identifier: String,
    /// The token's life in minutes, at least 1.
    pub expiration_in_minutes: i32,
}

/// A fresh token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CreateMicrovmAuthTokenResponse {
    /// The header that carries the token, and the token.
    pub auth_token: AuthToken,
}

/// A fresh token for a shell: the same form.
pub type CreateMicrovmShellAuthTokenResponse = CreateMicrovmAuthTokenResponse;

/// A map of one header name to its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AuthToken {
    /// The token.
    #[serde(rename = "X-aws-proxy-auth")]
    pub x_aws_proxy_auth: Sensitive,
}

impl CreateMicrovmAuthTokenResponse {
    /// The response that hands out `token`.
    #[must_use]
    pub fn new(token: String) -> Self {
        Self {
            auth_token: AuthToken {
                x_aws_proxy_auth: token.into(),
            },
        }
    }
}
