//! Bytes to a build plan and to root file systems. Nothing here knows of VMs or runs customer code.
//!
//! ```text
//! zip ──artifact──▶ folder ──dockerfile──▶ Plan (steps) ──┐
//!                     │                                   ├─ context: tar and digest of each COPY
//!                     └─────────context (.dockerignore)───┘          │
//! registry ──oci──▶ layers ──rootfs──▶ local: base disk (ext4) and its digest ──layer──▶ cache key of each step
//! ```
//!
//! Everything but `oci` and `bases` is blocking: async callers use `spawn_blocking`. Every byte that comes in is a
//! customer's, so each module states what it bounds.

pub mod artifact;
pub mod bases;
pub mod config;
pub mod context;
pub mod digest;
pub mod dockerfile;
pub mod layer;
pub mod local;
pub mod oci;
pub mod pack;
pub mod rootfs;

pub use artifact::{ArtifactError, unpack};
pub use bases::{Aliases, BaseImageError, BaseImages};
pub use config::{Healthcheck, ImageConfig};
pub use context::{Context, ContextError, CopyOutput};
pub use dockerfile::{
    Base, BaseReference, CopySource, CopyStep, DockerfileError, FileOwner, MountKind, Plan,
    RunMount, RunStep, Source, Stage, Step, StepKind, plan, references,
};
pub use local::{IdleDisk, LocalImage, LocalImageError, LocalImages, Origin};
pub use pack::{PackError, Packed, pack};
pub use rootfs::RootfsError;
