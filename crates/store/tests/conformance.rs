//! One suite for every backend: what a caller may rely on whichever one it got.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use dormouse_core::{AccountId, BuildId, ImageArn, MicrovmId, Timestamp, image};
use dormouse_secrets::Sealer;
use dormouse_store::{
    Backend, Batch, ClientToken, Kind, Memory, NewRow, Order, Query, Sealed, Sqlite, Store,
    StoreError, Write, Written, version_key,
};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

macro_rules! suite {
    ($backend:ident, $make:expr) => {
        suite!($backend, $make;
            a_row_reads_back_as_it_was_inserted,
            a_name_is_unique_within_its_kind,
            an_update_needs_the_current_revision,
            a_deleted_row_is_gone_and_its_number_is_not_given_again,
            a_batch_is_all_or_nothing,
            a_batch_sees_its_own_writes,
            one_of_many_racing_writers_wins_each_revision,
            one_of_many_racing_inserts_wins,
            a_list_is_in_order_of_creation,
            a_list_is_filtered,
            pages_follow_one_another_while_rows_come_and_go,
            a_page_has_a_limit,
            domain_types_round_trip,
            another_accounts_value_is_absent,
            client_tokens_expire
        );
    };
    ($backend:ident, $make:expr; $($test:ident),*) => {
        mod $backend {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    let folder = tempfile::tempdir().unwrap();
                    super::$test(Arc::new($make(folder.path()).await)).await;
                }
            )*
        }
    };
}

suite!(memory, async |_: &std::path::Path| Memory::default());
suite!(sqlite, async |folder: &std::path::Path| {
    Sqlite::open(&folder.join("store.db")).await.unwrap()
});
suite!(sealed, async |_: &std::path::Path| {
    Sealed::new(Memory::default(), Arc::new(Sealer::random()))
});

type Subject = Arc<dyn Backend>;

fn new_row(id: &str) -> NewRow {
    NewRow {
        kind: Kind::Image,
        id: id.to_owned(),
        account: "000000000000".to_owned(),
        parent: "p".to_owned(),
        body: json!({"name": id, "odd": "\u{0}'\"\n😀", "nothing": null, "big": u64::MAX, "half": 0.5}),
    }
}

fn update(id: &str, revision: u64, body: serde_json::Value) -> Write {
    Write::Update {
        kind: Kind::Image,
        id: id.to_owned(),
        revision,
        body,
    }
}

fn delete(id: &str, revision: u64) -> Write {
    Write::Delete {
        kind: Kind::Image,
        id: id.to_owned(),
        revision,
    }
}

async fn insert(store: &Subject, row: NewRow) -> Written {
    store.apply(vec![Write::Insert(row)]).await.unwrap()[0]
}

async fn ids(store: &Subject, query: &Query) -> Vec<String> {
    let rows = store.list(Kind::Image, query).await.unwrap();
    rows.into_iter().map(|row| row.id).collect()
}

async fn a_row_reads_back_as_it_was_inserted(store: Subject) {
    let new = new_row("a");
    let written = insert(&store, new.clone()).await;
    let row = store.get(Kind::Image, "a").await.unwrap().unwrap();
    assert_eq!(row.body, new.body);
    assert_eq!(
        (row.id, row.account, row.parent),
        (new.id, new.account, new.parent)
    );
    assert_eq!((row.seq, row.revision), (written.seq, 1));
    assert_eq!(written.revision, 1);
    assert!(store.get(Kind::Image, "A").await.unwrap().is_none());
    assert!(store.get(Kind::Build, "a").await.unwrap().is_none());
}

async fn a_name_is_unique_within_its_kind(store: Subject) {
    insert(&store, new_row("a")).await;
    let again = store.apply(vec![Write::Insert(new_row("a"))]).await;
    assert!(
        matches!(&again, Err(StoreError::Exists { kind: Kind::Image, id }) if id == "a"),
        "{again:?}"
    );
    let other_kind = NewRow {
        kind: Kind::Build,
        ..new_row("a")
    };
    insert(&store, other_kind).await;
}

