//! From the kernel's first instruction in user space to a root file system as a container has it.
//!
//! The initramfs holds `/init` (this program) and `/modules`, whose file `order` names the modules to
//! load, one on a line. The root disk is the one without a serial number, an ext4 file system.

use crate::cgroup::Cgroup;
use crate::{console, disk, etc, network, trees};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, fsconfig_create, fsmount, fsopen, mount,
    mount_bind, mount_move, mount_remount,
};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::ffi::CStr;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

const MODULES: &str = "/modules";
const NEW_ROOT: &str = "/newroot";
/// Software emulation can be slow to probe a disk.
const ROOT_DISK_TIMEOUT: Duration = Duration::from_secs(30);
const ROOT_DISK_POLL: Duration = Duration::from_millis(2);
/// Two descriptors for each tunnel, and room to spare.
const AGENT_OPEN_FILES: u64 = 8192;

/// Why the VM could not be brought up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// A system call failed.
    #[error("{action}")]
    Io {
        /// What was being done.
        action: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The root disk never showed.
    #[error("no root disk appeared within {} s", ROOT_DISK_TIMEOUT.as_secs())]
    NoRootDisk,
}

impl BootError {
    fn io<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::Io {
            action: action.into(),
            source: source.into(),
        }
    }
}

/// Brings the VM up; the answer is the root of its control groups.
pub(crate) fn boot() -> Result<Cgroup, BootError> {
    fs::create_dir_all("/dev").map_err(BootError::io("make /dev"))?;
    mount_new("devtmpfs", "/dev", MountFlags::NOSUID, "")?;
    console::attach().map_err(BootError::io("open the console"))?;
    load_modules()?;
    part_from_kernel().map_err(BootError::io("part from the kernel's root"))?;
    switch_root()?;
    let cgroup = mount_system()?;
    link_standard_streams()?;
    tune();
    protect_kernel_settings()?;
    network::bring_up().map_err(BootError::io("bring up the network"))?;
    etc::write_at_boot().map_err(BootError::io("write /etc"))?;
    let limit = Some(AGENT_OPEN_FILES);
    let files = Rlimit {
        current: limit,
        maximum: limit,
    };
    setrlimit(Resource::Nofile, files).map_err(BootError::io("raise the open file limit"))?;
    fs::write("/proc/self/oom_score_adj", "-1000")
        .map_err(BootError::io("exempt the agent from the OOM killer"))?;
    Ok(cgroup)
}

fn load_modules() -> Result<(), BootError> {
    let order = fs::read_to_string(format!("{MODULES}/order"))
        .map_err(BootError::io("read /modules/order"))?;
    let names = order
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    for name in names {
        let file = fs::File::open(format!("{MODULES}/{name}"))
            .map_err(BootError::io(format!("open module {name}")))?;
        match rustix::system::finit_module(&file, c"", 0) {
            // Already there, or built into this kernel.
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(BootError::io(format!("load module {name}"))(error)),
        }
    }
    // The initramfs is memory: give back what is not needed again.
    let _ = fs::remove_dir_all(MODULES);
    Ok(())
}

/// Leaves the initramfs to the kernel as its root, where there is nothing for it to run. In the root of the image, which it
/// would share, it runs `/sbin/modprobe` and `/sbin/request-key` for an app that asks for a protocol or a key that
/// is not there: the customer's code, with all rights and outside of the group that is frozen.
fn part_from_kernel() -> rustix::io::Result<()> {
    // SAFETY: only descriptor tables are dangerous to take apart, and this leaves them alone.
    unsafe { unshare_unsafe(UnshareFlags::FS) }
}

