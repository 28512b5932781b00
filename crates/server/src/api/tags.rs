//! Tags of images and network connectors.

use super::{contended, images, store_failed, written_again};
use crate::app::App;
use dormouse_api::ApiError;
use dormouse_api::types::{
    Empty, ListTagsRequest, ListTagsResponse, TagResourceRequest, Tags, UntagResourceRequest,
};
use dormouse_core::connector::Connector;
use dormouse_core::image::Image;
use dormouse_core::{AccountId, ConnectorArn, limits};
use dormouse_store::{Batch, Versioned};

/// A resource that carries tags.
enum Tagged {
    Image(Versioned<Image>),
    Connector(Versioned<Connector>),
}

/// ListTags.
pub(super) async fn list(
    app: &App,
    account: &AccountId,
    request: ListTagsRequest,
) -> Result<ListTagsResponse, ApiError> {
    let found = find(app, account, &request.resource).await?;
    Ok(ListTagsResponse {
        tags: found.tags().clone(),
    })
}

/// TagResource: a key that is there gets the new value.
pub(super) async fn add(
    app: &App,
    account: &AccountId,
    request: TagResourceRequest,
) -> Result<Empty, ApiError> {
    change(app, account, &request.resource, |tags| {
        tags.extend(request.tags.clone());
    })
    .await
}

/// UntagResource: a key that is not there is no mistake.
pub(super) async fn remove(
    app: &App,
    account: &AccountId,
    request: UntagResourceRequest,
) -> Result<Empty, ApiError> {
    change(app, account, &request.resource, |tags| {
        tags.retain(|key, _| !request.tag_keys.contains(key));
    })
    .await
}

/// Refuses more tags than a resource may have.
pub(super) fn check_number(tags: &Tags) -> Result<(), ApiError> {
    match tags.len() {
        0..=limits::TAGS_MAX => Ok(()),
        _ => Err(ApiError::too_many_tags(limits::TAGS_MAX)),
    }
}

async fn change(
    app: &App,
    account: &AccountId,
    arn: &str,
    alter: impl Fn(&mut Tags),
) -> Result<Empty, ApiError> {
    for _ in 0..limits::WRITE_ATTEMPTS {
        let found = find(app, account, arn).await?;
        let mut tags = found.tags().clone();
        alter(&mut tags);
        check_number(&tags)?;
        if found.store(app, tags).await? {
            return Ok(Empty {});
        }
    }
    Err(contended())
}

async fn find(app: &App, account: &AccountId, arn: &str) -> Result<Tagged, ApiError> {
    if let Some(connector) = ConnectorArn::parse(arn) {
        return find_connector(app, account, arn, &connector).await;
    }
    let own = images::own_arn(app, account, arn)?;
    let image = images::find(app, &own).await?;
    let image = image.ok_or_else(|| ApiError::taggable_not_found(arn))?;
    Ok(Tagged::Image(image))
}

async fn find_connector(
    app: &App,
    account: &AccountId,
    text: &str,
    arn: &ConnectorArn,
) -> Result<Tagged, ApiError> {
    if arn.account != *account || arn.region != app.config.region {
        return Err(images::access_denied(text));
    }
    let row = app.store.get_owned(account, arn.id.as_str()).await;
    let row = row.map_err(store_failed)?;
    let missing = || ApiError::taggable_not_found(text);
    row.filter(|_| arn.version.is_none())
        .map(Tagged::Connector)
        .ok_or_else(missing)
}

impl Tagged {
    fn tags(&self) -> &Tags {
        match self {
            Self::Image(image) => &image.value.tags,
            Self::Connector(connector) => &connector.value.tags,
        }
    }

    /// Stores other tags; says whether nobody else was faster.
    async fn store(&self, app: &App, tags: Tags) -> Result<bool, ApiError> {
        let batch = match self {
            Self::Image(image) => {
                let changed = Image {
                    tags,
                    ..image.value.clone()
                };
                Batch::default().update(image, &changed)
            }
            Self::Connector(connector) => {
                let changed = Connector {
                    tags,
                    ..connector.value.clone()
                };
                Batch::default().update(connector, &changed)
            }
        };
        let batch = batch.map_err(store_failed)?;
        Ok(written_again(app.store.apply(batch).await)?.is_some())
    }
}
