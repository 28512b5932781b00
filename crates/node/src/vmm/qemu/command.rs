//! QEMU's command line.
//!
//! Boot and restore describe the same machine, or its device state would not fit. They differ in what
//! stands behind the memory and in whether there is a kernel: a restored guest has it in its memory.

use super::clocks;
use crate::vmm::AttachedDisk;
use dormouse_core::limits;
use serde_json::json;
use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::Path;

/// How the guest's instructions are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// By the processor.
    Kvm,
    /// By software emulation.
    Tcg,
}

/// Name of the block device that the guest sees.
pub(super) const DISK_DEVICE: &str = "root";
/// Name of the bottom node of the machine's disk; the nodes that replace it are numbered.
pub(super) const DISK_NODE: &str = "disk0";
/// Name of the character device that keeps the end of the guest's console.
pub(super) const CONSOLE: &str = "console";
/// Descriptor at which QEMU finds the tap: its standard input, which it has no other use for.
const TAP_FD: u32 = 0;

/// What stands behind the guest's memory.
#[derive(Debug, Clone, Copy)]
pub(super) enum Memory<'a> {
    /// Nothing: it is gone when the machine ends.
    Anonymous,
    /// A file that becomes a golden memory.
    Shared(&'a Path),
    /// A golden memory, copied page by page when written to.
    Private(&'a Path),
}

/// What the machine starts from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Start<'a> {
    /// A kernel.
    Kernel {
        kernel: &'a Path,
        initramfs: &'a Path,
        append: &'a str,
    },
    /// A snapshot that the control socket will name.
    Incoming,
}

/// One machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Machine<'a> {
    pub(super) accel: Accel,
    pub(super) memory_mib: u32,
    pub(super) vcpus: u32,
    pub(super) memory: Memory<'a>,
    pub(super) disk: Option<&'a Path>,
    /// The disk that it lies over, whatever its own header says; none to go by that.
    pub(super) backing: Option<&'a Path>,
    /// Disks besides that one.
    pub(super) more_disks: &'a [AttachedDisk],
    pub(super) network: bool,
    pub(super) start: Start<'a>,
}

/// The kernel's command line. Software emulation has no timer that a loaded host serves reliably enough
/// to measure the clock by, so the guest is told how fast it ticks.
pub(super) fn kernel_append(clocks: clocks::Source) -> String {
    // Interrupts go where the agent works when it wakes. A guest that wakes finds its clocks hours on: no watchdog shall take
    // that for a processor that hangs. Each launch looks through the table of TCP connections, which would be the larger the
    // more memory there is.
    let common = "console=ttyS0 quiet loglevel=4 panic=-1 cryptomgr.notests random.trust_cpu=on irqaffinity=0 \
        nosoftlockup rcupdate.rcu_cpu_stall_suppress=1 workqueue.watchdog_thresh=0 \
        thash_entries=16384";
    match clocks {
        clocks::Source::Kvmclock => common.to_owned(),
        clocks::Source::Counter { khz } => format!("{common} tsc=reliable tsc_early_khz={khz}"),
    }
}

impl Machine<'_> {
    /// The arguments; `control` is the socket that QEMU answers on. Paths must be absolute: QEMU runs in a root of its own.
    pub(super) fn arguments(&self, control: RawFd) -> Vec<OsString> {
        let mut args = Arguments::default();
        args.pair("-M", "microvm,memory-backend=mem,pit=off,pic=off,rtc=on,isa-serial=on,dump-guest-core=off,mem-merge=off,suppress-vmdesc=on");
        match self.accel {
            Accel::Kvm => args.pair("-accel", "kvm").pair("-cpu", "host"),
            Accel::Tcg => args
                .pair("-accel", "tcg,thread=multi")
                .pair("-cpu", "max,la57=off"),
        };
        args.pair("-smp", self.vcpus.to_string())
            .pair("-m", format!("{}M", self.memory_mib));
        args.pair("-object", self.memory_object());
        // SeaBIOS, the default, hangs on this machine with a virtio disk.
        args.pair("-bios", "qboot.rom");
        for word in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            args.word(word);
        }
        args.pair("-display", "none").pair(
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        );
        args.pair("-global", "virtio-mmio.force-legacy=false");
        // The device states of suspended machines carry no description of the machine: look for none
        // (so does `suppress-vmdesc`).
        args.pair("-global", "migration.send-configuration=off");
        args.pair(
            "-chardev",
            format!("ringbuf,id={CONSOLE},size={}", limits::CONSOLE_BYTES),
        )
        .pair("-serial", format!("chardev:{CONSOLE}"));
        args.pair(
            "-chardev",
            format!("socket,id=control,fd={control},server=on,wait=off"),
        )
        .pair("-mon", "chardev=control,mode=control");
        self.devices(&mut args);
        match self.start {
            Start::Kernel {
                kernel,
                initramfs,
                append,
            } => args
                .pair("-kernel", kernel)
                .pair("-initrd", initramfs)
                .pair("-append", append),
            Start::Incoming => args.word("-S").pair("-incoming", "defer"),
        };
        args.0
    }

    fn memory_object(&self) -> String {
        let size = u64::from(self.memory_mib) << 20;
        let object = match self.memory {
            Memory::Anonymous => {
                json!({"qom-type": "memory-backend-ram", "id": "mem", "size": size})
            }
            Memory::Shared(path) => json!({
                "qom-type": "memory-backend-file", "id": "mem", "size": size,
                "mem-path": path, "share": true,
            }),
            // Without a reservation: a guest sees four times its baseline and rarely uses it, and the kernel
            // refuses to map privately what would not fit the whole host.
            Memory::Private(path) => json!({
                "qom-type": "memory-backend-file", "id": "mem", "size": size,
                "mem-path": path, "share": false, "readonly": true, "rom": "off", "reserve": false,
            }),
        };
        object.to_string()
    }

    fn devices(&self, args: &mut Arguments) {
        if let Some(disk) = self.disk {
            let mut node = json!({
                "driver": "qcow2", "node-name": DISK_NODE, "discard": "unmap", "detect-zeroes": "unmap",
                "file": {"driver": "file", "filename": disk, "aio": "threads", "discard": "unmap"},
            });
            if let Some(backing) = self.backing {
                node["backing"] = json!({
                    "driver": "qcow2", "read-only": true,
                    "file": {"driver": "file", "filename": backing, "aio": "threads"},
                });
            }
            args.pair("-blockdev", node.to_string());
            // A full host disk stops a machine that somebody will miss, rather than failing its writes. One
            // that keeps nothing had better fail at once.
            let when_full = match self.memory {
                Memory::Anonymous => "report",
                Memory::Shared(_) | Memory::Private(_) => "enospc",
            };
            let device = json!({
                "driver": "virtio-blk-device", "id": DISK_DEVICE, "drive": DISK_NODE,
                "werror": when_full, "rerror": "report",
            });
            args.pair("-device", device.to_string());
        }
        for (number, disk) in self.more_disks.iter().enumerate() {
            attach(args, number, disk);
        }
        if self.network {
            args.pair("-netdev", format!("tap,id=net,fd={TAP_FD}"));
            let mac = dormouse_core::guest::GUEST_MAC;
            args.pair("-device", format!("virtio-net-device,netdev=net,mac={mac}"));
        }
    }
}

