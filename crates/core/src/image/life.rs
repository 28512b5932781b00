//! What may happen to an image, its versions and builds, and what becomes of their records: pure functions,
//! which the API and the line of builds apply and then store in one write.

use super::{
    Build, Image, ImageState, SnapshotSizes, Version, VersionState, version_name, version_number,
};
use crate::Timestamp;

/// Why something may not happen to an image now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Something else is under way with it.
    #[error("the image is {}", .0.wire_name())]
    Busy(ImageState),
    /// Each image has a version; only the whole image can be deleted.
    #[error("it is the image's last version")]
    LastVersion,
    /// MicroVMs run from the image or sleep.
    #[error("microvms use the image")]
    InUse,
    /// Only a version that was built can be launched.
    #[error("the version is {}", .0.wire_name())]
    NotBuilt(VersionState),
}

/// What to do about a build that is under way when its image or version is to be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnderWay {
    /// Refuse, as AWS does.
    Refuse,
    /// Give the build up.
    Cancel,
}

impl ImageState {
    /// Whether nothing is under way with the image.
    #[must_use]
    pub fn is_settled(self) -> bool {
        match self {
            Self::Created
            | Self::CreateFailed
            | Self::Updated
            | Self::UpdateFailed
            | Self::DeleteFailed => true,
            Self::Creating | Self::Updating | Self::Deleting => false,
        }
    }
}

/// Whether MicroVMs may be launched from a version of this image. An update leaves the versions before it
/// as they are.
#[must_use]
pub fn is_launchable(image: &Image, version: &Version) -> bool {
    image.state != ImageState::Deleting
        && version.active
        && version.state == VersionState::Successful
}

/// Begins an update; answers the name of the version that it will build.
///
/// # Errors
/// [`Refusal::Busy`] when something else is under way.
pub fn begin_update(image: &mut Image, now: Timestamp) -> Result<String, Refusal> {
    require_settled(image)?;
    image.last_version += 1;
    image.state = ImageState::Updating;
    image.updated_at = now;
    Ok(version_name(image.last_version))
}

/// Begins a build, or begins one again that a stop cut short. Says whether there is anything to build: not
/// once its version is being deleted.
pub fn begin_build(version: &mut Version, build: &mut Build, now: Timestamp) -> bool {
    if !(version.state.is_building() && build.state.is_building()) {
        return false;
    }
    version.state = VersionState::InProgress;
    version.updated_at = now;
    build.state = VersionState::InProgress;
    true
}

/// Applies a build's outcome to the three records that it concerns. Says whether anything has changed: not
/// when the version is being deleted, whatever its build came to.
pub fn finish_build(
    image: &mut Image,
    version: &mut Version,
    build: &mut Build,
    outcome: Result<SnapshotSizes, String>,
    now: Timestamp,
) -> bool {
    if !(version.state.is_building() && build.state.is_building()) {
        return false;
    }
    let first = image.state == ImageState::Creating;
    image.updated_at = now;
    version.updated_at = now;
    match outcome {
        Ok(sizes) => {
            image.state = match first {
                true => ImageState::Created,
                false => ImageState::Updated,
            };
            version.state = VersionState::Successful;
            version.active = true;
            build.state = VersionState::Successful;
            build.sizes = Some(sizes);
            let newest = newer(image.latest_active_version.take(), &version.version);
            image.latest_active_version = Some(newest);
        }
        Err(reason) => {
            image.state = match first {
                true => ImageState::CreateFailed,
                false => ImageState::UpdateFailed,
            };
            version.state = VersionState::Failed;
            version.active = false;
            build.state = VersionState::Failed;
            build.state_reason = Some(reason);
            let newest = newer(image.latest_failed_version.take(), &version.version);
            image.latest_failed_version = Some(newest);
        }
    }
    true
}

/// Lets a version be launched, or no longer. `others` are the image's other versions.
///
/// # Errors
/// [`Refusal::Busy`] when something else is under way, [`Refusal::NotBuilt`] when there is nothing to launch.
pub fn set_active(
    image: &mut Image,
    version: &mut Version,
    active: bool,
    others: &[Version],
    now: Timestamp,
) -> Result<(), Refusal> {
    require_settled(image)?;
    if active && version.state != VersionState::Successful {
        return Err(Refusal::NotBuilt(version.state));
    }
    if version.active != active {
        version.active = active;
        version.updated_at = now;
        image.updated_at = now;
    }
    derive_latest(image, others.iter().chain([&*version]));
    Ok(())
}

