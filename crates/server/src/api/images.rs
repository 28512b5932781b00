//! Images: create, update, delete and read them.

use super::idempotency::{self, Once};
use super::listing::{self, Wanted};
use super::microvms::seconds;
use super::settings::{self, spec};
use super::{contended, store_failed, tags, versions, written_again};
use crate::app::App;
use crate::builds::{Full, Place};
use dormouse_api::ApiError;
use dormouse_api::types::{
    CreateMicrovmImageRequest, CreateMicrovmImageResponse, DeleteMicrovmImageInput,
    DeleteMicrovmImageOutput, GetMicrovmImageInput, GetMicrovmImageOutput,
    ListMicrovmImagesRequest, ListMicrovmImagesResponse, MicrovmImageState, MicrovmImageSummary,
    Tags, UnmodelledSettings, UpdateMicrovmImageRequest, UpdateMicrovmImageResponse,
};
use dormouse_core::image::life::{self, Refusal, UnderWay};
use dormouse_core::image::{
    Build, Image, ImageState, Version, VersionSpec, VersionState, version_name,
};
use dormouse_core::{AccountId, BuildId, ImageArn, limits};
use dormouse_node::clock;
use dormouse_store::{Batch, Query, StoreError, Versioned, version_key};
use std::time::Duration;
use uuid::Uuid;

/// CreateMicrovmImage: answers CREATING as soon as the records are stored.
pub(super) async fn create(
    app: &App,
    account: &AccountId,
    request: CreateMicrovmImageRequest,
) -> Result<CreateMicrovmImageResponse, ApiError> {
    let arn = app.image_arn(account, &request.name);
    let first = version_key(&arn, &version_name(1));
    let token = request.client_token.as_deref();
    for _ in 0..limits::WRITE_ATTEMPTS {
        let operation = "CreateMicrovmImage";
        let once = idempotency::look_up(app, account, operation, token, &request, first.clone());
        let once = once.await?;
        if let Some(made) = made_before(app, &once).await? {
            let image = show_updated(made.0, made.1)?;
            return Ok(CreateMicrovmImageResponse { image, tags: None });
        }
        let settings = settings::settle(app, account, request.settings.clone()).await?;
        let tags = request.tags.clone().unwrap_or_default();
        tags::check_number(&tags)?;
        if find(app, &arn).await?.is_some() {
            return Err(ApiError::image_name_taken(&request.name));
        }
        require_room(app, account).await?;
        let place = reserve(app, account)?;
        let image = new_image(account, arn.clone(), tags);
        let version = new_version(&image, version_name(1), spec(&settings)?);
        let build = new_build(&version);
        let batch = Batch::default().insert(&image).map_err(store_failed)?;
        let batch = with_version(batch, &once, &version, &build).map_err(store_failed)?;
        // Where another request for this name or token was faster, the next round finds what it made.
        if written_again(app.store.apply(batch).await)?.is_some() {
            app.builds.enqueue(place, build);
            let image = show_updated(image, version)?;
            return Ok(CreateMicrovmImageResponse { image, tags: None });
        }
    }
    Err(contended())
}

/// UpdateMicrovmImage: replaces all settings and builds the next version. What is active stays so until that
/// is built, and beyond.
pub(super) async fn update(
    app: &App,
    account: &AccountId,
    request: UpdateMicrovmImageRequest,
) -> Result<UpdateMicrovmImageResponse, ApiError> {
    let token = request.client_token.as_deref();
    for _ in 0..limits::WRITE_ATTEMPTS {
        let row = find_own(app, account, &request.image_identifier).await?;
        let mut image = row.value.clone();
        let begun = life::begin_update(&mut image, clock::now());
        let name = begun.clone().unwrap_or_default();
        let key = version_key(&image.arn, &name);
        let operation = "UpdateMicrovmImage";
        let once = idempotency::look_up(app, account, operation, token, &request, key);
        let once = once.await?;
        if let Some(made) = made_before(app, &once).await? {
            return show_updated(made.0, made.1);
        }
        let settings = settings::settle(app, account, request.settings.clone()).await?;
        begun.map_err(|refusal| refused(refusal, &request.image_identifier))?;
        let versions = versions::all(app, &image.arn).await?;
        if versions.len() >= app.config.quotas.versions_per_image {
            return Err(ApiError::image_version_quota());
        }
        let place = reserve(app, account)?;
        let version = new_version(&image, name, spec(&settings)?);
        let build = new_build(&version);
        let batch = Batch::default()
            .update(&row, &image)
            .map_err(store_failed)?;
        let batch = with_version(batch, &once, &version, &build).map_err(store_failed)?;
        if written_again(app.store.apply(batch).await)?.is_some() {
            app.builds.enqueue(place, build);
            return show_updated(image, version);
        }
    }
    Err(contended())
}