async fn an_update_needs_the_current_revision(store: Subject) {
    let first = insert(&store, new_row("a")).await;
    let second = store
        .apply(vec![update("a", 1, json!({"n": 2}))])
        .await
        .unwrap();
    assert_eq!(
        second,
        [Written {
            seq: first.seq,
            revision: 2
        }]
    );
    for revision in [0, 1, 3, u64::MAX >> 1] {
        for write in [
            update("a", revision, json!({"n": 3})),
            delete("a", revision),
        ] {
            let refused = store.apply(vec![write]).await;
            assert!(
                matches!(&refused, Err(StoreError::Stale { kind: Kind::Image, id }) if id == "a"),
                "{revision}: {refused:?}"
            );
        }
    }
    let absent = store.apply(vec![update("b", 1, json!({}))]).await;
    assert!(
        matches!(absent, Err(StoreError::Stale { .. })),
        "{absent:?}"
    );
    let row = store.get(Kind::Image, "a").await.unwrap().unwrap();
    assert_eq!((row.body, row.revision), (json!({"n": 2}), 2));
}

async fn a_deleted_row_is_gone_and_its_number_is_not_given_again(store: Subject) {
    let old = insert(&store, new_row("a")).await;
    let deleted = store.apply(vec![delete("a", 1)]).await.unwrap();
    assert_eq!(deleted, [old]);
    assert!(store.get(Kind::Image, "a").await.unwrap().is_none());
    assert!(ids(&store, &Query::default()).await.is_empty());
    let new = insert(&store, new_row("a")).await;
    assert!(new.seq > old.seq, "{new:?} after {old:?}");
    assert_eq!(new.revision, 1);
}

async fn a_batch_is_all_or_nothing(store: Subject) {
    insert(&store, new_row("old")).await;
    let bad_ends = [
        Write::Insert(new_row("old")),
        update("old", 7, json!({})),
        delete("absent", 1),
    ];
    for bad in bad_ends {
        let batch = vec![
            Write::Insert(new_row("new")),
            update("old", 1, json!({"changed": true})),
            bad,
        ];
        store.apply(batch).await.unwrap_err();
        assert!(store.get(Kind::Image, "new").await.unwrap().is_none());
        let old = store.get(Kind::Image, "old").await.unwrap().unwrap();
        assert_eq!((old.revision, old.body), (1, new_row("old").body));
    }
    assert_eq!(store.apply(Vec::new()).await.unwrap(), []);
}

async fn a_batch_sees_its_own_writes(store: Subject) {
    let batch = vec![
        Write::Insert(new_row("a")),
        update("a", 1, json!({"n": 2})),
        delete("a", 2),
        Write::Insert(new_row("a")),
    ];
    let written = store.apply(batch).await.unwrap();
    let revisions: Vec<u64> = written.iter().map(|w| w.revision).collect();
    assert_eq!(revisions, [1, 2, 2, 1]);
    assert!(store.get(Kind::Image, "a").await.unwrap().is_some());
}

