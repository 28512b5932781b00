//! What comes of a connector after its answer: it is made, an update takes effect, or it is deleted. Each
//! is a few rows of the store, and is taken up again at the next start if the daemon ends in between.
//!
//! To make a connector is to look its subnets up in the host's configuration: they are ranges that MicroVMs
//! launched with it may open connections to.

use crate::app::App;
use crate::config::Subnets;
use dormouse_core::ConnectorId;
use dormouse_core::chain;
use dormouse_core::connector::{
    Connector, ConnectorSpec, ConnectorState, ConnectorVersion, Failure,
};
use dormouse_node::clock;
use dormouse_store::{
    Batch, ConnectorName, Query, Store, StoreError, Versioned, connector_version_key,
};
use std::sync::Arc;

/// Does in the background what is to be done about a connector.
pub(super) fn start(app: &App, id: ConnectorId) {
    let store = app.store.clone();
    let subnets = Arc::clone(&app.config.network.subnets);
    tokio::spawn(async move {
        if let Err(error) = finish(&store, &subnets, &id).await {
            tracing::error!(connector = %id, error = chain(&error), "network connector left as it is");
        }
    });
}

/// Takes up what an earlier daemon left undone.
pub(crate) async fn resume(app: &App) -> Result<(), StoreError> {
    let mut query = Query::default();
    loop {
        let page = app.store.list::<Connector>(&query).await?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        query.after = Some(last.seq);
        for row in page {
            if row.value.is_under_way() {
                start(app, row.value.id);
            }
        }
    }
}

async fn finish(store: &Store, subnets: &Subnets, id: &ConnectorId) -> Result<(), StoreError> {
    // Only a deletion can come between, and then the next look sees it.
    const LOOKS: usize = 10;
    for _ in 0..LOOKS {
        let Some(row) = store.get::<Connector>(id.as_str()).await? else {
            return Ok(());
        };
        if !row.value.is_under_way() {
            return Ok(());
        }
        let done = match row.value.state {
            ConnectorState::Deleting => remove(store, &row).await,
            _ => make(store, subnets, &row).await,
        };
        match done {
            Err(StoreError::Stale { .. }) => {}
            done => return done,
        }
    }
    Ok(())
}

async fn make(
    store: &Store,
    subnets: &Subnets,
    row: &Versioned<Connector>,
) -> Result<(), StoreError> {
    let key = connector_version_key(&row.value.id, row.value.last_version);
    let Some(version) = store.get::<ConnectorVersion>(&key).await? else {
        return Ok(());
    };
    let outcome = look_up(subnets, &version.value.spec);
    let (connector, made) = row.value.made(&version.value, outcome, clock::now());
    let batch = Batch::default()
        .update(row, &connector)?
        .update(&version, &made)?;
    store.apply(batch).await?;
    tracing::info!(connector = %connector.id, state = ?made.state, "network connector settled");
    Ok(())
}

/// Nothing that the host does not know may pass for something that it does.
fn look_up(subnets: &Subnets, spec: &ConnectorSpec) -> Result<(), Failure> {
    if let Some(unknown) = spec
        .subnets
        .iter()
        .find(|name| !subnets.contains_key(*name))
    {
        return Err(Failure::InvalidSubnet(unknown.clone()));
    }
    match spec.security_groups.first() {
        Some(group) => Err(Failure::InvalidSecurityGroup(group.clone())),
        None => Ok(()),
    }
}

/// The versions go first: as long as the connector is there, its deletion can be taken up again.
async fn remove(store: &Store, row: &Versioned<Connector>) -> Result<(), StoreError> {
    loop {
        let query = Query::under(row.value.id.to_string());
        let versions = store.list::<ConnectorVersion>(&query).await?;
        if versions.is_empty() {
            break;
        }
        let batch = versions.iter().fold(Batch::default(), Batch::delete);
        store.apply(batch).await?;
    }
    let key = ConnectorName::key_of(&row.value.account, &row.value.name);
    let mut batch = Batch::default().delete(row);
    if let Some(name) = store.get::<ConnectorName>(&key).await? {
        batch = batch.delete(&name);
    }
    store.apply(batch).await?;
    tracing::info!(connector = %row.value.id, "network connector deleted");
    Ok(())
}
