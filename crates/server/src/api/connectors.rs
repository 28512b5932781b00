//! Network connectors: create, read, update, delete. What making one means here is in [`making`].

mod making;
mod show;

pub(crate) use making::resume;

use super::idempotency;
use super::listing::{self, Wanted};
use super::{internal, store_failed};
use crate::app::App;
use dormouse_api::types::{
    ComputeResourceType, CreateNetworkConnectorRequest, CreateNetworkConnectorResponse,
    DeleteNetworkConnectorResponse, GetNetworkConnectorResponse,
    ListNetworkConnectorVersionsRequest, ListNetworkConnectorVersionsResponse,
    ListNetworkConnectorsRequest, ListNetworkConnectorsResponse, NetworkConnectorConfiguration,
    NetworkConnectorRequest, UpdateNetworkConnectorRequest, UpdateNetworkConnectorResponse,
};
use dormouse_api::{ApiError, ErrorCode, checks};
use dormouse_core::connector::{Busy, Connector, ConnectorSpec, ConnectorState, ConnectorVersion};
use dormouse_core::microvm::{Record, State};
use dormouse_core::{AccountId, ConnectorArn, ConnectorId, limits};
use dormouse_node::clock;
use dormouse_store::{
    Batch, ConnectorName, Entity, Query, StoreError, Versioned, connector_version_key,
};
use uuid::Uuid;

/// CreateNetworkConnector: answers PENDING as soon as the records are stored.
pub(super) async fn create(
    app: &App,
    account: &AccountId,
    request: CreateNetworkConnectorRequest,
) -> Result<CreateNetworkConnectorResponse, ApiError> {
    checks::network_connector_name(&request.name)?;
    let spec = spec(&request.configuration, request.operator_role.as_deref())?;
    let token = required(request.client_token.as_deref())?;
    let id = ConnectorId::new(Uuid::new_v4());
    let once = idempotency::look_up(
        app,
        account,
        "CreateNetworkConnector",
        Some(token),
        &request,
        id.to_string(),
    )
    .await?;
    if let Some(made) = once.made.as_deref().and_then(ConnectorId::parse)
        && let Some(earlier) = get_owned(app, account, &made).await?
    {
        let first = version_of(app, &earlier.value, 1).await?;
        return show::summary(&earlier.value, &first.value, true);
    }
    check_count::<Connector>(app, account, None, limits::CONNECTORS_MAX).await?;
    let arn = ConnectorArn {
        region: app.config.region.clone(),
        account: account.clone(),
        id,
        version: None,
    };
    let name = ConnectorName {
        account: account.clone(),
        name: request.name.clone(),
        connector: arn.id.clone(),
    };
    let tags = request.tags.unwrap_or_default();
    let (connector, version) =
        Connector::create(arn, account.clone(), request.name, tags, spec, clock::now());
    let batch = || {
        let batch = Batch::default()
            .insert(&name)?
            .insert(&connector)?
            .insert(&version)?;
        once.store(batch)
    };
    match app.store.apply(batch().map_err(store_failed)?).await {
        Ok(_) => {}
        Err(StoreError::Exists { .. } | StoreError::Stale { .. }) => {
            return Err(ApiError::connector_name_taken(&name.name));
        }
        Err(error) => return Err(store_failed(error)),
    }
    making::start(app, connector.id.clone());
    show::summary(&connector, &version, true)
}

/// GetNetworkConnector: the version that holds, or the one that the ARN names.
pub(super) async fn get(
    app: &App,
    account: &AccountId,
    request: NetworkConnectorRequest,
) -> Result<GetNetworkConnectorResponse, ApiError> {
    let (connector, wanted) = find(app, account, &request.identifier).await?;
    let connector = connector.value;
    let number = wanted.unwrap_or(connector.current_version);
    let version = version_or_missing(app, &connector, number, &request.identifier).await?;
    show::whole(&connector, &version.value, wanted.is_some())
}