async fn one_of_many_racing_writers_wins_each_revision(store: Subject) {
    const WRITERS: u64 = 8;
    const STEPS: u64 = 25;
    insert(
        &store,
        NewRow {
            body: json!(0),
            ..new_row("counter")
        },
    )
    .await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        let store = store.clone();
        tasks.spawn(async move {
            let mut done = 0;
            while done < STEPS {
                let row = store.get(Kind::Image, "counter").await.unwrap().unwrap();
                let next = json!(row.body.as_u64().unwrap() + 1);
                match store
                    .apply(vec![update("counter", row.revision, next)])
                    .await
                {
                    Ok(_) => done += 1,
                    Err(StoreError::Stale { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    let row = store.get(Kind::Image, "counter").await.unwrap().unwrap();
    assert_eq!(row.body, json!(WRITERS * STEPS));
    assert_eq!(row.revision, WRITERS * STEPS + 1);
}

async fn one_of_many_racing_inserts_wins(store: Subject) {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let store = store.clone();
        tasks.spawn(async move { store.apply(vec![Write::Insert(new_row("a"))]).await.is_ok() });
    }
    let mut winners = 0;
    while let Some(won) = tasks.join_next().await {
        winners += usize::from(won.unwrap());
    }
    assert_eq!(winners, 1);
}

async fn a_list_is_in_order_of_creation(store: Subject) {
    for id in ["c", "a", "b"] {
        insert(&store, new_row(id)).await;
    }
    // A change does not move a row.
    store.apply(vec![update("c", 1, json!({}))]).await.unwrap();
    assert_eq!(ids(&store, &Query::default()).await, ["c", "a", "b"]);
    let newest = Query {
        order: Order::NewestFirst,
        ..Query::default()
    };
    assert_eq!(ids(&store, &newest).await, ["b", "a", "c"]);
}

async fn a_list_is_filtered(store: Subject) {
    for (id, account, parent) in [
        ("a", "1", "x"),
        ("b", "1", "y"),
        ("c", "2", "x"),
        ("d", "2", "y"),
    ] {
        let row = NewRow {
            account: account.to_owned(),
            parent: parent.to_owned(),
            ..new_row(id)
        };
        insert(&store, row).await;
    }
    insert(
        &store,
        NewRow {
            kind: Kind::Build,
            ..new_row("e")
        },
    )
    .await;
    let query = |account: Option<&str>, parent: Option<&str>| Query {
        account: account.map(str::to_owned),
        parent: parent.map(str::to_owned),
        ..Query::default()
    };
    assert_eq!(ids(&store, &query(None, None)).await, ["a", "b", "c", "d"]);
    assert_eq!(ids(&store, &query(Some("1"), None)).await, ["a", "b"]);
    assert_eq!(ids(&store, &query(None, Some("x"))).await, ["a", "c"]);
    assert_eq!(ids(&store, &query(Some("2"), Some("y"))).await, ["d"]);
    assert!(
        ids(&store, &query(Some("' OR 1=1 --"), None))
            .await
            .is_empty()
    );
}

async fn pages_follow_one_another_while_rows_come_and_go(store: Subject) {
    for n in 0..10 {
        insert(&store, new_row(&format!("{n}"))).await;
    }
    for order in [Order::OldestFirst, Order::NewestFirst] {
        let mut seen = Vec::new();
        let mut query = Query {
            order,
            limit: Some(3),
            ..Query::default()
        };
        loop {
            let page = store.list(Kind::Image, &query).await.unwrap();
            let Some(last) = page.last() else { break };
            query.after = Some(last.seq);
            seen.extend(page.iter().map(|row| row.id.clone()));
            // The row that the cursor names goes away, and a new one comes.
            if order == Order::NewestFirst {
                store.apply(vec![delete(&last.id, 1)]).await.unwrap();
                insert(&store, new_row(&format!("late{}", seen.len()))).await;
            }
        }
        let mut expected: Vec<String> = (0..10).map(|n| n.to_string()).collect();
        if order == Order::NewestFirst {
            expected.reverse();
        }
        assert_eq!(seen, expected);
    }
    let beyond = Query {
        after: Some(u64::MAX),
        ..Query::default()
    };
    assert!(ids(&store, &beyond).await.is_empty());
}

async fn a_page_has_a_limit(store: Subject) {
    let most = dormouse_core::limits::STORE_PAGE_ROWS_MAX;
    let rows = (0..=most).map(|n| Write::Insert(new_row(&n.to_string())));
    store.apply(rows.collect()).await.unwrap();
    for limit in [None, Some(most + 1), Some(usize::MAX)] {
        let query = Query {
            limit,
            ..Query::default()
        };
        assert_eq!(ids(&store, &query).await.len(), most);
    }
    let none = Query {
        limit: Some(0),
        ..Query::default()
    };
    assert!(ids(&store, &none).await.is_empty());
}

fn account(text: &str) -> AccountId {
    AccountId::parse(text).unwrap()
}

fn sample_image(name: &str) -> image::Image {
    image::Image {
        arn: ImageArn::parse(&format!(
            "arn:aws:lambda:us-east-1:000000000000:microvm-image:{name}"
        ))
        .unwrap(),
        id: "image-id".to_owned(),
        account: account("000000000000"),
        state: image::ImageState::Creating,
        created_at: Timestamp(1),
        updated_at: Timestamp(1),
        last_version: 1,
        latest_active_version: None,
        latest_failed_version: None,
        tags: BTreeMap::from([("key".to_owned(), "value".to_owned())]),
    }
}

fn sample_build(image: &image::Image, version: &str) -> image::Build {
    image::Build {
        id: BuildId::new(Uuid::from_u128(7)),
        image: image.arn.clone(),
        version: version.to_owned(),
        account: image.account.clone(),
        state: image::VersionState::Pending,
        state_reason: None,
        created_at: Timestamp(2),
        memory_mib: 512,
        sizes: None,
    }
}

async fn domain_types_round_trip(backend: Subject) {
    let store = Store::from(backend);
    let image = sample_image("one");
    let build = sample_build(&image, "1.0");
    let batch = Batch::default()
        .insert(&image)
        .unwrap()
        .insert(&build)
        .unwrap();
    assert_eq!(store.apply(batch).await.unwrap().len(), 2);

    let found = store
        .get::<image::Image>(&image.arn.to_string())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found.value, image);
    let mut changed = image.clone();
    changed.state = image::ImageState::Created;
    let updated = store.update(&found, changed.clone()).await.unwrap();
    assert_eq!((updated.revision, updated.seq), (2, found.seq));
    let stale = store.update(&found, image.clone()).await;
    assert!(matches!(stale, Err(StoreError::Stale { .. })), "{stale:?}");

    let of_version = Query::under(version_key(&image.arn, "1.0"));
    let builds = store.list::<image::Build>(&of_version).await.unwrap();
    assert_eq!(builds.len(), 1);
    assert_eq!(builds[0].value, build);
    assert!(
        store
            .list::<image::Version>(&of_version)
            .await
            .unwrap()
            .is_empty()
    );

    store.delete(&updated).await.unwrap();
    assert!(
        store
            .get::<image::Image>(&image.arn.to_string())
            .await
            .unwrap()
            .is_none()
    );
    let unknown = MicrovmId::new(Uuid::from_u128(1)).to_string();
    assert!(
        store
            .get::<dormouse_core::microvm::Record>(&unknown)
            .await
            .unwrap()
            .is_none()
    );
}

async fn another_accounts_value_is_absent(backend: Subject) {
    let store = Store::from(backend);
    let image = sample_image("one");
    let key = image.arn.to_string();
    store.insert(image.clone()).await.unwrap();
    let own = store
        .get_owned::<image::Image>(&image.account, &key)
        .await
        .unwrap();
    assert_eq!(own.unwrap().value, image);
    let foreign = store
        .get_owned::<image::Image>(&account("111111111111"), &key)
        .await
        .unwrap();
    assert!(foreign.is_none());
}

async fn client_tokens_expire(backend: Subject) {
    let store = Store::from(backend);
    let token = |name: &str, expires_at| ClientToken {
        account: account("000000000000"),
        operation: "RunMicrovm".to_owned(),
        token: name.to_owned(),
        request_hash: "hash".to_owned(),
        result: "microvm-1".to_owned(),
        expires_at: Timestamp(expires_at),
    };
    for (name, expires_at) in [("a", 10), ("b", 20), ("c", 30)] {
        store.insert(token(name, expires_at)).await.unwrap();
    }
    let again = store.insert(token("c", 40)).await;
    assert!(
        matches!(
            again,
            Err(StoreError::Exists {
                kind: Kind::ClientToken,
                ..
            })
        ),
        "{again:?}"
    );
    assert_eq!(store.expire_client_tokens(Timestamp(20)).await.unwrap(), 2);
    assert_eq!(store.expire_client_tokens(Timestamp(20)).await.unwrap(), 0);
    let key = ClientToken::key_of(&account("000000000000"), "RunMicrovm", "c");
    assert!(store.get::<ClientToken>(&key).await.unwrap().is_some());

    let many = dormouse_core::limits::STORE_PAGE_ROWS_MAX + 1;
    let batch = (0..many).try_fold(Batch::default(), |batch, n| {
        batch.insert(&token(&format!("many-{n}"), 20))
    });
    store.apply(batch.unwrap()).await.unwrap();
    let expired = store.expire_client_tokens(Timestamp(30)).await.unwrap();
    assert_eq!(expired, many + 1);
}