/// Attaches one disk more. A build whose disk is full had better fail at once.
fn attach(args: &mut Arguments, number: usize, disk: &AttachedDisk) {
    let node = format!("more{number}");
    let file = json!({
        "driver": "file", "filename": disk.path, "aio": "threads", "discard": "unmap",
    });
    let blockdev = json!({
        "driver": crate::disk::format_name(&disk.path), "node-name": node, "discard": "unmap",
        "read-only": !disk.writable, "file": file,
    });
    args.pair("-blockdev", blockdev.to_string());
    let device = json!({
        "driver": "virtio-blk-device", "drive": node, "serial": disk.serial, "werror": "report",
        "rerror": "report",
    });
    args.pair("-device", device.to_string());
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn word(&mut self, word: impl Into<OsString>) -> &mut Self {
        self.0.push(word.into());
        self
    }

    fn pair(&mut self, name: &str, value: impl Into<OsString>) -> &mut Self {
        self.word(name).word(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(memory: Memory<'_>, start: Start<'_>) -> Vec<String> {
        let machine = Machine {
            accel: Accel::Tcg,
            memory_mib: 512,
            vcpus: 2,
            memory,
            disk: Some(Path::new("/data/a,b.qcow2")),
            backing: None,
            more_disks: &[],
            network: true,
            start,
        };
        machine
            .arguments(9)
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect()
    }

    fn value_of<'a>(words: &'a [String], name: &str) -> &'a str {
        &words[words.iter().position(|word| word == name).unwrap() + 1]
    }

    #[test]
    fn boot_and_restore_describe_the_same_machine() {
        let golden = Path::new("/data/memory");
        let kernel = Start::Kernel {
            kernel: Path::new("/k"),
            initramfs: Path::new("/i"),
            append: "quiet",
        };
        let boot = words(Memory::Shared(golden), kernel);
        let restore = words(Memory::Private(golden), Start::Incoming);
        let differing = |a: &[String], b: &[String]| -> Vec<String> {
            a.iter().filter(|word| !b.contains(word)).cloned().collect()
        };
        let own = differing(&boot, &restore);
        assert_eq!(own.len(), 7, "{own:?}"); // memory object, and kernel, initramfs, append
        assert_eq!(differing(&restore, &boot).len(), 4); // memory object, -S, -incoming defer
    }

    #[test]
    fn golden_memory_is_never_mapped_writable_by_a_restore() {
        let words = words(Memory::Private(Path::new("/data/memory")), Start::Incoming);
        let object: serde_json::Value = serde_json::from_str(value_of(&words, "-object")).unwrap();
        assert_eq!(object["share"], false);
        assert_eq!(object["readonly"], true);
        assert_eq!(
            object["reserve"], false,
            "more memory than the host has is fine"
        );
    }

    #[test]
    fn odd_characters_in_a_path_stay_in_the_path() {
        let words = words(Memory::Anonymous, Start::Incoming);
        let node: serde_json::Value = serde_json::from_str(value_of(&words, "-blockdev")).unwrap();
        assert_eq!(node["file"]["filename"], "/data/a,b.qcow2");
    }

    #[test]
    fn emulated_guest_is_told_its_clock() {
        let counter = clocks::Source::Counter { khz: 2_596_000 };
        assert!(kernel_append(counter).contains("tsc_early_khz=2596000"));
        assert!(!kernel_append(clocks::Source::Kvmclock).contains("tsc"));
    }
}
