//! One host's MicroVMs: machines, snapshots, network slots, a driver task per VM and image builds.

pub mod host;
pub mod vmm;
