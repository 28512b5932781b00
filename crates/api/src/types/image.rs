//! Images.

use super::{EpochSeconds, Logging, Page};
use crate::Sensitive;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Environment variables by name.
pub type EnvironmentVariables = BTreeMap<String, Sensitive>;
/// Tags by key.
pub type Tags = BTreeMap<String, String>;

/// What an image version is built from and how: what a client gives when it creates or updates an
/// image, and what the version then shows, with defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ImageSettings {
    /// Extra operating system capabilities of the app.
    pub additional_os_capabilities: Option<Vec<Capability>>,
    /// The managed image that it builds on.
    pub base_image_arn: String,
    /// That image's version, as in `1` or `1.0`.
    pub base_image_version: Option<String>,
    /// The role that fetches the artifact.
    pub build_role_arn: String,
    /// Where the zip with the Dockerfile is.
    pub code_artifact: CodeArtifact,
    /// The processors to build for.
    pub cpu_configurations: Option<Vec<CpuConfiguration>>,
    /// Free text.
    pub description: Option<String>,
    /// Connectors that let traffic of its MicroVMs out, at most one.
    pub egress_network_connectors: Option<Vec<String>>,
    /// Environment of the app, baked into the image.
    pub environment_variables: Option<EnvironmentVariables>,
    /// What the app wants to be told, and on which port.
    pub hooks: Option<Hooks>,
    /// Where logs go.
    pub logging: Option<Logging>,
    /// Memory, at most one entry.
    pub resources: Option<Vec<Resources>>,
}

/// Creates an image and builds its first version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CreateMicrovmImageRequest {
    /// What to build.
    #[serde(flatten)]
    pub settings: ImageSettings,
    /// The image's name, unique in the account.
    pub name: String,
    /// Tags of the image.
    pub tags: Option<Tags>,
    /// Makes repeats of this request one image.
    pub client_token: Option<String>,
}

/// A zip in S3: a union of one member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum CodeArtifact {
    /// `s3://BUCKET/KEY`.
    Uri(String),
}

/// Extra operating system capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Capability {
    /// All of them.
    All,
}

/// A kind of processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CpuConfiguration {
    /// Its instruction set.
    pub architecture: Architecture,
}

/// An instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Architecture {
    /// 64-bit Arm.
    #[serde(rename = "ARM_64")]
    Arm64,
    /// 64-bit x86.
    #[serde(rename = "X86_64")]
    X86_64,
}

/// A maker of processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "AWS's own names")]
pub enum Chipset {
    Graviton,
    Intel,
}

/// Memory of a MicroVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Resources {
    /// Baseline memory in MiB.
    #[serde(rename = "minimumMemoryInMiB")]
    pub minimum_memory_in_mib: i32,
}

/// What the app wants to be told, and on which port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Hooks {
    /// The port on which the app answers hooks.
    pub port: Option<u16>,
    /// Hooks in the life of a MicroVM.
    pub microvm_hooks: Option<MicrovmHooks>,
    /// Hooks while the image is built.
    pub microvm_image_hooks: Option<MicrovmImageHooks>,
}

/// Hooks in the life of a MicroVM; times in seconds, 1 to 60.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "four hooks and their time limits in seconds")]
pub struct MicrovmHooks {
    pub run: Option<HookState>,
    pub run_timeout_in_seconds: Option<i32>,
    pub resume: Option<HookState>,
    pub resume_timeout_in_seconds: Option<i32>,
    pub suspend: Option<HookState>,
    pub suspend_timeout_in_seconds: Option<i32>,
    pub terminate: Option<HookState>,
    pub terminate_timeout_in_seconds: Option<i32>,
}

/// Hooks while the image is built; times in seconds, 1 to 3600.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "two hooks and their time limits in seconds")]
pub struct MicrovmImageHooks {
    pub ready: Option<HookState>,
    pub ready_timeout_in_seconds: Option<i32>,
    pub validate: Option<HookState>,
    pub validate_timeout_in_seconds: Option<i32>,
}

/// Whether a hook is called; not called when absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "the names say it")]
pub enum HookState {
    Disabled,
    Enabled,
}

/// Replaces what an image is built from and builds its next version. Nothing is inherited from the
/// version before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct UpdateMicrovmImageRequest {
    /// The image's ARN.
    pub image_identifier: String,
    /// What to build.
    #[serde(flatten)]
    pub settings: ImageSettings,
    /// Makes repeats of this request one version.
    pub client_token: Option<String>,
}

/// An image with the version that is being built.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct UpdateMicrovmImageResponse {
    /// What is being built, defaults filled in.
    #[serde(flatten)]
    pub settings: ImageSettings,
    /// Members that no model names.
    #[serde(flatten)]
    pub unmodelled: UnmodelledSettings,
    /// When the image was created.
    pub created_at: EpochSeconds,
    /// A UUID beside the ARN; no model names it.
    pub id: String,
    /// Its ARN.
    pub image_arn: String,
    /// The version being built, as in `1.0`.
    pub image_version: String,
    /// Newest version that may be launched.
    pub latest_active_image_version: Option<String>,
    /// Newest version whose build failed.
    pub latest_failed_image_version: Option<String>,
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub state: MicrovmImageState,
    /// When it last changed.
    pub updated_at: EpochSeconds,
}

/// A new image.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CreateMicrovmImageResponse {
    /// All that an update answers, too.
    #[serde(flatten)]
    pub image: UpdateMicrovmImageResponse,
    /// Null here whatever was given, as on AWS.
    pub tags: Option<Tags>,
}

/// Members beside [`ImageSettings`] that AWS sends though no model names them; always null so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "AWS documents neither")]
pub struct UnmodelledSettings {
    pub build_phase_overrides: Option<String>,
    pub role_configuration: Option<String>,
}

/// Reads one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct GetMicrovmImageInput {
    /// The image's ARN.
    pub image_identifier: String,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct GetMicrovmImageOutput {
    /// The image, as lists show it.
    #[serde(flatten)]
    pub summary: MicrovmImageSummary,
    /// Its tags; `{}` when there are none.
    pub tags: Tags,
}

/// An image in a list.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct MicrovmImageSummary {
    /// When it was created.
    pub created_at: EpochSeconds,
    /// A UUID beside the ARN; no model names it.
    pub id: String,
    /// Its ARN.
    pub image_arn: String,
    /// Newest version that may be launched.
    pub latest_active_image_version: Option<String>,
    /// Newest version whose build failed.
    pub latest_failed_image_version: Option<String>,
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub state: MicrovmImageState,
    /// When it last changed.
    pub updated_at: EpochSeconds,
}

/// Where an image is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "AWS's own states")]
pub enum MicrovmImageState {
    Creating,
    Created,
    CreateFailed,
    Updating,
    Updated,
    UpdateFailed,
    Deleting,
    DeleteFailed,
    Deleted,
}

/// Reads the images, a page at a time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ListMicrovmImagesRequest {
    /// Most items on the page, 1 to 50; counted before the filter.
    pub max_results: Option<i32>,
    /// Where the page begins; from an earlier page.
    pub next_token: Option<String>,
    /// Only images whose name contains this.
    pub name_filter: Option<String>,
}

/// One page of images.
pub type ListMicrovmImagesResponse = Page<MicrovmImageSummary>;

/// Ends an image with all its versions.
pub type DeleteMicrovmImageInput = GetMicrovmImageInput;

/// An image on its way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct DeleteMicrovmImageOutput {
    /// The image's ARN.
    pub image_identifier: String,
    /// Where it is in its life.
    pub state: MicrovmImageState,
}
