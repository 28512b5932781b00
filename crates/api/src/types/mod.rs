//! Requests and responses, by noun. Requests ignore unknown members; responses write every
//! optional member as an explicit `null`, as AWS does, but for those of network connectors, which
//! leave it out, as AWS does there.

mod image;
mod image_build;
mod image_version;
mod managed_image;
mod microvm;
mod network_connector;
mod tag;
mod token;

pub use image::*;
pub use image_build::*;
pub use image_version::*;
pub use managed_image::*;
pub use microvm::*;
pub use network_connector::*;
pub use tag::*;
pub use token::*;

use serde::{Deserialize, Serialize};

/// Seconds since the Unix epoch, with a fraction: the form of every time on the wire.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct EpochSeconds(pub f64);

/// A structure without members, written `{}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Empty {}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Page<T> {
    /// What is on the page; may be empty though more pages follow.
    pub items: Vec<T>,
    /// Names the page after this one; none after the last.
    pub next_token: Option<String>,
}

/// Where a MicroVM's or a build's logs go: one of the two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum Logging {
    /// Nowhere.
    Disabled(Empty),
    /// To CloudWatch Logs.
    CloudWatch(CloudWatchLogging),
}

/// A place in CloudWatch Logs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CloudWatchLogging {
    /// The log group; AWS's default when none.
    pub log_group: Option<String>,
    /// The log stream.
    pub log_stream: Option<String>,
}