/// ListNetworkConnectors: newest first. A page is cut before it is filtered, as of images.
pub(super) async fn list(
    app: &App,
    account: &AccountId,
    request: ListNetworkConnectorsRequest,
) -> Result<ListNetworkConnectorsResponse, ApiError> {
    let wanted = Wanted {
        list: format!("connectors {:?}", request.state),
        account,
        parent: None,
        max_results: Some(page_items(request.max_items)),
        next_token: request.marker.as_deref(),
    };
    let keep = |connector: &Connector| {
        let state = show::state(connector.state);
        request.state.is_none_or(|wanted| wanted == state)
    };
    let page = listing::page(app, wanted, keep, |c| show::item(&c)).await;
    let page = page.map_err(marker_error)?;
    Ok(ListNetworkConnectorsResponse {
        network_connectors: page.items,
        next_marker: page.next_token,
    })
}

/// ListNetworkConnectorVersions: newest first.
pub(super) async fn list_versions(
    app: &App,
    account: &AccountId,
    request: ListNetworkConnectorVersionsRequest,
) -> Result<ListNetworkConnectorVersionsResponse, ApiError> {
    let (connector, _) = find(app, account, &request.identifier).await?;
    let connector = connector.value;
    let wanted = Wanted {
        list: format!("versions of {} {:?}", connector.id, request.state),
        account,
        parent: Some(connector.key()),
        max_results: Some(page_items(request.max_items)),
        next_token: request.marker.as_deref(),
    };
    let keep = |version: &ConnectorVersion| {
        let state = show::state(version.state);
        request.state.is_none_or(|wanted| wanted == state)
    };
    let show = |version: ConnectorVersion| show::version_item(&connector, &version);
    let page = listing::page(app, wanted, keep, show).await;
    let page = page.map_err(marker_error)?;
    Ok(ListNetworkConnectorVersionsResponse {
        network_connector_versions: page.items,
        next_marker: page.next_token,
    })
}

/// UpdateNetworkConnector: a new version, which holds once it is made. MicroVMs keep what they were
/// launched with.
pub(super) async fn update(
    app: &App,
    account: &AccountId,
    request: UpdateNetworkConnectorRequest,
) -> Result<UpdateNetworkConnectorResponse, ApiError> {
    let (row, wanted) = find(app, account, &request.identifier).await?;
    if wanted.is_some() {
        return Err(invalid("Identifier must not name a version"));
    }
    let token = request.client_token.as_deref();
    let result = row.value.key();
    let once = idempotency::look_up(
        app,
        account,
        "UpdateNetworkConnector",
        token,
        &request,
        result,
    );
    let once = once.await?;
    if once.made.is_some() {
        return show_current(app, &row.value).await;
    }
    let current = version_of(app, &row.value, row.value.current_version).await?;
    let spec = updated_spec(&current.value.spec, &request)?;
    let now = clock::now();
    let busy = |_: Busy| {
        let state = show::state_name(row.value.state);
        ApiError::connector_busy(&request.identifier, state)
    };
    if spec == current.value.spec {
        let unchanged = row.value.update_unchanged(now).map_err(busy)?;
        let batch = Batch::default().update(&row, &unchanged);
        apply(
            app,
            once.store(batch.map_err(store_failed)?),
            &request.identifier,
        )
        .await?;
        return show::updated(&unchanged, &current.value);
    }
    let connector_id = Some(row.value.key());
    let most = limits::CONNECTOR_VERSIONS_MAX;
    check_count::<ConnectorVersion>(app, account, connector_id, most).await?;
    let (updated, version) = row.value.update(spec, now).map_err(busy)?;
    let batch = Batch::default()
        .update(&row, &updated)
        .and_then(|batch| batch.insert(&version));
    apply(
        app,
        once.store(batch.map_err(store_failed)?),
        &request.identifier,
    )
    .await?;
    making::start(app, updated.id.clone());
    show::updated(&updated, &version)
}

