//! Finds out whether this host can run guests by KVM: `/dev/kvm` may be there and still run none, as
//! under a hypervisor that nests in software only. So a guest is booted once to see.

use super::qemu::{self, Accel};
use crate::host::jail::Jailer;
use std::path::Path;

/// What acceleration a host has, and how that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// What to use.
    pub accel: Accel,
    /// Why, for people.
    pub reason: String,
}

/// Boots a probe guest on KVM in the folder `scratch`, which exists. Takes some seconds; remember the
/// answer. It never fails: without a proof for KVM the answer is software emulation.
pub async fn accel(jailer: &Jailer, kernel: &Path, initramfs: &Path, scratch: &Path) -> Probe {
    let opened = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    let tcg = |reason| Probe {
        accel: Accel::Tcg,
        reason,
    };
    if let Err(error) = opened {
        return tcg(format!("/dev/kvm cannot be opened: {error}"));
    }
    match qemu::boot_probe(jailer, Accel::Kvm, kernel, initramfs, scratch).await {
        Ok(took) => Probe {
            accel: Accel::Kvm,
            reason: format!("a probe guest booted on KVM in {} ms", took.as_millis()),
        },
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            tcg(format!(
                "no guest runs on /dev/kvm: {error}{}",
                cause.unwrap_or_default()
            ))
        }
    }
}
