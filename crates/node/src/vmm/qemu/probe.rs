//! A guest without disk and network that boots until its init runs, and is ended then.

use super::command::{Accel, Machine, Memory, Start, kernel_append};
use super::process::{self, Process};
use super::{clock, connect, machine};
use crate::vmm::VmmError;
use crate::vmm::qmp::Qmp;
use dormouse_core::limits;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

const MEMORY_MIB: u32 = 256;
const POLL: Duration = Duration::from_millis(20);
/// What the kernel says when all of it is up.
const BOOTED: &str = "Run /init as init process";

/// Boots a guest in `scratch` and answers how long it took until its init ran.
///
/// # Errors
/// QEMU does not start or ends, or the guest does not boot in time; with its last words.
pub(in crate::vmm) async fn boot_probe(
    program: &Path,
    accel: Accel,
    kernel: &Path,
    initramfs: &Path,
    scratch: &Path,
) -> Result<Duration, VmmError> {
    let khz = tokio::task::spawn_blocking(clock::tsc_khz).await;
    let khz = khz.map_err(|error| VmmError::io("measure clock")(error.into()))?;
    let append = kernel_append(accel, khz).replace("quiet loglevel=4", "loglevel=7");
    let machine = Machine {
        accel,
        memory_mib: MEMORY_MIB,
        vcpus: 1,
        memory: Memory::Anonymous,
        disk: None,
        more_disks: &[],
        network: false,
        start: Start::Kernel {
            kernel,
            initramfs,
            append: &append,
        },
    };
    let began = Instant::now();
    let process = Process::spawn(program, machine.arguments(), scratch, None)?;
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
        Err(VmmError::Gone(_)) => Err(VmmError::Gone(process::last_words(scratch))),
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
