//! What sealing promises of a database file: nothing of a record can be read in it or moved about in it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use dormouse_secrets::{Sealer, SecretError};
use dormouse_store::{Backend, Kind, NewRow, Query, Sealed, Sqlite, Store, StoreError, Write};
use rusqlite::Connection;
use serde_json::json;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;

const SECRET: &str = "hunter2-hunter2-hunter2";

/// A folder with a database, and what seals it.
struct Bench {
    folder: tempfile::TempDir,
    sealer: Arc<Sealer>,
}

impl Bench {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            sealer: Arc::new(Sealer::random()),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("store.db")
    }

    async fn plain(&self) -> Sqlite {
        Sqlite::open(&self.path()).await.unwrap()
    }

    async fn sealed(&self) -> Sealed<Sqlite> {
        Sealed::new(self.plain().await, Arc::clone(&self.sealer))
    }

    /// Whether the secret is anywhere in the database or its log.
    fn shows(&self) -> bool {
        // A connection that was dropped is closed by its thread, which takes the log away: then look again.
        loop {
            match self.look() {
                Ok(found) => return found,
                Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound),
            }
        }
    }

    fn look(&self) -> io::Result<bool> {
        for file in std::fs::read_dir(self.folder.path())? {
            let bytes = std::fs::read(file?.path())?;
            let mut windows = bytes.windows(SECRET.len());
            if windows.any(|window| window == SECRET.as_bytes()) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn insert(kind: Kind, id: &str) -> Write {
    Write::Insert(NewRow {
        kind,
        id: id.to_owned(),
        account: "000000000000".to_owned(),
        parent: String::new(),
        body: json!({ "id": id, "payload": SECRET }),
    })
}

#[tokio::test]
async fn a_record_reads_back_and_is_nowhere_in_the_file() {
    let bench = Bench::new();
    let store = bench.sealed().await;
    let written = store.apply(vec![insert(Kind::Microvm, "a")]).await.unwrap();
    let row = store.get(Kind::Microvm, "a").await.unwrap().unwrap();
    assert_eq!(row.body["payload"], SECRET);
    let changed = Write::Update {
        kind: Kind::Microvm,
        id: "a".to_owned(),
        revision: written[0].revision,
        body: json!({ "payload": [SECRET] }),
    };
    store.apply(vec![changed]).await.unwrap();
    assert!(!bench.shows());
}

#[tokio::test]
async fn records_of_an_earlier_version_are_sealed_and_leave_nothing_behind() {
    const ROWS: usize = 1100;
    let bench = Bench::new();
    let plain = bench.plain().await;
    let rows = (0..ROWS).map(|n| insert(Kind::Microvm, &n.to_string()));
    plain.apply(rows.collect()).await.unwrap();
    plain.apply(vec![insert(Kind::Version, "v")]).await.unwrap();
    drop(plain);
    assert!(bench.shows());

    let sealer = || Arc::clone(&bench.sealer);
    drop(Store::sqlite(&bench.path(), sealer()).await.unwrap());
    assert!(bench.shows(), "who only reads changes nothing");
    let adopted = Store::sqlite_adopting(&bench.path(), sealer()).await;
    adopted.unwrap();
    assert!(!bench.shows());
    let store = bench.sealed().await;
    assert_eq!(store.adopt().await.unwrap(), 0, "once");
    let query = Query {
        after: Some(1000),
        ..Query::default()
    };
    let rows = store.list(Kind::Microvm, &query).await.unwrap();
    assert_eq!(rows.len(), ROWS - 1000);
    assert!(rows.iter().all(|row| row.body["payload"] == SECRET));
}

#[tokio::test]
async fn what_a_crash_left_of_plain_records_goes_at_the_next_start() {
    let bench = Bench::new();
    let plain = bench.plain().await;
    let rows = (0..100).map(|n| insert(Kind::Microvm, &n.to_string()));
    plain.apply(rows.collect()).await.unwrap();
    drop(plain);
    // All rows are sealed, and the file was not yet written anew.
    bench.sealed().await.adopt().await.unwrap();
    assert!(bench.shows());
    let sealer = || Arc::clone(&bench.sealer);
    let store = Store::sqlite_adopting(&bench.path(), sealer()).await;
    store.unwrap();
    assert!(!bench.shows());
}

#[tokio::test]
async fn a_body_in_anothers_row_is_refused() {
    let bench = Bench::new();
    let store = bench.sealed().await;
    for (kind, id) in [(Kind::Image, "a"), (Kind::Image, "b"), (Kind::Build, "a")] {
        store.apply(vec![insert(kind, id)]).await.unwrap();
    }
    let swap = "UPDATE rows SET body = (SELECT body FROM rows WHERE kind = 'image' AND id = 'a')";
    Connection::open(bench.path())
        .unwrap()
        .execute(swap, [])
        .unwrap();
    store.get(Kind::Image, "a").await.unwrap().unwrap();
    for (kind, id) in [(Kind::Image, "b"), (Kind::Build, "a")] {
        let error = store.get(kind, id).await.unwrap_err();
        assert!(
            matches!(error, StoreError::Sealed(SecretError::Damaged { .. })),
            "{error:?}"
        );
        assert!(error.to_string().contains(&format!("{kind} {id}")));
    }
}

#[tokio::test]
async fn another_key_opens_nothing() {
    let bench = Bench::new();
    let store = bench.sealed().await;
    store.apply(vec![insert(Kind::Image, "a")]).await.unwrap();
    let other = Sealed::new(bench.plain().await, Arc::new(Sealer::random()));
    let error = other.get(Kind::Image, "a").await.unwrap_err();
    assert!(
        matches!(error, StoreError::Sealed(SecretError::OtherKey { .. })),
        "{error:?}"
    );
}