/// Begins to delete a version. `others` are the image's other versions.
///
/// # Errors
/// [`Refusal::LastVersion`] when it has none, [`Refusal::Busy`] when something else is under way; a build of
/// this very version is no hindrance when it may be cancelled.
pub fn begin_version_delete(
    image: &mut Image,
    version: &mut Version,
    others: &[Version],
    under_way: UnderWay,
    now: Timestamp,
) -> Result<(), Refusal> {
    if version.state == VersionState::Deleting {
        return Ok(());
    }
    let cancels = under_way == UnderWay::Cancel
        && image.state == ImageState::Updating
        && version.state.is_building();
    if !cancels {
        require_settled(image)?;
    }
    if others.is_empty() {
        return Err(Refusal::LastVersion);
    }
    image.state = ImageState::Updating;
    image.updated_at = now;
    version.state = VersionState::Deleting;
    version.active = false;
    version.updated_at = now;
    derive_latest(image, others.iter());
    Ok(())
}

/// The image once one of its versions is gone. Says whether anything has changed: not when the image itself
/// is being deleted by now.
pub fn finish_version_delete(image: &mut Image, now: Timestamp) -> bool {
    let changes = image.state == ImageState::Updating;
    if changes {
        image.state = ImageState::Updated;
        image.updated_at = now;
    }
    changes
}

/// Image and version when the version's files could not be deleted.
pub fn fail_version_delete(image: &mut Image, version: &mut Version, now: Timestamp) {
    if version.state == VersionState::Deleting {
        version.state = VersionState::DeleteFailed;
        version.updated_at = now;
    }
    if image.state == ImageState::Updating {
        image.state = ImageState::UpdateFailed;
        image.updated_at = now;
    }
}

/// Begins to delete an image; asked again while it is being deleted, it changes nothing.
///
/// # Errors
/// [`Refusal::Busy`] in the middle of a build or of a version's deletion, [`Refusal::InUse`] when MicroVMs
/// run from it or sleep.
pub fn begin_image_delete(
    image: &mut Image,
    in_use: bool,
    under_way: UnderWay,
    now: Timestamp,
) -> Result<(), Refusal> {
    if image.state == ImageState::Deleting {
        return Ok(());
    }
    if under_way == UnderWay::Refuse {
        require_settled(image)?;
    }
    if in_use {
        return Err(Refusal::InUse);
    }
    image.state = ImageState::Deleting;
    image.updated_at = now;
    Ok(())
}

/// Takes a version along when its image is being deleted.
pub fn delete_with_image(version: &mut Version, now: Timestamp) {
    version.state = VersionState::Deleting;
    version.active = false;
    version.updated_at = now;
}

/// A version of an image whose files could not be deleted.
pub fn fail_delete_with_image(version: &mut Version, now: Timestamp) {
    version.state = VersionState::DeleteFailed;
    version.updated_at = now;
}

/// The image when its files could not be deleted. Its versions are as good as gone: some of their files are.
pub fn fail_image_delete(image: &mut Image, now: Timestamp) {
    image.state = ImageState::DeleteFailed;
    image.latest_active_version = None;
    image.latest_failed_version = None;
    image.updated_at = now;
}

fn require_settled(image: &Image) -> Result<(), Refusal> {
    match image.state.is_settled() {
        true => Ok(()),
        false => Err(Refusal::Busy(image.state)),
    }
}

/// Finds the newest version that may be launched and the newest that failed among all that there are.
fn derive_latest<'a>(image: &mut Image, versions: impl Iterator<Item = &'a Version> + Clone) {
    let newest = |wanted: fn(&Version) -> bool| {
        let found = versions.clone().filter(|version| wanted(version));
        found
            .max_by_key(|version| version_number(&version.version))
            .map(|version| version.version.clone())
    };
    image.latest_active_version = newest(|v| v.active && v.state == VersionState::Successful);
    image.latest_failed_version = newest(|v| v.state == VersionState::Failed);
}

fn newer(current: Option<String>, version: &str) -> String {
    match current {
        Some(current) if version_number(&current) > version_number(version) => current,
        _ => version.to_owned(),
    }
}

#[cfg(test)]
mod tests;