/// DeleteMicrovmImage: answers DELETING as soon as the intent is stored. The name is taken until all files
/// are gone.
pub(super) async fn delete(
    app: &App,
    account: &AccountId,
    request: DeleteMicrovmImageInput,
    under_way: UnderWay,
) -> Result<DeleteMicrovmImageOutput, ApiError> {
    let text = &request.image_identifier;
    for _ in 0..limits::WRITE_ATTEMPTS {
        let row = find_own(app, account, text).await?;
        // Nothing is launched from the image until its new state is stored, and nothing after that.
        let closed = app.admission.close(&row.value.arn);
        let (mut image, now) = (row.value.clone(), clock::now());
        life::begin_image_delete(&mut image, closed.is_none(), under_way, now).map_err(
            |refusal| match refusal {
                Refusal::Busy(_) => ApiError::image_not_deletable(text),
                other => refused(other, text),
            },
        )?;
        let mut batch = Batch::default()
            .update(&row, &image)
            .map_err(store_failed)?;
        for version in versions::all(app, &image.arn).await? {
            let mut deleted = version.value.clone();
            life::delete_with_image(&mut deleted, now);
            batch = batch.update(&version, &deleted).map_err(store_failed)?;
        }
        if written_again(app.store.apply(batch).await)?.is_some() {
            app.deletions.image(image.arn);
            return Ok(DeleteMicrovmImageOutput {
                image_identifier: text.clone(),
                state: MicrovmImageState::Deleting,
            });
        }
    }
    Err(contended())
}

fn refused(refusal: Refusal, arn: &str) -> ApiError {
    match refusal {
        Refusal::Busy(state) => ApiError::image_busy(state.wire_name()),
        Refusal::InUse => ApiError::image_in_use(),
        Refusal::LastVersion => ApiError::image_last_version(),
        Refusal::NotBuilt(_) => ApiError::image_not_deletable(arn),
    }
}

/// What an earlier request with the same token made, as it is now.
async fn made_before(app: &App, once: &Once) -> Result<Option<(Image, Version)>, ApiError> {
    let Some(key) = &once.made else {
        return Ok(None);
    };
    let version = app.store.get::<Version>(key).await.map_err(store_failed)?;
    let Some(version) = version else {
        return Ok(None);
    };
    let image = find(app, &version.value.image).await?;
    Ok(image.map(|image| (image.value, version.value)))
}

async fn require_room(app: &App, account: &AccountId) -> Result<(), ApiError> {
    let most = app.config.quotas.images;
    let mut query = Query {
        account: Some(account.to_string()),
        ..Query::default()
    };
    let mut images = 0;
    while images < most {
        let page = app.store.list::<Image>(&query).await;
        let page = page.map_err(store_failed)?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        query.after = Some(last.seq);
        images += page.len();
    }
    Err(ApiError::image_quota())
}

fn reserve(app: &App, account: &AccountId) -> Result<Place, ApiError> {
    app.builds.reserve(account).map_err(|full| match full {
        Full::Account => ApiError::build_quota(),
        // Other accounts fill the line: it is shorter in a moment.
        Full::Line => ApiError::throttled(Duration::from_secs(10)),
    })
}

fn new_image(account: &AccountId, arn: ImageArn, tags: Tags) -> Image {
    let now = clock::now();
    Image {
        arn,
        id: Uuid::new_v4().to_string(),
        account: account.clone(),
        state: ImageState::Creating,
        created_at: now,
        updated_at: now,
        last_version: 1,
        latest_active_version: None,
        latest_failed_version: None,
        tags,
    }
}

fn new_version(image: &Image, version: String, spec: VersionSpec) -> Version {
    Version {
        image: image.arn.clone(),
        version,
        account: image.account.clone(),
        state: VersionState::Pending,
        active: false,
        created_at: image.updated_at,
        updated_at: image.updated_at,
        spec,
    }
}

fn new_build(version: &Version) -> Build {
    Build {
        id: BuildId::new(Uuid::new_v4()),
        image: version.image.clone(),
        version: version.version.clone(),
        account: version.account.clone(),
        state: VersionState::Pending,
        state_reason: None,
        created_at: version.created_at,
        memory_mib: version.spec.memory_mib,
        sizes: None,
    }
}

