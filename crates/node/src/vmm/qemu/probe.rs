//! A guest without disk and network that boots until its init runs, and is ended then.

use super::command::{Accel, Machine, Memory, Start, kernel_append};
use super::process::Process;
use super::{clocks, connect, machine};
use crate::host::jail::{self, Cell, Jailer};
use crate::vmm::VmmError;
use crate::vmm::qmp::{self, Qmp};
use dormouse_core::limits;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

const MEMORY_MIB: u32 = 256;
/// It has no slot: its user is the one after those.
const PROBE_UID: u32 = limits::JAIL_FIRST_UID + limits::SLOTS_MAX as u32;
const POLL: Duration = Duration::from_millis(20);
/// What the kernel says when all of it is up.
const BOOTED: &str = "Run /init as init process";

/// Boots a guest in `scratch` and answers how long it took until its init ran.
///
/// # Errors
/// QEMU does not start or ends, or the guest does not boot in time; with its last words.
pub(in crate::vmm) async fn boot_probe(
    jailer: &Jailer,
    accel: Accel,
    kernel: &Path,
    initramfs: &Path,
    scratch: &Path,
) -> Result<Duration, VmmError> {
    let append = kernel_append(clocks::of(accel).await?).replace("quiet loglevel=4", "loglevel=7");
    let control = qmp::listen(scratch).map_err(VmmError::io("make qmp socket"))?;
    let machine = Machine {
        accel,
        memory_mib: MEMORY_MIB,
        vcpus: 1,
        memory: Memory::Anonymous,
        disk: None,
        backing: None,
        more_disks: &[],
        network: false,
        start: Start::Kernel {
            kernel,
            initramfs,
            append: &append,
        },
    };
    let shown = [kernel, initramfs].map(jail::read_only);
    let shown = shown.into_iter().collect::<std::io::Result<_>>();
    let cell = Cell {
        uid: PROBE_UID,
        cgroups: Vec::new(),
        shown: shown.map_err(VmmError::io("show the probe guest's files"))?,
        file_bytes_max: limits::VMM_FILE_SPARE_BYTES,
        kvm: accel == Accel::Kvm,
    };
    let began = Instant::now();
    let process = Process::spawn(
        jailer,
        cell,
        machine.arguments(control.as_raw_fd()),
        scratch,
        None,
        control,
    )
    .await?;
    let booted = async {
        let qmp = connect(scratch, &process).await?;
        until_booted(&qmp).await
    };
    let booted = timeout(limits::PROBE_TIMEOUT, booted)
        .await
        .unwrap_or_else(|_| Err(VmmError::TimedOut("boot of the probe guest".to_owned())));
    process.kill().await?;
    match booted {
        Ok(()) => Ok(began.elapsed()),
        Err(VmmError::Gone(_)) => Err(VmmError::Gone(process.last_words())),
        Err(error) => Err(error),
    }
}

async fn until_booted(qmp: &Qmp) -> Result<(), VmmError> {
    let mut printed = String::new();
    loop {
        printed.push_str(&machine::read_console(qmp).await?);
        if printed.contains(BOOTED) {
            return Ok(());
        }
        // The words may come in two pieces; what is older than that is of no use.
        let keep = printed.len().saturating_sub(BOOTED.len());
        let keep = (keep..printed.len()).find(|at| printed.is_char_boundary(*at));
        printed.drain(..keep.unwrap_or(printed.len()));
        sleep(POLL).await;
    }
}
