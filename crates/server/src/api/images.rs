//! Images: create and read them, their versions and builds.

use super::idempotency::{self, Once};
use super::listing::{self, Wanted};
use super::microvms::seconds;
use super::{internal, store_failed};
use crate::app::App;
use dormouse_api::types::{
    Architecture, BuildState, Chipset, CodeArtifact, CreateMicrovmImageRequest,
    CreateMicrovmImageResponse, GetMicrovmImageBuildRequest, GetMicrovmImageBuildResponse,
    GetMicrovmImageRequest, GetMicrovmImageResponse, GetMicrovmImageVersionRequest, HookState,
    Hooks, ImageSettings, ListManagedMicrovmImagesRequest, ListManagedMicrovmImagesResponse,
    ListMicrovmImagesRequest, ListMicrovmImagesResponse, ManagedMicrovmImageSummary,
    MicrovmImageState, MicrovmImageSummary, MicrovmImageVersion, MicrovmImageVersionState,
    MicrovmImageVersionStatus, Page, Resources, SnapshotBuild, UnmodelledSettings,
};
use dormouse_api::{ApiError, checks};
use dormouse_core::image::{
    Build, Image, ImageState, ReadyHook, Version, VersionSpec, VersionState, canonical_version,
};
use dormouse_core::{AccountId, BuildId, ImageArn, Timestamp, limits};
use dormouse_node::clock;
use dormouse_store::{Batch, Query, StoreError, version_key};
use uuid::Uuid;

/// The image that stands for what guests boot; the root file system comes from the Dockerfile's FROM.
const MANAGED_IMAGE: &str = "debian-12";
/// AWS's own managed image, taken as another name of ours so that AWS code runs unchanged.
const MANAGED_ALIAS: &str = "al2023-1";
const MANAGED_VERSION: &str = "1.0";
/// When the managed image came to be: fixed, since it is part of the release.
const MANAGED_SINCE: Timestamp = Timestamp(1_767_225_600_000);

/// CreateMicrovmImage: answers CREATING as soon as the records are stored.
pub(super) async fn create(
    app: &App,
    account: &AccountId,
    request: CreateMicrovmImageRequest,
) -> Result<CreateMicrovmImageResponse, ApiError> {
    let arn = app.image_arn(account, &request.name);
    let token = request.client_token.as_deref();
    let key = arn.to_string();
    let once = idempotency::look_up(app, account, "CreateMicrovmImage", token, &request, key);
    let once = once.await?;
    if once.made.is_some()
        && let (Some(image), Some(version)) = (find(app, &arn).await?, first(app, &arn).await?)
    {
        return show_created(image, version);
    }
    let settings = settle(app, request.settings)?;
    if find(app, &arn).await?.is_some() {
        return Err(ApiError::image_name_taken(&request.name));
    }
    if app.builds.len() >= limits::BUILD_QUEUE {
        return Err(ApiError::quota_exceeded(
            "The maximum number of concurrent builds has been reached.",
        ));
    }
    let now = clock::now();
    let image = Image {
        arn: arn.clone(),
        id: Uuid::new_v4().to_string(),
        account: account.clone(),
        state: ImageState::Creating,
        created_at: now,
        updated_at: now,
        latest_active_version: None,
        latest_failed_version: None,
        tags: request.tags.unwrap_or_default(),
    };
    let version = Version {
        image: arn.clone(),
        version: "1.0".to_owned(),
        account: account.clone(),
        state: VersionState::Pending,
        active: false,
        created_at: now,
        updated_at: now,
        spec: spec(&settings)?,
    };
    store_and_build(app, once, &image, &version).await?;
    show_created(image, version)
}

async fn store_and_build(
    app: &App,
    once: Once,
    image: &Image,
    version: &Version,
) -> Result<(), ApiError> {
    let build = Build {
        id: BuildId::new(Uuid::new_v4()),
        image: version.image.clone(),
        version: version.version.clone(),
        account: version.account.clone(),
        state: VersionState::Pending,
        state_reason: None,
        created_at: version.created_at,
        sizes: None,
    };
    let batch = || {
        let mut batch = Batch::default()
            .insert(image)?
            .insert(version)?
            .insert(&build)?;
        if let Some(expired) = &once.expired {
            batch = batch.delete(expired);
        }
        match &once.fresh {
            Some(token) => batch.insert(token),
            None => Ok(batch),
        }
    };
    match app.store.apply(batch().map_err(store_failed)?).await {
        Ok(_) => {}
        // Another request for this name came at the same moment and was faster.
        Err(StoreError::Exists { .. } | StoreError::Stale { .. }) => {
            return Err(ApiError::image_name_taken(&image.arn.name));
        }
        Err(error) => return Err(store_failed(error)),
    }
    app.builds.enqueue(build);
    Ok(())
}

