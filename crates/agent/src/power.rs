//! Turning the VM off.

use crate::app::{App, Phase};
use crate::cgroup::Cgroup;
use crate::freezer::Freezer;
use crate::{console, disk};
use rustix::mount::{MountFlags, mount_remount};
use rustix::system::{RebootCommand, reboot};
use std::sync::Arc;
use std::time::Duration;

/// The answer to the host's request gets this long to leave the VM.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(50);
/// The app gets this long to end by itself.
const TERMINATE_TIMEOUT: Duration = Duration::from_secs(5);
/// Killed processes get this long to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);
const KILL_POLL: Duration = Duration::from_millis(5);

/// Ends the app, puts the disk in order and turns the VM off.
pub(crate) async fn off(app: App, guest: Arc<Cgroup>, freezer: Arc<Freezer>) {
    tokio::time::sleep(ANSWER_TIMEOUT).await;
    // Frozen code is not run again just to be ended.
    if matches!(app.phase(), Phase::Running(_)) && !freezer.is_frozen() {
        app.terminate();
        let _ = tokio::time::timeout(TERMINATE_TIMEOUT, app.exited()).await;
    }
    if let Err(error) = guest.kill() {
        console::say(format_args!("cannot kill what is left: {error}"));
    }
    let gone = async {
        while guest.is_populated().unwrap_or(false) {
            tokio::time::sleep(KILL_POLL).await;
        }
    };
    let _ = tokio::time::timeout(KILL_TIMEOUT, gone).await;
    let _ = tokio::task::spawn_blocking(off_now).await;
}

/// Turns the VM off without asking anybody. It returns only where the kernel refuses.
pub(crate) fn off_now() {
    // Writes that wait for a thaw would hold up what follows.
    let _ = disk::thaw();
    let _ = disk::sync();
    let _ = mount_remount("/", MountFlags::RDONLY, c"");
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        console::say(format_args!("cannot power off: {error}"));
    }
}
