//! The golden snapshot of a build: its manifest, and what a restore needs from it.

use crate::checksum::{Checksums, VerifyError};
use crate::layout::BuildDir;
use dormouse_core::guest;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What a snapshot was made with. A restore under anything else is refused, not tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Layout of the snapshot's files.
    pub format: u32,
    /// The backend that made it, as in `qemu-tcg`.
    pub vmm: String,
    /// Hash of the kernel and initramfs that it booted from.
    pub boot: String,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Protocol generation of the agent that it holds.
    pub agent_generation: u32,
    /// Pages in the file of its working set; none where nothing was recorded.
    #[serde(default)]
    pub working_set_pages: Option<u64>,
    /// Of its files; none in snapshots from before there were any.
    #[serde(default)]
    pub checksums: Option<Checksums>,
}

/// Why a golden snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It cannot be read.
    #[error("read snapshot manifest")]
    Read(#[source] std::io::Error),
    /// It is not valid.
    #[error("snapshot manifest is not valid")]
    Parse(#[source] serde_json::Error),
    /// It was made with something else than what runs here.
    #[error("snapshot was made with {what} {found}, this host has {here}: build the image again")]
    Mismatch {
        /// The property.
        what: &'static str,
        /// The snapshot's value.
        found: String,
        /// The host's value.
        here: String,
    },
    /// Its files are not what was made.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The thread that compares its files ended.
    #[error("snapshot was not verified")]
    Verifier(#[source] tokio::task::JoinError),
}

impl Manifest {
    /// Layout of the files that this source tree writes and reads.
    pub const FORMAT: u32 = 1;

    /// Reads the manifest of a build and checks that this host can restore it.
    pub async fn load(build: &BuildDir, vmm: &str) -> Result<Self, ManifestError> {
        let text = tokio::fs::read(build.manifest())
            .await
            .map_err(ManifestError::Read)?;
        let manifest = Self::parse(&text, vmm)?;
        if let Some(checksums) = manifest.checksums.clone() {
            let build = build.clone();
            let verify = tokio::task::spawn_blocking(move || checksums.verify(&build));
            verify.await.map_err(ManifestError::Verifier)??;
        }
        Ok(manifest)
    }

    /// Reads the text of a manifest and checks that `vmm` can restore what it describes.
    pub(crate) fn parse(text: &[u8], vmm: &str) -> Result<Self, ManifestError> {
        let manifest: Self = serde_json::from_slice(text).map_err(ManifestError::Parse)?;
        let same = |what, found: String, here: String| {
            if found == here {
                Ok(())
            } else {
                Err(ManifestError::Mismatch { what, found, here })
            }
        };
        same(
            "format",
            manifest.format.to_string(),
            Self::FORMAT.to_string(),
        )?;
        same("VMM", manifest.vmm.clone(), vmm.to_owned())?;
        same(
            "agent generation",
            manifest.agent_generation.to_string(),
            guest::GENERATION.to_string(),
        )?;
        Ok(manifest)
    }

    /// Writes the manifest; the snapshot is usable from the moment it has its name.
    pub async fn save(&self, build: &BuildDir) -> std::io::Result<()> {
        let text = serde_json::to_vec_pretty(self).map_err(std::io::Error::other)?;
        write_whole(&build.manifest(), &text).await
    }
}

/// Writes a file so that under its name there is either the old content or all of the new.
pub async fn write_whole(path: &Path, content: &[u8]) -> std::io::Result<()> {
    use tokio::io::AsyncWriteExt;
    let temporary = path.with_extension("tmp");
    let mut file = tokio::fs::File::create(&temporary).await?;
    file.write_all(content).await?;
    file.sync_all().await?;
    rename_durably(&temporary, path).await
}

/// Renames within one folder, and returns once a crash cannot undo it.
pub async fn rename_durably(from: &Path, to: &Path) -> std::io::Result<()> {
    tokio::fs::rename(from, to).await?;
    let parent = to.parent().ok_or(std::io::ErrorKind::InvalidInput)?;
    tokio::fs::File::open(parent).await?.sync_all().await
}