/// Checks the settings and fills in the defaults, as they are then shown.
fn settle(app: &App, mut settings: ImageSettings) -> Result<ImageSettings, ApiError> {
    checks::image_settings(&settings, &limits::MEMORY_SIZES_MIB)?;
    settings.base_image_version = Some(base_version(&settings)?);
    if settings
        .additional_os_capabilities
        .as_ref()
        .is_some_and(|list| !list.is_empty())
    {
        return Err(unsupported("additionalOsCapabilities"));
    }
    let wanted = settings.cpu_configurations.iter().flatten();
    if wanted
        .into_iter()
        .any(|cpu| cpu.architecture != host_architecture())
    {
        return Err(ApiError::validation(format!(
            "This host builds images for {} only.",
            architecture_name(host_architecture())
        )));
    }
    if let Some(hooks) = &settings.hooks {
        only_ready(hooks)?;
    }
    if settings
        .egress_network_connectors
        .as_ref()
        .is_none_or(Vec::is_empty)
    {
        settings.egress_network_connectors = Some(vec![app.connector_arn("INTERNET_EGRESS")]);
    }
    let egress = settings
        .egress_network_connectors
        .as_deref()
        .unwrap_or_default();
    check_connectors(app, egress, &["INTERNET_EGRESS"])?;
    if settings.resources.as_ref().is_none_or(Vec::is_empty) {
        let minimum_memory_in_mib = i32::try_from(limits::MEMORY_DEFAULT_MIB).unwrap_or(i32::MAX);
        settings.resources = Some(vec![Resources {
            minimum_memory_in_mib,
        }]);
    }
    Ok(settings)
}

fn base_version(settings: &ImageSettings) -> Result<String, ApiError> {
    let arn = &settings.base_image_arn;
    let wanted = settings
        .base_image_version
        .as_deref()
        .unwrap_or(MANAGED_VERSION);
    let unknown = || ApiError::base_image_unknown(arn, wanted);
    let base = ImageArn::parse(arn).map_err(|_| ApiError::invalid_arn(arn))?;
    let known = base.is_managed() && [MANAGED_IMAGE, MANAGED_ALIAS].contains(&base.name.as_str());
    let version = canonical_version(wanted).filter(|version| known && version == MANAGED_VERSION);
    version.ok_or_else(unknown)
}

/// Refuses what would be stored and then never be done.
fn only_ready(hooks: &Hooks) -> Result<(), ApiError> {
    let enabled = |state: Option<HookState>| state == Some(HookState::Enabled);
    let validate = hooks
        .microvm_image_hooks
        .as_ref()
        .is_some_and(|h| enabled(h.validate));
    let lifecycle = hooks.microvm_hooks.as_ref().is_some_and(|hooks| {
        [hooks.run, hooks.resume, hooks.suspend, hooks.terminate]
            .into_iter()
            .any(enabled)
    });
    match (validate, lifecycle) {
        (true, _) => Err(unsupported("hooks.microvmImageHooks.validate")),
        (_, true) => Err(unsupported("hooks.microvmHooks")),
        _ => Ok(()),
    }
}

fn unsupported(member: &str) -> ApiError {
    ApiError::validation(format!(
        "This version of Dormouse does not support '{member}': leave it out."
    ))
}

fn spec(settings: &ImageSettings) -> Result<VersionSpec, ApiError> {
    let CodeArtifact::Uri(uri) = &settings.code_artifact;
    let memory = settings.resources.iter().flatten().next();
    let memory = memory.and_then(|r| u32::try_from(r.minimum_memory_in_mib).ok());
    let environment = settings.environment_variables.iter().flatten();
    Ok(VersionSpec {
        artifact_uri: uri.clone(),
        memory_mib: memory.unwrap_or(limits::MEMORY_DEFAULT_MIB),
        environment: environment
            .map(|(k, v)| (k.clone(), v.expose().to_owned()))
            .collect(),
        ready_hook: settings.hooks.as_ref().and_then(ready_hook),
        egress_connectors: settings
            .egress_network_connectors
            .clone()
            .unwrap_or_default(),
        settings: serde_json::to_value(settings)
            .map_err(|error| internal("settings do not serialize", &error))?,
    })
}

