//! One host's MicroVMs: machines, snapshots, network slots, a driver task per VM and image builds.

pub mod boot;
pub mod build;
pub mod caches;
pub mod checksum;
pub mod clock;
pub mod disk;
pub mod driver;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod gate;
pub mod guest;
mod hook;
pub mod host;
pub mod layers;
pub mod layout;
pub mod lifecycle;
pub mod node;
mod retry;
pub mod snapshot;
mod transition;
pub mod usage;
pub mod vmm;
mod working_set;
