//! What the store writes of an image.

use super::disk::{NewImage, persist};
use super::{LocalImageError, io_error, now_ms};
use crate::config::ImageConfig;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// The canonical reference; only of pulled images, whose records' names do not tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reference: Option<String>,
    /// What the registry resolved it to; none for an imported image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) resolved: Option<String>,
    pub(super) digest: String,
    pub(super) created_ms: i64,
    pub(super) config: ImageConfig,
}

impl Record {
    pub(super) fn new(image: &NewImage, reference: Option<&str>, resolved: Option<&str>) -> Self {
        Self {
            reference: reference.map(str::to_owned),
            resolved: resolved.map(str::to_owned),
            digest: image.digest.clone(),
            created_ms: now_ms(),
            config: image.config.clone(),
        }
    }
}

/// None when there is no such record.
pub(super) fn read(path: &Path) -> Result<Option<Record>, LocalImageError> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(io_error("read", path))?,
    };
    let damaged = |source| LocalImageError::Damaged {
        path: path.to_owned(),
        source,
    };
    serde_json::from_slice(&text).map(Some).map_err(damaged)
}

/// Replaces a record; `draft` is a path on the same file system that is the caller's alone.
pub(super) fn write(path: &Path, draft: &Path, record: &Record) -> Result<(), LocalImageError> {
    let damaged = |source| LocalImageError::Damaged {
        path: path.to_owned(),
        source,
    };
    let text = serde_json::to_vec_pretty(record).map_err(damaged)?;
    File::create(draft)
        .and_then(|mut file| file.write_all(&text))
        .and_then(|()| persist(draft, path))
        .map_err(io_error("write", path))
}
