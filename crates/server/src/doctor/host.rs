//! Checks of the host itself: programs, rights, files, disk.

use super::Finding;
use crate::assets::Assets;
use crate::config::Config;
use crate::privileges;
use crate::sealing;
use crate::serve::QEMU;
use dormouse_core::{chain, limits};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// QEMU before this cannot leave a guest's memory in its file when it saves the rest.
const QEMU_MAJOR_MIN: u32 = 10;
/// The firmware that boots QEMU's microvm machines.
const FIRMWARE: &str = "qboot.rom";
/// A program that has not said its version by then never will.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(10);
const GIB: u64 = 1 << 30;

/// Looks at programs, rights, files and disk.
pub(super) async fn check(config: &Config) -> Vec<Finding> {
    vec![
        qemu().await,
        firmware().await,
        tool("qemu-img", &["qemu-img", "--version"], "qemu-utils").await,
        tool("mke2fs", &["mke2fs", "-V"], "e2fsprogs").await,
        assets(config),
        rights(),
        open_files(privileges::open_files()),
        secrets(config),
        cgroup(),
        disk_space(&config.data_dir),
        reflink(&config.data_dir),
    ]
}

async fn qemu() -> Finding {
    const REMEDY: &str = "install QEMU 10 or newer: `make setup` in the project does it; on Debian 12, \
                          `apt install -t bookworm-backports qemu-system-x86`";
    match output(&[QEMU, "--version"]).await {
        Err(error) => Finding::failure("qemu", format!("{QEMU}: {error}"), REMEDY),
        Ok(text) => match qemu_version(&text) {
            Some((major, version)) if major >= QEMU_MAJOR_MIN => Finding::good("qemu", version),
            Some((_, version)) => Finding::failure("qemu", format!("{version} is too old"), REMEDY),
            None => Finding::failure("qemu", format!("cannot read {text:?}"), REMEDY),
        },
    }
}

/// The major and the whole version, from `QEMU emulator version 10.0.2 (Debian ...)`.
fn qemu_version(text: &str) -> Option<(u32, &str)> {
    let version = text.split("version ").nth(1)?.split_whitespace().next()?;
    let major = version.split('.').next()?.parse().ok()?;
    Some((major, version))
}

async fn firmware() -> Finding {
    let remedy = "install it: on Debian it comes with qemu-system-data, a part of qemu-system-x86";
    let folders = match output(&[QEMU, "-L", "help"]).await {
        Ok(folders) => folders,
        Err(error) => return Finding::failure("firmware", error.to_string(), remedy),
    };
    let found = folders
        .lines()
        .map(|folder| Path::new(folder).join(FIRMWARE))
        .find(|path| path.exists());
    match found {
        Some(path) => Finding::good("firmware", path.display().to_string()),
        None => Finding::failure("firmware", format!("QEMU has no {FIRMWARE}"), remedy),
    }
}

async fn tool(name: &'static str, command: &[&str], package: &str) -> Finding {
    match output(command).await {
        Ok(text) => Finding::good(name, text.lines().next().unwrap_or_default()),
        Err(error) => Finding::failure(
            name,
            error.to_string(),
            format!("install it: `apt install {package}`"),
        ),
    }
}

/// What a program prints, on either stream.
async fn output(command: &[&str]) -> io::Result<String> {
    let running = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PROGRAM_TIMEOUT, running)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    if !output.status.success() {
        return Err(io::Error::other(format!("ended with {}", output.status)));
    }
    let text = if output.stdout.is_empty() {
        output.stderr
    } else {
        output.stdout
    };
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn assets(config: &Config) -> Finding {
    match Assets::find(config.assets_dir.as_deref()) {
        Ok(assets) => {
            let kernel = assets.kernel();
            let folder = kernel.parent().unwrap_or(&kernel);
            Finding::good("kernel, agent, base image", folder.display().to_string())
        }
        // Its text says what to do.
        Err(error) => Finding::failure("kernel, agent, base image", error.to_string(), ""),
    }
}

fn rights() -> Finding {
    let remedy = "run dormouse as root; in a container, with all capabilities (`--privileged`)";
    let missing = match capabilities(None) {
        Ok(held) => missing_capabilities(held.effective),
        Err(error) => return Finding::failure("rights", error.to_string(), remedy),
    };
    match missing.is_empty() {
        true => Finding::good("rights", "every capability that is needed"),
        false => Finding::failure(
            "rights",
            format!("no capability {}", missing.join(", ")),
            remedy,
        ),
    }
}

fn missing_capabilities(effective: CapabilitySet) -> Vec<&'static str> {
    let missing = privileges::kept().difference(effective);
    missing.iter_names().map(|(name, _)| name).collect()
}

