//! What the daemon keeps on disk, and giving back what nothing needs.

use crate::api::internal;
use crate::app::App;
use dormouse_api::ApiError;
use dormouse_core::limits;
use dormouse_image::LocalImages;
use dormouse_node::caches;
use dormouse_node::disk;
use dormouse_node::layers::Bounds;
use dormouse_node::usage::{self, Kind};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;
use std::time::Duration;

/// What takes how much of the disk.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SystemUsage {
    items: Vec<Item>,
    /// Bytes left on the file system of the data directory.
    free_bytes: u64,
}

/// One kind of thing.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    kind: &'static str,
    count: usize,
    bytes: u64,
    /// What `system/prune` with `all` would give back.
    reclaimable_bytes: u64,
}

/// What to delete.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct PruneRequest {
    /// Every layer that nothing lies over, however new, and the disks of cache mounts.
    all: bool,
    /// Those that no build has used for this many seconds.
    older_than_seconds: Option<u64>,
}

/// What was deleted.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Pruned {
    layers: usize,
    caches: usize,
    bytes: u64,
}

pub(super) async fn usage(app: &App) -> Result<SystemUsage, ApiError> {
    let host = app.builds.host();
    let layout = host.layout.clone();
    let data_dir = app.config.data_dir.clone();
    let measured = tokio::task::spawn_blocking(move || {
        let machines = usage::Usage::measure(&layout)?;
        let images = images(&layout.images())?;
        let objects = objects(&data_dir.join("s3"))?;
        let caches = caches::usage(&layout)?;
        Ok::<_, io::Error>((machines, images, objects, caches))
    });
    let failed = |error: io::Error| internal("measure disk usage", &error);
    let (machines, images, objects, caches) = measured
        .await
        .map_err(io::Error::other)
        .map_err(failed)?
        .map_err(failed)?;
    let layers = host.layers.usage(&host.layout).await;
    let layers = layers.map_err(|error| internal("measure build cache", &error))?;
    let fixed = |kind, found: Kind| Item {
        kind,
        count: found.count,
        bytes: found.bytes,
        reclaimable_bytes: 0,
    };
    Ok(SystemUsage {
        items: vec![
            fixed("base images", images),
            fixed("images", machines.golden_snapshots),
            fixed("other builds", machines.other_builds),
            fixed("running microVMs", machines.awake),
            fixed("suspended microVMs", machines.suspended),
            Item {
                kind: "build cache",
                count: layers.disks,
                bytes: layers.bytes,
                reclaimable_bytes: layers.reclaimable_bytes,
            },
            Item {
                kind: "cache mounts",
                count: caches.disks,
                bytes: caches.bytes,
                reclaimable_bytes: caches.reclaimable_bytes,
            },
            fixed("S3 objects", objects),
        ],
        free_bytes: disk::free_bytes(&app.config.data_dir)
            .await
            .map_err(failed)?,
    })
}

pub(super) async fn prune(app: &App, body: &[u8]) -> Result<Pruned, ApiError> {
    let request: PruneRequest = match body {
        b"" => PruneRequest::default(),
        body => serde_json::from_slice(body)
            .map_err(|error| ApiError::serialization(error.to_string()))?,
    };
    let age = match (request.all, request.older_than_seconds) {
        (_, Some(seconds)) => Duration::from_secs(seconds),
        (true, None) => Duration::ZERO,
        (false, None) => limits::CACHE_PRUNE_AGE,
    };
    let bounds = Bounds {
        keep_bytes: 0,
        older_than: age,
    };
    let host = app.builds.host();
    let collected = host.layers.collect(&host.layout, bounds).await;
    let collected = collected.map_err(|error| internal("prune build cache", &error))?;
    let mut pruned = Pruned {
        layers: collected.disks,
        caches: 0,
        bytes: collected.bytes,
    };
    if request.all {
        let layout = host.layout.clone();
        let deleted = tokio::task::spawn_blocking(move || caches::prune(&layout));
        let failed = |error: io::Error| internal("prune cache mounts", &error);
        let deleted = deleted.await.map_err(io::Error::other).map_err(failed)?;
        let deleted = deleted.map_err(failed)?;
        pruned.caches = deleted.disks;
        pruned.bytes += deleted.bytes;
    }
    tracing::info!(?pruned, "build cache pruned");
    Ok(pruned)
}

fn images(dir: &Path) -> io::Result<Kind> {
    let images = LocalImages::open(dir).and_then(|images| images.list());
    Ok(Kind {
        count: images.map_err(io::Error::other)?.len(),
        bytes: usage::allocated(dir)?,
    })
}

/// The embedded S3 keeps each object's bytes in one file.
fn objects(dir: &Path) -> io::Result<Kind> {
    let count = match std::fs::read_dir(dir.join("blobs")) {
        Ok(blobs) => blobs.count(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    Ok(Kind {
        count,
        bytes: usage::allocated(dir)?,
    })
}
