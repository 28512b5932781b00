//! Versions of an image.

use super::{EpochSeconds, ImageSettings, Page, Tags, UnmodelledSettings};
use serde::{Deserialize, Serialize};

/// Reads one version of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct GetMicrovmImageVersionInput {
    /// The image's ARN.
    pub image_identifier: String,
    /// The version, as in `1.0`.
    pub image_version: String,
}

/// A version of an image: what Get answers and what lists hold.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct MicrovmImageVersion {
    /// What it is built from, defaults filled in.
    #[serde(flatten)]
    pub settings: ImageSettings,
    /// Members that no model names.
    #[serde(flatten)]
    pub unmodelled: UnmodelledSettings,
    /// When it was created.
    pub created_at: EpochSeconds,
    /// Its image.
    pub image_arn: String,
    /// Its number, as in `1.0`.
    pub image_version: String,
    /// Where it is in its life.
    pub state: MicrovmImageVersionState,
    /// Null on AWS whatever happened: the reason is on the build.
    pub state_reason: Option<String>,
    /// Whether it may be launched.
    pub status: MicrovmImageVersionStatus,
    /// Null, as on AWS: tags belong to the image.
    pub tags: Option<Tags>,
    /// When it last changed.
    pub updated_at: EpochSeconds,
    /// The state and the hour that it was reached in, `SUCCESSFUL#yymmddHH`; no model names it.
    pub version_state_time_bucket: Option<String>,
}

/// The answer to Get.
pub type GetMicrovmImageVersionOutput = MicrovmImageVersion;
/// The answer to Update.
pub type UpdateMicrovmImageVersionResponse = MicrovmImageVersion;
/// A version in a list.
pub type MicrovmImageVersionSummary = MicrovmImageVersion;

/// Where an image version is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "AWS's own states")]
pub enum MicrovmImageVersionState {
    Pending,
    InProgress,
    Successful,
    Failed,
    Deleting,
    Deleted,
    DeleteFailed,
}

/// Whether an image version may be launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "the names say it")]
pub enum MicrovmImageVersionStatus {
    Active,
    Inactive,
}

/// Reads the versions of an image, a page at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ListMicrovmImageVersionsInput {
    /// Most items on the page, 1 to 50.
    pub max_results: Option<i32>,
    /// Where the page begins; from an earlier page.
    pub next_token: Option<String>,
    /// The image's ARN.
    pub image_identifier: String,
}

/// One page of versions.
pub type ListMicrovmImageVersionsOutput = Page<MicrovmImageVersionSummary>;

/// Says whether a version may be launched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct UpdateMicrovmImageVersionRequest {
    /// The image's ARN.
    pub image_identifier: String,
    /// The version, as in `1.0`.
    pub image_version: String,
    /// Whether it may be launched from now on.
    pub status: MicrovmImageVersionStatus,
}

/// Ends one version of an image.
pub type DeleteMicrovmImageVersionInput = GetMicrovmImageVersionInput;

/// A version on its way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct DeleteMicrovmImageVersionOutput {
    /// The image's ARN.
    pub image_identifier: String,
    /// The version, as in `1.0`.
    pub image_version: String,
    /// Where it is in its life.
    pub state: MicrovmImageVersionState,
}
