//! The contract of the `Vmm` seam, run on every backend.
//!
//! QEMU's tests have `qemu` in their names. They need root and the folder that `DORMOUSE_TEST_ASSETS`
//! names: `vmlinuz`, `modules/`, `agent` and `base/debian-12.ext4`. `DORMOUSE_TEST_ACCEL` is `tcg`
//! (the default) or `kvm`.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

mod contract;
mod fake;
mod lab;
mod qemu;
