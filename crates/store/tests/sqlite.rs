//! What only a database file can get wrong: permissions, versions, reopening, and a crash in the middle.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use dormouse_store::{Backend, Kind, NewRow, Query, Sqlite, StoreError, Write};
use rusqlite::Connection;
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Tells this test program to be the victim of the crash test instead.
const VICTIM_DATABASE: &str = "STORE_TEST_VICTIM_DATABASE";

fn insert(kind: Kind, id: &str) -> Write {
    Write::Insert(NewRow {
        kind,
        id: id.to_owned(),
        account: "000000000000".to_owned(),
        parent: String::new(),
        body: json!({ "id": id }),
    })
}

#[tokio::test]
async fn rows_survive_a_reopen_and_numbers_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let store = Sqlite::open(&path).await.unwrap();
    let first = store.apply(vec![insert(Kind::Image, "a")]).await.unwrap();
    let deleted = Write::Delete {
        kind: Kind::Image,
        id: "a".to_owned(),
        revision: 1,
    };
    store.apply(vec![insert(Kind::Image, "b")]).await.unwrap();
    store.apply(vec![deleted]).await.unwrap();
    drop(store);

    let store = Sqlite::open(&path).await.unwrap();
    let rows = store.list(Kind::Image, &Query::default()).await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].id.as_str(), rows[0].revision), ("b", 1));
    let third = store.apply(vec![insert(Kind::Image, "c")]).await.unwrap();
    assert_eq!(third[0].seq, first[0].seq + 2);
}

#[tokio::test]
async fn only_the_owner_may_read_the_database() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    std::fs::write(&path, b"").unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    let store = Sqlite::open(&path).await.unwrap();
    store.apply(vec![insert(Kind::Image, "a")]).await.unwrap();
    let mut files = 0;
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.file_name());
        files += 1;
    }
    assert_eq!(files, 3, "the database, its log and the log's index");
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    drop(Sqlite::open(&path).await.unwrap());
    Connection::open(&path)
        .unwrap()
        .execute("INSERT INTO migrations (version, sql) VALUES (99, 'x')", [])
        .unwrap();
    let error = Sqlite::open(&path).await.unwrap_err();
    assert!(
        matches!(error, StoreError::TooNew { found: 99, .. }),
        "{error:?}"
    );
    assert!(
        error.to_string().contains("use the newer dormouse"),
        "{error}"
    );
}

#[tokio::test]
async fn a_database_with_another_history_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    drop(Sqlite::open(&path).await.unwrap());
    Connection::open(&path)
        .unwrap()
        .execute("UPDATE migrations SET sql = 'x' WHERE version = 1", [])
        .unwrap();
    let error = Sqlite::open(&path).await.unwrap_err();
    assert!(
        matches!(error, StoreError::Diverged { version: 1, .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_file_that_is_no_database_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    std::fs::write(&path, vec![b'x'; 8192]).unwrap();
    let error = Sqlite::open(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::Sqlite { .. }), "{error:?}");
    let missing = folder.path().join("no/folder/store.db");
    let error = Sqlite::open(&missing).await.unwrap_err();
    assert!(matches!(error, StoreError::File { .. }), "{error:?}");
}

/// Kills a process that writes pairs, again and again, and looks for half a pair.
#[test]
fn a_killed_writer_leaves_whole_batches() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let mut pairs_before = 0;
    for round in 0..5_u64 {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--nocapture"])
            .env(VICTIM_DATABASE, &path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_for_more_rows(&path, pairs_before);
        std::thread::sleep(Duration::from_millis(7 * round));
        victim.kill().unwrap();
        victim.wait().unwrap();

        let (images, builds) = counts(&path);
        assert_eq!(images, builds, "half a batch after a kill");
        assert!(images > pairs_before, "rows that were there are gone");
        pairs_before = images;
    }
}

fn wait_for_more_rows(path: &Path, before: u64) {
    for _ in 0..3000 {
        if path.exists() && counts(path).0 > before {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the victim wrote nothing");
}

fn counts(path: &Path) -> (u64, u64) {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(Duration::from_secs(10)).unwrap();
    connection
        .query_row(
            "SELECT count(*) FILTER (WHERE kind = 'image'), count(*) FILTER (WHERE kind = 'build')
             FROM rows",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        // The victim may not have made the table yet.
        .unwrap_or((0, 0))
}

/// Not a test of its own: the process that the crash test kills. Without its variable it does nothing.
#[tokio::test]
async fn victim() {
    let Some(path) = std::env::var_os(VICTIM_DATABASE) else {
        return;
    };
    let store = Sqlite::open(Path::new(&path)).await.unwrap();
    for n in 0_u64.. {
        let id = format!("{}-{n}", std::process::id());
        let pair = vec![insert(Kind::Image, &id), insert(Kind::Build, &id)];
        store.apply(pair).await.unwrap();
    }
}