/// DeleteNetworkConnector: the connector with all its versions, or one old version by its own ARN.
pub(super) async fn delete(
    app: &App,
    account: &AccountId,
    request: NetworkConnectorRequest,
) -> Result<DeleteNetworkConnectorResponse, ApiError> {
    let identifier = &request.identifier;
    let (row, wanted) = find(app, account, identifier).await?;
    let connector = &row.value;
    if let Some(number) = wanted {
        return delete_version(app, connector, number, identifier).await;
    }
    let version = version_of(app, connector, connector.current_version).await?;
    if connector.state == ConnectorState::Deleting {
        return show::summary(connector, &version.value, false);
    }
    if is_used(app, connector).await? {
        return Err(ApiError::connector_in_use(identifier));
    }
    let deleting = connector.delete(clock::now());
    let batch = Batch::default().update(&row, &deleting);
    apply(app, batch, identifier).await?;
    making::start(app, deleting.id.clone());
    show::summary(&deleting, &version.value, false)
}

async fn delete_version(
    app: &App,
    connector: &Connector,
    number: u32,
    identifier: &str,
) -> Result<DeleteNetworkConnectorResponse, ApiError> {
    let version = version_or_missing(app, connector, number, identifier).await?;
    if number == connector.current_version || number == connector.last_version {
        return Err(ApiError::connector_latest_version(identifier));
    }
    match app.store.delete(&version).await {
        // Another request deleted it first: as good as this one.
        Ok(()) | Err(StoreError::Stale { .. }) => {}
        Err(error) => return Err(store_failed(error)),
    }
    show::deleted_version(connector, &version.value)
}

/// Whether a MicroVM that has not ended was launched with it.
async fn is_used(app: &App, connector: &Connector) -> Result<bool, ApiError> {
    let arn = connector.arn().to_string();
    let mut query = Query {
        account: Some(connector.account.to_string()),
        ..Query::default()
    };
    loop {
        let page = app.store.list::<Record>(&query).await;
        let page = page.map_err(store_failed)?;
        let Some(last) = page.last() else {
            return Ok(false);
        };
        query.after = Some(last.seq);
        let uses = |vm: &Record| {
            vm.state != State::Terminated
                && vm
                    .egress_connectors
                    .iter()
                    .any(|used| used.starts_with(&arn))
        };
        if page.iter().any(|row| uses(&row.value)) {
            return Ok(true);
        }
    }
}

/// The account's connector of this id, name or ARN, and the version that an ARN may name.
pub(super) async fn find(
    app: &App,
    account: &AccountId,
    identifier: &str,
) -> Result<(Versioned<Connector>, Option<u32>), ApiError> {
    let not_found = || ApiError::connector_not_found(identifier);
    let (id, version) = match ConnectorArn::parse(identifier) {
        Some(arn) if arn.account != *account || arn.region != app.config.region => {
            return Err(not_found());
        }
        Some(arn) => (Some(arn.id), arn.version),
        None => match ConnectorId::parse(identifier) {
            Some(id) => (Some(id), None),
            None => (id_of_name(app, account, identifier).await?, None),
        },
    };
    let id = id.ok_or_else(not_found)?;
    let found = get_owned(app, account, &id).await?;
    found.map(|row| (row, version)).ok_or_else(not_found)
}

async fn id_of_name(
    app: &App,
    account: &AccountId,
    name: &str,
) -> Result<Option<ConnectorId>, ApiError> {
    let key = ConnectorName::key_of(account, name);
    let row = app.store.get::<ConnectorName>(&key).await;
    Ok(row.map_err(store_failed)?.map(|row| row.value.connector))
}

async fn get_owned(
    app: &App,
    account: &AccountId,
    id: &ConnectorId,
) -> Result<Option<Versioned<Connector>>, ApiError> {
    let row = app.store.get_owned(account, id.as_str()).await;
    row.map_err(store_failed)
}

