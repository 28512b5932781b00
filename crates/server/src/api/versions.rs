//! Versions of an image: read, list, activate, deactivate, delete.

use super::listing::{self, Wanted};
use super::microvms::seconds;
use super::{contended, images, settings, store_failed, written_again};
use crate::app::App;
use dormouse_api::ApiError;
use dormouse_api::types::{
    DeleteMicrovmImageVersionInput, DeleteMicrovmImageVersionOutput, GetMicrovmImageVersionInput,
    ListMicrovmImageVersionsInput, ListMicrovmImageVersionsOutput, MicrovmImageVersion,
    MicrovmImageVersionState, MicrovmImageVersionStatus, UnmodelledSettings,
    UpdateMicrovmImageVersionRequest,
};
use dormouse_core::image::life::{self, Refusal, UnderWay};
use dormouse_core::image::{Version, VersionState, canonical_version, version_number};
use dormouse_core::{AccountId, ImageArn, Timestamp, limits};
use dormouse_node::clock;
use dormouse_store::{Batch, Query, Versioned, version_key};

/// GetMicrovmImageVersion.
pub(super) async fn get(
    app: &App,
    account: &AccountId,
    request: GetMicrovmImageVersionInput,
) -> Result<MicrovmImageVersion, ApiError> {
    let (arn, version) = (&request.image_identifier, &request.image_version);
    show(find_own(app, account, arn, version).await?.value)
}

/// ListMicrovmImageVersions, newest first.
pub(super) async fn list(
    app: &App,
    account: &AccountId,
    request: ListMicrovmImageVersionsInput,
) -> Result<ListMicrovmImageVersionsOutput, ApiError> {
    let image = images::find_own(app, account, &request.image_identifier).await?;
    let key = image.value.arn.to_string();
    let wanted = Wanted {
        list: format!("versions {key}"),
        account,
        parent: Some(key),
        max_results: request.max_results,
        next_token: request.next_token.as_deref(),
    };
    listing::try_page(app, wanted, |_: &Version| true, show).await
}

/// UpdateMicrovmImageVersion: lets a version be launched, or no longer. MicroVMs that run from it run on.
pub(super) async fn update(
    app: &App,
    account: &AccountId,
    request: UpdateMicrovmImageVersionRequest,
) -> Result<MicrovmImageVersion, ApiError> {
    let (arn, version) = (&request.image_identifier, &request.image_version);
    let active = request.status == MicrovmImageVersionStatus::Active;
    for _ in 0..limits::WRITE_ATTEMPTS {
        let row = find_own(app, account, arn, version).await?;
        let image = images::find_own(app, account, arn).await?;
        let others = others(app, &row.value).await?;
        let mut changed = (image.value.clone(), row.value.clone());
        life::set_active(
            &mut changed.0,
            &mut changed.1,
            active,
            &others,
            clock::now(),
        )
        .map_err(|refusal| refused(refusal, &row.value))?;
        let batch = Batch::default()
            .update(&image, &changed.0)
            .and_then(|batch| batch.update(&row, &changed.1))
            .map_err(store_failed)?;
        if written_again(app.store.apply(batch).await)?.is_some() {
            return show(changed.1);
        }
    }
    Err(contended())
}

/// DeleteMicrovmImageVersion: answers DELETING as soon as the intent is stored. MicroVMs that run from the
/// version, or sleep, keep their files until they end.
pub(super) async fn delete(
    app: &App,
    account: &AccountId,
    request: DeleteMicrovmImageVersionInput,
    under_way: UnderWay,
) -> Result<DeleteMicrovmImageVersionOutput, ApiError> {
    let (arn, version) = (&request.image_identifier, &request.image_version);
    let answer = |version: String, state| DeleteMicrovmImageVersionOutput {
        image_identifier: arn.clone(),
        image_version: version,
        state,
    };
    for _ in 0..limits::WRITE_ATTEMPTS {
        let not_found = || ApiError::image_version_not_found(arn, version);
        let own = images::own_arn(app, account, arn)?;
        let image = images::find(app, &own).await?.ok_or_else(not_found)?;
        let Some(row) = find(app, &own, version).await? else {
            // One that was there once is deleted already, which is what was asked for.
            let number = version_number(version);
            let name = canonical_version(version).filter(|_| number > 0);
            let was_there = name.filter(|_| number <= image.value.last_version);
            let name = was_there.ok_or_else(not_found)?;
            return Ok(answer(name, MicrovmImageVersionState::Deleted));
        };
        let name = row.value.version.clone();
        let others = others(app, &row.value).await?;
        let mut changed = (image.value.clone(), row.value.clone());
        let now = clock::now();
        life::begin_version_delete(&mut changed.0, &mut changed.1, &others, under_way, now)
            .map_err(|refusal| refused(refusal, &row.value))?;
        let batch = Batch::default()
            .update(&image, &changed.0)
            .and_then(|batch| batch.update(&row, &changed.1))
            .map_err(store_failed)?;
        if written_again(app.store.apply(batch).await)?.is_some() {
            app.deletions.version(changed.1);
            return Ok(answer(name, MicrovmImageVersionState::Deleting));
        }
    }
    Err(contended())
}

