//! A build's log, piece by piece, for whoever follows it from afar.

use super::number;
use crate::api::{internal, store_failed};
use crate::app::App;
use dormouse_api::ApiError;
use dormouse_core::image::Build;
use dormouse_core::{AccountId, limits};
use serde::Serialize;
use std::io::SeekFrom;
use std::path::Path;
use std::time::Duration;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::time::{Instant, sleep};

/// Pause between two looks for more.
const POLL: Duration = Duration::from_millis(200);

/// A piece of a log.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LogPiece {
    text: String,
    /// The byte to ask for next.
    next_offset: u64,
    /// Where the build is, as GetMicrovmImageBuild says it.
    build_state: &'static str,
    state_reason: Option<String>,
    /// Nothing will follow.
    is_complete: bool,
}

/// Reads from the offset on. Without anything new it waits as long as it is asked to.
pub(super) async fn read(
    app: &App,
    caller: &AccountId,
    id: &str,
    query: &str,
) -> Result<LogPiece, ApiError> {
    let offset = number(query, "offset")?.unwrap_or(0);
    let wait = Duration::from_secs(number(query, "wait")?.unwrap_or(0));
    let deadline = Instant::now() + wait.min(limits::LOG_WAIT_MAX);
    loop {
        // Asked before the log is read: what an ended build has logged is all there.
        let build = find(app, caller, id).await?;
        let log = app.builds.host().layout.build(&build.id).log();
        let bytes = read_file(&log, offset)
            .await
            .map_err(|error| internal("read build log", &error))?;
        let ended = !build.state.is_building();
        if !bytes.is_empty() || ended || Instant::now() >= deadline {
            return Ok(piece(build, offset, &bytes));
        }
        sleep(POLL).await;
    }
}

async fn find(app: &App, caller: &AccountId, id: &str) -> Result<Build, ApiError> {
    let found = app.store.get::<Build>(id).await.map_err(store_failed)?;
    found
        .map(|row| row.value)
        .filter(|build| build.account == *caller)
        .ok_or_else(|| ApiError::not_found(format!("There is no build {id}.")))
}

/// At most one piece's bytes; none when the log is not there yet or not so long.
async fn read_file(path: &Path, offset: u64) -> std::io::Result<Vec<u8>> {
    let mut file = match File::open(path).await {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    file.seek(SeekFrom::Start(offset)).await?;
    let mut bytes = Vec::new();
    let piece = limits::LOG_CHUNK_BYTES_MAX as u64;
    file.take(piece).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

fn piece(build: Build, offset: u64, bytes: &[u8]) -> LogPiece {
    let whole = whole_characters(bytes);
    LogPiece {
        text: String::from_utf8_lossy(&bytes[..whole]).into_owned(),
        next_offset: offset + whole as u64,
        build_state: build.state.wire_name(),
        is_complete: !build.state.is_building() && bytes.len() < limits::LOG_CHUNK_BYTES_MAX,
        state_reason: build.state_reason,
    }
}

/// Length without a character at the end of which the rest is still to come.
fn whole_characters(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => error.valid_up_to(),
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_is_not_cut() {
        let text = "ab\u{20ac}".as_bytes();
        for (length, whole) in [(0, 0), (2, 2), (3, 2), (4, 2), (5, 5)] {
            assert_eq!(whole_characters(&text[..length]), whole, "{length}");
        }
        assert_eq!(whole_characters(b"a\xffb"), 3);
    }

    #[tokio::test]
    async fn a_log_is_read_from_an_offset() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        assert_eq!(read_file(&log, 0).await.unwrap(), b"");
        std::fs::write(&log, vec![b'x'; limits::LOG_CHUNK_BYTES_MAX + 3]).unwrap();
        let piece = limits::LOG_CHUNK_BYTES_MAX;
        assert_eq!(read_file(&log, 0).await.unwrap().len(), piece);
        assert_eq!(read_file(&log, piece as u64).await.unwrap(), b"xxx");
        assert_eq!(read_file(&log, 1 << 40).await.unwrap(), b"");
    }
}
