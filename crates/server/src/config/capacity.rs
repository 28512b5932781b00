//! `[capacity]`: what the host must keep free for MicroVMs that run and sleep.

use dormouse_core::limits;
use serde::Deserialize;

/// Launches are refused where less is free, and writes to the embedded S3 where less disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CapacityConfig {
    /// Bytes on the data directory's file system.
    pub(crate) disk_free_min_bytes: u64,
    /// Bytes of memory.
    pub(crate) memory_free_min_bytes: u64,
}

impl Default for CapacityConfig {
    fn default() -> Self {
        Self {
            disk_free_min_bytes: limits::HOST_DISK_FREE_MIN_BYTES,
            memory_free_min_bytes: limits::HOST_MEMORY_FREE_MIN_BYTES,
        }
    }
}
