//! Pages of stored things. A page token holds where the page before ended and which list it was of.

use super::store_failed;
use crate::app::App;
use dormouse_api::ApiError;
use dormouse_api::types::Page;
use dormouse_core::{AccountId, limits};
use dormouse_store::{Entity, Order, Query, Versioned};

/// Which page of a list is asked for.
pub(super) struct Wanted<'a> {
    /// Names the list and its filters: a token of one list is none of another.
    pub(super) list: String,
    pub(super) account: &'a AccountId,
    pub(super) parent: Option<String>,
    pub(super) max_results: Option<i32>,
    pub(super) next_token: Option<&'a str>,
}

/// One page, newest first. `keep` filters after the page is cut, as AWS does: a page may be empty while
/// more follow.
pub(super) async fn page<E: Entity, T>(
    app: &App,
    wanted: Wanted<'_>,
    keep: impl Fn(&E) -> bool,
    show: impl Fn(E) -> T,
) -> Result<Page<T>, ApiError> {
    try_page(app, wanted, keep, |value| Ok(show(value))).await
}

/// [`page`] for what may fail to show.
pub(super) async fn try_page<E: Entity, T>(
    app: &App,
    wanted: Wanted<'_>,
    keep: impl Fn(&E) -> bool,
    show: impl Fn(E) -> Result<T, ApiError>,
) -> Result<Page<T>, ApiError> {
    let most = wanted.max_results.and_then(|n| usize::try_from(n).ok());
    let most = most.unwrap_or(limits::PAGE_ITEMS_MAX as usize);
    let after = match wanted.next_token {
        Some(token) => {
            let cursor = app.pages.open(&wanted.list, token)?;
            Some(cursor.parse().map_err(|_| ApiError::unparseable())?)
        }
        None => None,
    };
    let query = Query {
        account: Some(wanted.account.to_string()),
        parent: wanted.parent,
        order: Order::NewestFirst,
        after,
        // One more than the page holds tells whether there is another.
        limit: Some(most + 1),
    };
    let mut rows: Vec<Versioned<E>> = app.store.list(&query).await.map_err(store_failed)?;
    let more = rows.len() > most;
    rows.truncate(most);
    let last = rows.last().filter(|_| more);
    let next_token = last.map(|last| app.pages.seal(&wanted.list, &last.seq.to_string()));
    let items = rows
        .into_iter()
        .map(|row| row.value)
        .filter(keep)
        .map(show)
        .collect::<Result<_, _>>()?;
    Ok(Page { items, next_token })
}
