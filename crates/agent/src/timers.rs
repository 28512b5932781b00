//! Timers that became due while the VM slept.
//!
//! KVM's paravirtual clock is moved on by the sleep, but what wakes a vCPU for its next timer counts ticks of the processor,
//! which are not: it would come as late as if nothing had happened. A timer that was due even before makes the kernel look.
//! Under software emulation both are moved, and there is nothing to do.

use rustix::thread::{CpuSet, clock_nanosleep_absolute, sched_setaffinity};
use rustix::time::{ClockId, Timespec};
use std::{fs, io, thread};

const CLOCK: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";

/// Long ago, to the clock that starts with the machine.
const DUE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1,
};

/// Has each vCPU run the timers that are due.
pub(crate) fn run_due() -> io::Result<()> {
    if fs::read_to_string(CLOCK)?.trim() != "kvm-clock" {
        return Ok(());
    }
    // A thread that goes from one to the next, so that no other has to.
    let visited = thread::Builder::new().spawn(visit_all)?.join();
    visited.unwrap_or_else(|_| Err(io::Error::other("the thread ended early")))
}

fn visit_all() -> io::Result<()> {
    for cpu in 0..CpuSet::MAX_CPU {
        let mut only = CpuSet::new();
        only.set(cpu);
        match sched_setaffinity(None, &only) {
            // There is no such vCPU, nor one after it.
            Err(rustix::io::Errno::INVAL) if cpu > 0 => return Ok(()),
            set => set?,
        }
        clock_nanosleep_absolute(ClockId::Monotonic, &DUE)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn each_processor_is_visited_at_once() {
        let began = std::time::Instant::now();
        std::thread::spawn(super::visit_all)
            .join()
            .unwrap()
            .unwrap();
        assert!(began.elapsed() < std::time::Duration::from_secs(30));
    }
}
