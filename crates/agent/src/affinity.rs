//! Keeping the agent's threads on one vCPU while the app is frozen and for a moment after.
//!
//! The first thing that a restored machine does is the agent's work. Where that is handed from vCPU to vCPU, each of
//! them has to be woken and begins with cold caches, so that a launch takes longer the more of them a machine has.

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::io;

/// The vCPU that also takes the devices' interrupts (`irqaffinity` on the kernel's command line).
const TOGETHER: usize = 0;

/// Where the agent's threads may run when they are not together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scattered(CpuSet);

/// Brings all threads of this process, and those that they will start, to one vCPU.
pub(crate) fn gather() -> io::Result<Scattered> {
    let scattered = Scattered(sched_getaffinity(None)?);
    let mut here = CpuSet::new();
    here.set(TOGETHER);
    set_all(&here)?;
    Ok(scattered)
}

impl Scattered {
    /// Lets them go again.
    pub(crate) fn restore(self) -> io::Result<()> {
        set_all(&self.0)
    }
}

fn set_all(cpus: &CpuSet) -> io::Result<()> {
    for thread in std::fs::read_dir("/proc/self/task")? {
        let id = thread?.file_name();
        let id = id.to_str().and_then(|id| id.parse().ok());
        let Some(id) = id.and_then(Pid::from_raw) else {
            continue;
        };
        match sched_setaffinity(Some(id), cpus) {
            // It has ended.
            Err(rustix::io::Errno::SRCH) => {}
            set => set?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_gather_and_scatter() {
        let before = sched_getaffinity(None).unwrap();
        let scattered = gather().unwrap();
        assert_eq!(sched_getaffinity(None).unwrap().count(), 1);
        let inherited = std::thread::spawn(|| sched_getaffinity(None).unwrap().count());
        assert_eq!(inherited.join().unwrap(), 1);
        scattered.restore().unwrap();
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }
}