fn switch_root() -> Result<(), BootError> {
    let start = Instant::now();
    // It goes with the initramfs; the app gets one of its own.
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_new("sysfs", "/sys", plain | MountFlags::RDONLY, "")?;
    let root_disk = loop {
        // Of several disks it is the one without a serial number.
        if let Some(disk) = trees::disk_of_serial("") {
            break disk;
        }
        if start.elapsed() > ROOT_DISK_TIMEOUT {
            return Err(BootError::NoRootDisk);
        }
        std::thread::sleep(ROOT_DISK_POLL);
    };
    fs::create_dir_all(NEW_ROOT).map_err(BootError::io("make the mount point of the root"))?;
    // Lazy initialisation of inode tables would dirty pages of every clone for nothing.
    mount(
        &root_disk,
        NEW_ROOT,
        "ext4",
        MountFlags::NOATIME,
        c"noinit_itable",
    )
    .map_err(BootError::io("mount the root disk"))?;
    let dev = format!("{NEW_ROOT}/dev");
    fs::create_dir_all(&dev).map_err(BootError::io("make /dev on the root disk"))?;
    mount_move("/dev", &dev).map_err(BootError::io("move /dev"))?;
    rustix::process::chdir(NEW_ROOT).map_err(BootError::io("enter the root disk"))?;
    mount_move(".", "/").map_err(BootError::io("move the root disk"))?;
    rustix::process::chroot(".").map_err(BootError::io("change root"))?;
    rustix::process::chdir("/").map_err(BootError::io("enter the new root"))?;
    disk::grow(&root_disk).map_err(BootError::io("grow the root file system"))
}

/// Mounts what a container expects. `/run` and `/tmp` are the image's own, as in Docker.
fn mount_system() -> Result<Cgroup, BootError> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_new("proc", "/proc", plain, "")?;
    mount_new("sysfs", "/sys", plain | MountFlags::RDONLY, "")?;
    let terminals = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_new(
        "devpts",
        "/dev/pts",
        terminals,
        "gid=5,mode=620,ptmxmode=666",
    )?;
    mount_new("tmpfs", "/dev/shm", plain, "mode=1777,size=64m")?;
    mount_new("mqueue", "/dev/mqueue", plain, "")?;
    mount_cgroups().map_err(BootError::io("mount the control groups"))
}

/// Mounts the control groups twice: read-only where the app looks, since a process that leaves its group
/// would escape the freeze, and without any path for the agent.
fn mount_cgroups() -> io::Result<Cgroup> {
    let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let root = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let target = "/sys/fs/cgroup";
    mount("cgroup2", target, "cgroup2", plain, None)?;
    mount_remount(target, plain | MountFlags::BIND | MountFlags::RDONLY, c"")?;
    Ok(Cgroup::root(root))
}

fn mount_new(kind: &str, target: &str, flags: MountFlags, data: &str) -> Result<(), BootError> {
    let mount_it = || -> io::Result<()> {
        if !Path::new(target).is_dir() {
            fs::create_dir_all(target)?;
        }
        let data = std::ffi::CString::new(data)?;
        Ok(mount(kind, target, kind, flags, data.as_c_str())?)
    };
    mount_it().map_err(BootError::io(format!("mount {target}")))
}

/// Links that udev would make and that programs rely on, as in `> /dev/stdout`.
fn link_standard_streams() -> Result<(), BootError> {
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        match std::os::unix::fs::symlink(target, link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(BootError::io(format!("link {link}"))(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Kernel settings that Docker gives a container. A kernel without one of them still runs apps.
fn tune() {
    for (key, value) in [
        ("net/ipv4/ping_group_range", "0 2147483647"),
        ("net/ipv4/ip_unprivileged_port_start", "0"),
        ("net/ipv6/conf/eth0/disable_ipv6", "1"),
    ] {
        if let Err(error) = fs::write(format!("/proc/sys/{key}"), value) {
            console::say(format_args!("cannot set {key}: {error}"));
        }
    }
}

/// What [`protect_kernel_settings`] makes read-only.
pub(crate) const PROTECTED: [&CStr; 5] = [
    c"/proc/bus",
    c"/proc/fs",
    c"/proc/irq",
    c"/proc/sys",
    c"/proc/sysrq-trigger",
];

/// Makes read-only what Docker makes read-only: through these root's processes could run code outside
/// their control group (`core_pattern`) or stop the VM (`sysrq-trigger`).
fn protect_kernel_settings() -> Result<(), BootError> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for path in PROTECTED {
        let protect = || {
            mount_bind(path, path)?;
            mount_remount(path, flags | MountFlags::BIND | MountFlags::RDONLY, c"")
        };
        match protect() {
            // A kernel without it has nothing to protect.
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => {
                let action = format!("protect {}", path.to_string_lossy());
                return Err(BootError::io(action)(error));
            }
        }
    }
    Ok(())
}