fn refused(refusal: Refusal, version: &Version) -> ApiError {
    match refusal {
        Refusal::Busy(state) => ApiError::image_busy(state.wire_name()),
        Refusal::LastVersion => ApiError::image_last_version(),
        Refusal::InUse => ApiError::image_in_use(),
        Refusal::NotBuilt(state) => ApiError::validation(format!(
            "MicroVM Image version {} cannot be activated in its current state: {}",
            version.version,
            state.wire_name()
        )),
    }
}

/// The account's version of these names.
pub(super) async fn find_own(
    app: &App,
    account: &AccountId,
    arn: &str,
    version: &str,
) -> Result<Versioned<Version>, ApiError> {
    let image = images::own_arn(app, account, arn)?;
    let found = find(app, &image, version).await?;
    found.ok_or_else(|| ApiError::image_version_not_found(arn, version))
}

/// The version of this name, in either spelling.
pub(super) async fn find(
    app: &App,
    image: &ImageArn,
    version: &str,
) -> Result<Option<Versioned<Version>>, ApiError> {
    let Some(version) = canonical_version(version) else {
        return Ok(None);
    };
    let key = version_key(image, &version);
    app.store.get::<Version>(&key).await.map_err(store_failed)
}

/// All versions of an image, oldest first.
pub(super) async fn all(app: &App, image: &ImageArn) -> Result<Vec<Versioned<Version>>, ApiError> {
    let query = Query::under(image.to_string());
    app.store.list(&query).await.map_err(store_failed)
}

async fn others(app: &App, version: &Version) -> Result<Vec<Version>, ApiError> {
    let all = all(app, &version.image).await?.into_iter();
    let all = all.map(|row| row.value);
    Ok(all.filter(|v| v.version != version.version).collect())
}

fn show(version: Version) -> Result<MicrovmImageVersion, ApiError> {
    Ok(MicrovmImageVersion {
        settings: settings::shown(&version)?,
        unmodelled: UnmodelledSettings::default(),
        created_at: seconds(version.created_at),
        image_arn: version.image.to_string(),
        image_version: version.version,
        state: match version.state {
            VersionState::Pending => MicrovmImageVersionState::Pending,
            VersionState::InProgress => MicrovmImageVersionState::InProgress,
            VersionState::Successful => MicrovmImageVersionState::Successful,
            VersionState::Failed => MicrovmImageVersionState::Failed,
            VersionState::Deleting => MicrovmImageVersionState::Deleting,
            VersionState::DeleteFailed => MicrovmImageVersionState::DeleteFailed,
        },
        state_reason: None,
        status: if version.active {
            MicrovmImageVersionStatus::Active
        } else {
            MicrovmImageVersionStatus::Inactive
        },
        tags: None,
        updated_at: seconds(version.updated_at),
        version_state_time_bucket: Some(time_bucket(version.state, version.updated_at)),
    })
}

/// The state and the hour that it was reached in, as AWS shows it.
fn time_bucket(state: VersionState, at: Timestamp) -> String {
    let at =
        jiff::Timestamp::from_millisecond(i64::try_from(at.0).unwrap_or(0)).unwrap_or_default();
    format!("{}#{}", state.wire_name(), at.strftime("%y%m%d%H"))
}
