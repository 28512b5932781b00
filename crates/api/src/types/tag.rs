//! Tags of a resource, whatever it is. This API spells its members in PascalCase.

use super::Tags;
use serde::{Deserialize, Serialize};

/// Reads a resource's tags.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "PascalCase")]
pub struct ListTagsRequest {
    /// The resource's ARN.
    pub resource: String,
}

/// A resource's tags.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "PascalCase")]
pub struct ListTagsResponse {
    /// `{}` when there are none.
    pub tags: Tags,
}

/// Adds tags to a resource, or gives those of the same keys new values. Answered by `Empty`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "PascalCase")]
pub struct TagResourceRequest {
    /// The resource's ARN.
    pub resource: String,
    /// The tags to add.
    pub tags: Tags,
}

/// Takes tags off a resource. Answered by `Empty`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "PascalCase")]
pub struct UntagResourceRequest {
    /// The resource's ARN.
    pub resource: String,
    /// Keys of the tags to take off; a key that is not there is none's loss.
    #[serde(rename = "tagKeys")]
    pub tag_keys: Vec<String>,
}
