//! Images, their versions, and the builds that make them.

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
#[serde(rename_all = "camelCase")]
pub enum CodeArtifact {
    /// `s3://BUCKET/KEY`.
    Uri(String),
}

/// Extra operating system capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Capability {
    /// All of them.
    All,
}

/// A kind of processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CpuConfiguration {
    /// Its instruction set.
    pub architecture: Architecture,
}

/// An instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "AWS's own names")]
pub enum Chipset {
    Graviton,
    Intel,
}

/// Memory of a MicroVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Baseline memory in MiB.
    #[serde(rename = "minimumMemoryInMiB")]
    pub minimum_memory_in_mib: i32,
}

/// What the app wants to be told, and on which port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "the names say it")]
pub enum HookState {
    Disabled,
    Enabled,
}

/// A new image.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateMicrovmImageResponse {
    /// What is being built, defaults filled in.
    #[serde(flatten)]
    pub settings: ImageSettings,
    /// Members that no model names.
    #[serde(flatten)]
    pub unmodelled: UnmodelledSettings,
    /// When it was created.
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
    /// Null here whatever was given, as on AWS.
    pub tags: Option<Tags>,
    /// When it last changed.
    pub updated_at: EpochSeconds,
}

/// Members beside [`ImageSettings`] that AWS sends though no model names them; always null so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "AWS documents neither")]
pub struct UnmodelledSettings {
    pub build_phase_overrides: Option<String>,
    pub role_configuration: Option<String>,
}

/// Reads one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GetMicrovmImageRequest {
    /// The image's ARN.
    pub image_identifier: String,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GetMicrovmImageResponse {
    /// The image, as lists show it.
    #[serde(flatten)]
    pub summary: MicrovmImageSummary,
    /// Its tags; `{}` when there are none.
    pub tags: Tags,
}

/// An image in a list.
#[derive(Debug, Clone, PartialEq, Serialize)]
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

/// Reads one version of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GetMicrovmImageVersionRequest {
    /// The image's ARN.
    pub image_identifier: String,
    /// The version, as in `1.0`.
    pub image_version: String,
}

/// A version of an image: what Get answers and what lists hold.
#[derive(Debug, Clone, PartialEq, Serialize)]
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
pub type GetMicrovmImageVersionResponse = MicrovmImageVersion;

/// Where an image version is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "the names say it")]
pub enum MicrovmImageVersionStatus {
    Active,
    Inactive,
}

/// Reads one build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GetMicrovmImageBuildRequest {
    /// The image's ARN.
    pub image_identifier: String,
    /// The version, as in `1.0`.
    pub image_version: String,
    /// The build's id.
    pub build_id: String,
}

/// A build of an image version for one kind of processor.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GetMicrovmImageBuildResponse {
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
    /// Sizes of what it made, as far as it came.
    pub snapshot_build: Option<SnapshotBuild>,
    /// Why it failed.
    pub state_reason: Option<String>,
    /// Present on the wire though no model names it; always null so far.
    pub termination_reason_code: Option<String>,
}

/// Where a build is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
#[serde(rename_all = "camelCase")]
pub struct SnapshotBuild {
    /// The app's files, as built from the Dockerfile.
    pub code_install_size_in_bytes: Option<i64>,
    /// What the app wrote to its disk before the snapshot.
    pub disk_snapshot_size_in_bytes: Option<i64>,
    /// The memory image.
    pub memory_snapshot_size_in_bytes: Option<i64>,
}

/// Reads the managed images, a page at a time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListManagedMicrovmImagesRequest {
    /// Most items on the page, 1 to 50.
    pub max_results: Option<i32>,
    /// Where the page begins; from an earlier page.
    pub next_token: Option<String>,
}

/// One page of managed images.
pub type ListManagedMicrovmImagesResponse = Page<ManagedMicrovmImageSummary>;

/// A managed image in a list.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ManagedMicrovmImageSummary {
    /// When it was created.
    pub created_at: EpochSeconds,
    /// Its ARN.
    pub image_arn: String,
    /// When it last changed.
    pub updated_at: EpochSeconds,
}
