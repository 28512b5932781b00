//! Builds of an image version.

use super::{Architecture, Chipset, EpochSeconds, Page};
use serde::{Deserialize, Serialize};

/// Reads one build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct GetMicrovmImageBuildInput {
    /// The image's ARN.
    pub image_identifier: String,
    /// The version, as in `1.0`.
    pub image_version: String,
    /// The build's id.
    pub build_id: String,
}

/// A build of an image version for one kind of processor, as lists show it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct MicrovmImageBuildSummary {
    /// The instruction set that it is for.
    pub architecture: Architecture,
    /// Its id.
    pub build_id: String,
    /// Where it is in its life.
    pub build_state: BuildState,
    /// The maker of the processor that it is for.
    pub chipset: Chipset,
    /// That processor's generation.
    pub chipset_generation: String,
    /// When it was created.
    pub created_at: EpochSeconds,
    /// Its image.
    pub image_arn: String,
    /// Its image version, as in `1.0`.
    pub image_version: String,
    /// Why it failed.
    pub state_reason: Option<String>,
    /// Present on the wire though no model names it; always null so far.
    pub termination_reason_code: Option<String>,
}

/// A build with what it made.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct GetMicrovmImageBuildOutput {
    /// The build, as lists show it.
    #[serde(flatten)]
    pub summary: MicrovmImageBuildSummary,
    /// Sizes of what it made, as far as it came.
    pub snapshot_build: Option<SnapshotBuild>,
}

/// Reads the builds of a version, a page at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ListMicrovmImageBuildsInput {
    /// Most items on the page, 1 to 50; counted before the filters.
    pub max_results: Option<i32>,
    /// Where the page begins; from an earlier page.
    pub next_token: Option<String>,
    /// The image's ARN.
    pub image_identifier: String,
    /// The version, as in `1.0`.
    pub image_version: String,
    /// Only builds for this instruction set.
    pub architecture: Option<Architecture>,
    /// Only builds for processors of this maker.
    pub chipset: Option<Chipset>,
    /// Only builds for this generation of processors.
    pub chipset_generation: Option<String>,
}

/// One page of builds.
pub type ListMicrovmImageBuildsOutput = Page<MicrovmImageBuildSummary>;

/// Where a build is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "AWS's own states")]
pub enum BuildState {
    Pending,
    InProgress,
    Successful,
    Failed,
}

/// Sizes of a build's parts, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct SnapshotBuild {
    /// The app's files, as built from the Dockerfile.
    pub code_install_size_in_bytes: Option<i64>,
    /// What the app wrote to its disk before the snapshot.
    pub disk_snapshot_size_in_bytes: Option<i64>,
    /// The memory image.
    pub memory_snapshot_size_in_bytes: Option<i64>,
}
