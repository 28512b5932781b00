//! Images, their versions and the builds that make them, as stored.
//!
//! ```text
//! image:    Creating ──▶ Created          version: Pending ──▶ InProgress ──▶ Successful
//!              └───────▶ CreateFailed                              └────────▶ Failed
//! ```
//! A build's outcome is applied to the three records together by [`finish`].

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
    /// Newest version that may be launched, as in `1.0`.
    pub latest_active_version: Option<String>,
    /// Newest version whose build failed.
    pub latest_failed_version: Option<String>,
    /// Tags, as given.
    pub tags: BTreeMap<String, String>,
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
}

impl ImageState {
    /// The state's name in the API.
    #[must_use]
    pub fn wire_name(self) -> &'static str {
        match self {
            Self::Creating => "CREATING",
            Self::Created => "CREATED",
            Self::CreateFailed => "CREATE_FAILED",
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
    /// Ready hook and its port; none when it is not enabled.
    pub ready_hook: Option<ReadyHook>,
    /// Egress connector ARNs that MicroVMs have unless they name their own.
    pub egress_connectors: Vec<String>,
    /// The settings as the API shows them, defaults filled in; the domain does not look inside.
    pub settings: serde_json::Value,
}

/// How to ask the app whether it is ready for its snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadyHook {
    /// Port on which the app serves its hooks.
    pub port: u16,
    /// Give up after this many seconds.
    pub timeout_s: u64,
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
        }
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
    /// What it made; none until it has succeeded.
    pub sizes: Option<SnapshotSizes>,
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

/// Applies a build's outcome to the records that it concerns.
pub fn finish(
    image: &mut Image,
    version: &mut Version,
    build: &mut Build,
    outcome: Result<SnapshotSizes, String>,
    now: Timestamp,
) {
    image.updated_at = now;
    version.updated_at = now;
    match outcome {
        Ok(sizes) => {
            image.state = ImageState::Created;
            image.latest_active_version = Some(version.version.clone());
            version.state = VersionState::Successful;
            version.active = true;
            build.state = VersionState::Successful;
            build.sizes = Some(sizes);
        }
        Err(reason) => {
            image.state = ImageState::CreateFailed;
            image.latest_failed_version = Some(version.version.clone());
            version.state = VersionState::Failed;
            version.active = false;
            build.state = VersionState::Failed;
            build.state_reason = Some(reason);
        }
    }
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

#[cfg(test)]
mod tests {
    use super::canonical_version;

    #[test]
    fn a_version_has_one_canonical_spelling() {
        assert_eq!(canonical_version("1").as_deref(), Some("1.0"));
        assert_eq!(canonical_version("12.0").as_deref(), Some("12.0"));
        for bad in ["", ".0", "1.1", "01", "-1", "1.0.0", "latest", "9999999999"] {
            assert_eq!(canonical_version(bad), None, "{bad:?}");
        }
    }
}
