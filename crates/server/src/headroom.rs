//! Whether the host has room for one more MicroVM or S3 object: either is refused before the host is in danger, so that
//! MicroVMs that run can go on writing and those that sleep can wake.

use crate::config::CapacityConfig;
use dormouse_node::disk;
use std::io;
use std::path::{Path, PathBuf};

/// What the host must keep free.
#[derive(Debug)]
pub(crate) struct Headroom {
    data_dir: PathBuf,
    least: CapacityConfig,
}

/// The host has too little of something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Shortage {
    /// Of disk space.
    #[error("{free} bytes of disk would be free, {least} must be (capacity.disk_free_min_bytes)")]
    Disk {
        /// What there would be.
        free: u64,
        /// What there must be.
        least: u64,
    },
    /// Of memory.
    #[error(
        "{available} bytes of memory are available, {least} must stay so (capacity.memory_free_min_bytes)"
    )]
    Memory {
        /// What there is.
        available: u64,
        /// What there must be.
        least: u64,
    },
    /// Nobody knows.
    #[error("the host's room cannot be measured")]
    Unknown(#[source] io::Error),
}

impl Headroom {
    pub(crate) fn new(data_dir: &Path, least: CapacityConfig) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            least,
        }
    }

    /// Whether there is room for a launch.
    pub(crate) async fn check(&self) -> Result<(), Shortage> {
        self.check_disk(0).await?;
        let memory = tokio::fs::read_to_string("/proc/meminfo").await;
        let memory = memory.map_err(Shortage::Unknown)?;
        let least = self.least.memory_free_min_bytes;
        match available(&memory) {
            Some(available) if available < least => Err(Shortage::Memory { available, least }),
            Some(_) => Ok(()),
            None => Err(Shortage::Unknown(io::ErrorKind::InvalidData.into())),
        }
    }

    /// Whether there is disk for so many bytes.
    pub(crate) async fn check_disk(&self, bytes: u64) -> Result<(), Shortage> {
        let free = disk::free_bytes(&self.data_dir).await;
        let free = free.map_err(Shortage::Unknown)?.saturating_sub(bytes);
        let least = self.least.disk_free_min_bytes;
        match free < least {
            true => Err(Shortage::Disk { free, least }),
            false => Ok(()),
        }
    }
}

/// Bytes that can be had without swapping, as the kernel estimates them.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headroom(disk_free_min_bytes: u64, memory_free_min_bytes: u64) -> Headroom {
        let least = CapacityConfig {
            disk_free_min_bytes,
            memory_free_min_bytes,
        };
        Headroom::new(Path::new("/"), least)
    }

    #[tokio::test]
    async fn what_is_short_is_named() {
        assert!(headroom(0, 0).check().await.is_ok());
        let disk = headroom(u64::MAX, 0).check().await.unwrap_err();
        assert!(disk.to_string().contains("bytes of disk"), "{disk}");
        assert!(headroom(1, u64::MAX).check_disk(1).await.is_ok());
        assert!(headroom(1, 0).check_disk(u64::MAX).await.is_err());
        let memory = headroom(0, u64::MAX).check().await.unwrap_err();
        assert!(memory.to_string().contains("bytes of memory"), "{memory}");
    }

    #[test]
    fn the_kernels_estimate_is_read() {
        let text = "MemTotal: 24 kB\nMemFree: 2 kB\nMemAvailable:       16 kB\n";
        assert_eq!(available(text), Some(16 << 10));
        assert_eq!(available("MemTotal: 24 kB\n"), None);
    }
}
