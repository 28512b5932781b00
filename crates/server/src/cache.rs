//! Keeps the build cache within its bounds, and base images no longer than they are used: looks after each build, and
//! every hour.

use crate::config::BuildConfig;
use dormouse_core::chain;
use dormouse_core::limits;
use dormouse_node::disk;
use dormouse_node::driver::Means;
use dormouse_node::layers::Bounds;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Collects until `stop`.
pub(crate) async fn run(means: Arc<Means>, config: BuildConfig, stop: CancellationToken) {
    loop {
        collect(&means, &config).await;
        collect_bases(&means).await;
        let next = async {
            tokio::select! {
                () = means.host.layers.released() => {}
                () = tokio::time::sleep(limits::CACHE_SWEEP_INTERVAL) => {}
            }
        };
        if stop.run_until_cancelled(next).await.is_none() {
            return;
        }
    }
}

async fn collect(means: &Means, config: &BuildConfig) {
    let host = &means.host;
    let keep_bytes = match config.cache_max_bytes {
        Some(bytes) => bytes,
        None => match disk::total_bytes(&host.layout.layers()).await {
            Ok(bytes) => bytes / limits::CACHE_DISK_SHARE,
            Err(error) => {
                tracing::warn!(%error, "size of the build cache's disk is not known");
                return;
            }
        },
    };
    let bounds = Bounds {
        keep_bytes,
        older_than: Duration::ZERO,
    };
    match host.layers.collect(&host.layout, bounds).await {
        Ok(collected) if collected.disks == 0 => {}
        Ok(collected) => tracing::info!(
            layers = collected.disks,
            bytes = collected.bytes,
            "layers that nothing lies over were deleted"
        ),
        // What is left is taken up the next time.
        Err(error) => tracing::warn!(error = chain(&error), "build cache was not cleaned up"),
    }
}

async fn collect_bases(means: &Means) {
    let host = &means.host;
    let collected = host
        .layers
        .collect_bases(&host.layout, limits::BASE_IMAGE_KEEP);
    match collected.await {
        Ok(collected) if collected.disks == 0 => {}
        Ok(collected) => tracing::info!(
            images = collected.disks,
            bytes = collected.bytes,
            "pulled base images that no build uses any more were deleted"
        ),
        Err(error) => tracing::warn!(error = chain(&error), "base images were not cleaned up"),
    }
}
