//! What an image version is built from and how: checks, defaults, and what the domain needs of it.

use super::builds::{architecture_name, host_architecture};
use super::{hooks, internal, managed, network};
use crate::app::App;
use dormouse_api::types::{CodeArtifact, ImageSettings, Resources};
use dormouse_api::{ApiError, checks};
use dormouse_core::image::{Version, VersionSpec};
use dormouse_core::{AccountId, limits};

/// Checks the settings and fills in the defaults, as they are then shown.
pub(super) async fn settle(
    app: &App,
    account: &AccountId,
    mut settings: ImageSettings,
) -> Result<ImageSettings, ApiError> {
    checks::image_settings(&settings, &limits::MEMORY_SIZES_MIB)?;
    let (base, wanted) = (&settings.base_image_arn, &settings.base_image_version);
    settings.base_image_version = Some(managed::version(base, wanted.as_deref())?);
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
    if settings
        .egress_network_connectors
        .as_ref()
        .is_none_or(Vec::is_empty)
    {
        settings.egress_network_connectors = Some(network::default_egress(app));
    }
    let egress = settings
        .egress_network_connectors
        .as_deref()
        .unwrap_or_default();
    network::egress(app, account, egress).await?;
    if settings.resources.as_ref().is_none_or(Vec::is_empty) {
        let minimum_memory_in_mib = i32::try_from(limits::MEMORY_DEFAULT_MIB).unwrap_or(i32::MAX);
        settings.resources = Some(vec![Resources {
            minimum_memory_in_mib,
        }]);
    }
    Ok(settings)
}

/// What the domain needs to know of settled settings.
pub(super) fn spec(settings: &ImageSettings) -> Result<VersionSpec, ApiError> {
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
        all_capabilities: settings
            .additional_os_capabilities
            .as_ref()
            .is_some_and(|list| !list.is_empty()),
        hooks: settings
            .hooks
            .as_ref()
            .map(hooks::enabled)
            .unwrap_or_default(),
        egress_connectors: settings
            .egress_network_connectors
            .clone()
            .unwrap_or_default(),
        settings: serde_json::to_value(settings)
            .map_err(|error| internal("settings do not serialize", &error))?,
    })
}

/// The settings of a stored version, as they are shown.
pub(super) fn shown(version: &Version) -> Result<ImageSettings, ApiError> {
    serde_json::from_value(version.spec.settings.clone())
        .map_err(|error| internal("stored settings do not parse", &error))
}
