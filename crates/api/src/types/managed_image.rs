//! The images that come with the platform.

use super::{CpuConfiguration, EpochSeconds, Page};
use serde::{Deserialize, Serialize};

/// Reads the managed images, a page at a time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ListManagedMicrovmImagesInput {
    /// Most items on the page, 1 to 50.
    pub max_results: Option<i32>,
    /// Where the page begins; from an earlier page.
    pub next_token: Option<String>,
}

/// One page of managed images.
pub type ListManagedMicrovmImagesOutput = Page<ManagedMicrovmImageSummary>;

/// A managed image in a list.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ManagedMicrovmImageSummary {
    /// When it was created.
    pub created_at: EpochSeconds,
    /// Its ARN.
    pub image_arn: String,
    /// When it last changed.
    pub updated_at: EpochSeconds,
}

/// Reads the versions of a managed image, a page at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ListManagedMicrovmImageVersionsInput {
    /// Most items on the page, 1 to 50.
    pub max_results: Option<i32>,
    /// Where the page begins; from an earlier page.
    pub next_token: Option<String>,
    /// The managed image's ARN.
    pub image_identifier: String,
}

/// One page of versions of a managed image.
pub type ListManagedMicrovmImageVersionsOutput = Page<ManagedMicrovmImageVersion>;

/// A version of a managed image.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ManagedMicrovmImageVersion {
    /// When it was created.
    pub created_at: EpochSeconds,
    /// Its image.
    pub image_arn: String,
    /// Its number; `1` on AWS, where versions of one's own images are `1.0`.
    pub image_version: String,
    /// Whether new images may build on it.
    pub status: Option<ManagedMicrovmImageVersionStatus>,
    /// The processors that it exists for.
    pub supported_cpu_configurations: Option<Vec<CpuConfiguration>>,
    /// When it last changed.
    pub updated_at: EpochSeconds,
}

/// Whether new images may build on a version of a managed image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "AWS's own states")]
pub enum ManagedMicrovmImageVersionStatus {
    Available,
    Deprecated,
    Recalled,
}