/// Of this command's process: a service may have another limit.
fn open_files(most: u64) -> Finding {
    const NEEDED: u64 = limits::OPEN_FILES;
    match most {
        NEEDED.. => Finding::good("open files", format!("{most} at once")),
        0..NEEDED => Finding::note(
            "open files",
            format!("{most} at once: full listeners may need {NEEDED}"),
            format!(
                "raise the hard limit: `LimitNOFILE={NEEDED}` in the unit, or `ulimit -Hn {NEEDED}`"
            ),
        ),
    }
}

fn secrets(config: &Config) -> Finding {
    match sealing::for_reading(config) {
        Ok(sealer) if sealer.key_file().starts_with(&config.data_dir) => Finding::note(
            "sealing key",
            "in the data directory: who has a copy of all of it has the secrets",
            "keep the key elsewhere: `key_file` in [secrets], or a credential of systemd's",
        ),
        Ok(sealer) if sealer.key_file().as_os_str().is_empty() => {
            Finding::good("sealing key", "made by the first start")
        }
        Ok(sealer) => Finding::good("sealing key", sealer.key_file().display().to_string()),
        // Its text says what to do.
        Err(error) => Finding::failure("sealing key", chain(&error), ""),
    }
}

fn cgroup() -> Finding {
    match Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        true => Finding::good("cgroup", "version 2"),
        false => Finding::note(
            "cgroup",
            "no version 2 hierarchy: the memory of machines is not accounted for one by one",
            "boot the host with `systemd.unified_cgroup_hierarchy=1`",
        ),
    }
}

fn disk_space(data_dir: &Path) -> Finding {
    const NEEDED: u64 = 5 * GIB;
    const COMFORTABLE: u64 = 20 * GIB;
    let folder = existing(data_dir);
    let remedy = "make room there, or choose another folder with --data-dir: an image takes 1 to 10 GiB, \
                  a sleeping microVM what it has written";
    let free = match rustix::fs::statvfs(&folder) {
        Ok(stat) => stat.f_bavail.saturating_mul(stat.f_frsize),
        Err(error) => {
            return Finding::failure(
                "disk space",
                format!("{}: {error}", folder.display()),
                remedy,
            );
        }
    };
    let found = format!("{} GiB free in {}", free / GIB, folder.display());
    match free {
        0..NEEDED => Finding::failure("disk space", found, remedy),
        NEEDED..COMFORTABLE => Finding::note("disk space", found, remedy),
        COMFORTABLE.. => Finding::good("disk space", found),
    }
}

fn reflink(data_dir: &Path) -> Finding {
    let folder = existing(data_dir);
    match try_reflink(&folder) {
        Ok(()) => Finding::good("reflink", "files are copied without copying their blocks"),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL) => Finding::note(
            "reflink",
            format!(
                "the file system of {} cannot share blocks between files",
                folder.display()
            ),
            "nothing needs it; on XFS or btrfs, copies of large files take no time and no space",
        ),
        Err(error) => Finding::failure(
            "reflink",
            format!("cannot write in {}: {error}", folder.display()),
            "make the folder writable for the user that runs dormouse",
        ),
    }
}

/// Clones a block between two files that have no names.
fn try_reflink(folder: &Path) -> Result<(), Errno> {
    let unnamed = || {
        tempfile::tempfile_in(folder)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    };
    let (from, to) = (unnamed()?, unnamed()?);
    rustix::io::write(&from, &[0; 4096])?;
    rustix::fs::ioctl_ficlone(&to, &from)
}

/// The folder, or the nearest one above it that exists.
fn existing(folder: &Path) -> PathBuf {
    let found = folder.ancestors().find(|folder| folder.is_dir());
    found.map_or_else(|| PathBuf::from("/"), Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_of_qemu_is_read() {
        let debian =
            "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright";
        assert_eq!(qemu_version(debian), Some((10, "10.0.2")));
        assert_eq!(
            qemu_version("QEMU emulator version 7.2.19"),
            Some((7, "7.2.19"))
        );
        assert_eq!(qemu_version("something else"), None);
    }

    #[test]
    fn missing_capabilities_are_named() {
        assert!(missing_capabilities(CapabilitySet::all()).is_empty());
        let held = privileges::kept() - CapabilitySet::SYS_PTRACE - CapabilitySet::KILL;
        assert_eq!(missing_capabilities(held), ["KILL", "SYS_PTRACE"]);
    }

    #[test]
    fn too_few_open_files_are_noted() {
        let verdict = |most| open_files(most).verdict;
        assert_eq!(verdict(4096), super::super::Verdict::Note);
        assert_eq!(verdict(limits::OPEN_FILES), super::super::Verdict::Good);
    }

    #[test]
    fn the_nearest_folder_stands_for_one_that_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(existing(&folder.path().join("a/b")), folder.path());
        assert_eq!(existing(folder.path()), folder.path());
    }

    #[tokio::test]
    async fn a_program_that_is_missing_is_a_failure_with_a_remedy() {
        let finding = tool("none", &["dormouse-no-such-program"], "some-package").await;
        assert_eq!(finding.verdict, super::super::Verdict::Failure);
        assert!(finding.remedy.contains("some-package"), "{finding:?}");
    }
}
