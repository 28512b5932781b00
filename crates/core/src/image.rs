//! Images, their versions and the builds that make them, as stored.
//!
//! ```text
//! image:   Creating ──▶ Created | CreateFailed            version: Pending ──▶ InProgress ──▶ Successful
//!              ┌─────────┘  (build of the next version,                └──────────┴─────────▶ Failed
//!              ▼             or deletion of one)                   any ──▶ Deleting ──▶ gone | DeleteFailed
//!          Updating ──▶ Updated | UpdateFailed
//!          any ──▶ Deleting ──▶ gone | DeleteFailed
//! ```
//! Only the functions of [`life`] take a record from one state to another.

pub mod life;

use crate::hook::Hooks;
use crate::{AccountId, BuildId, ImageArn, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An image: a name and its versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its ARN; the name is its last part.
    pub arn: ImageArn,
    /// A UUID that AWS shows beside the ARN.
    pub id: String,
    /// The account that it belongs to.
    pub account: AccountId,
    /// Where it is in its life.
    pub state: ImageState,
    /// When it was first created.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Number of the newest version that there ever was: numbers are never given twice.
    #[serde(default = "first_version")]
    pub last_version: u32,
    /// Newest version that may be launched, as in `1.0`.
    pub latest_active_version: Option<String>,
    /// Newest version whose build failed.
    pub latest_failed_version: Option<String>,
    /// Tags, as given.
    pub tags: BTreeMap<String, String>,
}

/// Records that were stored before versions were counted are of images with one version.
fn first_version() -> u32 {
    1
}

/// Where an image is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ImageState {
    /// Its first version is being built.
    Creating,
    /// It has been built.
    Created,
    /// Its first build failed.
    CreateFailed,
    /// Its next version is being built, or one of its versions deleted.
    Updating,
    /// The last update succeeded.
    Updated,
    /// The last update failed; what was active before still is.
    UpdateFailed,
    /// It is being deleted with all that belongs to it; its name is still taken.
    Deleting,
    /// Its files could not be deleted; the deletion may be asked for again.
    DeleteFailed,
}

impl ImageState {
    /// The state's name in the API.
    #[must_use]
    pub fn wire_name(self) -> &'static str {
        match self {
            Self::Creating => "CREATING",
            Self::Created => "CREATED",
            Self::CreateFailed => "CREATE_FAILED",
            Self::Updating => "UPDATING",
            Self::Updated => "UPDATED",
            Self::UpdateFailed => "UPDATE_FAILED",
            Self::Deleting => "DELETING",
            Self::DeleteFailed => "DELETE_FAILED",
        }
    }
}

/// One version of an image: what was asked for, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The image.
    pub image: ImageArn,
    /// The version, as in `1.0`.
    pub version: String,
    /// The account that it belongs to.
    pub account: AccountId,
    /// Where its build is.
    pub state: VersionState,
    /// Whether it may be launched.
    pub active: bool,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// What was asked for.
    pub spec: VersionSpec,
}

/// What the caller asked for when it made a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionSpec {
    /// `s3://bucket/key` of the code artifact.
    pub artifact_uri: String,
    /// Baseline memory in MiB.
    pub memory_mib: u32,
    /// Variables that the app starts with, over the image's own.
    pub environment: BTreeMap<String, String>,
    /// The hooks that are enabled.
    #[serde(default)]
    pub hooks: Hooks,
    /// Whether the app keeps every capability of the kernel's.
    #[serde(default)]
    pub all_capabilities: bool,
    /// Egress connector ARNs that MicroVMs have unless they name their own.
    pub egress_connectors: Vec<String>,
    /// The settings as the API shows them, defaults filled in; the domain does not look inside.
    pub settings: serde_json::Value,
}

/// Where a version's build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum VersionState {
    /// In line.
    Pending,
    /// Being built.
    InProgress,
    /// Built; its snapshot can be launched.
    Successful,
    /// Not built.
    Failed,
    /// Being deleted. A build in this state has lost its version, and waits for the last MicroVM that uses
    /// its files.
    Deleting,
    /// Its files could not be deleted.
    DeleteFailed,
}

impl VersionState {
    /// The state's name in the API.
    #[must_use]
    pub fn wire_name(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::InProgress => "IN_PROGRESS",
            Self::Successful => "SUCCESSFUL",
            Self::Failed => "FAILED",
            Self::Deleting => "DELETING",
            Self::DeleteFailed => "DELETE_FAILED",
        }
    }

    /// Whether its build is still to end.
    #[must_use]
    pub fn is_building(self) -> bool {
        matches!(self, Self::Pending | Self::InProgress)
    }
}

/// One build of a version for one CPU architecture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// Its name in the API.
    pub id: BuildId,
    /// The image.
    pub image: ImageArn,
    /// The version that it builds.
    pub version: String,
    /// The account that it belongs to.
    pub account: AccountId,
    /// Where it is; a build has the states of its version.
    pub state: VersionState,
    /// Why it failed, for people; AWS's texts where AWS has one.
    pub state_reason: Option<String>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// Baseline memory of MicroVMs launched from it, in MiB.
    #[serde(default = "default_memory")]
    pub memory_mib: u32,
    /// What it made; none until it has succeeded.
    pub sizes: Option<SnapshotSizes>,
}

/// Builds that were stored before they knew their memory.
fn default_memory() -> u32 {
    crate::limits::MEMORY_DEFAULT_MIB
}

/// What a build made, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSizes {
    /// Memory that the snapshot keeps.
    pub memory: u64,
    /// The unpacked code: the root file system's content.
    pub code: u64,
    /// Blocks that the app wrote before its snapshot.
    pub disk: u64,
}

/// `1` and `1.0` name the same version; the second is the one that is stored and shown.
#[must_use]
pub fn canonical_version(text: &str) -> Option<String> {
    let major = text.strip_suffix(".0").unwrap_or(text);
    let valid = !major.is_empty()
        && major.len() <= 9
        && major.bytes().all(|b| b.is_ascii_digit())
        && (major == "0" || !major.starts_with('0'));
    valid.then(|| format!("{major}.0"))
}

/// The number in a version's name; zero for a name that is none.
#[must_use]
pub fn version_number(version: &str) -> u32 {
    let major = canonical_version(version).and_then(|name| name.strip_suffix(".0")?.parse().ok());
    major.unwrap_or(0)
}

/// The name of the version with this number.
#[must_use]
pub fn version_name(number: u32) -> String {
    format!("{number}.0")
}

#[cfg(test)]
mod tests {
    use super::{canonical_version, version_name, version_number};

    #[test]
    fn a_version_has_one_canonical_spelling() {
        assert_eq!(canonical_version("1").as_deref(), Some("1.0"));
        assert_eq!(canonical_version("12.0").as_deref(), Some("12.0"));
        for bad in ["", ".0", "1.1", "01", "-1", "1.0.0", "latest", "9999999999"] {
            assert_eq!(canonical_version(bad), None, "{bad:?}");
            assert_eq!(version_number(bad), 0, "{bad:?}");
        }
        assert_eq!(version_number(&version_name(12)), 12);
    }
}