/// Adds a new version, its build and the client token of the request that made them.
fn with_version(
    batch: Batch,
    once: &Once,
    version: &Version,
    build: &Build,
) -> Result<Batch, StoreError> {
    once.store(batch.insert(version)?.insert(build)?)
}

/// GetMicrovmImage.
pub(super) async fn get(
    app: &App,
    account: &AccountId,
    request: GetMicrovmImageInput,
) -> Result<GetMicrovmImageOutput, ApiError> {
    let image = find_own(app, account, &request.image_identifier)
        .await?
        .value;
    let tags = image.tags.clone();
    Ok(GetMicrovmImageOutput {
        summary: summary(image),
        tags,
    })
}

/// ListMicrovmImages.
pub(super) async fn list(
    app: &App,
    account: &AccountId,
    request: ListMicrovmImagesRequest,
) -> Result<ListMicrovmImagesResponse, ApiError> {
    let filter = request.name_filter.unwrap_or_default();
    let wanted = Wanted {
        list: format!("images {filter}"),
        account,
        parent: None,
        max_results: request.max_results,
        next_token: request.next_token.as_deref(),
    };
    let keep = |image: &Image| image.arn.name.contains(&filter);
    listing::page(app, wanted, keep, summary).await
}

/// Parses the ARN of an image that the caller may speak of.
pub(super) fn own_arn(app: &App, account: &AccountId, text: &str) -> Result<ImageArn, ApiError> {
    if !text.starts_with("arn:") {
        return Err(ApiError::invalid_arn(text));
    }
    let own = |arn: &ImageArn| arn.account == account.as_str() && arn.region == app.config.region;
    // AWS checks access by the ARN as it is written, so one that is no image's is somebody else's.
    let arn = ImageArn::parse(text).ok().filter(own);
    arn.ok_or_else(|| access_denied(text))
}

/// What AWS answers to who speaks of another account's resource, whether there is one or not.
pub(super) fn access_denied(arn: &str) -> ApiError {
    ApiError::access_denied(Some(format!("Access to {arn} is denied")))
}

/// The account's image of this ARN.
pub(super) async fn find_own(
    app: &App,
    account: &AccountId,
    text: &str,
) -> Result<Versioned<Image>, ApiError> {
    let arn = own_arn(app, account, text)?;
    let image = find(app, &arn).await?;
    image.ok_or_else(|| ApiError::image_not_found(text))
}

/// The image of this ARN.
pub(super) async fn find(app: &App, arn: &ImageArn) -> Result<Option<Versioned<Image>>, ApiError> {
    let key = arn.to_string();
    app.store.get::<Image>(&key).await.map_err(store_failed)
}

fn show_updated(image: Image, version: Version) -> Result<UpdateMicrovmImageResponse, ApiError> {
    Ok(UpdateMicrovmImageResponse {
        settings: settings::shown(&version)?,
        unmodelled: UnmodelledSettings::default(),
        created_at: seconds(image.created_at),
        id: image.id,
        image_arn: image.arn.to_string(),
        image_version: version.version,
        latest_active_image_version: image.latest_active_version,
        latest_failed_image_version: image.latest_failed_version,
        name: image.arn.name,
        state: image_state(image.state),
        updated_at: seconds(image.updated_at),
    })
}

fn summary(image: Image) -> MicrovmImageSummary {
    MicrovmImageSummary {
        created_at: seconds(image.created_at),
        id: image.id,
        image_arn: image.arn.to_string(),
        latest_active_image_version: image.latest_active_version,
        latest_failed_image_version: image.latest_failed_version,
        state: image_state(image.state),
        name: image.arn.name,
        updated_at: seconds(image.updated_at),
    }
}

fn image_state(state: ImageState) -> MicrovmImageState {
    match state {
        ImageState::Creating => MicrovmImageState::Creating,
        ImageState::Created => MicrovmImageState::Created,
        ImageState::CreateFailed => MicrovmImageState::CreateFailed,
        ImageState::Updating => MicrovmImageState::Updating,
        ImageState::Updated => MicrovmImageState::Updated,
        ImageState::UpdateFailed => MicrovmImageState::UpdateFailed,
        ImageState::Deleting => MicrovmImageState::Deleting,
        ImageState::DeleteFailed => MicrovmImageState::DeleteFailed,
    }
}
