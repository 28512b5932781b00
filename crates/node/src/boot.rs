//! What machines boot from: kernel and initramfs, kept in the data directory by their hash.
//!
//! A newer release brings new ones; the old stay, so that two daemons' snapshots never mix.

use crate::layout::Layout;
use crate::vmm::initramfs;
use aws_lc_rs::digest;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What machines boot from on this host.
#[derive(Debug, Clone)]
pub struct BootFiles {
    /// Hash over both, the name of their folder.
    pub hash: String,
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initramfs with the agent.
    pub initramfs: PathBuf,
}

impl BootFiles {
    /// Packs agent and modules into an initramfs and puts it, with the kernel, into the data directory.
    /// Does nothing but read when they are there. Blocks.
    pub fn install(
        layout: &Layout,
        kernel: &Path,
        agent: &Path,
        modules: &Path,
    ) -> io::Result<Self> {
        let kernel = std::fs::read(kernel)?;
        let initramfs = initramfs::pack(agent, modules)?;
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(&kernel);
        hash.update(&initramfs);
        let hash = hex::encode(&hash.finish().as_ref()[..16]);
        let dir = layout.boot().join(&hash);
        let files = Self {
            kernel: dir.join("vmlinuz"),
            initramfs: dir.join("initramfs"),
            hash,
        };
        if !dir.exists() {
            let temporary = dir.with_extension("tmp");
            if temporary.exists() {
                std::fs::remove_dir_all(&temporary)?;
            }
            std::fs::create_dir(&temporary)?;
            write(&temporary.join("vmlinuz"), &kernel)?;
            write(&temporary.join("initramfs"), &initramfs)?;
            std::fs::rename(&temporary, &dir)?;
        }
        Ok(files)
    }
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    file.write_all(content)?;
    file.sync_all()
}
