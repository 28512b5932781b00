//! Makes the disk of a new image.

use super::{LocalImageError, io_error};
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::rootfs::{self, Bounds, LayerSource};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// An image that is to be added to the store.
#[derive(Debug)]
pub(crate) struct NewImage {
    /// `sha256:` and a hex digest that follows from the content.
    pub(crate) digest: String,
    /// The lowest first.
    pub(crate) layers: Vec<LayerSource>,
    /// What each layer must unpack to, where that is known.
    pub(crate) diff_ids: Option<Vec<Digest>>,
    pub(crate) config: ImageConfig,
    /// Size of its disk.
    pub(crate) disk_bytes: u64,
}

/// Makes the disk in `importing`, which is emptied first, and moves it to its name when it is whole.
pub(super) fn make(image: &NewImage, importing: &Path, disk: &Path) -> Result<(), LocalImageError> {
    fs::remove_dir_all(importing).map_err(io_error("clear", importing))?;
    let files = importing.join("rootfs");
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&files);
    made.map_err(io_error("make the folder", &files))?;
    let draft = importing.join("disk");
    let made = fill(image, &files, &draft)
        .and_then(|()| persist(&draft, disk).map_err(io_error("put in place", disk)));
    // What remains is removed by the next import, so a failure here is none of this one.
    for result in [fs::remove_dir_all(&files), fs::remove_file(&draft)] {
        match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(folder = %importing.display(), %error, "cannot remove an import's files");
            }
            _ => {}
        }
    }
    made
}

fn fill(image: &NewImage, files: &Path, draft: &Path) -> Result<(), LocalImageError> {
    let bounds = Bounds::of_disk(image.disk_bytes);
    let tree = rootfs::flatten(&image.layers, image.diff_ids.as_deref(), bounds)?;
    rootfs::write(&tree, &image.layers, bounds, files)?;
    let hex = image.digest.trim_start_matches("sha256:");
    rootfs::make_ext4(files, draft, image.disk_bytes, hex)?;
    Ok(())
}

/// Moves a finished file to its name so that a crash leaves either nothing or all of it.
pub(super) fn persist(draft: &Path, path: &Path) -> io::Result<()> {
    File::open(draft)?.sync_all()?;
    fs::rename(draft, path)?;
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    File::open(folder)?.sync_all()
}