fn ready_hook(hooks: &Hooks) -> Option<ReadyHook> {
    let image_hooks = hooks.microvm_image_hooks.as_ref()?;
    let timeout = image_hooks
        .ready_timeout_in_seconds
        .and_then(|s| u64::try_from(s).ok());
    (image_hooks.ready == Some(HookState::Enabled)).then_some(ReadyHook {
        port: hooks.port?,
        timeout_s: timeout.unwrap_or(limits::READY_TIMEOUT_DEFAULT_S),
    })
}

/// GetMicrovmImage.
pub(super) async fn get(
    app: &App,
    account: &AccountId,
    request: GetMicrovmImageRequest,
) -> Result<GetMicrovmImageResponse, ApiError> {
    let arn = own_arn(app, account, &request.image_identifier)?;
    let image = find(app, &arn).await?;
    let image = image.ok_or_else(|| ApiError::image_not_found(&request.image_identifier))?;
    let tags = image.tags.clone();
    Ok(GetMicrovmImageResponse {
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

/// GetMicrovmImageVersion.
pub(super) async fn get_version(
    app: &App,
    account: &AccountId,
    request: GetMicrovmImageVersionRequest,
) -> Result<MicrovmImageVersion, ApiError> {
    let version = version_of(
        app,
        account,
        &request.image_identifier,
        &request.image_version,
    );
    show_version(version.await?)
}

/// GetMicrovmImageBuild.
pub(super) async fn get_build(
    app: &App,
    account: &AccountId,
    request: GetMicrovmImageBuildRequest,
) -> Result<GetMicrovmImageBuildResponse, ApiError> {
    let (arn, version) = (&request.image_identifier, &request.image_version);
    let version = version_of(app, account, arn, version).await?;
    let builds = builds_of(app, &version).await?;
    let build = builds
        .into_iter()
        .find(|build| build.id.as_str() == request.build_id);
    let not_found = || ApiError::image_build_not_found(arn, &version.version, &request.build_id);
    let build = build.ok_or_else(not_found)?;
    let bytes = |value: u64| i64::try_from(value).ok();
    Ok(GetMicrovmImageBuildResponse {
        architecture: host_architecture(),
        build_state: match build.state {
            VersionState::Pending => BuildState::Pending,
            VersionState::InProgress => BuildState::InProgress,
            VersionState::Successful => BuildState::Successful,
            VersionState::Failed => BuildState::Failed,
        },
        build_id: build.id.to_string(),
        chipset: host_chipset(),
        chipset_generation: "1".to_owned(),
        created_at: seconds(build.created_at),
        image_arn: build.image.to_string(),
        image_version: build.version,
        snapshot_build: build.sizes.map(|sizes| SnapshotBuild {
            code_install_size_in_bytes: bytes(sizes.code),
            disk_snapshot_size_in_bytes: bytes(sizes.disk),
            memory_snapshot_size_in_bytes: bytes(sizes.memory),
        }),
        state_reason: build.state_reason,
        termination_reason_code: None,
    })
}

/// ListManagedMicrovmImages: there is one, so there is one page.
pub(super) fn list_managed(
    app: &App,
    request: ListManagedMicrovmImagesRequest,
) -> Result<ListManagedMicrovmImagesResponse, ApiError> {
    if let Some(token) = &request.next_token {
        // None was ever handed out.
        app.pages.open("managed images", token)?;
    }
    let arn = ImageArn {
        region: app.config.region.clone(),
        account: ImageArn::MANAGED_ACCOUNT.to_owned(),
        name: MANAGED_IMAGE.to_owned(),
    };
    let image = ManagedMicrovmImageSummary {
        created_at: seconds(MANAGED_SINCE),
        image_arn: arn.to_string(),
        updated_at: seconds(MANAGED_SINCE),
    };
    Ok(Page {
        items: vec![image],
        next_token: None,
    })
}

/// Parses the ARN of an image that the caller may speak of.
pub(super) fn own_arn(app: &App, account: &AccountId, text: &str) -> Result<ImageArn, ApiError> {
    let arn = ImageArn::parse(text).map_err(|_| ApiError::invalid_arn(text))?;
    if arn.account == account.as_str() && arn.region == app.config.region {
        return Ok(arn);
    }
    Err(ApiError::access_denied(Some(format!(
        "Access to {text} is denied"
    ))))
}

/// The image of this ARN.
pub(super) async fn find(app: &App, arn: &ImageArn) -> Result<Option<Image>, ApiError> {
    let row = app
        .store
        .get::<Image>(&arn.to_string())
        .await
        .map_err(store_failed)?;
    Ok(row.map(|row| row.value))
}

/// The builds of a version, newest first.
pub(super) async fn builds_of(app: &App, version: &Version) -> Result<Vec<Build>, ApiError> {
    let query = Query {
        parent: Some(version_key(&version.image, &version.version)),
        order: dormouse_store::Order::NewestFirst,
        ..Query::default()
    };
    let rows = app
        .store
        .list::<Build>(&query)
        .await
        .map_err(store_failed)?;
    Ok(rows.into_iter().map(|row| row.value).collect())
}

/// Refuses connectors other than the managed ones of these names.
pub(super) fn check_connectors(app: &App, arns: &[String], names: &[&str]) -> Result<(), ApiError> {
    for arn in arns {
        if names.iter().any(|name| *arn == app.connector_arn(name)) {
            continue;
        }
        let managed = app.connector_arn("");
        return Err(match arn.strip_prefix(&managed) {
            Some(
                "SHELL_INGRESS" | "NO_INGRESS" | "HTTP_INGRESS" | "ALL_INGRESS" | "INTERNET_EGRESS",
            ) => unsupported(arn),
            Some(_) => ApiError::connector_unrecognized(arn),
            None if arn.starts_with("arn:") => ApiError::connector_not_found(arn),
            None => ApiError::connector_malformed(),
        });
    }
    Ok(())
}

async fn first(app: &App, arn: &ImageArn) -> Result<Option<Version>, ApiError> {
    let row = app
        .store
        .get::<Version>(&version_key(arn, "1.0"))
        .await
        .map_err(store_failed)?;
    Ok(row.map(|row| row.value))
}

async fn version_of(
    app: &App,
    account: &AccountId,
    arn: &str,
    version: &str,
) -> Result<Version, ApiError> {
    let not_found = || ApiError::image_version_not_found(arn, version);
    let image = own_arn(app, account, arn)?;
    let key = version_key(&image, &canonical_version(version).ok_or_else(not_found)?);
    let row = app.store.get::<Version>(&key).await.map_err(store_failed)?;
    row.map(|row| row.value).ok_or_else(not_found)
}

fn shown_settings(version: &Version) -> Result<ImageSettings, ApiError> {
    serde_json::from_value(version.spec.settings.clone())
        .map_err(|error| internal("stored settings do not parse", &error))
}

fn show_created(image: Image, version: Version) -> Result<CreateMicrovmImageResponse, ApiError> {
    Ok(CreateMicrovmImageResponse {
        settings: shown_settings(&version)?,
        unmodelled: UnmodelledSettings::default(),
        created_at: seconds(image.created_at),
        id: image.id,
        image_arn: image.arn.to_string(),
        image_version: version.version,
        latest_active_image_version: image.latest_active_version,
        latest_failed_image_version: image.latest_failed_version,
        name: image.arn.name,
        state: image_state(image.state),
        tags: None,
        updated_at: seconds(image.updated_at),
    })
}

fn show_version(version: Version) -> Result<MicrovmImageVersion, ApiError> {
    Ok(MicrovmImageVersion {
        settings: shown_settings(&version)?,
        unmodelled: UnmodelledSettings::default(),
        created_at: seconds(version.created_at),
        image_arn: version.image.to_string(),
        image_version: version.version,
        state: match version.state {
            VersionState::Pending => MicrovmImageVersionState::Pending,
            VersionState::InProgress => MicrovmImageVersionState::InProgress,
            VersionState::Successful => MicrovmImageVersionState::Successful,
            VersionState::Failed => MicrovmImageVersionState::Failed,
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
    }
}

fn host_architecture() -> Architecture {
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

fn architecture_name(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::Arm64 => "ARM_64",
        Architecture::X86_64 => "X86_64",
    }
}