/// A version that must be there.
pub(super) async fn version_of(
    app: &App,
    connector: &Connector,
    number: u32,
) -> Result<Versioned<ConnectorVersion>, ApiError> {
    let arn = connector.arn().at(number).to_string();
    version_or_missing(app, connector, number, &arn).await
}

async fn version_or_missing(
    app: &App,
    connector: &Connector,
    number: u32,
    identifier: &str,
) -> Result<Versioned<ConnectorVersion>, ApiError> {
    let key = connector_version_key(&connector.id, number);
    let row = app.store.get(&key).await.map_err(store_failed)?;
    row.ok_or_else(|| ApiError::connector_not_found(identifier))
}

async fn show_current(
    app: &App,
    connector: &Connector,
) -> Result<UpdateNetworkConnectorResponse, ApiError> {
    let version = version_of(app, connector, connector.last_version).await?;
    show::updated(connector, &version.value)
}

async fn apply(
    app: &App,
    batch: Result<Batch, StoreError>,
    identifier: &str,
) -> Result<(), ApiError> {
    match app.store.apply(batch.map_err(store_failed)?).await {
        Ok(_) => Ok(()),
        // Another request for this connector came at the same moment and was faster.
        Err(StoreError::Exists { .. } | StoreError::Stale { .. }) => {
            Err(ApiError::connector_busy(identifier, "changing"))
        }
        Err(error) => Err(store_failed(error)),
    }
}

/// Refuses one more when there are `most` already.
async fn check_count<E: Entity>(
    app: &App,
    account: &AccountId,
    parent: Option<String>,
    most: usize,
) -> Result<(), ApiError> {
    let query = Query {
        account: Some(account.to_string()),
        parent,
        limit: Some(most),
        ..Query::default()
    };
    let rows = app.store.list::<E>(&query).await.map_err(store_failed)?;
    if rows.len() >= most {
        return Err(ApiError::connector_limit(most));
    }
    Ok(())
}

/// What was asked for, checked, as the domain keeps it.
fn spec(
    configuration: &NetworkConnectorConfiguration,
    operator_role: Option<&str>,
) -> Result<ConnectorSpec, ApiError> {
    checks::network_connector(configuration, operator_role)?;
    let NetworkConnectorConfiguration::VpcEgressConfiguration(vpc) = configuration;
    let purposes = vpc.associated_compute_resource_types.as_deref();
    Ok(ConnectorSpec {
        subnets: vpc.subnet_ids.clone().unwrap_or_default(),
        security_groups: vpc.security_group_ids.clone().unwrap_or_default(),
        for_microvms: purposes.is_some_and(|all| all.contains(&ComputeResourceType::MicroVm)),
        operator_role: operator_role.map(str::to_owned),
        configuration: serde_json::to_value(configuration)
            .map_err(|error| internal("configuration does not serialize", &error))?,
    })
}

/// What holds, with the changes on top.
fn updated_spec(
    current: &ConnectorSpec,
    request: &UpdateNetworkConnectorRequest,
) -> Result<ConnectorSpec, ApiError> {
    let kept = show::configuration(current)?;
    let configuration = request.configuration.as_ref().unwrap_or(&kept);
    let role = request
        .operator_role
        .as_ref()
        .or(current.operator_role.as_ref());
    spec(configuration, role.map(String::as_str))
}

fn required(client_token: Option<&str>) -> Result<&str, ApiError> {
    client_token.ok_or_else(|| invalid("ClientToken is required"))
}

fn invalid(message: &str) -> ApiError {
    ApiError::new(ErrorCode::InvalidParameterValue, message)
}

fn page_items(asked: Option<i32>) -> i32 {
    let most = i32::try_from(limits::PAGE_ITEMS_MAX).unwrap_or(i32::MAX);
    asked.unwrap_or(most).min(most)
}

/// Page tokens are markers here.
fn marker_error(error: ApiError) -> ApiError {
    match error.code() {
        ErrorCode::Validation => invalid("Invalid Marker"),
        _ => error,
    }
}
