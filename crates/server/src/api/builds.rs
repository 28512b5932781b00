//! Builds of an image version: read them.

use super::listing::{self, Wanted};
use super::microvms::seconds;
use super::{store_failed, versions};
use crate::app::App;
use dormouse_api::ApiError;
use dormouse_api::types::{
    Architecture, BuildState, Chipset, GetMicrovmImageBuildInput, GetMicrovmImageBuildOutput,
    ListMicrovmImageBuildsInput, ListMicrovmImageBuildsOutput, MicrovmImageBuildSummary,
    SnapshotBuild,
};
use dormouse_core::AccountId;
use dormouse_core::image::{Build, Version, VersionState};
use dormouse_store::{Order, Query, version_key};

/// Hosts of one architecture are one generation: a snapshot of one starts on the other.
const CHIPSET_GENERATION: &str = "1";

/// GetMicrovmImageBuild.
pub(super) async fn get(
    app: &App,
    account: &AccountId,
    request: GetMicrovmImageBuildInput,
) -> Result<GetMicrovmImageBuildOutput, ApiError> {
    let (arn, version) = (&request.image_identifier, &request.image_version);
    let version = versions::find_own(app, account, arn, version).await?.value;
    let builds = of_version(app, &version).await?;
    let build = builds
        .into_iter()
        .find(|build| build.id.as_str() == request.build_id);
    let not_found = || ApiError::image_build_not_found(arn, &version.version, &request.build_id);
    let build = build.ok_or_else(not_found)?;
    let bytes = |value: u64| i64::try_from(value).ok();
    let snapshot_build = build.sizes.map(|sizes| SnapshotBuild {
        code_install_size_in_bytes: bytes(sizes.code),
        disk_snapshot_size_in_bytes: bytes(sizes.disk),
        memory_snapshot_size_in_bytes: bytes(sizes.memory),
    });
    Ok(GetMicrovmImageBuildOutput {
        summary: build_summary(build),
        snapshot_build,
    })
}

/// ListMicrovmImageBuilds, newest first.
pub(super) async fn list(
    app: &App,
    account: &AccountId,
    request: ListMicrovmImageBuildsInput,
) -> Result<ListMicrovmImageBuildsOutput, ApiError> {
    let (arn, version) = (&request.image_identifier, &request.image_version);
    let version = versions::find_own(app, account, arn, version).await?.value;
    let here = (host_architecture(), host_chipset());
    let matches = request.architecture.is_none_or(|wanted| wanted == here.0)
        && request.chipset.is_none_or(|wanted| wanted == here.1)
        && (request.chipset_generation.as_deref())
            .is_none_or(|wanted| wanted == CHIPSET_GENERATION);
    let key = version_key(&version.image, &version.version);
    let wanted = Wanted {
        list: format!("builds {key} {matches}"),
        account,
        parent: Some(key),
        max_results: request.max_results,
        next_token: request.next_token.as_deref(),
    };
    let keep = |build: &Build| matches && build.state != VersionState::Deleting;
    listing::page(app, wanted, keep, build_summary).await
}

/// The builds of a version, newest first. What is left of a deleted version of the same name is none of it.
pub(super) async fn of_version(app: &App, version: &Version) -> Result<Vec<Build>, ApiError> {
    let query = Query {
        order: Order::NewestFirst,
        ..Query::under(version_key(&version.image, &version.version))
    };
    let rows = app.store.list::<Build>(&query).await;
    let builds = rows.map_err(store_failed)?.into_iter().map(|row| row.value);
    Ok(builds
        .filter(|build| build.state != VersionState::Deleting)
        .collect())
}

fn build_summary(build: Build) -> MicrovmImageBuildSummary {
    MicrovmImageBuildSummary {
        architecture: host_architecture(),
        build_state: match build.state {
            VersionState::Pending => BuildState::Pending,
            VersionState::InProgress => BuildState::InProgress,
            VersionState::Successful => BuildState::Successful,
            // What is being deleted is not shown.
            VersionState::Failed | VersionState::Deleting | VersionState::DeleteFailed => {
                BuildState::Failed
            }
        },
        build_id: build.id.to_string(),
        chipset: host_chipset(),
        chipset_generation: CHIPSET_GENERATION.to_owned(),
        created_at: seconds(build.created_at),
        image_arn: build.image.to_string(),
        image_version: build.version,
        state_reason: build.state_reason,
        termination_reason_code: None,
    }
}

/// The instruction set of this host's guests.
pub(super) fn host_architecture() -> Architecture {
    if cfg!(target_arch = "aarch64") {
        Architecture::Arm64
    } else {
        Architecture::X86_64
    }
}

fn host_chipset() -> Chipset {
    if cfg!(target_arch = "aarch64") {
        Chipset::Graviton
    } else {
        Chipset::Intel
    }
}

/// Its name in the API.
pub(super) fn architecture_name(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::Arm64 => "ARM_64",
        Architecture::X86_64 => "X86_64",
    }
}
